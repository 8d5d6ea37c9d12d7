"""Rational-quadratic splines: on the line with linear tails, on an interval, on a circle.

All three run the spline of the bin that ``x`` falls in, forward or backward. Both directions are
sums of positive terms only, so that neither can lose its sign to rounding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.scalar.affine import soft_clip
from flowkit.scalar.base import ScalarMap


def _within_bin(theta: Tensor, excess: Tensor) -> Tensor:
    """Undo the rounding that moved ``theta`` out of [0, 1], or off the end if there is excess."""
    corrected = torch.add(theta, excess, alpha=torch.finfo(theta.dtype).max ** 0.5).clamp(0, 1)
    return theta + (corrected - theta).detach()


def _inverse_in_bin(eta: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The ``theta`` whose height is ``eta``: the quadratic's root, without cancellation."""
    q = first * (1 - eta) - last * eta
    root = q.abs() + torch.sqrt(q * q + 4 * eta * (1 - eta))
    numerator = torch.where(q >= 0, 2 * eta, root)
    return numerator / (numerator + torch.where(q >= 0, root, 2 * (1 - eta)))


def _forward_in_bin(theta: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Height in the unit square at ``theta`` and slope, for slopes relative to the diagonal."""
    rest = 1 - theta
    mixed, low, high = theta * rest, theta * theta, rest * rest
    first_mixed = first * mixed
    denominator = low + high + first_mixed + last * mixed
    slope = (last * low + (mixed + mixed) + first * high) / (denominator * denominator)
    return (low + first_mixed) / denominator, slope


class _Bin(NamedTuple):
    """The bin that a number falls in: shares of the axes, and raw slopes at its ends."""

    x0: Tensor
    y0: Tensor
    width: Tensor
    height: Tensor
    first: Tensor
    last: Tensor


def _look_up(
    share: Tensor, weights: Tensor, floor: float, slopes: list[Tensor], axis: int
) -> _Bin:
    """Find the bin in which ``share`` of the way along ``axis`` ends.

    A bin is read by sums over all bins with weights 0 and 1, not by index, which is as fast for
    few bins forward and much faster backward.

    Args:
        share: Between 0 and 1, ``(..., D)``.
        weights: Widths and heights, ``(..., 2, K, D)``, to which ``floor`` is added.
        floor: See there.
        slopes: Raw slopes at the K + 1 knots, each ``(..., D)``.
        axis: 0 to search in widths, 1 in heights.
    """
    count = weights.shape[-2]
    total = weights.sum(-2) + count * floor
    edges = (weights[..., axis, :-1, :].detach() + floor).cumsum(-2)
    target = (share * total[..., axis, :]).detach()
    # 1 where the target lies beyond an edge, else 0; on CPU far faster than a comparison.
    steep = torch.finfo(weights.dtype).max / (4 * count * (1 + floor))
    passed = ((target.unsqueeze(-2) - edges) * steep).clamp(0, 1)
    reached = F.pad(passed, (0, 0, 1, 0), value=1.0)
    here = reached - F.pad(passed, (0, 0, 0, 1))
    size = (weights * here.unsqueeze(-3)).sum(-2) + floor
    end = (weights * reached.unsqueeze(-3)).sum(-2) + floor * reached.sum(-2, keepdim=True)
    x0, y0 = ((end - size) / total).unbind(-2)
    width, height = (size / total).unbind(-2)
    rows = torch.stack(slopes, -2)
    first, last = (rows[..., :-1, :] * here).sum(-2), (rows[..., 1:, :] * here).sum(-2)
    return _Bin(x0, y0, width, height, first, last)


def _look_up_unrolled(
    share: Tensor, weights: Tensor, floor: float, slopes: list[Tensor], axis: int
) -> _Bin:
    """The same bin by bin: slower as it stands, but a compiler makes one pass of it."""
    widths, heights = ((weights[..., i, :, :] + floor).unbind(-2) for i in (0, 1))
    across, up = functools.reduce(torch.add, widths), functools.reduce(torch.add, heights)
    target = (share * (up if axis else across)).detach()
    x0 = y0 = torch.zeros_like(target)
    x1, y1 = width, height = widths[0], heights[0]
    first, last = slopes[0], slopes[1]
    for k in range(1, len(widths)):
        beyond = target >= (y1 if axis else x1).detach()
        x0, y0 = torch.where(beyond, x1, x0), torch.where(beyond, y1, y0)
        width = torch.where(beyond, widths[k], width)
        height = torch.where(beyond, heights[k], height)
        first = torch.where(beyond, slopes[k], first)
        last = torch.where(beyond, slopes[k + 1], last)
        x1, y1 = x1 + widths[k], y1 + heights[k]
    return _Bin(x0 / across, y0 / up, width / across, height / up, first, last)


@dataclass(frozen=True)
class _Spline(ScalarMap):
    """What the three splines share: the options, their checks, the search and the linear tails.

    Parameters are handled with their own dimension before that of the features, ``(..., P, D)``:
    this is how the conditioners lay them out in memory, and sums over a bin's few numbers then run
    along whole rows.
    """

    bins: int = 8
    min_size: float = 0.08
    min_slope: float = 1e-3

    _least_bins: ClassVar[int] = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.bins < self._least_bins:
            raise ValueError(f"{name} needs bins >= {self._least_bins}, got {self.bins}")
        if not 0 < self.min_size < 1:
            raise ValueError(f"{name} needs 0 < min_size < 1, got {self.min_size}")
        if not 0 < self.min_slope < 1:
            raise ValueError(f"{name} needs 0 < min_slope < 1, got {self.min_slope}")
        if not self._ends[0] < self._ends[1]:
            raise ValueError(f"{name} needs an interval of positive length, got {self._ends}")

    @property
    def _ends(self) -> tuple[float, float]:
        """Where the outermost knots stand."""
        raise NotImplementedError

    @property
    def _floor(self) -> float:
        """What is added to every weight, so that no share falls below ``min_size / bins``."""
        return self.min_size * (1 - 1 / self.bins) / (1 - self.min_size)

    def _weights(self, raw: Tensor) -> Tensor:
        """Weights between 0 and 1 of the bins, from ``raw (..., K, D)``."""
        return torch.sigmoid(raw)

    def _tilt(self, lean: Tensor) -> Tensor:
        """Sum of ``lean (..., K, D)`` over the two bins at each free slope, ``(..., S, D)``."""
        raise NotImplementedError

    def _complete(self, free: list[Tensor]) -> list[Tensor]:
        """Raw slopes at all ``bins + 1`` knots, from the free ones."""
        raise NotImplementedError

    def _raw_slopes(self, raw: Tensor, weights: Tensor) -> list[Tensor]:
        widths, heights = weights.unbind(-3)
        return self._complete(list((raw + self._tilt(heights - widths)).unbind(-2)))

    def _find(self, share: Tensor, params: Tensor, axis: int) -> _Bin:
        """The bin in which ``share`` of the way along ``axis`` ends."""
        sizes, slopes = params.split([2 * self.bins, self.param_size - 2 * self.bins], -2)
        weights = self._weights(sizes.unflatten(-2, (2, self.bins)))
        look_up = _look_up_unrolled if torch.compiler.is_compiling() else _look_up
        return look_up(share, weights, self._floor, self._raw_slopes(slopes, weights), axis)

    def _extend(self, inside: Tensor, excess: Tensor, log_slope: Tensor) -> Tensor:
        """The value where the argument lies ``excess`` outside of the interval, inside else."""
        raise NotImplementedError

    def _slopes(self, raw: Tensor) -> Tensor:
        """Slopes between ``min_slope`` and its inverse, one where ``raw`` is zero."""
        return soft_clip(raw, -math.log(self.min_slope)).exp()

    def knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``params (..., param_size)`` mean.

        Returns:
            Widths and heights of the bins as shares of the interval, each ``(..., bins)``, and
            the slopes at the knots, ``(..., bins + 1)``.
        """
        raw_sizes, raw_slopes = params.unsqueeze(-1).tensor_split([2 * self.bins], -2)
        weights = self._weights(raw_sizes.unflatten(-2, (2, self.bins)))
        slopes = torch.stack(self._raw_slopes(raw_slopes, weights), -2)
        sizes = weights + self._floor
        widths, heights = (sizes / sizes.sum(-2, keepdim=True)).squeeze(-1).unbind(-2)
        return widths, heights, self._slopes(slopes).squeeze(-1)

    def _apply(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if value.dim() == 0:  # one number; give it the dimension that the layout speaks of
            out, log_slope = self._apply(value.unsqueeze(0), params.unsqueeze(-2), inverse)
            return out.squeeze(-1), log_slope.squeeze(-1)
        params = params.transpose(-1, -2) if params.dim() > 1 else params.unsqueeze(-1)
        lower, upper = self._ends
        inside = value.clamp(lower, upper)
        share = (inside - lower) * (1 / (upper - lower))

        found = self._find(share, params, 1 if inverse else 0)
        diagonal = found.height / found.width
        first, last = self._slopes(found.first) / diagonal, self._slopes(found.last) / diagonal
        excess = value - inside
        if inverse:
            eta = _within_bin((share - found.y0) / found.height, excess)
            theta = _inverse_in_bin(eta, first, last)
            slope = diagonal * _forward_in_bin(theta, first, last)[1]
            out, log_slope = found.x0 + found.width * theta, -slope.log()
        else:
            theta = _within_bin((share - found.x0) / found.width, excess)
            eta, slope = _forward_in_bin(theta, first, last)
            out, log_slope = found.y0 + found.height * eta, (diagonal * slope).log()
        return self._extend(lower + (upper - lower) * out, excess, log_slope), log_slope

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spline at ``x`` and its log-slope."""
        return self._apply(x, params, inverse=False)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the closed-form inverse at ``y`` and its log-slope."""
        return self._apply(y, params, inverse=True)


@dataclass(frozen=True)
class RationalQuadraticSpline(_Spline):
    r"""Monotone rational-quadratic spline on :math:`[-b, b]`, the identity outside.

    Between the knots :math:`(x_k, y_k)` with slopes :math:`s_k`, with
    :math:`\theta = (x - x_k) / (x_{k+1} - x_k)` and :math:`\delta` the slope of the bin's
    diagonal,

    .. math:: y = y_k + (y_{k+1} - y_k) \frac{\delta \theta^2 + s_k \theta (1 - \theta)}
        {\delta + (s_k + s_{k+1} - 2 \delta) \theta (1 - \theta)}.

    ``3 bins - 1`` parameters a scalar: raw widths a, raw heights b, raw inner slopes c. With
    :math:`\epsilon` such that the least possible share of the interval is ``min_size / bins``,

    .. math:: \frac{x_{k+1} - x_k}{2b} &= \frac{\epsilon + \sigma(a_k)}
            {\sum_j (\epsilon + \sigma(a_j))}, \quad \text{likewise the heights, and} \\
        \log s_k &= \mathrm{clip}\bigl(c_k + \sigma(b_{k-1}) - \sigma(a_{k-1})
            + \sigma(b_k) - \sigma(a_k)\bigr),

    where clip is :func:`~flowkit.scalar.soft_clip` at ``-log(min_slope)``. A raw slope of zero
    thus follows the bins around the knot, and no parameters, however extreme, spoil the inverse.

    Args:
        bins: Number of bins K.
        min_size: Least width and height of a bin, in units of equal bins, between 0 and 1.
        min_slope: Least slope at a knot; the largest is its inverse.
        bound: Half-width b of the interval.

    Raises:
        ValueError: If an option is out of its range.

    References:
        Durkan et al. 2019, Neural Spline Flows, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> f = RationalQuadraticSpline(bins=8, bound=3.0)
        >>> x, params = torch.linspace(-4, 4, 9), torch.randn(9, f.param_size)
        >>> y, log_slope = f.forward(x, params)
        >>> torch.allclose(f.inverse(y, params)[0], x, atol=1e-5)
        True
    """

    bound: float = 5.0

    _least_bins: ClassVar[int] = 2  # one bin alone would be the identity

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a bin, less the two outer slopes and the linear tails' shared one."""
        return 3 * self.bins - 1

    @property
    def _ends(self) -> tuple[float, float]:
        return (-self.bound, self.bound)

    def _tilt(self, lean: Tensor) -> Tensor:
        return lean[..., :-1, :] + lean[..., 1:, :]

    def _complete(self, free: list[Tensor]) -> list[Tensor]:
        one = torch.zeros_like(free[0])  # outside the slope is one, which is a raw zero
        return [one, *free, one]

    def _extend(self, inside: Tensor, excess: Tensor, log_slope: Tensor) -> Tensor:
        return inside + excess


@dataclass(frozen=True)
class IntervalSpline(_Spline):
    r"""Monotone rational-quadratic spline of :math:`[lower, upper]` onto itself, all slopes free.

    Outside the interval it goes on along the line of its end slope, so that it stays a smooth
    bijection of the line; with a base that lives on the interval no mass ever gets there.
    ``3 bins + 1`` parameters a scalar. See :class:`RationalQuadraticSpline` for the formula and
    the other options.

    Example:
        >>> import torch
        >>> f = IntervalSpline(bins=4, lower=0.0, upper=1.0)
        >>> y, _ = f.forward(torch.tensor([0.0, 1.0]), torch.randn(2, f.param_size))
        >>> y.round(decimals=4)
        tensor([0., 1.])
    """

    lower: float = 0.0
    upper: float = 1.0

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a bin and one more slope."""
        return 3 * self.bins + 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval."""
        return (self.lower, self.upper)

    @property
    def _ends(self) -> tuple[float, float]:
        return (self.lower, self.upper)

    def _tilt(self, lean: Tensor) -> Tensor:
        # The ends have a bin on one side only; it counts twice.
        before = torch.cat([lean[..., :1, :], lean], -2)
        return before + torch.cat([lean, lean[..., -1:, :]], -2)

    def _complete(self, free: list[Tensor]) -> list[Tensor]:
        return free

    def _extend(self, inside: Tensor, excess: Tensor, log_slope: Tensor) -> Tensor:
        # Rounding must not lead out of the interval, where a base may have no mass.
        rounded = (inside.clamp(*self._ends) - inside).detach()
        return inside + rounded + excess * log_slope.exp()


@dataclass(frozen=True)
class CircularSpline(IntervalSpline):
    r"""Rational-quadratic spline of a circle: equal slopes where the ends of the interval meet.

    As a function on the line it satisfies :math:`f(x + P) = f(x) + P` with the period
    P = upper - lower, so it needs no wrapped input and has no jump; it keeps ``lower`` in place
    (combine it with :class:`flowkit.transforms.CircularShift`). ``3 bins`` parameters a scalar.

    References:
        Rezende et al. 2020, Normalizing Flows on Tori and Spheres, arXiv 2002.02428.

    Example:
        >>> import torch
        >>> f = CircularSpline(bins=4, lower=0.0, upper=1.0)
        >>> params = torch.randn(f.param_size)
        >>> y, _ = f.forward(torch.tensor([0.25, 1.25]), params)
        >>> (y[1] - y[0]).round(decimals=4)
        tensor(1.)
    """

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a bin: the first slope is also the last."""
        return 3 * self.bins

    def _tilt(self, lean: Tensor) -> Tensor:
        return lean + lean.roll(1, -2)

    def _complete(self, free: list[Tensor]) -> list[Tensor]:
        return [*free, free[0]]

    def _apply(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        period = self.upper - self.lower
        turns = period * torch.floor((value - self.lower) / period)
        out, log_slope = super()._apply(value - turns, params, inverse)
        return out + turns, log_slope
