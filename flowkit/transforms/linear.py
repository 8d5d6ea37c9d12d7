"""Linear layers: dense, triangular, LU, orthogonal, and each of them across channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.config import register
from flowkit.errors import ShapeError
from flowkit.numerics.layout import linear
from flowkit.shapes import as_shape
from flowkit.transforms.base import Transform, at_least_single, full_precision
from flowkit.transforms.region import Region


class _Linear(Transform):
    """``z = W x + b``; subclasses give ``W``, how to solve with it, and ``log|det W|``."""

    constant_log_det = True

    def __init__(self, features: int) -> None:
        super().__init__((features,))
        self.bias = nn.Parameter(torch.zeros(features))

    def weight_matrix(self) -> Tensor:
        """The matrix W, ``(features, features)``."""
        raise NotImplementedError

    def log_abs_det(self) -> Tensor:
        """``log|det W|``, a scalar."""
        raise NotImplementedError

    def _solve(self, columns: Tensor) -> Tensor:
        """``W^-1`` times ``columns (features, n)``, in single precision or better."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``W x + b`` and ``log|det W|``."""
        with full_precision(x):
            z = linear(x, self.weight_matrix(), self.bias)
            return z, self.log_abs_det().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``W^-1 (z - b)`` and ``-log|det W|``."""
        rows = (z - self.bias).reshape(-1, z.shape[-1])
        with full_precision(z):
            x = self._solve(at_least_single(rows.mT)).mT.reshape(z.shape)
            return x.to(z.dtype), -self.log_abs_det().expand(z.shape[:-1])

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box of one feature; of more, the line alone: a box is turned into no box."""
        if self.event_shape == (1,):
            return self._map_ends(region, context, inverse, self.orientation() > 0)
        return super().map_region(region, context, inverse=inverse)

    def unnormalized(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``W x + b`` and zeros: no determinant is computed."""
        with full_precision(x):
            return linear(x, self.weight_matrix(), self.bias), x.new_zeros(x.shape[:-1])


def _sign_of_scalar(matrix: Tensor) -> Tensor:
    return torch.sign(matrix[0, 0])


@register
class DenseLinear(_Linear):
    """An unconstrained matrix and a bias; the determinant costs O(D^3). Starts at the identity.

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
        log_abs_det = torch.linalg.slogdet(at_least_single(self.weight))[1]
        return log_abs_det.to(self.weight.dtype)

    def orientation(self) -> Tensor:
        """Sign of the only entry of a 1 x 1 matrix."""
        return _sign_of_scalar(self.weight_matrix())

    def _solve(self, columns: Tensor) -> Tensor:
        return torch.linalg.solve(at_least_single(self.weight), columns)


@register
class TriangularLinear(_Linear):
    """A lower-triangular matrix with a positive diagonal, and a bias. Starts at the identity.

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
        rows, columns = torch.tril_indices(features, features)
        place = torch.full((features, features), self.entries.numel())
        place[rows, columns] = torch.arange(self.entries.numel())
        self.register_buffer("place", place, persistent=False)

    def _matrix(self) -> Tensor:
        return torch.cat([self.entries, self.entries.new_zeros(1)])[self.place]

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
    r"""A matrix held as :math:`W = L U`, L with unit and U with positive diagonal, and a bias.

    The determinant costs O(D) and the inverse two triangular solves. Starts at the identity.

    With ``groups``, features come in groups one after the other, and W is lower block-triangular:
    none of a later group reaches one of an earlier group, in either direction, to exact zeros in
    the Jacobian. Heavy-tailed features put last then leave the light ones light.

    Args:
        features: Number of features D.
        groups: Sizes of the groups, from the first; one group by default. A size may be 0.

    Raises:
        ShapeError: If the sizes do not add up to D.

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

    def __init__(self, features: int, groups: Sequence[int] | None = None) -> None:
        super().__init__(features)
        sizes = (features,) if groups is None else as_shape(groups)
        if sum(sizes) != features:
            raise ShapeError(f"LULinear expected groups that add up to {features}, got {groups!r}")
        # Where U may differ from zero off its diagonal: a lower L fills the other blocks of L U.
        blocks = [torch.ones(size, size) for size in sizes]
        self.register_buffer("upper", torch.block_diag(*blocks).triu(1), persistent=False)
        # L below the diagonal, U above it, the logarithm of U's diagonal on it: scales of any size
        # are then a few steps away.
        self.lower_upper = nn.Parameter(torch.zeros(features, features))

    def _factors(self) -> tuple[Tensor, Tensor]:
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
    r"""An orthogonal matrix, a product of Householder reflections, and a bias; keeps volumes.

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

    def __init__(self, features: int, reflections: int | None = None) -> None:
        super().__init__(features)
        pairs = ((reflections if reflections is not None else features) + 1) // 2
        if pairs < 1:
            raise ValueError(f"OrthogonalLinear needs reflections >= 1, got {reflections}")
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

    def orientation(self) -> Tensor:
        """Sign of the only entry of a 1 x 1 matrix."""
        return _sign_of_scalar(self.weight_matrix())

    def _solve(self, columns: Tensor) -> Tensor:
        return at_least_single(self.weight_matrix()).mT @ columns


@register
class Conv1x1(Transform):
    r"""The same linear layer at every pixel of ``(channels, height, width)``: a 1 x 1 convolution.

    :math:`\log|\det| = H W \log|\det W|`.

    Args:
        channels: Number of channels.
        linear: Factory of the linear layer across channels, such as :class:`LULinear`.

    References:
        Kingma and Dhariwal 2018, Glow, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Conv1x1
        >>> z, log_det = Conv1x1(3)(torch.randn(5, 3, 8, 8))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3, 8, 8]), torch.Size([5]))
    """

    constant_log_det = True

    def __init__(self, channels: int, linear: Callable[[int], Transform] = LULinear) -> None:
        super().__init__((channels, None, None))
        self.linear = linear(channels)

    def _at_every_pixel(
        self, apply: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, log_det = apply(x.movedim(-3, -1))
        return out.movedim(-1, -3), log_det.sum((-2, -1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix the channels."""
        return self._at_every_pixel(self.linear, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unmix the channels."""
        return self._at_every_pixel(self.linear.inverse, z)

    def unnormalized(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mix the channels; no determinant is computed."""
        return self._at_every_pixel(self.linear.unnormalized, x)


@register
class Conv2d(Transform):
    r"""A convolution of ``(channels, height, width)`` with zero padding, as one linear map.

    .. math:: z_{c} = b_c + \sum_{c'} K_{cc'} \star x_{c'}, \qquad
              \log|\det| = \log|\det M(K)|

    where M is the matrix of the map, with as many rows as an event has numbers. Neither
    ``forward`` of an energy nor a score needs it: it is made for the log-determinant and the
    inverse only, by the convolution of unit images, and costs the cube of that number. Starts at
    the identity.

    Args:
        channels: Number of channels.
        kernel: Height and width of the kernel, odd; one number for both.

    Raises:
        ShapeError: If a size is not a whole number >= 1, or a kernel is even.

    References:
        Chao et al. 2023, arXiv 2305.15267, for flows that never need the determinant to train.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Conv2d
        >>> z, log_det = Conv2d(2, kernel=3)(torch.randn(5, 2, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2, 4, 4]), torch.Size([5]))
    """

    constant_log_det = True

    def __init__(self, channels: int, kernel: int | tuple[int, int] = 3) -> None:
        sizes = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
        for size in (channels, *sizes):
            if type(size) is not int or size < 1:
                raise ShapeError(f"Conv2d expected sizes >= 1, got {channels} and {kernel}")
        if len(sizes) != 2 or any(size % 2 == 0 for size in sizes):
            raise ShapeError(
                f"Conv2d expected an odd kernel (height, width), got {kernel}; remedy: for "
                "example 3 or (3, 5)"
            )
        super().__init__((channels, None, None))
        self.padding = (sizes[0] // 2, sizes[1] // 2)
        weight = torch.zeros(channels, channels, *sizes)
        self.weight = nn.Parameter(nn.init.dirac_(weight))
        self.bias = nn.Parameter(torch.zeros(channels))

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        images = x.reshape(-1, *x.shape[-3:])
        out = torch.nn.functional.conv2d(images, self.weight, bias, padding=self.padding)
        return out.reshape(x.shape)

    def matrix(self, height: int, width: int) -> Tensor:
        """The matrix of the map, of flattened events; by the convolution of every unit image."""
        size = len(self.bias) * height * width
        unit = torch.eye(size, dtype=self.weight.dtype, device=self.weight.device)
        columns = self._convolve(unit.reshape(size, len(self.bias), height, width), None)
        return columns.reshape(size, size).mT

    def _log_det(self, x: Tensor) -> Tensor:
        matrix = at_least_single(self.matrix(*x.shape[-2:]))
        return torch.linalg.slogdet(matrix)[1].to(x.dtype).expand(x.shape[:-3])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve."""
        with full_precision(x):
            return self._convolve(x, self.bias), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve for the image."""
        with full_precision(z):
            rows = (z - self.bias.reshape(-1, 1, 1)).reshape(-1, z.shape[-3:].numel())
            matrix = at_least_single(self.matrix(*z.shape[-2:]))
            x = torch.linalg.solve(matrix, at_least_single(rows).mT).mT
            return x.to(z.dtype).reshape(z.shape), -self._log_det(z)

    def unnormalized(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve; no determinant is computed."""
        with full_precision(x):
            return self._convolve(x, self.bias), x.new_zeros(x.shape[:-3])
