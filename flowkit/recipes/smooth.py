"""The recipe of smooth flows on products of circles, intervals and lines."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowkit.bases import Base, ProductBase, StandardNormal, Uniform
from flowkit.conditioners import MLP, CircularEncoding, MaskedMLP, StandardizeContext
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_ends, check_network, check_sizes
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import (
    CircularSmoothMixture,
    CircularSpline,
    IntervalSpline,
    PerFeature,
    RationalQuadraticSpline,
    RealSmoothMixture,
    ScalarMap,
    SmoothMixture,
)
from flowkit.transforms import (
    CircularShift,
    Compose,
    Coupling,
    Elementwise,
    MaskedAutoregressive,
    Rescale,
    Transform,
    Unconstrain,
)

# For a circle and an interval, both [-1, 1], and for the line.
_PRODUCTS: dict[str, Callable[[int], tuple[ScalarMap, ScalarMap, ScalarMap]]] = {
    "smooth": lambda components: (
        CircularSmoothMixture(components, lower=-1.0, upper=1.0),
        SmoothMixture(components, lower=-1.0, upper=1.0),
        RealSmoothMixture(components),
    ),
    "spline": lambda components: (
        CircularSpline(components, lower=-1.0, upper=1.0),
        IntervalSpline(components, lower=-1.0, upper=1.0),
        RationalQuadraticSpline(components),
    ),
}


def _places(
    features: int, circular: Any, bounds: Any
) -> tuple[tuple[bool, ...], tuple[float, ...], tuple[float, ...]]:
    """Which features are circles, and the ends of all."""
    if circular is None or isinstance(circular, bool):
        circular = (bool(circular),) * features
    if (
        not isinstance(circular, tuple)
        or len(circular) != features
        or any(c not in (0, 1) for c in circular)
    ):
        raise ArgumentError(
            f"smooth_flow needs circular to be one boolean for each of {features} features, or "
            f"one for all, got {circular!r}"
        )
    if bounds is None:
        bounds = tuple((-math.pi, math.pi) if c else None for c in circular)
    elif isinstance(bounds, tuple) and len(bounds) == 2 and all(_is_number(b) for b in bounds):
        bounds = (bounds,) * features
    if not isinstance(bounds, tuple) or len(bounds) != features:
        raise ArgumentError(
            f"smooth_flow needs bounds to be one pair (lower, upper) or None for each of "
            f"{features} features, or one pair for all, got {bounds!r}"
        )
    ends = []
    for i, (turns, pair) in enumerate(zip(circular, bounds, strict=True)):
        if pair is None and turns:
            raise ArgumentError(
                f"smooth_flow needs bounds (lower, upper) for feature {i}, a circle; got None"
            )
        if pair is not None and not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and all(b is None or _is_number(b) for b in pair)
        ):
            raise ArgumentError(
                f"smooth_flow needs bounds of feature {i} as (lower, upper) or None, got {pair!r}"
            )
        low, high = (None, None) if pair is None else pair
        ends.append((low, high))
    lows, highs = zip(*ends, strict=True)
    lower, upper = check_ends("smooth_flow", lows, highs, features)
    for i, (turns, low, high) in enumerate(zip(circular, lower, upper, strict=True)):
        if turns and not math.isfinite(high - low):
            raise ArgumentError(
                f"smooth_flow needs finite bounds of feature {i}, a circle; got ({low}, {high})"
            )
    return tuple(bool(c) for c in circular), lower, upper


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@recipe
def smooth_flow(
    features: int,
    circular: bool | Sequence[bool] = False,
    bounds: Sequence[Any] | None = None,
    context: int = 0,
    layers: int = 4,
    structure: str = "coupling",
    scalar: str = "smooth",
    components: int = 16,
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    seed: int = 0,
) -> Flow:
    r"""Infinitely differentiable densities of products of circles, intervals and lines.

    Forces :math:`\nabla \log p` are smooth, also across the cut of a circle: for force matching,
    as potentials, and in dynamics. Circles and intervals are brought to [-1, 1] and lines to unit
    scale; bases are uniform and normal. Every layer moves each feature by the smooth mixture of
    its kind; networks read circles as cosine and sine, and circles turn between layers.

    Args:
        features: Number of features.
        circular: Which features are circles: one boolean a feature, or one for all.
        bounds: For every feature its pair (lower, upper): the period of a circle, the ends of an
            interval, the one end of a half-line beside an infinity or ``None`` (it starts with
            :class:`flowkit.transforms.Unconstrain`, and is a line from there on), or ``None`` for
            a line; one pair serves all. By default circles are :math:`[-\pi, \pi]` and everything
            else is a line.
        context: Number of context features.
        layers: Number of layers.
        structure: ``"coupling"``, where layers move one half and then the other, or
            ``"autoregressive"``.
        scalar: ``"smooth"``, or ``"spline"`` for the same flow of rational-quadratic splines,
            whose forces jump at knots.
        components: Bumps of every mixture, or bins of every spline.
        hidden: Widths of the hidden layers of every conditioner.
        activation: A smooth one; see :class:`flowkit.conditioners.Conditioner`.
        seed: Seed of the halves or orders.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Köhler, Krämer and Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351; Rezende et al.
        2020, Normalizing Flows on Tori and Spheres, arXiv 2002.02428, for circular splines.

    Example:
        >>> import torch
        >>> from flowkit import smooth_flow
        >>> flow = smooth_flow(3, circular=[True, False, False], bounds=[(0, 1), (0, 4), None])
        >>> x = torch.tensor([[0.25, 3.0, 0.1], [1.25, 3.0, 0.1]])
        >>> torch.allclose(*flow.log_prob(x))
        True
    """
    check_sizes(
        "smooth_flow", features=features, context=context, layers=layers, components=components,
        seed=seed,
    )  # fmt: skip
    check_network("smooth_flow", hidden, activation)
    choose("structure", structure, {"coupling": None, "autoregressive": None})
    if scalar == "smooth" and activation in ("elu", "relu"):
        raise ArgumentError(
            "smooth_flow needs an activation with derivatives of every order, got "
            f"{activation!r}; remedy: gelu, silu, softplus or tanh, or scalar='spline'"
        )
    around, lower, upper = _places(features, circular, bounds)
    straight = [math.isinf(b - a) for a, b in zip(lower, upper, strict=True)]
    half = [
        line and (math.isfinite(a) or math.isfinite(b))
        for line, a, b in zip(straight, lower, upper, strict=True)
    ]
    circle, interval, line = choose("scalar map", scalar, _PRODUCTS)(components)
    maps = PerFeature(
        tuple(
            circle if turns else line if free else interval
            for turns, free in zip(around, straight, strict=True)
        )
    )
    stack: list[Transform] = []
    if any(half):
        ends = (
            [end if h else open_ for h, end in zip(half, side, strict=True)]
            for side, open_ in ((lower, -math.inf), (upper, math.inf))
        )
        stack.append(Unconstrain(*ends))
    ends = (
        [open_ if s else end for s, end in zip(straight, side, strict=True)]
        for side, open_ in ((lower, -math.inf), (upper, math.inf))
    )
    stack.append(Rescale(*ends, circular=around))
    shuffled = np.random.default_rng(seed).permutation(features).tolist()
    for i in range(layers):
        if any(around):
            stack.append(CircularShift(features, lower=-1.0, upper=1.0, circular=around))
        if structure == "autoregressive":
            order = shuffled[:: -1 if i % 2 else 1]
            masked = functools.partial(
                MaskedMLP, hidden=hidden, activation=activation,
                encoding=CircularEncoding([around[j] for j in order]),
            )  # fmt: skip
            stack.append(
                MaskedAutoregressive(
                    features, maps, conditioner=masked, context=context, order=order
                )
            )
            continue
        # With one feature there is only context to read.
        moved = set(shuffled[i % 2 :: 2] if features > 1 else [0])
        read = [around[j] for j in range(features) if j not in moved]
        net = functools.partial(
            MLP, hidden=hidden, activation=activation, encoding=CircularEncoding(read)
        )  # fmt: skip
        if features == 1:
            stack.append(Elementwise(1, maps, context=context, conditioner=net))
        else:
            stack.append(
                Coupling(
                    [j in moved for j in range(features)], maps, conditioner=net, context=context
                )
            )
    if any(around):
        # Rounding may have moved a point past the cut.
        stack.append(CircularShift(features, lower=-1.0, upper=1.0, circular=around))
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), _product_base(straight), embedding=embedding)


def _product_base(straight: Sequence[bool]) -> Base:
    lines = [i for i, free in enumerate(straight) if free]
    rest = [i for i, free in enumerate(straight) if not free]
    if not lines:
        return Uniform(len(rest), lower=-1.0, upper=1.0)
    if not rest:
        return StandardNormal(len(lines))
    return ProductBase(
        (Uniform(len(rest), lower=-1.0, upper=1.0), rest), (StandardNormal(len(lines)), lines)
    )
