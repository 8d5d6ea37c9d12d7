"""Rows in blocks, all pairs of a block equally correlated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkit.arrays import codes
from flowkit.dependence.base import RowCovariance, raw_of

# How close a correlation may come to the ends at which C is singular.
_MARGIN = 1e-4


class EquicorrelatedBlocks(RowCovariance):
    r"""Families, repeated measures, clusters: :math:`C_b = (1 - \rho) I + \rho\, 1 1^T`.

    With blocks of m rows, :math:`\log|C_b| = \log(1 + (m - 1) \rho) + (m - 1) \log(1 - \rho)` and

    .. math:: C_b^{-1} u = \frac1{1 - \rho} \left[ u - \frac{\rho}{1 + (m - 1) \rho}
              \, 1 1^T u \right],

    so that everything costs O(np). The correlation may be negative, down to
    :math:`-1 / (m - 1)`. Rows that are alone in their block are independent of all.

    Args:
        blocks: ``(n,)`` names of blocks: numbers or texts.
        rho: Where the correlation starts.
        per_block: Whether every block has its own correlation.
        learn: Whether it is learned.

    Raises:
        DataError: If there is no row, or rho is not between its ends.

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
        self, blocks: Any, rho: float = 0.1, per_block: bool = False, learn: bool = True
    ) -> None:
        index = torch.from_numpy(codes(blocks, "blocks"))
        super().__init__(len(index))
        self.register_buffer("block", index)
        self.register_buffer("size", torch.bincount(index).to(torch.get_default_dtype()))
        most = float(self.size.max())
        sizes = self.size if per_block else self.size.new_tensor([most])
        self.register_buffer("lower", (_MARGIN - 1) / (sizes - 1).clamp(min=1))
        starts = [raw_of(rho, float(low), 1 - _MARGIN, "rho") for low in self.lower]
        self.raw = nn.Parameter(torch.tensor(starts), requires_grad=learn)

    @property
    def rho(self) -> Tensor:
        """The correlation, ``(1,)`` or ``(blocks,)``."""
        return self.lower + (1 - _MARGIN - self.lower) * torch.sigmoid(self.raw)

    def _sums(self, u: Tensor, block: Tensor) -> Tensor:
        return u.new_zeros(len(self.size), u.shape[1]).index_add(0, block, u)

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u``, block by block."""
        u = self._checked(u)
        inner, share = (v.to(u.dtype) for v in self._scales(self.size))
        common = share.unsqueeze(-1) * self._sums(u, self.block)
        return (u - common[self.block]) / inner[self.block].unsqueeze(-1)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return self._log_det(self.size)

    def _scales(self, size: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`1 - \rho` and :math:`\rho / (1 + (m - 1) \rho)`; one and zero for m up to 1."""
        rho = torch.where(size > 1, self.rho.expand(len(size)), torch.zeros_like(size))
        return 1 - rho, rho / (1 + (size - 1) * rho)

    def _log_det(self, size: Tensor) -> Tensor:
        others = (size - 1).clamp(min=0)
        return (torch.log1p(others * self.rho) + others * torch.log1p(-self.rho)).sum()

    def _log_det_and_quadratic(self, u: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """From sums of blocks; some rows of a block are equicorrelated as well."""
        block, size = self.block, self.size
        if rows is not None:
            block = block[rows]
            size = torch.bincount(block, minlength=len(size)).to(size)
        inner, share = (v.to(u.dtype) for v in self._scales(size))
        squares = u.new_zeros(len(size)).index_add(0, block, u.square().sum(-1))
        sums = self._sums(u, block).square().sum(-1)
        return self._log_det(size), ((squares - share * sums) / inner).sum()

    def colour(self, noise: Tensor) -> Tensor:
        r"""By the root of each block, with J the projection to the mean of the block.

        .. math:: \sqrt{1 - \rho}\, (I - J) + \sqrt{1 + (m - 1) \rho}\, J
        """
        noise = self._checked(noise)
        size = self.size.to(noise.dtype)
        rho = torch.where(size > 1, self.rho.to(noise.dtype).expand(len(size)), 0)
        inner, outer = (1 - rho).sqrt(), (1 + (size - 1) * rho).sqrt()
        mean = self._sums(noise, self.block) / size.unsqueeze(-1)
        shift = (outer - inner).unsqueeze(-1) * mean
        return inner[self.block].unsqueeze(-1) * noise + shift[self.block]

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """One on the diagonal, rho within a block."""
        a, b = self.block[rows], self.block[columns]
        rho = self.rho.expand(len(self.size))
        inside = torch.where(a[:, None] == b, rho[a][:, None], torch.zeros_like(rho[:1]))
        return torch.where(rows[:, None] == columns, torch.ones_like(inside), inside)
