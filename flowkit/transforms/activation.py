"""The same monotone map of every number of an event."""

from __future__ import annotations

from torch import Tensor

from flowkit.config import register
from flowkit.errors import ShapeError
from flowkit.scalar import ScalarMap, SmoothLeakyReLU
from flowkit.transforms.base import Transform


@register
class Activation(Transform):
    """A scalar map without parameters, at every number of an event of any shape.

    What stands between linear layers of an energy-based flow.

    Args:
        scalar: The map; :class:`flowkit.scalar.SmoothLeakyReLU` by default.
        event_ndim: 1 for vectors, 3 for images ``(channels, height, width)``.

    Raises:
        ShapeError: If the map has parameters.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Activation
        >>> z, log_det = Activation(event_ndim=3)(torch.zeros(5, 3, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3, 4, 4]), torch.Size([5]))
    """

    elementwise = True

    def __init__(self, scalar: ScalarMap | None = None, event_ndim: int = 1) -> None:
        scalar = SmoothLeakyReLU() if scalar is None else scalar
        if scalar.param_size:
            raise ShapeError(
                f"Activation expected a scalar map without parameters, got {scalar}, which has "
                f"{scalar.param_size}; remedy: Elementwise({scalar})"
            )
        super().__init__((None,) * event_ndim)
        self.scalar = scalar

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every number."""
        z, log_slope = self.scalar.forward(x, x.new_empty(0))
        return z, self._sum(log_slope)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every number back."""
        x, log_slope = self.scalar.inverse(z, z.new_empty(0))
        return x, self._sum(log_slope)

    def _sum(self, log_slope: Tensor) -> Tensor:
        return log_slope.sum(tuple(range(-self.event_ndim, 0)))
