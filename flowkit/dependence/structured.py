"""Rows related by a matrix that is sparse or has a structure, so that it is never written out."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkit.dependence.base import PartlyIndependent
from flowkit.errors import DataError
from flowkit.numerics.noise import drawing_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from linear_operator import LinearOperator

# Residual of conjugate gradients, relative; linear_operator's own floor is little below.
_TOLERANCE = 1e-5


class StructuredKinship(PartlyIndependent):
    r"""A linear mixed model :math:`C = \lambda I + (1 - \lambda) G` with a ``linear_operator`` G.

    For relationship matrices that are cheap to multiply with: block diagonal, Kronecker, Toeplitz,
    sparse. Solves are conjugate gradients to a relative residual of 1e-5, refined once, and the
    log-determinant is a stochastic Lanczos quadrature with ``probes`` random vectors, whose
    standard error is about :math:`\lVert \log C \rVert_F \sqrt{2 / \text{probes}}` for the part
    that the diagonal does not hold. Up to ``exact`` rows both are by a Cholesky factor instead.

    Drawing samples writes C out.

    Args:
        operator: G as a ``linear_operator.LinearOperator`` (n, n), with a unit diagonal.
        independent: Where the share :math:`\lambda` starts, between 0 and 1.
        learn: Whether it is learned.
        exact: Up to how many rows a Cholesky factor is made.
        probes: Random vectors of the log-determinant beyond.

    Raises:
        DataError: If the operator is none, is not square or has another diagonal.

    References:
        Gardner et al. 2018, arXiv 1809.11165, on conjugate gradients and Lanczos quadrature.

    Example:
        >>> import torch
        >>> from linear_operator.operators import BlockDiagLinearOperator, DenseLinearOperator
        >>> from flowkit.dependence import StructuredKinship
        >>> pair = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> pairs = BlockDiagLinearOperator(DenseLinearOperator(pair.expand(3, 2, 2)))
        >>> row = StructuredKinship(pairs, independent=0.5).matrix()[0]
        >>> [round(v, 4) for v in row.tolist()]
        [1.0, 0.25, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        operator: LinearOperator,
        independent: float = 0.5,
        learn: bool = True,
        exact: int = 2000,
        probes: int = 64,
    ) -> None:
        from linear_operator import LinearOperator

        if not isinstance(operator, LinearOperator) or operator.dim() != 2:
            raise DataError(
                "StructuredKinship expected a LinearOperator (n, n), got "
                f"{type(operator).__name__}; remedy: linear_operator.to_linear_operator, or "
                "Kinship for a dense matrix"
            )
        diagonal = operator.diagonal()
        square = operator.shape[0] == operator.shape[1]
        if not square or not torch.allclose(diagonal, torch.ones_like(diagonal), atol=1e-4):
            raise DataError(
                "StructuredKinship expected a square operator with a unit diagonal, got "
                f"{tuple(operator.shape)}"
            )
        super().__init__(len(diagonal), independent, learn)
        self.related, self.exact, self.probes = operator.double().detach(), exact, probes
        self._seed: int | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the operator with the parameters; it stays in float64."""
        super()._apply(fn, recurse)
        self.related = self.related.to(self.raw.device)
        return self

    def _covariance(self) -> LinearOperator:
        share = self.independent.double()
        return (self.related * (1 - share)).add_diagonal(share)

    @contextmanager
    def _accuracy(self) -> Iterator[None]:
        from linear_operator import settings

        with ExitStack() as stack:
            for setting in (
                settings.max_cholesky_size(self.exact),
                settings.cg_tolerance(_TOLERANCE),
                settings.max_cg_iterations(self.rows),
                settings.num_trace_samples(self.probes),
            ):
                stack.enter_context(setting)
            if self._seed is not None:
                stack.enter_context(drawing_from(torch.Generator().manual_seed(self._seed)))
            yield

    def fit_strength(self, u: Tensor) -> None:
        """Set the share to the likeliest one, with the same probes for every share tried."""
        self._seed = int(torch.randint(2**31, ()))
        try:
            super().fit_strength(u)
        finally:
            self._seed = None

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u``."""
        wide = self._checked(u).double()
        with self._accuracy():
            covariance = self._covariance()
            solved = covariance.solve(wide)
            if self.rows > self.exact:
                solved = solved + covariance.solve(wide - covariance @ solved)
        return solved.to(u.dtype)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        with self._accuracy():
            return self._covariance().logdet()

    def _log_det_and_quadratic(self, u: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """From one run of conjugate gradients."""
        if rows is not None:
            return super()._log_det_and_quadratic(u, rows)
        with self._accuracy():
            quadratic, log_det = self._covariance().inv_quad_logdet(u.double(), logdet=True)
        return log_det, quadratic.to(u.dtype)

    def colour(self, noise: Tensor) -> Tensor:
        """By a Cholesky factor of C written out."""
        factor = torch.linalg.cholesky(self._covariance().to_dense())
        return (factor @ self._checked(noise).double()).to(noise.dtype)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C, by products with unit vectors."""
        units = torch.nn.functional.one_hot(columns, self.rows).mT.double()
        related = (self.related @ units)[rows]
        share = self.independent
        return share * (rows[:, None] == columns) + (1 - share) * related
