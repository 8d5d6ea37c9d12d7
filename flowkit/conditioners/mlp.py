"""Perceptrons, plain and residual, convolutional networks, and what all of them share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit import checks
from flowkit.conditioners.base import Conditioner, Layer, linear, start_at_zero
from flowkit.conditioners.encodings import Encoding
from flowkit.config import register
from flowkit.numerics.layout import linear as apply_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    # It is the identity from the threshold on; torch's own, 20, makes a step of 2e-9 there.
    "softplus": partial(F.softplus, threshold=40.0),
    "tanh": torch.tanh,
}

# The same in place of a tensor that nothing else reads. The gradient of the others needs what
# they read.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "elu": partial(F.elu, inplace=True),
    "tanh": torch.tanh_,
}


class Layered(Conditioner):
    """What networks of hidden layers share: widths, activation and initial weights.

    Called by the constructors of subclasses after that of their conditioner.
    """

    hidden: tuple[int, ...]
    activation: str
    layers: Any

    def _set_layers(self, hidden: Sequence[int], activation: str) -> None:
        name = type(self).__name__
        self.hidden = checks.widths(name, "hidden", hidden)
        self.activation = activation
        checks.choice(name, "activation", activation, ACTIVATIONS)
        self.smoothness = {"relu": 0, "elu": 1}.get(activation, math.inf)

    def _layer(self, inputs: int, outputs: int, *, outer: bool = False) -> Any:
        """A layer, one of the first and the last if ``outer``."""
        return linear(type(self).__name__, inputs, outputs)

    def _make_layers(self) -> None:
        """The first layer and the other hidden ones in ``layers``, and the last one."""
        first = self._layer(self.columns, self.hidden[0], outer=True)
        self.layers = nn.ModuleList([self._start_first(first)])
        for a, b in itertools.pairwise(self.hidden):
            self.layers.append(self._start_hidden(self._layer(a, b)))
        self.last = start_at_zero(self._layer(self.hidden[-1], self.out_features, outer=True))

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"{super().extra_repr()}, hidden={self.hidden}, activation={self.activation!r}"

    def _act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def _act_on_new(self, x: Tensor) -> Tensor:
        """The activation of a tensor that nothing else reads, without another one if it can be."""
        # TorchScript makes leaves and views of what it differentiates.
        if torch.jit.is_tracing():
            return self._act(x)
        return _IN_PLACE.get(self.activation, ACTIVATIONS[self.activation])(x)

    def _column_weights(self) -> Tensor:
        """Shares of the columns read in the variance of the first layer's weights."""
        return torch.tensor([*self.encoding.weights(self.in_features), *[1.0] * self.context_size])

    @staticmethod
    def _start_hidden(
        layer: Layer, reads: Tensor | None = None, columns: Tensor | None = None
    ) -> Layer:
        """Weights of variance 2 / (inputs read), so that signals keep their size.

        Torch's own start has a sixth of that variance, and less where a mask removes inputs; the
        zero last layer then sees almost nothing and learns slowly (He et al., arXiv 1502.01852).

        Args:
            layer: The layer.
            reads: Number of inputs that each unit reads, weighted by ``columns``; all by default.
            columns: Weights of the inputs in that number.
        """
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            weight = layer.weight.movedim(1, -1)
            if reads is not None:
                weight *= (weight.shape[-1] / reads.clamp(min=1)).sqrt().unsqueeze(-1)
            if columns is not None:
                weight *= columns.sqrt()
        return layer

    def _start_first(self, layer: Layer) -> Layer:
        """Initial weights of the layer that reads the columns of :meth:`_read`."""
        columns = self._column_weights()
        return self._start_hidden(layer, columns.sum(), columns)


class _Perceptron(Layered):
    """What perceptrons of vectors share: their constructor."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(in_features, out_features, context=context, encoding=encoding)
        self._set_layers(hidden, activation)
        self._make_layers()


@register
class MLP(_Perceptron):
    """A multilayer perceptron, ``(..., in_features), (..., context) -> (..., out_features)``.

    The last layer starts at zero, so that a flow starts at the identity.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features.
        hidden: Widths of the hidden layers.
        activation: One of ``elu``, ``gelu``, ``relu``, ``silu``, ``softplus``, ``tanh``.
        encoding: How features are read; see :class:`Conditioner`.

    Raises:
        ArgumentError: If there is nothing to read, or an argument is out of its range.

    Example:
        >>> import torch
        >>> net = MLP(3, 4, context=2, hidden=(16,))
        >>> net(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 4])
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        h = self._read(x, context)
        for layer in self.layers:
            h = self._act_on_new(layer(h))
        return apply_linear(h, self.last.weight, self.last.bias)


@register
class ResidualMLP(_Perceptron):
    r"""A residual perceptron: blocks :math:`h \leftarrow h + W_2\, a(W_1\, a(h))`.

    The second layer of every block and the last layer start at zero.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features.
        hidden: Widths of the blocks, which must be equal.
        activation: See :class:`MLP`.
        encoding: How features are read; see :class:`Conditioner`.

    Raises:
        ArgumentError: If the widths differ, there is nothing to read, or an argument is out of
            its range.

    Example:
        >>> import torch
        >>> ResidualMLP(3, 4, hidden=(16, 16))(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def _make_layers(self) -> None:
        width, blocks = self.hidden[0], range(len(self.hidden))
        if set(self.hidden) != {width}:
            raise checks.fail("ResidualMLP", "hidden", "one width for all blocks", self.hidden)
        self.first = self._start_first(self._layer(self.columns, width))
        self.inner = nn.ModuleList(self._start_hidden(self._layer(width, width)) for _ in blocks)
        self.outer = nn.ModuleList(start_at_zero(self._layer(width, width)) for _ in blocks)
        self.last = start_at_zero(self._layer(width, self.out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        h = self.first(self._read(x, context))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(self._act(inner(self._act(h))))
        return apply_linear(self._act(h), self.last.weight, self.last.bias)


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
