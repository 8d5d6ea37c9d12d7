"""Smooth flows of periodic, bounded and real variables."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flowkit import checks
from flowkit.bases import StandardNormal, Uniform
from flowkit.conditioners import CircularEncoding
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
from flowkit.transforms import CircularShift, Rescale

# For periodic and bounded variables, both on [-1, 1], and for real ones.
_SCALARS: dict[str, tuple[Callable[..., ScalarMap], ...]] = {
    "smooth": (CircularSmoothMixture, SmoothMixture, RealSmoothMixture),
    "spline": (CircularSpline, IntervalSpline, RationalQuadraticSpline),
}


@parts.recipe
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
    known, coupled = parts.networks(name, structure)
    circle, interval, line = checks.choice(name, "scalar", scalar, _SCALARS)
    if scalar == "smooth" and activation in ("elu", "relu"):
        words = "one with derivatives of every order"
        remedy = "gelu, silu, softplus or tanh, or scalar='spline'"
        raise checks.fail(name, "activation", words, activation, remedy)
    net: Any = parts.network(name, conditioner, known, hidden, activation)
    periodic, ends = _domains(name, features, circular, lower, upper)
    real = [not p and math.isinf(b - a) for p, (a, b) in zip(periodic, ends, strict=True)]
    cube: dict[str, Any] = {"lower": -1.0, "upper": 1.0}
    maps = PerFeature(
        tuple(
            line(components) if r else (circle if p else interval)(components, **cube)
            for p, r in zip(periodic, real, strict=True)
        )
    )
    # Variables with one end are made real, all others are scaled.
    open_ = (-math.inf, math.inf)
    half_open = [pair if r else open_ for r, pair in zip(real, ends, strict=True)]
    scaled = [open_ if r else pair for r, pair in zip(real, ends, strict=True)]
    stack = parts.unconstrained(name, features, *zip(*half_open, strict=True))
    stack.append(Rescale(*zip(*scaled, strict=True), circular=periodic))
    shift = functools.partial(CircularShift, features, circular=periodic, **cube)
    shuffled = parts.shuffled(features)
    for i in range(layers):
        stack += [shift()] if any(periodic) else []
        order = shuffled[:: -1 if i % 2 else 1]
        # With one feature there is only context to read.
        half = set(shuffled[i % 2 :: 2] if features > 1 else [0])
        read = [j for j in range(features) if j not in half] if coupled else order
        factory = functools.partial(net, encoding=CircularEncoding([periodic[j] for j in read]))
        if coupled:
            mask = [j in half for j in range(features)]
            stack.append(parts.coupling(mask, maps, factory, context))
        else:
            stack.append(parts.autoregressive(features, maps, factory, context, order))
    # The last shift is for points that rounding has moved past the cut.
    stack += [shift()] if any(periodic) else []
    places = [[i for i, r in enumerate(real) if r == is_real] for is_real in (False, True)]
    uniform = functools.partial(Uniform, **cube)
    return parts.finish(
        stack, parts.product((uniform, places[0]), (StandardNormal, places[1])), context
    )


def _domains(
    name: str, features: int, circular: Any, lower: Any, upper: Any
) -> tuple[tuple[bool, ...], list[tuple[float, float]]]:
    """Which variables are periodic, and the ends of all."""
    listed = checks.as_list(circular) or [circular] * features
    periodic = checks.flags(name, "circular", listed, features)
    filled = []
    for given, end in ((lower, -math.pi), (upper, math.pi)):
        sides = checks.as_list(given) or [given] * features
        known = [end if p and s is None else s for p, s in zip(periodic, sides, strict=False)]
        filled.append(known + sides[features:])
    lows, highs = checks.bounds(name, filled[0], filled[1], features)
    return periodic, list(zip(lows, highs, strict=True))
