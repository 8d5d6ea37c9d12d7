"""The recipe of tail-adaptive flows: heavy tails in some features, and in those alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowkit.bases import Base, Product, StandardNormal, StudentT
from flowkit.conditioners import MaskedMLP, StandardizeContext
from flowkit.errors import RecipeError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_network, check_sizes
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import Affine, RationalQuadraticSpline, ScalarMap
from flowkit.transforms import (
    Compose,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    Standardize,
    Transform,
)

_SCALARS = {"affine": Affine, "spline": RationalQuadraticSpline}
# Whether features are grouped, degrees of freedom shared, and learned.
_VARIANTS = {
    "mtaf": (True, False, True),
    "mtaf-fixed": (True, False, False),
    "gtaf": (False, False, True),
    "taf": (False, True, True),
}
# Where degrees of freedom start that no estimate gives: close to normal.
_START_DF = {"gtaf": 10.0, "taf": 50.0}


@recipe
def tail_adaptive_flow(
    tails: Sequence[float | None],
    context: int = 0,
    layers: int = 5,
    variant: str = "mtaf",
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (64, 64),
    activation: str = "silu",
    seed: int = 0,
) -> Flow:
    r"""An autoregressive flow whose features keep their class of tails, heavy or light.

    Splines are linear in their tails, affine maps of bounded scale, so that layers change no tail
    index, but for mixing: what a heavy feature is added to becomes heavy. Here light features come
    first, as a group, then the heavy ones; permutations stay within a group, linear layers are
    block-triangular, and autoregressive layers read what comes before. Light features then never
    see heavy ones, in either direction, and each feature is as heavy as its base: a normal, or a
    Student-t with the degrees of freedom of its tail index. Within the heavy group indices do mix:
    every heavy feature may become as heavy as the heaviest that reaches it.

    ``"mtaf"``
        As described; degrees of freedom are learned from their start.
    ``"mtaf-fixed"``
        They are kept.
    ``"gtaf"``
        One group; all features have a Student-t of their own, degrees of freedom learned from 10.
    ``"taf"``
        One group; all have the same Student-t, learned from 50 degrees of freedom.

    The flow starts with a :class:`flowkit.transforms.Standardize` by median and interquartile
    range: a t with two degrees of freedom has no variance. Its networks read the asinh of the
    features.

    Args:
        tails: The tail index of each feature, infinite or ``None`` where it is light, such as
            ``[tail_verdict(column).index for column in x.T]`` with
            :func:`flowkit.statistics.tail_verdict`.
        context: Number of context features.
        layers: Number of autoregressive layers.
        variant: One of the above.
        scalar: ``"spline"``, ``"affine"``, or a scalar map that is linear in its tails, with
            slopes of bounded size.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        seed: Seed of the permutations.

    Raises:
        RecipeError: If an argument is out of its range or unknown.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311; Jaini et al. 2020, arXiv 1907.04481,
        for ``"taf"``.

    Example:
        >>> import torch
        >>> from flowkit import tail_adaptive_flow
        >>> flow = tail_adaptive_flow([2.0, None, 3.5], layers=2)
        >>> flow.log_prob(torch.tensor([1e8, 0.0, -1e8])).isfinite().item()
        True
    """
    name = "tail_adaptive_flow"
    indices = _indices(name, tails)
    check_sizes(name, context=context, layers=layers, seed=seed)
    check_network(name, hidden, activation)
    grouped, shared, learned = choose("variant", variant, _VARIANTS)
    features = len(indices)
    light = [i for i, index in enumerate(indices) if index == math.inf]
    heavy = [i for i, index in enumerate(indices) if index < math.inf]
    groups = (len(light), len(heavy)) if grouped else (0, features)
    order = light + heavy if grouped else list(range(features))
    if grouped:
        base = _base([indices[i] for i in heavy], len(light), learned)
    else:
        base = StudentT(features, _START_DF[variant], learned, shared)
    net = functools.partial(MaskedMLP, hidden=hidden, activation=activation, input_clip="asinh")
    rng = np.random.default_rng(seed)
    maps = scalar if isinstance(scalar, ScalarMap) else choose("scalar map", scalar, _SCALARS)()
    stack: list[Transform] = [Standardize(features, robust=True), Permutation(order)]
    for _ in range(layers):
        first, second = (rng.permutation(size) for size in groups)
        mixed = [*first.tolist(), *(groups[0] + second).tolist()]
        stack += [
            Permutation(mixed),
            LULinear(features, groups),
            MaskedAutoregressive(features, maps, net, context),
        ]
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), base, embedding)


def _indices(name: str, tails: Any) -> list[float]:
    numbers = isinstance(tails, tuple) and all(
        t is None or (isinstance(t, (int, float)) and not isinstance(t, bool) and t > 0)
        for t in tails
    )
    if not numbers or not tails:
        raise RecipeError(
            f"{name} needs tails to be one tail index > 0 a feature, infinite or None where the "
            f"tail is light, got {tails!r}"
        )
    return [math.inf if t is None else float(t) for t in tails]


def _base(indices: list[float], light: int, learned: bool) -> Base:
    heavy = len(indices)
    if not heavy:
        return StandardNormal(light)
    tailed = StudentT(heavy, indices, learned)
    if not light:
        return tailed
    return Product((StandardNormal(light), range(light)), (tailed, range(light, light + heavy)))
