"""nflows' parameterisations of affine maps and of splines, as scalar maps.

With them a converted layer has the same raw parameters and can be trained further; new flows are
better served by :class:`flowkit.scalar.Affine` and the splines there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.config import register
from flowkit.scalar import IntervalSpline, RationalQuadraticSpline, ScalarMap


class _ScaleAndShift(ScalarMap):
    """``y = scale x + shift``; subclasses compute both from raw numbers."""

    param_size: ClassVar[int] = 2
    starts_at_identity: ClassVar[bool] = False

    def _scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``scale x + shift`` and the logarithm of the scale."""
        scale, shift = self._scale_and_shift(params)
        y = scale * x + shift
        return y, scale.log().expand_as(y)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y - shift) / scale`` and minus the logarithm of the scale."""
        scale, shift = self._scale_and_shift(params)
        x = (y - shift) / scale
        return x, -scale.log().expand_as(x)


@register
@dataclass(frozen=True)
class Shift(_ScaleAndShift):
    """:math:`y = x + t`, the map of nflows' ``AdditiveCouplingTransform``; one parameter.

    Example:
        >>> import torch
        >>> Shift().forward(torch.tensor([2.0]), torch.tensor([[3.0]]))
        (tensor([5.]), tensor([0.]))
    """

    param_size: ClassVar[int] = 1
    starts_at_identity: ClassVar[bool] = True

    def _scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift = params.squeeze(-1)
        return torch.ones_like(shift), shift


@register
@dataclass(frozen=True)
class SigmoidAffine(_ScaleAndShift):
    r""":math:`y = (\sigma(a + 2) + \epsilon)\, x + t`, as in nflows' ``AffineCouplingTransform``.

    Parameters in the order ``t, a``. The scale never exceeds :math:`1 + \epsilon`.

    Args:
        floor: The least scale :math:`\epsilon`.

    Example:
        >>> import torch
        >>> y, _ = SigmoidAffine().forward(torch.tensor([1.0]), torch.tensor([[0.5, 0.0]]))
        >>> round(y.item(), 4)
        1.3818
    """

    floor: float = checks.option(1e-3, checks.number, least=0)

    def _scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = params.unbind(-1)
        return torch.sigmoid(raw + 2) + self.floor, shift


@register
@dataclass(frozen=True)
class SoftplusAffine(_ScaleAndShift):
    r""":math:`y = (\log(1 + e^a) + \epsilon)\, x + t`, from nflows' affine autoregressive layer.

    Parameters in the order ``a, t``.

    Args:
        floor: The least scale :math:`\epsilon`.

    Example:
        >>> import torch
        >>> y, _ = SoftplusAffine().forward(torch.tensor([1.0]), torch.tensor([[0.0, 0.5]]))
        >>> round(y.item(), 4)
        1.1941
    """

    floor: float = checks.option(1e-3, checks.number, least=0)

    def _scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = params.unbind(-1)
        return F.softplus(raw) + self.floor, shift


def slope_offset(min_slope: float) -> float:
    """The raw slope at which ``min_slope + softplus`` is one."""
    return math.log(math.expm1(1 - min_slope))


class _SoftmaxKnots:
    """Widths and heights by softmax above a floor, slopes by softplus, as in nflows."""

    bins: int
    min_size: float
    min_slope: float

    @property
    def _floor(self) -> float:
        return self.min_size / (1 - self.min_size) / self.bins

    def _weights(self, raw: Tensor) -> Tensor:
        return torch.softmax(raw, 1)

    def _raw_slopes(self, raw: Tensor, weights: Tensor) -> Tensor:
        return raw

    def _slopes(self, raw: Tensor) -> Tensor:
        return self.min_slope + F.softplus(raw + slope_offset(self.min_slope))


@register
@dataclass(frozen=True)
class SoftplusSpline(_SoftmaxKnots, RationalQuadraticSpline):
    r"""A rational-quadratic spline with the sizes and slopes of nflows.

    Widths and heights are a softmax above a floor; slopes are :math:`s = s_{min} +
    \mathrm{softplus}(a + a_0)`, with :math:`a_0` such that a zero gives one.

    Example:
        >>> import torch
        >>> spline = SoftplusSpline(bins=4)
        >>> spline.forward(torch.tensor(1.0), torch.zeros(spline.param_size))[1].abs() < 1e-6
        tensor(True)
    """


@register
@dataclass(frozen=True)
class SoftplusIntervalSpline(_SoftmaxKnots, IntervalSpline):
    """The same on an interval; see :class:`SoftplusSpline`."""
