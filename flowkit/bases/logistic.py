"""Logistic base."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.bases.base import Symmetric
from flowkit.config import register
from flowkit.numerics.types import Context, Generator


@register
class Logistic(Symmetric):
    r"""Independent standard logistics, :math:`\log p = \sum_i \log\sigma(z_i) + \log\sigma(-z_i)`.

    Args:
        features: Number of features.

    Example:
        >>> import torch
        >>> from flowkit.bases import Logistic
        >>> Logistic(1).cdf(torch.zeros(1, 1))
        tensor([[0.5000]])
    """

    def __init__(self, features: int) -> None:
        super().__init__(checks.integer("Logistic", "features", features, least=1))

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(-1)

    _quantile = staticmethod(torch.logit)

    def _log_survival(self, u: Tensor) -> Tensor:
        return F.logsigmoid(-u)

    def _noise(self, size: tuple[int, ...], generator: Generator) -> Tensor:
        u = self._draw(torch.rand, size, generator)
        return torch.logit(u, eps=torch.finfo(u.dtype).eps)
