"""The affine scalar map, with a scale that cannot explode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.scalar.base import ScalarMap


@register
@dataclass(frozen=True)
class Affine(ScalarMap):
    r"""The affine map :math:`y = x\, e^{s} + t`, its log-scale s softly bounded.

    There are two parameters per scalar: the shift t and the raw log-scale a, of which s is the
    :func:`~flowkit.numerics.clips.soft_clip` at :math:`s_{max}`. It keeps a scale between
    :math:`e^{-s_{max}}` and :math:`e^{s_{max}}`, so that deep stacks stay finite.

    Args:
        max_log_scale: The bound :math:`s_{max}`, in nats; ``None`` for no bound.

    Raises:
        ArgumentError: If the bound is not positive.

    Example:
        >>> import torch
        >>> y, log_slope = Affine().forward(torch.tensor([2.0]), torch.tensor([[3.0, 0.0]]))
        >>> y.item(), log_slope.item()
        (5.0, 0.0)
    """

    max_log_scale: float | None = checks.option(5.0, checks.number, optional=True, above=0)

    param_size: ClassVar[int] = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x exp(s) + t`` and ``s``."""
        shift, raw = params.unbind(-1)
        log_scale = soft_clip(raw, self.max_log_scale)
        y = torch.addcmul(shift, x, log_scale.exp())
        return y, log_scale.expand_as(y)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y - t) exp(-s)`` and ``-s``."""
        shift, raw = params.unbind(-1)
        log_slope = -soft_clip(raw, self.max_log_scale)
        x = (y - shift) * log_slope.exp()
        return x, log_slope.expand_as(x)
