"""Named flows: one function a flow, with the field's names and defaults that fit without tuning.

A call of a recipe is plain JSON. The registry here is what files, the command line and the
estimators use to build a flow by name; a user's own recipe joins it with :func:`recipe`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

import flowkit.scalar
from flowkit.bases import Base, Logistic, NormalMixture, StandardNormal, StudentT, Uniform
from flowkit.conditioners import (
    MLP,
    AutoregressiveConditioner,
    FourierMaskedMLP,
    MaskedMLP,
    ResidualMLP,
    StandardizeContext,
)
from flowkit.errors import RecipeError
from flowkit.flow import Flow
from flowkit.scalar import (
    Affine,
    IntervalSpline,
    LogisticMixture,
    RationalQuadraticSpline,
    ScalarMap,
)
from flowkit.transforms import (
    Box,
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

RECIPES: dict[str, Callable[..., Flow]] = {}

_SCALARS: dict[str, Callable[[], ScalarMap]] = {
    "affine": Affine,
    "mixture": LogisticMixture,
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


def recipe(function: Callable[..., Flow]) -> Callable[..., Flow]:
    """Register a function that builds a flow, and let its flows remember how they were built.

    Arguments must be JSON values or scalar maps; a flow built with anything else (a module, a
    callable) works, but cannot be saved as a flow file.

    Example:
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.recipes import RECIPES, recipe
        >>> from flowkit.transforms import LULinear
        >>> @recipe
        ... def linear_flow(features: int) -> Flow:
        ...     return Flow(LULinear(features), StandardNormal(features))
        >>> linear_flow(2).recipe
        {'name': 'linear_flow', 'arguments': {'features': 2}}
        >>> del RECIPES["linear_flow"]
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build_flow(*args: Any, **kwargs: Any) -> Flow:
        bound = signature.bind(*args, **kwargs)
        flow = function(*args, **kwargs)
        arguments = {name: _encode(value) for name, value in bound.arguments.items()}
        if _UNKNOWN not in arguments.values():
            flow.recipe = {"name": function.__name__, "arguments": arguments}
        return flow

    RECIPES[function.__name__] = build_flow
    return build_flow


def build(name: str, **arguments: Any) -> Flow:
    """Build a flow by the name of its recipe, with arguments as JSON gives them.

    Raises:
        RecipeError: If the name or an argument is unknown.

    Example:
        >>> from flowkit.recipes import build
        >>> build("coupling_flow", features=2, layers=2).event_shape
        (2,)
        >>> build("coupling_fow", features=2)
        Traceback (most recent call last):
        ...
        flowkit.errors.RecipeError: unknown recipe 'coupling_fow'; did you mean 'coupling_flow'?
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; {_suggest(name, RECIPES)}")
    known = inspect.signature(RECIPES[name]).parameters
    for argument in arguments:
        if argument not in known:
            raise RecipeError(f"{name} has no argument {argument!r}; {_suggest(argument, known)}")
    missing = [n for n, p in known.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise RecipeError(f"{name} needs the argument(s) {', '.join(missing)}")
    return RECIPES[name](**{key: _decode(value) for key, value in arguments.items()})


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(sorted(known))}"


_UNKNOWN = object()


def _encode(value: Any) -> Any:
    """A value as JSON, or ``_UNKNOWN``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        encoded = [_encode(item) for item in value]
        return _UNKNOWN if _UNKNOWN in encoded else encoded
    if isinstance(value, ScalarMap) and type(value).__name__ in flowkit.scalar.__all__:
        return {"scalar": type(value).__name__, "options": dataclasses.asdict(value)}  # type: ignore[call-overload]
    return _UNKNOWN


def _decode(value: Any) -> Any:
    """Undo ``_encode``."""
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    name, options = value.get("scalar"), value.get("options")
    cls = getattr(flowkit.scalar, name, None) if name in flowkit.scalar.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, ScalarMap) and isinstance(options, dict)):
        raise RecipeError(f"unknown scalar map {name!r} in a recipe")
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for option in options:
        if option not in fields:
            raise RecipeError(f"{name} has no option {option!r}; {_suggest(option, fields)}")
    return cls(**options)


