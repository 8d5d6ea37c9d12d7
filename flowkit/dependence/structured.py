"""Observations related by a matrix with structure, which is never written out."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.dependence.base import Mixed
from flowkit.dependence.decomposition import check_diagonal
from flowkit.numerics.noise import drawing_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from linear_operator import LinearOperator

# Residual of conjugate gradients, relative; linear_operator's own floor is little below.
_TOLERANCE = 1e-5


@register
class StructuredKinship(Mixed):
    r"""The covariance of :class:`Kinship` with a ``linear_operator`` as relationship matrix.

    For relationship matrices that are cheap to multiply with: block diagonal, Kronecker, Toeplitz,
    sparse. Solves are conjugate gradients to a relative residual of 1e-5, refined once, and the
    log-determinant is a stochastic Lanczos quadrature with ``probes`` random vectors, whose
    standard error is about :math:`\lVert \log C \rVert_F \sqrt{2 / \text{probes}}` for the part
    that the diagonal does not hold. Up to ``exact`` observations both are by a Cholesky factor
    instead. Drawing samples writes C out.

    Args:
        operator: G as a ``linear_operator.LinearOperator`` (n, n), with a unit diagonal.
        residual_proportion: Start of the variance proportion :math:`\lambda` of the identity,
            between 0 and 1.
        learn: Whether it is learned.
        exact: Largest number of observations with a Cholesky factor.
        probes: Number of random vectors for the log-determinant beyond that.

    Raises:
        ArgumentError: If the operator is none or not square, or a number is out of its range.
        DataError: If it has another diagonal.

    References:
        Gardner et al. 2018, arXiv 1809.11165, on conjugate gradients and Lanczos quadrature.

    Example:
        >>> import torch
        >>> from linear_operator.operators import BlockDiagLinearOperator, DenseLinearOperator
        >>> from flowkit.dependence import StructuredKinship
        >>> pair = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> pairs = BlockDiagLinearOperator(DenseLinearOperator(pair.expand(3, 2, 2)))
        >>> row = StructuredKinship(pairs, residual_proportion=0.5).matrix()[0]
        >>> [round(v, 4) for v in row.tolist()]
        [1.0, 0.25, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        operator: LinearOperator,
        *,
        residual_proportion: float = 0.5,
        learn: bool = True,
        exact: int = 2000,
        probes: int = 64,
    ) -> None:
        from linear_operator import LinearOperator

        owner = "StructuredKinship"
        remedy = "linear_operator.to_linear_operator, or Kinship for a dense matrix"
        checks.instance(owner, "operator", operator, LinearOperator, remedy)
        if operator.dim() != 2 or operator.shape[0] != operator.shape[1]:
            raise checks.fail(owner, "operator", "square (n, n)", tuple(operator.shape))
        check_diagonal(owner, operator.diagonal())
        super().__init__(operator.shape[0], residual_proportion=residual_proportion, learn=learn)
        self.related = operator.double().detach()
        self.exact = checks.integer(owner, "exact", exact, least=0)
        self.probes = checks.integer(owner, "probes", probes, least=1)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move the operator with the parameters; it stays in float64."""
        super()._apply(*args, **kwargs)
        self.related = self.related.to(self.raw.device)
        return self

    def _covariance(self) -> LinearOperator:
        proportion = self.residual_proportion.double()
        return (self.related * (1 - proportion)).add_diagonal(proportion)

    @contextmanager
    def _accuracy(self, seed: int | None = None) -> Iterator[None]:
        from linear_operator import settings

        with (
            settings.max_cholesky_size(self.exact),
            settings.cg_tolerance(_TOLERANCE),
            settings.max_cg_iterations(self.rows),
            settings.num_trace_samples(self.probes),
            drawing_from(None if seed is None else torch.Generator().manual_seed(seed)),
        ):
            yield

    def _solve(self, u: Tensor) -> Tensor:
        with self._accuracy():
            covariance = self._covariance()
            solved = covariance.solve(u)
            if self.rows > self.exact:
                solved = solved + covariance.solve(u - covariance @ solved)
        return solved

    def log_det(self) -> Tensor:
        """``log |C|``."""
        with self._accuracy():
            return self._covariance().logdet()

    def _terms(self, u: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """From one run of conjugate gradients."""
        with self._accuracy(seed):
            quadratic, log_det = self._covariance().inv_quad_logdet(u, logdet=True)
        return log_det, quadratic

    def _terms_at(self, u: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """With the same probes every time."""
        return partial(self._terms, u, int(torch.randint(2**31, ())))

    def _correlate(self, noise: Tensor) -> Tensor:
        """By a Cholesky factor of C written out."""
        return torch.linalg.cholesky(self._covariance().to_dense()) @ noise

    def _related(self, rows: Tensor, columns: Tensor) -> Tensor:
        """By products with unit vectors."""
        units = torch.nn.functional.one_hot(columns, self.rows).mT.double()
        return (self.related @ units)[rows]
