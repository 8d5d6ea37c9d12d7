"""The support of a flow, where its density is positive, as a constraint of torch."""

from __future__ import annotations

import itertools

from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to, transforms

from flowkit.change_of_variables import ChangeOfVariables
from flowkit.density import Density
from flowkit.errors import NotInvertibleError
from flowkit.numerics.types import Context
from flowkit.transforms.region import Region


class Support(constraints.independent):
    """Where a flow has density: that of its base, carried back through all layers.

    ``check`` asks the flow itself, and so is true exactly where ``log_prob`` is finite, at the
    ends too. The ends are known wherever the support is a box: for every recipe, and for all
    stacks of layers that act on every feature by itself, permutations, and couplings or
    autoregressive layers whose scalar maps leave the ends in place. Where features with ends are
    mixed (by a linear layer, or by a coupling that moves ends) the support is no box and the ends
    are ``None``.

    ``torch.distributions.biject_to`` and Pyro take it: boxes by the usual maps of unbounded
    numbers, a support of another shape through the flow itself.

    Attributes:
        lower: Lower ends ``(*context_batch, *event)``, infinite where there is none; ``None``
            where the support is no box.
        upper: Upper ends, likewise.

    Args:
        flow: The flow.
        context: ``(*b, C)`` where the ends depend on it.

    Example:
        >>> import torch
        >>> from flowkit import box_flow
        >>> support = box_flow(2, lower=0.0, upper=[1.0, 2.0], hidden=(8,)).support
        >>> support.upper, support.check(torch.tensor([[0.5, 1.5], [0.5, 2.5]]))
        (tensor([1., 2.]), tensor([ True, False]))
    """

    def __init__(self, flow: Density, context: Context = None) -> None:
        self.flow, self.context = flow, context
        region, ndim = flow.region(context), len(flow.event_shape)
        self.lower = None if region is None else region.lower
        self.upper = None if region is None else region.upper
        inner = None if region is None else _as_constraint(region, ndim)
        self.known = inner is not None
        unknown = constraints.dependent(is_discrete=False, event_dim=0)
        super().__init__(inner or unknown, ndim)

    def check(self, value: Tensor) -> Tensor:
        """Whether the density of each event ``(*batch, *event)`` is positive."""
        return self.flow.in_support(value, self.context)

    def __repr__(self) -> str:
        if self.lower is None or self.upper is None:
            return "Support(no box)"
        return f"Support(lower={self.lower.tolist()}, upper={self.upper.tolist()})"


def _as_constraint(region: Region, event_ndim: int) -> constraints.Constraint | None:
    """One constraint of every number; ``None`` for images of unlike numbers."""
    shape = region.lower.shape[region.lower.ndim - event_ndim :]
    finite = [end.isfinite().reshape(-1, *shape).all(0).flatten().tolist() for end in region]
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(zip(*finite, strict=True))]
    if len(runs) == 1:
        return _of_kind(region, *runs[0][0])
    if event_ndim != 1:
        return None
    kinds, lengths = zip(*runs, strict=True)
    parts = zip(*(end.split(lengths, -1) for end in region), strict=True)
    return constraints.cat(
        [_of_kind(Region(*part), *kind) for part, kind in zip(parts, kinds, strict=True)],
        -1,
        lengths,
    )


def _of_kind(region: Region, low: bool, high: bool) -> constraints.Constraint:  # noqa: FBT001
    if low and high:
        return constraints.interval(region.lower, region.upper)
    if low:
        return constraints.greater_than(region.lower)
    return constraints.less_than(region.upper) if high else constraints.real


class _ThroughFlow(transforms.Transform):
    """Noise to data by a flow, as torch's transforms are used."""

    bijective = True

    def __init__(self, support: Support, flow: ChangeOfVariables) -> None:
        super().__init__()
        self.support = self.codomain = support
        self.flow, self.domain = flow, flow.base.support

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ThroughFlow) and other.support is self.support

    def _call(self, x: Tensor) -> Tensor:
        return self.flow.to_data(x, self.support.context)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.flow.to_noise(y, self.support.context)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.flow.transform.inverse(x, self.flow.embed(self.support.context))[1]


@biject_to.register(Support)
@transform_to.register(Support)
def _from_line(support: Support) -> transforms.Transform:
    """The bijection of the whole space with a support."""
    if support.known:
        return biject_to(constraints.independent(support.base_constraint, support.event_dim))
    flow = support.flow
    if not isinstance(flow, ChangeOfVariables):
        raise NotInvertibleError(
            "the support of this mixture is no box, and no flow maps noise to it; remedy: a "
            "mixture of flows on one box, or without ends"
        )
    if flow.stochastic:
        raise NotInvertibleError(
            "the support of this flow is not known: it has a stochastic layer; remedy: a flow "
            "without, or whose base is the whole space"
        )
    return transforms.ComposeTransform([biject_to(flow.base.support), _ThroughFlow(support, flow)])
