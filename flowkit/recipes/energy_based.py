"""The recipe of energy-based flows: layers whose determinants training does not need."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from flowkit.bases import StandardNormal
from flowkit.conditioners import MLP, ConvNet
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_flags, check_network, check_sizes
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import Affine, SmoothLeakyReLU
from flowkit.transforms import (
    ActNorm,
    Compose,
    Conv1x1,
    Conv2d,
    Coupling,
    DenseLinear,
    Elementwise,
    FactorOut,
    Logit,
    Reshape,
    Squeeze,
    Standardize,
    Transform,
)

# How far the interval of a logit reaches beyond the bounds, over its length.
_MARGIN = 1e-6


@recipe
def energy_based_flow(
    event_shape: int | Sequence[int],
    architecture: str = "dense",
    layers: int | None = None,
    scales: int | None = None,
    bounds: Sequence[float] | None = None,
    standardize: bool | None = None,
    negative_slope: float | None = None,
    kernel: int | None = None,
    hidden: Sequence[int] | None = None,
    activation: str = "silu",
) -> Flow:
    r"""A flow for training without determinants, of vectors or images.

    ``"dense"``
        Dense linear layers with smooth leaky ReLUs between; for images, of all their pixels.
    ``"conv"``
        On each of ``scales`` sizes of an image, ``layers`` times a convolution and a smooth leaky
        ReLU; the image is squeezed from one size to the next.
    ``"glow"``
        On each scale a squeeze, ``layers`` times ActNorm, a dense 1 x 1 convolution and an affine
        coupling; between two scales half of the channels leave, with a learned normal prior.
    ``"coupling"``
        ``layers`` times a dense linear layer, an affine coupling and an ActNorm, and a dense
        linear layer.

    Data between ``bounds`` are brought to the line by a logit first, others standardised; these
    first layers have nothing to learn, and :class:`flowkit.AfterPreprocessing` applies an
    objective behind them. Densities are always those of the data.

    Args:
        event_shape: Number of features, or shape of an event; ``(channels, height, width)`` for
            ``"conv"`` and ``"glow"``.
        architecture: One of the above.
        layers: Number of layers (a scale): 2, 2, 4 and 10 by default.
        scales: Number of scales of ``"conv"`` and ``"glow"``; by default 3 and 2, or as many as
            the size can be halved.
        bounds: Ends (lower, upper) of the data, such as (-0.5, 255.5) for bytes with noise;
            ``None`` for the line.
        standardize: Whether every number of an event is brought to mean 0 and variance 1; by
            default without ``bounds`` only: noise for score matching then has one size for all
            pixels, and a pixel that is seldom lit no heavy tail.
        negative_slope: Left slope of the leaky ReLU of ``"dense"`` and ``"conv"``; by default 0.3
            and 0.65.
        kernel: Side of the convolutions of ``"conv"``, odd; 7 by default.
        hidden: Widths of the networks of couplings, of ``"glow"`` and ``"coupling"``; by default
            (128, 128) and (64, 64, 64).
        activation: That of these networks; score matching needs a smooth one.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Chao et al. 2023, arXiv 2305.15267, whose defaults these are, but for the start at the
        identity; Kingma and Dhariwal 2018, Glow, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> from flowkit import energy_based_flow
        >>> flow = energy_based_flow((1, 8, 8), "conv", bounds=(0.0, 17.0))
        >>> flow.energy(torch.full((5, 1, 8, 8), 3.0)).shape
        torch.Size([5])
    """
    name = "energy_based_flow"
    shape = (event_shape,) if isinstance(event_shape, int) else event_shape
    if (
        not isinstance(shape, tuple)
        or not shape
        or any(type(n) is not int or n < 1 for n in shape)
    ):
        raise ArgumentError(f"{name} needs event_shape to be sizes >= 1, got {event_shape!r}")
    build, per_image, count, widths, slope = choose("architecture", architecture, _ARCHITECTURES)
    if per_image and len(shape) != 3:
        raise ArgumentError(
            f"{name}({architecture!r}) needs images (channels, height, width), got {shape}; "
            "remedy: 'dense' or 'coupling'"
        )
    own = {"scales": scales, "negative_slope": negative_slope, "kernel": kernel, "hidden": hidden}
    for option, value in own.items():
        if value is not None and architecture not in _READ_BY[option]:
            raise ArgumentError(
                f"{name}({architecture!r}) reads no {option}; that is for "
                f"{' and '.join(map(repr, _READ_BY[option]))}"
            )
    kernel = 7 if kernel is None else kernel
    layers = count if layers is None else layers
    hidden = widths if hidden is None else hidden
    standardize = bounds is None if standardize is None else standardize
    check_flags(name, standardize=standardize)
    check_sizes(name, layers=layers, kernel=kernel)
    check_network(name, hidden, activation)
    size = math.prod(shape)
    first: list[Transform] = [] if len(shape) == 1 else [Reshape(shape)]
    if bounds is not None:
        lower, upper = _ends(bounds)
        margin = _MARGIN * (upper - lower)
        first.append(Logit(size, lower=lower - margin, upper=upper + margin))
    if standardize:
        first.append(Standardize(size))
    if per_image:
        # Without anything between, the two reshapes would undo each other.
        first = [*first, Reshape(size, shape)] if len(first) > 1 else []
    stack = build(
        shape if per_image else (size,),
        layers=layers,
        scales=_halvings(name, shape, architecture, scales) if per_image else 1,
        scalar=SmoothLeakyReLU(slope if negative_slope is None else negative_slope),
        kernel=kernel,
        hidden=hidden,
        activation=activation,
    )
    return Flow(Compose(*first, *stack), StandardNormal(size))


def _ends(bounds: Any) -> tuple[float, float]:
    numbers = isinstance(bounds, tuple) and all(
        isinstance(b, (int, float)) and not isinstance(b, bool) for b in bounds
    )
    if not numbers or len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise ArgumentError(
            "energy_based_flow needs bounds to be two finite numbers, lower < upper, or None; got "
            f"{bounds!r}"
        )
    return float(bounds[0]), float(bounds[1])


def _halvings(name: str, shape: tuple[int, ...], architecture: str, scales: Any) -> int:
    """Number of scales: the one asked for, or as many as the size allows."""
    squeezes_first = architecture == "glow"
    possible = 0
    while shape[1] % 2 ** (possible + 1) == 0 and shape[2] % 2 ** (possible + 1) == 0:
        possible += 1
    most = possible if squeezes_first else possible + 1
    if most < 1:
        raise ArgumentError(
            f"{name}({architecture!r}) needs images that can be halved, got {shape[1]} x "
            f"{shape[2]} pixels; remedy: 'dense' or 'conv'"
        )
    if scales is None:
        scales = min(2 if squeezes_first else 3, most)
    check_sizes(name, scales=scales)
    if scales > most:
        raise ArgumentError(
            f"{name}({architecture!r}) needs scales <= {most} for {shape[1]} x {shape[2]} pixels, "
            f"which can be halved {possible} times; got {scales}"
        )
    return int(scales)


def _dense(shape: tuple[int], layers: int, scalar: SmoothLeakyReLU, **_: Any) -> list[Transform]:
    stack: list[Transform] = [DenseLinear(*shape)]
    for _i in range(layers - 1):
        stack += [Elementwise(shape[0], scalar), DenseLinear(*shape)]
    return stack


def _coupling(
    shape: tuple[int], layers: int, hidden: tuple[int, ...], activation: str, **_: Any
) -> list[Transform]:
    (size,) = shape
    if size < 2:
        raise ArgumentError(
            "energy_based_flow('coupling') needs events of 2 numbers or more, got 1 feature(s); "
            "remedy: elementwise_flow"
        )
    net = functools.partial(MLP, hidden=hidden, activation=activation)
    stack: list[Transform] = []
    for i in range(layers):
        mask = [(j + i) % 2 == 0 for j in range(size)]
        stack += [DenseLinear(size), Coupling(mask, Affine(), conditioner=net), ActNorm(size)]
    return [*stack, DenseLinear(size)]


def _conv(
    shape: tuple[int, int, int],
    layers: int,
    scales: int,
    scalar: SmoothLeakyReLU,
    kernel: int,
    **_: Any,
) -> list[Transform]:
    stack: list[Transform] = []
    for scale in range(scales):
        if scale:
            stack.append(Squeeze(shape))
            shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        for _i in range(layers):
            stack += [Conv2d(shape[0], kernel=kernel), Elementwise(shape[0], scalar, event_ndim=3)]
    return [*stack[:-1], Reshape(shape)]


def _glow(
    shape: tuple[int, int, int],
    layers: int,
    scales: int,
    hidden: tuple[int, ...],
    activation: str,
    **_: Any,
) -> list[Transform]:
    net = functools.partial(ConvNet, hidden=hidden, activation=activation)
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    half = channels // 2
    masks = itertools.cycle(
        [[i >= half for i in range(channels)], [i < half for i in range(channels)]]
    )
    stack: list[Transform] = [Squeeze(shape)]
    for _i, mask in zip(range(layers), masks, strict=False):
        stack += [
            ActNorm(channels, event_ndim=3),
            Conv1x1(channels, linear=DenseLinear),
            Coupling(mask, Affine(), conditioner=net, event_ndim=3),
        ]
    squeezed = (channels, height, width)
    if scales == 1:
        return [*stack, Reshape(squeezed)]
    rest = _glow((half, height, width), layers, scales - 1, hidden, activation)
    prior = Coupling([i >= half for i in range(channels)], Affine(), conditioner=net, event_ndim=3)
    return [*stack, prior, FactorOut(squeezed, Compose(*rest))]


_READ_BY = {
    "scales": ("conv", "glow"),
    "negative_slope": ("dense", "conv"),
    "kernel": ("conv",),
    "hidden": ("glow", "coupling"),
}
# Layers, whether of images, and the defaults of layers, hidden and negative_slope.
_ARCHITECTURES: dict[str, tuple[Callable[..., list[Transform]], bool, int, tuple[int, ...], float]]
_ARCHITECTURES = {
    "dense": (_dense, False, 2, (64, 64, 64), 0.3),
    "conv": (_conv, True, 2, (64, 64, 64), 0.65),
    "glow": (_glow, True, 4, (128, 128), 0.3),
    "coupling": (_coupling, False, 10, (64, 64, 64), 0.3),
}
