"""Networks between the libraries: nflows' rebuilt as flowkit's or held as they are, and back.

A held network keeps its own weights, dropout and batch norm; what changes is how its output is
laid out, and that any batch shape may come in (nflows' networks know one batch dimension).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners import MLP, AutoregressiveConditioner, ClipEncoding, MaskedMLP
from flowkit.conditioners.mlp import ACTIVATIONS
from flowkit.interop.nflows.scalars import SigmoidAffine, SoftplusIntervalSpline, SoftplusSpline
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.layout import features_first
from flowkit.scalar import Affine, IntervalSpline, RationalQuadraticSpline, ScalarMap
from flowkit.transforms import Coupling, Elementwise, MaskedAutoregressive

_NAMES: dict[Any, str] = {f: name for name, f in ACTIVATIONS.items()}
_NAMES |= {torch.relu: "relu", F.tanh: "tanh", F.softplus: "softplus"}
MAF_FLOOR = 1e-3
"""The least scale of nflows' ``MaskedAffineAutoregressiveTransform``, fixed there."""


def slope_offset(spline: RationalQuadraticSpline | IntervalSpline) -> float:
    """What flowkit adds to a raw slope and nflows does not: softplus gives ``1 - min_slope``."""
    return math.log(math.expm1(1 - spline.min_slope))


def softplus_inverse(y: Tensor) -> Tensor:
    """The ``x`` with ``softplus(x) = y``."""
    return y + torch.log(-torch.expm1(-y))


def _rows(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Fold all batch dimensions into one."""
    n = math.prod(x.shape[:-1])
    rows = x.reshape(n, x.shape[-1])
    return rows, None if context is None else context.reshape(n, context.shape[-1])


class HeldNet(nn.Module):
    """An nflows network as the conditioner of a coupling: ``net(x, context) * scale + offset``.

    Args:
        net: The network, called as ``net(inputs (N, in), context (N, C) or None)``.
        context: Number of context features; 0 hides the context from the network.
        scale: Factor a parameter of one feature, ``(param_size,)``.
        offset: Summand a parameter of one feature, ``(param_size,)``.
        kinds_first: Whether the network emits all shifts before all scales, as flowkit's do,
            rather than all parameters of one feature before those of the next.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        net: nn.Module,
        context: int,
        scale: Tensor,
        offset: Tensor,
        kinds_first: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.context_size = context
        self.kinds_first = kinds_first
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., param_size * features)`` raw parameters."""
        raw = self.net(*_rows(x, context if self.context_size else None))
        size = self.scale.shape[-1]
        if self.kinds_first:
            raw = raw.unflatten(-1, (size, -1))
        else:
            raw = raw.unflatten(-1, (-1, size)).mT
        raw = (raw * self.scale.unsqueeze(-1) + self.offset.unsqueeze(-1)).flatten(-2)
        return raw.reshape(*x.shape[:-1], raw.shape[-1])


class HeldMADE(AutoregressiveConditioner):
    """An nflows MADE as an autoregressive conditioner; arguments as in :class:`HeldNet`.

    The inverse costs one pass of the network a feature, as it does in nflows.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, net: nn.Module, features: int, context: int, scale: Tensor, offset: Tensor
    ) -> None:
        super().__init__(features, scale.shape[-1], context=context)
        self.net = net
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_features} -> {self.out_features}, context={self.context_size}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., features, param_size)`` raw parameters."""
        raw = self.net(*_rows(x, context if self.context_size else None))
        raw = raw.reshape(*x.shape, self.scale.shape[-1])
        return raw * self.scale + self.offset


class HeldEncoder(nn.Module):
    """An nflows network of the context alone, for any batch shape."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, context: Tensor) -> Tensor:
        """Return ``net(context)``."""
        rows, _ = _rows(context, None)
        out = self.net(rows)
        return out.reshape(*context.shape[:-1], out.shape[-1])


