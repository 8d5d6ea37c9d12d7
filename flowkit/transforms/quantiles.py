"""Fit marginal splines to samples: knots at quantiles, their number by cross-validation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.transforms.covariance import FOLDS, folds_by_row, folds_by_value, held_out
from flowkit.transforms.margins import Margins, tail, to_normal

#: Knots that may stand at the sides of gaps, two per gap.
GAP_KNOTS = 8
# Samples that choices are made with, and those of the choice between all maps and none.
_ROWS, _ROWS_JOINT = 10_000, 5_000
_FEWEST = 50
_PER_KNOT = 10
# Samples beyond the outermost knots, and for the choice of a tail.
_BEYOND = 8
_TAIL = (25, 100)
_SHAPES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0)
# Nats over all samples by which a power-law tail, or a spline, has to be better.
_CLEARLY = 3.0
_STEEPEST = 1e4
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


class _Sorted(NamedTuple):
    """Sorted samples of features ``(D, n)``, and F subsets of them.

    Attributes:
        values: The samples.
        up_to: How many up to each a subset takes ``(F, D, n)``.
        size: How many it takes ``(F, D)``.
    """

    values: Tensor
    up_to: Tensor
    size: Tensor

    @classmethod
    def of(cls, values: Tensor, taken: Tensor) -> _Sorted:
        """From which values each subset takes, ``(F, D, n)``."""
        up_to = taken.cumsum(-1)
        return cls(values, up_to, up_to[..., -1])

    def at(self, position: Tensor) -> Tensor:
        """The values between whose places, counted from 0, a position ``(F, D, m)`` lies."""
        position = torch.minimum(position.clamp_min(0), self.size.unsqueeze(-1) - 1.0)
        low = position.floor()
        both = torch.stack([low, torch.minimum(low + 1, self.size.unsqueeze(-1) - 1.0)]) + 1
        index = torch.searchsorted(
            self.up_to.expand(2, *self.up_to.shape).contiguous(), both.long()
        )
        index = index.clamp_max(self.values.shape[-1] - 1)
        first, second = self.values.expand(2, *self.up_to.shape).gather(-1, index)
        return torch.lerp(first, second, position - low)


def fit_margins(rows: Tensor, knots: int, rounding: float, offset: Tensor) -> Margins:
    """Fit one spline per feature.

    Args:
        rows: Samples ``(n, D)`` in float64, of a scale near one.
        knots: Largest number of knots, besides those at gaps.
        rounding: Least distance of two knots relative to where they are.
        offset: Distance of each feature from its own zero ``(D,)``, to be added to this.

    Returns:
        Splines of ``knots`` + 8 knots.
    """
    count, features = rows.shape
    form = _Form(knots + GAP_KNOTS, rounding, offset)
    some = rows[torch.linspace(0, count - 1, min(count, _ROWS), device=rows.device).long()]
    values = some.mT.sort().values
    fold = folds_by_value(values)
    each = torch.arange(FOLDS, device=rows.device).view(-1, 1, 1)
    folds = _Sorted.of(values, fold != each)
    distinct = 1 + (values.diff() > 0).sum(-1)
    chosen = torch.zeros(features, dtype=torch.long, device=rows.device)
    shapes = rows.new_zeros(features, 2)
    enough = (distinct >= _FEWEST) & (folds.size.amin(0) * FOLDS >= 0.5 * len(some))
    if bool(enough.any()):
        shapes = _choose_shapes(folds, fold)
        chosen = _choose_knots(folds, fold, shapes, knots, form, distinct) * enough
    if bool((chosen > 0).any()) and features > 1:
        chosen = chosen * _maps_are_better(some, chosen, shapes, form)
    everything = rows.mT.sort().values
    whole = _Sorted.of(everything, torch.ones_like(everything, dtype=torch.bool).unsqueeze(0))
    return _fit_each(whole, chosen, shapes, form)


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
    folds: _Sorted,
    fold: Tensor,
    shapes: Tensor,
    knots: int,
    form: _Form,
    distinct: Tensor,
) -> Tensor:
    """The number of knots of each feature, 0 for none, by the likelihood of held-out samples."""
    values, features = folds.values, len(folds.values)
    row = fold * features + torch.arange(features, device=fold.device).unsqueeze(-1)
    best, chosen = _affine_score(folds, fold) + _CLEARLY, torch.zeros_like(distinct)
    for number in numbers_of_knots(knots):
        allowed = distinct >= number * _PER_KNOT
        if not bool(allowed.any()):
            break
        margins = _fit(folds, number, shapes, form)
        z, log_slope = to_normal(margins, values, row)
        score = (log_slope - 0.5 * z.square() - _LOG_NORMAL).sum(-1)
        better = allowed & (score > best)
        best = torch.where(better, score, best)
        chosen = torch.where(better, number, chosen)
    return chosen


def _affine_score(folds: _Sorted, fold: Tensor) -> Tensor:
    """The log-likelihood of held-out samples under normals fitted to the others."""
    each = torch.arange(FOLDS, device=fold.device).view(-1, 1, 1)
    taken = (fold != each).double()
    mean = (taken * folds.values).sum(-1) / folds.size
    square = (taken * (folds.values - mean.unsqueeze(-1)).square()).sum(-1) / folds.size
    scale = square.sqrt().clamp_min(1e-300)
    mean, scale = (v.mT.gather(1, fold) for v in (mean, scale))
    z = (folds.values - mean) / scale
    return (-0.5 * z.square() - scale.log() - _LOG_NORMAL).sum(-1)


def _maps_are_better(rows: Tensor, chosen: Tensor, shapes: Tensor, form: _Form) -> bool:
    """Whether a Gaussian fits held-out samples better behind the maps than without them."""
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS_JOINT)).long()]
    fold = folds_by_row(rows)
    values, order = rows.mT.sort()
    each = torch.arange(FOLDS, device=rows.device).view(-1, 1, 1)
    folds = _Sorted.of(values, fold[order] != each)
    if int(folds.size.min()) < 2 or int((fold == each.view(-1, 1)).sum(-1).min()) < 1:
        return True
    least = max(1e-14, form.rounding**2)
    with_maps, without = torch.zeros(3).double(), torch.zeros(3).double()
    margins = _fit_each(folds, chosen, shapes, form)
    places = torch.arange(rows.shape[1], device=rows.device)
    for j in range(FOLDS):
        held = fold == j
        z, log_slope = to_normal(margins, rows, j * rows.shape[1] + places)
        with_maps += held_out(z[~held], z[held], least) + float(log_slope[held].sum())
        without += held_out(rows[~held], rows[held], least)
    return bool(with_maps.max() > without.max())


def _fit_each(subsets: _Sorted, numbers: Tensor, shapes: Tensor, form: _Form) -> Margins:
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
        part = _Sorted(subsets.values[at], subsets.up_to[:, at], subsets.size[:, at])
        fitted = _fit(part, number, shapes[at], form._replace(offset=form.offset[at]))
        for whole, some in zip(result, fitted, strict=True):
            whole[:, at] = some.unflatten(0, (count, -1))
    return Margins(*(field.flatten(0, 1) for field in result))


def _fit(subsets: _Sorted, number: int, shapes: Tensor, form: _Form) -> Margins:
    """Splines with ``number`` knots, and those at gaps, of each subset."""
    count, features = subsets.size.shape
    top = _normal_quantile(1 - max(_BEYOND / subsets.values.shape[-1], 1e-4))
    z = torch.linspace(-top, top, number, dtype=subsets.values.dtype, device=shapes.device)
    position = torch.special.ndtr(z) * subsets.size.unsqueeze(-1) - 0.5
    x = subsets.at(position)
    x, z, valid = _with_gaps(subsets, x, z.expand_as(x))
    x, z, kept = _spread(x, z, valid, form)
    slope = _slopes(x, z, kept)
    slope, shapes = _end_slopes(subsets, x, z, slope, kept, shapes)
    # Fewer knots say nothing about the form.
    kept = torch.where(kept >= 3, kept, 0)
    whole = Margins(x, z, slope, kept, shapes)
    return Margins(*(field.flatten(0, 1) for field in whole))


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _with_gaps(subsets: _Sorted, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add knots at both sides of wide gaps; say which are to be kept."""
    values, count = subsets.values, subsets.values.shape[-1]
    reach, gaps = max(4, count // 100), GAP_KNOTS // 2
    valid = torch.ones_like(x, dtype=torch.bool)
    if count < 4 * reach:
        return x, z, valid
    gap = values.diff()[:, reach - 1 : 1 - reach]
    windows = values[:, reach - 1 :] - values[:, : 1 - reach]
    beside = torch.maximum(windows[:, : gap.shape[1]], windows[:, -gap.shape[1] :])
    ratio = torch.where(beside > 0, gap / beside.clamp_min(1e-300), torch.zeros_like(gap))
    found, index = ratio.topk(min(gaps, ratio.shape[-1]))
    lower, wide = index + reach - 1, found > 10
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
        least = torch.maximum(rise / _STEEPEST, rounding * (x[..., k].abs() + offset))
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


def _end_slopes(
    subsets: _Sorted, x: Tensor, z: Tensor, slope: Tensor, count: Tensor, shapes: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes of the tails by maximum likelihood; a tail that cannot be heavy has shape 0."""
    width = min(subsets.values.shape[-1], 4 * _BEYOND + subsets.values.shape[-1] // 2_500)
    window = _window(subsets, width)
    taken = _taken(subsets)
    taken = torch.stack([taken[..., :width].flip(-1), taken[..., -width:]])
    knot, at = (torch.stack([-v[..., 0], v[..., -1]]) for v in (x, z))
    shape = shapes.mT.unsqueeze(1).expand_as(at)
    shape = torch.where(at > 0.5, shape, torch.zeros_like(shape))
    distance = window.unsqueeze(1) - knot.unsqueeze(-1)
    # The two ends are beyond the slopes at hand, so that these can be bounded by them.
    bin_slope = torch.stack([slope[..., 0], slope[..., -1]])
    fitted = _steepness(distance, taken & (distance > 0), at, shape, bin_slope)
    fitted = fitted.clamp(max=_STEEPEST).clamp(bin_slope / 30, bin_slope * 30)
    places = torch.arange(slope.shape[-1], device=x.device)
    slope = torch.where(places == 0, fitted[0].unsqueeze(-1), slope)
    end = places >= (count - 1).clamp_min(1).unsqueeze(-1)
    return torch.where(end, fitted[1].unsqueeze(-1), slope), torch.stack(tuple(shape), -1)


def _taken(subsets: _Sorted) -> Tensor:
    """Which values each subset takes."""
    return subsets.up_to.diff(dim=-1, prepend=torch.zeros_like(subsets.up_to[..., :1])) > 0


def _window(subsets: _Sorted, width: int) -> Tensor:
    """The values at both ends ``(2, D, width)``, the lower ones with their sign changed."""
    values = subsets.values
    return torch.stack([-values[:, :width].flip(-1), values[:, -width:]])


def _tail_density(distance: Tensor, at: Tensor, shape: Tensor, log_slope: Tensor) -> Tensor:
    """Log-densities at distances beyond knots, less constants of the knot."""
    u, change = tail(
        distance * log_slope.exp().unsqueeze(-1), at.unsqueeze(-1), shape.unsqueeze(-1)
    )
    return 0.5 * (at.square().unsqueeze(-1) - u.square()) + change + log_slope.unsqueeze(-1)


def _steepness(
    distance: Tensor, taken: Tensor, at: Tensor, shape: Tensor, default: Tensor
) -> Tensor:
    """The slope of a tail with the highest likelihood; a default for fewer than two samples."""
    weight = taken.double()
    distance = torch.where(taken, distance, torch.zeros_like(distance))
    count, total, square = weight.sum(-1), distance.sum(-1), distance.square().sum(-1)
    enough = (count >= 2) & (square > 0)
    square = torch.where(enough, square, torch.ones_like(square))
    normal = (4 * square * count + (at * total).square()).sqrt() - at * total
    normal = normal / (2 * square)
    normal = torch.where(enough, normal, default)
    heavy = enough & (shape > 0)
    if not bool(heavy.any()):
        return normal
    xi, start = (torch.where(heavy, v, torch.ones_like(v)).unsqueeze(-1) for v in (shape, at))
    low, high = normal.log() - 2, normal.log() + 6
    for _ in range(20):
        middle = 0.5 * (low + high)
        t = distance * middle.exp().unsqueeze(-1)
        w = t * (start + 0.5 * t)
        rise = t * (start + t) / (1 + xi * w)
        u2 = start * start + 2 * torch.log1p(xi * w) / xi
        slope = (weight * (1 + t / (start + t) - (1 + xi + 1 / u2) * rise)).sum(-1)
        low, high = torch.where(slope > 0, middle, low), torch.where(slope > 0, high, middle)
    return torch.where(heavy, low.exp(), normal)


def _choose_shapes(folds: _Sorted, fold: Tensor) -> Tensor:
    """Shapes of both tails ``(D, 2)``: 0 unless held-out samples clearly prefer a power law."""
    count = folds.values.shape[-1]
    beyond = min(max(_TAIL[0], round(0.02 * count)), _TAIL[1], count // 4)
    width = min(count, round(1.5 * beyond) + 10)
    window = _window(folds, width)
    at = _normal_quantile(1 - beyond / count)
    position = folds.size.unsqueeze(-1) * torch.stack(
        [window.new_tensor(beyond / count), window.new_tensor(1 - beyond / count)]
    )
    low, high = folds.at(position - 0.5).unbind(-1)
    distance = window.unsqueeze(1) - torch.stack([-low, high]).unsqueeze(-1)
    which = torch.stack([fold[..., :width].flip(-1), fold[..., -width:]]).unsqueeze(1)
    each = torch.arange(FOLDS, device=fold.device).view(-1, 1, 1)
    there = distance > 0
    scores = []
    for xi in _SHAPES:
        start = torch.full_like(distance[..., 0], at)
        shape = torch.full_like(start, xi)
        slope = _steepness(distance, there & (which != each), start, shape, torch.ones_like(start))
        held = torch.where(there, distance, torch.zeros_like(distance))
        density = _tail_density(held, start, shape, slope.log())
        scores.append(torch.where(there & (which == each), density, 0.0).sum((1, -1)))
    score = torch.stack(scores)
    best = score.argmax(0)
    clearly = score.amax(0) > score[0] + _CLEARLY
    grid = window.new_tensor(_SHAPES)
    return torch.where(clearly, grid[best], torch.zeros_like(window[..., 0])).mT
