"""Convolutional conditioners: what image couplings read their parameters from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.conditioners.mlp import Conditioner
from flowkit.config import register


@register
class ConvNet(Conditioner):
    """A convolutional network of images, ``(..., in, H, W), (..., context) -> (..., out, H, W)``.

    The first and the last convolution have a kernel of ``kernel`` x ``kernel`` pixels, those
    between see one pixel, as in Glow. Context is read at every pixel. The last layer starts at
    zero, so a flow starts at the identity.

    Args:
        in_features: Number of channels read.
        out_features: Number of channels emitted.
        context: Number of context features.
        hidden: Numbers of channels of the hidden layers.
        activation: See :class:`Conditioner`.
        input_clip: See :class:`Conditioner`.
        kernel: Side of the outer kernels, an odd number.

    Raises:
        ValueError: If there is nothing to read, or an option is unknown.

    References:
        Kingma and Dhariwal 2018, Glow, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> ConvNet(2, 6, hidden=(16, 16))(torch.randn(5, 2, 8, 8)).shape
        torch.Size([5, 6, 8, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        input_clip: float | str | None = 10.0,
        kernel: int = 3,
    ) -> None:
        super().__init__(in_features, out_features, context, hidden, activation, input_clip)
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"ConvNet needs an odd kernel >= 1, got {kernel!r}")
        sizes = (in_features + context, *self.hidden)
        sides = (kernel, *(1,) * (len(self.hidden) - 1))
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, side, padding=side // 2)
            for a, b, side in zip(sizes[:-1], sizes[1:], sides, strict=True)
        )
        for layer in self.layers:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        self.last = nn.Conv2d(sizes[-1], out_features, kernel, padding=kernel // 2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features, H, W)`` raw parameters."""
        batch, pixels = x.shape[:-3], x.shape[-2:]
        if self.context_size and context is not None:
            everywhere = context.unsqueeze(-1).unsqueeze(-1)
            x = torch.cat([x, everywhere.expand(*everywhere.shape[:-2], *pixels)], -3)
        h = self._clip(x).reshape(-1, x.shape[-3], *pixels)
        for layer in self.layers:
            h = self._act_on_new(layer(h))
        return self.last(h).reshape(*batch, self.out_features, *pixels)
