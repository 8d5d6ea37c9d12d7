"""Batched root finding for inverses that have no closed form.

The searches compile, vmap and batch: a fixed number of steps, choices by ``torch.where``. Where a
program can read its numbers, they stop early, and go on with those that are not solved yet. They
carry no gradient; :func:`attach_newton` puts the derivatives back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.errors import ConvergenceError

_DOUBLINGS = 24
# Newton's steps and halvings. Smooth maps take 4 to 10, mixtures with parameters N(0, 50^2) at
# most 22; the rest is margin where a program cannot stop early.
_NEWTON_STEPS = {torch.float64: 64}
_NEWTON_STEPS_SINGLE = 32
# Searches in ever narrower brackets: by six digits each in float32, fourteen in float64.
_SEARCHES = 4
# A root this many resolutions beyond the end of a bracket is no matter of rounding.
_BEYOND = 1e3

Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def all_known(done: Tensor) -> bool | None:
    """Whether all are true; ``None`` where a program cannot read its numbers."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    if done.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    try:
        return bool(done.all())
    except RuntimeError:  # vmap, where members may differ, and the meta device
        return None


def expand_bracket(f: Callable[[Tensor], Tensor], centre: Tensor) -> tuple[Tensor, Tensor]:
    """Widen ``centre -+ (1 + |centre|)`` by doubling until an increasing ``f`` changes its sign.

    A side stops moving as soon as the sign is right. After 24 doublings, i.e. 1.7e7 times the
    first width, the search ends: a map whose slope stays above 1e-7 is always bracketed.

    Raises:
        ConvergenceError: If the sign has not changed by then, as where no number is mapped to the
            value that is searched for. Programs that cannot read their numbers do not check.
    """
    width = 1 + centre.abs()
    lower, upper = centre - width, centre + width
    ended: bool | None = None
    for _ in range(_DOUBLINGS + 1):
        width = 2 * width
        high, low = f(lower) > 0, f(upper) < 0
        ended = all_known(~(high | low))
        if ended:
            break
        lower = torch.where(high, lower - width, lower)
        upper = torch.where(low, upper + width, upper)
    if ended is False:
        raise _no_bracket(high | low)
    return lower, upper


def _no_bracket(outside: Tensor) -> ConvergenceError:
    return ConvergenceError(
        f"the inverse expected a bracket around its root, got none for {int(outside.sum())} of "
        f"{outside.numel()} numbers; remedy: invert only values that the map takes, and give a "
        "scalar map with a slope below 1e-7 a bracket(y, params) of its own"
    )


class Place(NamedTuple):
    """Where Newton's method stands; ``slope`` is that where it came from, ``late`` needs more."""

    x: Tensor
    slope: Tensor
    lower: Tensor
    upper: Tensor
    last: Tensor
    before: Tensor
    late: Tensor

    def take(self, index: Tensor) -> Place:
        """The places of some of the numbers."""
        return Place(*(value.index_select(0, index) for value in self))


def begin(start: Tensor, lower: Tensor, upper: Tensor) -> Place:
    """Newton's method before its first step."""
    width = upper - lower
    x = torch.clamp(start, lower, upper)
    return Place(x, torch.ones_like(x), lower, upper, width, width, width > 0)


def _tighten(place: Place, value: Tensor) -> tuple[Tensor, Tensor]:
    """The bracket, given the value at the point."""
    low = value < 0
    return torch.where(low, place.x, place.lower), torch.where(low, place.upper, place.x)


def take_step(f: Function, place: Place, least: Tensor, *, watch: bool) -> Place:
    """One step by Newton's method, or a halving where that leads out of the bracket.

    Also, if ``watch``, where a step is longer than half the last but one: steps that do not get
    shorter end in halvings. ``late`` is whose step is longer than ``least``.
    """
    value, slope = f(place.x)
    lower, upper = _tighten(place, value)
    to = torch.addcdiv(place.x, value, slope, value=-1)
    near = (torch.clamp(to, lower, upper) == to) & (slope < math.inf)
    if watch:
        near &= (to - place.x).abs() <= torch.maximum(place.before / 2, least)
    to = torch.where(near, to, torch.lerp(lower, upper, 0.5))
    step = (to - place.x).abs()
    # A missing value compares false, and is not waited for.
    return Place(to, slope, lower, upper, step, place.last, step > least)


def resolution(lower: Tensor, upper: Tensor, tolerance: float) -> Tensor:
    """The step that counts as none: rounding keeps steps of this size going."""
    scale = upper - lower + torch.maximum(lower.abs(), upper.abs())
    # No step is short beside an infinite bracket.
    scale = torch.where(scale == math.inf, 0, scale)
    return scale * max(tolerance, 8 * torch.finfo(lower.dtype).eps)


def give_up(late: Tensor, width: Tensor) -> ConvergenceError:
    """The error of a search that has not ended."""
    count, widest = int(late.sum()), float(torch.where(late, width, 0).max())
    return ConvergenceError(
        f"the search for the inverse has not ended for {count} of {late.numel()} numbers, with "
        f"brackets up to {widest:.3g} wide; remedy: inspect the parameters of the scalar map "
        "for infinite or extreme values, bound them, or use float64"
    )


