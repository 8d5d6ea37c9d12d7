"""The recipes of flowkit: layers, conditioners and bases put together under the field's names."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flowkit.bases import Base, Logistic, NormalMixture, StandardNormal, StudentT, Uniform
from flowkit.conditioners import (
    MLP,
    AutoregressiveConditioner,
    FourierEncoding,
    MaskedMLP,
    ResidualMLP,
    StandardizeContext,
)
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_ends, check_flags, check_network, check_sizes
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import (
    Affine,
    IntervalSpline,
    LogisticMixture,
    RationalQuadraticSpline,
    RealSmoothMixture,
    ScalarMap,
)
from flowkit.transforms import (
    Compose,
    Coupling,
    Elementwise,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Rescale,
    Standardize,
    Transform,
    Unconstrain,
)

_SCALARS: dict[str, Callable[[], ScalarMap]] = {
    "affine": Affine,
    "mixture": LogisticMixture,
    "smooth": RealSmoothMixture,
    "spline": RationalQuadraticSpline,
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


def named_scalar(scalar: str | ScalarMap) -> ScalarMap:
    """A scalar map as it is, or the one of this name."""
    return scalar if isinstance(scalar, ScalarMap) else choose("scalar map", scalar, _SCALARS)()


def mixing(linear: str | None, features: int, seed: int) -> list[Transform]:
    """What stands before a layer so that every feature gets its turn."""
    if linear is None:
        return []
    layer = choose("linear layer", linear, _LINEARS | {"permutation": None})
    if features == 1:
        return []
    permutation = Permutation.random(features, seed=seed)
    return [permutation] if layer is None else [permutation, layer(features)]


def half(features: int, linear: str | None, layer: int) -> list[bool]:
    """The second half moves; the first in its turn, where nothing mixes them."""
    swap = linear is None and layer % 2 == 1
    return [(j < features // 2) == swap for j in range(features)]


def unconstrained(name: str, features: int, lower: Any, upper: Any) -> list[Transform]:
    """What a flow of bounded features starts with; nothing if no feature has an end."""
    lows, highs = check_ends(name, lower, upper, features)
    bounded = any(map(math.isfinite, (*lows, *highs)))
    return [Unconstrain(lows, highs)] if bounded else []


def _finish(
    name: str,
    first: list[Transform],
    layers: list[Transform],
    features: int,
    context: int,
    base: str,
    standardize: bool,
) -> Flow:
    check_flags(name, standardize=standardize)
    first = [*first, Standardize(features)] if standardize else first
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
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
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
            ``"permutation"``, or ``None``, where the two halves alternate.
        base: ``"normal"``, ``"student_t"``, ``"logistic"`` or ``"mixture"``.
        lower: Where the data begin: a number, or one for each feature, ``None`` or ``-inf`` where
            there is no such end. ``lower=0`` is for positive data. See
            :class:`flowkit.transforms.Unconstrain`, with which the flow then starts.
        upper: Where they end, likewise.
        standardize: Whether the flow starts with a :class:`flowkit.transforms.Standardize` (after
            an ``Unconstrain``), set from the data by ``fit``.
        seed: Seed of the permutations.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Dinh et al. 2017, arXiv 1605.08803; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> coupling_flow(features=3, layers=2).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    check_sizes("coupling_flow", features=features, context=context, layers=layers, seed=seed)
    check_network("coupling_flow", hidden, activation)
    chosen = named_scalar(scalar)
    factory = conditioner
    if isinstance(conditioner, str):
        factory = functools.partial(
            choose("conditioner", conditioner, _CONDITIONERS),
            hidden=hidden,
            activation=activation,
        )
    stack: list[Transform] = []
    for i in range(layers):
        stack += mixing(linear, features, seed + i)
        if features == 1:
            stack.append(Elementwise(1, chosen, context=context, conditioner=factory))  # type: ignore[arg-type]
            continue
        mask = half(features, linear, i)
        stack.append(Coupling(mask, chosen, conditioner=factory, context=context))  # type: ignore[arg-type]
    first = unconstrained("coupling_flow", features, lower, upper)
    return _finish("coupling_flow", first, stack, features, context, base, standardize)


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
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    """A stack of masked autoregressive layers: the best fit per layer, sampled feature by feature.

    With ``scalar="affine"`` a masked autoregressive flow (MAF), with splines an autoregressive
    neural spline flow. ``linear=None`` reverses the order in every second layer; see
    :func:`coupling_flow` for the other arguments.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Papamakarios et al. 2017, arXiv 1705.07057; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import autoregressive_flow
        >>> autoregressive_flow(features=3, layers=2).sample(5).shape
        torch.Size([5, 3])
    """
    check_sizes(
        "autoregressive_flow", features=features, context=context, layers=layers, seed=seed
    )
    check_network("autoregressive_flow", hidden, activation)
    chosen = named_scalar(scalar)
    factory = functools.partial(MaskedMLP, hidden=hidden, activation=activation)
    stack: list[Transform] = []
    for i in range(layers):
        stack += mixing(linear, features, seed + i)
        order = list(range(features))[::-1] if linear is None and i % 2 == 1 else None
        stack.append(
            MaskedAutoregressive(
                features, chosen, conditioner=factory, context=context, order=order
            )
        )
    first = unconstrained("autoregressive_flow", features, lower, upper)
    return _finish("autoregressive_flow", first, stack, features, context, base, standardize)


@recipe
def elementwise_flow(
    features: int,
    context: int = 0,
    layers: int = 1,
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (128, 128),
    activation: str = "silu",
    base: str = "normal",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    standardize: bool = True,
) -> Flow:
    """Independent features, each with its own monotone map: margins without dependence.

    With context the maps depend on it, which for one feature is conditional density estimation.
    Without context there are no networks, and ``hidden`` and ``activation`` play no part. Each
    layer is an affine map and the scalar map; see :func:`coupling_flow` for the arguments.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> flow = elementwise_flow(features=1)
        >>> flow.cdf(torch.zeros(1, 1)).detach().round(decimals=4)
        tensor([0.5000])
    """
    check_sizes("elementwise_flow", features=features, context=context, layers=layers)
    check_network("elementwise_flow", hidden, activation)
    chosen = named_scalar(scalar)
    factory = functools.partial(MLP, hidden=hidden, activation=activation)
    stack: list[Transform] = []
    for _ in range(layers):
        stack.append(Elementwise(features, Affine(), context=context, conditioner=factory))
        stack.append(Elementwise(features, chosen, context=context, conditioner=factory))
    first = unconstrained("elementwise_flow", features, lower, upper)
    return _finish("elementwise_flow", first, stack, features, context, base, standardize)


def _sides(lower: Any, upper: Any, features: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper ends of a box, one a feature."""
    listed = [ends for ends in (lower, upper) if isinstance(ends, tuple)]
    if features is None:
        if not listed:
            raise ArgumentError(
                f"box_flow got one number for each end, lower={lower!r} and upper={upper!r}, and "
                "cannot know for how many features; remedy: lists with one end a feature, or "
                "features=..."
            )
        features = len(listed[0])
    check_sizes("box_flow", features=features)
    for ends in listed:
        if len(ends) != features:
            raise ArgumentError(
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
        lower: Lower ends of the box, one per feature, or one number for all features.
        upper: Upper ends, likewise.
        features: Number of features; needed only where both ends are one number.
        context: Number of context features.
        layers: Number of autoregressive layers.
        bins: Bins of every spline.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        waves: If not 0, conditioners also read this many waves a feature, which resolve fine
            detail in few dimensions: see :class:`flowkit.conditioners.FourierEncoding`.
        highest: Largest frequency of the waves, in radians a half side of the box.
        order: Order of the features in the first layer, the first one first; natural by default.
        seed: Seed of the waves.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

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
    check_sizes("box_flow", context=context, layers=layers, bins=bins, waves=waves, seed=seed)
    check_network("box_flow", hidden, activation)
    # Least bins twenty times smaller than a spline's default: on a box, detail can be fine.
    scalar = IntervalSpline(bins=bins, min_size=0.004, lower=-1.0, upper=1.0)
    first = list(range(features)) if order is None else order
    stack: list[Transform] = [Rescale(lower, upper)]
    for i in range(layers):
        factory: Callable[..., AutoregressiveConditioner] = functools.partial(
            MaskedMLP, hidden=hidden, activation=activation
        )
        if waves:
            encoding = FourierEncoding(waves, max_frequency=highest, seed=seed + i)
            factory = functools.partial(factory, encoding=encoding)
        turned = first[::-1] if i % 2 else first
        stack.append(
            MaskedAutoregressive(
                features, scalar, conditioner=factory, context=context, order=turned
            )
        )
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), Uniform(features, lower=-1.0, upper=1.0), embedding=embedding)
