"""From nflows: each layer becomes the flowkit layer of the same meaning, weights included."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bases import Base, DiagonalNormal, StandardNormal
from flowkit.conditioners import AutoregressiveConditioner
from flowkit.errors import ConversionError
from flowkit.flow import Flow
from flowkit.interop.nflows.layers import OnFeatures
from flowkit.interop.nflows.nets import (
    HeldEncoder,
    HeldMADE,
    HeldNet,
    NetForNflows,
    masked_mlp_from_made,
    mlp_from_nflows,
    slope_offset,
)
from flowkit.interop.nflows.probe import check_base, check_transform
from flowkit.interop.nflows.scalars import (
    Shift,
    SigmoidAffine,
    SoftplusAffine,
    SoftplusIntervalSpline,
    SoftplusSpline,
)
from flowkit.scalar import Affine, IntervalSpline, RationalQuadraticSpline, ScalarMap
from flowkit.transforms import (
    ActNorm,
    Compose,
    Coupling,
    DenseLinear,
    Elementwise,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Transform,
)


def from_nflows(source: Any, *, features: int | None = None, context: int | None = None) -> Any:
    r"""Turn an nflows flow or transform into flowkit's, with its trained weights.

    The result computes the same numbers (log-density, forward, inverse), takes any batch shape
    and can be trained further; nothing is shared with ``source``. Events must be vectors. Every
    layer is compared with its conversion on a probe batch, in both directions, so that nothing is
    left out without an error.

    ==================================================  ===========================================
    nflows                                              flowkit
    ==================================================  ===========================================
    ``Flow``, ``CompositeTransform``                    ``Flow``, ``Compose``
    ``InverseTransform``                                ``Inverse``
    ``Permutation`` (random, reverse), identity         ``Permutation``
    ``LULinear``, ``NaiveLinear``                       ``LULinear``, ``DenseLinear``
    ``SVDLinear``, ``QRLinear``                         ``DenseLinear``, the product of the factors
    ``HouseholderSequence``                             ``OrthogonalLinear``, its bias kept at zero
    ``PointwiseAffineTransform``                        ``Elementwise`` of ``Affine``, frozen
    ``BatchNorm`` (eval), ``ActNorm``                   ``Elementwise`` of ``Affine``
    ``Sigmoid``, ``Logit``                              ``Logit``, without the clamp of the ends
    ``PiecewiseRationalQuadraticCDF``                   ``Elementwise`` of a spline
    coupling: affine, additive, rational-quadratic      ``Coupling``; the network is held as it is,
                                                        and an ``unconditional_transform`` follows
    autoregressive: affine, rational-quadratic          ``MaskedAutoregressive``; a feed-forward
                                                        MADE becomes a ``MaskedMLP`` if its hidden
                                                        units fit, other networks are held
    ``StandardNormal``, ``DiagonalNormal``,             ``StandardNormal``, ``DiagonalNormal``
    ``ConditionalDiagonalNormal``
    ==================================================  ===========================================

    Args:
        source: An ``nflows.flows.Flow`` or ``nflows.transforms.Transform``.
        features: Number of features, where a lone transform does not tell it.
        context: Number of context features (after the embedding) that networks of your own read;
            nflows' own networks tell it. An autoregressive network of your own must read the
            features in their order, as nflows asks.

    Returns:
        A :class:`flowkit.Flow`, or a :class:`flowkit.transforms.Transform`, in the dtype, on the
        device and in the training mode of ``source``.

    Raises:
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
    from nflows.flows import Flow as NFlow
    from nflows.transforms import Transform as NTransform

    if not isinstance(source, (NFlow, NTransform)):
        raise ConversionError(
            f"from_nflows expected an nflows Flow or Transform, got {type(source).__name__}; "
            "remedy: pass the nflows.flows.Flow that holds it"
        )
    reader = _Reader(source, features, context)
    with torch.no_grad():
        read = reader.flow(source) if isinstance(source, NFlow) else reader.transform(source)
    return read.to(reader.like).train(source.training)