def _choose(kind: str, name: Any, table: dict[str, Any]) -> Any:
    if name not in table:
        raise RecipeError(f"unknown {kind} {name!r}; {_suggest(name, table)}")
    return table[name]


def _scalar(scalar: str | ScalarMap) -> ScalarMap:
    return scalar if isinstance(scalar, ScalarMap) else _choose("scalar map", scalar, _SCALARS)()


def _check_sizes(name: str, **sizes: int) -> None:
    for what, value in sizes.items():
        least = 0 if what == "context" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecipeError(
                f"{name} needs {what} to be a whole number >= {least}, got {value!r}"
            )


def _mixing(linear: str | None, features: int, seed: int) -> list[Transform]:
    """What stands before a layer so that every feature gets its turn."""
    if linear is None or features == 1:
        return []
    permutation = Permutation.random(features, seed)
    if linear == "permutation":
        return [permutation]
    return [
        permutation,
        _choose("linear layer", linear, _LINEARS | {"permutation": Permutation})(features),
    ]


def _finish(
    layers: list[Transform], features: int, context: int, base: str, standardize: bool
) -> Flow:
    first: list[Transform] = [Standardize(features)] if standardize else []
    embedding = StandardizeContext(context) if context and standardize else None
    return Flow(
        Compose(*first, *layers), _choose("base", base, _BASES)(features), embedding=embedding
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
    _check_sizes("coupling_flow", features=features, context=context, layers=layers)
    chosen = _scalar(scalar)
    factory = conditioner
    if isinstance(conditioner, str):
        factory = functools.partial(
            _choose("conditioner", conditioner, _CONDITIONERS),
            hidden=tuple(hidden),
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
    return _finish(stack, features, context, base, standardize)


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
    _check_sizes("autoregressive_flow", features=features, context=context, layers=layers)
    chosen = _scalar(scalar)
    factory = functools.partial(MaskedMLP, hidden=tuple(hidden), activation=activation)
    stack: list[Transform] = []
    for i in range(layers):
        stack += _mixing(linear, features, seed + i)
        order = list(range(features))[::-1] if linear is None and i % 2 == 1 else None
        stack.append(MaskedAutoregressive(features, chosen, factory, context, order))
    return _finish(stack, features, context, base, standardize)


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
    chosen = _scalar(scalar)
    factory = functools.partial(MLP, hidden=tuple(hidden), activation=activation)
    stack: list[Transform] = []
    for _ in range(layers):
        stack.append(Elementwise(features, Affine(), context, factory))
        stack.append(Elementwise(features, chosen, context, factory))
    return _finish(stack, features, context, base, standardize)


@recipe
def box_flow(
    lower: Sequence[float],
    upper: Sequence[float],
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
        lower: Lower ends of the box, one a feature.
        upper: Upper ends.
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
    features = len(lower)
    _check_sizes("box_flow", features=features, context=context, layers=layers, bins=bins)
    if isinstance(waves, bool) or not isinstance(waves, int) or waves < 0:
        raise RecipeError(f"box_flow needs waves to be a whole number >= 0, got {waves!r}")
    scalar = IntervalSpline(bins=bins, lower=-1.0, upper=1.0)
    first = list(range(features)) if order is None else list(order)
    stack: list[Transform] = [Box(lower, upper)]
    for i in range(layers):
        factory: Callable[..., AutoregressiveConditioner] = functools.partial(
            MaskedMLP, hidden=tuple(hidden), activation=activation
        )
        if waves:
            factory = functools.partial(
                FourierMaskedMLP, hidden=tuple(hidden), activation=activation, waves=waves,
                highest=highest, seed=seed + i,
            )  # fmt: skip
        turned = first[::-1] if i % 2 else first
        stack.append(MaskedAutoregressive(features, scalar, factory, context, turned))
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), Uniform(features, -1.0, 1.0), embedding=embedding)
