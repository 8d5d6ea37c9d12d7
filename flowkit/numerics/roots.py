"""Batched root finding for inverses that have no closed form.

The searches compile, vmap and batch: a fixed number of steps, choices by ``torch.where``. Where a
program may look at its numbers, they stop early, and go on with those that are not found yet. They
carry no gradient; :func:`attach_newton` puts the derivatives back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flowkit.errors import ConvergenceError

# Chandrupatla's search reaches the resolution in about 17 steps from a bracket of width
# one. The rest is margin for brackets that are wide, or around a root where f is nearly flat.
_STEPS = {torch.float64: 40}
_STEPS_SINGLE = 26
_DOUBLINGS = 24
# Newton's steps and halvings. Smooth maps take 4 to 10, mixtures with parameters N(0, 50^2) at
# most 22; the rest is margin where a program cannot stop early.
_NEWTON_STEPS = {torch.float64: 64}
_NEWTON_STEPS_SINGLE = 32
# Newton's steps for all numbers, before those that need more are looked at by themselves; steps
# for these, while they are too many for a search in bins; and how many points a call of that may
# look at, if there are not half as many numbers. Measured.
_FIRST_STEPS = 4
_MORE_STEPS = 8
_CHEAP = 2**17
# A root this many resolutions beyond the end of a bracket is no matter of rounding.
_BEYOND = 1e3

_Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def look(done: Tensor) -> bool | None:
    """Whether all are true; ``None`` where a program cannot look at its numbers."""
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
            value that is searched for. Programs that cannot look at their numbers do not check.
    """
    width = 1 + centre.abs()
    lower, upper = centre - width, centre + width
    ended: bool | None = None
    for _ in range(_DOUBLINGS + 1):
        width = 2 * width
        high, low = f(lower) > 0, f(upper) < 0
        ended = look(~(high | low))
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


def find_root(
    f: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, steps: int | None = None
) -> Tensor:
    """Return the root of an increasing ``f`` between ``lower`` and ``upper``, without gradient.

    Chandrupatla's method: inverse quadratic interpolation where the last three points allow it,
    bisection elsewhere, so that the bracket always shrinks.

    Args:
        f: Function of a tensor of the shape of ``lower``, evaluated once a step.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.
        steps: Number of steps; by default 26 in float32 and 40 in float64.

    References:
        T. R. Chandrupatla, Advances in Engineering Software 28 (1997) 145-149.

    Example:
        >>> import torch
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(find_root(lambda x: x**3 - 2, 0 * one, 2 * one).item(), 12)
        1.259921049895
    """
    if steps is None:
        steps = _STEPS.get(lower.dtype, _STEPS_SINGLE)
    with torch.no_grad():
        new, fnew = lower, f(lower)
        opposite, fopp = upper, f(upper)
        t = torch.full_like(fnew, 0.5)
        eps = torch.finfo(lower.dtype).eps
        for _ in range(steps):
            x = new + t * (opposite - new)
            fx = f(x)
            same = torch.sign(fx) == torch.sign(fnew)
            older, fold = torch.where(same, new, opposite), torch.where(same, fnew, fopp)
            opposite, fopp = torch.where(same, opposite, new), torch.where(same, fopp, fnew)
            new, fnew = x, fx
            best = torch.where(fnew.abs() < fopp.abs(), new, opposite)
            span = opposite - new
            # Never step closer to an end than the resolution, or the bracket would stop shrinking.
            least = (
                2 * eps * best.abs() / span.abs().clamp_min(1e-300 if eps < 1e-9 else 1e-37)
            ).clamp_max(0.5)
            xi = (new - opposite) / (older - opposite)
            phi = (fnew - fopp) / (fold - fopp)
            interpolate = (phi * phi < xi) & ((1 - phi) ** 2 < 1 - xi)
            candidate = fnew / (fopp - fnew) * fold / (fopp - fold) + (older - new) / span * (
                fnew / (fold - fnew)
            ) * (fopp / (fold - fopp))
            usable = interpolate & torch.isfinite(candidate)
            t = torch.where(usable, candidate, torch.full_like(candidate, 0.5))
            t = torch.minimum(torch.maximum(t, least), 1 - least)
        return torch.where(fnew.abs() < fopp.abs(), new, opposite)


class _Place(NamedTuple):
    """Where Newton's method stands; ``slope`` is that where it came from, ``late`` needs more."""

    x: Tensor
    slope: Tensor
    lower: Tensor
    upper: Tensor
    last: Tensor
    before: Tensor
    late: Tensor

    def take(self, index: Tensor) -> _Place:
        return _Place(*(value.index_select(0, index) for value in self))


def _begin(start: Tensor, lower: Tensor, upper: Tensor) -> _Place:
    width = upper - lower
    x = torch.clamp(start, lower, upper)
    return _Place(x, torch.ones_like(x), lower, upper, width, width, width > 0)


def _tighten(place: _Place, value: Tensor) -> tuple[Tensor, Tensor]:
    """The bracket, given the value at the point."""
    low = value < 0
    return torch.where(low, place.x, place.lower), torch.where(low, place.upper, place.x)


def _step(f: _Function, place: _Place, least: Tensor, watch: bool) -> _Place:
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
    return _Place(to, slope, lower, upper, step, place.last, step > least)


