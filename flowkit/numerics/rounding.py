"""The ends of open intervals in floating point, and clamps against rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def next_inside(end: float, other: float, dtype: torch.dtype) -> float:
    """The number of a dtype next to ``end``, on the way to ``other``; not below the normal ones.

    An infinite end stays.

    Example:
        >>> import torch
        >>> next_inside(-1.0, 1.0, torch.float32), next_inside(0.0, -1.0, torch.float32)
        (-0.9999999403953552, -1.1754943508222875e-38)
    """
    if math.isinf(end):
        return end
    info, sign = torch.finfo(dtype), 1.0 if other > end else -1.0

    def spacing(value: float) -> float:
        exponent = math.frexp(value)[1] - 1 if value else -math.inf
        least = math.frexp(info.smallest_normal)[1] - 1
        return math.ldexp(info.eps, int(max(exponent, least)))

    rounded = round(end / spacing(end)) * spacing(end)
    if rounded == 0:
        return sign * info.smallest_normal
    # Towards zero, the spacing of the next number may be the finer one.
    nearest = rounded + sign * spacing(rounded) / 2
    fine = spacing(nearest)
    inside = rounded + sign * (fine if abs(nearest) < abs(rounded) else spacing(rounded))
    # Subnormal numbers are zero on some machines.
    return sign * info.smallest_normal if abs(inside) < info.smallest_normal else inside


def clamp_through(x: Tensor, least: Tensor | float, most: Tensor | float) -> Tensor:
    """``x`` with its values clamped and its derivatives left alone: against rounding."""
    inside = x.detach().clamp(least, most)  # type: ignore[arg-type]
    # To the bit, where a sum of x and the difference would be rounded again.
    return torch.where(inside == x, x, inside + (x - x.detach()))
