"""The affine scalar map, with a scale that cannot explode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowkit.scalar.base import ScalarMap


def soft_clip(x: Tensor, limit: float | None) -> Tensor:
    r"""Squash into :math:`(-c, c)` by :math:`x / (1 + v \tanh 2 v)`, with :math:`v = x / c`.

    It has slope one and derivatives of every order at the origin, where :math:`x / (1 + |v|)`,
    which it is far out, has none from the second on. ``limit=None`` returns ``x`` itself.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([0.0, 1.0, 10.0, 1e6]), 10.0)
        tensor([0.0000, 0.9806, 5.0916, 9.9999])
    """
    if limit is None:
        return x
    return x / torch.addcmul(x.new_ones(()), x, torch.tanh(x * (2 / limit)), value=1 / limit)


@dataclass(frozen=True)
class Affine(ScalarMap):
    r""":math:`y = x\, e^{s} + t`, with s the :func:`soft_clip` of a at :math:`s_{max}`.

    Two parameters per scalar: the shift ``t`` and the raw log-scale ``a``. The soft clip keeps a
    scale between :math:`e^{-s_{max}}` and :math:`e^{s_{max}}`, so that deep stacks stay finite.

    Args:
        max_log_scale: The bound :math:`s_{max}`, in nats; ``None`` for no bound.

    Example:
        >>> import torch
        >>> y, log_slope = Affine().forward(torch.tensor([2.0]), torch.tensor([[3.0, 0.0]]))
        >>> y.item(), log_slope.item()
        (5.0, 0.0)
    """

    max_log_scale: float | None = 5.0

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Two: shift and raw log-scale."""
        return 2

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
