"""What the recipes share: checks and names of their arguments, and how a flow begins and ends."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from flowkit import checks
from flowkit import transforms as ft
from flowkit.bases import Base, Logistic, NormalMixture, ProductBase, StandardNormal, StudentT
from flowkit.conditioners import MLP, MaskedMLP, ResidualMLP, StandardizeContext
from flowkit.conditioners.mlp import ACTIVATIONS
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.scalar import (
    Affine,
    LogisticMixture,
    RationalQuadraticSpline,
    RealSmoothMixture,
    ScalarMap,
)

Factory = Callable[..., nn.Module]
Recipe = TypeVar("Recipe", bound=Callable[..., Flow])

SCALARS: dict[str, Callable[[], ScalarMap]] = {
    "affine": Affine,
    "mixture": LogisticMixture,
    "smooth": RealSmoothMixture,
    "spline": RationalQuadraticSpline,
}
BASES: dict[str, Callable[[int], Base]] = {
    "logistic": Logistic,
    "mixture": NormalMixture,
    "normal": StandardNormal,
    "student_t": StudentT,
}
#: Networks of couplings and elementwise maps, and of autoregressive layers.
CONDITIONERS: dict[str, Factory] = {"mlp": MLP, "residual": ResidualMLP}
MASKED_CONDITIONERS: dict[str, Factory] = {"mlp": MaskedMLP}
LINEARS: dict[str, Callable[[int], ft.Transform] | None] = {
    "dense": ft.DenseLinear,
    "lu": ft.LULinear,
    "orthogonal": ft.OrthogonalLinear,
    "permutation": None,
}
_FROM_DATA: dict[str, Callable[[int, int], ft.Transform]] = {
    "standardize": lambda features, context: ft.Standardize(features),
    "gaps": lambda features, context: ft.ShortenGaps(features),
    "gaussianize": lambda features, context: ft.Gaussianize(features),
    "whiten": lambda features, context: ft.Whiten(features, context=context),
}
#: How flows start from data: layers before the others and after them. Those of independent
#: features are of the first two kinds.
STARTS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "standardize": (("standardize",), ()),
    "margins": (("standardize", "gaussianize"), ()),
    "gaussian": (("standardize", "gaps", "whiten"), ()),
    "latent": (("standardize", "gaps"), ("whiten",)),
    "copula": (("standardize", "gaussianize", "whiten"), ()),
    "auto": (("standardize", "gaps", "gaussianize", "whiten"), ("whiten",)),
}
#: Every recipe by its name; a function of one's own may be added.
RECIPES: dict[str, Callable[..., Flow]] = {}

_layers = functools.partial(checks.integer, least=1, most=2**16)
#: Checks of arguments, by the names that they have in all recipes.
_CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    "blocks": _layers,
    "components": functools.partial(checks.integer, least=1),
    "context": functools.partial(checks.integer, least=0, most=checks.MAX_FEATURES),
    "event_shape": lambda owner, name, value: checks.event_shape(owner, value, name),
    "features": functools.partial(checks.integer, least=1, most=checks.MAX_FEATURES),
    "layers": _layers,
    "negative_slope": functools.partial(checks.number, above=0, below=1),
}


def recipe(function: Recipe) -> Recipe:
    """Add a recipe to :data:`RECIPES`: a decorator.

    Arguments that several recipes share are checked, and all that is drawn while the flow is built
    comes from its ``seed``, if there is one: permutations, frequencies and initial weights.
    """
    owner, first = function.__name__, next(iter(inspect.signature(function).parameters))

    def checked(name: str, value: Any) -> Any:
        return _CHECKS[name](owner, name, value) if name in _CHECKS else value

    @functools.wraps(function)
    def made(*args: Any, **options: Any) -> Flow:
        args = (*(checked(first, value) for value in args[:1]), *args[1:])
        options = {name: checked(name, value) for name, value in options.items()}
        seed = options.get("seed")
        if seed is None:
            return function(*args, **options)
        number = checks.integer(owner, "seed", seed, least=0, most=2**63 - 1)
        with drawing_from(torch.Generator().manual_seed(number)):
            return function(*args, **options)

    RECIPES[owner] = made
    return made  # type: ignore[return-value]


def build_for_columns(name: str, columns: int, **options: Any) -> Flow:
    """Build the flow of a table by the name of its recipe.

    Args:
        name: A key of ``RECIPES``.
        columns: Number of columns of the table, the recipe's first argument.
        **options: The recipe's other arguments.

    Raises:
        ArgumentError: If the name or an option is unknown, an option is missing or out of its
            range.

    Example:
        >>> from flowkit.recipes.parts import build_for_columns
        >>> build_for_columns("coupling_flow", 3, layers=2).event_shape
        (3,)
        >>> build_for_columns("coupling_fow", 3)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: flowkit expected recipe as one of ..., got 'coupling_fow'; \