def _features(source: nn.Module) -> int | None:
    """The number of features that some layer of ``source`` tells."""
    from nflows import transforms as nf
    from nflows.transforms.made import MADE

    for module in source.modules():
        if isinstance(module, MADE):
            return module.initial_layer.in_features
        if isinstance(module, nf.Transform) and isinstance(getattr(module, "features", None), int):
            return module.features
        if isinstance(module, nf.Permutation):
            return len(module._permutation)
        if isinstance(module, nf.ActNorm):
            return len(module.shift)
        if isinstance(module, nf.BatchNorm):
            return len(module.bias)
        if isinstance(module, nf.PiecewiseRationalQuadraticCDF):
            return module.unnormalized_widths.shape[0]
    return None


def _overrides_nothing(cls: type) -> bool:
    """Whether a class adds no more than a constructor to its parent."""
    kinds = (FunctionType, property, classmethod, staticmethod)
    return not any(isinstance(v, kinds) for k, v in vars(cls).items() if k != "__init__")


class _Reader:
    """One conversion: what all layers need to know, and one method a kind of layer."""

    def __init__(self, source: Any, features: int | None, context: int | None) -> None:
        from nflows import transforms as nf

        tensors = [*source.parameters(), *source.buffers()]
        floating = [t for t in tensors if t.is_floating_point() and t.ndim]
        self.like = floating[0] if floating else torch.empty(0)
        base = getattr(source, "_distribution", None)
        shape = list(getattr(base, "_shape", ()))
        self.features = features or (shape[0] if len(shape) == 1 else _features(source))
        self.context = context
        spline = self._spline_coupling
        self.table: dict[type, Callable[[Any], Transform]] = {
            nf.CompositeTransform: self._composite,
            nf.InverseTransform: lambda t: self.transform(t._transform).inv,
            nf.IdentityTransform: lambda t: Permutation(list(range(self._size(t)))),
            nf.Permutation: self._permutation,
            nf.LULinear: self._lu,
            nf.NaiveLinear: self._dense,
            nf.SVDLinear: self._dense,
            nf.QRLinear: self._dense,
            nf.HouseholderSequence: self._householder,
            nf.PointwiseAffineTransform: self._pointwise_affine,
            nf.BatchNorm: self._batch_norm,
            nf.ActNorm: self._act_norm,
            nf.Sigmoid: self._sigmoid,
            nf.PiecewiseRationalQuadraticCDF: self._spline_elementwise,
            nf.AffineCouplingTransform: lambda t: self._and_others(
                t, self._coupling(t, SigmoidAffine(), True)
            ),
            nf.AdditiveCouplingTransform: lambda t: self._and_others(
                t, self._coupling(t, Shift())
            ),
            nf.PiecewiseRationalQuadraticCouplingTransform: spline,
            nf.MaskedAffineAutoregressiveTransform: self._masked_affine,
            nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: self._masked_spline,
        }

    def flow(self, source: Any) -> Flow:
        """Convert a flow: transform, base and embedding."""
        embedding = source._embedding_net
        embedding = None if type(embedding) is nn.Identity else mlp_from_nflows(embedding)
        transform = self.transform(source._transform)
        base = self._base(source._distribution, transform).to(self.like)
        check_base(source._distribution, base, self.like)
        flow = Flow(transform, base, embedding=embedding)
        # A trained flow never starts again from data; an ActNorm that saw none yet still does.
        flow.initialized.fill_(not any(isinstance(m, ActNorm) for m in flow.modules()))
        return flow

    def transform(self, layer: Any) -> Transform:
        """Convert one layer, in the dtype and on the device of the whole, and compare both."""
        converted = self._converted(layer).to(self.like)
        size = converted.event_shape[0]
        check_transform(layer, converted, self._size(layer) if size is None else size, self.like)
        return converted

    def _converted(self, layer: Any) -> Transform:
        net = getattr(layer, "transform_net", getattr(layer, "autoregressive_net", None))
        if isinstance(net, NetForNflows):
            return deepcopy(net.layer)
        for cls in type(layer).__mro__:
            if cls in self.table:
                return self.table[cls](layer)
            if not _overrides_nothing(cls):
                break
        raise ConversionError(
            f"nflows' {type(layer).__name__} has no counterpart in flowkit; remedy: convert the "
            "other layers one by one, and write this one as a flowkit Transform (forward and "
            "inverse, as in nflows) to put between them in a Compose"
        )

    def _size(self, layer: Any) -> int:
        """The number of features, for a layer that does not say it."""
        if self.features is None:
            raise ConversionError(
                f"nflows' {type(layer).__name__} does not tell its number of features; remedy: "
                "from_nflows(..., features=...)"
            )
        return self.features

    # Bases

    def _base(self, base: Any, transform: Transform) -> Base:
        from nflows import distributions as nf

        kind = type(base)
        if kind not in (nf.StandardNormal, nf.DiagonalNormal, nf.ConditionalDiagonalNormal):
            raise ConversionError(
                f"the nflows distribution {kind.__name__} has no counterpart in flowkit; remedy: "
                "convert flow._transform alone, and give flowkit.Flow a base from flowkit.bases"
            )
        if len(base._shape) != 1:
            raise ConversionError(
                f"flowkit converts flows of vectors, got an nflows {kind.__name__} of shape "
                f"{tuple(base._shape)}; remedy: flatten the events before training"
            )
        features = base._shape[0]
        if kind is nf.StandardNormal:
            return StandardNormal(features)
        if kind is nf.DiagonalNormal:
            normal = DiagonalNormal(features, max_log_scale=None).to(self.like)
            params = torch.cat([base.mean_, base.log_std_], -1).squeeze(0)
            normal.load_state_dict({"params": params})
            return normal
        return self._conditional_base(base._context_encoder, features, transform)

    def _conditional_base(
        self, encoder: Any, features: int, transform: Transform
    ) -> DiagonalNormal:
        if not isinstance(encoder, nn.Module) and "ConditionalDiagonalNormal" in getattr(
            encoder, "__qualname__", ""
        ):
            # nflows' default is a lambda that returns the context itself.
            encoder, context = nn.Identity(), 2 * features
        elif isinstance(encoder, nn.Linear):
            encoder, context = deepcopy(encoder), encoder.in_features
        else:
            context = self._context_of(encoder) or transform.context_size
            encoder = HeldEncoder(deepcopy(encoder))
        if not context:
            raise ConversionError(
                "the context encoder of nflows' ConditionalDiagonalNormal does not tell how many "
                "context features it reads; remedy: from_nflows(..., context=...)"
            )
        base = DiagonalNormal(features, context=context, max_log_scale=None)
        base.from_context = encoder
        return base

    # Layers without networks

    def _composite(self, t: Any) -> Transform:
        layers = [self.transform(layer) for layer in t._transforms]
        return Compose(*layers) if layers else Permutation(list(range(self._size(t))))

    def _permutation(self, t: Any) -> Transform:
        if t._dim != 1:
            raise ConversionError(
                f"flowkit permutes the features of vectors, got an nflows {type(t).__name__} with "
                f"dim={t._dim}; remedy: flatten the events before training"
            )
        return Permutation(t._permutation)

    def _lu(self, t: Any) -> Transform:
        layer = LULinear(t.features).to(self.like)
        lower, upper = t._create_lower_upper()
        logarithms = torch.diag(upper.diagonal().log())
        layer.lower_upper.copy_(lower.tril(-1) + upper.triu(1) + logarithms)
        layer.bias.copy_(t.bias)
        return layer

    def _dense(self, t: Any) -> Transform:
        layer = DenseLinear(t.features).to(self.like)
        # Not t.weight(), which costs as much and has torch's default dtype for some layers.
        eye = torch.eye(t.features).to(self.like)
        layer.weight.copy_((t.forward_no_cache(eye)[0] - t.bias).mT)
        layer.bias.copy_(t.bias)
        return layer

    def _householder(self, t: Any) -> Transform:
        layer = OrthogonalLinear(t.features)
        # nflows reflects by the first vector first, so that it stands last in the product.
        layer.vectors = nn.Parameter(t.q_vectors.flip(0).mT.clone())
        layer.bias.requires_grad_(False)
        return layer

    def _affine(self, shift: Tensor, scale: Tensor, learn: bool) -> Transform:
        """``scale x + shift``; unlike ActNorm and Standardize it never starts again from data."""
        layer = Elementwise(len(shift), Affine(max_log_scale=None)).to(self.like)
        layer.load_state_dict({"params": torch.stack([shift, scale.log()], -1)})
        return layer.requires_grad_(learn)

    def _pointwise_affine(self, t: Any) -> Transform:
        known = max((t._shift, t._scale), key=Tensor.numel)
        if known.ndim > 1:
            raise ConversionError(
                f"flowkit converts layers of vectors, got an nflows {type(t).__name__} of shape "
                f"{tuple(known.shape)}; remedy: flatten the events before training"
            )
        features = len(known) if known.numel() > 1 else self._size(t)
        return self._affine(t._shift.expand(features), t._scale.expand(features), learn=False)

    def _batch_norm(self, t: Any) -> Transform:
        if t.training:
            raise ConversionError(
                "nflows' BatchNorm in training mode depends on the other rows of the batch, which "
                "no flowkit layer does; remedy: call .eval() before from_nflows"
            )
        scale = t.weight / torch.sqrt(t.running_var + t.eps)
        return self._affine(t.bias - scale * t.running_mean, scale, learn=True)

    def _act_norm(self, t: Any) -> Transform:
        if t.initialized or t.log_scale.any() or t.shift.any():
            return self._affine(t.shift, t.log_scale.exp(), learn=True)
        return ActNorm(len(t.shift))

    def _sigmoid(self, t: Any) -> Transform:
        features, temperature = self._size(t), self.like.new_tensor(float(t.temperature))
        squash = Logit(features).inv
        if temperature == 1:
            return squash
        scale = temperature.expand(features)
        return Compose(self._affine(torch.zeros_like(scale), scale, learn=False), squash)

    # Splines

    def _spline(self, t: Any, bins: int) -> RationalQuadraticSpline | IntervalSpline:
        if t.min_bin_width != t.min_bin_height:
            raise ConversionError(
                f"flowkit's splines have one least size for widths and heights, got an nflows "
                f"{type(t).__name__} with min_bin_width={t.min_bin_width} and "
                f"min_bin_height={t.min_bin_height}; remedy: train it with equal ones"
            )
        sizes = {"min_size": t.min_bin_width * bins, "min_slope": t.min_derivative}
        if t.tails is None:
            return SoftplusIntervalSpline(bins, **sizes)
        return SoftplusSpline(bins, **sizes, bound=float(t.tail_bound))

    def _spline_constants(
        self, spline: RationalQuadraticSpline | IntervalSpline, net: Any
    ) -> tuple[Tensor, Tensor]:
        """Factor and summand that turn nflows' parameters of one feature into flowkit's."""
        logits = 2 * spline.bins
        scale = self.like.new_ones(spline.param_size)
        offset = torch.zeros_like(scale)
        width = getattr(net, "hidden_features", getattr(net, "hidden_channels", 1))
        scale[:logits] = width**-0.5
        offset[logits:] = -slope_offset(spline)
        return scale, offset

    def _spline_params(self, t: Any, spline: RationalQuadraticSpline | IntervalSpline) -> Tensor:
        """Parameters of a PiecewiseRationalQuadraticCDF, ``(features, param_size)``."""
        parts = [t.unnormalized_widths, t.unnormalized_heights, t.unnormalized_derivatives]
        if parts[0].ndim != 2:
            raise ConversionError(
                f"flowkit converts layers of vectors, got an nflows {type(t).__name__} of shape "
                f"{tuple(parts[0].shape[:-1])}; remedy: flatten the events before training"
            )
        return torch.cat(parts, -1) + self._spline_constants(spline, None)[1]

    def _spline_elementwise(self, t: Any) -> Transform:
        spline = self._spline(t, t.unnormalized_widths.shape[-1])
        layer = Elementwise(t.unnormalized_widths.shape[0], spline).to(self.like)
        layer.load_state_dict({"params": self._spline_params(t, spline)})
        return layer

    # Layers with networks

    def _context_of(self, net: Any) -> int:
        """Number of context features that a network reads."""
        from nflows.transforms.made import MADE

        if isinstance(net, MADE):
            return net.context_layer.in_features if hasattr(net, "context_layer") else 0
        return getattr(net, "context_features", self.context) or 0

    def _coupling(
        self,
        t: Any,
        scalar: ScalarMap,
        kinds_first: bool = False,
        constants: tuple[Tensor, Tensor] | None = None,
    ) -> Transform:
        from nflows.nn.nets import ConvResidualNet

        net, size = t.transform_net, scalar.param_size
        if isinstance(net, ConvResidualNet):
            raise ConversionError(
                f"flowkit converts layers of vectors, got an nflows {type(t).__name__} with a "
                "convolutional network; remedy: rebuild it with flowkit.transforms"
            )
        scale, offset = constants or (self.like.new_ones(size), self.like.new_zeros(size))
        context = self._context_of(net)
        held = HeldNet(deepcopy(net), context, scale, offset, kinds_first)
        mask = torch.zeros(t.features, dtype=torch.bool)
        mask[t.transform_features.cpu()] = True
        return Coupling(mask, scalar, conditioner=lambda *_, **__: held, context=context)

    def _spline_coupling(self, t: Any) -> Transform:
        spline = self._spline(t, t.num_bins)
        constants = self._spline_constants(spline, t.transform_net)
        return self._and_others(t, self._coupling(t, spline, constants=constants))

    def _and_others(self, t: Any, coupling: Transform) -> Transform:
        """A coupling, and after it what nflows does to the features that it conditions on."""
        other = t.unconditional_transform
        if other is None:
            return coupling
        index = t.identity_features.tolist()
        features, self.features = self.features, len(index)
        converted = self.transform(other)
        self.features = features
        return Compose(coupling, OnFeatures(t.features, index, converted))

    def _masked(self, t: Any, scalar: ScalarMap, scale: Tensor, offset: Tensor) -> Transform:
        from nflows.transforms.made import MADE

        net = t.autoregressive_net
        conditioner: AutoregressiveConditioner | None = masked_mlp_from_made(net, scale, offset)
        features = net.initial_layer.in_features if isinstance(net, MADE) else self._size(t)
        context = self._context_of(net)
        if conditioner is None:
            conditioner = HeldMADE(deepcopy(net), features, context, scale, offset)
        chosen: AutoregressiveConditioner = conditioner
        return MaskedAutoregressive(
            features, scalar, conditioner=lambda *_, **__: chosen, context=context
        )

    def _masked_affine(self, t: Any) -> Transform:
        scalar = SoftplusAffine(floor=t._epsilon)
        size = scalar.param_size
        return self._masked(t, scalar, self.like.new_ones(size), self.like.new_zeros(size))

    def _masked_spline(self, t: Any) -> Transform:
        spline = self._spline(t, t.num_bins)
        return self._masked(t, spline, *self._spline_constants(spline, t.autoregressive_net))
