"""Boxes in which densities are positive, and how they are carried from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit.scalar import ScalarMap

_Cat = type(constraints.cat([]))


class Region(NamedTuple):
    """A box: for every number of an event its ends, infinite where there is none.

    Attributes:
        lower: Lower ends ``(*batch, *event)``; the batch is that of a context.
        upper: Upper ends, likewise.
    """

    lower: Tensor
    upper: Tensor

    def is_line(self) -> bool:
        """Whether no number has an end."""
        return bool((self.lower == -math.inf).all() & (self.upper == math.inf).all())

    def interior(self) -> Tensor:
        """A point inside: the middle, or so far from the only end that it differs from it."""
        low, high = self.lower.isfinite(), self.upper.isfinite()
        lower = torch.where(low, self.lower, torch.zeros_like(self.lower))
        upper = torch.where(high, self.upper, torch.zeros_like(self.upper))
        middle = lower + 0.5 * (upper - lower)
        step = 1 + 0.5 * (lower + upper).abs()
        return torch.where(low & high, middle, torch.where(low, lower + step, upper - step)) * (
            low | high
        )


def region_of(
    constraint: constraints.Constraint, event_shape: tuple[int, ...], like: Tensor
) -> Region | None:
    """The box that a constraint stands for, in the dtype of a tensor; ``None`` if it is none."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if isinstance(constraint, _Cat):
        if len(event_shape) != 1 or constraint.dim != -1:
            return None
        parts = [
            region_of(part, (size,), like)
            for part, size in zip(constraint.cseq, constraint.lengths, strict=True)
        ]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return Region(*(torch.cat(ends, -1) for ends in zip(*known, strict=True)))
    if constraint is not constraints.real and not (
        hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound")
    ):
        return None
    if constraint.is_discrete:
        return None
    ends = (
        getattr(constraint, "lower_bound", -math.inf),
        getattr(constraint, "upper_bound", math.inf),
    )
    lower, upper = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in ends)
    shape = torch.broadcast_shapes(lower.shape, event_shape)
    return Region(lower.expand(shape), upper.expand(shape))


def is_whole_line(constraint: constraints.Constraint) -> bool:
    """Whether a constraint is none."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.real


def map_ends(
    apply: Callable[[Tensor], Tensor],
    region: Region,
    before: Region,
    after: Region,
    *,
    increasing: Tensor | bool = True,
) -> Region:
    """Carry a box by a function that maps every number of ``before`` by itself onto ``after``.

    Args:
        apply: The function; monotone in each number.
        region: The box.
        before: Where the function is defined: the box is cut down to it.
        after: What it maps that to.
        increasing: Whether it is increasing.
    """
    whole = (region.lower <= before.lower, region.upper >= before.upper)
    middle = Region(*torch.broadcast_tensors(*before)).interior()
    ends = torch.stack(
        torch.broadcast_tensors(
            torch.where(whole[0], middle, region.lower),
            torch.where(whole[1], middle, region.upper),
        )
    )
    moved = apply(ends).unbind(0)
    up = torch.as_tensor(increasing, device=region.lower.device)
    lower = torch.where(up, moved[0], moved[1])
    upper = torch.where(up, moved[1], moved[0])
    at_lower = torch.where(up, whole[0], whole[1])
    at_upper = torch.where(up, whole[1], whole[0])
    return Region(
        torch.where(at_lower, after.lower, lower), torch.where(at_upper, after.upper, upper)
    )


def ends_stay(scalar: ScalarMap, region: Region) -> bool:
    """Whether a scalar map leaves the ends of a box in place, whatever its parameters.

    Args:
        scalar: The map.
        region: The box of the features that it transforms, these in the first dimension.
    """
    return all(bool((end.isinf() | scalar.fixes(end)).all()) for end in region)


def keep_ends(
    scalar: ScalarMap, before: Region, after: Region | None, event_ndim: int = 1
) -> Region | None:
    """The box that a scalar map of every feature gives, exact where it leaves an end in place."""
    if after is None:
        return None
    stay = (scalar.fixes(end.movedim(-event_ndim, 0)).movedim(0, -event_ndim) for end in before)
    return Region(
        *(torch.where(s, old, new) for s, old, new in zip(stay, before, after, strict=True))
    )
