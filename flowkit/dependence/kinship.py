"""Observations related by a matrix, such as kinship, and partly independent."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowkit.config import register
from flowkit.dependence.base import Mixed
from flowkit.dependence.decomposition import Decomposition
from flowkit.errors import ArgumentError


@register
class Kinship(Mixed):
    r"""Covariance of relatives, :math:`C = \lambda I + (1-\lambda) G`, by a relationship matrix G.

    The relationship matrix G is decomposed once, in float64, :math:`G = Q \Lambda Q^T`. Then every
    evaluation, for any :math:`\lambda`, costs one product with :math:`Q^T`:

    .. math:: \log|C| = \sum_i \log(\lambda + (1 - \lambda) \Lambda_i), \quad
              C^{-1} u = \tfrac1\lambda (u - Q Q^T u)
              + Q\, (\lambda + (1 - \lambda) \Lambda)^{-1} Q^T u .

    With a factor Z of k columns, :math:`G = Z Z^T`, Q has k columns and no n x n matrix is made.

    Args:
        matrix: ``(n, n)`` symmetric, positive semi-definite, with a unit diagonal.
        factor: In its place ``(n, k)``; its rows are scaled to unit length.
        residual_proportion: Start of the variance proportion :math:`\lambda` of the identity,
            between 0 and 1; at 1 observations are independent.
        learn: Whether it is learned.

    Raises:
        ArgumentError: If not exactly one of matrix and factor is given.
        DataError, ShapeError: If the matrix or factor is not as described.

    Example:
        >>> import torch
        >>> from flowkit.dependence import Kinship
        >>> C = Kinship(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), residual_proportion=0.5)
        >>> C.matrix().detach().float()
        tensor([[1.0000, 0.2500],
                [0.2500, 1.0000]])
    """

    def __init__(
        self,
        matrix: Tensor | None = None,
        *,
        factor: Tensor | None = None,
        residual_proportion: float = 0.5,
        learn: bool = True,
    ) -> None:
        if (matrix is None) == (factor is None):
            raise ArgumentError("Kinship expected a matrix or a factor, and not both")
        relationship = (
            Decomposition.of_factor("Kinship", factor)
            if matrix is None
            else Decomposition.of_matrix("Kinship", matrix, unit_diagonal=True)
        )
        rows = len(relationship.basis)
        super().__init__(rows, residual_proportion=residual_proportion, learn=learn)
        self.relationship = relationship

    def _power(self, u: Tensor, exponent: float) -> Tensor:
        """By the eigenvalues of C; of the exponent 1/2, its symmetric root."""
        parts, proportion = self.relationship, self.residual_proportion
        rotated = parts.rotate(u)
        spectrum = parts.spectrum(proportion).pow(exponent).to(u.dtype)
        inside = parts.rotate_back(spectrum.unsqueeze(-1) * rotated)
        return inside + parts.outside(u, rotated) * proportion.pow(exponent)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return self.relationship.log_det(self.residual_proportion)

    def _related(self, rows: Tensor, columns: Tensor) -> Tensor:
        basis = self.relationship.basis
        return (basis[rows] * self.relationship.values) @ basis[columns].mT

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._terms_at(u)()

    def _terms_at(self, u: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """From squared lengths along eigenvectors and outside of them, so that each costs O(n).

        The latter not from the difference of two lengths: cancellation would be divided by the
        proportion.
        """
        rotated = self.relationship.rotate(u)
        along = rotated.square().sum(-1)
        outside = self.relationship.outside(u, rotated).square().sum()

        def terms() -> tuple[Tensor, Tensor]:
            proportion = self.residual_proportion
            quadratic = (along / self.relationship.spectrum(proportion)).sum()
            return self.log_det(), quadratic + outside / proportion

        return terms
