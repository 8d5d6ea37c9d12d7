"""Embeddings of context: what happens to context features before the layers read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register


@register
class StandardizeContext(nn.Module):
    r"""Shift and scale context features to mean 0 and variance 1 of the training data.

    Conditioners soft-clip what they read, so context in its own units (a year, a price) must be
    brought to the order of one first. The constants are buffers, set once by ``initialize``, which
    ``fit`` calls; a constant feature keeps scale one.

    Args:
        features: Number of context features.

    Raises:
        ArgumentError: If it is not an integer >= 1.

    Example:
        >>> import torch
        >>> embed = StandardizeContext(1)
        >>> embed.initialize(torch.tensor([[1990.0], [2010.0]]))
        >>> embed(torch.tensor([[2000.0]]))
        tensor([[0.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        name, most = "StandardizeContext", checks.MAX_FEATURES
        self.features = checks.integer(name, "features", features, least=1, most=most)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def initialize(self, context: Tensor) -> None:
        """Set mean and scale from the training context ``(..., features)``."""
        samples = context.reshape(-1, self.features).double()
        mean, scale = samples.mean(0), samples.std(0, unbiased=False)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > 1e-8 * mean.abs(), scale, torch.ones_like(scale)))

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        return not_positive("scale", self.scale)

    def forward(self, context: Tensor) -> Tensor:
        """Return the standardised context, of the same shape."""
        return (context - self.mean) / self.scale
