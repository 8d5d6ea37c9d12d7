"""The same flow in every library: one small adapter each.

An adapter is a class built from a kind and a number of features. ``log_prob(x)``,
``parameters()`` and ``sample(n)`` are the library's own; ``call`` turns a workload into a function
of no arguments. An adapter raises :class:`Absent` where its library has no such flow. All flows
have alternating halves or orders and no linear layers, perceptrons of 2 x 128 with ReLU, and last
layers that do not start at zero, so that splines and roots are searched for in earnest.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import flowkit

from .kinds import BINS, BOUND, COMPONENTS, HIDDEN, Kind, moved_features


class Absent(Exception):
    """The library, or the flow in it, does not exist here; the text says why."""


class Model:
    """A flow of a library on torch."""

    module: nn.Module
    torch_memory = True  # whether torch's allocator sees the memory of this library

    def log_prob(self, x: Tensor) -> Tensor:
        return self.module.log_prob(x)  # type: ignore[operator]

    def sample(self, n: int) -> object:
        return self.module.sample(n)  # type: ignore[operator]

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.module.parameters()

    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def loss(self, x: Tensor) -> Tensor:
        return -self.log_prob(x).mean()

    def prepare(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What is done to a function before it is measured: nothing, or compilation."""
        return function

    def call(self, workload: str, x: Tensor) -> Callable[[], object]:
        """A function of no arguments that does the workload once."""
        if workload == "training":
            loss = self.prepare(self.loss)
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-4, fused=True)

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                loss(x).backward()
                optimizer.step()

            return step
        if workload == "log_prob":
            return torch.no_grad()(functools.partial(self.prepare(self.log_prob), x))
        return torch.no_grad()(functools.partial(self.prepare(self.sample), len(x)))


def _wake(module: nn.Module) -> None:
    """Give last layers that start at zero torch's own start."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            layer.reset_parameters()


class Flowkit(Model):
    """flowkit, eager."""

    def __init__(self, kind: Kind, features: int) -> None:
        build = flowkit.autoregressive_flow if kind.autoregressive else flowkit.coupling_flow
        self.module = build(
            features,
            layers=kind.layers,
            scalar=kind.scalar,
            hidden=HIDDEN,
            activation="relu",
            linear=None,
            start=None,
        )
        _wake(self.module)


class Compiled(Flowkit):
    """flowkit compiled: the whole log_prob or loss, and sampling as by ``Flow.compile``."""

    def prepare(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()
        return torch.compile(function, fullgraph=True, dynamic=False)

    def call(self, workload: str, x: Tensor) -> Callable[[], object]:
        if workload != "sampling":
            return super().call(workload, x)
        torch.compiler.reset()
        self.module.compile(fullgraph=True, dynamic=False)
        return torch.no_grad()(functools.partial(self.sample, len(x)))


class Perceptron(nn.Sequential):
    """A perceptron with the signature that nflows and normflows expect, context included."""

    def __init__(self, inputs: int, outputs: int) -> None:
        sizes = (inputs, *HIDDEN)
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], outputs))
        self.hidden_features = HIDDEN[-1]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Nflows(Model):
    """nflows: halves and reversals, perceptrons that divide spline logits by their width."""

    def __init__(self, kind: Kind, features: int) -> None:
        if kind.scalar == "mixture":
            raise Absent("nflows has no mixture of distribution functions")
        from nflows import transforms as t
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow

        tails = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
        layers: list[nn.Module] = []
        for i in range(kind.layers):
            if not kind.autoregressive:
                mask = torch.tensor(moved_features(kind, features, i)).int()
                if kind.scalar == "affine":
                    layers.append(t.AffineCouplingTransform(mask, Perceptron))
                else:
                    layers.append(
                        t.PiecewiseRationalQuadraticCouplingTransform(mask, Perceptron, **tails)
                    )
                continue
            # The first masked layer and one feedforward block: two hidden layers.
            net: dict[str, Any] = {"num_blocks": 1, "use_residual_blocks": False}
            if kind.scalar == "affine":
                layer = t.MaskedAffineAutoregressiveTransform(features, HIDDEN[0], **net)
            else:
                layer = t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features, HIDDEN[0], **net, **tails
                )
            layers += [layer, t.ReversePermutation(features)]
        self.module = Flow(t.CompositeTransform(layers), StandardNormal([features]))


class Zuko(Model):
    """zuko. Its nearest root-found mixture, of normals with equal weights, stands for mixtures."""

    def __init__(self, kind: Kind, features: int) -> None:
        from zuko import transforms as t
        from zuko.distributions import DiagNormal
        from zuko.flows import GeneralCouplingTransform, MaskedAutoregressiveTransform
        from zuko.lazy import Flow, UnconditionalDistribution

        univariate, shapes = {
            "affine": (t.MonotonicAffineTransform, [(), ()]),
            "spline": (t.MonotonicRQSTransform, [(BINS,), (BINS,), (BINS - 1,)]),
            "mixture": (t.GaussianizationTransform, [(COMPONENTS,), (COMPONENTS,)]),
        }[kind.scalar]
        options = {"univariate": univariate, "shapes": shapes, "hidden_features": HIDDEN}
        layers = []
        for i in range(kind.layers):
            if kind.autoregressive:
                order = torch.arange(features)
                order = order.flip(0) if i % 2 else order
                layers.append(MaskedAutoregressiveTransform(features, order=order, **options))
            else:
                stays = ~torch.tensor(moved_features(kind, features, i))
                layers.append(GeneralCouplingTransform(features, mask=stays, **options))
        base = UnconditionalDistribution(
            DiagNormal, torch.zeros(features), torch.ones(features), buffer=True
        )
        self.module = Flow(layers, base)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.module().log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.module().sample((n,))


class Normflows(Model):
    """normflows: its layers without its residual networks, turned so that densities are fast."""

    def __init__(self, kind: Kind, features: int) -> None:
        if kind.scalar == "mixture":
            raise Absent("normflows has no mixture of distribution functions")
        import normflows as nf
        from normflows.flows.affine.autoregressive import MaskedAffineAutoregressive
        from normflows.flows.affine.coupling import AffineCouplingBlock
        from normflows.flows.neural_spline.autoregressive import (
            MaskedPiecewiseRationalQuadraticAutoregressive,
        )
        from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

        tails = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
        net: dict[str, Any] = {"num_blocks": 1, "use_residual_blocks": False}
        layers: list[nn.Module] = []
        for i in range(kind.layers):
            if kind.autoregressive and kind.scalar == "affine":
                layers.append(_Turned(MaskedAffineAutoregressive(features, HIDDEN[0], **net)))
            elif kind.autoregressive:
                spline = MaskedPiecewiseRationalQuadraticAutoregressive(
                    features, HIDDEN[0], init_identity=False, **net, **tails
                )
                layers.append(_Turned(spline))
            elif kind.scalar == "affine":
                # It reads the first half, the larger one; the swap lets the halves take turns.
                reads = features - features // 2
                block = AffineCouplingBlock(Perceptron(reads, 2 * (features - reads)))
                layers += [block, nf.flows.Permute(features, mode="swap")]
            else:
                mask = torch.tensor(moved_features(kind, features, i)).int()
                spline = PiecewiseRationalQuadraticCoupling(mask, Perceptron, **tails)
                layers.append(_Turned(spline))
            if kind.autoregressive:
                layers.append(nf.flows.Permute(features))
        base = nf.distributions.DiagGaussian(features, trainable=False)
        self.module = nf.NormalizingFlow(base, layers)


class _Turned(nn.Module):
    """A layer of normflows whose fast direction is the one from data to noise."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(z)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x)


