"""One scalar map per feature, with parameters of its own or from context."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.conditioners import MLP
from flowkit.config import register
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.types import Context
from flowkit.scalar import PerFeature, ScalarMap
from flowkit.transforms.structure import ScalarStructure


@register
class Elementwise(ScalarStructure):
    r"""Transform every feature by itself: :math:`z_i = f(x_i; \theta_i)`.

    Without context the parameters are the layer's own; with context a conditioner gives them. Of
    images, all pixels of a channel share the parameters. A map without parameters, such as
    :class:`flowkit.scalar.SmoothLeakyReLU`, makes it the activation between linear layers.

    Args:
        features: Number of features D, or of channels.
        scalar: The scalar map; rational-quadratic spline by default.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module``, read as in
            :class:`Coupling`; used with context only.
        context: Number of context features.
        event_ndim: Number of dimensions of an event, the features in the first: 1 for vectors, 3
            for images ``(channels, height, width)``.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from flowkit.scalar import SmoothLeakyReLU
        >>> from flowkit.transforms import Elementwise
        >>> z, log_det = Elementwise(3)(torch.randn(5, 3))
        >>> log_det.shape
        torch.Size([5])
        >>> Elementwise(3, SmoothLeakyReLU(), event_ndim=3)(torch.randn(5, 3, 4, 4))[0].shape
        torch.Size([5, 3, 4, 4])
    """

    elementwise = True

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        *,
        conditioner: Callable[..., nn.Module] = MLP,
        context: int = 0,
        event_ndim: int = 1,
    ) -> None:
        features = checks.integer("Elementwise", "features", features, least=1)
        event_ndim = checks.integer("Elementwise", "event_ndim", event_ndim, least=1, most=8)
        super().__init__(features, scalar, range(features), context=context, event_ndim=event_ndim)
        size = self.scalar.param_size
        checks.function("Elementwise", "conditioner", conditioner)
        self._alike = not size and not isinstance(self.scalar, PerFeature)
        self.params = nn.Parameter(torch.zeros(features, size)) if size and not context else None
        self.conditioner = None
        if size and context:
            self.conditioner = conditioner(0, features * size, context=context)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is read, all features are transformed."""
        # Where no feature has numbers of its own, how they lie in memory does not matter.
        rows = (
            x.movedim(-self.event_ndim, 0) if self._alike else features_first(x, self.event_ndim)
        )
        return rows[:0], rows

    def merge(self, read: Tensor, transformed: Tensor) -> Tensor:
        """All features."""
        return features_last(transformed, self.event_ndim)

    def parameters_from(self, read: Tensor, context: Context) -> Tensor:
        """Parameters ``(features, *batch, param_size)``, or what broadcasts to it."""
        if self.conditioner is not None:
            pixels = (0,) * (self.event_ndim - 1)
            # Parameters are those of a channel: the pixels are left out of what is read.
            batch = read.flatten(1 - self.event_ndim)[..., 0] if pixels else read
            raw = features_first(self.conditioner(features_last(batch), context).to(read.dtype))
            params = raw.unflatten(0, (self.scalar.param_size, self.transformed)).movedim(0, -1)
            for _ in pixels:
                params = params.unsqueeze(-2)
            return params
        params = read.new_empty(self.transformed, 0) if self.params is None else self.params
        return params.unflatten(0, (-1, *(1,) * (read.dim() - 1)))
