"""Smooth clips: what keeps a number bounded, with derivatives of every order."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_clip(x: Tensor, limit: float | None) -> Tensor:
    r"""Bound numbers smoothly, between :math:`-c` and :math:`c`.

    The formula is :math:`x / (1 + v \tanh 2 v)` with :math:`v = x / c`. It has slope one and
    derivatives of every order at the origin, where :math:`x / (1 + |v|)`, which it is far out, has
    none from the second on. ``limit=None`` returns ``x`` itself.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([0.0, 1.0, 10.0, 1e6]), 10.0)
        tensor([0.0000, 0.9806, 5.0916, 9.9999])
    """
    if limit is None:
        return x
    return x / torch.addcmul(x.new_ones(()), x, torch.tanh(x * (2 / limit)), value=1 / limit)
