"""What the recipes share: the names of interchangeable parts, and how a flow begins and ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flowkit import checks
from flowkit.bases import Base, Logistic, NormalMixture, StandardNormal, StudentT
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
from flowkit.transforms import (
    Compose,
    Coupling,
    DenseLinear,
    Elementwise,
    LULinear,
    OrthogonalLinear,
    Permutation,
    Standardize,
    Transform,
    Unconstrain,
)

Factory = Callable[..., nn.Module]

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
LINEARS: dict[str, Callable[[int], Transform] | None] = {
    "dense": DenseLinear,
    "lu": LULinear,
    "orthogonal": OrthogonalLinear,
    "permutation": None,
}


#: The most layers, or blocks of layers, of one flow.
MAX_LAYERS = 2**16


def sizes(owner: str, features: Any, context: Any, **layers: Any) -> tuple[int, int, int]:
    """Check the numbers of features, of context features and of layers."""
    ((name, count),) = layers.items()
    return (
        checks.integer(owner, "features", features, least=1, most=checks.MAX_FEATURES),
        checks.integer(owner, "context", context, least=0, most=checks.MAX_FEATURES),
        checks.integer(owner, name, count, least=1, most=MAX_LAYERS),
    )


def seeded(owner: str, seed: Any) -> AbstractContextManager[Any]:
    """Let all that is drawn while a flow is built come from its seed, without one from torch."""
    if seed is None:
        return nullcontext()
    number = checks.integer(owner, "seed", seed, least=0, most=2**63 - 1)
    return drawing_from(torch.Generator().manual_seed(number))


def shuffled(features: int) -> list[int]:
    """A random order of the features, on any default device."""
    order: list[int] = torch.randperm(features, device="cpu").tolist()
    return order


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
    if isinstance(scalar, ScalarMap):
        return scalar
    made: ScalarMap = checks.choice(owner, name, scalar, known)()
    return made


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
    if not isinstance(conditioner, str) and callable(conditioner):
        for name, value in (("hidden", hidden), ("activation", activation)):
            if value is not None:
                raise ArgumentError(
                    f"{owner} reads {name} with a named conditioner alone, got {name}={value!r} "
                    f"and a factory; remedy: functools.partial(factory, {name}=...)"
                )
        factory: Factory = conditioner
        return factory
    return functools.partial(
        checks.choice(owner, "conditioner", conditioner, known),
        hidden=default if hidden is None else checks.widths(owner, "hidden", hidden),
        activation=default_activation
        if activation is None
        else checks.choice(owner, "activation", activation, list(ACTIVATIONS)),
    )


def refuse_unread(
    owner: str, without: str, hidden: Any, activation: Any, conditioner: Any
) -> None:
    """Refuse options of networks where a flow has none, for the lack of another argument."""
    unread = {"hidden": hidden is not None, "activation": activation is not None}
    given = [name for name, is_given in unread.items() if is_given]
    given += [] if conditioner == "mlp" else ["conditioner"]
    if given:
        raise ArgumentError(
            f"{owner} without {without} has no networks, got {', '.join(given)}; remedy: leave it "
            f"out, or {without}=..."
        )


def mixing(owner: str, linear: Any, features: int, layer: int) -> list[Transform]:
    """What stands before a layer so that every feature is transformed in some layer."""
    if linear is None:
        return []
    matrix = checks.choice(owner, "linear", linear, LINEARS)
    if features == 1:
        return []
    permutation = Permutation(reordered(features, layer))
    return [permutation] if matrix is None else [permutation, matrix(features)]


def half(features: int, linear: str | None, layer: int) -> list[bool]:
    """A mask that transforms the second half; if nothing mixes them, the halves alternate."""
    swap = linear is None and layer % 2 == 1
    return [(j < features // 2) == swap for j in range(features)]


def coupling(
    mask: Sequence[bool], scalar: ScalarMap, conditioner: Factory, context: int
) -> Transform:
    """A coupling layer; for one feature, which only reads the context, an elementwise one."""
    if len(mask) == 1:
        return Elementwise(1, scalar, conditioner=conditioner, context=context)
    return Coupling(mask, scalar, conditioner=conditioner, context=context)


def unconstrained(owner: str, features: int, lower: Any, upper: Any) -> list[Transform]:
    """The first layer of a flow of bounded features; nothing if no feature has an end."""
    lows, highs = checks.bounds(owner, lower, upper, features)
    bounded = any(map(math.isfinite, (*lows, *highs)))
    return [Unconstrain(lows, highs)] if bounded else []


def assemble(
    owner: str,
    layers: Sequence[Transform],
    base: str,
    features: int,
    *,
    context: int = 0,
    lower: Any = None,
    upper: Any = None,
    standardize: Any = True,
) -> Flow:
    """Make a flow: unconstrain, standardise, the layers, the base of this name, the context."""
    first = unconstrained(owner, features, lower, upper)
    if checks.flag(owner, "standardize", standardize):
        first.append(Standardize(features))
    made = checks.choice(owner, "base", base, BASES)(features)
    return finish([*first, *layers], made, context if standardize else 0)


def finish(layers: Sequence[Transform], base: Base, context: int) -> Flow:
    """Make a flow of layers and a base, with its context standardised."""
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*layers), base, embedding=embedding)
