"""Rational-quadratic splines for real variables (with linear tails), bounded and periodic ones.

All three run the spline of the bin that ``x`` falls in, forward or backward. Both directions are
sums of positive terms only, so that neither can lose its sign to rounding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.scalar.base import ScalarMap

#: The bin that a number falls in: where it begins, in shares of the axes from their middle, and
#: its size, both first across, then up; the slopes at its two ends.
_Bin = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


def _inner_end(end: float, inwards: int, dtype: torch.dtype) -> float:
    """The number next to an end of the interval, or next but one, on its inner side."""
    info = torch.finfo(dtype)
    return end + inwards * max(abs(end) * info.eps, info.tiny)


def _snap(value: Tensor, excess: Tensor, lower: float, upper: float) -> Tensor:
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


def _halves(bins: Tensor, half: int) -> tuple[Tensor, ...]:
    """``bins (2, K, ...)`` without the last ``half`` bins, and without the first."""
    if bins.shape[1] == 2 * half:  # without overlap, which would be dear on the way back
        return bins.chunk(2, 1)
    return bins[:, :-half], bins[:, half:]


def _pick(beyond: Tensor, rows: list[Tensor], half: int) -> list[Tensor]:
    """``rows`` without the first ``half`` where true, without the last elsewhere."""
    pairs = zip(rows[half:], rows[:-half], strict=True)
    return [torch.where(beyond, upper, lower) for upper, lower in pairs]


@dataclass(frozen=True)
class _Spline(ScalarMap):
    """A spline whose slopes are all free, on an interval that a subclass names.

    A map that keeps the interval goes on beyond it along the lines of its end slopes, another one
    as the identity. Subclasses fix some slopes, or tie them to each other.

    Parameters are handled with their own dimension first, ``(P, ...)``: this is how the structures
    lay them out in memory, so that sums over a bin's few numbers run along whole rows.
    """

    bins: int = checks.option(8, checks.integer, least=1)
    _: KW_ONLY
    min_size: float = checks.option(0.08, checks.number, above=0, below=1)
    min_slope: float = checks.option(1e-3, checks.number, above=0, below=1)

    smoothness: ClassVar[float] = 1
    #: Number of free slopes, less that of bins.
    _more_slopes: ClassVar[int] = 1

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """A width and a height per bin, and the free slopes."""
        return 3 * self.bins + self._more_slopes

    @property
    def _ends(self) -> tuple[float, float]:
        """Where the outermost knots stand."""
        return self.bounds

    @property
    def _floor(self) -> float:
        """What is added to every weight, so that no share falls below ``min_size / bins``."""
        # A single bin has all of the interval, but its weight may round to zero.
        others = max(self.bins - 1, 1)
        return self.min_size * others / self.bins / (1 - self.min_size)

    def _weights(self, raw: Tensor) -> Tensor:
        """Weights between 0 and 1 of the bins, from ``raw (2, K, ...)``."""
        return torch.sigmoid(raw)

    def _tilt(self, lean: Tensor) -> Tensor:
        """Sum of ``lean (K, ...)`` over the two bins at each free slope, ``(S, ...)``."""
        # The ends have a bin on one side only; it counts twice.
        return torch.cat([lean[:1], lean]) + torch.cat([lean, lean[-1:]])

    def _at_knots(self, free: Tensor) -> tuple[Tensor, ...]:
        """Raw slopes at the first knot, the inner ones and the last, from the free ones."""
        return free.split([1, self.bins - 1, 1])

    def _read(self, params: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Weights ``(2, K, ...)`` of widths and heights, and raw slopes, from ``(P, ...)``."""
        sizes, slopes = params.split([2 * self.bins, self.param_size - 2 * self.bins])
        weights = self._weights(sizes.unflatten(0, (2, self.bins)))
        return weights, self._at_knots(self._raw_slopes(slopes, weights))

    def _raw_slopes(self, raw: Tensor, weights: Tensor) -> Tensor:
        """The free slopes before the clip: they lean with the bins around them."""
        widths, heights = weights.unbind()
        return raw + self._tilt(heights - widths)

    def _find(self, share: Tensor, params: Tensor, axis: int) -> _Bin:
        """The bin in which ``share`` of ``axis`` away from its middle lies, by halving.

        Of all bins, either the lower half is left or the upper one; an odd one in the middle
        stays in both. All that is known of the bins is halved together, by weights 0 and 1: on a
        CPU that is far faster than selecting, forward and backward.
        """
        sizes, (first, inner, last) = self._read(params)
        slopes = torch.cat([first, inner, inner, last]).unflatten(0, (2, self.bins))
        left = self.bins
        whole = sizes.sum(1) + left * self._floor
        rest = ((share + 0.5) * whole[axis]).detach()
        start = -0.5 * whole
        steep = torch.finfo(sizes.dtype).max / (4 * left * (1 + self._floor))
        while left > 1:
            half = left // 2
            lower, upper = _halves(sizes, half)
            below = (lower if left == 2 * half else lower[:, :half]).sum(1) + half * self._floor
            passed = below.detach()[axis]
            # 1 where the rest reaches beyond the lower half, else 0.
            beyond = ((rest - passed) * steep).clamp(0, 1)
            rest = torch.addcmul(rest, passed, beyond, value=-1)
            start = torch.addcmul(start, below, beyond)
            sizes = torch.lerp(lower, upper, beyond)
            lower, upper = _halves(slopes, half)
            slopes = torch.lerp(lower, upper, beyond)
            left -= half
        start, size = start / whole, (sizes.squeeze(1) + self._floor) / whole
        return start.unbind(), size.unbind(), self._slopes(slopes.squeeze(1)).unbind()

    def _find_unrolled(self, share: Tensor, params: Tensor, axis: int) -> _Bin:
        """The same number by number: slower as it stands, but a compiler makes one pass of it."""
        weights, knots = self._read(params)
        slopes = [row for rows in knots for row in rows.unbind()]
        sizes = [list((axis + self._floor).unbind()) for axis in weights]
        whole = [functools.reduce(torch.add, rows) for rows in sizes]
        rest = ((share + 0.5) * whole[axis]).detach()
        start = [-0.5 * rows for rows in whole]
        while len(sizes[0]) > 1:
            half = len(sizes[0]) // 2
            below = [functools.reduce(torch.add, rows[:half]) for rows in sizes]
            passed = below[axis].detach()
            beyond = rest > passed
            rest = torch.where(beyond, rest - passed, rest)
            start = [s + torch.where(beyond, b, 0.0) for s, b in zip(start, below, strict=True)]
            sizes = [_pick(beyond, rows, half) for rows in sizes]
            slopes = _pick(beyond, slopes, half)
        (x0, y0), ((width,), (height,)), (across, up) = start, sizes, whole
        ends = tuple(map(self._slopes, slopes))
        return (x0 / across, y0 / up), (width / across, height / up), ends

    def _slopes(self, raw: Tensor) -> Tensor:
        """Slopes between ``min_slope`` and its inverse, one where ``raw`` is zero."""
        return soft_clip(raw, -math.log(self.min_slope)).exp()

    def joints(self, params: Tensor) -> Tensor:
        """The knots, ``(..., bins + 1)``, both ends included."""
        lower, upper = self._ends
        inner = lower + (upper - lower) * self.knots(params)[0][..., :-1].cumsum(-1)
        ends = params.new_tensor([lower, upper]).expand(*params.shape[:-1], 2)
        return torch.cat([ends[..., :1], inner, ends[..., 1:]], -1)

    def knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``params (..., param_size)`` mean.

        Returns:
            Widths and heights of the bins as shares of the interval, each ``(..., bins)``, and
            the slopes at the knots, ``(..., bins + 1)``.
        """
        weights, knots = self._read(params.movedim(-1, 0))
        sizes = weights + self._floor
        widths, heights = (sizes / sizes.sum(1, keepdim=True)).movedim(1, -1)
        return widths, heights, self._slopes(torch.cat(knots).movedim(0, -1))

    def _apply(self, value: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        params = params[(None,) * (value.dim() + 1 - params.dim())].movedim(-1, 0)
        lower, upper = self._ends
        inside = value.clamp(lower, upper)
        # Shares count from the middle, where numbers are finest.
        middle, span = (lower + upper) / 2, upper - lower
        share = (inside - middle if middle else inside) * (1 / span)

        find = self._find_unrolled if torch.compiler.is_compiling() else self._find
        (x0, y0), (width, height), (first, last) = find(share, params, 1 if inverse else 0)
        diagonal = height / width
        first, last = first / diagonal, last / diagonal
        dtype = value.dtype
        # Zero between the ends; positive from the upper one on, negative from the lower one on.
        excess = value - value.clamp(_inner_end(lower, 1, dtype), _inner_end(upper, -1, dtype))
        if inverse:
            eta = _snap((share - y0) / height, excess, 0.0, 1.0)
            theta = inverse_in_bin(eta, first, last)
            slope = diagonal * forward_in_bin(theta, first, last)[1]
            out, log_slope = x0 + width * theta, -slope.log()
        else:
            theta = _snap((share - x0) / width, excess, 0.0, 1.0)
            eta, slope = forward_in_bin(theta, first, last)
            out, log_slope = y0 + height * eta, (diagonal * slope).log()
        out = span * out + middle if middle else span * out
        if self.keeps_interval:  # no rounding may lead out of it, where a base may have no mass
            kept = _snap(out, excess, lower, upper)
            return torch.addcmul(kept, value - inside, log_slope.exp()), log_slope
        # The identity also where rounding would lead to the upper end; to the lower it does not.
        return torch.where((excess != 0) | (out >= upper), value, out), log_slope

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the spline at ``x`` and its log-slope."""
        return self._apply(x, params, inverse=False)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the closed-form inverse at ``y`` and its log-slope."""
        return self._apply(y, params, inverse=True)


@register
@dataclass(frozen=True)
class RationalQuadraticSpline(_Spline):
    r"""Monotone rational-quadratic spline on :math:`[-b, b]`, the identity outside.

    Between the knots :math:`(x_k, y_k)` with slopes :math:`s_k`, with
    :math:`\theta = (x - x_k) / (x_{k+1} - x_k)` and :math:`\delta` the slope of the bin's
    diagonal,

    .. math:: y = y_k + (y_{k+1} - y_k) \frac{\delta \theta^2 + s_k \theta (1 - \theta)}
        {\delta + (s_k + s_{k+1} - 2 \delta) \theta (1 - \theta)}.

    ``3 bins - 1`` parameters per scalar: raw widths a, raw heights b, raw inner slopes c. With
    :math:`\epsilon` such that the least possible share of the interval is ``min_size / bins``,

    .. math:: \frac{x_{k+1} - x_k}{2b} &= \frac{\epsilon + \sigma(a_k)}
            {\sum_j (\epsilon + \sigma(a_j))}, \quad \text{likewise the heights, and} \\
        \log s_k &= \mathrm{clip}\bigl(c_k + \sigma(b_{k-1}) - \sigma(a_{k-1})
            + \sigma(b_k) - \sigma(a_k)\bigr),

    where clip is :func:`~flowkit.numerics.clips.soft_clip` at ``-log(min_slope)``. A raw slope of
    zero thus follows the bins around the knot, and no parameters, however extreme, spoil the
    inverse.

    Args:
        bins: Number of bins K.
        min_size: Least width and height of a bin, in units of equal bins, between 0 and 1.
        min_slope: Least slope at a knot; the largest is its inverse.
        bound: Half-width b of the interval.

    Raises:
        ArgumentError: If an argument is out of its range.

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

    # One bin alone would be the identity.
    bins: int = checks.option(8, checks.integer, least=2)
    _: KW_ONLY
    bound: float = checks.option(5.0, checks.number, above=0)

    _more_slopes: ClassVar[int] = -1

    def fixes(self, end: Tensor) -> Tensor:
        """The ends of the spline and what lies beyond."""
        return end.abs() >= self.bound

    @property
    def _ends(self) -> tuple[float, float]:
        return (-self.bound, self.bound)

    def _tilt(self, lean: Tensor) -> Tensor:
        return lean[:-1] + lean[1:]

    def _at_knots(self, free: Tensor) -> tuple[Tensor, ...]:
        one = torch.zeros_like(free[:1])  # outside the slope is one, which is a raw zero
        return one, free, one


