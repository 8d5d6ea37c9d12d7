"""Explain losses, gradients and weights that are not finite: which samples, which layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.errors import FlowkitError, NonFiniteLossError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.objectives import Objective
from flowkit.transforms import Compose, Transform

_TRAINING = "look for outliers in these rows, a lower lr, or clip"
_OUTSIDE = "leave these rows out, or widen the domain, in the units of the data"


@torch.no_grad()
def non_finite_error(
    flow: Flow,
    objective: Objective,
    batch: dict[str, Tensor],
    index: Tensor | None,
    head: str,
    data: str = "the data",
) -> NonFiniteLossError:
    """Find the cause: bad data, bad weights, the first bad layer, then the objective.

    Args:
        flow: The flow, with the weights that gave the loss.
        objective: The objective, which is examined last.
        batch: The batch.
        index: Row numbers of the batch in the data.
        head: What became not finite, and when.
        data: What the rows are of: ``"the data"``, ``"the validation data"``.
    """
    for name, tensor in batch.items():
        rows = _rows(_bad(tensor), index, data)
        if rows:
            return NonFiniteLossError(
                f"{head}: {name} holds NaN or infinite values in {rows}; remedy: drop these rows "
                "or fill the gaps"
            )
    for name, parameter in flow.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return NonFiniteLossError(
                f"{head}: the parameter {name}{owner_of(flow, name)} is not finite; remedy: a "
                "lower lr, or clip"
            )
    layer = _first_bad_layer(flow, batch["x"], batch.get("context")) if "x" in batch else None
    if layer is None:
        return NonFiniteLossError(f"{head}: {_of_the_objective(flow, objective, batch)}")
    where, at, remedy = layer
    parts = (head, _rows(at, index, data), where, f"remedy: {remedy}")
    return NonFiniteLossError("; ".join(filter(None, parts)))


def _bad(values: Tensor) -> Tensor:
    """Which samples hold a number that is not finite."""
    return ~values.reshape(len(values), -1).isfinite().all(1)


def _rows(bad: Tensor, index: Tensor | None, data: str) -> str:
    """Name the first of the samples that are marked, by their numbers in the data."""
    places = bad.nonzero().flatten().cpu()[:5]
    numbers = places if index is None else index[places]
    return f"row(s) {numbers.tolist()} of {data}" if len(places) else ""


def _of_the_objective(flow: Flow, objective: Objective, batch: dict[str, Tensor]) -> str:
    """Ask the objective for the cause, with its remedy."""
    name = type(objective).__name__
    try:
        with drawing_from(torch.Generator().manual_seed(0)):
            fault = objective.fault(flow, batch)
    except FlowkitError as error:
        fault = str(error)
    begin = "every layer and the base are finite, so the objective is at fault: "
    if fault is not None:
        return (begin if "x" in batch else "") + fault
    if "x" not in batch:
        return (
            f"{name} was given no data, and has no fault at other samples of the flow; "
            "remedy: a lower lr, clip, or more samples per step"
        )
    return f"{begin}{name}; remedy: look at what it computes from these rows, a lower lr, or clip"


def _first_bad_layer(
    flow: Flow, x: Tensor, context: Tensor | None
) -> tuple[str, Tensor, str] | None:
    """The first layer whose output or log-determinant is not finite, for which, and a remedy."""
    try:
        x, context = flow._prepare(x, context)
    except FlowkitError as error:
        return str(error), x.new_empty(0).bool(), "data of the shape and dtype of the flow"
    whole = flow.transform
    layers: list[Transform] = (
        [whole[i] for i in range(len(whole))] if isinstance(whole, Compose) else [whole]
    )
    outputs = []
    for number, layer in enumerate(layers):
        given = x
        x, log_det = layer(x, context)
        outputs.append(x)
        bad = _bad(x) | ~log_det.isfinite()
        if bool(bad.any()):
            place = f"the first layer at fault is number {number}, {layer.label}"
            outside = bad & ~layer.domain.check(given)
            if bool(outside.any()):
                place += ", whose domain these rows are outside of"
                return place, outside, _OUTSIDE
            return place, bad, _TRAINING
    density = flow.base.log_prob(x, context)
    bad = ~density.isfinite()
    if not bool(bad.any()):
        return None
    base = f"the base {type(flow.base).__name__} is at fault"
    # Layers of constant slope, such as Rescale, leave it to the base to have no density there.
    # (By what leaves them: a circular layer reads everything, modulo its period.)
    for number, (layer, out) in enumerate(zip(layers, outputs, strict=True)):
        outside = bad & ~layer.codomain.check(out)
        if bool(outside.any()):
            place = f"{base}, beyond the domain of number {number}, {layer.label}"
            return place, outside, _OUTSIDE
    zero = density == -torch.inf
    if bool((zero & ~flow.base.support.check(x)).any()):
        remedy = "leave these rows out, or a base whose support holds them: StandardNormal"
        return f"{base}, whose support these rows are outside of", zero, remedy
    return base, bad, _TRAINING


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
    rows = _rows(_bad_gradients(flow, batch), index, "the data")  # type: ignore[arg-type]
    return NonFiniteLossError(
        f"the loss is finite at step {number}, but its gradient is not: on the way back first in "
        f"the parameter {where.removeprefix('flow.')}{owner}; {len(bad)} parameter(s) in "
        f"all{'; ' if rows else ''}{rows}; no weight was changed by it; remedy: look for outliers "
        "in these rows, a lower lr, or another scalar map or activation in this layer"
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


def _bad_gradients(flow: Flow, batch: dict[str, Tensor]) -> Tensor:
    """Whether the log-density of each sample has a gradient in x that is not finite."""
    none = torch.zeros(0, dtype=torch.bool)
    if "x" not in batch or flow.stochastic:
        return none
    try:
        x = batch["x"].detach().requires_grad_()
        with torch.enable_grad():
            value = flow.log_prob(x, batch.get("context")).sum()
        (gradient,) = torch.autograd.grad(value, x)
    except (FlowkitError, RuntimeError):
        return none
    return _bad(gradient)
