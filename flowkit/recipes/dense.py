"""Flows of dense linear layers, for training without determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flowkit import checks
from flowkit.bases import StandardNormal
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import SmoothLeakyReLU
from flowkit.transforms import DenseLinear, Elementwise, Logit, Reshape, Standardize, Transform

# How far the interval of a logit reaches beyond the ends, relative to its length.
_MARGIN = 1e-6


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
    shape = checks.event_shape(name, event_shape)
    layers = checks.integer(name, "layers", layers, least=1, most=parts.MAX_LAYERS)
    slope = checks.number(name, "negative_slope", negative_slope, above=0, below=1)
    scalar = SmoothLeakyReLU(slope)
    size = math.prod(shape)
    stack: list[Transform] = [DenseLinear(size)]
    for _ in range(layers - 1):
        stack += [Elementwise(size, scalar), DenseLinear(size)]
    first = preprocessing(name, shape, lower, upper, standardize)
    return parts.finish([*first, *stack], StandardNormal(size), 0)


def preprocessing(
    owner: str, shape: tuple[int, ...], lower: Any, upper: Any, standardize: Any
) -> list[Transform]:
    """The first layers, without parameters: to a vector, to the real line, to unit variance."""
    if standardize is None:
        standardize = lower is None and upper is None
    size = math.prod(shape)
    first: list[Transform] = [] if len(shape) == 1 else [Reshape(shape)]
    if lower is not None or upper is not None:
        if lower is None or upper is None:
            raise ArgumentError(
                f"{owner} expected both lower and upper, or neither, got {lower!r} and {upper!r}"
            )
        low = checks.number(owner, "lower", lower)
        high = checks.number(owner, "upper", upper)
        if not low < high:
            raise ArgumentError(f"{owner} expected lower < upper, got {low} and {high}")
        margin = _MARGIN * (high - low)
        first.append(Logit(size, lower=low - margin, upper=high + margin))
    if checks.flag(owner, "standardize", standardize):
        first.append(Standardize(size))
    return first
