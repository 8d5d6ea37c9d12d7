"""Linear layers of vectors: dense, triangular, LU and orthogonal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.layout import linear
from flowkit.numerics.types import Mapped
from flowkit.transforms.volume import ConstantVolume, at_least_single, solve_events


class _Linear(ConstantVolume):
    """``z = W x + b``; subclasses give ``W``, how to solve with it, and ``log|det W|``."""

    #: The matrix W, ``(features, features)``.
    weight_matrix: Callable[[], Tensor]
    #: ``log|det W|``, a scalar.
    log_abs_det: Callable[[], Tensor]
    #: ``W^-1`` times columns ``(features, n)``, in single precision or better.
    _solve: Callable[[Tensor], Tensor]

    def __init__(self, features: int) -> None:
        name = type(self).__name__
        features = checks.integer(name, "features", features, least=1)
        checks.elements(name, features, features)
        super().__init__((features,))
        self.elementwise = features == 1
        self.bias = nn.Parameter(torch.zeros(features))

    def orientation(self) -> Tensor:
        """Sign of the only entry of a 1 x 1 matrix."""
        return torch.sign(self.weight_matrix()[0, 0])

    def _log_det(self, x: Tensor) -> Tensor:
        return self.log_abs_det()

    def _to_noise(self, x: Tensor) -> Tensor:
        return linear(x, self.weight_matrix(), self.bias)

    def _to_data(self, z: Tensor) -> Tensor:
        return solve_events(self._solve, z - self.bias)


@register
class DenseLinear(_Linear):
    """A linear layer with an unconstrained matrix; the determinant costs O(D^3).

    It has a bias, and starts at the identity.

    Args:
        features: Number of features D.

    Example:
        >>> import torch
        >>> from flowkit.transforms import DenseLinear
        >>> DenseLinear(2)(torch.ones(1, 2))[0].detach()
        tensor([[1., 1.]])
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.weight = nn.Parameter(torch.eye(features))

    def weight_matrix(self) -> Tensor:
        """The matrix W."""
        return self.weight

    def log_abs_det(self) -> Tensor:
        """``log|det W|`` by an LU factorisation."""
        return torch.linalg.slogdet(at_least_single(self.weight))[1].to(self.weight.dtype)

    def _solve(self, columns: Tensor) -> Tensor:
        return torch.linalg.solve(at_least_single(self.weight), columns)


