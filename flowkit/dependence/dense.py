"""Covariances held as a matrix: given ones, sums, Kronecker products, space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.dependence.base import PartlyIndependent, RowCovariance, by_factor
from flowkit.errors import DataError
from flowkit.kernels import Kernel


class _Dense(RowCovariance):
    """By a Cholesky factor of :meth:`matrix`, in its dtype; O(n^3) an evaluation."""

    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.matrix())

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u``."""
        factor = self._factor()
        return torch.cholesky_solve(self._checked(u).to(factor.dtype), factor).to(u.dtype)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return 2 * self._factor().diagonal().log().sum()

    def _log_det_and_quadratic(self, u: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """From one factor."""
        if rows is not None:
            return super()._log_det_and_quadratic(u, rows)
        return by_factor(self._factor(), u)

    def colour(self, noise: Tensor) -> Tensor:
        """By the Cholesky factor."""
        factor = self._factor()
        return (factor @ self._checked(noise).to(factor.dtype)).to(noise.dtype)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        return self.matrix()[rows][:, columns]


class GivenCovariance(_Dense):
    """A correlation matrix that is known.

    Args:
        matrix: ``(n, n)``, symmetric, positive definite, with a unit diagonal.

    Raises:
        DataError: If it is none.

    Example:
        >>> import torch
        >>> from flowkit.dependence import GivenCovariance
        >>> GivenCovariance(torch.eye(3)).log_det().item()
        0.0
    """

    given: Tensor

    def __init__(self, matrix: Tensor) -> None:
        wide = torch.as_tensor(matrix).detach().double()
        square = wide.dim() == 2 and len(wide) == wide.shape[-1] and len(wide) > 0
        unit = square and torch.allclose(wide.diagonal(), wide.new_ones(len(wide)), atol=1e-6)
        if not unit or not torch.allclose(wide, wide.mT, atol=1e-8):
            raise DataError(
                f"GivenCovariance expected a symmetric matrix (n, n) with a unit diagonal, got "
                f"{tuple(wide.shape)}"
            )
        factor, failed = torch.linalg.cholesky_ex(wide)
        if int(failed):
            raise DataError("GivenCovariance expected a positive definite matrix")
        super().__init__(len(wide))
        self.register_buffer("given", wide)
        self.register_buffer("factor", factor)

    def matrix(self) -> Tensor:
        """C itself."""
        return self.given

    def _factor(self) -> Tensor:
        return self.get_buffer("factor")


class Spatial(_Dense, PartlyIndependent):
    r"""Neighbours in space: :math:`C = \lambda I + (1 - \lambda) K` with a kernel K of places.

    Args:
        places: ``(n, d)`` coordinates.
        kernel: A kernel of d features, such as ``Matern(2, nu=1.5)``; its variance is left out.
        independent: Where the share :math:`\lambda` starts, between 0 and 1.
        learn: Whether the share is learned; the kernel's length-scales say that themselves.

    Raises:
        DataError: If places and kernel do not fit.

    Example:
        >>> import torch
        >>> from flowkit.kernels import Matern
        >>> from flowkit.dependence import Spatial
        >>> C = Spatial(torch.tensor([[0.0], [1.0]]), Matern(1, nu=0.5, length_scale=1.0), 0.5)
        >>> round(C.matrix()[0, 1].item(), 4)
        0.1839
    """

    places: Tensor

    def __init__(
        self, places: Tensor, kernel: Kernel, independent: float = 0.1, learn: bool = True
    ) -> None:
        places = torch.as_tensor(places).detach().double()
        if places.dim() != 2 or places.shape[1] != getattr(kernel, "features", None):
            raise DataError(
                f"Spatial expected places (n, d) and a kernel of d features, got "
                f"{tuple(places.shape)} and {kernel!r}"
            )
        super().__init__(len(places), independent, learn)
        self.register_buffer("places", places)
        self.kernel = kernel.double()

    def matrix(self) -> Tensor:
        """C itself."""
        related = self.kernel(self.places, self.places)
        related = related / related.diagonal().mean()
        share = self.independent
        return share * torch.eye(self.rows).to(related) + (1 - share) * related


class SumOfCovariances(_Dense):
    r"""A mixture :math:`C = \sum_i w_i C_i` with weights that are positive and sum to one.

    Args:
        parts: Covariances of the same rows.
        weights: Where the weights start; equal by default.
        learn: Whether they are learned.

    Raises:
        DataError: If parts or weights do not fit.

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
        start = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
        good = len(parts) == len(start) and all(w > 0 for w in start)
        if not good or len({part.rows for part in parts}) != 1:
            raise DataError(
                f"SumOfCovariances expected covariances of the same rows and a weight > 0 for "
                f"each, got {[part.rows for part in parts]} rows and weights {start}"
            )
        super().__init__(parts[0].rows)
        self.parts = nn.ModuleList(parts)
        logs = [math.log(w / sum(start)) for w in start]
        self.raw = nn.Parameter(torch.tensor(logs), requires_grad=learn)

    @property
    def weights(self) -> Tensor:
        """The weights."""
        return torch.softmax(self.raw, 0)

    def matrix(self) -> Tensor:
        """C itself."""
        matrices = [part.matrix() for part in self.parts]  # type: ignore[operator]
        dtype = max((m.dtype for m in matrices), key=lambda t: torch.finfo(t).bits)
        weights = self.weights.to(dtype)
        scaled = [w * m.to(dtype) for w, m in zip(weights, matrices, strict=True)]
        return torch.stack(scaled).sum(0)


class KroneckerCovariance(RowCovariance):
    r"""Two ways to be related: :math:`C = A \otimes B`, rows in the order of A, then of B.

    Subjects by times, say: row :math:`i\, m + j` is subject i at time j. Never larger than its
    parts.

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
        super().__init__(first.rows * second.rows)
        self.first, self.second = first, second

    def _apply_both(self, name: str, u: Tensor) -> Tensor:
        """Apply what both parts do along their own index."""
        u = self._checked(u)
        n, m, p = self.first.rows, self.second.rows, u.shape[1]
        along = getattr(self.first, name)(u.reshape(n, m * p)).reshape(n, m, p)
        along = getattr(self.second, name)(along.transpose(0, 1).reshape(m, n * p))
        return along.reshape(m, n, p).transpose(0, 1).reshape(n * m, p)

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u``."""
        return self._apply_both("solve", u)

    def log_det(self) -> Tensor:
        r""":math:`m \log|A| + n \log|B|`."""
        return self.second.rows * self.first.log_det() + self.first.rows * self.second.log_det()

    def colour(self, noise: Tensor) -> Tensor:
        """Along both."""
        return self._apply_both("colour", noise)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Products of entries."""
        m = self.second.rows
        a, b = self.first, self.second
        return a.entries(rows // m, columns // m) * b.entries(rows % m, columns % m)