@register
@dataclass(frozen=True, kw_only=True)
class IntervalSpline(_Spline):
    r"""Monotone rational-quadratic spline of :math:`[lower, upper]` onto itself, all slopes free.

    Outside the interval it goes on along the line of its end slope, so that it stays a smooth
    bijection of the line; with a base that lives on the interval no mass ever gets there.
    ``3 bins + 1`` parameters per scalar. See :class:`RationalQuadraticSpline` for the formula and
    the other options.

    Example:
        >>> import torch
        >>> f = IntervalSpline(bins=4, lower=0.0, upper=1.0)
        >>> y, _ = f.forward(torch.tensor([0.0, 1.0]), torch.randn(2, f.param_size))
        >>> y.round(decimals=4)
        tensor([0., 1.])
    """

    lower: float = checks.option(0.0, checks.number)
    upper: float = checks.option(1.0, checks.number)


@register
@dataclass(frozen=True)
class CircularSpline(IntervalSpline):
    r"""Monotone rational-quadratic spline of a periodic variable, with equal slopes at both ends.

    As a function on the real line it satisfies :math:`f(x + P) = f(x) + P` with the period
    P = upper - lower, so it needs no wrapped input and has no jump; it keeps ``lower`` in place
    (combine it with :class:`flowkit.transforms.CircularShift`). ``3 bins`` parameters per scalar.

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

    _more_slopes: ClassVar[int] = 0

    def _tilt(self, lean: Tensor) -> Tensor:
        return lean + lean.roll(1, 0)

    def _at_knots(self, free: Tensor) -> tuple[Tensor, ...]:
        first, inner = free.split([1, self.bins - 1])
        return first, inner, first

    def _apply(self, value: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        period = self.upper - self.lower
        rounds = period * torch.floor((value - self.lower) / period)
        # None at either end of the interval: both stay the same to the bit.
        rounds = rounds * (value.clamp(self.lower, self.upper) != value)
        out, log_slope = super()._apply(value - rounds, params, inverse=inverse)
        return out + rounds, log_slope
