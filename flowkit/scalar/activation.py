"""Monotone activations: scalar maps without parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.scalar.base import ScalarMap


@register
@dataclass(frozen=True)
class SmoothLeakyReLU(ScalarMap):
    r"""A smooth leaky ReLU, :math:`y = \alpha x + (1 - \alpha)\, \mathrm{softplus}(x)`.

    The slope :math:`\alpha + (1 - \alpha)\, \mathrm{sigmoid}(x)` rises from :math:`\alpha` to 1.
    It has no parameters.

    Args:
        alpha: Slope on the left, in (0, 1).

    Raises:
        ArgumentError: If the slope is out of its range.

    References:
        Chao et al. 2023, arXiv 2305.15267, appendix A.

    Example:
        >>> import torch
        >>> y, log_slope = SmoothLeakyReLU().forward(torch.tensor([-100.0, 100.0]), torch.empty(0))
        >>> y.tolist(), log_slope.exp().round(decimals=3).tolist()
        ([-30.000001907348633, 100.0], [0.30000001192092896, 1.0])
    """

    alpha: float = checks.option(0.3, checks.number, above=0, below=1)

    param_size: ClassVar[int] = 0
    starts_at_identity: ClassVar[bool] = False

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f(x)`` and the logarithm of its slope."""
        rest = 1 - self.alpha
        # Softplus by logsigmoid, which has no threshold and the right derivatives also at zero.
        y = self.alpha * x - rest * torch.nn.functional.logsigmoid(-x)
        return y, torch.log(self.alpha + rest * torch.sigmoid(x))

    def bracket(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The map lies above both its asymptotes, by ``(1 - alpha) log 2`` at most."""
        gap = (1 - self.alpha) * math.log(2)
        upper = torch.minimum(y, y / self.alpha)
        lower = torch.minimum(y - gap, (y - gap) / self.alpha)
        # Rounding of large numbers must not leave the root outside.
        slack = 1e-6 * (1 + lower.abs() + upper.abs())
        return lower - slack, upper + slack
