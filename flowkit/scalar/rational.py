"""One bin of a rational-quadratic spline, forward and backward.

Both directions are sums of positive terms only, so that neither can lose its sign to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inner_end(end: float, inwards: int, dtype: torch.dtype) -> float:
    """The number next to an end of the interval, or next but one, on its inner side."""
    info = torch.finfo(dtype)
    return end + inwards * max(abs(end) * info.eps, info.tiny)


def snap(value: Tensor, excess: Tensor, lower: float, upper: float) -> Tensor:
    """Undo the rounding that led out of an interval, or off its end beyond the ends.

    Its derivatives are left alone.
    """
    pushed = torch.add(value, excess, alpha=torch.finfo(value.dtype).max)
    return value + (pushed.clamp(lower, upper) - value).detach()


def inverse_in_bin(eta: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The ``theta`` whose height is ``eta``: the quadratic's root, without cancellation."""
    rest = 1 - eta
    q = first * rest - last * eta
    root = torch.sqrt(q * q + 4 * eta * rest)
    # Without |q|, the slope of which is zero in the middle of a bin that is an identity.
    rising = q >= 0
    numerator = torch.where(rising, 2 * eta, root - q)
    return numerator / (numerator + torch.where(rising, root + q, 2 * rest))


def forward_in_bin(theta: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Height in the unit square at ``theta`` and slope, for slopes relative to the diagonal."""
    rest = 1 - theta
    mixed, low, high = theta * rest, theta * theta, rest * rest
    above = torch.addcmul(low, first, mixed)
    whole = torch.addcmul(above + high, last, mixed)
    slope = torch.addcmul(torch.addcmul(mixed + mixed, last, low), first, high)
    return above / whole, slope / (whole * whole)