remedy: did you mean 'coupling_flow'?
    """
    recipe = checks.choice("flowkit", "recipe", name, RECIPES)
    first, *known = inspect.signature(recipe).parameters.values()
    if first.name in options:
        raise ArgumentError(
            f"{name} takes {first.name} from the table, got {first.name}="
            f"{options[first.name]!r}; remedy: leave it out of the options"
        )
    for option in options:
        checks.choice(name, "an option", option, [parameter.name for parameter in known])
    missing = [p.name for p in known if p.default is p.empty and p.name not in options]
    if missing:
        raise ArgumentError(f"{name} expected the option(s) {', '.join(missing)}, got none")
    return recipe(columns, **options)


def shuffled(features: int) -> list[int]:
    """A random order of the features, on any default device."""
    return torch.randperm(features, device="cpu").tolist()


def reordered(features: int, layer: int) -> list[int]:
    """The order of the features before a layer: random ones and reversals alternate.

    A reversal brings the half that one layer leaves unchanged into the half that the next one
    transforms, so that two layers transform every feature. Two features are always exchanged: a
    random order would leave one of them to the base in one of four flows of three layers.
    """
    if layer % 2 == 1 or features == 2:
        return list(range(features))[::-1]
    return shuffled(features)


def scalar_map(
    owner: str,
    scalar: Any,
    known: Mapping[str, Callable[[], ScalarMap]] = SCALARS,
    name: str = "scalar",
) -> ScalarMap:
    """A scalar map as it is, or the one of this name."""
    return scalar if isinstance(scalar, ScalarMap) else checks.choice(owner, name, scalar, known)()


def networks(owner: str, structure: Any) -> tuple[Mapping[str, Factory], bool]:
    """The networks of a kind of layers, and whether these are couplings."""
    known = {"autoregressive": MASKED_CONDITIONERS, "coupling": CONDITIONERS}
    return checks.choice(owner, "structure", structure, known), structure == "coupling"


def network(
    owner: str,
    conditioner: Any,
    known: Mapping[str, Factory],
    hidden: Sequence[int] | None,
    activation: str | None,
    *,
    default: tuple[int, ...] = (128, 128),
    default_activation: str = "silu",
) -> Factory:
    """A factory of networks: the one given, or the named one with its widths and activation."""
    if callable(conditioner):
        for name, value in (("hidden", hidden), ("activation", activation)):
            if value is not None:
                raise ArgumentError(
                    f"{owner} reads {name} with a named conditioner alone, got {name}={value!r} "
                    f"and a factory; remedy: functools.partial(factory, {name}=...)"
                )
        return conditioner
    widths = default if hidden is None else hidden
    function = default_activation if activation is None else activation
    return functools.partial(
        checks.choice(owner, "conditioner", conditioner, known),
        hidden=checks.widths(owner, "hidden", widths),
        activation=checks.choice(owner, "activation", function, list(ACTIVATIONS)),
    )


def refuse_unread(
    owner: str, without: str, hidden: Any, activation: Any, conditioner: Any
) -> None:
    """Refuse options of networks where a flow has none, for the lack of another argument."""
    own = None if conditioner == "mlp" else conditioner
    options = {"hidden": hidden, "activation": activation, "conditioner": own}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ArgumentError(
            f"{owner} without {without} has no networks, got {', '.join(given)}; remedy: leave it "
            f"out, or {without}=..."
        )


def mixing(owner: str, linear: Any, features: int, layer: int) -> list[ft.Transform]:
    """What stands before a layer so that every feature is transformed in some layer."""
    if linear is None:
        return []
    matrix = checks.choice(owner, "linear", linear, LINEARS)
    if features == 1:
        return []
    permutation = ft.Permutation(reordered(features, layer))
    return [permutation] if matrix is None else [permutation, matrix(features)]


def half(features: int, linear: str | None, layer: int) -> list[bool]:
    """A mask that transforms the second half; if nothing mixes them, the halves alternate."""
    swap = linear is None and layer % 2 == 1
    return [(j < features // 2) == swap for j in range(features)]


def coupling(
    mask: Sequence[bool], scalar: ScalarMap, conditioner: Factory, context: int
) -> ft.Transform:
    """A coupling layer; for one feature, which only reads the context, an elementwise one."""
    if len(mask) == 1:
        return ft.Elementwise(1, scalar, conditioner=conditioner, context=context)
    return ft.Coupling(mask, scalar, conditioner=conditioner, context=context)


def autoregressive(
    features: int, scalar: ScalarMap, net: Any, context: int, order: Sequence[int] | None = None
) -> ft.Transform:
    """An autoregressive layer."""
    return ft.MaskedAutoregressive(features, scalar, conditioner=net, context=context, order=order)


def unconstrained(owner: str, features: int, lower: Any, upper: Any) -> list[ft.Transform]:
    """The first layer of a flow of bounded features; nothing if no feature has an end."""
    lows, highs = checks.bounds(owner, lower, upper, features)
    bounded = any(map(math.isfinite, (*lows, *highs)))
    return [ft.Unconstrain(lows, highs)] if bounded else []


def assemble(
    owner: str,
    layers: Sequence[ft.Transform],
    base: str,
    features: int,
    context: int,
    lower: Any,
    upper: Any,
    start: Any,
    *,
    starts: Mapping[str, tuple[Sequence[str], Sequence[str]]] = STARTS,
) -> Flow:
    """Make a flow: unconstrain, start from data, the layers, the base of this name."""
    first = unconstrained(owner, features, lower, upper)
    made = checks.choice(owner, "base", base, BASES)(features)
    if start is None:
        return finish([*first, *layers], made, 0)
    before, after = checks.choice(owner, "start", start, starts)
    stack = [*first, *(_FROM_DATA[layer](features, context) for layer in before), *layers]
    stack += [_FROM_DATA[layer](features, context) for layer in after]
    if start != "auto":
        return finish(stack, made, context)
    gaps, gaussianize, whiten = (len(first) + place for place in (1, 2, 3))
    choice = {
        "copula": [gaussianize, whiten],
        "gaussian": [gaps, whiten],
        "latent": [gaps, len(stack) - 1],
    }
    return finish(stack, made, context, starts=choice)


def product(*groups: tuple[Callable[[int], Base], Sequence[int]]) -> Base:
    """The base of groups of features, some of which may be empty, from the class of each."""
    made = [(base(len(features)), features) for base, features in groups if features]
    return ProductBase(*made) if len(made) > 1 else made[0][0]


def finish(
    layers: Sequence[ft.Transform],
    base: Base,
    context: int,
    starts: Mapping[str, Sequence[int]] | None = None,
) -> Flow:
    """Make a flow of layers and a base, with its context standardised."""
    embedding = StandardizeContext(context) if context else None
    return Flow(ft.Compose(*layers, starts=starts), base, embedding=embedding)
