"""What to say when a loss is not finite: which step, which rows, which layer."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.errors import FlowkitError, NonFiniteLossError
from flowkit.flow import Flow
from flowkit.noise import drawing_from
from flowkit.objectives import Objective
from flowkit.transforms import Compose, Transform


@torch.no_grad()
def non_finite_error(
    flow: Flow,
    objective: Objective,
    batch: dict[str, Tensor],
    index: Tensor | None,
    value: Tensor,
    step: int,
) -> NonFiniteLossError:
    """Make the error: look for bad data, bad weights, the first bad layer, then the objective.

    Args:
        flow: The flow, with the weights that gave the loss.
        objective: The objective, which is asked last.
        batch: The batch of the step.
        index: Row numbers of the batch in the data.
        value: The loss.
        step: Number of the step, from 1.
    """
    head = f"the loss became {float(value)} at step {step}"
    numbers = index if index is not None else torch.arange(len(next(iter(batch.values()), [])))
    for name, tensor in batch.items():
        bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(1)
        if bool(bad.any()):
            rows = numbers[bad.cpu()][:5].tolist()
            return NonFiniteLossError(
                f"{head}: {name} holds NaN or infinite values in row(s) {rows} of the data; "
                "remedy: drop these rows or fill the gaps"
            )
    for name, parameter in flow.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return NonFiniteLossError(
                f"{head}: the parameter {name} is not finite; remedy: a lower lr, or clip"
            )
    where, at = _first_bad_layer(flow, batch)
    if where is None:
        return NonFiniteLossError(f"{head}: {_of_the_objective(flow, objective, batch)}")
    text = f"; row(s) {numbers[at.cpu()][:5].tolist()} of the data" if len(at) else ""
    return NonFiniteLossError(
        f"{head}{text}; {where}; remedy: look for outliers in these rows, a lower lr, or clip"
    )


def _of_the_objective(flow: Flow, objective: Objective, batch: dict[str, Tensor]) -> str:
    """What the objective finds, with its remedy."""
    name = type(objective).__name__
    try:
        with drawing_from(torch.Generator().manual_seed(0)):
            found = objective.fault(flow, batch)
    except FlowkitError as error:
        found = str(error)
    begin = "every layer and the base are finite, so the objective is at fault: "
    if found is not None:
        return (begin if "x" in batch else "") + found
    if "x" not in batch:
        return (
            f"{name} was given no data, and finds nothing wrong at other samples of the flow; "
            "remedy: a lower lr, clip, or more samples a step"
        )
    return f"{begin}{name}; remedy: look at what it computes from these rows, a lower lr, or clip"


def _first_bad_layer(flow: Flow, batch: dict[str, Tensor]) -> tuple[str | None, Tensor]:
    """The first layer whose output or log-determinant is not finite, and the rows concerned."""
    none = torch.empty(0, dtype=torch.long)
    if "x" not in batch:
        return None, none
    try:
        x, context = flow._prepare(batch["x"], batch.get("context"))
    except FlowkitError as error:
        return str(error), none
    whole = flow.transform
    layers: list[Transform] = (
        [whole[i] for i in range(len(whole))] if isinstance(whole, Compose) else [whole]
    )
    for number, layer in enumerate(layers):
        x, log_det = layer(x, context)
        bad = ~(torch.isfinite(x.reshape(len(x), -1)).all(1) & torch.isfinite(log_det))
        if bool(bad.any()):
            place = f"the first layer at fault is number {number}, {layer.label}"
            if bool((log_det == -torch.inf).any()):
                place += ", whose domain these rows are outside of"
            return place, bad.nonzero().flatten()
    bad = ~torch.isfinite(flow.base.log_prob(x, context))
    if bool(bad.any()):
        return f"the base {type(flow.base).__name__} is at fault", bad.nonzero().flatten()
    return None, none