class Flowjax(Model):
    """flowjax, each workload one jitted program; its permutations between layers stay."""

    torch_memory = False

    def __init__(self, kind: Kind, features: int) -> None:
        if kind.scalar == "mixture":
            raise Absent("flowjax has no mixture of distribution functions")
        import equinox as eqx
        import jax
        from flowjax.bijections import Affine, RationalQuadraticSpline
        from flowjax.distributions import Normal
        from flowjax.flows import coupling_flow, masked_autoregressive_flow
        from jax import numpy as jnp

        build = masked_autoregressive_flow if kind.autoregressive else coupling_flow
        spline = kind.scalar == "spline"
        self.flow = build(
            jax.random.key(0),
            base_dist=Normal(jnp.zeros(features)),
            transformer=RationalQuadraticSpline(knots=BINS, interval=BOUND)
            if spline
            else Affine(),
            flow_layers=kind.layers,
            nn_width=HIDDEN[0],
            nn_depth=len(HIDDEN),
        )
        self.arrays = eqx.filter(self.flow, eqx.is_inexact_array)

    def size(self) -> int:
        import jax

        return sum(leaf.size for leaf in jax.tree.leaves(self.arrays))

    def call(self, workload: str, x: Tensor) -> Callable[[], object]:
        import equinox as eqx
        import jax
        import optax
        from jax import numpy as jnp

        rows = jnp.asarray(x.numpy())
        if workload == "log_prob":
            log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
            return lambda: log_prob(self.flow, rows).block_until_ready()
        if workload == "sampling":
            draw = eqx.filter_jit(lambda flow, key: flow.sample(key, (len(x),)))
            keys = iter(lambda: jax.random.key(1), None)
            return lambda: draw(self.flow, next(keys)).block_until_ready()
        adam = optax.adam(1e-4)

        @eqx.filter_jit(donate="all")
        def update(flow: Any, state: Any) -> tuple[Any, Any]:
            gradient = eqx.filter_grad(lambda f: -f.log_prob(rows).mean())(flow)
            change, state = adam.update(gradient, state)
            return eqx.apply_updates(flow, change), state

        copied = jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, self.flow)
        held = [(copied, adam.init(eqx.filter(copied, eqx.is_inexact_array)))]

        def step() -> None:
            held[0] = update(*held[0])
            jax.block_until_ready(eqx.filter(held[0], eqx.is_array))

        return step


LIBRARIES: dict[str, type[Model]] = {
    "flowkit": Flowkit,
    "compiled": Compiled,
    "nflows": Nflows,
    "zuko": Zuko,
    "normflows": Normflows,
    "flowjax": Flowjax,
}
_NEEDS = {"nflows": ["nflows"], "zuko": ["zuko"], "normflows": ["normflows"]}
_NEEDS["flowjax"] = ["jax", "flowjax", "optax"]


def why_absent(name: str) -> str | None:
    """Why a library cannot be measured here, or ``None``."""
    missing = [m for m in _NEEDS.get(name, []) if importlib.util.find_spec(m) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return _why_not_compiled() if name == "compiled" else None


def _why_not_compiled() -> str | None:
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True, dynamic=False)(torch.ones(8))
    except Exception as error:  # whatever the compiler's reason is, it is printed
        return f"torch.compile fails here: {str(error).strip().splitlines()[0]}"
    return None
