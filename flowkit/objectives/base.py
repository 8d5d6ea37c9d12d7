"""Objective: what to minimise, as a module that a training loop of any kind can call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.numerics.types import Generator

Batch = dict[str, Tensor]


class Loss(NamedTuple):
    """The loss of a batch: the scalar to minimise, and named terms of it to report."""

    value: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """Base class of objectives, functions of a flow and a batch: ``forward(flow, batch) -> Loss``.

    A batch is a dict of tensors, one event per sample: ``x``, ``context``, ``weight``, and what
    other objectives name. An objective may hold parameters; ``fit`` trains them with the flow.

    Every objective can be called with ``generator=``, its source of randomness, and
    ``progress=``, the part of the fit that is done, from 0 to 1, for schedules. A subclass names
    of the two what it uses in its ``forward(flow, batch, *, generator=None, progress=1.0)``, and
    the generator in ``start`` likewise. In one that does not name the generator, draws that torch
    would take from its global state come from it all the same, which costs some time; the global
    state stays as it was.

    Attributes:
        needs_data: Whether a batch must hold samples. If not, ``fit`` accepts ``data=None``.
        compiles: Whether ``torch.compile`` makes one program of it, so that
            ``fit(compile="auto")`` may.
        reads: Names of what it reads from a batch, so that ``fit`` refuses data of other names.
            ``None`` if that is not stated, as in a subclass with a ``forward`` of its own that
            does not: ``fit`` then warns of what the first steps did not read.
        diverges_at_ties: Whether a flow without noise lowers it without bound where values repeat.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> from flowkit.objectives import Loss, Objective
        >>> class Noisy(Objective):
        ...     def forward(self, flow, batch, *, generator=None, progress=1.0):
        ...         x = batch["x"]
        ...         noise = torch.randn(x.shape, generator=generator)
        ...         return Loss(-flow.log_prob(x + (1 - progress) * noise).mean(), {})
        >>> loss = Noisy()(elementwise_flow(1), {"x": torch.zeros(4, 1)}, progress=1.0)
        >>> round(loss.value.item(), 4)
        0.9189
    """

    needs_data: bool = True
    compiles: bool = False
    reads: frozenset[str] | None = None
    diverges_at_ties: bool = False

    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and "reads" not in cls.__dict__:
            cls.reads = None
        for name in ("forward", "start"):
            if name in cls.__dict__:
                setattr(cls, name, _with_generator(cls.__dict__[name]))

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the loss of one batch.

        Args:
            flow: The flow.
            batch: Samples, by name.
            generator: Source of randomness; torch's global one by default.
            progress: Which part of a fit is done, from 0 to 1.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward(flow, batch)")

    def start(self, batch: Batch, *, generator: Generator = None) -> Batch:
        """Return the samples that a flow starts from, with noise where the objective adds some."""
        return batch

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say why the loss of a batch is not finite, with a remedy; ``None`` if unknown.

        ``fit`` asks for it where the data, the weights and the layers of the flow are finite.
        """
        return None


def _with_generator(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method be called with what it does not name."""
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return method
    names = {parameter.name for parameter in parameters}
    if names >= {"generator", "progress"}:
        return method

    @functools.wraps(method)
    def called(self: Objective, *args: Any, **kwargs: Any) -> Any:
        unnamed = None
        if "progress" not in names and method.__name__ == "forward":
            kwargs.pop("progress", None)
        if "generator" not in names:
            unnamed = kwargs.pop("generator", None)
        with drawing_from(unnamed):
            return method(self, *args, **kwargs)

    return called


@register
class WeightedSum(Objective):
    r"""A weighted sum of objectives, :math:`\sum_i w_i L_i`.

    Args:
        *terms: Pairs ``(weight, objective)``.

    Raises:
        ArgumentError: If there is no term or a weight is not a finite number.

    Example:
        >>> import torch
        >>> from flowkit import MaximumLikelihood, WeightedSum, elementwise_flow
        >>> half = WeightedSum((0.5, MaximumLikelihood()))
        >>> x = {"x": torch.zeros(4, 1)}
        >>> flow = elementwise_flow(1)
        >>> torch.allclose(2 * half(flow, x).value, MaximumLikelihood()(flow, x).value)
        True
    """

    def __init__(self, *terms: tuple[float, Objective]) -> None:
        super().__init__()
        if not terms or not all(_is_pair(term) for term in terms):
            expected = "one pair (finite weight, objective) or more"
            raise checks.fail(
                "WeightedSum", "terms", expected, terms, "WeightedSum((1.0, MaximumLikelihood()))"
            )
        self.weights = [float(weight) for weight, _ in terms]
        self.objectives = nn.ModuleList(objective for _, objective in terms)
        self.needs_data = any(objective.needs_data for _, objective in terms)
        self.diverges_at_ties = any(objective.diverges_at_ties for _, objective in terms)
        every = [objective.reads for _, objective in terms]
        self.reads = None if None in every else frozenset().union(*every)  # type: ignore[arg-type]

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the weighted sum; terms carry the class name of their objective."""
        total, terms = None, {}
        for weight, objective in zip(self.weights, self.objectives, strict=True):
            loss = objective(flow, batch, generator=generator, progress=progress)
            part = weight * loss.value
            total = part if total is None else total + part
            terms.update(
                {f"{type(objective).__name__}.{name}": value for name, value in loss.terms.items()}
            )
        return Loss(total, terms)  # type: ignore[arg-type]

    def start(self, batch: Batch, *, generator: Generator = None) -> Batch:
        """Return the samples with the changes of every term."""
        for objective in self.objectives:
            batch = objective.start(batch, generator=generator)  # type: ignore[operator]
        return batch

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Return what the first term finds that finds something."""
        found = (objective.fault(flow, batch) for objective in self.objectives)  # type: ignore[operator]
        return next((reason for reason in found if reason is not None), None)


def _is_pair(term: Any) -> bool:
    return (
        isinstance(term, (tuple, list))
        and len(term) == 2
        and isinstance(term[0], Real)
        and abs(float(term[0])) < float("inf")
        and isinstance(term[1], Objective)
    )


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    r"""Mean over samples, :math:`\frac1n \sum_i w_i v_i`, where absent weights are one.

    Not divided by the batch's own sum of weights: that would be biased for uneven weights, and
    would differ between processes. ``fit`` brings weights to a mean of one over the data.
    """
    if weight is None:
        return values.mean()
    if weight.shape != values.shape:
        raise DataError(
            f"expected one weight per sample, {tuple(values.shape)}, got {tuple(weight.shape)}"
        )
    return (weight * values).mean()
