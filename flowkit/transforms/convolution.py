"""Convolutions of images: a linear layer at every pixel, and kernels with zero padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform, at_least_single, full_precision
from flowkit.transforms.linear import LULinear


@register
class Conv1x1(Transform):
    r"""A 1 x 1 convolution: the same linear layer at every pixel of ``(channels, height, width)``.

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

    def __init__(self, channels: int, *, linear: Callable[[int], Transform] = LULinear) -> None:
        channels = checks.integer("Conv1x1", "channels", channels, least=1)
        super().__init__((channels, None, None))
        checks.function("Conv1x1", "linear", linear)
        self.linear = linear(channels)

    def _at_every_pixel(
        self, apply: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
    ) -> Mapped:
        out, log_det = apply(x.movedim(-3, -1))
        return out.movedim(-1, -3), log_det.sum((-2, -1))

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Mix the channels."""
        return self._at_every_pixel(self.linear, x)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Unmix the channels."""
        return self._at_every_pixel(self.linear.inverse, z)

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Mix the channels; no determinant is computed."""
        return self._at_every_pixel(self.linear.unnormalized, x)


@register
class Conv2d(Transform):
    r"""A convolution of ``(channels, height, width)`` with zero padding, as a linear layer.

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
        ArgumentError: If a size is not an integer >= 1, or a kernel is even.

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

    def __init__(self, channels: int, *, kernel: int | tuple[int, int] = 3) -> None:
        channels = checks.integer("Conv2d", "channels", channels, least=1)
        both = [kernel, kernel] if checks.is_integer(kernel) else kernel
        sizes = checks.integers("Conv2d", "kernel", both, least=1, length=2)
        if any(size % 2 == 0 for size in sizes):
            remedy = "for example 3 or (3, 5)"
            raise checks.fail("Conv2d", "kernel", "odd (height, width)", kernel, remedy)
        checks.elements("Conv2d", channels, channels, *sizes)
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

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Convolve."""
        with full_precision(x):
            return self._convolve(x, self.bias), self._log_det(x)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Solve for the image."""
        with full_precision(z):
            rows = (z - self.bias.reshape(-1, 1, 1)).reshape(-1, z.shape[-3:].numel())
            matrix = at_least_single(self.matrix(*z.shape[-2:]))
            x = torch.linalg.solve(matrix, at_least_single(rows).mT).mT
            return x.to(z.dtype).reshape(z.shape), -self._log_det(z)

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Convolve; no determinant is computed."""
        with full_precision(x):
            return self._convolve(x, self.bias), x.new_zeros(x.shape[:-3])
