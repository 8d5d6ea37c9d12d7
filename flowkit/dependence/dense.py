"""Covariances stored as a matrix: given ones, sums, Kronecker products, space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.dependence.base import Mixed, RowCovariance, by_factor
from flowkit.dependence.decomposition import finite, symmetric
from flowkit.errors import DataError
from flowkit.kernels import Kernel


class _Dense(RowCovariance):
    """A covariance by a Cholesky factor of its matrix, in the matrix's dtype; O(n^3)."""

    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.matrix())

    def _solve(self, u: Tensor) -> Tensor:
        factor = self._factor()
        return torch.cholesky_solve(u.to(factor), factor)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return 2 * self._factor().diagonal().log().sum()

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return by_factor(self._factor(), u)

    def _correlate(self, noise: Tensor) -> Tensor:
        factor = self._factor()
        return factor @ noise.to(factor)


@register
class GivenCovariance(_Dense):
    """A known, fixed correlation matrix across observations.

    Args:
        matrix: ``(n, n)``, symmetric, positive definite, with a unit diagonal.

    Raises:
        DataError, ShapeError: If it is not as described.

    Example:
        >>> import torch
        >>> from flowkit.dependence import GivenCovariance
        >>> GivenCovariance(torch.eye(3)).log_det().item()
        0.0
    """

    given: Tensor

    def __init__(self, matrix: Tensor) -> None:
        wide = symmetric("GivenCovariance", matrix, unit_diagonal=True)
        factor, failed = torch.linalg.cholesky_ex(wide)
        if int(failed):
            raise DataError("GivenCovariance expected a positive definite matrix")
        super().__init__(len(wide))
        self.register_buffer("given", wide)
        self.register_buffer("factor", factor)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        return self.given[rows][:, columns]

    def _factor(self) -> Tensor:
        return self.get_buffer("factor")


@register
class Spatial(_Dense, Mixed):
    r"""Covariance of places, :math:`C = \lambda I + (1 - \lambda) K` with a kernel K of distance.

    K is a kernel of places, scaled to a unit diagonal.

    Args:
        places: ``(n, d)`` coordinates.
        kernel: A kernel of d features, such as ``Matern(2, nu=1.5)``; its variance is left out.
        residual_proportion: Start of the variance proportion :math:`\lambda` of the identity,
            between 0 and 1.
        learn: Whether it is learned; the kernel's length-scales say that themselves.

    Raises:
        ArgumentError: If places and kernel do not fit, or the proportion is out of its range.

    Example:
        >>> import torch
        >>> from flowkit.kernels import Matern
        >>> from flowkit.dependence import Spatial
        >>> kernel = Matern(1, nu=0.5, length_scale=1.0)
        >>> C = Spatial(torch.tensor([[0.0], [1.0]]), kernel, residual_proportion=0.5)
        >>> round(C.matrix()[0, 1].item(), 4)
        0.1839
    """

    places: Tensor

    def __init__(
        self,
        places: Tensor,
        kernel: Kernel,
        *,
        residual_proportion: float = 0.1,
        learn: bool = True,
    ) -> None:
        places = finite("Spatial", "places", places)
        features = checks.instance("Spatial", "kernel", kernel, Kernel).features
        if places.dim() != 2 or places.shape[1] != features or not len(places):
            words = "coordinates (n, d) for a kernel of d features"
            raise checks.fail("Spatial", "places", words, places, f"d = {features}")
        super().__init__(len(places), residual_proportion=residual_proportion, learn=learn)
        self.register_buffer("places", places)
        self.kernel = kernel.double()

    def _related(self, rows: Tensor, columns: Tensor) -> Tensor:
        related = self.kernel(self.places, self.places)
        return (related / related.diagonal().mean())[rows][:, columns]


@register
class SumOfCovariances(_Dense):
    r"""A mixture :math:`C = \sum_i w_i C_i` with weights that are positive and sum to one.

    Args:
        parts: Covariances of the same observations.
        weights: Start of the weights; equal by default.
        learn: Whether they are learned.

    Raises:
        ArgumentError: If parts or weights do not fit.

    Example:
        >>> from flowkit.dependence import EquicorrelatedBlocks, SumOfCovariances
        >>> C = SumOfCovariances(
        ...     EquicorrelatedBlocks([0, 0, 1], rho=0.5), EquicorrelatedBlocks([0, 1, 1], rho=0.5)
        ... )
        >>> [round(v, 4) for v in C.matrix()[0].tolist()]
        [1.0, 0.25, 0.0]
    """

    def __init__(
        self,
        *parts: RowCovariance,
        weights: Sequence[float] | None = None,
        learn: bool = True,
    ) -> None:
        owner = "SumOfCovariances"
        sizes = {checks.instance(owner, "parts", part, RowCovariance).rows for part in parts}
        if len(sizes) != 1:
            words = "covariances of the same observations"
            raise checks.fail(owner, "parts", words, [part.rows for part in parts])
        start = 1.0 if weights is None else weights
        start = checks.numbers(owner, "weights", start, len(parts), above=0)
        super().__init__(parts[0].rows)
        self.parts = nn.ModuleList(parts)
        logs = torch.tensor([math.log(w / sum(start)) for w in start])
        self.raw = nn.Parameter(logs, requires_grad=checks.flag(owner, "learn", learn))

    @property
    def weights(self) -> Tensor:
        """The weights."""
        return torch.softmax(self.raw, 0)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        every = (part.entries(rows, columns) for part in self.parts)  # type: ignore[operator]
        return sum(w * e for w, e in zip(self.weights, every, strict=True))


@register
class KroneckerCovariance(RowCovariance):
    r"""Kronecker product of two covariances, :math:`C = A \otimes B`.

    Of subjects by times, say: observation :math:`i\, m + j` is subject i at time j. Nothing
    larger than the two parts is computed.

    Args:
        first: Covariance A of the slower index.
        second: Covariance B of the faster one.

    Example:
        >>> from flowkit.dependence import EquicorrelatedBlocks, KroneckerCovariance
        >>> A, B = EquicorrelatedBlocks([0, 0], rho=0.5), EquicorrelatedBlocks([0, 0], rho=0.2)
        >>> [round(v, 2) for v in KroneckerCovariance(A, B).matrix()[0].tolist()]
        [1.0, 0.2, 0.5, 0.1]
    """

    def __init__(self, first: RowCovariance, second: RowCovariance) -> None:
        for name, part in (("first", first), ("second", second)):
            checks.instance("KroneckerCovariance", name, part, RowCovariance)
        super().__init__(first.rows * second.rows)
        self.first, self.second = first, second

    def _apply_both(self, name: str, u: Tensor) -> Tensor:
        """Apply what both parts do along their own index."""
        n, m, p = self.first.rows, self.second.rows, u.shape[1]
        along = getattr(self.first, name)(u.reshape(n, m * p)).reshape(n, m, p)
        along = getattr(self.second, name)(along.transpose(0, 1).reshape(m, n * p))
        return along.reshape(m, n, p).transpose(0, 1).reshape(n * m, p)

    def _solve(self, u: Tensor) -> Tensor:
        return self._apply_both("solve", u)

    def log_det(self) -> Tensor:
        r""":math:`m \log|A| + n \log|B|`."""
        return self.second.rows * self.first.log_det() + self.first.rows * self.second.log_det()

    def _correlate(self, noise: Tensor) -> Tensor:
        return self._apply_both("correlate", noise)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Products of entries."""
        m = self.second.rows
        a, b = self.first, self.second
        return a.entries(rows // m, columns // m) * b.entries(rows % m, columns % m)
