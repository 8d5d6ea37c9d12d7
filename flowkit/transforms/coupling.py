"""Coupling layers: one part of the features decides how the other part is moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.conditioners import MLP, ConvNet
from flowkit.config import register
from flowkit.errors import ShapeError
from flowkit.numerics.layout import features_first, features_last
from flowkit.scalar import RationalQuadraticSpline, ScalarMap
from flowkit.transforms.base import Transform
from flowkit.transforms.region import Region, ends_stay, keep_ends


@register
class Coupling(Transform):
    r"""Move the features under the mask by a scalar map whose parameters the others give.

    With A the features outside the mask and B those inside,
    :math:`z_A = x_A,\; z_B = f(x_B; \theta(x_A, c))` and
    :math:`\log|\det| = \sum_{i \in B} \log f'(x_i)`. Starts at the start of the scalar map.

    Args:
        mask: One boolean a feature, true where the feature is moved.
        scalar: The scalar map; rational-quadratic spline by default.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module`` of a network
            ``(x, context) -> (..., out_features)``, read as ``(..., param_size, moved features)``;
            :class:`flowkit.conditioners.MLP` or, for images, ``ConvNet`` by default.
        context: Number of context features, read by the conditioner.
        event_ndim: 1 for vectors; 3 for images ``(channels, height, width)``, where the features
            are the channels and the conditioner is one of images.

    Raises:
        ShapeError: If the mask moves nothing, or moves everything without context to read.

    References:
        Dinh et al. 2017, Real NVP, arXiv 1605.08803; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Coupling
        >>> t = Coupling([False, True, True])
        >>> z, log_det = t(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    fixed_index: Tensor
    moved_index: Tensor
    merge_index: Tensor

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        scalar: ScalarMap | None = None,
        conditioner: Callable[..., nn.Module] | None = None,
        context: int = 0,
        event_ndim: int = 1,
    ) -> None:
        if event_ndim not in (1, 3):
            raise ShapeError(
                f"Coupling expected event_ndim 1, of vectors, or 3, of images; got {event_ndim!r}"
            )
        conditioner = (MLP if event_ndim == 1 else ConvNet) if conditioner is None else conditioner
        mask = mask.tolist() if isinstance(mask, Tensor) else list(mask)
        if not all(m in (0, 1) for m in mask) or not any(mask):
            raise ShapeError(
                "Coupling expected a mask of one boolean a feature with at least one true, "
                f"got {mask}"
            )
        if all(mask) and not context:
            raise ShapeError(
                "Coupling needs a feature that stays, or context, to read from; a layer that "
                "moves every feature on its own is Elementwise"
            )
        super().__init__((len(mask), *(None,) * (event_ndim - 1)), context)
        fixed = [i for i, m in enumerate(mask) if not m]
        moved = [i for i, m in enumerate(mask) if m]
        scalar = RationalQuadraticSpline() if scalar is None else scalar
        self.scalar = scalar.take(moved, len(mask))
        self.keeps_intervals = self.scalar.keeps_interval
        joined = fixed + moved
        merge = sorted(range(len(mask)), key=joined.__getitem__)
        self.register_buffer("fixed_index", torch.tensor(fixed, dtype=torch.long), False)
        self.register_buffer("moved_index", torch.tensor(moved), False)
        self.register_buffer("merge_index", torch.tensor(merge), False)
        # Parts that lie side by side are cut and joined without gathers.
        self._fixed_first = joined == sorted(joined)
        self._moved_first = moved + fixed == sorted(joined)
        self._split_sizes = (len(fixed), len(moved))
        self.conditioner = conditioner(
            len(fixed), len(moved) * self.scalar.param_size, context=context
        )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features that stay and those that move, ``(features, *batch, *pixels)``."""
        rows = features_first(x, self.event_ndim)
        if self._fixed_first:
            fixed, moved = rows.split(self._split_sizes)
        elif self._moved_first:
            moved, fixed = rows.split(self._split_sizes[::-1])
        else:
            fixed, moved = (rows.index_select(0, i) for i in (self.fixed_index, self.moved_index))
        return fixed, moved

    def _merge(self, fixed: Tensor, moved: Tensor) -> Tensor:
        both = torch.cat([moved, fixed] if self._moved_first else [fixed, moved])
        if not (self._fixed_first or self._moved_first):
            both = both.index_select(0, self.merge_index)
        return features_last(both, self.event_ndim)

    def _params(self, fixed: Tensor, context: Tensor | None) -> Tensor:
        """Parameters ``(moved features, *batch, *pixels, param_size)``."""
        read = features_last(fixed, self.event_ndim)
        raw = features_first(self.conditioner(read, context).to(fixed.dtype), self.event_ndim)
        return raw.unflatten(0, (self.scalar.param_size, self._split_sizes[1])).movedim(0, -1)

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box of which the ends of the transformed features stay."""
        if self.event_shape == (1,) and context is not None:
            return keep_ends(self.scalar, region, self._map_ends(region, context, inverse))
        transformed = Region(*(self._split(end)[1] for end in region))
        return region if ends_stay(self.scalar, transformed) else None

    @property
    def starts_from_data(self) -> bool:
        """Whether the conditioner does."""
        return hasattr(self.conditioner, "initialize")

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the conditioner from what it reads."""
        if self.starts_from_data:
            read = features_last(self._split(x)[0], self.event_ndim)
            self.conditioner.initialize(read, context)  # type: ignore[operator]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move the masked features towards noise."""
        fixed, moved = self._split(x)
        z, log_slope = self.scalar.forward(moved, self._params(fixed, context))
        return self._merge(fixed, z), self._sum(log_slope)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move the masked features back to data."""
        fixed, moved = self._split(z)
        x, log_slope = self.scalar.inverse(moved, self._params(fixed, context))
        return self._merge(fixed, x), self._sum(log_slope)

    def _sum(self, log_slope: Tensor) -> Tensor:
        return log_slope.sum((0, *range(1 - self.event_ndim, 0)))
