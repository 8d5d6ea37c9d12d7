"""Layers that change the shape of an event: reshaping, squeezing, and leaving channels early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit import checks
from flowkit.config import register
from flowkit.errors import ShapeError, StochasticFlowError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.region import Region


def _image_shape(name: str, event_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = checks.integers(name, "event_shape", event_shape, least=1, length=3)
    checks.elements(name, *shape)
    return shape[0], shape[1], shape[2]


@register
class Reshape(Transform):
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

    constant_log_det = True
    reshapes = True
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

    @staticmethod
    def _to(value: Tensor, old: int, shape: tuple[int | None, ...]) -> Mapped:
        batch = value.shape[: value.ndim - old]
        return value.reshape(*batch, *shape), value.new_zeros(batch)

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Reshape."""
        return self._to(x, self.event_ndim, self.noise_shape)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Restore the shape."""
        return self._to(z, self.noise_ndim, self.event_shape)


@register
class Squeeze(Transform):
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

    constant_log_det = True
    reshapes = True
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

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Make channels of blocks."""
        f = self.factor
        blocks = x.unflatten(-1, (-1, f)).unflatten(-3, (-1, f))  # c, h, i, w, j
        channels = blocks.movedim((-3, -1), (-4, -3))  # c, i, j, h, w
        return channels.flatten(-5, -3), x.new_zeros(x.shape[:-3])

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Make blocks of channels."""
        f = self.factor
        channels = z.unflatten(-3, (-1, f, f))  # c, i, j, h, w
        blocks = channels.movedim((-4, -3), (-3, -1))  # c, h, i, w, j
        return blocks.flatten(-2, -1).flatten(-3, -2), z.new_zeros(z.shape[:-3])


@register
class FactorOut(Transform):
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
        if (
            len(inner) != 3
            or inner[0] is None
            or not 1 <= inner[0] < channels
            or inner[1] not in (None, height)
            or inner[2] not in (None, width)
        ):
            raise ShapeError(
                f"FactorOut expected a transform of 1 to {channels - 1} channels of {height} x "
                f"{width} pixels, got {transform.label}"
            )
        if transform.stochastic:
            raise StochasticFlowError(
                f"FactorOut holds no stochastic layer, got {transform.label}; remedy: put it "
                "before or after"
            )
        super().__init__(
            shape, context=transform.context_size, noise_shape=(channels * height * width,)
        )
        self.transform = transform
        self.needs_context = transform.needs_context
        self.constant_log_det = transform.constant_log_det
        self.inner_size = inner[0]
        changes = transform.noise_shape != inner
        self._inner_noise = transform.noise_shape if changes else (self.inner_size, height, width)

    @property
    def codomain(self) -> constraints.Constraint:
        """The whole space."""
        return constraints.independent(constraints.real, 1)

    @property
    def restricts(self) -> bool:
        """Whether the inner transform does."""
        return self.transform.restricts

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry the part of the inner transform; the rest stays."""
        ends = [self._part(end, inverse=inverse) for end in region]
        (first_low, rest_low), (first_high, rest_high) = ends
        inner = self.transform.map_region(Region(first_low, first_high), context, inverse=inverse)
        if inner is None:
            return None
        # The ends of the inner part may have the batch of a context.
        inner_ndim, rest_ndim = (3, 1) if inverse else (self.transform.noise_ndim, 3)
        batch = inner.lower.shape[: inner.lower.ndim - inner_ndim]
        lower, upper = (
            self._whole(first, rest.expand(*batch, *rest.shape[-rest_ndim:]), inverse=inverse)
            for first, rest in ((inner.lower, rest_low), (inner.upper, rest_high))
        )
        return Region(lower, upper)

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
        if not inverse:
            first = first.flatten(-self.transform.noise_ndim)
            return torch.cat([first, rest.flatten(-3)], -1)
        _, height, width = self.event_shape
        return torch.cat([first, rest.unflatten(-1, (-1, height, width))], -3)

    def _inner(self, direction: str, value: Tensor, context: Context) -> Mapped:
        apply: Any = (
            self.transform if direction == "forward" else getattr(self.transform, direction)
        )
        return apply(value, context, _fits=True)

    def _map(self, x: Tensor, context: Context, name: str) -> Mapped:
        first, rest = self._part(x, inverse=False)
        z, log_det = self._inner(name, first, context)
        return self._whole(z, rest, inverse=False), log_det

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map the earlier channels, and put the later ones behind them."""
        return self._map(x, context, "forward")

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """The same without the constant part of the log-determinant."""
        return self._map(x, context, "unnormalized")

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map the earlier channels back, and join them with the later ones."""
        first, rest = self._part(z, inverse=True)
        x, log_det = self._inner("inverse", first, context)
        return self._whole(x, rest, inverse=True), log_det

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Start the inner transform from the earlier channels."""
        self.transform.initialize(x[..., : self.inner_size, :, :], context)
