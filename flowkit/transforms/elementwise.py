"""One scalar map a feature, with parameters of its own or from context."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkit.conditioners import MLP
from flowkit.config import register
from flowkit.numerics.layout import features_first, features_last
from flowkit.scalar import RationalQuadraticSpline, ScalarMap
from flowkit.transforms.base import Transform
from flowkit.transforms.region import Region, ends_stay, keep_ends


@register
class Elementwise(Transform):
    r"""Move every feature on its own: :math:`z_i = f(x_i; \theta_i)`.

    Without context the parameters are the layer's own; with context a conditioner gives them.

    Args:
        features: Number of features D.
        scalar: The scalar map; rational-quadratic spline by default.
        context: Number of context features.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module``, read as in
            :class:`Coupling`; used with context only.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Elementwise
        >>> z, log_det = Elementwise(3)(torch.randn(5, 3))
        >>> log_det.shape
        torch.Size([5])
    """

    elementwise = True

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        context: int = 0,
        conditioner: Callable[..., nn.Module] = MLP,
    ) -> None:
        super().__init__((features,), context)
        scalar = RationalQuadraticSpline() if scalar is None else scalar
        self.scalar = scalar.take(range(features), features)
        self.keeps_intervals = self.scalar.keeps_interval
        size = self.scalar.param_size
        self.params = None if context else nn.Parameter(torch.zeros(features, size))
        self.conditioner = conditioner(0, features * size, context=context) if context else None

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box; without the context, one whose ends stay."""
        if self.needs_context and context is None:
            rows = Region(*(end.movedim(-1, 0) for end in region))
            return region if ends_stay(self.scalar, rows) else None
        return keep_ends(self.scalar, region, self._map_ends(region, context, inverse))

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Parameters ``(features, *batch, param_size)``, or what broadcasts to it."""
        if self.params is not None:
            return self.params.unflatten(0, (-1, *(1,) * (x.dim() - 1)))
        raw = features_first(self.conditioner(x[..., :0], context).to(x.dtype))  # type: ignore[misc]
        return raw.unflatten(0, (self.scalar.param_size, -1)).movedim(0, -1)

    @property
    def starts_from_data(self) -> bool:
        """Whether the conditioner does."""
        return hasattr(self.conditioner, "initialize")

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the conditioner from the context."""
        if self.starts_from_data:
            self.conditioner.initialize(x[..., :0], context)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        z, log_slope = self.scalar.forward(features_first(x), self._params(x, context))
        return features_last(z), log_slope.sum(0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data."""
        x, log_slope = self.scalar.inverse(features_first(z), self._params(z, context))
        return features_last(x), log_slope.sum(0)
