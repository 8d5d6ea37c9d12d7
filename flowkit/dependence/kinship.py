"""Rows related by a matrix, such as kinship, and partly independent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit.dependence.base import SHARES, PartlyIndependent, raw_of
from flowkit.errors import DataError


class Kinship(PartlyIndependent):
    r"""A linear mixed model: :math:`C = \lambda I + (1 - \lambda) G` with a relationship matrix G.

    G is decomposed once, in float64, :math:`G = Q \Lambda Q^T`. Then every evaluation, for any
    :math:`\lambda`, costs one product with :math:`Q^T`:

    .. math:: \log|C| = \sum_i \log(\lambda + (1 - \lambda) \Lambda_i), \quad
              C^{-1} u = \tfrac1\lambda (u - Q Q^T u)
              + Q\, (\lambda + (1 - \lambda) \Lambda)^{-1} Q^T u .

    With a factor Z of k columns, :math:`G = Z Z^T`, Q has k columns and no n x n matrix is made.

    Args:
        matrix: ``(n, n)`` symmetric, positive semi-definite, with a unit diagonal.
        factor: In its place ``(n, k)``; its rows are scaled to unit length.
        independent: Where the share :math:`\lambda` starts, between 0 and 1; at 1 rows are
            independent.
        learn: Whether it is learned.

    Raises:
        DataError: If not exactly one of matrix and factor is given, or it is none.

    Example:
        >>> import torch
        >>> from flowkit.dependence import Kinship
        >>> C = Kinship(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), independent=0.5)
        >>> C.matrix().detach().float()
        tensor([[1.0000, 0.2500],
                [0.2500, 1.0000]])
    """

    basis: Tensor
    values: Tensor

    def __init__(
        self,
        matrix: Tensor | None = None,
        factor: Tensor | None = None,
        independent: float = 0.5,
        learn: bool = True,
    ) -> None:
        if (matrix is None) == (factor is None):
            raise DataError("Kinship expected a matrix or a factor, and not both")
        values, basis = _decompose(matrix) if matrix is not None else _of_factor(factor)
        super().__init__(len(basis), independent, learn)
        self.register_buffer("basis", basis)
        self.register_buffer("values", values)

    def _turned(self, wide: Tensor) -> Tensor:
        """``Q^T u``, as rows from the left: so the product and its gradient are both fast."""
        return (wide.mT.contiguous() @ self.basis).mT

    def _spectrum(self) -> Tensor:
        share = self.independent
        return share + (1 - share) * self.values

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u``."""
        u = self._checked(u)
        wide = u.to(self.basis.dtype)
        turned = self._turned(wide)
        inside = turned / self._spectrum().unsqueeze(-1)
        if len(self.values) == self.rows:
            return (self.basis @ inside).to(u.dtype)
        rest = (wide - self.basis @ turned) / self.independent
        return (rest + self.basis @ inside).to(u.dtype)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        rest = self.rows - len(self.values)
        return self._spectrum().log().sum() + rest * self.independent.log()

    def colour(self, noise: Tensor) -> Tensor:
        """By the symmetric root of C."""
        noise = self._checked(noise)
        wide = noise.to(self.basis.dtype)
        share = self.independent.sqrt()
        turned = self._turned(wide)
        inside = (self._spectrum().sqrt() - share).unsqueeze(-1) * turned
        return (share * wide + self.basis @ inside).to(noise.dtype)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        related = (self.basis[rows] * self.values) @ self.basis[columns].mT
        share = self.independent
        return share * (rows[:, None] == columns) + (1 - share) * related

    def _log_det_and_quadratic(self, u: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """All rows by one rotation, which leaves the lengths of columns."""
        if rows is not None:
            return super()._log_det_and_quadratic(u, rows)
        wide = u.to(self.basis.dtype)
        turned = self._turned(wide)
        quadratic = (turned.square() / self._spectrum().unsqueeze(-1)).sum()
        if len(self.values) < self.rows:
            # Not from the difference of two lengths: cancellation would be divided by the share.
            quadratic = quadratic + (wide - self.basis @ turned).square().sum() / self.independent
        return self.log_det(), quadratic.to(u.dtype)

    @torch.no_grad()
    def fit_strength(self, u: Tensor) -> None:
        r"""Set :math:`\lambda` to the largest likelihood of ``u (n, p)``, by Brent's method.

        After one rotation an evaluation costs O(n).
        """
        from scipy import optimize

        wide = self._checked(u).to(self.basis.dtype)
        turned = self._turned(wide)
        squares = turned.square().sum(-1)
        rest = float((wide - self.basis @ turned).square().sum())
        left, columns = self.rows - len(self.values), u.shape[1]

        def loss(share: float) -> float:
            spectrum = share + (1 - share) * self.values
            quadratic = float((squares / spectrum).sum()) + (rest / share if left else 0.0)
            log_det = float(spectrum.log().sum()) + left * math.log(share)
            return 0.5 * (quadratic + columns * log_det)

        share = float(optimize.minimize_scalar(loss, bounds=SHARES, method="bounded").x)
        inside = min(max(share, 2 * SHARES[0]), 1 - 2 * SHARES[0])
        self.raw.fill_(raw_of(inside, *SHARES, "the share"))


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not below zero, and eigenvectors."""
    wide = torch.as_tensor(matrix).detach().double()
    square = wide.dim() == 2 and len(wide) == wide.shape[-1] and len(wide) > 0
    good = square and bool(wide.isfinite().all() and torch.allclose(wide, wide.mT, atol=1e-6))
    if not good or not torch.allclose(wide.diagonal(), wide.new_ones(len(wide)), atol=1e-4):
        raise DataError(
            f"Kinship expected a symmetric matrix (n, n) with a unit diagonal, got "
            f"{tuple(wide.shape)}; remedy: divide by the roots of the diagonal, from both sides"
        )
    values, basis = torch.linalg.eigh((wide + wide.mT) / 2)
    if values[0] < -1e-6 * len(values):
        raise DataError(
            f"Kinship expected a positive semi-definite matrix, got an eigenvalue of "
            f"{float(values[0]):.3g}"
        )
    return values.clamp(min=0), basis


def _of_factor(factor: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.as_tensor(factor).detach().double()
    lengths = wide.norm(dim=-1, keepdim=True) if wide.dim() == 2 else wide.new_zeros(1)
    if wide.dim() != 2 or not bool((lengths > 0).all() & wide.isfinite().all()):
        raise DataError(
            f"Kinship expected a factor (n, k) of finite rows other than zero, got "
            f"{tuple(wide.shape)}"
        )
    # Of the small k x k matrix, or of the n x n one where it is the smaller.
    basis, roots, _ = torch.linalg.svd(wide / lengths, full_matrices=False)
    kept = roots > 1e-10 * roots.max()
    return roots[kept].square(), basis[:, kept]