def _resolution(lower: Tensor, upper: Tensor, tolerance: float = 0.0) -> Tensor:
    """The step that counts as none: rounding keeps steps of this size going."""
    scale = upper - lower + torch.maximum(lower.abs(), upper.abs())
    # No step is short beside an infinite bracket.
    scale = torch.where(scale == math.inf, 0, scale)
    return scale * max(tolerance, 8 * torch.finfo(lower.dtype).eps)


def _give_up(late: Tensor, width: Tensor) -> ConvergenceError:
    count, widest = int(late.sum()), float(torch.where(late, width, 0).max())
    return ConvergenceError(
        f"the search for the inverse has not ended for {count} of {late.numel()} numbers, with "
        f"brackets up to {widest:.3g} wide; remedy: look at the parameters of the scalar map "
        "for infinite or extreme values, bound them, or use float64"
    )


def _slope(older: _Place, old: _Place, place: _Place) -> Tensor:
    """The slope at the last point, from the slopes at the two before: no further call."""
    share = (place.x - old.x) / (old.x - older.x)
    # Steps of rounding's size say nothing; neither do equal points.
    share = torch.where(share.isfinite(), share.clamp(-1, 1), 0)
    return torch.addcmul(place.slope, place.slope - old.slope, share)


def find_root_by_newton(
    f: _Function, start: Tensor, lower: Tensor, upper: Tensor
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
            float64, or end at an end of the bracket and lead beyond it. Programs that cannot look
            at their numbers (compiled, vmapped) do not check.

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
        least, place = _resolution(lower, upper), _begin(start, lower, upper)
        old, ended = place, None
        for i in range(_NEWTON_STEPS.get(start.dtype, _NEWTON_STEPS_SINGLE)):
            older, old = old, place
            place = _step(f, place, least, watch=i >= 2)
            # The first steps are never the last ones.
            ended = look(~place.late) if i >= 2 else None
            if ended:
                break
        if ended is False:
            raise _give_up(place.late, place.upper - place.lower)
        at_end = torch.minimum(place.x - lower, upper - place.x) <= least
        if look(~at_end) is False:
            _expect_inside(f, place.x, lower, upper, least)
        return place.x, _slope(older, old, place)


def _expect_inside(f: _Function, x: Tensor, lower: Tensor, upper: Tensor, least: Tensor) -> None:
    """Raise where the root lies clearly beyond the end of the bracket at which ``x`` is."""
    value, slope = f(x)
    far = value.abs() > _BEYOND * least * slope
    outside = far & torch.where(value > 0, x - lower <= least, upper - x <= least)
    if outside.any():
        raise _no_bracket(outside)


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
    many, and a multi-bin search for the last: each call of ``f`` is made at ``points`` points a
    number (the first at a third of them) and keeps the one part of the bracket that holds the
    root. Some points divide the bracket evenly, so that it always shrinks; others crowd around the
    root of the cubic through both ends, with their slopes, so that it soon shrinks to the
    tolerance.

    Args:
        f: Function of ``(N,)``, and of ``(points, n)`` once it is cut down.
        start: Where to begin, ``(N,)``.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.
        points: Points a call of the multi-bin search, at least 3.
        tolerance: Width of the last bracket, in units of the first one and its ends; eight
            roundings at least.

    Raises:
        ConvergenceError: If a bracket has not shrunk to the tolerance. Programs that cannot look
            at their numbers (compiled, vmapped) take Newton steps throughout and do not check.

    References:
        The multi-bin search: Köhler, Krämer and Noé 2021, arXiv 2110.00351.
    """
    with torch.no_grad():
        least, place = _resolution(lower, upper, tolerance), _begin(start, lower, upper)
        for i in range(_FIRST_STEPS):
            place = _step(f, place, least, watch=i >= 2)
        ended = look(~place.late)
        if ended is None:
            return find_root_by_newton(f, place.x, place.lower, place.upper)
        x, most = place.x, max(2 * place.x.numel(), _CHEAP)
        g, index = f, torch.arange(x.numel(), device=x.device)
        for _ in range(_MORE_STEPS):
            late = place.late.nonzero().squeeze(-1)
            if late.numel() * points <= most:
                break
            g, index, least, place = g.take(late), index[late], least[late], place.take(late)
            place = _step(g, place, least, watch=True)
            x = x.index_copy(0, index, place.x)
        late = place.late.nonzero().squeeze(-1)
        if late.numel():
            place = place.take(late)
            endless = (place.upper - place.lower) == math.inf
            if endless.any():
                raise _give_up(endless, place.upper - place.lower)
            roots = _search_bins(g.take(late), place, least[late], points)
            x = x.index_copy(0, index[late], roots)
        value, slope = f(x)
        return torch.clamp(x - value / slope, lower, upper), slope


def _search_bins(f: Residual, place: _Place, least: Tensor, points: int) -> Tensor:
    """The multi-bin search: brackets down to ``least``."""
    x, lower, upper = place.x, place.lower, place.upper
    roots, index = x, torch.arange(len(x), device=x.device)
    parts = points - 1 - 2 * ((points - 2) // 4)
    calls = 3 - math.ceil(math.log(8 * torch.finfo(x.dtype).eps) / math.log(parts))
    for call in range(calls):
        # Most are found by the first call, which confirms Newton's last step.
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
    raise _give_up(upper - lower > least, upper - lower)


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
