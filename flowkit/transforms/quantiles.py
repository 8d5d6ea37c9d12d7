"""Fit marginal splines to samples: knots at quantiles, their number by cross-validation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.numerics.types import Context
from flowkit.transforms.covariance import (
    FOLDS,
    folds_by_row,
    folds_by_value,
    held_out,
    ridge_regression,
)
from flowkit.transforms.extremes import (
    BEYOND,
    CLEARLY,
    STEEPEST,
    Sorted,
    choose_shapes,
    end_slopes,
    normal_quantile,
)
from flowkit.transforms.margins import Margins, to_normal

#: Knots that may stand at the sides of gaps, two per gap.
GAP_KNOTS = 8
# Samples that choices are made with: at most so many, and numbers, but not fewer than the third;
# and those of the choice between all maps and none.
_ROWS, _NUMBERS, _FEW_ROWS, _ROWS_JOINT = 10_000, 640_000, 2_000, 5_000
# Features beyond which that choice would take minutes.
_FEATURES = 1_000
_FEWEST = 50
_PER_KNOT = 10
# How much wider than what is beside it a gap is, that counts as one.
_WIDE = 10.0
# And how much wider it is when it has been shortened.
_SHORT = 3.0
# Share of the samples from which on a value is an atom.
_ATOM = 0.02
# Standard errors by which a spline has to be better than none, the gain of a sample counted up to
# so many nats, and fewer maps better than all of them; and shares of a feature's variance, as a
# residual of the others, below which it has none.
_ERRORS, _MOST_GAIN = 2.0, 5.0
_OWN = (1e-4, 1e-2)
# Penalty of the regression on context, relative to its variance.
_RIDGE = 1e-3
_LOG_NORMAL = 0.5 * math.log(2 * math.pi)


class _Form(NamedTuple):
    """Numbers of knots to store, and what their distances depend on.

    Attributes:
        size: Number of knots that are stored.
        rounding: Least relative distance of knots.
        offset: What is added to a feature's distance from 0 for it ``(D,)``.
    """

    size: int
    rounding: float
    offset: Tensor


def fit_margins(
    rows: Tensor, knots: int, rounding: float, offset: Tensor, context: Context = None
) -> Margins:
    """Fit one spline per feature.

    Args:
        rows: Samples ``(n, D)`` in float64, of a scale near one.
        knots: Largest number of knots, besides those at gaps.
        rounding: Least distance of two knots relative to where they are.
        offset: Distance of each feature from its own zero ``(D,)``, to be added to this.
        context: Context ``(n, C)`` of the samples, on which they may depend linearly.

    Returns:
        Splines of ``knots`` + 8 knots.
    """
    count, features = rows.shape
    form = _Form(knots + GAP_KNOTS, rounding, offset)
    most = min(_ROWS, max(_FEW_ROWS, _NUMBERS // features))
    some = _spaced(rows, most)
    values = some.mT.sort().values
    fold = torch.where(_atoms(values), -1, folds_by_value(values))
    each = torch.arange(FOLDS, device=rows.device).view(-1, 1, 1)
    folds = Sorted.of(values, fold != each)
    distinct = 1 + (values.diff() > 0).sum(-1)
    chosen = torch.zeros(features, dtype=torch.long, device=rows.device)
    shapes = rows.new_zeros(features, 2)
    enough = (distinct >= _FEWEST) & (folds.size.amin(0) * FOLDS >= 0.5 * len(some))
    if bool(enough.any()):
        shapes = choose_shapes(folds, fold)
        chosen = _choose_knots(folds, fold, shapes, knots, form, distinct) * enough
    alone = features == 1 and context is None
    if bool((chosen > 0).any()) and not alone and features <= _FEATURES:
        read = None if context is None else _spaced(_spaced(context, most), _ROWS_JOINT)
        chosen = chosen * _which_maps(_spaced(some, _ROWS_JOINT), read, chosen, shapes, form)
    everything = rows.mT.sort().values
    whole = Sorted.of(everything, torch.ones_like(everything, dtype=torch.bool).unsqueeze(0))
    return _fit_each(whole, chosen, shapes, form)


def _spaced(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spaced."""
    count = min(len(rows), most)
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]


def _atoms(values: Tensor) -> Tensor:
    """Which sorted values are so frequent that they say nothing about a density.

    All subsets have them, and a spline may lose by them, but not win.
    """
    values = values.contiguous()
    ends = (torch.searchsorted(values, values, side=side) for side in ("left", "right"))
    first, behind = ends
    return behind - first > max(_ATOM * values.shape[-1], 10)


