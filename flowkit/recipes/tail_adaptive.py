"""Flows whose features have heavy or light tails, each as it is in the data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowkit import checks
from flowkit.bases import Base, StandardNormal, StudentT
from flowkit.conditioners import AsinhEncoding, GroupedConditioner
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import Affine, PerFeature, RationalQuadraticSpline, ScalarMap, TailTransform
from flowkit.transforms import Coupling, Elementwise, LULinear, Permutation, Standardize, Transform

_SCALARS = {"affine": Affine, "spline": RationalQuadraticSpline}

_VARIANTS = ("mtaf", "mtaf-fixed", "gtaf", "taf", "ttf", "ttf-fixed")
# Initial degrees of freedom where the tail indices do not count: close to normal.
_START_DF = {"gtaf": 10.0, "taf": 50.0}


@parts.recipe
def tail_adaptive_flow(
    features: int,
    *,
    tails: float | Sequence[float | Sequence[float | None] | None],
    context: int = 0,
    layers: int = 5,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str | ScalarMap = "spline",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    variant: str = "mtaf",
    structure: str = "autoregressive",
    seed: int | None = None,
) -> Flow:
    r"""Stack layers that give each feature the tails, heavy or light, of its tail index.

    Splines are linear in their tails, and affine maps of bounded scale change no tail index, so
    that a flow of them is as heavy-tailed as its base, except by mixing: what a heavy feature is
    added to becomes heavy. Here light features come first, as a group, then heavy ones;
    permutations stay within a group, linear layers are block-triangular, and networks read their
    own group and those before. Light features then never read heavy ones, in either direction, and
    each feature is as heavy as its base: a normal, or a Student-t whose degrees of freedom are the
    tail index. Within the heavy group indices do mix: each feature may become as heavy as the
    heaviest one that reaches it.

    ``"mtaf"``
        As described; degrees of freedom are learned, starting at the tail indices.
    ``"mtaf-fixed"``
        Degrees of freedom are fixed.
    ``"gtaf"``
        One group; each feature has a Student-t of its own, degrees of freedom learned from 10.
    ``"taf"``
        One group; all features have the same Student-t, learned from 50 degrees of freedom.
    ``"ttf"``
        One group on a normal base, and last, towards the data, a
        :class:`flowkit.scalar.TailTransform` of each heavy feature, with learned shapes for its
        left and right tail. Layers that stretch the normal tails by a factor a change an index
        :math:`1 / \xi` to :math:`1 / (\xi a^2)`, so that the index is learned in any case.
    ``"ttf-fixed"``
        The same with fixed shapes of that map.

    The flow starts with a :class:`flowkit.transforms.Standardize` by median and interquartile
    range, because heavy tails may have no variance. Its networks read the asinh of the features.

    Args:
        features: Number of features.
        tails: The tail index of each feature, infinite or ``None`` if it is light, or a pair of
            its left and right one, of which a Student-t takes the heavier; or one number for all
            features. :func:`flowkit.statistics.tail_indices` estimates them.
        context: Number of context features, which are standardised.
        layers: Number of autoregressive or coupling layers.
        hidden: Widths of the hidden layers of each network; (64, 64) by default.
        activation: Activation of each network; ``"silu"`` by default.
        scalar: ``"spline"``, ``"affine"``, or a scalar map that is linear in its tails, with
            slopes of bounded size.
        conditioner: The network: ``"mlp"``, with ``structure="coupling"`` also ``"residual"``, or
            a factory as for :func:`coupling_flow` or :func:`autoregressive_flow`, which takes
            ``encoding=`` too.
        lower: Lower ends of the data, as in :func:`coupling_flow`. Tails then are those behind
            :class:`flowkit.transforms.Unconstrain`, with which the flow starts: those of
            logarithms, for positive data.
        upper: Upper ends of the data, likewise.
        variant: One of the above.
        structure: ``"autoregressive"``, or ``"coupling"`` for layers that transform every other
            feature and are as fast in both directions.
        seed: Seed of the permutations and initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311; Jaini et al. 2020, arXiv 1907.04481,
        for ``"taf"``; Hickling, Prangle, arXiv 2406.16971, for ``"ttf"``.

    Example:
        >>> import torch
        >>> from flowkit import tail_adaptive_flow
        >>> flow = tail_adaptive_flow(3, tails=[2.0, None, 3.5], layers=2)
        >>> flow.log_prob(torch.tensor([1e8, 0.0, -1e8])).isfinite().item()
        True
    """
    name = "tail_adaptive_flow"
    sides = _sides(name, tails, features)
    kind, _, fixed = checks.choice(name, "variant", variant, _VARIANTS).partition("-")
    known, coupled = parts.networks(name, structure)
    if coupled and features + context < 2:
        words, remedy = "more than 1 feature(s), or context to read", "structure='autoregressive'"
        raise checks.fail(name, "features", words, features, remedy)
    maps = parts.scalar_map(name, scalar, _SCALARS)
    net: Any = functools.partial(
        parts.network(name, conditioner, known, hidden, activation, default=(64, 64)),
        encoding=AsinhEncoding(),
    )
    heavy = [i for i, pair in enumerate(sides) if min(pair) < math.inf]
    light = [i for i in range(features) if i not in heavy]
    groups = (len(light), len(heavy)) if kind == "mtaf" else (0, features)
    order = range(features) if kind in _START_DF else light + heavy
    stack = parts.unconstrained(name, features, lower, upper)
    stack += [Standardize(features, robust=True), Permutation(order)]
    if kind == "ttf" and heavy:
        stack.append(_tail_maps([sides[i] for i in heavy], len(light), learned=not fixed))
    for i in range(layers):
        first, second = map(parts.shuffled, groups)
        mixed = [*first, *(groups[0] + j for j in second)]
        stack += [Permutation(mixed), LULinear(features, groups=groups)]
        if coupled:
            stack.append(_coupling(groups, i, maps, net, context))
        else:
            stack.append(parts.autoregressive(features, maps, net, context))
    base = _base(kind, [min(sides[i]) for i in heavy], features, learned=not fixed)
    return parts.finish(stack, base, context)


def _sides(name: str, tails: Any, features: int) -> list[tuple[float, float]]:
    """The index of the left and right tail of each feature."""
    listed = checks.as_list(tails)
    listed = [tails] * features if listed is None else listed
    pairs = [checks.as_list(tail) or (tail, tail) for tail in listed]
    sides = [tuple(math.inf if t is None else checks.as_float(t) for t in pair) for pair in pairs]
    if len(sides) != features or any(
        len(pair) != 2 or not all(t > 0 for t in pair) for pair in sides
    ):
        words = f"a tail index > 0 for each of {features} feature(s), or a pair, left and right"
        raise checks.fail(name, "tails", words, tails, "None or infinity for a light tail")
    return sides  # type: ignore[return-value]


def _tail_maps(sides: list[tuple[float, float]], light: int, *, learned: bool) -> Elementwise:
    """Generalised Pareto tails to normal ones; light features first, by affine maps."""
    maps = (*[Affine()] * light, *[TailTransform()] * len(sides))
    layer = Elementwise(len(maps), PerFeature(maps))
    starts = [[TailTransform.raw(1 / index) for index in pair] for pair in sides]
    (params,) = layer.parameters()
    with torch.no_grad():
        params[light:] = torch.tensor(starts).to(params)
    params.requires_grad_(learned)
    return layer


def _coupling(
    groups: tuple[int, int], layer: int, scalar: ScalarMap, net: parts.Factory, context: int
) -> Transform:
    """Transform every other feature, those of a group given the rest of it and groups before."""
    features = sum(groups)
    mask = [features == 1 or (i + layer) % 2 == 1 for i in range(features)]
    ends = list(itertools.pairwise([0, *itertools.accumulate(groups)]))
    grouped = functools.partial(
        GroupedConditioner,
        conditioning=[b - a - sum(mask[a:b]) for a, b in ends],
        transformed=[sum(mask[a:b]) for a, b in ends],
        conditioner=net,
    )
    return Coupling(mask, scalar, conditioner=grouped, context=context)


def _base(kind: str, indices: list[float], features: int, *, learned: bool) -> Base:
    """The base: normal, Student-t, or by groups, light features first."""
    if kind == "ttf":
        return StandardNormal(features)
    if kind in _START_DF:
        return StudentT(features, df=_START_DF[kind], shared=kind == "taf")
    tailed = functools.partial(StudentT, df=indices, learn=learned)
    light = features - len(indices)
    return parts.product((StandardNormal, range(light)), (tailed, range(light, features)))
