"""Flows of images and of long vectors, for training without determinants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flowkit import checks
from flowkit import transforms as ft
from flowkit.bases import StandardNormal
from flowkit.conditioners import ConvNet
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import Affine, SmoothLeakyReLU

_CONDITIONERS: dict[str, parts.Factory] = {"conv": ConvNet}


# How far the interval of a logit reaches beyond the ends, relative to its length.
_MARGIN = 1e-6


@parts.recipe
def dense_flow(
    event_shape: int | Sequence[int],
    *,
    layers: int = 2,
    lower: float | None = None,
    upper: float | None = None,
    negative_slope: float = 0.3,
    standardize: bool | None = None,
) -> Flow:
    r"""Stack full linear layers and smooth leaky ReLUs, for training without determinants.

    :math:`z = W_n\, h(\dots h(W_1 x + b_1) \dots) + b_n`. The determinants of the W are
    :math:`O(D^3)`, but constant in x: score matching (:class:`flowkit.SlicedScoreMatching`,
    :class:`flowkit.DenoisingScoreMatching`) and
    :class:`flowkit.StochasticMaximumLikelihood` never compute them. Layers start at the identity.

    Bounded data are brought to the real line by a logit first, others standardised; these first
    layers have nothing to learn, and :class:`flowkit.AfterPreprocessing` applies an objective
    behind them. Densities are always those of the data.

    Args:
        event_shape: Number of features, or shape of an event, whose numbers are then one vector.
        layers: Number of linear layers.
        lower: Lower end of all data, such as -0.5 for bytes with noise; given with ``upper``.
        upper: Upper end, such as 255.5.
        negative_slope: Left slope of the leaky ReLU.
        standardize: Whether each number of an event is brought to mean 0 and variance 1; by
            default without ends only: noise for score matching then has one size for all
            pixels, and a pixel that is seldom lit no heavy tail.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Chao et al. 2023, arXiv 2305.15267, whose defaults these are, but for the start at the
        identity.

    Example:
        >>> import torch
        >>> from flowkit import dense_flow
        >>> flow = dense_flow((1, 8, 8), lower=0, upper=17)
        >>> flow.energy(torch.full((5, 1, 8, 8), 3.0)).shape
        torch.Size([5])
    """
    name = "dense_flow"
    shape: Any = event_shape
    size, scalar = math.prod(shape), SmoothLeakyReLU(negative_slope)
    stack = _vectors(name, shape, lower, upper, standardize)
    stack.append(ft.DenseLinear(size))
    for _ in range(layers - 1):
        stack += [ft.Elementwise(size, scalar), ft.DenseLinear(size)]
    return parts.finish(stack, StandardNormal(size), 0)


@parts.recipe
def conv_flow(
    event_shape: Sequence[int],
    *,
    layers: int = 2,
    lower: float | None = None,
    upper: float | None = None,
    scales: int | None = None,
    kernel: int = 7,
    negative_slope: float = 0.65,
    standardize: bool | None = None,
) -> Flow:
    r"""Stack invertible convolutions and smooth leaky ReLUs on several scales of an image.

    On each scale, ``layers`` times a convolution :math:`h(w * x + b)`; from one scale to the next
    the image is squeezed, ``(C, H, W)`` to ``(4C, H/2, W/2)``. Layers start at the identity. Like
    :func:`dense_flow`, it is for objectives that never compute the determinants.

    Args:
        event_shape: ``(channels, height, width)``.
        layers: Number of convolutions per scale.
        lower: Lower end of all data, as in :func:`dense_flow`.
        upper: Upper end, likewise.
        scales: Number of scales; by default 3, or as many as the size can be halved for.
        kernel: Side of the convolutions, odd.
        negative_slope: Left slope of the leaky ReLU.
        standardize: See :func:`dense_flow`.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Chao et al. 2023, arXiv 2305.15267, whose defaults these are, but for the start at the
        identity.

    Example:
        >>> import torch
        >>> from flowkit import conv_flow
        >>> flow = conv_flow((1, 8, 8), lower=0, upper=17)
        >>> flow.energy(torch.full((5, 1, 8, 8), 3.0)).shape
        torch.Size([5])
    """
    name = "conv_flow"
    shape = _image(name, event_shape)
    scalar = SmoothLeakyReLU(negative_slope)
    first = _preprocessing(name, shape, lower, upper, standardize)
    stack: list[ft.Transform] = []
    for scale in range(_scales(name, shape, scales, 3, _halvings(shape) + 1)):
        if scale:
            stack.append(ft.Squeeze(shape))
            shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        for _ in range(layers):
            stack += [
                ft.Conv2d(shape[0], kernel=kernel),
                ft.Elementwise(shape[0], scalar, event_ndim=3),
            ]
    stack = [*first, *stack[:-1], ft.Reshape(shape)]
    return parts.finish(stack, StandardNormal(math.prod(shape)), 0)


@parts.recipe
def glow_flow(
    event_shape: Sequence[int],
    *,
    layers: int = 4,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    conditioner: str | Callable[..., nn.Module] = "conv",
    lower: float | None = None,
    upper: float | None = None,
    scales: int | None = None,
    standardize: bool | None = None,
    seed: int | None = None,
) -> Flow:
    r"""Stack affine couplings and 1 x 1 convolutions on several scales of an image: Glow.

    On each scale a squeeze, ``(C, H, W)`` to ``(4C, H/2, W/2)``, then ``layers`` times ActNorm, a
    full 1 x 1 convolution and an affine coupling; between two scales half of the channels leave,
    with a normal prior learned from the rest.

    Args:
        event_shape: ``(channels, height, width)``, with an even height and width.
        layers: Number of couplings per scale.
        hidden: Channels of the hidden layers of each network; (128, 128) by default.
        activation: Activation of each network, ``"silu"`` by default; score matching needs a
            smooth one.
        conditioner: The network of images: ``"conv"``, or a factory as for :func:`coupling_flow`.
        lower: Lower end of all data, as in :func:`dense_flow`.
        upper: Upper end, likewise.
        scales: Number of scales; by default 2, or 1 if the size can be halved only once.
        standardize: See :func:`dense_flow`.
        seed: Seed of the initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Kingma and Dhariwal 2018, Glow, arXiv 1807.03039; Chao et al. 2023, arXiv 2305.15267.

    Example:
        >>> import torch
        >>> from flowkit import glow_flow
        >>> flow = glow_flow((1, 8, 8), layers=1, hidden=(8,), lower=0, upper=17)
        >>> flow.log_prob(torch.full((5, 1, 8, 8), 3.0)).shape
        torch.Size([5])
    """
    name = "glow_flow"
    shape = _image(name, event_shape)
    net = parts.network(name, conditioner, _CONDITIONERS, hidden, activation)
    possible = _halvings(shape)
    if not possible:
        words, remedy = "images that can be halved", "dense_flow or conv_flow"
        raise checks.fail(name, "event_shape", words, shape, remedy)
    count = _scales(name, shape, scales, 2, possible)
    first = _preprocessing(name, shape, lower, upper, standardize)
    stack = [*first, *_glow(shape, layers, count, net)]
    return parts.finish(stack, StandardNormal(math.prod(shape)), 0)


def _glow(
    shape: tuple[int, ...], layers: int, scales: int, net: parts.Factory
) -> list[ft.Transform]:
    """The layers of this scale, and within a :class:`FactorOut` those of the rest."""
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    half = channels // 2
    second = [i >= half for i in range(channels)]
    stack: list[ft.Transform] = [ft.Squeeze(shape)]
    for layer in range(layers):
        mask = second if layer % 2 == 0 else [not m for m in second]
        stack += [
            ft.ActNorm(channels, event_ndim=3),
            ft.Conv1x1(channels, linear=ft.DenseLinear),
            ft.Coupling(mask, Affine(), conditioner=net, event_ndim=3),
        ]
    squeezed = (channels, height, width)
    if scales == 1:
        return [*stack, ft.Reshape(squeezed)]
    rest = _glow((half, height, width), layers, scales - 1, net)
    prior = ft.Coupling(second, Affine(), conditioner=net, event_ndim=3)
    return [*stack, prior, ft.FactorOut(squeezed, ft.Compose(*rest))]


def _image(owner: str, shape: Any) -> tuple[int, ...]:
    if len(shape) != 3:
        words, remedy = "an image (channels, height, width)", "dense_flow"
        raise checks.fail(owner, "event_shape", words, shape, remedy)
    return tuple(shape)


def _vectors(
    owner: str, shape: tuple[int, ...], lower: Any, upper: Any, standardize: Any
) -> list[ft.Transform]:
    """The first layers, without parameters: to a vector, to the real line, to unit variance."""
    first: list[ft.Transform] = [] if len(shape) == 1 else [ft.Reshape(shape)]
    (low,), (high,) = checks.bounds(owner, lower, upper, 1)
    bounded = math.isfinite(low)
    if bounded != math.isfinite(high):
        raise ArgumentError(
            f"{owner} expected both lower and upper, or neither, got {lower!r} and {upper!r}"
        )
    if bounded:
        margin = _MARGIN * (high - low)
        first.append(ft.Logit(math.prod(shape), lower=low - margin, upper=high + margin))
    if checks.flag(owner, "standardize", not bounded if standardize is None else standardize):
        first.append(ft.Standardize(math.prod(shape)))
    return first


def _preprocessing(
    owner: str, shape: tuple[int, ...], lower: Any, upper: Any, standardize: Any
) -> list[ft.Transform]:
    """The first layers of vectors, between two reshapes; none if they would undo each other."""
    first = _vectors(owner, shape, lower, upper, standardize)
    return [*first, ft.Reshape(math.prod(shape), shape)] if len(first) > 1 else []


def _halvings(shape: tuple[int, ...]) -> int:
    """How many times height and width can both be halved."""
    common = math.gcd(shape[1], shape[2])
    return (common & -common).bit_length() - 1


def _scales(owner: str, shape: tuple[int, ...], given: Any, default: int, most: int) -> int:
    """The number of scales asked for, or as many up to the default as the size allows."""
    if given is None:
        return min(default, most)
    remedy = f"{shape[1]} x {shape[2]} pixels can be halved {_halvings(shape)} times"
    return checks.integer(owner, "scales", given, least=1, most=most, remedy=remedy)