def numbers_of_knots(most: int) -> list[int]:
    """Candidates down from the largest number, each about two thirds of the one before.

    Example:
        >>> numbers_of_knots(40)
        [4, 6, 9, 13, 19, 28, 40]
    """
    numbers = []
    number = float(most)
    while number >= 4:
        numbers.append(round(number))
        number /= 1.45
    return numbers[::-1]


def _choose_knots(
    folds: Sorted,
    fold: Tensor,
    shapes: Tensor,
    knots: int,
    form: _Form,
    distinct: Tensor,
) -> Tensor:
    """The number of knots of each feature, 0 for none, by the likelihood of held-out samples."""
    values, features = folds.values, len(folds.values)
    row = fold.clamp_min(0) * features + torch.arange(features, device=fold.device).unsqueeze(-1)
    affine = _affine_density(folds, fold)
    best, chosen, densities = affine.sum(-1) + CLEARLY, torch.zeros_like(distinct), affine
    for number in numbers_of_knots(knots):
        allowed = distinct >= number * _PER_KNOT
        if not bool(allowed.any()):
            break
        margins = _fit(folds, number, shapes, form)
        z, log_slope = to_normal(margins, values, row)
        density = log_slope - 0.5 * z.square() - _LOG_NORMAL
        density = torch.where(fold < 0, torch.minimum(density, affine), density)
        score = density.sum(-1)
        better = allowed & (score > best)
        best = torch.where(better, score, best)
        chosen = torch.where(better, number, chosen)
        densities = torch.where(better.unsqueeze(-1), density, densities)
    # The best of many numbers; outliers gain much, and say little about how likely a gain is.
    gain = (densities - affine).clamp(max=_MOST_GAIN)
    clearly = gain.mean(-1) > _ERRORS * gain.std(-1) / gain.shape[-1] ** 0.5
    return torch.where(clearly, chosen, 0)


def _affine_density(folds: Sorted, fold: Tensor) -> Tensor:
    """The log-densities of held-out samples under normals fitted to the others."""
    each = torch.arange(FOLDS, device=fold.device).view(-1, 1, 1)
    taken = (fold != each).double()
    mean = (taken * folds.values).sum(-1) / folds.size
    square = (taken * (folds.values - mean.unsqueeze(-1)).square()).sum(-1) / folds.size
    scale = square.sqrt().clamp_min(1e-300)
    mean, scale = (v.mT.gather(1, fold.clamp_min(0)) for v in (mean, scale))
    z = (folds.values - mean) / scale
    return -0.5 * z.square() - scale.log() - _LOG_NORMAL


def _which_maps(
    rows: Tensor, context: Context, chosen: Tensor, shapes: Tensor, form: _Form
) -> Tensor:
    """Of which features maps remain ``(D,)``, by the density of held-out samples.

    Candidates are all, none, and those of features that are not nearly a linear function of the
    others and the context: what is linear there, maps of single features would bend.
    """
    beside = rows if context is None else torch.cat([rows, context], -1)
    fold = folds_by_row(beside)
    values, order = rows.mT.sort()
    each = torch.arange(FOLDS, device=rows.device).view(-1, 1, 1)
    folds = Sorted.of(values, fold[order] != each)
    own = _own_share(beside)[: rows.shape[1]]
    kept = own > own.new_tensor((-1.0, *_OWN, math.inf)).unsqueeze(-1)
    if int(folds.size.min()) < 2 or int((fold == each.view(-1, 1)).sum(-1).min()) < 1:
        return kept[0]
    least = max(1e-14, form.rounding**2)
    margins = _fit_each(folds, chosen, shapes, form)
    places = torch.arange(rows.shape[1], device=rows.device)
    parts: list[list[Tensor]] = [[] for _ in kept]
    for j in range(FOLDS):
        held = fold == j
        z, log_slope = to_normal(margins, rows, j * rows.shape[1] + places)
        for part, at in zip(parts, kept, strict=True):
            mixed = torch.where(at, z, rows)
            if context is not None:
                slopes = ridge_regression(context[~held], mixed[~held], _RIDGE)
                mixed = mixed - context @ slopes.mT
            density = held_out(mixed[~held], mixed[held], least)
            part.append(density + (log_slope * at)[held].sum(-1, keepdim=True))
    scores = torch.stack([_best_column(torch.cat(part)) for part in parts])
    best = int(scores.mean(-1).argmax())
    gain = scores[best] - scores[0]
    clearly = gain.mean() > _ERRORS * gain.std() / len(gain) ** 0.5
    return kept[best if bool(clearly) else 0]


