"""Observations in blocks, all pairs of a block equally correlated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.arrays import codes
from flowkit.config import register
from flowkit.dependence.base import RowCovariance, logit

# How close a correlation may come to the ends at which C is singular.
_MARGIN = 1e-4


@register
class EquicorrelatedBlocks(RowCovariance):
    r"""Equal correlation within blocks: families, repeated measures, clusters.

    A block of m observations has :math:`C_b = (1 - \rho) I + \rho\, 1 1^T`,
    :math:`\log|C_b| = \log(1 + (m - 1) \rho) + (m - 1) \log(1 - \rho)` and

    .. math:: C_b^{-1} u = \frac{u - \bar u}{1 - \rho} + \frac{\bar u}{1 + (m - 1) \rho},

    so that everything costs O(np). The correlation may be negative, down to
    :math:`-1 / (m - 1)`. An observation alone in its block is independent of all.

    Args:
        blocks: ``(n,)`` names of blocks: numbers or texts.
        rho: Start of the correlation.
        per_block: Whether every block has its own correlation.
        learn: Whether it is learned.

    Raises:
        ArgumentError: If rho is not between its ends.
        DataError: If blocks are no names.

    Example:
        >>> import torch
        >>> from flowkit.dependence import EquicorrelatedBlocks
        >>> C = EquicorrelatedBlocks([0, 0, 1], rho=0.5)
        >>> C.matrix().detach()
        tensor([[1.0000, 0.5000, 0.0000],
                [0.5000, 1.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """

    block: Tensor
    size: Tensor
    lower: Tensor

    def __init__(
        self, blocks: Any, *, rho: float = 0.1, per_block: bool = False, learn: bool = True
    ) -> None:
        owner = "EquicorrelatedBlocks"
        index = torch.from_numpy(codes(blocks, "blocks"))
        super().__init__(len(index))
        self.register_buffer("block", index)
        self.register_buffer("size", torch.bincount(index).to(torch.get_default_dtype()))
        most = float(self.size.max())
        each = checks.flag(owner, "per_block", per_block)
        sizes = self.size if each else self.size.new_tensor([most])
        self.register_buffer("lower", (_MARGIN - 1) / (sizes - 1).clamp(min=1))
        starts = [logit(owner, "rho", rho, float(low), 1 - _MARGIN) for low in self.lower]
        learns = checks.flag(owner, "learn", learn)
        self.raw = nn.Parameter(torch.tensor(starts), requires_grad=learns)

    @property
    def rho(self) -> Tensor:
        """The correlation, ``(1,)`` or ``(blocks,)``."""
        return self.lower + (1 - _MARGIN - self.lower) * torch.sigmoid(self.raw)

    def _means(self, u: Tensor, block: Tensor, size: Tensor) -> Tensor:
        sums = u.new_zeros(len(size), u.shape[1]).index_add(0, block, u)
        return sums / size.to(u.dtype).clamp(min=1).unsqueeze(-1)

    def _eigenvalues(self, size: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of a block of m, ``(blocks,)``: of its m - 1 differences, and of its mean."""
        rho, size = self.rho.to(like).expand(len(size)), size.to(like)
        return 1 - rho, 1 + (size - 1).clamp(min=0) * rho

    def _power(self, u: Tensor, exponent: float) -> Tensor:
        """By the eigenvalues of C; of the exponent 1/2, its symmetric root."""
        means = self._means(u, self.block, self.size)
        inner, outer = (v.pow(exponent).unsqueeze(-1) for v in self._eigenvalues(self.size, u))
        return inner[self.block] * (u - means[self.block]) + (outer * means)[self.block]

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return self._log_det(self.size)

    def _log_det(self, size: Tensor) -> Tensor:
        others = (size - 1).clamp(min=0)
        return (torch.log1p(others * self.rho) + others * torch.log1p(-self.rho)).sum()

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._of_blocks(u, self.block, self.size)

    def _marginal_terms(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some observations of a block are equicorrelated as well."""
        block = self.block[rows]
        return self._of_blocks(u, block, torch.bincount(block, minlength=len(self.size)))

    def _of_blocks(self, u: Tensor, block: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """From sums of blocks."""
        size = size.to(self.size)
        inner, outer = self._eigenvalues(size, u)
        squares = u.new_zeros(len(size)).index_add(0, block, u.square().sum(-1))
        means = size.to(u.dtype) * self._means(u, block, size).square().sum(-1)
        return self._log_det(size), ((squares - means) / inner + means / outer).sum()

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One on the diagonal, rho within a block."""
        a, b = self.block[rows], self.block[columns]
        rho = self.rho.expand(len(self.size))
        inside = torch.where(a[:, None] == b, rho[a][:, None], torch.zeros_like(rho[:1]))
        return torch.where(rows[:, None] == columns, torch.ones_like(inside), inside)
