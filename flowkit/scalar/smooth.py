"""Mixtures of smooth bumps: monotone maps with derivatives of every order, inverted by a search.

Each component is the distribution function of a bump that is infinitely differentiable and zero
outside its support: on an interval, on the real line with straight tails, or periodic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.bins import find_root_in_bins
from flowkit.scalar.base import ScalarMap


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


class _Bumps(NamedTuple):
    """Components ``(K, ...)`` in units of the interval, and the slope ``(...)`` added to all.

    Each adds ``gain * (step(scale * (x - start)) - base)``, where ``base`` is the step at 0.
    """

    start: Tensor
    scale: Tensor
    shape: Tensor
    gain: Tensor
    base: Tensor
    floor: Tensor


class _Residual:
    """Value less target and slope of many mixtures, as fast as can be, for the search."""

    def __init__(self, rows: list[Tensor], mixture: SmoothMixture) -> None:
        self._rows, self._mixture = rows, mixture

    def take(self, index: Tensor) -> _Residual:
        return _Residual([row.index_select(-1, index) for row in self._rows], self._mixture)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        target, floor, *rows = self._rows
        if x.dim() > target.dim():
            rows = [row.unsqueeze(1) for row in rows]
        start, scale, shape, gain, steepness = rows
        rounds = None
        if self._mixture._circular:
            low = x - start
            rounds = low.floor()
            low = low.sub_(rounds).mul_(scale)
        else:
            # Here the start comes in units of the width.
            low = torch.addcmul(start, scale, x)
        low, high, rise, fall = powers(low, self._mixture.exponent)
        step = (rise - fall).mul_(shape).sigmoid_()
        slope = rise.div_(high).add_(fall.div_(low))
        slope = slope.mul_(torch.addcmul(step, step, step, value=-1)).mul_(steepness)
        if rounds is not None:
            step += rounds
        value = torch.addcmul(step.mul_(gain).sum(0) - target, floor, x)
        return value, slope.sum(0) + floor


@register
@dataclass(frozen=True)
class SmoothMixture(ScalarMap):
    r"""An infinitely differentiable map of [lower, upper] onto itself: a mixture of smooth steps.

    In units of the interval, with :math:`\sigma` the :func:`~flowkit.scalar.smooth.smooth_step`,

    .. math:: f(x) = \sum_k w_k \Bigl[(1 - c_k) \frac{\sigma_k(a_k (x - b_k) + \frac12) -
        \sigma_k(\frac12 - a_k b_k)}{\sigma_k(a_k (1 - b_k) + \frac12) -
        \sigma_k(\frac12 - a_k b_k)} + c_k x\Bigr].

    Five parameters per component: weight w (softmax), centre b (in order, a cumulated softmax),
    inverse width a (exponential of a bounded number), density floor c, and shape :math:`\alpha` of
    the step, from the least with one maximum on. The slope is never below ``min_density``. Beyond
    the interval the map goes on smoothly. Zero parameters are near the identity.

    The inverse is a search, :func:`flowkit.numerics.bins.find_root_in_bins`, and two Newton steps
    that carry derivatives up to third order.

    Args:
        components: Number of bumps K.
        exponent: :math:`\beta` of the step.
        min_density: Least slope, between 0 and 1.
        max_log_scale: Bound on the logarithm of the inverse widths.
        lower: Lower end.
        upper: Upper end.
        points: Points per call of the multi-bin search.
        tolerance: How near to the root the search has to come, in units of the interval; eight
            roundings at least. A last Newton step then doubles the digits.

    Raises:
        ArgumentError: If an argument is out of its range.
        ConvergenceError: From ``inverse``, if the search did not reach the tolerance.

    References:
        Köhler, Krämer and Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351, eq. 4.

    Example:
        >>> import torch
        >>> f = SmoothMixture(components=4)
        >>> x, params = torch.linspace(0, 1, 5), torch.randn(5, f.param_size)
        >>> y, log_slope = f.forward(x, params)
        >>> torch.allclose(f.inverse(y, params)[0], x, atol=1e-5)
        True
    """

    components: int = checks.option(8, checks.integer, least=1)
    _: KW_ONLY
    exponent: float = checks.option(1.0, checks.number, least=0.2, most=4)
    min_density: float = checks.option(1e-3, checks.number, above=0, below=1)
    max_log_scale: float = checks.option(4.0, checks.number, above=0, most=10)
    lower: float = checks.option(0.0, checks.number)
    upper: float = checks.option(1.0, checks.number)
    points: int = checks.option(24, checks.integer, least=3)
    tolerance: float = checks.option(1e-8, checks.number, least=0, below=1)

    starts_at_identity: ClassVar[bool] = False
    _circular: ClassVar[bool] = False

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Five per component: weight, centre, inverse width, floor, shape."""
        return 5 * self.components

    def _place(self, centres: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Where the bumps start, and their inverse widths."""
        scale = torch.exp(self.max_log_scale * torch.tanh(raw / self.max_log_scale))
        return centres - 0.5 / scale, scale

    def _at_zero(self, start: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
        """The steps at the lower end."""
        return height(-scale * start, shape, self.exponent)

    def _bumps(self, params: Tensor, ndim: int) -> _Bumps:
        """What ``params`` stand for, for numbers of ``ndim`` dimensions."""
        params = params[(None,) * (ndim + 1 - params.dim())].movedim(-1, 0)
        raw = params.unflatten(0, (5, self.components)).unbind(0)
        weights, spaces = torch.softmax(raw[0], 0), torch.softmax(raw[1], 0)
        # Not torch.cumsum, which is slow along the first dimension.
        ends = torch.stack(list(itertools.accumulate(spaces.unbind())))
        start, scale = self._place(ends - spaces / 2, raw[2])
        floors = self.min_density + (1 - self.min_density) * torch.sigmoid(raw[3])
        # At zero parameters 1.2 above the least, and 10 at most.
        shape = least_shape(self.exponent) + 10 * torch.sigmoid(raw[4] - 2)
        least = weights * floors
        gain, base = weights - least, self._at_zero(start, scale, shape)
        if self.keeps_interval:  # each bump has its full weight inside
            gain = gain / (height(scale * (1 - start), shape, self.exponent) - base)
        return _Bumps(start, scale, shape, gain, base, least.sum(0))

    def _step(self, x: Tensor, bumps: _Bumps) -> tuple[Tensor, Tensor]:
        """The steps ``(K, ...)`` at ``x``, and their slopes in units of the inverse width."""
        return smooth_step(bumps.scale * (x - bumps.start), bumps.shape, self.exponent)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map at ``x`` and its log-slope."""
        bumps, width = self._bumps(params, x.dim()), self.upper - self.lower
        unit = (x - self.lower) / width
        step, slope = self._step(unit, bumps)
        value = torch.addcmul((bumps.gain * (step - bumps.base)).sum(0), bumps.floor, unit)
        slope = (bumps.gain * bumps.scale * slope).sum(0) + bumps.floor
        return self._keep_inside(unit, self.lower + width * value), slope.log()

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inverse at ``y`` and its log-slope."""
        x, log_slope = super().inverse(y, params)
        return self._keep_inside((y - self.lower) / (self.upper - self.lower), x), log_slope

    def _keep_inside(self, unit: Tensor, value: Tensor) -> Tensor:
        """Undo the rounding that led out of an interval that the map keeps."""
        if not self.keeps_interval:
            return value
        inside = (unit >= 0) & (unit <= 1)
        kept = torch.where(inside, value.clamp(self.lower, self.upper), value)
        return value + (kept - value).detach()

    def _between(self, y: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        """The interval, beyond which the slope is at least the floor; in its units."""
        return torch.clamp(y, max=0) / floor, 1 + torch.clamp(y - 1, min=0) / floor

    def solve(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Search for all numbers at once, and then for the few that are not solved."""
        bumps, width = self._bumps(params, y.dim()), self.upper - self.lower
        shape = torch.broadcast_shapes(y.shape, bumps.floor.shape)
        y, floor = (
            value.expand(shape).reshape(-1) for value in ((y - self.lower) / width, bumps.floor)
        )
        start = bumps.start if self._circular else -bumps.scale * bumps.start
        steepness = bumps.gain * bumps.scale * bumps.shape * self.exponent
        rows = [
            row.expand(-1, *shape).reshape(self.components, -1)
            for row in (start, bumps.scale, bumps.shape, bumps.gain, steepness)
        ]
        below = (bumps.gain * bumps.base).sum(0).expand(shape).reshape(-1)
        residual = _Residual([y + below, floor, *rows], self)
        x, slope = find_root_in_bins(
            residual, y, *self._between(y, floor), points=self.points, tolerance=self.tolerance
        )
        return (self.lower + width * x).reshape(shape), slope.log().reshape(shape)


@register
@dataclass(frozen=True)
class RealSmoothMixture(SmoothMixture):
    r"""A mixture of smooth steps for real variables, with straight tails.

    Infinitely differentiable, where a spline has kinks. The map of :class:`SmoothMixture` with
    bumps that lie inside [lower, upper]: inverse widths from one on,
    :math:`a = e^{s\,\mathrm{sigmoid}(r - 1)}` with the bound s. Outside, the map is straight with
    the slope :math:`\sum_k w_k c_k`, and all derivatives go on.

    Example:
        >>> import torch
        >>> f = RealSmoothMixture(components=4)
        >>> y, log_slope = f.forward(torch.tensor([6.0, 7.0]), torch.zeros(f.param_size))
        >>> log_slope.exp(), y[1] - y[0]
        (tensor([0.5005, 0.5005]), tensor(0.5005))
    """

    lower: float = checks.option(-5.0, checks.number)
    upper: float = checks.option(5.0, checks.number)

    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def joints(self, params: Tensor) -> Tensor:
        """Where the straight tails begin."""
        return params.new_tensor([self.lower, self.upper]).expand(*params.shape[:-1], 2)

    def _place(self, centres: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.max_log_scale * torch.sigmoid(raw - 1)
        # 1 - 1 / a, exact also where a is near one.
        return centres * -torch.expm1(-log_scale), log_scale.exp()

    def _at_zero(self, start: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
        return torch.zeros_like(start)


@register
@dataclass(frozen=True)
class CircularSmoothMixture(SmoothMixture):
    r"""A mixture of smooth steps for periodic variables, with all derivatives periodic.

    The bumps of :class:`SmoothMixture` wrapped around the period, with inverse widths
    :math:`a = e^{s\,\mathrm{sigmoid}(r - 1)} \ge 1`, so that each goes around once at most. As a
    function on the real line, :math:`f(x + P) = f(x) + P` with the period P = upper - lower: it
    needs no wrapped input and has no jump. It keeps ``lower`` in place (combine it with
    :class:`flowkit.transforms.CircularShift`).

    Example:
        >>> import torch
        >>> f = CircularSmoothMixture(components=4)
        >>> y, _ = f.forward(torch.tensor([0.25, 1.25]), torch.randn(f.param_size))
        >>> (y[1] - y[0]).round(decimals=4)
        tensor(1.)
    """

    keeps_interval: ClassVar[bool] = False
    _circular: ClassVar[bool] = True

    def _place(self, centres: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.exp(self.max_log_scale * torch.sigmoid(raw - 1))
        return centres - 0.5 / scale, scale

    def _at_zero(self, start: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
        rounds = torch.floor(-start.detach())
        return height(scale * (-start - rounds), shape, self.exponent) + rounds

    def _step(self, x: Tensor, bumps: _Bumps) -> tuple[Tensor, Tensor]:
        way = x - bumps.start
        rounds = torch.floor(way.detach())
        step, slope = smooth_step(bumps.scale * (way - rounds), bumps.shape, self.exponent)
        return step + rounds, slope

    def _between(self, y: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        rounds = torch.floor(y)
        return rounds, rounds + 1
