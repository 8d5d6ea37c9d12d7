"""Layers that change the shape of an event: reshaping, squeezing, and leaving channels early."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.errors import ShapeError, StochasticFlowError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.container import Container, apply_all
from flowkit.transforms.region import Region
from flowkit.transforms.volume import ConstantVolume


def _image_shape(name: str, event_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = checks.integers(name, "event_shape", event_shape, least=1, length=3)
    checks.elements(name, *shape)
    return shape[0], shape[1], shape[2]


@register
class Reshape(ConstantVolume):
    """Reshape events, their numbers in the same order; to vectors by default.

    Args:
        event_shape: Shape of one event.
        noise_shape: Shape of what it becomes, with as many numbers; a vector by default.

    Raises:
        ArgumentError: If the shapes hold different numbers of elements.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Reshape
        >>> z, log_det = Reshape((1, 4, 4))(torch.zeros(5, 1, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 16]), torch.Size([5]))
    """

    rearranges = True
    keeps_intervals = True

    def __init__(
        self, event_shape: int | Sequence[int], noise_shape: int | Sequence[int] | None = None
    ) -> None:
        event = checks.event_shape("Reshape", event_shape)
        size = math.prod(event)
        noise: tuple[int, ...] = (size,)
        if noise_shape is not None:
            noise = checks.event_shape("Reshape", noise_shape, "noise_shape")
        if math.prod(noise) != size:
            words = f"a shape of {size} numbers, as many as {event} has"
            raise checks.fail("Reshape", "noise_shape", words, noise)
        super().__init__(event, noise_shape=noise)

    def _to_noise(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.ndim - self.event_ndim], *self.noise_shape)

    def _to_data(self, z: Tensor) -> Tensor:
        return z.reshape(*z.shape[: z.ndim - self.noise_ndim], *self.event_shape)


@register
class Squeeze(ConstantVolume):
    r"""Rearrange every block of f x f pixels into :math:`f^2` channels of one pixel.

    :math:`z_{c f^2 + i f + j,\, h,\, w} = x_{c,\, f h + i,\, f w + j}`: channels for convolutions
    and couplings to mix, and half the size for the next scale.

    Args:
        event_shape: ``(channels, height, width)``.
        factor: Side f of a block.

    Raises:
        ArgumentError: If f does not divide height and width.

    References:
        Dinh et al. 2017, Real NVP, arXiv 1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Squeeze
        >>> Squeeze((3, 4, 6))(torch.zeros(5, 3, 4, 6))[0].shape
        torch.Size([5, 12, 2, 3])
    """

    rearranges = True
    keeps_intervals = True

    def __init__(self, event_shape: Sequence[int], *, factor: int = 2) -> None:
        channels, height, width = shape = _image_shape("Squeeze", event_shape)
        factor = checks.integer("Squeeze", "factor", factor, least=1)
        if height % factor or width % factor:
            words = f"a divisor of the {height} x {width} pixels"
            raise checks.fail("Squeeze", "factor", words, factor)
        super().__init__(
            shape, noise_shape=(channels * factor**2, height // factor, width // factor)
        )
        self.factor = factor

    def _to_noise(self, x: Tensor) -> Tensor:
        f = self.factor
        blocks = x.unflatten(-1, (-1, f)).unflatten(-3, (-1, f))  # c, h, i, w, j
        channels = blocks.movedim((-3, -1), (-4, -3))  # c, i, j, h, w
        return channels.flatten(-5, -3)

    def _to_data(self, z: Tensor) -> Tensor:
        f = self.factor
        channels = z.unflatten(-3, (-1, f, f))  # c, i, j, h, w
        blocks = channels.movedim((-4, -3), (-3, -1))  # c, h, i, w, j
        return blocks.flatten(-2, -1).flatten(-3, -2)


@register
class FactorOut(Container):
    r"""Factor out the later channels of an image as noise, and transform the others further.

    :math:`z = (t(x_{1..k}),\; x_{k+1..C})`, in one row: a multi-scale flow is layers, this, whose
    inner transform is a squeeze, layers, this, and so on. A :class:`Coupling` that transforms the
    later channels, right before it, is their learned prior given the earlier ones.

    Args:
        event_shape: ``(channels, height, width)``.
        transform: What maps the earlier channels; its events say how many there are. Its noise
            may have any shape.

    Raises:
        ShapeError: If the events of the inner transform are not some channels of the image.
        StochasticFlowError: If it is stochastic.

    References:
        Dinh et al. 2017, Real NVP, arXiv 1605.08803, section 3.6; Kingma and Dhariwal 2018, Glow,
        arXiv 1807.03039, for the learned prior.

    Example:
        >>> import torch
        >>> from flowkit.transforms import FactorOut, Squeeze
        >>> t = FactorOut((4, 6, 6), Squeeze((2, 6, 6)))
        >>> z, log_det = t(torch.zeros(5, 4, 6, 6))
        >>> z.shape, log_det.shape
        (torch.Size([5, 144]), torch.Size([5]))
    """

    def __init__(self, event_shape: Sequence[int], transform: Transform) -> None:
        channels, height, width = shape = _image_shape("FactorOut", event_shape)
        inner = checks.instance("FactorOut", "transform", transform, Transform).event_shape
        pixels = zip(inner[1:], shape[1:], strict=len(inner) == 3)
        fits = len(inner) == 3 and all(size in (None, own) for size, own in pixels)
        if not fits or inner[0] is None or not 1 <= inner[0] < channels:
            raise ShapeError(
                f"FactorOut expected a transform of 1 to {channels - 1} channels of {height} x "
                f"{width} pixels, got {transform.label}"
            )
        if transform.stochastic:
            raise StochasticFlowError(
                f"FactorOut holds no stochastic layer, got {transform.label}; remedy: put it "
                "before or after"
            )
        super().__init__((transform,), shape, (channels * height * width,))
        self.transform = transform
        self.inner_size = inner[0]
        changes = transform.noise_shape != inner
        self._inner_noise = transform.noise_shape if changes else (self.inner_size, height, width)

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry the part of the inner transform; the rest stays."""
        ends = [self._part(end, inverse=inverse) for end in region]
        part = Region(*(first for first, _ in ends))
        inner = self.transform.map_region(part, context, inverse=inverse)
        if inner is None:
            return None
        pairs = zip(inner, ends, strict=True)
        return Region(*(self._whole(first, rest, inverse=inverse) for first, (_, rest) in pairs))

    def _part(self, value: Tensor, *, inverse: bool) -> Mapped:
        """What the inner transform maps, and the rest; of a row for the inverse."""
        if not inverse:
            first, rest = value.split((self.inner_size, value.shape[-3] - self.inner_size), -3)
            return first, rest
        size = math.prod(self._inner_noise)  # type: ignore[arg-type]
        first, rest = value.split((size, value.shape[-1] - size), -1)
        return first.unflatten(-1, self._inner_noise), rest

    def _whole(self, first: Tensor, rest: Tensor, *, inverse: bool) -> Tensor:
        """Join what the inner transform gives with the rest."""
        # The ends of a box in the inner part may have the batch of a context.
        if inverse:
            rest = rest.unflatten(-1, (-1, *self.event_shape[1:]))
            return torch.cat([first, rest.expand(*first.shape[:-3], -1, -1, -1)], -3)
        first = first.flatten(-self.transform.noise_ndim)
        return torch.cat([first, rest.flatten(-3).expand(*first.shape[:-1], -1)], -1)

    def _run(
        self, direction: str, value: Tensor, context: Context, generator: Generator
    ) -> Mapped:
        inverse = direction == "inverse"
        part, rest = self._part(value, inverse=inverse)
        part, log_det = apply_all([self.transform], direction, part, context)
        return self._whole(part, rest, inverse=inverse), log_det

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Start the inner transform from the earlier channels."""
        self.transform.initialize(x[..., : self.inner_size, :, :], context)
