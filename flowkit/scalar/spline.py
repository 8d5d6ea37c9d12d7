"""Rational-quadratic splines: on the line with linear tails, on an interval, on a circle.

All three share :func:`_evaluate`, which runs the spline of the bin that ``x`` falls in, forward or
backward. Both directions are sums of positive terms only, so that neither can lose its sign to
rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.scalar.affine import soft_clip
from flowkit.scalar.base import ScalarMap


def _forward_in_bin(theta: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Height in the unit square at ``theta``, for slopes relative to the bin's diagonal."""
    rest = 1 - theta
    mixed = theta * rest
    return (theta * theta + first * mixed) / (theta * theta + rest * rest + (first + last) * mixed)


def _inverse_in_bin(eta: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The ``theta`` whose height is ``eta``: the quadratic's root, without cancellation."""
    q = first * (1 - eta) - last * eta
    root = q.abs() + torch.sqrt(q * q + 4 * eta * (1 - eta))
    numerator = torch.where(q >= 0, 2 * eta, root)
    return numerator / (numerator + torch.where(q >= 0, root, 2 * (1 - eta)))


def _log_slope_in_bin(theta: Tensor, first: Tensor, last: Tensor) -> Tensor:
    rest = 1 - theta
    mixed, squares = theta * rest, (theta * theta, rest * rest)
    numerator = last * squares[0] + 2 * mixed + first * squares[1]
    denominator = squares[0] + squares[1] + (first + last) * mixed
    return torch.log(numerator) - 2 * torch.log(denominator)


def _evaluate(value: Tensor, knots: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Spline through ``knots (..., 3, K + 1)`` (x, y, slope) at ``value``, which lies inside."""
    batch = torch.broadcast_shapes(value.shape, knots.shape[:-2])
    value, knots = value.expand(batch), knots.expand(*batch, *knots.shape[-2:])
    edges = knots[..., 1 if inverse else 0, 1:-1]
    bin_ = (value.unsqueeze(-1) >= edges).sum(-1, keepdim=True)
    index = torch.cat([bin_, bin_ + 1], -1).unsqueeze(-2).expand(*batch, 3, 2)
    left, right = torch.gather(knots, -1, index).unbind(-1)
    x0, y0, slope0 = left.unbind(-1)
    x1, y1, slope1 = right.unbind(-1)
    width, height = x1 - x0, y1 - y0
    diagonal = height / width
    first, last = slope0 / diagonal, slope1 / diagonal
    if inverse:
        theta = _inverse_in_bin((value - y0) / height, first, last)
        return x0 + width * theta, -diagonal.log() - _log_slope_in_bin(theta, first, last)
    theta = (value - x0) / width
    y = y0 + height * _forward_in_bin(theta, first, last)
    return y, diagonal.log() + _log_slope_in_bin(theta, first, last)


@dataclass(frozen=True)
class _Spline(ScalarMap):
    """What the three splines share: the options, their checks, the knots and the linear tails."""

    bins: int = 8
    min_size: float = 1e-3
    min_slope: float = 1e-3
    logit_clip: float | None = 6.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.bins < 1:
            raise ValueError(f"{name} needs bins >= 1, got {self.bins}")
        if not 0 < self.min_size * self.bins < 1:
            raise ValueError(
                f"{name} needs 0 < min_size < 1 / bins, got min_size={self.min_size} with "
                f"{self.bins} bins"
            )
        if not 0 < self.min_slope < 1:
            raise ValueError(f"{name} needs 0 < min_slope < 1, got {self.min_slope}")
        if not self._ends[0] < self._ends[1]:
            raise ValueError(f"{name} needs an interval of positive length, got {self._ends}")

    @property
    def _ends(self) -> tuple[float, float]:
        """Where the outermost knots stand."""
        raise NotImplementedError

    def _slopes(self, params: Tensor) -> Tensor:
        """Slopes at the K + 1 knots."""
        raise NotImplementedError

    def slopes(self, raw: Tensor) -> Tensor:
        """Slopes between ``min_slope`` and its inverse, one where ``raw`` is zero."""
        return soft_clip(raw, -math.log(self.min_slope)).exp()

    def _shares(self, raw: Tensor) -> Tensor:
        """Softmax over the bins, written out: torch's is much slower over so few entries."""
        logits = soft_clip(raw, self.logit_clip)
        if self.logit_clip is None or self.logit_clip > 40:
            logits = logits - logits.detach().amax(-1, keepdim=True)
        weights = logits.exp()
        return weights / weights.sum(-1, keepdim=True)

    def _knots(self, params: Tensor) -> Tensor:
        lower, upper = self._ends
        raw = params[..., : 2 * self.bins].unflatten(-1, (2, self.bins))
        sizes = self.min_size + (1 - self.min_size * self.bins) * self._shares(raw)
        # The last knot is the bound itself, not a sum of roundings.
        inner = lower + (upper - lower) * sizes[..., :-1].cumsum(-1)
        positions = F.pad(F.pad(inner, (1, 0), value=lower), (0, 1), value=upper)
        return torch.cat([positions, self._slopes(params).unsqueeze(-2)], -2)

    def _apply(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        # Outside, the line through the last knot with the last slope; inside, the excess is zero.
        inside = value.clamp(*self._ends)
        out, log_slope = _evaluate(inside, self._knots(params), inverse)
        return out + (value - inside) * log_slope.exp(), log_slope

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

    ``3 bins - 1`` parameters a scalar: logits of the widths, logits of the heights, raw inner
    slopes.

    Args:
        bins: Number of bins K.
        min_size: Least width and height of a bin, as a fraction of the interval.
        min_slope: Least slope at a knot; the largest is its inverse.
        logit_clip: Soft clip of the width and height logits, which keeps float32 inversion
            accurate for extreme parameters; ``None`` for none.
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

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a bin, less the two outer slopes and the linear tails' shared one."""
        return 3 * self.bins - 1

    @property
    def _ends(self) -> tuple[float, float]:
        return (-self.bound, self.bound)

    def _slopes(self, params: Tensor) -> Tensor:
        return F.pad(self.slopes(params[..., 2 * self.bins :]), (1, 1), value=1.0)


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
        >>> y
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

    def _slopes(self, params: Tensor) -> Tensor:
        return self.slopes(params[..., 2 * self.bins :])


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
        >>> (f.forward(torch.tensor(1.25), params)[0] - f.forward(torch.tensor(0.25), params)[0])
        tensor(1.)
    """

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a bin: the first slope is also the last."""
        return 3 * self.bins

    def _slopes(self, params: Tensor) -> Tensor:
        slopes = self.slopes(params[..., 2 * self.bins :])
        return torch.cat([slopes, slopes[..., :1]], -1)

    def _apply(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        period = self.upper - self.lower
        turns = period * torch.floor((value - self.lower) / period)
        out, log_slope = super()._apply(value - turns, params, inverse)
        return out + turns, log_slope
