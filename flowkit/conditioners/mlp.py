"""Networks that read features and context and emit the parameters of scalar maps.

A conditioner factory is any callable ``factory(in_features, out_features, context=...)`` that
returns a module with ``forward(x, context)``; the classes here are such factories. All of them
soft-clip what they read, which keeps the inverse of a flow accurate far from the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.layout import linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    # From the threshold on it is the identity; torch's own of 20 leaves a step of 2e-9 there.
    "softplus": partial(F.softplus, threshold=40.0),
    "tanh": torch.tanh,
}

# The same in place of a tensor that nothing else reads. The way back of the others needs what
# they read.
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "elu": partial(F.elu, inplace=True),
    "tanh": torch.tanh_,
}


class Conditioner(nn.Module):
    """What conditioners share: the soft clip of the input, the activation, the last layer's start.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features.
        hidden: Widths of the hidden layers.
        activation: One of ``elu``, ``gelu``, ``relu``, ``silu``, ``softplus``, ``tanh``.
        input_clip: Soft-clip bound of everything read, in the units of the input; ``"asinh"`` to
            read its asinh instead, which still tells large numbers apart, for heavy tails;
            ``None`` for neither.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        input_clip: float | str | None = 10.0,
    ) -> None:
        super().__init__()
        if in_features + context < 1:
            raise ValueError(
                f"{type(self).__name__} has nothing to read: in_features + context must be at "
                "least 1; parameters that depend on nothing belong into Elementwise"
            )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"{type(self).__name__} needs hidden widths >= 1, got {hidden}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {activation!r}: choose from {', '.join(sorted(ACTIVATIONS))}"
            )
        if isinstance(input_clip, str) and input_clip != "asinh":
            raise ValueError(
                f"{type(self).__name__} needs input_clip as a number, 'asinh' or None, got "
                f"{input_clip!r}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.context_size = context
        self.hidden = tuple(hidden)
        self.activation = activation
        self.input_clip = input_clip

    @property
    def smoothness(self) -> float:
        """Number of continuous derivatives: those of the activation."""
        return {"relu": 0, "elu": 1}.get(self.activation, math.inf)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return (
            f"{self.in_features} -> {self.out_features}, context={self.context_size}, "
            f"hidden={self.hidden}, activation={self.activation!r}"
        )

    def _act(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](x)

    def _act_on_new(self, x: Tensor) -> Tensor:
        """The activation of a tensor that nothing else reads, without another one if it can be."""
        # TorchScript makes leaves and views of what it differentiates.
        if torch.jit.is_tracing():
            return self._act(x)
        return _IN_PLACE.get(self.activation, ACTIVATIONS[self.activation])(x)

    def _read(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Features and context side by side, soft-clipped."""
        if self.context_size and context is not None:
            x = torch.cat([x, context], -1)
        return self._clip(x)

    def _clip(self, x: Tensor) -> Tensor:
        """Bound what is read."""
        if isinstance(self.input_clip, str):
            return torch.asinh(x)
        return soft_clip(x, self.input_clip)

    @staticmethod
    def _start_hidden(layer: nn.Linear, reads: Tensor | None = None) -> nn.Linear:
        """Weights of variance 2 / (inputs read), ``reads`` a unit: signals keep their size.

        Torch's own start has a sixth of that variance, and less where a mask removes inputs; the
        zero last layer then sees almost nothing and learns slowly (He et al., arXiv 1502.01852).
        """
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        if reads is not None:
            with torch.no_grad():
                layer.weight *= (layer.in_features / reads.clamp(min=1)).sqrt().unsqueeze(-1)
        return layer

    @staticmethod
    def _start_at_zero(layer: nn.Linear) -> nn.Linear:
        """Zero the last layer: every parameter starts at the scalar map's start."""
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


@register
class MLP(Conditioner):
    """A multilayer perceptron, ``(..., in_features), (..., context) -> (..., out_features)``.

    The last layer starts at zero, so a flow starts at the identity. See :class:`Conditioner` for
    the arguments.

    Raises:
        ValueError: If there is nothing to read, or an option is unknown.

    Example:
        >>> import torch
        >>> net = MLP(3, 4, context=2, hidden=(16,))
        >>> net(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        input_clip: float | str | None = 10.0,
    ) -> None:
        super().__init__(in_features, out_features, context, hidden, activation, input_clip)
        sizes = (in_features + context, *self.hidden)
        self.layers = nn.ModuleList(
            self._start_hidden(nn.Linear(a, b)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.last = self._start_at_zero(nn.Linear(sizes[-1], out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        h = self._read(x, context)
        for layer in self.layers:
            h = self._act_on_new(layer(h))
        return linear(h, self.last.weight, self.last.bias)


@register
class ResidualMLP(Conditioner):
    r"""A residual perceptron: blocks :math:`h \leftarrow h + W_2\, a(W_1\, a(h))`.

    ``hidden`` must repeat one width, once a block; each block's second layer starts at zero. See
    :class:`Conditioner` for the other arguments.

    Raises:
        ValueError: If the widths differ, there is nothing to read, or an option is unknown.

    Example:
        >>> import torch
        >>> ResidualMLP(3, 4, hidden=(16, 16))(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        input_clip: float | str | None = 10.0,
    ) -> None:
        super().__init__(in_features, out_features, context, hidden, activation, input_clip)
        width = self.hidden[0]
        if set(self.hidden) != {width}:
            raise ValueError(f"ResidualMLP needs one width for all blocks, got hidden={hidden}")
        self.first = self._start_hidden(nn.Linear(in_features + context, width))
        self.inner = nn.ModuleList(
            self._start_hidden(nn.Linear(width, width)) for _ in self.hidden
        )
        self.outer = nn.ModuleList(
            self._start_at_zero(nn.Linear(width, width)) for _ in self.hidden
        )
        self.last = self._start_at_zero(nn.Linear(width, out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        h = self.first(self._read(x, context))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(self._act(inner(self._act(h))))
        return linear(self._act(h), self.last.weight, self.last.bias)
