"""Batched root finding for inverses that have no closed form.

Every search runs a fixed number of steps and selects with ``torch.where``, so the searches
compile, vmap and batch; where a program may look at its numbers, Newton's stops when all roots are
found. The search itself carries no gradient; :func:`attach_newton` puts the derivatives back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Chandrupatla's search reaches the resolution in about 17 steps from a bracket of width
# one. The rest is margin for brackets that are wide, or around a root where f is nearly flat.
_STEPS = {torch.float64: 40}
_STEPS_SINGLE = 26
_DOUBLINGS = 24
# Newton's steps and halvings. Smooth maps take 4 to 10, mixtures with parameters N(0, 50^2) at
# most 22; the rest is margin where a program cannot stop early.
_NEWTON_STEPS = {torch.float64: 64}
_NEWTON_STEPS_SINGLE = 32


def all_known(done: Tensor) -> bool:
    """Whether all are true; false where a program cannot look at its numbers."""
    if torch.compiler.is_compiling():
        return False
    if done.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool(done.all())
    except RuntimeError:  # vmap, where members may differ, and the meta device
        return False


def expand_bracket(f: Callable[[Tensor], Tensor], centre: Tensor) -> tuple[Tensor, Tensor]:
    """Widen ``centre -+ (1 + |centre|)`` by doubling until an increasing ``f`` changes its sign.

    A side stops moving as soon as the sign is right. After 24 doublings, i.e. 1.7e7 times the
    first width, the search ends: a map whose slope stays above 1e-7 is always bracketed.
    """
    width = 1 + centre.abs()
    lower, upper = centre - width, centre + width
    for _ in range(_DOUBLINGS):
        width = 2 * width
        high, low = f(lower) > 0, f(upper) < 0
        if all_known(~(high | low)):
            break
        lower = torch.where(high, lower - width, lower)
        upper = torch.where(low, upper + width, upper)
    return lower, upper


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


def find_root_by_newton(
    f: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, lower: Tensor, upper: Tensor
) -> Tensor:
    """Return the root of an increasing ``f`` between ``lower`` and ``upper``, without gradient.

    Newton's method, with a halving of the bracket in place of every step that would leave it, and
    of every step longer than half the last but one: each step either closes in or halves.

    Args:
        f: Returns value and slope, in float32 or float64; a slope may be wrong, a sign may not.
        start: Where to begin.
        lower: Points with ``f <= 0``.
        upper: Points with ``f >= 0``.

    References:
        Press et al., Numerical Recipes, section 9.4.

    Example:
        >>> import torch
        >>> one = torch.ones((), dtype=torch.float64)
        >>> root = find_root_by_newton(lambda x: (x**3 - 2, 3 * x**2), one, 0 * one, 2 * one)
        >>> round(root.item(), 12)
        1.259921049895
    """
    with torch.no_grad():
        x = torch.minimum(torch.maximum(start, lower), upper)
        last = before = upper - lower
        # Rounding may keep steps of this size going; what Newton leaves is of their square.
        scale = before + torch.maximum(lower.abs(), upper.abs())
        least = 8 * torch.finfo(start.dtype).eps * scale
        for _ in range(_NEWTON_STEPS.get(start.dtype, _NEWTON_STEPS_SINGLE)):
            value, slope = f(x)
            lower, upper = torch.where(value < 0, x, lower), torch.where(value > 0, x, upper)
            newton = value / slope
            to = x - newton
            short = newton.abs() <= torch.maximum(before / 2, least)
            near = (lower <= to) & (to <= upper) & short & torch.isfinite(slope)
            to = torch.where(near, to, torch.lerp(lower, upper, 0.5))
            step = (to - x).abs()
            x, last, before = to, step, last
            # A missing value compares false, and is not waited for.
            if all_known(~(step > least)):
                break
        return x


def attach_newton(
    f: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, y: Tensor, steps: int = 2
) -> Tensor:
    r"""Give the root of ``f(x) = y`` its derivatives by ``steps`` Newton steps from ``start``.

    :math:`x \leftarrow x - (f(x) - y) / f'(x)` with everything but ``start`` attached. After ``k``
    steps derivatives with respect to ``y`` and to whatever ``f`` depends on are exact up to order
    :math:`2^k - 1`; two steps serve force matching and ``gradgradcheck``, one does not.

    Args:
        f: Returns value and log-slope.
        start: The root, without gradient.
        y: The value to reach.
        steps: Number of Newton steps.
    """
    x = start.detach()
    for _ in range(steps):
        value, log_slope = f(x)
        x = x - (value - y) * torch.exp(-log_slope)
    return x
