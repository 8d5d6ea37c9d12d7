"""One scalar map per feature: periodic, bounded and real variables in one layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.errors import ShapeError
from flowkit.scalar.base import ScalarMap


@register
@dataclass(frozen=True)
class PerFeature(ScalarMap):
    """One scalar map per feature, for real, bounded and periodic variables in one layer.

    Layers hand features to a scalar map along the first dimension; feature i goes to map i.
    ``param_size`` is the largest; a map that needs fewer reads the first ones.

    Args:
        maps: One scalar map per feature of the layer, in the order of the features.

    Raises:
        ArgumentError: If there are no maps, or something else among them.
        ShapeError: If a layer has another number of features.

    Example:
        >>> import torch
        >>> from flowkit.scalar import Affine, CircularSpline, PerFeature
        >>> from flowkit.transforms import Coupling
        >>> t = Coupling([True, False, True], PerFeature((Affine(), Affine(), CircularSpline())))
        >>> t(torch.zeros(5, 3))[0].shape
        torch.Size([5, 3])
    """

    maps: tuple[ScalarMap, ...]

    # Of every object its own, made of the maps.
    _lengths: ClassVar[tuple[int, ...]]
    _groups: ClassVar[tuple[tuple[ScalarMap, tuple[int, ...]], ...]]

    def __post_init__(self) -> None:
        listed = checks.as_list(self.maps)
        if not listed or not all(isinstance(m, ScalarMap) for m in listed):
            raise checks.fail("PerFeature", "maps", "one ScalarMap per feature", self.maps)
        maps = tuple(listed)
        # Runs of equal maps are cut out, joined by map, transformed, and put back in order.
        runs = [(m, len(list(run))) for m, run in itertools.groupby(maps)]
        groups = (
            (m, tuple(i for i, (other, _) in enumerate(runs) if other == m))
            for m in dict.fromkeys(maps)
        )
        vars(self).update(
            maps=maps,
            param_size=max(m.param_size for m in maps),
            starts_at_identity=all(m.starts_at_identity for m in maps),
            smoothness=min(m.smoothness for m in maps),
            _lengths=tuple(n for _, n in runs),
            _groups=tuple(groups),
        )

    def fixes(self, end: Tensor) -> Tensor:
        """Where each map does; ``end`` has one entry per map."""
        return torch.stack([m.fixes(row) for m, row in zip(self.maps, end, strict=True)])

    def joints(self, params: Tensor) -> Tensor:
        """The points of all maps, each with the parameters that it would read."""
        points = [m.joints(params[..., : m.param_size]) for m in dict.fromkeys(self.maps)]
        return torch.cat(points, -1).sort(-1).values

    def take(self, features: Sequence[int], of: int) -> ScalarMap:
        """The maps of these features; one map where they share it."""
        if of != len(self.maps):
            raise ShapeError(
                f"PerFeature holds {len(self.maps)} maps and the layer has {of} features; remedy: "
                "one map for every feature of the layer, also for those that are not transformed"
            )
        maps = tuple(self.maps[i] for i in features)
        return maps[0] if len(set(maps)) == 1 else PerFeature(maps)

    def _apply(self, direction: str, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() == 0 or len(x) != len(self.maps):
            raise ShapeError(
                f"PerFeature expected {len(self.maps)} features first, one per map, got "
                f"{tuple(x.shape)}"
            )
        own = params.dim() == x.dim() + 1
        rows = x.split(self._lengths)
        row_params = params.split(self._lengths) if own else ()
        values, log_slopes = list(rows), list(rows)
        for m, runs in self._groups:
            together = torch.cat([rows[i] for i in runs])
            theirs = torch.cat([row_params[i] for i in runs]) if own else params
            value, log_slope = getattr(m, direction)(together, theirs[..., : m.param_size])
            lengths = [self._lengths[i] for i in runs]
            pieces = zip(runs, value.split(lengths), log_slope.split(lengths), strict=True)
            for i, new, new_log_slope in pieces:
                values[i], log_slopes[i] = new, new_log_slope
        return torch.cat(values), torch.cat(log_slopes)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return each feature's map at ``x`` and its log-slope."""
        return self._apply("forward", x, params)

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return each feature's inverse at ``y`` and its log-slope."""
        return self._apply("inverse", y, params)
