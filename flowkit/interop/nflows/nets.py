"""Networks of nflows as conditioners: rebuilt as flowkit's, or held as they are.

A held network has its own weights, dropout and batch norm; only the layout of its output changes,
and it takes any batch shape (nflows' networks take one batch dimension).
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from nflows.nn import nets
from nflows.transforms.made import MADE
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners import MLP, AutoregressiveConditioner, ClipEncoding, MaskedMLP
from flowkit.conditioners.mlp import ACTIVATIONS

_NAMES: dict[Any, str] = {f: name for name, f in ACTIVATIONS.items()}
_NAMES |= {torch.relu: "relu", F.tanh: "tanh", F.softplus: "softplus"}


def _call(net: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Call a network with all batch dimensions folded into one."""
    batch = inputs[0].shape[:-1]  # type: ignore[union-attr]
    rows = (None if v is None else v.reshape(math.prod(batch), v.shape[-1]) for v in inputs)
    out = net(*rows)
    return out.reshape(*batch, out.shape[-1])


class HeldNet(nn.Module):
    """An nflows network as the conditioner of a coupling.

    Args:
        net: The network, called as ``net(inputs (N, in), context (N, C) or None)``.
        context: Number of context features; 0 hides the context from the network.
        scale: Factors of the parameters of one feature, ``(param_size,)``, of a network that emits
            all parameters of a feature before those of the next; ``None`` for one that emits them
            in flowkit's order.
        offset: Summands of the parameters of one feature, ``(param_size,)``.
    """

    scale: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        context: int,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.context_size = context
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., param_size * features)`` raw parameters."""
        raw = _call(self.net, x, context if self.context_size else None)
        if self.scale is None:
            return raw
        raw = raw.unflatten(-1, (-1, len(self.scale))) * self.scale + self.offset
        return raw.mT.flatten(-2)


class HeldMADE(AutoregressiveConditioner):
    """An nflows MADE as an autoregressive conditioner; arguments as in :class:`HeldNet`.

    The inverse costs one pass of the network per feature, as it does in nflows.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, net: nn.Module, features: int, *, context: int, scale: Tensor, offset: Tensor
    ) -> None:
        super().__init__(features, len(scale), context=context)
        self.net = net
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., features, param_size)`` raw parameters."""
        raw = _call(self.net, x, context if self.context_size else None)
        return raw.unflatten(-1, (-1, len(self.scale))) * self.scale + self.offset


class HeldEncoder(nn.Module):
    """An nflows network of the context alone, for any batch shape."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, context: Tensor) -> Tensor:
        """Return ``net(context)``."""
        return _call(self.net, context)


@torch.no_grad()
def _copy_linear(target: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    target.weight.copy_(weight)
    target.bias.copy_(bias)


def mlp_from_nflows(net: Any) -> nn.Module:
    """Rebuild nflows' ``MLP`` as flowkit's if it maps vectors to vectors; else return a copy."""
    vectors = type(net) is nets.MLP and len(net._in_shape) == 1 and len(net._out_shape) == 1
    if not vectors or net._activate_output or net._activation not in _NAMES:
        return deepcopy(net)
    copy = MLP(
        net._in_shape[0],
        net._out_shape[0],
        hidden=tuple(net._hidden_sizes),
        activation=_NAMES[net._activation],
        encoding=ClipEncoding(bound=None),
    ).to(net._output_layer.weight)
    theirs = [net._input_layer, *net._hidden_layers, net._output_layer]
    for ours, layer in zip([*copy.layers, copy.last], theirs, strict=True):
        _copy_linear(ours, layer.weight, layer.bias)
    return copy


def masked_mlp_from_made(made: Any, scale: Tensor, offset: Tensor) -> MaskedMLP | None:
    """Rebuild a MADE as a :class:`~flowkit.conditioners.MaskedMLP`, if that is exactly possible.

    It is for feed-forward blocks without context, batch norm and dropout whose hidden units,
    sorted by degree, have the masks of ``MaskedMLP``. Returns ``None`` otherwise.
    """
    if (
        type(made) is not MADE
        or made.use_residual_blocks
        or hasattr(made, "context_layer")
        or made.activation not in _NAMES
        or any(block.batch_norm is not None or block.dropout.p > 0 for block in made.blocks)
    ):
        return None
    layers = [made.initial_layer, *(block.linear for block in made.blocks), made.final_layer]
    features = made.initial_layer.in_features
    copy = MaskedMLP(
        features,
        len(scale),
        hidden=tuple(layer.out_features for layer in layers[:-1]),
        activation=_NAMES[made.activation],
        encoding=ClipEncoding(bound=None),
    ).to(made.final_layer.weight)
    columns = torch.arange(features, device=scale.device)
    # nflows emits all parameters of a feature before those of the next; flowkit the other way.
    outputs = torch.arange(features * len(scale), device=scale.device).view(features, -1)
    orders = [torch.argsort(layer.degrees, stable=True) for layer in layers[:-1]]
    ours = [*copy.layers, copy.last]
    for i, (layer, rows) in enumerate(zip(layers, [*orders, outputs.mT.flatten()], strict=True)):
        if not torch.equal(layer.mask[rows][:, columns], getattr(copy, f"mask_{i}")):
            return None
        _copy_linear(ours[i], layer.weight[rows][:, columns], layer.bias[rows])
        columns = rows
    factor = scale.repeat_interleave(features)
    with torch.no_grad():
        copy.last.weight.mul_(factor.unsqueeze(-1))
        copy.last.bias.mul_(factor).add_(offset.repeat_interleave(features))
    return copy