def _own_share(rows: Tensor) -> Tensor:
    """The share of each feature's variance that is no linear function of the others."""
    centred = (rows - rows.mean(0)) / rows.std(0, correction=0).clamp_min(1e-300)
    correlation = centred.mT @ centred / len(rows)
    values, vectors = torch.linalg.eigh(correlation)
    # A constant context has a correlation of zero with itself, too.
    return 1 / (vectors.square() / values.clamp_min(1e-14)).sum(-1)


def _best_column(scores: Tensor) -> Tensor:
    return scores[:, int(scores.sum(0).argmax())]


def _fit_each(subsets: Sorted, numbers: Tensor, shapes: Tensor, form: _Form) -> Margins:
    """Splines ``(F D, size)`` of each subset with these numbers of knots ``(D,)``."""
    (count, features), size = subsets.size.shape, form.size
    blank = subsets.values.new_zeros(count, features, size)
    line = torch.linspace(-2, 2, size, dtype=blank.dtype, device=blank.device).expand_as(blank)
    counts = numbers.new_zeros(count, features)
    result = Margins(
        line.clone(), line.clone(), blank + 1, counts, shapes.expand(count, -1, -1).clone()
    )
    for number in numbers.unique().tolist():
        if not number:
            continue
        at = numbers == number
        part = Sorted(subsets.values[at], subsets.up_to[:, at], subsets.size[:, at])
        fitted = _fit(part, number, shapes[at], form._replace(offset=form.offset[at]))
        for whole, some in zip(result, fitted, strict=True):
            whole[:, at] = some.unflatten(0, (count, -1))
    return Margins(*(field.flatten(0, 1) for field in result))


def _fit(subsets: Sorted, number: int, shapes: Tensor, form: _Form) -> Margins:
    """Splines with ``number`` knots, and those at gaps, of each subset."""
    count, features = subsets.size.shape
    top = normal_quantile(1 - max(BEYOND / subsets.values.shape[-1], 1e-4))
    z = torch.linspace(-top, top, number, dtype=subsets.values.dtype, device=shapes.device)
    position = torch.special.ndtr(z) * subsets.size.unsqueeze(-1) - 0.5
    x = subsets.at(position)
    x, z, valid = _with_gaps(subsets, x, z.expand_as(x))
    x, z, kept = _spread(x, z, valid, form)
    slope = _slopes(x, z, kept)
    slope, shapes = end_slopes(subsets, x, z, slope, kept, shapes)
    # Fewer knots say nothing about the form.
    kept = torch.where(kept >= 3, kept, 0)
    whole = Margins(x, z, slope, kept, shapes)
    return Margins(*(field.flatten(0, 1) for field in whole))


