"""Smooth flows of periodic, bounded and real variables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flowkit import checks
from flowkit.bases import Base, ProductBase, StandardNormal, Uniform
from flowkit.conditioners import CircularEncoding
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes import parts
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
from flowkit.transforms import CircularShift, MaskedAutoregressive, Rescale, Transform, Unconstrain

# For periodic and bounded variables, both on [-1, 1], and for real ones.
_SCALARS: dict[str, Callable[[int], tuple[ScalarMap, ScalarMap, ScalarMap]]] = {
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


def smooth_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 4,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str = "smooth",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    circular: bool | Sequence[bool] = False,
    structure: str = "coupling",
    components: int = 16,
    seed: int | None = None,
) -> Flow:
    r"""Stack smooth layers for periodic, bounded and real variables, such as torsions.

    Densities have derivatives of every order, also across the cut of a periodic variable, so that
    forces :math:`\nabla \log p` are smooth: for force matching, as potentials, and in dynamics.
    Periodic and bounded variables are scaled to [-1, 1], with a uniform base, real ones to unit
    variance, with a normal base. Each layer transforms every variable by the smooth mixture of its
    kind; networks read the sine and cosine of periodic variables, which are shifted between
    layers.

    Args:
        features: Number of features.
        context: Number of context features, which are standardised.
        layers: Number of layers.
        hidden: Widths of the hidden layers of each network; (128, 128) by default.
        activation: Activation of each network, a smooth one; ``"silu"`` by default.
        scalar: ``"smooth"``, or ``"spline"`` for the same flow of rational-quadratic splines,
            whose forces jump at knots.
        conditioner: The network: ``"mlp"``, with ``structure="coupling"`` also ``"residual"``, or
            a factory as for :func:`coupling_flow` or :func:`autoregressive_flow`, which takes
            ``encoding=`` too.
        lower: Lower ends, one number, or one per feature: where the period of a periodic variable
            begins (:math:`-\pi` by default), the lower end of a bounded one, ``None`` or ``-inf``
            for an open side. A variable with one end starts with
            :class:`flowkit.transforms.Unconstrain` and is a real one from there on.
        upper: Upper ends, likewise (:math:`\pi` by default for periodic variables).
        circular: Which variables are periodic: one boolean per feature, or one for all.
        structure: ``"coupling"``, where layers transform one half and then the other, or
            ``"autoregressive"``.
        components: Number of components of each mixture, or of bins of each spline.
        seed: Seed of the halves or orders and of initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Köhler, Krämer and Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351; Rezende et al.
        2020, Normalizing Flows on Tori and Spheres, arXiv 2002.02428, for circular splines.

    Example:
        >>> import torch
        >>> from flowkit import smooth_flow
        >>> flow = smooth_flow(3, circular=[True, False, False], lower=[0, 0, None],
        ...                    upper=[1, 4, None])
        >>> x = torch.tensor([[0.25, 3.0, 0.1], [1.25, 3.0, 0.1]])
        >>> torch.allclose(*flow.log_prob(x))
        True
    """
    name = "smooth_flow"
    features, context, layers = parts.sizes(name, features, context, layers=layers)
    components = checks.integer(name, "components", components, least=1)
    checks.choice(name, "structure", structure, ("autoregressive", "coupling"))
    kinds = checks.choice(name, "scalar", scalar, _SCALARS)(components)
    if scalar == "smooth" and activation in ("elu", "relu"):
        words = "one with derivatives of every order"
        remedy = "gelu, silu, softplus or tanh, or scalar='spline'"
        raise checks.fail(name, "activation", words, activation, remedy)
    coupled = structure == "coupling"
    known = parts.CONDITIONERS if coupled else parts.MASKED_CONDITIONERS
    net: Any = parts.network(name, conditioner, known, hidden, activation)
    periodic, lows, highs = _domains(name, features, circular, lower, upper)
    real = [math.isinf(b - a) for a, b in zip(lows, highs, strict=True)]
    maps = PerFeature(
        tuple(kinds[0 if p else 2 if r else 1] for p, r in zip(periodic, real, strict=True))
    )
    stack = _scaling(periodic, real, lows, highs)
    with parts.seeded(name, seed):
        shuffled = parts.shuffled(features)
        for i in range(layers):
            stack += _shift(periodic)
            order = shuffled[:: -1 if i % 2 else 1]
            # With one feature there is only context to read.
            half = set(shuffled[i % 2 :: 2] if features > 1 else [0])
            read = [j for j in range(features) if j not in half] if coupled else order
            encoding = CircularEncoding([periodic[j] for j in read])
            factory = functools.partial(net, encoding=encoding)
            if coupled:
                mask = [j in half for j in range(features)]
                stack.append(parts.coupling(mask, maps, factory, context))
            else:
                stack.append(
                    MaskedAutoregressive(
                        features, maps, conditioner=factory, context=context, order=order
                    )
                )
    # The last shift is for points that rounding has moved past the cut.
    stack += _shift(periodic)
    return parts.finish(stack, _base(real), context)


def _domains(
    name: str, features: int, circular: Any, lower: Any, upper: Any
) -> tuple[tuple[bool, ...], tuple[float, ...], tuple[float, ...]]:
    """Which variables are periodic, and the ends of all."""
    listed = [circular] * features if checks.as_list(circular) is None else circular
    periodic = checks.flags(name, "circular", listed, features)
    ends = []
    for given, end in ((lower, -math.pi), (upper, math.pi)):
        sides = checks.as_list(given)
        sides = [given] * features if sides is None else sides
        if len(sides) == features:
            sides = [
                end if p and side is None else side
                for p, side in zip(periodic, sides, strict=True)
            ]
        ends.append(sides)
    lows, highs = checks.bounds(name, ends[0], ends[1], features)
    for i, (p, low, high) in enumerate(zip(periodic, lows, highs, strict=True)):
        if p and not math.isfinite(high - low):
            raise ArgumentError(
                f"{name} expected finite ends of feature {i}, which is periodic, got {low} and "
                f"{high}"
            )
    return periodic, lows, highs


def _scaling(
    periodic: Sequence[bool], real: Sequence[bool], lower: Sequence[float], upper: Sequence[float]
) -> list[Transform]:
    """The first layers: variables with one end are made real, all others are scaled."""
    ends = list(zip(real, lower, upper, strict=True))
    open_ = (-math.inf, math.inf)
    half = [(a, b) if r else open_ for r, a, b in ends]
    whole = [open_ if r else (a, b) for r, a, b in ends]
    lows, highs = zip(*whole, strict=True)
    rescale = Rescale(lower=lows, upper=highs, circular=periodic)
    if all(pair == open_ for pair in half):
        return [rescale]
    return [Unconstrain(*zip(*half, strict=True)), rescale]


def _shift(periodic: Sequence[bool]) -> list[Transform]:
    if not any(periodic):
        return []
    return [CircularShift(len(periodic), lower=-1.0, upper=1.0, circular=periodic)]


def _base(real: Sequence[bool]) -> Base:
    """Uniform for periodic and bounded variables, normal for real ones."""
    reals = [i for i, r in enumerate(real) if r]
    rest = [i for i, r in enumerate(real) if not r]
    if not reals:
        return Uniform(len(rest), lower=-1.0, upper=1.0)
    if not rest:
        return StandardNormal(len(reals))
    return ProductBase(
        (Uniform(len(rest), lower=-1.0, upper=1.0), rest), (StandardNormal(len(reals)), reals)
    )
