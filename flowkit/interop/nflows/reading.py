"""From nflows: each layer becomes the flowkit layer of the same meaning, weights included.

One function per kind of layer, registered by ``_reads``; ``_Reader`` finds and checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import FunctionType
from typing import Any

import torch
from nflows import distributions as nd
from nflows import transforms as nt
from nflows.flows import Flow as NflowsFlow
from nflows.nn.nets import ConvResidualNet
from nflows.transforms.made import MADE
from torch import Tensor, nn

from flowkit import checks
from flowkit import transforms as ft
from flowkit.bases import Base, DiagonalNormal, StandardNormal
from flowkit.errors import ConversionError
from flowkit.flow import Flow
from flowkit.interop.nflows import nets, scalars
from flowkit.interop.nflows.checking import check_base, check_transform
from flowkit.interop.nflows.features import OnFeatures
from flowkit.interop.nflows.wrapper import WrappedTransform
from flowkit.scalar import Affine, ScalarMap


def from_nflows(source: Any, *, features: int | None = None, context: int | None = None) -> Any:
    r"""Convert an nflows flow or transform to flowkit's, with its trained weights.

    The result computes the same numbers (log-density, forward, inverse), takes any batch shape
    and can be trained further; nothing is shared with ``source``. Events must be vectors. Every
    layer is compared with its conversion on a probe batch, in both directions, so that nothing is
    left out without an error.

    Args:
        source: An ``nflows.flows.Flow`` or ``nflows.transforms.Transform``.
        features: Number of features, for a lone transform that does not tell it.
        context: Number of context features (after the embedding) that networks of your own read.
            An autoregressive network of your own must read the features in their order.

    Returns:
        A :class:`flowkit.Flow`, or a :class:`flowkit.transforms.Transform`, in the dtype, on the
        device and in the training mode of ``source``.

    Raises:
        ArgumentError: If a number of features is no integer.
        ConversionError: If a part has no counterpart, or computes other numbers than its
            conversion; the message names it and the remedy.

    References:
        Durkan et al. 2020, nflows, doi 10.5281/zenodo.4296287.

    Example:
        >>> import torch
        >>> from nflows.flows import MaskedAutoregressiveFlow
        >>> theirs = MaskedAutoregressiveFlow(2, 16, num_layers=2, num_blocks_per_layer=1).double()
        >>> ours = from_nflows(theirs)
        >>> x = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.allclose(ours.log_prob(x), theirs.log_prob(x))
        True
    """
    if features is not None:
        features = checks.integer("from_nflows", "features", features, least=1)
    if context is not None:
        context = checks.integer("from_nflows", "context", context, least=0)
    if not isinstance(source, (NflowsFlow, nt.Transform)):
        raise ConversionError(
            f"from_nflows expected an nflows Flow or Transform, got {type(source).__name__}; "
            "remedy: pass the nflows.flows.Flow that holds it"
        )
    reader = _Reader(source, features, context)
    with torch.no_grad():
        read = reader.flow(source) if isinstance(source, NflowsFlow) else reader.transform(source)
    return read.to(reader.like).train(source.training)


class _Reader:
    """One conversion: what all layers need to know, and the search for their functions."""

    def __init__(self, source: Any, features: int | None, context: int | None) -> None:
        tensors = (*source.parameters(), *source.buffers())
        floating = [t for t in tensors if t.is_floating_point() and t.ndim]
        self.like = floating[0] if floating else torch.empty(0)
        shape = list(getattr(getattr(source, "_distribution", None), "_shape", ()))
        self.features = features or (shape[0] if len(shape) == 1 else _features(source))
        self.context = context

    def flow(self, source: Any) -> Flow:
        """Convert a flow: transform, base and embedding."""
        embedding = source._embedding_net
        embedding = None if type(embedding) is nn.Identity else nets.mlp_from_nflows(embedding)
        transform = self.transform(source._transform)
        base = _base(self, source._distribution, transform).to(self.like)
        check_base(source._distribution, base, self.like)
        flow = Flow(transform, base, embedding=embedding)
        # A trained flow never starts again from data; an ActNorm that saw none yet still does.
        flow.initialized.fill_(not any(isinstance(m, ft.ActNorm) for m in flow.modules()))
        return flow

    def transform(self, layer: Any) -> ft.Transform:
        """Convert one layer, in the dtype and on the device of the whole, and compare both."""
        if isinstance(layer, WrappedTransform):
            return deepcopy(layer.transform)
        converted = self._function(layer)(self, layer).to(self.like)
        check_transform(layer, converted, converted.event_shape[0] or self.size(layer), self.like)
        return converted

    def _function(self, layer: Any) -> Callable[[_Reader, Any], ft.Transform]:
        for cls in type(layer).__mro__:
            if cls in _READERS:
                return _READERS[cls]
            # A subclass may add no more than a constructor.
            kinds = (FunctionType, property, classmethod, staticmethod)
            if any(isinstance(v, kinds) for k, v in vars(cls).items() if k != "__init__"):
                break
        raise ConversionError(
            f"nflows' {type(layer).__name__} has no counterpart in flowkit; remedy: convert the "
            "other layers one by one, and write this one as a flowkit Transform (forward and "
            "inverse, as in nflows) to put between them in a Compose"
        )

    def size(self, layer: Any) -> int:
        """The number of features, for a layer that does not tell it."""
        if self.features is None:
            raise ConversionError(
                f"nflows' {type(layer).__name__} does not tell its number of features; remedy: "
                "from_nflows(..., features=...)"
            )
        return self.features

    def context_of(self, net: Any) -> int:
        """Number of context features that a network reads."""
        if isinstance(net, MADE):
            return net.context_layer.in_features if hasattr(net, "context_layer") else 0
        return getattr(net, "context_features", self.context) or 0


_Function = Callable[[_Reader, Any], ft.Transform]
_READERS: dict[type, _Function] = {}


def _reads(*kinds: type) -> Callable[[_Function], _Function]:
    """Register the function that converts layers of these classes."""

    def register(function: _Function) -> _Function:
        _READERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _features(source: nn.Module) -> int | None:
    """The number of features that some layer of ``source`` tells."""
    names = ("features", "_permutation", "shift", "bias", "unnormalized_widths")
    for module in source.modules():
        if isinstance(module, MADE):
            return module.initial_layer.in_features
        for told in (getattr(module, name, None) for name in names):
            if isinstance(module, nt.Transform) and isinstance(told, (int, Tensor)):
                return told if isinstance(told, int) else len(told)
    return None


def _not_a_vector(layer: Any, got: str) -> ConversionError:
    return ConversionError(
        f"flowkit converts layers of vectors, got an nflows {type(layer).__name__} {got}; remedy: "
        "flatten the events before training, or rebuild it with flowkit.transforms"
    )


def _base(reader: _Reader, base: Any, transform: ft.Transform) -> Base:
    kind = type(base)
    if kind not in (nd.StandardNormal, nd.DiagonalNormal, nd.ConditionalDiagonalNormal):
        raise ConversionError(
            f"the nflows distribution {kind.__name__} has no counterpart in flowkit; remedy: "
            "convert flow._transform alone, and give flowkit.Flow a base from flowkit.bases"
        )
    if len(base._shape) != 1:
        raise _not_a_vector(base, f"of shape {tuple(base._shape)}")
    features = base._shape[0]
    if kind is nd.StandardNormal:
        return StandardNormal(features)
    if kind is nd.DiagonalNormal:
        normal = DiagonalNormal(features, max_log_scale=None).to(reader.like)
        params = torch.cat([base.mean_, base.log_std_], -1).squeeze(0)
        normal.load_state_dict({"params": params})
        return normal
    encoder = deepcopy(base._context_encoder)
    if not isinstance(encoder, nn.Module) and "ConditionalDiagonalNormal" in getattr(
        encoder, "__qualname__", ""
    ):
        # nflows' default is a lambda that returns the context itself.
        encoder, context = nn.Identity(), 2 * features
    elif isinstance(encoder, nn.Linear):
        context = encoder.in_features
    else:
        context = reader.context_of(encoder) or transform.context_size
        encoder = nets.HeldEncoder(encoder)
    if not context:
        raise ConversionError(
            "the context encoder of nflows' ConditionalDiagonalNormal does not tell how many "
            "context features it reads; remedy: from_nflows(..., context=...)"
        )
    conditional = DiagonalNormal(features, context=context, max_log_scale=None)
    conditional.from_context = encoder
    return conditional


@_reads(nt.CompositeTransform)
def _composite(reader: _Reader, t: Any) -> ft.Transform:
    layers = [reader.transform(layer) for layer in t._transforms]
    return ft.Compose(*layers) if layers else _identity(reader, t)


@_reads(nt.InverseTransform)
def _inverse(reader: _Reader, t: Any) -> ft.Transform:
    return reader.transform(t._transform).inv


@_reads(nt.IdentityTransform)
def _identity(reader: _Reader, t: Any) -> ft.Transform:
    return ft.Permutation(list(range(reader.size(t))))


@_reads(nt.Permutation)
def _permutation(_: _Reader, t: Any) -> ft.Transform:
    if t._dim != 1:
        raise _not_a_vector(t, f"with dim={t._dim}")
    return ft.Permutation(t._permutation)


@_reads(nt.LULinear)
def _lu(reader: _Reader, t: Any) -> ft.Transform:
    layer = ft.LULinear(t.features).to(reader.like)
    lower, upper = t._create_lower_upper()
    logarithms = torch.diag(upper.diagonal().log())
    layer.lower_upper.copy_(lower.tril(-1) + upper.triu(1) + logarithms)
    layer.bias.copy_(t.bias)
    return layer


@_reads(nt.NaiveLinear, nt.SVDLinear, nt.QRLinear)
def _dense(reader: _Reader, t: Any) -> ft.Transform:
    layer = ft.DenseLinear(t.features).to(reader.like)
    # Not t.weight(), which costs as much and has torch's default dtype for some layers.
    eye = torch.eye(t.features).to(reader.like)
    layer.weight.copy_((t.forward_no_cache(eye)[0] - t.bias).mT)
    layer.bias.copy_(t.bias)
    return layer


@_reads(nt.HouseholderSequence)
def _householder(_: _Reader, t: Any) -> ft.Transform:
    layer = ft.OrthogonalLinear(t.features)
    # nflows reflects by the first vector first, so that it stands last in the product.
    layer.vectors = nn.Parameter(t.q_vectors.flip(0).mT.clone())
    layer.bias.requires_grad = False
    return layer


def _affine(reader: _Reader, shift: Tensor, scale: Tensor) -> ft.Transform:
    """``scale x + shift``; unlike ft.ActNorm and Standardize it never starts again from data."""
    layer = ft.Elementwise(len(shift), Affine(max_log_scale=None)).to(reader.like)
    layer.load_state_dict({"params": torch.stack([shift, scale.log()], -1)})
    return layer


@_reads(nt.PointwiseAffineTransform)
def _pointwise_affine(reader: _Reader, t: Any) -> ft.Transform:
    known = t._shift if t._shift.numel() > 1 else t._scale
    if known.ndim > 1:
        raise _not_a_vector(t, f"of shape {tuple(known.shape)}")
    features = len(known) if known.numel() > 1 else reader.size(t)
    layer = _affine(reader, t._shift.expand(features), t._scale.expand(features))
    return layer.requires_grad_(requires_grad=False)


@_reads(nt.BatchNorm)
def _batch_norm(reader: _Reader, t: Any) -> ft.Transform:
    if t.training:
        raise ConversionError(
            "nflows' BatchNorm in training mode depends on the other samples of the batch, which "
            "no flowkit layer does; remedy: call .eval() before from_nflows"
        )
    scale = t.weight / torch.sqrt(t.running_var + t.eps)
    return _affine(reader, t.bias - scale * t.running_mean, scale)


@_reads(nt.ActNorm)
def _act_norm(reader: _Reader, t: Any) -> ft.Transform:
    if t.initialized or t.log_scale.any() or t.shift.any():
        return _affine(reader, t.shift, t.log_scale.exp())
    return ft.ActNorm(len(t.shift))


@_reads(nt.Sigmoid)
def _sigmoid(reader: _Reader, t: Any) -> ft.Transform:
    features, temperature = reader.size(t), reader.like.new_tensor(float(t.temperature))
    squash = ft.Logit(features).inv
    if temperature == 1:
        return squash
    scale = temperature.expand(features)
    return ft.Compose(
        _affine(reader, 0 * scale, scale).requires_grad_(requires_grad=False), squash
    )


def _spline(t: Any, bins: int) -> scalars.SoftplusSpline | scalars.SoftplusIntervalSpline:
    if t.min_bin_width != t.min_bin_height:
        raise ConversionError(
            f"flowkit's splines have one least size for widths and heights, got an nflows "
            f"{type(t).__name__} with min_bin_width={t.min_bin_width} and "
            f"min_bin_height={t.min_bin_height}; remedy: train it with equal ones"
        )
    sizes = {"min_size": t.min_bin_width * bins, "min_slope": t.min_derivative}
    if t.tails is None:
        return scalars.SoftplusIntervalSpline(bins, **sizes)
    return scalars.SoftplusSpline(bins, **sizes, bound=float(t.tail_bound))


def _constants(reader: _Reader, scalar: ScalarMap, net: Any) -> dict[str, Tensor]:
    """Factor and summand that make nflows' parameters of one feature flowkit's."""
    scale = reader.like.new_ones(scalar.param_size)
    offset = torch.zeros_like(scale)
    if isinstance(scalar, (scalars.SoftplusSpline, scalars.SoftplusIntervalSpline)):
        width = getattr(net, "hidden_features", getattr(net, "hidden_channels", 1))
        scale[: 2 * scalar.bins] = width**-0.5
        offset[2 * scalar.bins :] = -scalars.slope_offset(scalar.min_slope)
    return {"scale": scale, "offset": offset}


@_reads(nt.PiecewiseRationalQuadraticCDF)
def _spline_elementwise(reader: _Reader, t: Any) -> ft.Transform:
    parts = [t.unnormalized_widths, t.unnormalized_heights, t.unnormalized_derivatives]
    if parts[0].ndim != 2:
        raise _not_a_vector(t, f"of shape {tuple(parts[0].shape[:-1])}")
    features, bins = parts[0].shape
    spline = _spline(t, bins)
    layer = ft.Elementwise(features, spline).to(reader.like)
    params = torch.cat(parts, -1) + _constants(reader, spline, None)["offset"]
    layer.load_state_dict({"params": params})
    return layer


@_reads(nt.AdditiveCouplingTransform)
def _additive_coupling(reader: _Reader, t: Any) -> ft.Transform:
    return _coupling(reader, t, scalars.Shift())


@_reads(nt.AffineCouplingTransform)
def _affine_coupling(reader: _Reader, t: Any) -> ft.Transform:
    return _coupling(reader, t, scalars.SigmoidAffine())


@_reads(nt.PiecewiseRationalQuadraticCouplingTransform)
def _spline_coupling(reader: _Reader, t: Any) -> ft.Transform:
    spline = _spline(t, t.num_bins)
    return _coupling(reader, t, spline, **_constants(reader, spline, t.transform_net))


def _coupling(reader: _Reader, t: Any, scalar: ScalarMap, **constants: Tensor) -> ft.Transform:
    if isinstance(t.transform_net, ConvResidualNet):
        raise _not_a_vector(t, "with a convolutional network")
    context = reader.context_of(t.transform_net)
    held = nets.HeldNet(deepcopy(t.transform_net), context=context, **constants)
    mask = torch.zeros(t.features, dtype=torch.bool)
    mask[t.transform_features.cpu()] = True
    coupling = ft.Coupling(mask, scalar, conditioner=lambda *_, **__: held, context=context)
    if t.unconditional_transform is None:
        return coupling
    # After it what nflows does to the features that the coupling conditions on.
    index = t.identity_features.tolist()
    features, reader.features = reader.features, len(index)
    other = reader.transform(t.unconditional_transform)
    reader.features = features
    return ft.Compose(coupling, OnFeatures(t.features, index, other))


@_reads(
    nt.MaskedAffineAutoregressiveTransform,
    nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)
def _autoregressive(reader: _Reader, t: Any) -> ft.Transform:
    affine, net = isinstance(t, nt.MaskedAffineAutoregressiveTransform), t.autoregressive_net
    scalar = scalars.SoftplusAffine(floor=t._epsilon) if affine else _spline(t, t.num_bins)
    features = net.initial_layer.in_features if isinstance(net, MADE) else reader.size(t)
    context = reader.context_of(net)
    constants = _constants(reader, scalar, net)
    chosen = nets.masked_mlp_from_made(net, **constants) or nets.HeldMADE(
        deepcopy(net), features, context=context, **constants
    )
    return ft.MaskedAutoregressive(
        features, scalar, conditioner=lambda *_, **__: chosen, context=context
    )