def wide_gaps(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The widest gaps of sorted samples ``(D, n)``, up to four per row, but not at the ends.

    Returns:
        The place of the sample below each gap, whether the gap is wide: more than ten times what
        as many samples on either side span as one in a hundred, and that span.
    """
    count = values.shape[-1]
    reach = max(4, count // 100)
    if count < 4 * reach:
        none = values.new_zeros(len(values), 0)
        return none.long(), none.bool(), none
    gap = values.diff()[:, reach - 1 : 1 - reach]
    windows = values[:, reach - 1 :] - values[:, : 1 - reach]
    beside = torch.maximum(windows[:, : gap.shape[1]], windows[:, -gap.shape[1] :])
    ratio = torch.where(beside > 0, gap / beside.clamp_min(1e-300), torch.zeros_like(gap))
    found, index = ratio.topk(min(GAP_KNOTS // 2, ratio.shape[-1]))
    return index + reach - 1, found > _WIDE, beside.gather(-1, index)


def _with_gaps(subsets: Sorted, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add knots at both sides of wide gaps; say which are to be kept."""
    values, valid = subsets.values, torch.ones_like(x, dtype=torch.bool)
    lower, wide, _ = wide_gaps(values)
    if not lower.numel():
        return x, z, valid
    ends = (values.gather(-1, lower), values.gather(-1, lower + 1))
    passed = subsets.up_to.gather(-1, lower.expand(len(x), -1, -1))
    level = [
        ((passed + half) / subsets.size.unsqueeze(-1)).clamp(1e-6, 1 - 1e-6)
        for half in (-0.5, 0.5)
    ]
    for a, b, ok in zip(*(end.unbind(-1) for end in (*ends, wide)), strict=True):
        within = (x > a.unsqueeze(-1)) & (x < b.unsqueeze(-1)) & ok.unsqueeze(-1)
        valid = valid & ~within
    x = torch.cat([x, *(end.expand_as(passed) for end in ends)], -1)
    z = torch.cat([z, *(torch.special.ndtri(p) for p in level)], -1)
    valid = torch.cat([valid, *[wide.expand_as(passed)] * 2], -1)
    order = z.argsort(stable=True, dim=-1)
    return x.gather(-1, order), z.gather(-1, order), valid.gather(-1, order)


def shortened(rows: Tensor, rounding: float, offset: Tensor) -> Margins:
    """Splines of slope one whose wide gaps are short, then standardised.

    Args:
        rows: Standardised samples ``(n, D)`` in float64.
        rounding: See :func:`fit_margins`.
        offset: See :func:`fit_margins`.

    Returns:
        Splines of 8 knots, none for features without wide gaps.
    """
    values = rows.mT.sort().values
    features, blank = len(values), rows.new_zeros(len(values), GAP_KNOTS)
    none = Margins(blank, blank, blank + 1, blank[:, 0].long(), rows.new_zeros(features, 2))
    lower, wide, beside = wide_gaps(values)
    if not bool(wide.any()):
        return none
    # Gaps in the order of the values, those that are none at the end.
    lower, order = torch.where(wide, lower, values.shape[-1] - 2).sort(stable=True)
    wide, beside = wide.gather(-1, order), beside.gather(-1, order)
    ends = [values.gather(-1, lower + side) for side in (0, 1)]
    less = torch.where(wide, ends[1] - ends[0] - _SHORT * beside, 0.0)
    passed = less.cumsum(-1)
    x = torch.stack(ends, -1).flatten(-2)
    z = x - torch.stack([passed - less, passed], -1).flatten(-2)
    form = _Form(GAP_KNOTS, rounding, offset)
    x, z, kept = _spread(x, z, wide.repeat_interleave(2, -1), form)
    mapped = Margins(x, z, torch.ones_like(x), kept, none.shape)
    image = to_normal(mapped, values, torch.arange(features, device=x.device).unsqueeze(-1))[0]
    mean, scale = image.mean(-1, keepdim=True), image.std(-1, correction=0, keepdim=True)
    return mapped._replace(z=(z - mean) / scale, slope=mapped.slope / scale)


def _spread(x: Tensor, z: Tensor, valid: Tensor, form: _Form) -> tuple[Tensor, Tensor, Tensor]:
    """Drop knots that stand too close, from the middle outwards; fill up with the last."""
    number, (size, rounding, offset) = x.shape[-1], form
    kept = torch.zeros_like(valid)
    seen = torch.zeros_like(valid[..., 0])
    last = [x[..., 0], z[..., 0]]
    for k in (*range(number // 2, number), *range(number // 2)[::-1]):
        if k == number // 2 - 1:  # back to the first that was kept
            first = kept.long().argmax(-1, keepdim=True)
            last = [values.gather(-1, first).squeeze(-1) for values in (x, z)]
        step, rise = ((v[..., k] - w).abs() for v, w in zip((x, z), last, strict=True))
        least = torch.maximum(rise / STEEPEST, rounding * (x[..., k].abs() + offset))
        take = valid[..., k] & (~seen | ((step > least) & (rise > 1e-9)))
        kept[..., k], seen = take, seen | take
        last = [torch.where(take, v[..., k], w) for v, w in zip((x, z), last, strict=True)]
    order = (~kept).long().argsort(stable=True, dim=-1)
    count = kept.sum(-1)
    places = torch.arange(size, device=x.device).expand(*count.shape, size)
    places = torch.minimum(places, (count - 1).clamp_min(0).unsqueeze(-1))
    order = order.gather(-1, places)
    return x.gather(-1, order), z.gather(-1, order), count


def _slopes(x: Tensor, z: Tensor, count: Tensor) -> Tensor:
    """Slopes at inner knots: weighted harmonic means; at the ends those of the bins there."""
    width, height = x.diff(), z.diff()
    real = torch.arange(width.shape[-1], device=x.device) < (count - 1).unsqueeze(-1)
    width, height = (torch.where(real, v, torch.ones_like(v)) for v in (width, height))
    steep = height / width
    left, right = width[..., :-1], width[..., 1:]
    inner = (left + right) / (right / steep[..., :-1] + left / steep[..., 1:])
    slope = torch.cat([steep[..., :1], inner, steep[..., -1:]], -1)
    last = (count - 2).clamp_min(0).unsqueeze(-1)
    behind = torch.arange(slope.shape[-1], device=x.device) > last
    return torch.where(behind, steep.gather(-1, last), slope)
