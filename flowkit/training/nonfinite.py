"""Explain losses, gradients and weights that are not finite: which samples, which layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowkit.errors import FlowkitError, NonFiniteLossError
from flowkit.numerics.noise import drawing_from
from flowkit.training.step import Step
from flowkit.transforms import Compose, Transform

_TRAINING = "look for outliers in these rows, a lower lr, or clip"
_OUTSIDE = "leave these rows out, or widen the domain, in the units of the data"


@dataclass(frozen=True)
class Suspects:
    """Samples whose loss or gradient is not finite, to be examined.

    Attributes:
        step: Flow and objective, with the weights that gave the loss.
        batch: The samples.
        index: Their numbers in the data; ``None`` without data.
        data: Which data these are: ``"the data"``, ``"the validation data"``.
    """

    step: Step
    batch: dict[str, Tensor]
    index: Tensor | None
    data: str = "the data"

    @torch.no_grad()
    def loss_error(self, head: str) -> NonFiniteLossError:
        """Find the cause: bad data, bad weights, the first bad layer, then the objective.

        Args:
            head: What became not finite, and when.
        """
        for name, tensor in self.batch.items():
            if rows := self._rows(_bad(tensor)):
                return NonFiniteLossError(
                    f"{head}: {name} holds NaN or infinite values in {rows}; remedy: drop these "
                    "rows or fill the gaps"
                )
        for name, parameter in self.step.flow.named_parameters("flow"):
            if not bool(parameter.isfinite().all()):
                named = _parameter(self.step, name)
                return NonFiniteLossError(
                    f"{head}: {named} is not finite; remedy: a lower lr, or clip"
                )
        try:
            for where, bad, remedy in self._faults() if "x" in self.batch else ():
                if rows := self._rows(bad):
                    return NonFiniteLossError(f"{head}; {rows}; {where}; remedy: {remedy}")
        except FlowkitError as error:
            remedy = "data of the shape and dtype of the flow"
            return NonFiniteLossError(f"{head}; {error}; remedy: {remedy}")
        return NonFiniteLossError(f"{head}: {self._of_the_objective()}")

    def gradient_error(self, number: int) -> NonFiniteLossError | None:
        """Explain gradients that are not finite, though the loss is; ``None`` if all are finite.

        Args:
            number: Number of the step, from 1.
        """
        bad = [
            name
            for name, parameter in self.step.named_parameters()
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ]
        if not bad:
            return None
        # On the way back from the loss the last layer is the first one.
        layers = [name for name in bad if name.startswith("flow.transform.")]
        of_base = any(name.startswith("flow.base.") for name in bad)
        where = layers[-1] if layers and not of_base else bad[-1]
        rows = self._rows(self._bad_gradients())
        return NonFiniteLossError(
            f"the loss is finite at step {number}, but its gradient is not: on the way back first "
            f"in {_parameter(self.step, where)}; {len(bad)} parameter(s) in all"
            f"{'; ' if rows else ''}{rows}; no weight was changed by it; remedy: look for "
            "outliers in these rows, a lower lr, or another scalar map or activation in this layer"
        )

    def _rows(self, bad: Tensor) -> str:
        """Name the first of the samples that are marked, by their numbers in the data."""
        places = bad.nonzero().flatten().cpu()[:5]
        numbers = places if self.index is None else self.index[places]
        return f"row(s) {numbers.tolist()} of {self.data}" if len(places) else ""

    def _of_the_objective(self) -> str:
        """Ask the objective for the cause, with its remedy."""
        objective, with_data = self.step.objective, "x" in self.batch
        name = type(objective).__name__
        try:
            with drawing_from(torch.Generator().manual_seed(0)):
                fault = objective.fault(self.step.flow, self.batch)
        except FlowkitError as error:
            fault = str(error)
        if fault is None and not with_data:
            return (
                f"{name} was given no data, and has no fault at other samples of the flow; "
                "remedy: a lower lr, clip, or more samples per step"
            )
        if fault is None:
            remedy = "look at what it computes from these rows, a lower lr, or clip"
            fault = f"{name}; remedy: {remedy}"
        begin = "every layer and the base are finite, so the objective is at fault: "
        return f"{begin if with_data else ''}{fault}"

    def _faults(self) -> Iterator[tuple[str, Tensor, str]]:
        """What may be at fault, in the order to look, with the samples that show it; a remedy."""
        flow, outputs = self.step.flow, []
        x, context = flow._prepare(self.batch["x"], self.batch.get("context"))
        whole = flow.transform
        layers: list[Transform] = (
            [whole[i] for i in range(len(whole))] if isinstance(whole, Compose) else [whole]
        )
        for number, layer in enumerate(layers):
            given = x
            x, log_det = layer(x, context)
            outputs.append(x)
            bad = _bad(x) | ~log_det.isfinite()
            place = f"the first layer at fault is number {number}, {layer.label}"
            outside = bad & ~layer.domain.check(given)
            yield f"{place}, whose domain these rows are outside of", outside, _OUTSIDE
            yield place, bad, _TRAINING
        density = flow.base.log_prob(x, context)
        bad = ~density.isfinite()
        base = f"the base {type(flow.base).__name__} is at fault"
        # Layers of constant slope, such as Rescale, leave it to the base to have no density there.
        # (By what leaves them: a circular layer reads everything, modulo its period.)
        for number, (layer, out) in enumerate(zip(layers, outputs, strict=True)):
            place = f"{base}, beyond the domain of number {number}, {layer.label}"
            yield place, bad & ~layer.codomain.check(out), _OUTSIDE
        outside = (density == -torch.inf) & ~flow.base.support.check(x)
        remedy = "leave these rows out, or a base whose support holds them: StandardNormal"
        yield f"{base}, whose support these rows are outside of", outside, remedy
        yield base, bad, _TRAINING

    def _bad_gradients(self) -> Tensor:
        """Whether the log-density of each sample has a gradient in x that is not finite."""
        flow, batch = self.step.flow, self.batch
        try:
            x = batch["x"].detach().requires_grad_()
            with torch.enable_grad():
                value = flow.log_prob(x, batch.get("context")).sum()
            return _bad(torch.autograd.grad(value, x)[0])
        except (KeyError, FlowkitError, RuntimeError):
            return torch.zeros(0, dtype=torch.bool)


def _bad(values: Tensor) -> Tensor:
    """Which samples hold a number that is not finite."""
    return ~values.reshape(len(values), -1).isfinite().all(1)


def weights_error(step: Step, number: int) -> NonFiniteLossError | None:
    """Explain weights that a step made infinite or NaN; ``None`` if all are finite."""
    weights = [(name, p) for name, p in step.named_parameters() if p.requires_grad]
    finite = torch.stack([p.detach().isfinite().all() for _, p in weights]).tolist()
    if all(finite):
        return None
    name = _parameter(step, weights[finite.index(False)][0])
    return NonFiniteLossError(
        f"by step {number} {name} is not finite, though the loss and its gradient were; remedy: a "
        "lower lr"
    )


def _parameter(step: Step, name: str) -> str:
    """A parameter in words, with the layer that has it."""
    name, whole = name.removeprefix("flow."), step.flow.transform
    parts, owner = name.split("."), ""
    if parts[0] == "transform":
        owner = f" of {whole.label}"
        if isinstance(whole, Compose) and len(parts) > 2 and parts[1] == "transforms":
            owner = f" of layer number {parts[2]}, {whole[int(parts[2])].label}"
    return f"the parameter {name}{owner}"
