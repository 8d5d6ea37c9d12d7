"""A map that makes normal tails out of those of powers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.roots import attach_newton
from flowkit.scalar.base import ScalarMap

_HALF_LOG_2_OVER_PI = 0.5 * math.log(2 / math.pi)
# A shape stays above this, so that it can be divided by.
_LEAST_SHAPE = 1e-3
# The logarithm of the largest growth, less than that of the largest number by this margin, which
# keeps derivatives in range.
_MARGIN = 30.0
# From the start of the search, that is off by 0.15 at most; they square the error.
_NEWTON_STEPS = 4


def _normal_hazard(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Cumulative hazard :math:`-\log\mathrm{erfc}(z/\sqrt2)` of |Z|, and log of its slope."""
    # By erfcx(z) = exp(z^2) erfc(z), which neither vanishes nor overflows for z >= 0.
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    log_scaled = torch.special.erfcx(wide / math.sqrt(2)).log().to(z.dtype)
    return 0.5 * z.square() - log_scaled, _HALF_LOG_2_OVER_PI - log_scaled


def _from_normal_hazard(hazard: Tensor) -> Tensor:
    """The z >= 0 of a cumulative hazard, by Newton's method."""
    with torch.no_grad():
        near = hazard < 1
        inner = math.sqrt(2) * torch.erfinv(-torch.expm1(-hazard.clamp(max=1)))
        # Far out the hazard is z^2 / 2 + log z + 1/2 log(pi / 2).
        square = 2 * hazard.clamp(min=1) + math.log(2 / math.pi)
        z = torch.where(near, inner, (square - square.log()).sqrt())
        for _ in range(_NEWTON_STEPS):
            value, log_slope = _normal_hazard(z)
            z = (z - (value - hazard) * (-log_slope).exp()).clamp(min=0)
    return attach_newton(_normal_hazard, z, hazard) if torch.is_grad_enabled() else z


def _furthest(dtype: torch.dtype) -> float:
    """The log-growth from which on the growth is a straight line."""
    return math.log(torch.finfo(dtype).max) - _MARGIN


def _grow(log_growth: Tensor) -> tuple[Tensor, Tensor]:
    """The growth less one, and the logarithm of its slope."""
    far = _furthest(log_growth.dtype)
    near = log_growth.clamp(max=far)
    return torch.expm1(near) + torch.relu(log_growth - far) * math.exp(far), near


def _log_growth(growth: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`_grow`, of the growth less one."""
    far = _furthest(growth.dtype)
    furthest = math.expm1(far)
    log_slope = torch.log1p(growth.clamp(max=furthest))
    return log_slope + torch.relu(growth - furthest) * math.exp(-far), log_slope


@register
@dataclass(frozen=True)
class TailTransform(ScalarMap):
    r"""Map generalised Pareto tails to normal tails, with one shape parameter per side.

    From noise to data, :math:`x = \frac{s}{\xi_s}\left[\mathrm{erfc}(|z| / \sqrt2)^{-\xi_s} -
    1\right]` with the side :math:`s = \mathrm{sign}(z)`: a standard normal z gets the tail
    index :math:`1 / \xi_s` on that side, one of the deviation a the index
    :math:`1 / (\xi_s a^2)`. The map equates the cumulative hazards of :math:`|z|` and :math:`|x|`,

    .. math:: -\log\mathrm{erfc}(|z| / \sqrt2) = \log(1 + \xi_s |x|) / \xi_s, \quad
              \log\frac{dz}{dx} = -\log(1 + \xi_s |x|) - \log h(|z|),

    with the hazard :math:`h(z) = \sqrt{2 / \pi}\, e^{-z^2/2} / \mathrm{erfc}(z / \sqrt2)`; no
    power of x is computed. The slope is continuous, the curvature jumps at zero. Near the largest
    numbers of the dtype (from :math:`1 + \xi_s |x|` of 3e25 on in float32, 1e295 in float64) the
    exponential goes on along its tangent, so that every noise up to 1e5 has a finite x of its own.

    Two parameters per scalar: raw shapes of the left and the right tail,
    :math:`\xi = \log(1 + e^a) + 10^{-3}`.

    References:
        Hickling, Prangle, Flexible Tails for Normalizing Flows, arXiv 2406.16971.

    Example:
        >>> import torch
        >>> from flowkit.scalar import TailTransform
        >>> raw = torch.tensor([TailTransform.raw(0.5), TailTransform.raw(0.25)])
        >>> z, _ = TailTransform().forward(torch.tensor([-1e4, 0.0, 1e4]), raw)
        >>> [round(v, 2) for v in z.tolist()]
        [-5.49, 0.0, 7.62]
    """

    param_size: ClassVar[int] = 2
    starts_at_identity: ClassVar[bool] = False
    smoothness: ClassVar[float] = 1

    @staticmethod
    def raw(shape: float) -> float:
        """The parameter of a shape, which is 1 / tail index; at least 0.002.

        Raises:
            ArgumentError: If the shape is negative or not finite.

        Example:
            >>> from flowkit.scalar import TailTransform
            >>> round(TailTransform.raw(0.5), 3)
            -0.435
        """
        shape = checks.number("TailTransform.raw", "shape", shape, least=0)
        above = max(shape, 2 * _LEAST_SHAPE) - _LEAST_SHAPE
        return above + math.log(-math.expm1(-above))

    def _side(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """1 or -1, and the shape on that side."""
        left, right = params.unbind(-1)
        positive = x >= 0
        # Softplus by logsigmoid, the way back of which multiplies by no exponential.
        shape = _LEAST_SHAPE - F.logsigmoid(-torch.where(positive, right, left))
        return torch.where(positive, 1.0, -1.0).to(x.dtype), shape

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, with lighter tails, and ``log dz/dx``."""
        side, shape = self._side(x, params)
        log_growth, log_slope = _log_growth(shape * (side * x))
        z = _from_normal_hazard(log_growth / shape)
        return side * z, -log_slope - _normal_hazard(z)[1]

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, with heavier tails, and ``log dx/dz``."""
        side, shape = self._side(y, params)
        hazard, log_hazard = _normal_hazard(side * y)
        growth, log_slope = _grow(shape * hazard)
        return side * growth / shape, log_slope + log_hazard
