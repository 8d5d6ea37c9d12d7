"""Batched root finding by many points per call, for functions that are dear or nearly flat."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from flowkit.numerics.roots import (
    Place,
    all_known,
    begin,
    find_root_by_newton,
    give_up,
    resolution,
    take_step,
)

# Newton's steps for all numbers, before those that need more go on by themselves; steps for
# these, while they are too many for a search in bins; and how many points one call of that search
# may have, if there are not half as many numbers. Measured.
_FIRST_STEPS = 4
_MORE_STEPS = 8
_CHEAP = 2**17


class Residual(Protocol):
    """An increasing function of numbers ``(..., N)``, which can be cut down to some of the N."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope."""
        ...

    def take(self, index: Tensor) -> Residual:
        """Return the function for the numbers ``index (n,)`` alone."""
        ...


def find_root_in_bins(
    f: Residual,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    points: int = 24,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the roots of an increasing ``f`` in brackets, and the slopes there, without gradient.

    Four bracketed Newton steps, more for those that are not down to the tolerance while they are
    many, and a multi-bin search for the last: each call of ``f`` is made at ``points`` points per
    number (the first at a third of them) and keeps the one part of the bracket that holds the
    root. Some points divide the bracket evenly, so that it always shrinks; others crowd around the
    root of the cubic through both ends, with their slopes, so that it soon shrinks to the
    tolerance.

    Args:
        f: Function of ``(N,)``, and of ``(points, n)`` once it is cut down.
        start: Where to begin, ``(N,)``.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.
        points: Points per call of the multi-bin search, at least 3.
        tolerance: Width of the last bracket, in units of the first one and its ends; eight
            roundings at least.

    Raises:
        ConvergenceError: If a bracket has not shrunk to the tolerance. Programs that cannot read
            their numbers (compiled, vmapped) take Newton steps throughout and do not check.

    References:
        The multi-bin search: Köhler, Krämer and Noé 2021, arXiv 2110.00351.
    """
    with torch.no_grad():
        least, place = resolution(lower, upper, tolerance), begin(start, lower, upper)
        for i in range(_FIRST_STEPS):
            place = take_step(f, place, least, watch=i >= 2)
        ended = all_known(~place.late)
        if ended is None:
            return find_root_by_newton(f, place.x, place.lower, place.upper)
        x, most = place.x, max(2 * place.x.numel(), _CHEAP)
        g, index = f, torch.arange(x.numel(), device=x.device)
        for _ in range(_MORE_STEPS):
            late = place.late.nonzero().squeeze(-1)
            if late.numel() * points <= most:
                break
            g, index, least, place = g.take(late), index[late], least[late], place.take(late)
            place = take_step(g, place, least, watch=True)
            x = x.index_copy(0, index, place.x)
        late = place.late.nonzero().squeeze(-1)
        if late.numel():
            place = place.take(late)
            endless = (place.upper - place.lower) == math.inf
            if endless.any():
                raise give_up(endless, place.upper - place.lower)
            roots = _search_bins(g.take(late), place, least[late], points)
            x = x.index_copy(0, index[late], roots)
        value, slope = f(x)
        return torch.clamp(x - value / slope, lower, upper), slope


def _search_bins(f: Residual, place: Place, least: Tensor, points: int) -> Tensor:
    """The multi-bin search: brackets down to ``least``."""
    x, lower, upper = place.x, place.lower, place.upper
    roots, index = x, torch.arange(len(x), device=x.device)
    parts = points - 1 - 2 * ((points - 2) // 4)
    calls = 3 - math.ceil(math.log(8 * torch.finfo(x.dtype).eps) / math.log(parts))
    for call in range(calls):
        # Most are solved by the first call, which confirms Newton's last step.
        count = max(points // 3, 3) if call == 0 else points
        crowd = (count - 2) // 4
        even = torch.arange(1, count - 1 - 2 * crowd, dtype=x.dtype, device=x.device)
        shares = even.unsqueeze(-1) / (len(even) + 1)
        powers = torch.arange(1, crowd + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)
        nearness = torch.exp2(-powers if crowd > 10 else -2 * powers)
        at = torch.cat(
            [
                torch.lerp(lower, upper, shares),
                torch.lerp(x, lower, nearness),
                torch.lerp(x, upper, nearness),
                # Both sides of the root, if it is where it is taken to be.
                torch.maximum(x - 0.45 * least, lower).unsqueeze(0),
                torch.minimum(x + 0.45 * least, upper).unsqueeze(0),
            ]
        )
        value, slope = f(at)
        x, lower, upper = _cubic(at, value, slope, lower, upper)
        roots = roots.index_copy(0, index, x)
        more = (upper - lower > least).nonzero().squeeze(-1)
        if not more.numel():
            return roots
        index, f = index[more], f.take(more)
        x, lower, upper, least = x[more], lower[more], upper[more], least[more]
    raise give_up(upper - lower > least, upper - lower)


def _cubic(
    at: Tensor, value: Tensor, slope: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The bracket between points ``at``, and the root of the inverse cubic through its ends."""
    low = value < 0
    below, i = torch.where(low, at, lower).max(0, keepdim=True)
    above, j = torch.where(low, upper, at).min(0, keepdim=True)
    a, b = value.gather(0, i), value.gather(0, j)
    rise = b - a
    t = -a / rise
    square, cube = t * t, t * t * t
    ends = rise * ((t - 2 * square + cube) / slope.gather(0, i))
    ends = ends + rise * ((cube - square) / slope.gather(0, j))
    x = torch.addcmul(below, above - below, 3 * square - 2 * cube) + ends
    # An end that no point replaced has no value: one step by Newton's method from the other.
    ended = (a < 0, b >= 0)
    x = torch.where(ended[0], x, above - b / slope.gather(0, j))
    x = torch.where(ended[1], x, below - a / slope.gather(0, i))
    x = torch.where(torch.clamp(x, below, above) == x, x, torch.lerp(below, above, 0.5))
    return x.squeeze(0), below.squeeze(0), above.squeeze(0)
