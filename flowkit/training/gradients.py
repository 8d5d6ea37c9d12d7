"""Explain gradients and weights that are not finite: which step, samples and layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.errors import FlowkitError, NonFiniteLossError
from flowkit.flow import Flow
from flowkit.transforms import Compose


def non_finite_gradient(
    step: nn.Module, batch: dict[str, Tensor], index: Tensor | None, number: int
) -> NonFiniteLossError | None:
    """Explain gradients that are not finite, though the loss is; ``None`` if all are finite.

    Args:
        step: Flow and objective, with the gradients.
        batch: The batch of the step.
        index: Row numbers of the batch in the data.
        number: Number of the step, from 1.
    """
    bad = [
        name
        for name, parameter in step.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    if not bad:
        return None
    # On the way back from the loss the last layer is the first one.
    flow, where = step.flow, bad[-1]
    layers = [name for name in bad if name.startswith("flow.transform.")]
    if layers and not any(name.startswith("flow.base.") for name in bad):
        where = layers[-1]
    owner = owner_of(flow, where.removeprefix("flow."))  # type: ignore[arg-type]
    rows = _rows_of_bad_gradients(flow, batch)  # type: ignore[arg-type]
    numbers = index if index is not None else torch.arange(len(rows))
    text = f"; row(s) {numbers[rows.cpu()][:5].tolist()} of the data" if bool(rows.any()) else ""
    return NonFiniteLossError(
        f"the loss is finite at step {number}, but its gradient is not: on the way back first in "
        f"the parameter {where.removeprefix('flow.')}{owner}; {len(bad)} parameter(s) in "
        f"all{text}; no weight was changed by it; remedy: look for outliers in these rows, a "
        "lower lr, or another scalar map or activation in this layer"
    )


def non_finite_weights(step: nn.Module, number: int) -> NonFiniteLossError | None:
    """Explain weights that a step made infinite or NaN; ``None`` if all are finite."""
    weights = [(name, p) for name, p in step.named_parameters() if p.requires_grad]
    finite = torch.stack([p.detach().isfinite().all() for _, p in weights]).tolist()
    if all(finite):
        return None
    name = weights[finite.index(False)][0].removeprefix("flow.")
    return NonFiniteLossError(
        f"by step {number} the parameter {name}{owner_of(step.flow, name)} is not finite, though "  # type: ignore[arg-type]
        "the loss and its gradient were; remedy: a lower lr"
    )


def owner_of(flow: Flow, name: str) -> str:
    """Name the layer of a parameter in a message; empty if no layer has it."""
    parts = name.split(".")
    if parts[0] != "transform":
        return ""
    whole = flow.transform
    if isinstance(whole, Compose) and len(parts) > 2 and parts[1] == "transforms":
        return f" of layer number {parts[2]}, {whole[int(parts[2])].label}"
    return f" of {whole.label}"


def _rows_of_bad_gradients(flow: Flow, batch: dict[str, Tensor]) -> Tensor:
    """Whether the log-density of each sample has a gradient in x that is not finite."""
    none = torch.zeros(len(next(iter(batch.values()), [])), dtype=torch.bool)
    if "x" not in batch or flow.stochastic:
        return none
    try:
        x = batch["x"].detach().requires_grad_()
        with torch.enable_grad():
            value = flow.log_prob(x, batch.get("context")).sum()
        (gradient,) = torch.autograd.grad(value, x)
    except (FlowkitError, RuntimeError):
        return none
    return ~gradient.reshape(len(gradient), -1).isfinite().all(1)
