"""The recipes of flowkit: layers, conditioners and bases put together under the field's names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from flowkit.bases import (
    Base,
    Logistic,
    NormalMixture,
    Product,
    StandardNormal,
    StudentT,
    Uniform,
)
from flowkit.conditioners import (
    ACTIVATIONS,
    MLP,
    AutoregressiveConditioner,
    CircularFeatures,
    CircularMaskedMLP,
    FourierMaskedMLP,
    MaskedMLP,
    ResidualMLP,
    StandardizeContext,
)
from flowkit.errors import RecipeError
from flowkit.flow import Flow
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import (
    Affine,
    CircularSmoothMixture,
    CircularSpline,
    IntervalSpline,
    LineSmoothMixture,
    LogisticMixture,
    PerFeature,
    RationalQuadraticSpline,
    ScalarMap,
    SmoothMixture,
)
from flowkit.transforms import (
    Box,
    Chart,
    CircularShift,
    Compose,
    Coupling,
    Elementwise,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Standardize,
    Transform,
)

_SCALARS: dict[str, Callable[[], ScalarMap]] = {
    "affine": Affine,
    "mixture": LogisticMixture,
    "smooth": LineSmoothMixture,
    "spline": RationalQuadraticSpline,
}
# For a circle and an interval, both [-1, 1], and for the line.
_PRODUCTS: dict[str, Callable[[int], tuple[ScalarMap, ScalarMap, ScalarMap]]] = {
    "smooth": lambda components: (
        CircularSmoothMixture(components, lower=-1.0, upper=1.0),
        SmoothMixture(components, lower=-1.0, upper=1.0),
        LineSmoothMixture(components),
    ),
    "spline": lambda components: (
        CircularSpline(components, lower=-1.0, upper=1.0),
        IntervalSpline(components, lower=-1.0, upper=1.0),
        RationalQuadraticSpline(components),
    ),
}
_BASES: dict[str, Callable[[int], Base]] = {
    "logistic": Logistic,
    "mixture": NormalMixture,
    "normal": StandardNormal,
    "student_t": StudentT,
}
_CONDITIONERS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "residual": ResidualMLP}
_LINEARS: dict[str, Callable[[int], Transform]] = {
    "lu": LULinear,
    "orthogonal": OrthogonalLinear,
}


def _scalar(scalar: str | ScalarMap) -> ScalarMap:
    return scalar if isinstance(scalar, ScalarMap) else choose("scalar map", scalar, _SCALARS)()


def _check_sizes(name: str, **sizes: Any) -> None:
    for what, value in sizes.items():
        least = 0 if what in ("context", "seed", "waves") else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecipeError(
                f"{name} needs {what} to be a whole number >= {least}, got {value!r}"
            )


def _check_network(name: str, hidden: Any, activation: Any) -> None:
    choose("activation", activation, ACTIVATIONS)
    widths = hidden if isinstance(hidden, tuple) else ()
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise RecipeError(
            f"{name} needs hidden to be the widths of the hidden layers, at least one and each a "
            f"whole number >= 1, got {hidden!r}; remedy: for example hidden=(64, 64)"
        )


def _mixing(linear: str | None, features: int, seed: int) -> list[Transform]:
    """What stands before a layer so that every feature gets its turn."""
    if linear is None:
        return []
    layer = choose("linear layer", linear, _LINEARS | {"permutation": None})
    if features == 1:
        return []
    permutation = Permutation.random(features, seed)
    return [permutation] if layer is None else [permutation, layer(features)]


def _finish(
    name: str, layers: list[Transform], features: int, context: int, base: str, standardize: bool
) -> Flow:
    if not isinstance(standardize, bool):
        raise RecipeError(f"{name} needs standardize to be True or False, got {standardize!r}")
    first: list[Transform] = [Standardize(features)] if standardize else []
    embedding = StandardizeContext(context) if context and standardize else None
    return Flow(
        Compose(*first, *layers), choose("base", base, _BASES)(features), embedding=embedding
    )


@recipe
def coupling_flow(
    features: int,
    context: int = 0,
    layers: int = 8,
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    linear: str | None = "lu",
    base: str = "normal",
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    """A stack of coupling layers: fast in both directions. With splines, a neural spline flow.

    Args:
        features: Number of features D.
        context: Number of context features.
        layers: Number of coupling layers.
        scalar: ``"spline"``, ``"affine"`` (Real NVP), ``"mixture"``, or a scalar map.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        conditioner: ``"mlp"``, ``"residual"``, or a factory
            ``(in_features, out_features, context=...) -> nn.Module``, which ignores ``hidden`` and
            ``activation`` and cannot be saved by name.
        linear: What mixes the features between layers: ``"lu"``, ``"orthogonal"``,
            ``"permutation"``, or ``None``, where the two halves take turns.
        base: ``"normal"``, ``"student_t"``, ``"logistic"`` or ``"mixture"``.
        standardize: Whether the flow starts with a :class:`flowkit.transforms.Standardize`, set
            from the data by ``fit``.
        seed: Seed of the permutations.

    Raises:
        RecipeError: If an argument is out of its range or unknown.

    References:
        Dinh et al. 2017, arXiv 1605.08803; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> coupling_flow(features=3, layers=2).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    _check_sizes("coupling_flow", features=features, context=context, layers=layers, seed=seed)
    _check_network("coupling_flow", hidden, activation)
    chosen = _scalar(scalar)
    factory = conditioner
    if isinstance(conditioner, str):
        factory = functools.partial(
            choose("conditioner", conditioner, _CONDITIONERS),
            hidden=hidden,
            activation=activation,
        )
    stack: list[Transform] = []
    for i in range(layers):
        stack += _mixing(linear, features, seed + i)
        if features == 1:
            stack.append(Elementwise(1, chosen, context, factory))  # type: ignore[arg-type]
            continue
        swap = linear is None and i % 2 == 1
        mask = [(j < features // 2) == swap for j in range(features)]
        stack.append(Coupling(mask, chosen, factory, context))  # type: ignore[arg-type]
    return _finish("coupling_flow", stack, features, context, base, standardize)


@recipe
def autoregressive_flow(
    features: int,
    context: int = 0,
    layers: int = 5,
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    linear: str | None = "lu",
    base: str = "normal",
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    """A stack of masked autoregressive layers: the best fit a layer, sampled feature by feature.

    With ``scalar="affine"`` a masked autoregressive flow (MAF), with splines an autoregressive
    neural spline flow. ``linear=None`` reverses the order in every second layer; see
    :func:`coupling_flow` for the other arguments.

    Raises:
        RecipeError: If an argument is out of its range or unknown.

    References:
        Papamakarios et al. 2017, arXiv 1705.07057; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import autoregressive_flow
        >>> autoregressive_flow(features=3, layers=2).sample(5).shape
        torch.Size([5, 3])
    """
    _check_sizes(
        "autoregressive_flow", features=features, context=context, layers=layers, seed=seed
    )
    _check_network("autoregressive_flow", hidden, activation)
    chosen = _scalar(scalar)
    factory = functools.partial(MaskedMLP, hidden=hidden, activation=activation)
    stack: list[Transform] = []
    for i in range(layers):
        stack += _mixing(linear, features, seed + i)
        order = list(range(features))[::-1] if linear is None and i % 2 == 1 else None
        stack.append(MaskedAutoregressive(features, chosen, factory, context, order))
    return _finish("autoregressive_flow", stack, features, context, base, standardize)


@recipe
def elementwise_flow(
    features: int,
    context: int = 0,
    layers: int = 1,
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    base: str = "normal",
    standardize: bool = True,
) -> Flow:
    """Independent features, each with its own monotone map: margins without dependence.

    With context the maps depend on it, which for one feature is conditional density estimation.
    Each layer is an affine map and the scalar map; see :func:`coupling_flow` for the arguments.

    Raises:
        RecipeError: If an argument is out of its range or unknown.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> flow = elementwise_flow(features=1)
        >>> flow.cdf(torch.zeros(1, 1)).detach().round(decimals=4)
        tensor([0.5000])
    """
    _check_sizes("elementwise_flow", features=features, context=context, layers=layers)
    _check_network("elementwise_flow", hidden, activation)
    chosen = _scalar(scalar)
    factory = functools.partial(MLP, hidden=hidden, activation=activation)
    stack: list[Transform] = []
    for _ in range(layers):
        stack.append(Elementwise(features, Affine(), context, factory))
        stack.append(Elementwise(features, chosen, context, factory))
    return _finish("elementwise_flow", stack, features, context, base, standardize)


def _sides(lower: Any, upper: Any, features: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper ends of a box, one a feature."""
    listed = [ends for ends in (lower, upper) if isinstance(ends, tuple)]
    if features is None:
        if not listed:
            raise RecipeError(
                f"box_flow got one number for each end, lower={lower!r} and upper={upper!r}, and "
                "cannot know for how many features; remedy: lists with one end a feature, or "
                "features=..."
            )
        features = len(listed[0])
    _check_sizes("box_flow", features=features)
    for ends in listed:
        if len(ends) != features:
            raise RecipeError(
                "box_flow needs one lower and one upper end for each feature; it got "
                f"{len(ends)} for {features} feature(s)"
            )
    lower, upper = (
        ends if isinstance(ends, tuple) else (ends,) * features for ends in (lower, upper)
    )
    return lower, upper


@recipe
def box_flow(
    lower: float | Sequence[float],
    upper: float | Sequence[float],
    features: int | None = None,
    context: int = 0,
    layers: int = 1,
    bins: int = 16,
    hidden: Sequence[int] = (256, 256),
    activation: str = "relu",
    waves: int = 0,
    highest: float = 40.0,
    order: Sequence[int] | None = None,
    seed: int = 0,
) -> Flow:
    """Autoregressive splines of a box onto itself over a uniform base: sharp ends, none outside.

    For pixels, proportions, ranks and other bounded data. Every second layer reverses the order.

    Args:
        lower: Lower ends of the box, one a feature, or one number for all features.
        upper: Upper ends, likewise.
        features: Number of features; needed only where both ends are one number.
        context: Number of context features.
        layers: Number of autoregressive layers.
        bins: Bins of every spline.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        waves: If not 0, conditioners also read this many waves a feature, which resolve fine
            detail in few dimensions: see :class:`flowkit.conditioners.FourierMaskedMLP`.
        highest: Largest frequency of the waves, in radians a half side of the box.
        order: Order of the features in the first layer, the first one first; natural by default.
        seed: Seed of the waves.

    Raises:
        RecipeError: If an argument is out of its range or unknown.

    References:
        Durkan et al. 2019, arXiv 1906.04032; Tancik et al. 2020, arXiv 2006.10739.

    Example:
        >>> import torch
        >>> from flowkit import box_flow
        >>> flow = box_flow(lower=[0, 0], upper=[1, 2])
        >>> flow.log_prob(torch.tensor([[0.5, 1.5], [0.5, 2.5]])).detach()
        tensor([-0.6931,    -inf])
    """
    lower, upper = _sides(lower, upper, features)
    features = len(lower)
    _check_sizes("box_flow", context=context, layers=layers, bins=bins, waves=waves, seed=seed)
    _check_network("box_flow", hidden, activation)
    # Least bins twenty times smaller than a spline's default: on a box, detail can be fine.
    scalar = IntervalSpline(bins=bins, min_size=0.004, lower=-1.0, upper=1.0)
    first = list(range(features)) if order is None else order
    stack: list[Transform] = [Box(lower, upper)]
    for i in range(layers):
        factory: Callable[..., AutoregressiveConditioner] = functools.partial(
            MaskedMLP, hidden=hidden, activation=activation
        )
        if waves:
            factory = functools.partial(
                FourierMaskedMLP, hidden=hidden, activation=activation, waves=waves,
                highest=highest, seed=seed + i,
            )  # fmt: skip
        turned = first[::-1] if i % 2 else first
        stack.append(MaskedAutoregressive(features, scalar, factory, context, turned))
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), Uniform(features, -1.0, 1.0), embedding=embedding)


def _places(
    features: int, circular: Any, bounds: Any
) -> tuple[tuple[bool, ...], tuple[float, ...], tuple[float, ...]]:
    """Which features are circles, and the ends of all."""
    if circular is None or isinstance(circular, bool):
        circular = (bool(circular),) * features
    if not isinstance(circular, tuple) or len(circular) != features:
        raise RecipeError(
            f"smooth_flow needs circular to be one boolean for each of {features} features, or "
            f"one for all, got {circular!r}"
        )
    if bounds is None:
        bounds = tuple((-math.pi, math.pi) if c else None for c in circular)
    elif isinstance(bounds, tuple) and len(bounds) == 2 and all(_is_number(b) for b in bounds):
        bounds = (bounds,) * features
    if not isinstance(bounds, tuple) or len(bounds) != features:
        raise RecipeError(
            f"smooth_flow needs bounds to be one pair (lower, upper) or None for each of "
            f"{features} features, or one pair for all, got {bounds!r}"
        )
    ends = []
    for i, (turns, pair) in enumerate(zip(circular, bounds, strict=True)):
        if pair is None and turns:
            raise RecipeError(
                f"smooth_flow needs bounds (lower, upper) for feature {i}, a circle; got None"
            )
        if pair is not None and not (
            isinstance(pair, tuple) and len(pair) == 2 and all(_is_number(b) for b in pair)
        ):
            raise RecipeError(
                f"smooth_flow needs bounds of feature {i} as (lower, upper) or None, got {pair!r}"
            )
        ends.append((-math.inf, math.inf) if pair is None else (float(pair[0]), float(pair[1])))
    lower, upper = zip(*ends, strict=True)
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
            interval, or ``None`` for a line; one pair serves all. By default circles are
            :math:`[-\pi, \pi]` and everything else is a line.
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
        RecipeError: If an argument is out of its range or unknown.

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
    _check_sizes(
        "smooth_flow", features=features, context=context, layers=layers, components=components,
        seed=seed,
    )  # fmt: skip
    _check_network("smooth_flow", hidden, activation)
    if structure not in ("coupling", "autoregressive"):
        raise RecipeError(f"unknown structure {structure!r}; choose from autoregressive, coupling")
    around, lower, upper = _places(features, circular, bounds)
    straight = [math.isinf(a) for a in lower]
    circle, interval, line = choose("scalar map", scalar, _PRODUCTS)(components)
    maps = PerFeature(
        tuple(
            circle if turns else line if free else interval
            for turns, free in zip(around, straight, strict=True)
        )
    )
    stack: list[Transform] = [Chart(around, lower, upper)]
    shuffled = np.random.default_rng(seed).permutation(features).tolist()
    for i in range(layers):
        if any(around):
            stack.append(CircularShift(features, -1.0, 1.0, around))
        if structure == "autoregressive":
            order = shuffled[:: -1 if i % 2 else 1]
            masked = functools.partial(
                CircularMaskedMLP, hidden=hidden, activation=activation,
                circular=[around[j] for j in order],
            )  # fmt: skip
            stack.append(MaskedAutoregressive(features, maps, masked, context, order))
            continue
        # With one feature there is only context to read.
        moved = set(shuffled[i % 2 :: 2] if features > 1 else [0])
        read = [around[j] for j in range(features) if j not in moved]
        net = functools.partial(
            CircularFeatures, circular=read,
            conditioner=functools.partial(MLP, hidden=hidden, activation=activation),
        )  # fmt: skip
        if features == 1:
            stack.append(Elementwise(1, maps, context, net))
        else:
            stack.append(Coupling([j in moved for j in range(features)], maps, net, context))
    if any(around):
        # Rounding may have moved a point past the cut.
        stack.append(CircularShift(features, -1.0, 1.0, around))
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), _product_base(straight), embedding=embedding)


def _product_base(straight: Sequence[bool]) -> Base:
    lines = [i for i, free in enumerate(straight) if free]
    rest = [i for i, free in enumerate(straight) if not free]
    if not lines:
        return Uniform(len(rest), -1.0, 1.0)
    if not rest:
        return StandardNormal(len(lines))
    return Product((Uniform(len(rest), -1.0, 1.0), rest), (StandardNormal(len(lines)), lines))
