"""Convolutions of images: a linear layer at every pixel, and kernels with zero padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.container import Container
from flowkit.transforms.linear import LULinear
from flowkit.transforms.volume import ConstantVolume, at_least_single, solve_events


@register
class Conv1x1(Container):
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

    def __init__(self, channels: int, *, linear: Callable[[int], Transform] = LULinear) -> None:
        channels = checks.integer("Conv1x1", "channels", channels, least=1)
        checks.function("Conv1x1", "linear", linear)
        made = checks.instance("Conv1x1", "linear", linear(channels), Transform)
        super().__init__((made,), (channels, None, None))
        self.linear = made

    def _run(
        self, direction: str, value: Tensor, context: Context, generator: Generator
    ) -> Mapped:
        call = self.linear if direction == "forward" else getattr(self.linear, direction)
        out, log_det = call(value.movedim(-3, -1))
        return out.movedim(-1, -3), log_det.sum((-2, -1))


@register
class Conv2d(ConstantVolume):
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
        return torch.linalg.slogdet(matrix)[1].to(x.dtype)

    def _to_noise(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.bias)

    def _to_data(self, z: Tensor) -> Tensor:
        matrix = at_least_single(self.matrix(*z.shape[-2:]))
        solve = partial(torch.linalg.solve, matrix)
        return solve_events(solve, z - self.bias.reshape(-1, 1, 1), 3)
