"""The affine scalar map, with a scale that cannot explode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowkit.scalar.base import ScalarMap


def soft_clip(x: Tensor, limit: float | None) -> Tensor:
    r"""Squash into :math:`(-c, c)` by :math:`x / (1 + |x| / c)`; slope one at the origin.

    ``limit=None`` returns ``x`` itself.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([0.0, 10.0, 1e6]), 10.0)
        tensor([0.0000, 5.0000, 9.9999])
    """
    if limit is None:
        return x
    return x / torch.add(x.new_ones(()), x.abs(), alpha=1 / limit)


def smooth_clip(x: Tensor, limit: float) -> Tensor:
    r"""Squash into :math:`(-c, c)` by :math:`x / \sqrt{1 + (x / c)^2}`; slope one at the origin.

    It has derivatives of every order, where those of :func:`soft_clip` jump at the origin from the
    second on.

    Example:
        >>> import torch
        >>> smooth_clip(torch.tensor([0.0, 10.0, 1e6]), 10.0)
        tensor([ 0.0000,  7.0711, 10.0000])
    """
    # Not the root of a square, which would not be finite for a large number.
    return x / torch.hypot(x.new_ones(()), x / limit)


@dataclass(frozen=True)
class Affine(ScalarMap):
    r""":math:`y = x\, e^{s} + t`, with :math:`s = c(a) = a / (1 + |a| / s_{max})`.

    Two parameters a scalar: the shift ``t`` and the raw log-scale ``a``. The soft clip keeps a
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