@register
class TriangularLinear(_Linear):
    """A linear layer with a lower-triangular matrix of positive diagonal, and a bias.

    It starts at the identity.

    Args:
        features: Number of features D.

    Example:
        >>> import torch
        >>> from flowkit.transforms import TriangularLinear
        >>> TriangularLinear(2)(torch.ones(1, 2))[0].detach().round(decimals=3)
        tensor([[1., 1.]])
    """

    place: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(features)
        # Row by row, the entries on and below the diagonal; on it their logarithms.
        self.entries = nn.Parameter(torch.zeros(features * (features + 1) // 2))
        self.register_buffer("place", torch.tril_indices(features, features), persistent=False)

    def _matrix(self) -> Tensor:
        empty = self.entries.new_zeros(self.event_shape * 2)  # type: ignore[arg-type]
        return empty.index_put(tuple(self.place), self.entries)

    def weight_matrix(self) -> Tensor:
        """The matrix W."""
        matrix = self._matrix()
        return matrix.tril(-1) + torch.diag(matrix.diagonal().exp())

    def log_abs_det(self) -> Tensor:
        """The sum of the logarithms of the diagonal."""
        return self._matrix().diagonal().sum()

    def _solve(self, columns: Tensor) -> Tensor:
        weight = at_least_single(self.weight_matrix())
        return torch.linalg.solve_triangular(weight, columns, upper=False)


@register
class LULinear(_Linear):
    r"""A linear layer :math:`W = L U` with bias, L with unit and U with positive diagonal.

    The determinant costs O(D) and the inverse two triangular solves. Starts at the identity.

    With ``groups``, features come in groups one after the other, and W is lower block-triangular:
    none of a later group reaches one of an earlier group, in either direction, to exact zeros in
    the Jacobian. Heavy-tailed features put last then leave the light ones light.

    Args:
        features: Number of features D.
        groups: Sizes of the groups, from the first; one group by default. A size may be 0.

    Raises:
        ArgumentError: If the sizes do not add up to D.

    References:
        Kingma and Dhariwal 2018, Glow, arXiv 1807.03039, section 3.2; Laszkiewicz et al. 2022,
        arXiv 2206.10311, for the groups.

    Example:
        >>> import torch
        >>> from flowkit.transforms import LULinear
        >>> LULinear(63)(torch.randn(5, 63))[1].shape
        torch.Size([5])
    """

    upper: Tensor

    def __init__(self, features: int, *, groups: Sequence[int] | None = None) -> None:
        super().__init__(features)
        sizes = [features] if groups is None else groups
        sizes = checks.integers("LULinear", "groups", sizes, least=0)
        if sum(sizes) != features:
            raise checks.fail("LULinear", "groups", f"sizes that add up to {features}", groups)
        # Where U may differ from zero off its diagonal: a lower L fills the other blocks of L U.
        blocks = [torch.ones(size, size) for size in sizes]
        self.register_buffer("upper", torch.block_diag(*blocks).triu(1), persistent=False)
        # L below the diagonal, U above it, the logarithm of U's diagonal on it: scales of any size
        # are then a few steps away.
        self.lower_upper = nn.Parameter(torch.zeros(features, features))

    def _factors(self) -> Mapped:
        lower = self.lower_upper.tril(-1) + torch.diag(torch.ones_like(self.bias))
        diagonal = self.lower_upper.diagonal().exp()
        return lower, self.lower_upper * self.upper + torch.diag(diagonal)

    def weight_matrix(self) -> Tensor:
        """The matrix W = L U."""
        lower, upper = self._factors()
        return lower @ upper

    def log_abs_det(self) -> Tensor:
        """The sum of the logarithms of the diagonal of U."""
        return self.lower_upper.diagonal().sum()

    def _solve(self, columns: Tensor) -> Tensor:
        lower, upper = map(at_least_single, self._factors())
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, columns, upper=True)


@register
class OrthogonalLinear(_Linear):
    r"""A linear layer with an orthogonal matrix, a product of Householder reflections, and a bias.

    It keeps volumes: the log-determinant is 0.

    The product :math:`Q = H_1 \cdots H_K` of :math:`H_k = I - 2 v_k v_k^T / |v_k|^2` is computed
    without a loop as :math:`Q = I - V S^{-1} V^T`, with S the strict upper triangle of
    :math:`V^T V` plus half its diagonal. Pairs of equal reflections give the identity as the
    start; K is therefore rounded up to an even number.

    Args:
        features: Number of features D.
        reflections: Number of reflections K; D by default, which reaches every rotation.

    References:
        Joffrain et al. 2006, Accumulating Householder transformations, ACM TOMS 32(2), for the
        compact form; Tomczak and Welling 2016, arXiv 1611.09630, for its use in flows.

    Example:
        >>> import torch
        >>> from flowkit.transforms import OrthogonalLinear
        >>> q = OrthogonalLinear(4).weight_matrix()
        >>> torch.allclose(q @ q.T, torch.eye(4), atol=1e-6)
        True
    """

    def __init__(self, features: int, *, reflections: int | None = None) -> None:
        super().__init__(features)
        if reflections is None:
            reflections = features
        pairs = (checks.integer("OrthogonalLinear", "reflections", reflections, least=1) + 1) // 2
        checks.elements("OrthogonalLinear", features, 2 * pairs)
        # Spread basis vectors: gradients of different pairs then differ from the first step on.
        half = torch.eye(features)[:, torch.arange(pairs) % features]
        self.vectors = nn.Parameter(half.repeat_interleave(2, dim=1))

    def weight_matrix(self) -> Tensor:
        """The matrix Q."""
        v = at_least_single(self.vectors)
        # Unit columns: a reflection does not depend on the length, rounding does. A zero column
        # reflects nothing.
        lengths = torch.linalg.vector_norm(v.detach(), dim=0)
        v = v / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        gram = v.mT @ v
        half = torch.where(lengths > 0, 0.5 * gram.diagonal(), torch.ones_like(lengths))
        s = gram.triu(1) + torch.diag(half)
        eye = torch.diag(torch.ones_like(v[:, 0]))
        q = eye - v @ torch.linalg.solve_triangular(s, v.mT, upper=True)
        return q.to(self.vectors.dtype)

    def log_abs_det(self) -> Tensor:
        """Zero."""
        return self.bias.new_zeros(())

    def _solve(self, columns: Tensor) -> Tensor:
        return at_least_single(self.weight_matrix()).mT @ columns
