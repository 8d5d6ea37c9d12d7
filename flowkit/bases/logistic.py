"""Logistic base."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.bases.base import Base
from flowkit.config import register
from flowkit.numerics.types import Context, Generator


@register
class Logistic(Base):
    r"""Independent standard logistics, :math:`\log p = \sum_i \log\sigma(z_i) + \log\sigma(-z_i)`.

    Args:
        features: Number of features.

    Example:
        >>> import torch
        >>> from flowkit.bases import Logistic
        >>> Logistic(1).cdf(torch.zeros(1, 1))
        tensor([[0.5000]])
    """

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(checks.integer("Logistic", "features", features, least=1))
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(-1)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw the logit of a uniform."""
        size = self._draw_shape(shape, context)
        u = torch.rand(size, generator=generator, dtype=self.like.dtype, device=self.like.device)
        return torch.logit(u, eps=torch.finfo(u.dtype).eps)

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """``logsigmoid(z)``."""
        return F.logsigmoid(z)

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """``logsigmoid(-z)``."""
        return F.logsigmoid(-z)

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """``logit(q)``."""
        return torch.logit(q)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """``-logit(q)``."""
        return -torch.logit(q)
