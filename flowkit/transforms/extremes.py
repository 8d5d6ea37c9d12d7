"""Samples of features in order, and the tails of splines beyond their outermost knots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.transforms.covariance import FOLDS
from flowkit.transforms.margins import tail

# Samples beyond the outermost knots, and for the choice of a tail.
BEYOND = 8
_TAIL = (25, 100)
_SHAPES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0)
# Nats over all samples by which a power-law tail, or a spline, has to be better.
CLEARLY = 3.0
# The largest slope in units of the features.
STEEPEST = 1e5


class Sorted(NamedTuple):
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
    def of(cls, values: Tensor, taken: Tensor) -> Sorted:
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


def normal_quantile(p: float) -> float:
    """The quantile of the standard normal."""
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def end_slopes(
    subsets: Sorted, x: Tensor, z: Tensor, slope: Tensor, count: Tensor, shapes: Tensor
) -> tuple[Tensor, Tensor]:
    """Slopes of the tails by maximum likelihood; a tail that cannot be heavy has shape 0."""
    width = min(subsets.values.shape[-1], 4 * BEYOND + subsets.values.shape[-1] // 2_500)
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
    fitted = fitted.clamp(max=STEEPEST).clamp(bin_slope / 30, bin_slope * 30)
    places = torch.arange(slope.shape[-1], device=x.device)
    slope = torch.where(places == 0, fitted[0].unsqueeze(-1), slope)
    end = places >= (count - 1).clamp_min(1).unsqueeze(-1)
    return torch.where(end, fitted[1].unsqueeze(-1), slope), torch.stack(tuple(shape), -1)


def _taken(subsets: Sorted) -> Tensor:
    """Which values each subset takes."""
    return subsets.up_to.diff(dim=-1, prepend=torch.zeros_like(subsets.up_to[..., :1])) > 0


def _window(subsets: Sorted, width: int) -> Tensor:
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


def choose_shapes(folds: Sorted, fold: Tensor) -> Tensor:
    """Shapes of both tails ``(D, 2)``: 0 unless held-out samples clearly prefer a power law."""
    count = folds.values.shape[-1]
    beyond = min(max(_TAIL[0], round(0.02 * count)), _TAIL[1], count // 4)
    width = min(count, round(1.5 * beyond) + 10)
    window = _window(folds, width)
    at = normal_quantile(1 - beyond / count)
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
    clearly = score.amax(0) > score[0] + CLEARLY
    grid = window.new_tensor(_SHAPES)
    return torch.where(clearly, grid[best], torch.zeros_like(window[..., 0])).mT
