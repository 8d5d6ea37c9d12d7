"""To nflows: genuine nflows layers that compute what a flowkit flow computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from flowkit.bases import Base, DiagonalNormal, StandardNormal
from flowkit.errors import ConversionError
from flowkit.flow import Flow
from flowkit.interop.nflows.layers import OnFeatures
from flowkit.interop.nflows.nets import (
    MAF_FLOOR,
    CouplingNet,
    HeldMADE,
    HeldNet,
    MaskedNet,
    ZeroNet,
    nflows_params,
    softplus_inverse,
)
from flowkit.interop.nflows.probe import check_transform
from flowkit.interop.nflows.scalars import (
    Shift,
    SigmoidAffine,
    SoftplusAffine,
    SoftplusIntervalSpline,
    SoftplusSpline,
)
from flowkit.numerics.clips import soft_clip
from flowkit.scalar import Affine, IntervalSpline, RationalQuadraticSpline, ScalarMap
from flowkit.transforms import (
    ActNorm,
    Compose,
    Coupling,
    DenseLinear,
    Elementwise,
    Inverse,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Standardize,
    Transform,
    TriangularLinear,
)


def to_nflows(source: Flow | Transform) -> Any:
    r"""Turn a flowkit flow or transform into genuine nflows objects, with its trained weights.

    The result computes the same numbers for one batch dimension and can be trained further;
    nothing is shared with ``source``.

    =========================================  ====================================================
    flowkit                                    nflows
    =========================================  ====================================================
    ``Flow``, ``Compose``, ``Inverse``         the same, ``CompositeTransform``, ``Inverse...``
    ``Permutation``                            ``Permutation``
    ``LULinear``, ``TriangularLinear``         ``LULinear``
    ``DenseLinear``                            ``LULinear``, reflections and ``Permutation``, since
                                               nflows' ``NaiveLinear`` has no inverse in torch 2
    ``OrthogonalLinear``                       ``HouseholderSequence`` and a shift
    ``Standardize``, ``ActNorm``               ``PointwiseAffineTransform``, ``ActNorm``
    ``Logit``                                  ``Logit`` after an affine layer
    ``Elementwise`` of ``Affine``, spline      ``ActNorm``, ``PiecewiseRationalQuadraticCDF``
    ``Coupling`` of a spline                   rational-quadratic coupling
    ``MaskedAutoregressive`` of a spline       rational-quadratic autoregressive
    ``MaskedAutoregressive`` of ``Affine``     ``MaskedAffineAutoregressiveTransform``
    ``Coupling`` of ``Affine``                 the same, since nflows' affine coupling cannot scale
                                               by more than 1.001; samples cost one pass a feature
    ``StandardNormal``                         ``StandardNormal``
    ``DiagonalNormal``                         ``ActNorm`` and ``StandardNormal``, since nflows'
                                               ``DiagonalNormal`` cannot draw samples
    ``DiagonalNormal`` with context            ``ConditionalDiagonalNormal``
    =========================================  ====================================================

    Splines are :class:`~flowkit.scalar.RationalQuadraticSpline`, or
    :class:`~flowkit.scalar.IntervalSpline` on [0, 1]. nflows draws noise in torch's default dtype:
    to sample from a float64 flow, set that first.

    Args:
        source: A :class:`flowkit.Flow` or a :class:`flowkit.transforms.Transform` of vectors.

    Returns:
        An ``nflows.flows.Flow`` or an ``nflows.transforms.Transform``, in the dtype, on the device
        and in the training mode of ``source``.

    Raises:
        ConversionError: If a part has no counterpart; the message names it and the remedy.

    Example:
        >>> import torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import Compose, Coupling, LULinear
        >>> ours = Flow(Compose(LULinear(2), Coupling([False, True])), StandardNormal(2)).double()
        >>> theirs = to_nflows(ours)
        >>> x = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.allclose(theirs.log_prob(x), ours.log_prob(x))
        True
    """
    if not isinstance(source, (Flow, Transform)):
        raise ConversionError(
            f"to_nflows expected a flowkit Flow or Transform, got {type(source).__name__}; "
            "remedy: pass the flowkit.Flow that holds it"
        )
    if len(source.event_shape) != 1:
        raise ConversionError(
            f"to_nflows converts flows of vectors, got events of shape {source.event_shape}; "
            "remedy: give the flowkit transform itself to nflows.flows.Flow, it is called as "
            "nflows' are"
        )
    writer = _Writer(source)
    with torch.no_grad():
        written = writer.flow(source) if isinstance(source, Flow) else writer.transform(source)
    return written.to(writer.like).train(source.training)


def _is_spline(scalar: ScalarMap) -> bool:
    """Whether nflows has this spline: on the line, or on the unit interval."""
    if type(scalar) in (IntervalSpline, SoftplusIntervalSpline):
        return scalar.bounds == (0.0, 1.0)
    return type(scalar) in (RationalQuadraticSpline, SoftplusSpline)


def _spline_options(scalar: Any) -> dict[str, Any]:
    options = {
        "num_bins": scalar.bins,
        "min_bin_width": scalar.min_size / scalar.bins,
        "min_bin_height": scalar.min_size / scalar.bins,
        "min_derivative": scalar.min_slope,
    }
    if isinstance(scalar, RationalQuadraticSpline):
        return {**options, "tails": "linear", "tail_bound": scalar.bound}
    return {**options, "tails": None}


class _Writer:
    """One conversion: what all layers need to know, and one method a kind of layer."""

    def __init__(self, source: Flow | Transform) -> None:
        tensors = [*source.parameters(), *source.buffers()]
        floating = [t for t in tensors if t.is_floating_point()]
        self.like = floating[0] if floating else torch.empty(0)
        self.table: dict[type, Callable[[Any], Any]] = {
            Compose: lambda t: self._composite([self.transform(layer) for layer in t.transforms]),
            Inverse: self._inverse,
            Permutation: lambda t: self._permutation(t.order),
            LULinear: self._lu,
            TriangularLinear: self._triangular,
            DenseLinear: self._dense,
            OrthogonalLinear: self._orthogonal,
            Standardize: lambda t: self._affine(-t.mean / t.scale, -t.scale.log(), learn=False),
            ActNorm: lambda t: self._affine(-t.shift * torch.exp(-t.log_scale), -t.log_scale),
            Logit: self._logit,
            Elementwise: self._elementwise,
            Coupling: self._coupling,
            MaskedAutoregressive: self._masked,
            OnFeatures: self._on_features,
        }

    def flow(self, source: Flow) -> Any:
        """Convert a flow: transform, base and embedding."""
        from nflows.distributions import StandardNormal as NStandardNormal
        from nflows.flows import Flow as NFlow

        transform, base = self.transform(source.transform), source.base
        if type(base) is DiagonalNormal and base.params is not None:
            mean, log_scale = base._moments(None)
            standardize = self._affine(-mean * torch.exp(-log_scale), -log_scale)
            transform = self._composite([transform, standardize])
            distribution = NStandardNormal(list(base.event_shape))
        else:
            distribution = self._distribution(base)
        return NFlow(transform, distribution, deepcopy(source.embedding))

    def _distribution(self, base: Base) -> Any:
        from nflows import distributions as nf

        if type(base) is StandardNormal:
            return nf.StandardNormal(list(base.event_shape))
        if type(base) is DiagonalNormal:
            exact = base.max_log_scale is None
            encoder = deepcopy(base.from_context) if exact else _Moments(base)
            return nf.ConditionalDiagonalNormal(list(base.event_shape), encoder)
        raise ConversionError(
            f"the base {type(base).__name__} has no counterpart in nflows; remedy: convert "
            "flow.transform alone, and give nflows.flows.Flow a distribution of your own"
        )

    def transform(self, layer: Transform) -> Any:
        """Convert one layer, in the dtype and on the device of the whole."""
        write = self.table.get(type(layer))
        if write is None:
            self._refuse(layer, "no counterpart in nflows")
        written = write(layer).to(self.like)
        check_transform(written, layer, layer.event_shape[0] or 2, self.like)
        return written

    @staticmethod
    def _refuse(layer: Transform, why: str) -> NoReturn:
        scalar = getattr(layer, "scalar", None)
        label = layer.label + (f" of {scalar}" if scalar is not None else "")
        raise ConversionError(
            f"{label} has {why}; remedy: convert the other layers one by one, and put this one "
            "into nflows.transforms.CompositeTransform as it is: flowkit's transforms are called "
            "as nflows' are"
        )

    # Layers without networks

    @staticmethod
    def _composite(layers: list[Any]) -> Any:
        from nflows.transforms import CompositeTransform

        return CompositeTransform(layers)

    def _inverse(self, t: Inverse) -> Any:
        from nflows.transforms import InverseTransform

        return InverseTransform(self.transform(t.transform))

    @staticmethod
    def _permutation(order: Tensor) -> Any:
        from nflows.transforms import Permutation as NPermutation

        return NPermutation(order.clone())

    def _lu_layer(self, lower: Tensor, upper: Tensor, bias: Tensor) -> Any:
        """An nflows LULinear with given factors."""
        from nflows.transforms import LULinear as NLULinear

        # nflows has a least diagonal: its own default, or less where these factors need it.
        least = min(1e-3, 0.5 * float(upper.diagonal().min()))
        layer = NLULinear(len(bias), eps=least).to(self.like)
        layer.lower_entries.copy_(lower[layer.lower_indices])
        layer.upper_entries.copy_(upper[layer.upper_indices])
        layer.unconstrained_upper_diag.copy_(softplus_inverse(upper.diagonal() - least))
        layer.bias.copy_(bias)
        return layer

    def _lu(self, t: LULinear) -> Any:
        return self._lu_layer(*t._factors(), t.bias)

    def _triangular(self, t: TriangularLinear) -> Any:
        weight = t.weight_matrix()
        diagonal = weight.diagonal()
        return self._lu_layer(weight / diagonal, torch.diag(diagonal), t.bias)

    def _dense(self, t: DenseLinear) -> Any:
        pivots, lower, upper = torch.linalg.lu(t.weight)
        order, signs = pivots.argmax(-1), torch.sign(upper.diagonal())
        if not bool(signs.all()):
            self._refuse(t, "a singular matrix")
        # W = P L U = P S (S L S) (S U), with S the signs of the diagonal of U.
        bias = torch.empty_like(t.bias)
        bias[order] = t.bias * signs[order]
        outer = signs.unsqueeze(-1)
        layers = [self._lu_layer(outer * lower * signs, outer * upper, bias)]
        if bool((signs < 0).any()):
            flips = torch.eye(len(signs)).to(signs)[signs < 0]
            layers.append(self._reflections(flips).requires_grad_(False))
        return self._composite([*layers, self._permutation(order)])

    @staticmethod
    def _reflections(vectors: Tensor) -> Any:
        """Reflect by each row of ``vectors`` in turn."""
        from nflows.transforms import HouseholderSequence

        layer = HouseholderSequence(vectors.shape[1], 1)
        layer.num_transforms = len(vectors)
        layer.q_vectors = nn.Parameter(vectors.clone())
        return layer

    def _orthogonal(self, t: OrthogonalLinear) -> Any:
        # nflows reflects by the first vector first; in the product it stands last.
        rotation = self._reflections(t.vectors.mT.flip(0))
        if not t.bias.requires_grad and not t.bias.any():
            return rotation
        return self._composite([rotation, self._affine(t.bias, torch.zeros_like(t.bias))])

    def _affine(self, shift: Tensor, log_scale: Tensor, learn: bool = True) -> Any:
        """``exp(log_scale) x + shift``."""
        from nflows import transforms as nf

        if not learn:
            return nf.PointwiseAffineTransform(shift.detach(), log_scale.detach().exp())
        layer = nf.ActNorm(len(shift)).to(self.like)
        layer.shift.copy_(shift)
        layer.log_scale.copy_(log_scale)
        # Or else nflows would start it again from the next training batch.
        layer.initialized.fill_(True)
        return layer

    def _logit(self, t: Logit) -> Any:
        from nflows.transforms import Logit as NLogit

        ends = list(zip(t.lower, t.upper, strict=True))
        shift = self.like.new_tensor([-low / (high - low) for low, high in ends])
        log_scale = self.like.new_tensor([-math.log(high - low) for low, high in ends])
        to_unit = self._affine(shift, log_scale, learn=False)
        logit = NLogit(eps=0.0)
        return logit if set(ends) == {(0.0, 1.0)} else self._composite([to_unit, logit])

    def _on_features(self, t: OnFeatures) -> Any:
        """What nflows does to the features that a coupling conditions on, which moves no other."""
        from nflows.transforms import AdditiveCouplingTransform

        mask = torch.ones(t.event_shape[0], dtype=torch.long)  # type: ignore[arg-type]
        mask[t.index.cpu()] = 0
        order = t.index.argsort()
        inner = self.transform(t.transform)
        if not torch.equal(order.cpu(), torch.arange(len(order))):
            self._refuse(t, "features in another order than nflows' couplings read them")
        return AdditiveCouplingTransform(mask, lambda _, n: ZeroNet(n), lambda features: inner)

    def _elementwise(self, t: Elementwise) -> Any:
        from nflows import transforms as nf

        if t.params is None:
            return self._coupling(t)
        if type(t.scalar) is Affine:
            shift, raw = t.params.unbind(-1)
            log_scale = soft_clip(raw, t.scalar.max_log_scale)
            return self._affine(shift, log_scale, t.params.requires_grad)
        if not _is_spline(t.scalar):
            self._refuse(t, "no counterpart in nflows")
        options = _spline_options(t.scalar)
        layer = nf.PiecewiseRationalQuadraticCDF([len(t.params)], **options).to(self.like)
        params, bins = nflows_params(t.scalar, t.params), options["num_bins"]
        widths, heights, slopes = params.tensor_split((bins, 2 * bins), -1)
        layer.unnormalized_widths.copy_(widths)
        layer.unnormalized_heights.copy_(heights)
        layer.unnormalized_derivatives.copy_(slopes)
        return layer

    # Layers with networks

    def _autoregressive(self, kind: Any, features: int, net: nn.Module, **options: Any) -> Any:
        """An nflows autoregressive layer with ``net`` in place of its own."""
        layer = kind(features=features, hidden_features=1, num_blocks=0, **options)
        layer.autoregressive_net = net
        return layer

    def _affine_autoregressive(self, t: Transform, net: nn.Module, limit: float | None) -> Any:
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        if limit is None or math.exp(-limit) <= MAF_FLOOR:
            self._refuse(t, f"scales that may fall below nflows' least one, {MAF_FLOOR:g}")
        size: int = t.event_shape[0]  # type: ignore[assignment]
        return self._autoregressive(MaskedAffineAutoregressiveTransform, size, net)

    def _coupling(self, t: Coupling | Elementwise) -> Any:
        from nflows import transforms as nf

        features: int = t.event_shape[0]  # type: ignore[assignment]
        scalar = t.scalar
        if type(scalar) is Affine:
            return self._affine_autoregressive(t, MaskedNet(t), scalar.max_log_scale)
        kinds = {SigmoidAffine: nf.AffineCouplingTransform, Shift: nf.AdditiveCouplingTransform}
        kind, options = kinds.get(type(scalar)), {}
        if _is_spline(scalar):
            kind, options = nf.PiecewiseRationalQuadraticCouplingTransform, _spline_options(scalar)
        if kind is None or (type(scalar) is SigmoidAffine and scalar != SigmoidAffine()):
            self._refuse(t, "no counterpart in nflows")
        mask = torch.ones(features, dtype=torch.long)
        if isinstance(t, Coupling):
            mask[t.conditioning_index.cpu()] = 0
        net = t.conditioner
        network = deepcopy(net.net) if isinstance(net, HeldNet) else CouplingNet(t)
        return kind(mask, lambda *_: network, **options)

    def _masked(self, t: MaskedAutoregressive) -> Any:
        from nflows import transforms as nf

        features: int = t.event_shape[0]  # type: ignore[assignment]
        conditioner, scalar = t.conditioner, t.scalar
        net: nn.Module = MaskedNet(t)
        if isinstance(conditioner, HeldMADE) and t._natural:
            net = deepcopy(conditioner.net)
        if type(scalar) is Affine:
            return self._affine_autoregressive(t, net, scalar.max_log_scale)
        if scalar == SoftplusAffine(MAF_FLOOR):
            return self._autoregressive(nf.MaskedAffineAutoregressiveTransform, features, net)
        if not _is_spline(scalar):
            self._refuse(t, "no counterpart in nflows")
        kind = nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        return self._autoregressive(kind, features, net, **_spline_options(scalar))


class _Moments(nn.Module):
    """The context encoder of a conditional normal: means, then log-scales."""

    def __init__(self, base: DiagonalNormal) -> None:
        super().__init__()
        self.base = deepcopy(base)
        self.context_features = base.context_size

    def forward(self, context: Tensor) -> Tensor:
        """Return ``(N, 2 features)``."""
        return torch.cat(self.base._moments(context), -1)
