"""Convolutional conditioners: what image couplings read their parameters from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowkit import checks
from flowkit.conditioners.encodings import Encoding
from flowkit.conditioners.mlp import Layered
from flowkit.config import register


@register
class ConvNet(Layered):
    """A convolutional network of images, ``(..., in, H, W), (..., context) -> (..., out, H, W)``.

    The first and the last convolution have a kernel of ``kernel`` x ``kernel`` pixels, those
    between see one pixel, as in Glow. Context is read at every pixel. The last layer starts at
    zero, so that a flow starts at the identity.

    Args:
        in_features: Number of channels read.
        out_features: Number of channels emitted.
        context: Number of context features.
        hidden: Numbers of channels of the hidden layers.
        activation: See :class:`MLP`.
        encoding: How channels are read; see :class:`Conditioner`.
        kernel: Side of the outer kernels in pixels, an odd number.

    Raises:
        ArgumentError: If there is nothing to read, or an argument is out of its range.

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
        *,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        encoding: Encoding | None = None,
        kernel: int = 3,
    ) -> None:
        super().__init__(in_features, out_features, context=context, encoding=encoding)
        self._set_layers(hidden, activation)
        self._side = checks.integer("ConvNet", "kernel", kernel, least=1)
        if self._side % 2 == 0:
            raise checks.fail("ConvNet", "kernel", "an odd integer", kernel)
        self._make_layers()

    def _layer(self, inputs: int, outputs: int, *, outer: bool = False) -> nn.Conv2d:
        side = self._side if outer else 1
        checks.elements("ConvNet", inputs, outputs, side, side)
        return nn.Conv2d(inputs, outputs, side, padding=side // 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features, H, W)`` raw parameters."""
        batch, pixels = x.shape[:-3], x.shape[-2:]
        if context is not None:
            context = context.unsqueeze(-1).unsqueeze(-1).expand(*context.shape, *pixels)
        h = self._read(x, context, -3)
        h = h.reshape(-1, h.shape[-3], *pixels)
        for layer in self.layers:
            h = self._act_on_new(layer(h))
        return self.last(h).reshape(*batch, self.out_features, *pixels)