def _slope(older: Place, old: Place, place: Place) -> Tensor:
    """The slope at the last point, from the slopes at the two before: no further call."""
    share = (place.x - old.x) / (old.x - older.x)
    # Steps of rounding's size say nothing; neither do equal points.
    share = torch.where(share.isfinite(), share.clamp(-1, 1), 0)
    return torch.addcmul(place.slope, place.slope - old.slope, share)


def find_root_by_newton(
    f: Function, start: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the root of an increasing ``f`` in a bracket, and the slope there, without gradient.

    Newton's method, with a halving of the bracket in place of every step that would leave it, and
    of every step longer than half the last but one: each step either closes in or halves.

    Args:
        f: Returns value and slope, in float32 or float64; a slope may be wrong, a sign may not.
        start: Where to begin.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.

    Raises:
        ConvergenceError: If steps are not down to rounding after 32 of them in float32 or 64 in
            float64, or end at an end of the bracket and lead beyond it. Programs that cannot read
            their numbers (compiled, vmapped) do not check.

    References:
        Press et al., Numerical Recipes, section 9.4.

    Example:
        >>> import torch
        >>> one = torch.ones((), dtype=torch.float64)
        >>> root, _ = find_root_by_newton(lambda x: (x**3 - 2, 3 * x**2), one, 0 * one, 2 * one)
        >>> round(root.item(), 12)
        1.259921049895
    """
    with torch.no_grad():
        least, place = resolution(lower, upper, 0.0), begin(start, lower, upper)
        old, ended = place, None
        for i in range(_NEWTON_STEPS.get(start.dtype, _NEWTON_STEPS_SINGLE)):
            older, old = old, place
            place = take_step(f, place, least, watch=i >= 2)
            # The first steps are never the last ones.
            ended = all_known(~place.late) if i >= 2 else None
            if ended:
                break
        if ended is False:
            raise give_up(place.late, place.upper - place.lower)
        at_end = torch.minimum(place.x - lower, upper - place.x) <= least
        if all_known(~at_end) is False:
            _expect_inside(f, place.x, lower, upper, least)
        return place.x, _slope(older, old, place)


def find_root_finely(f: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the root of an increasing ``f`` in a bracket that may be far wider than its detail.

    The search of :func:`find_root_by_newton` ends where steps are short beside the bracket. Here
    it is repeated in what is left of the bracket, until it is also short beside ``1 / f'``, the
    length over which ``f`` changes by one, or beside the root.

    Args:
        f: Returns value and slope.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.

    Raises:
        ConvergenceError: As :func:`find_root_by_newton`.

    Example:
        >>> import torch
        >>> end = torch.tensor(1e6)
        >>> find_root_finely(lambda x: (1e6 * x - 3, torch.tensor(1e6)), -end, end)
        tensor(3.0000e-06)
    """
    start = torch.lerp(lower, upper, 0.5)
    with torch.no_grad():
        for _ in range(_SEARCHES):
            least = resolution(lower, upper, 0.0)
            start, slope = find_root_by_newton(f, start, lower, upper)
            fine = 64 * torch.finfo(start.dtype).eps
            if all_known((least <= fine * start.abs()) | (least * slope <= fine)):
                break
            below, above = start - 4 * least, start + 4 * least
            lower = torch.where(f(below)[0] <= 0, torch.maximum(lower, below), lower)
            upper = torch.where(f(above)[0] >= 0, torch.minimum(upper, above), upper)
    return start


def _expect_inside(f: Function, x: Tensor, lower: Tensor, upper: Tensor, least: Tensor) -> None:
    """Raise where the root lies clearly beyond the end of the bracket at which ``x`` is."""
    value, slope = f(x)
    far = value.abs() > _BEYOND * least * slope
    outside = far & torch.where(value > 0, x - lower <= least, upper - x <= least)
    if outside.any():
        raise _no_bracket(outside)


def attach_newton(
    f: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, y: Tensor, steps: int = 2
) -> Tensor:
    r"""Give the root of ``f(x) = y`` its derivatives by ``steps`` Newton steps from ``start``.

    :math:`x \leftarrow x - (f(x) - y) / f'(x)` with everything but ``start`` attached. After ``k``
    steps derivatives with respect to ``y`` and to whatever ``f`` depends on are exact up to order
    :math:`2^k - 1`; two steps serve force matching and ``gradgradcheck``, one does not.

    The value stays ``start``: what ``f(x) - y`` is there is rounding, which a division by a small
    slope would blow up. Where ``f`` is so flat that ``1 / f'(x)`` leaves the range of numbers, the
    derivatives are very large numbers instead of infinite ones.

    Args:
        f: Returns value and log-slope.
        start: The root, without gradient.
        y: The value to reach.
        steps: Number of Newton steps.
    """
    x = start.detach()
    steepest = 0.5 * math.log(torch.finfo(x.dtype).max)
    for _ in range(steps):
        value, log_slope = f(x)
        residual = value - y
        residual = residual - residual.detach()
        x = x - residual * torch.exp((-log_slope).clamp(max=steepest))
    return x