@torch.no_grad()
def _copy_linear(target: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    target.weight.copy_(weight)
    target.bias.copy_(bias)


def mlp_from_nflows(net: Any) -> nn.Module:
    """Rebuild nflows' ``MLP`` as flowkit's if it maps vectors to vectors; else return a copy."""
    from nflows.nn import nets

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
    from nflows.transforms.made import MADE

    if type(made) is not MADE or made.use_residual_blocks or hasattr(made, "context_layer"):
        return None
    if made.activation not in _NAMES:
        return None
    if any(block.batch_norm is not None or block.dropout.p > 0 for block in made.blocks):
        return None
    layers = [made.initial_layer, *(block.linear for block in made.blocks)]
    features = made.initial_layer.in_features
    copy = MaskedMLP(
        features,
        scale.shape[-1],
        hidden=tuple(layer.out_features for layer in layers),
        activation=_NAMES[made.activation],
        encoding=ClipEncoding(bound=None),
    ).to(made.final_layer.weight)
    columns = torch.arange(features, device=scale.device)
    for i, (ours, layer) in enumerate(zip(copy.layers, layers, strict=True)):
        rows = torch.argsort(layer.degrees, stable=True)
        if not torch.equal(layer.mask[rows][:, columns], getattr(copy, f"mask_{i}")):
            return None
        _copy_linear(ours, layer.weight[rows][:, columns], layer.bias[rows])  # type: ignore[arg-type]
        columns = rows
    last = made.final_layer
    # nflows emits all parameters of a feature before those of the next; flowkit the other way.
    rows = torch.arange(len(last.bias), device=scale.device).view(features, -1).mT.flatten()
    if not torch.equal(last.mask[rows][:, columns], getattr(copy, f"mask_{len(layers)}")):
        return None
    factor, summand = scale.repeat_interleave(features), offset.repeat_interleave(features)
    weight = last.weight[rows][:, columns] * factor.unsqueeze(-1)
    _copy_linear(copy.last, weight, last.bias[rows] * factor + summand)
    return copy


def nflows_params(scalar: ScalarMap, raw: Tensor) -> Tensor:
    """Translate raw parameters ``(..., param_size)`` into nflows' for the same scalar map.

    An :class:`~flowkit.scalar.Affine` becomes the map of nflows' affine autoregressive layer.
    """
    if isinstance(scalar, (RationalQuadraticSpline, IntervalSpline)):
        if isinstance(scalar, (SoftplusSpline, SoftplusIntervalSpline)):
            logits, slopes = raw.tensor_split([2 * scalar.bins], -1)
            return torch.cat([logits, slopes + slope_offset(scalar)], -1)
        widths, heights, slopes = scalar.knots(raw)
        least, tiny = scalar.min_size / scalar.bins, torch.finfo(raw.dtype).tiny
        parts = [(sizes - least).clamp(min=tiny).log() for sizes in (widths, heights)]
        free = slopes[..., 1:-1] if isinstance(scalar, RationalQuadraticSpline) else slopes
        return torch.cat([*parts, softplus_inverse(free - scalar.min_slope)], -1)
    if isinstance(scalar, Affine):
        shift, log_scale = raw.unbind(-1)
        scale = soft_clip(log_scale, scalar.max_log_scale).exp()
        return torch.stack([softplus_inverse(scale - MAF_FLOOR), shift], -1)
    return raw


class NetForNflows(nn.Module):
    """A copy of a flowkit layer as the network of an nflows layer; ``from_nflows`` unpacks it."""

    # nflows divides spline logits by the root of this number.
    hidden_features = 1

    def __init__(self, layer: Coupling | Elementwise | MaskedAutoregressive) -> None:
        super().__init__()
        self.layer = deepcopy(layer)
        self.context_features = layer.context_size

    def _raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the network of the layer makes of ``x``, ``(N, features, param_size)``."""
        context = context if self.context_features else None
        if isinstance(self.layer, MaskedAutoregressive):
            return self.layer.conditioner(x, context)
        rows = features_first(x) if isinstance(self.layer, Coupling) else self.layer.split(x)[0]
        return self.layer.parameters_from(rows, context).movedim(0, -2)


class CouplingNet(NetForNflows):
    """The ``transform_net`` of an nflows coupling layer that stands for a flowkit layer."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return parameters in nflows' layout, ``(N, features * param_size)``."""
        scalar = self.layer.scalar
        raw = nflows_params(scalar, self._raw(inputs, context))
        return (raw.mT if isinstance(scalar, SigmoidAffine) else raw).flatten(-2)


class MaskedNet(NetForNflows):
    """The ``autoregressive_net`` of an nflows layer that stands for any flowkit layer.

    For a coupling the features that stay get the identity: nflows' own affine coupling cannot
    scale by more than 1.001, its autoregressive layer can.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return parameters in nflows' layout, ``(N, features * param_size)``."""
        layer = self.layer
        if isinstance(layer, MaskedAutoregressive):
            raw = self._raw(inputs[..., layer.order], context)[..., layer.order.argsort(), :]
        elif isinstance(layer, Coupling):
            fixed = inputs[..., layer.conditioning_index]
            raw = self._raw(fixed, context)
            identity = raw.new_zeros(*fixed.shape, raw.shape[-1])
            raw = torch.cat([identity, raw], -2)[..., layer.merge_index, :]
        else:
            raw = self._raw(inputs, context)
        return nflows_params(layer.scalar, raw).flatten(-2)


class ZeroNet(nn.Module):
    """The network of an additive coupling that shifts nothing."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return zeros ``(N, features)``."""
        return inputs.new_zeros(len(inputs), self.features)
