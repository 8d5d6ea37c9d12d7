"""What the layers share that put a scalar map to work: elementwise, coupling, autoregressive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.scalar import RationalQuadraticSpline, ScalarMap
from flowkit.transforms.base import Transform


class ScalarStructure(Transform):
    r"""Apply a scalar map to features, with parameters that a network reads from others.

    A subclass says which features are read and which are transformed (:meth:`split` and
    :meth:`merge`, both with the features in the first dimension), and may replace how parameters
    are computed (:meth:`parameters_from`).

    Args:
        features: Number of features D, channels for images.
        scalar: The scalar map; rational-quadratic spline by default.
        places: The transformed features, in the order of :meth:`split`.
        context: Number of context features.
        event_ndim: 1 for vectors; 3 for images ``(channels, height, width)``.
    """

    conditioner: nn.Module | None
    #: The features that are read and those that are transformed, ``(features, *batch)``.
    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    #: Join both again, in the order of the event.
    merge: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None,
        places: Sequence[int],
        *,
        context: int,
        event_ndim: int = 1,
    ) -> None:
        name = type(self).__name__
        super().__init__((features, *(None,) * (event_ndim - 1)), context=context)
        if scalar is None:
            scalar = RationalQuadraticSpline()
        remedy = "an object, such as RationalQuadraticSpline()"
        checks.instance(name, "scalar", scalar, ScalarMap, remedy)
        self.scalar = scalar.take(places, features)
        self.keeps_intervals = self.scalar.keeps_interval
        self.transformed = len(places)
        self.elementwise = self.elementwise or self.event_shape == (1,)
        checks.elements(name, self.transformed, max(self.scalar.param_size, 1))

    def parameters_from(self, read: Tensor, context: Context) -> Tensor:
        """Parameters ``(transformed features, *batch, param_size)`` from what is read."""
        last = features_last(read, self.event_ndim)
        raw = features_first(self.conditioner(last, context).to(read.dtype), self.event_ndim)  # type: ignore[misc]
        return raw.unflatten(0, (self.scalar.param_size, self.transformed)).movedim(0, -1)

    def log_det(self, log_slope: Tensor) -> Tensor:
        """Sum of the logarithms of slopes ``(features, *batch)`` over each event."""
        return log_slope.sum((0, *range(1 - self.event_ndim, 0)))

    def _keeps(self, end: Tensor) -> Tensor:
        """What is not transformed, and what the scalar map leaves in place."""
        read, transformed = self.split(end)
        return self.merge(torch.ones_like(read, dtype=torch.bool), self.scalar.fixes(transformed))

    @property
    def starts_from_data(self) -> bool:
        """Whether the conditioner does."""
        return hasattr(self.conditioner, "initialize")

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Start the conditioner from what it reads."""
        if self.starts_from_data:
            read = features_last(self.split(x)[0], self.event_ndim)
            self.conditioner.initialize(read, context)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise."""
        read, old = self.split(x)
        new, log_slope = self.scalar.forward(old, self.parameters_from(read, context))
        return self.merge(read, new), self.log_det(log_slope)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data."""
        read, new = self.split(z)
        old, log_slope = self.scalar.inverse(new, self.parameters_from(read, context))
        return self.merge(read, old), self.log_det(log_slope)
