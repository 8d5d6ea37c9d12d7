"""A smooth step: zero before an interval, one after it, infinitely differentiable throughout."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def least_shape(exponent: float) -> float:
    r"""The least :math:`\alpha` for which the slope of a smooth step has one maximum.

    :math:`\alpha^* = \sqrt{(\beta + 1)(\beta + 2)\, 2^{-2\beta - 1}} / \beta`, from the sign of
    the third derivative of :func:`smooth_step` at one half.

    Example:
        >>> round(least_shape(1.0), 7), round(least_shape(2.0), 7)
        (0.8660254, 0.3061862)
    """
    return math.sqrt((exponent + 1) * (exponent + 2) * 2 ** (-2 * exponent - 1)) / exponent


def end_of(exponent: float, dtype: torch.dtype) -> float:
    """So near to the ends of [0, 1], a smooth step is below the smallest number of a dtype."""
    return (least_shape(exponent) / -math.log(torch.finfo(dtype).tiny)) ** (1 / exponent)


def smooth_step(u: Tensor, shape: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    r"""The smooth step :math:`\sigma(u)` from 0 at 0 to 1 at 1, and its slope.

    :math:`\sigma(u) = \mathrm{sigmoid}(L),\; L = \alpha [(1 - u)^{-\beta} - u^{-\beta}]`; all
    derivatives vanish at both ends and outside.

    Args:
        u: Where, any shape.
        shape: :math:`\alpha`, not below :func:`least_shape`; broadcasts with ``u``.
        exponent: :math:`\beta`.

    References:
        Köhler, Krämer and Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> smooth_step(torch.tensor([-1.0, 0.0, 0.5, 1.0]), torch.tensor(1.0), 1.0)[0]
        tensor([0.0000, 0.0000, 0.5000, 1.0000])
    """
    low, high, rise, fall = powers(u, exponent)
    logit = shape * (rise - fall)
    step = torch.sigmoid(logit)
    slope = step * torch.sigmoid(-logit) * (exponent * shape) * (rise / high + fall / low)
    return step, slope


def powers(u: Tensor, exponent: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances from both ends, the upper one's power and the lower one's."""
    end = end_of(exponent, u.dtype)
    low = u.clamp(end, 1 - end)
    high = 1 - low
    return low, high, high.pow(-exponent), low.pow(-exponent)


def height(u: Tensor, shape: Tensor, exponent: float) -> Tensor:
    """The smooth step without its slope."""
    _, _, rise, fall = powers(u, exponent)
    return torch.sigmoid(shape * (rise - fall))
