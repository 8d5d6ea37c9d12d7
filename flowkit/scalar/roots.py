"""Batched root finding for inverses that have no closed form.

Every search runs a fixed number of steps and selects with ``torch.where``: nothing branches on a
value, so the searches compile, vmap and batch. The search itself carries no gradient;
:func:`attach_newton` puts the derivatives back.
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


def expand_bracket(f: Callable[[Tensor], Tensor], centre: Tensor) -> tuple[Tensor, Tensor]:
    """Widen ``centre -+ (1 + |centre|)`` by doubling until an increasing ``f`` changes its sign.

    A side stops moving as soon as the sign is right. After 24 doublings, i.e. 1.7e7 times the
    first width, the search ends: a map whose slope stays above 1e-7 is always bracketed.
    """
    width = 1 + centre.abs()
    lower, upper = centre - width, centre + width
    for _ in range(_DOUBLINGS):
        width = 2 * width
        lower = torch.where(f(lower) > 0, lower - width, lower)
        upper = torch.where(f(upper) < 0, upper + width, upper)
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
