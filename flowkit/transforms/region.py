"""Boxes in which densities are positive, and how they are carried from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

_Cat = type(constraints.cat([]))


class Region(NamedTuple):
    """A box: for every number of an event its ends, infinite where there is none.

    Attributes:
        lower: Lower ends ``(*batch, *event)``; the batch is that of a context.
        upper: Upper ends, likewise.
    """

    lower: Tensor
    upper: Tensor

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


def of_numbers(constraint: constraints.Constraint) -> constraints.Constraint:
    """A constraint of events as one of single numbers."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def region_of(
    constraint: constraints.Constraint, event_shape: tuple[int, ...], like: Tensor
) -> Region | None:
    """The box that a constraint stands for, in the dtype of a tensor; ``None`` if it is none."""
    constraint = of_numbers(constraint)
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
    names = ("lower_bound", "upper_bound")
    bounded = any(hasattr(constraint, name) for name in names)
    if constraint.is_discrete or not (bounded or constraint is constraints.real):
        return None
    ends = (
        getattr(constraint, name, sign * math.inf)
        for name, sign in zip(names, (-1, 1), strict=True)
    )
    lower, upper = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in ends)
    shape = torch.broadcast_shapes(lower.shape, event_shape)
    return Region(lower.expand(shape), upper.expand(shape))


def is_whole_line(constraint: constraints.Constraint) -> bool:
    """Whether a constraint is none."""
    return of_numbers(constraint) is constraints.real


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
    # A decreasing function exchanges the ends.
    (at_lower, at_upper), (lower, upper) = (
        (torch.where(up, a, b), torch.where(up, b, a)) for a, b in (whole, moved)
    )
    return Region(
        torch.where(at_lower, after.lower, lower), torch.where(at_upper, after.upper, upper)
    )
