"""The recipe of tail-adaptive flows: heavy tails in some features, and in those alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from flowkit.bases import Base, ProductBase, StandardNormal, StudentT
from flowkit.conditioners import (
    MLP,
    AsinhEncoding,
    GroupedConditioner,
    MaskedMLP,
    StandardizeContext,
)
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_network, check_sizes
from flowkit.recipes.flows import unconstrained
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import Affine, PerFeature, RationalQuadraticSpline, ScalarMap, TailTransform
from flowkit.transforms import (
    Compose,
    Coupling,
    Elementwise,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    Standardize,
)

_SCALARS = {"affine": Affine, "spline": RationalQuadraticSpline}
_KINDS = {"autoregressive": False, "coupling": True}


class _Variant(NamedTuple):
    """How tails come in: by the base, or by a last map.

    Attributes:
        grouped: Whether light features see no heavy one.
        shared: Whether all have the same degrees of freedom.
        learned: Whether degrees of freedom, or shapes, are learned.
        mapped: Whether a last map makes the tails.
    """

    grouped: bool
    shared: bool
    learned: bool
    mapped: bool = False


_VARIANTS = {
    "mtaf": _Variant(grouped=True, shared=False, learned=True),
    "mtaf-fixed": _Variant(grouped=True, shared=False, learned=False),
    "gtaf": _Variant(grouped=False, shared=False, learned=True),
    "taf": _Variant(grouped=False, shared=True, learned=True),
    "ttf": _Variant(grouped=False, shared=False, learned=True, mapped=True),
    "ttf-fixed": _Variant(grouped=False, shared=False, learned=False, mapped=True),
}
# Where degrees of freedom start that no estimate gives: close to normal.
_START_DF = {"gtaf": 10.0, "taf": 50.0}


@recipe
def tail_adaptive_flow(
    tails: Sequence[float | Sequence[float | None] | None],
    context: int = 0,
    layers: int = 5,
    variant: str = "mtaf",
    kind: str = "autoregressive",
    scalar: str | ScalarMap = "spline",
    hidden: Sequence[int] = (64, 64),
    activation: str = "silu",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    seed: int = 0,
) -> Flow:
    r"""A flow whose features keep their class of tails, heavy or light.

    Splines are linear in their tails, affine maps of bounded scale, so that layers on a Student-t
    base change no tail index, but for mixing: what a heavy feature is added to becomes heavy. Here
    light features come first, as a group, then the heavy ones; permutations stay within a group,
    linear layers are block-triangular, and the networks of autoregressive or coupling layers read
    their own group and those before. Light features then never see heavy ones, in either
    direction, and each feature is as heavy as its base: a normal, or a Student-t with the degrees
    of freedom of its tail index. Within the heavy group indices do mix: every heavy feature may
    become as heavy as the heaviest that reaches it.

    ``"mtaf"``
        As described; degrees of freedom are learned from their start.
    ``"mtaf-fixed"``
        They are kept.
    ``"gtaf"``
        One group; all features have a Student-t of their own, degrees of freedom learned from 10.
    ``"taf"``
        One group; all have the same Student-t, learned from 50 degrees of freedom.
    ``"ttf"``
        One group on a normal base, and last, towards the data, a
        :class:`flowkit.scalar.TailTransform` for every heavy feature, with a shape for its left and
        one for its right tail, learned from their start.
        Layers that stretch the normal tails by a factor a turn an index :math:`1 / \xi` into
        :math:`1 / (\xi a^2)`, so that the index of the flow is learned in any case.
    ``"ttf-fixed"``
        The same with shapes of that map that are kept.

    The flow starts with a :class:`flowkit.transforms.Standardize` by median and interquartile
    range: a t with two degrees of freedom has no variance. Its networks read the asinh of the
    features.

    Args:
        tails: The tail index of each feature, infinite or ``None`` where it is light, or a pair of
            its left and its right one, of which a Student-t takes the heavier. From data by
            :func:`flowkit.statistics.tail_indices`.
        context: Number of context features.
        layers: Number of autoregressive or coupling layers.
        variant: One of the above.
        kind: ``"autoregressive"``, or ``"coupling"`` for layers that move every other feature, and
            are as fast in both directions.
        scalar: ``"spline"``, ``"affine"``, or a scalar map that is linear in its tails, with
            slopes of bounded size.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        lower: Where the data begin: a number, or one for each feature, ``None`` or ``-inf`` where
            there is no such end. ``lower=0`` is for positive data. Tails
            then are those behind :class:`flowkit.transforms.Unconstrain`, with which the flow
            starts: those of logarithms, for positive data.
        upper: Where they end, likewise.
        seed: Seed of the permutations.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311; Jaini et al. 2020, arXiv 1907.04481,
        for ``"taf"``; Hickling, Prangle, arXiv 2406.16971, for ``"ttf"``.

    Example:
        >>> import torch
        >>> from flowkit import tail_adaptive_flow
        >>> flow = tail_adaptive_flow([2.0, None, 3.5], layers=2)
        >>> flow.log_prob(torch.tensor([1e8, 0.0, -1e8])).isfinite().item()
        True
    """
    name = "tail_adaptive_flow"
    sides = _sides(name, tails)
    check_sizes(name, context=context, layers=layers, seed=seed)
    check_network(name, hidden, activation)
    chosen: _Variant = choose("variant", variant, _VARIANTS)
    coupled = choose("kind", kind, _KINDS)
    features = len(sides)
    if coupled and features + context < 2:
        raise ArgumentError(
            f"{name} needs at least 2 features to couple, or context to read, got 1 feature(s); "
            "remedy: kind='autoregressive'"
        )
    heavy = [i for i, pair in enumerate(sides) if min(pair) < math.inf]
    light = [i for i in range(features) if i not in heavy]
    groups = (len(light), len(heavy)) if chosen.grouped else (0, features)
    order = light + heavy if chosen.grouped or chosen.mapped else list(range(features))
    base: Base
    if chosen.mapped:
        base = StandardNormal(features)
    elif chosen.grouped:
        base = _base([min(sides[i]) for i in heavy], len(light), chosen.learned)
    else:
        base = StudentT(
            features, df=_START_DF[variant], learn=chosen.learned, shared=chosen.shared
        )
    rng = np.random.default_rng(seed)
    maps = scalar if isinstance(scalar, ScalarMap) else choose("scalar map", scalar, _SCALARS)()
    options: dict[str, Any] = {"hidden": hidden, "activation": activation}
    options["encoding"] = AsinhEncoding()
    stack = unconstrained(name, features, lower, upper)
    stack += [Standardize(features, robust=True), Permutation(order)]
    if chosen.mapped and heavy:
        stack.append(_tails([sides[i] for i in heavy], len(light), chosen.learned))
    for layer in range(layers):
        first, second = (rng.permutation(size) for size in groups)
        mixed = [*first.tolist(), *(groups[0] + second).tolist()]
        stack += [Permutation(mixed), LULinear(features, groups=groups)]
        if coupled:
            stack.append(_coupling(groups, layer, maps, context, options))
        else:
            net = functools.partial(MaskedMLP, **options)
            stack.append(MaskedAutoregressive(features, maps, conditioner=net, context=context))
    embedding = StandardizeContext(context) if context else None
    return Flow(Compose(*stack), base, embedding=embedding)


def _index(tail: Any) -> float:
    """A tail index; NaN if it is none."""
    if tail is None:
        return math.inf
    real = isinstance(tail, (int, float)) and not isinstance(tail, bool) and tail > 0
    return float(tail) if real else math.nan


def _sides(name: str, tails: Any) -> list[tuple[float, float]]:
    """The index of the left and of the right tail of every feature."""
    given = tails if isinstance(tails, tuple) else ()
    pairs = [t if isinstance(t, tuple) else (t, t) for t in given]
    sides = [tuple(_index(t) for t in pair) for pair in pairs]
    if not sides or any(len(pair) != 2 or math.isnan(sum(pair)) for pair in sides):
        raise ArgumentError(
            f"{name} needs tails to be one tail index > 0 a feature, or a pair of them for its "
            f"left and right tail, infinite or None where the tail is light; got {tails!r}"
        )
    return sides  # type: ignore[return-value]


def _tails(sides: list[tuple[float, float]], light: int, learned: bool) -> Elementwise:
    """Generalised Pareto tails to normal ones; light features first, moved by lines."""
    maps = (*[Affine()] * light, *[TailTransform()] * len(sides))
    layer = Elementwise(len(maps), PerFeature(maps))
    starts = [[TailTransform.raw(1 / index) for index in pair] for pair in sides]
    (params,) = layer.parameters()
    with torch.no_grad():
        params[light:] = torch.tensor(starts).to(params)
    params.requires_grad_(learned)
    return layer


def _coupling(
    groups: tuple[int, int],
    layer: int,
    scalar: ScalarMap,
    context: int,
    options: dict[str, Any],
) -> Coupling:
    """Move every other feature, those of a group by what stays of it and of those before."""
    features = sum(groups)
    mask = [features == 1 or (i + layer) % 2 == 1 for i in range(features)]
    ends = [0, *itertools.accumulate(groups)]
    moves = [sum(mask[a:b]) for a, b in itertools.pairwise(ends)]
    reads = [b - a - m for (a, b), m in zip(itertools.pairwise(ends), moves, strict=True)]
    net = functools.partial(MLP, **options)
    grouped = functools.partial(
        GroupedConditioner, conditioning=reads, transformed=moves, conditioner=net
    )
    return Coupling(mask, scalar, conditioner=grouped, context=context)


def _base(indices: list[float], light: int, learned: bool) -> Base:
    heavy = len(indices)
    if not heavy:
        return StandardNormal(light)
    tailed = StudentT(heavy, df=indices, learn=learned)
    if not light:
        return tailed
    return ProductBase(
        (StandardNormal(light), range(light)), (tailed, range(light, light + heavy))
    )
