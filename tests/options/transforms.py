"""Layers: constructors, both directions, starts from data, and what stochastic layers draw."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flowkit.conditioners import ConvNet, KernelConditioner, MaskedMLP
from flowkit.energies import CallableEnergy
from flowkit.scalar import Affine, RationalQuadraticSpline, SmoothLeakyReLU
from flowkit.stochastic import (
    HMC,
    MALA,
    Dequantize,
    Metropolis,
    OverdampedLangevin,
    UnderdampedLangevin,
)
from flowkit.stochastic.base import EnergyTransform, StochasticTransform, Walk
from flowkit.toys import DoubleWell
from flowkit.transforms import (
    ActNorm,
    CircularShift,
    Compose,
    Conv1x1,
    Conv2d,
    Coupling,
    DenseLinear,
    Elementwise,
    FactorOut,
    Gaussianize,
    Log,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Rescale,
    Reshape,
    ShortenGaps,
    Squeeze,
    Standardize,
    Transform,
    Whiten,
)
from flowkit.transforms.base import Inverse

from .harness import (
    Expectation,
    Fresh,
    also,
    differs,
    draws,
    falls,
    number_of_parameters,
    of,
    rises,
    same,
    seeds,
    shows,
)
from .parts import UNIT, C, D, X, ignores_context, reads_context, rows, small, state, stirred

WAYS = ("forward", "inverse")
IMAGE = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(5))
masked = partial(MaskedMLP, hidden=(8,))
few = partial(KernelConditioner, points=3)


def springs(x: Tensor, context: Tensor) -> Tensor:
    """Springs at rest where the context says."""
    return 0.5 * (x - context).square().sum(-1)


SPRINGS = CallableEnergy(springs, 2, context=1)

# Context ------------------------------------------------------------------------------------

coupling = stirred(Coupling([0, 1], Affine(), conditioner=small, context=1))
composed = Compose(Coupling([0, 1], Affine(), conditioner=few, context=1), coupling)
inner = Coupling([1], Affine(), conditioner=partial(ConvNet, hidden=(4,)), context=1, event_ndim=3)
factored = stirred(FactorOut((2, 4, 4), inner))


class Shear(Transform):
    """A layer of one's own, for what the base class gives."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return x + context, x.new_zeros(x.shape[:-1]) + context.sum(-1)


class Reader(Conv1x1):
    """A layer of images that starts from the context."""

    def __init__(self) -> None:
        super().__init__(1)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        assert context is not None
        self.linear.bias.data.fill_(context.mean().item())


reads_context(coupling, X, *WAYS)
reads_context(Coupling([0, 1], Affine(), conditioner=few, context=1), X, "initialize")
reads_context(stirred(Elementwise(2, Affine(), context=1, conditioner=small)), X, *WAYS)
reads_context(Elementwise(2, Affine(), context=1, conditioner=few), X, "initialize")
reads_context(stirred(MaskedAutoregressive(2, Affine(), conditioner=masked, context=1)), X, *WAYS)
reads_context(Inverse(coupling), X, *WAYS)
reads_context(composed, X, *WAYS, "unnormalized", "states", "initialize")
reads_context(factored, IMAGE, "forward", "unnormalized")
reads_context(factored, factored(IMAGE, C)[0].detach(), "inverse")
reads_context(Shear((2,), context=1), X, "unnormalized")
given = Whiten(2, context=C.shape[-1])
given.coefficients.fill_(0.5)
springy = OverdampedLangevin(SPRINGS, steps=3, step_size=0.1)
reads_context(given, X, *WAYS, "unnormalized", "initialize")
reads_context(springy, X, *WAYS, "walk")
of(
    OverdampedLangevin.step,
    lambda **o: springy.step(X, rows(6, 2, 1), **o),
    context=differs(D, base=C),
)
of(
    UnderdampedLangevin.step,
    lambda **o: UnderdampedLangevin(SPRINGS).step(X, X, X, X, **o),
    context=differs(D, base=C),
)
of(
    Transform.initialize,
    lambda **o: Shear((2,)).initialize(X, **o),
    context=same("it starts nothing", C),
)
for method in (Transform.forward, Transform.inverse):
    abstract = "abstract: raises, whatever is given"
    of(method, None, context=abstract, generator=abstract)

for layer in (
    Elementwise(2, SmoothLeakyReLU()),
    ActNorm(2),
    Rescale([-9.0] * 2, [9.0] * 2),
    Rescale([-9.0, -torch.inf], [9.0, torch.inf], circular=[True, False]),
    CircularShift(2),
    Log(2, lower=-9.0),
    Logit(2, lower=-9.0, upper=9.0),
    Permutation([1, 0]),
    Reshape(2),
    Standardize(2),
    Whiten(2),
    Gaussianize(2),
    ShortenGaps(2),
    DenseLinear(2),
):
    ignores_context(layer, X, *WAYS)
for layer in (ActNorm(2), Rescale([-9.0, -torch.inf], [9.0, torch.inf], circular=[True, False])):
    ignores_context(layer, X, "initialize")
for layer in (Standardize(2), Whiten(2), ShortenGaps(2)):
    ignores_context(layer, X, "initialize")
reads_context(FactorOut((2, 4, 4), Reader()), IMAGE, "initialize")
for layer in (Conv1x1(2), Conv2d(2)):
    ignores_context(layer, IMAGE, *WAYS, "unnormalized")
ignores_context(Squeeze((2, 4, 4)), IMAGE, "forward")
also(
    Squeeze.inverse,
    lambda **o: Squeeze((2, 4, 4)).inverse(Squeeze((2, 4, 4))(IMAGE)[0], **o),
    context=same("the layer reads none", C),
    generator=same("the layer draws nothing", torch.Generator()),
)


# Constructors -------------------------------------------------------------------------------

HEAVY = torch.cat([rows(20, 2), 100 + rows(2, 2)])


def _started(layer: Transform, x: Tensor, **options: Any) -> Any:
    layer.initialize(x, **options)
    return state(layer)


def _walk_with_gradient(**options: Any) -> Any:
    return walker.walk(X.clone().requires_grad_(), **options)


def seeded(seed: int) -> torch.Generator:
    """A generator at its start."""
    return torch.Generator().manual_seed(seed)


def mapped(layer: Transform, x: Tensor = X) -> Tensor:
    """What a layer, its parameters moved, makes of some rows."""
    return stirred(layer)(x)[0]


def size(make: Any, *args: Any) -> Any:
    """The number of parameters of what is made."""
    return lambda **o: number_of_parameters(make(*args, **o))


COUNTS = torch.arange(8.0).reshape(4, 2)

of(
    Transform,
    lambda **o: (lambda t: (t.event_shape, t.noise_shape, t.needs_context))(Shear((2,), **o)),
    context=differs(1),
    noise_shape=differs((1, 2)),
)
moved = Inverse(Metropolis(DoubleWell(), steps=3))
for way in (moved.forward, moved.inverse):
    also(
        way,
        lambda way=way, **o: way(X, **o),
        generator=differs(Fresh(lambda: seeded(1)), Fresh(lambda: seeded(2))),
    )


def saved_bytes(**options: Any) -> float:
    """Numbers that are kept for the backward pass."""
    layers = [stirred(Coupling([0, 1], Affine(), conditioner=small)) for _ in range(4)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
        Compose(*layers, **options)(X)
    return float(sum(kept))


layers = [stirred(Coupling([0, 1], Affine(), conditioner=small)) for _ in range(4)]
of(Compose, saved_bytes, reversible=falls(True))


def started(start: str | None = None, starts: Any = None) -> Any:
    """Where a Compose of a layer that starts from data takes the data."""
    both = Compose(Standardize(2), LULinear(2), starts=starts)
    both.initialize(5 + 3 * X, start=start)
    return both(X)[0]


EITHER = {"standardized": [0], "plain": []}
also(Compose, started, starts=differs({"plain": [], "standardized": [0]}))
also(Compose.initialize, started, start=differs("plain", using={"starts": EITHER}))
of(
    Rescale,
    lambda **o: Rescale([0.0, 0.0], [1.0, 1.0], **o)(5 * X)[0],
    circular=differs([True, False], [True, True]),
)
of(ActNorm, lambda **o: ActNorm(2, **o).event_shape, event_ndim=differs(3))
of(Whiten, lambda **o: Whiten(2, **o).context_size, context=differs(1))
LOGNORMAL = torch.exp(rows(500, 1))
of(
    Gaussianize.initialize,
    lambda **o: _started(Gaussianize(1), LOGNORMAL, **o),
    context=differs(LOGNORMAL),
)
of(Gaussianize, lambda **o: _started(Gaussianize(1, **o), LOGNORMAL), knots=differs(6))
of(Standardize, lambda **o: _started(Standardize(2, **o), HEAVY), robust=differs(True))
of(
    CircularShift,
    lambda **o: mapped(CircularShift(2, **o), 5 * X),
    lower=differs(-1.0, -2.0),
    upper=differs(4.0, 5.0),
    circular=differs((True, False), (False, True)),
)
of(Log, lambda **o: Log(2, **o)(X.abs())[0].mean(), lower=rises(-1.0, -2.0))
of(
    Logit,
    lambda **o: Logit(2, **o)(UNIT)[0].mean(),
    lower=rises(-1.0, -2.0),
    upper=falls(2.0, 3.0),
)
of(
    Elementwise,
    lambda **o: mapped(Elementwise(2, **o)),
    scalar=differs(Affine(), RationalQuadraticSpline(3)),
    context=rises(1, 2, see=size(Elementwise, 2)),
    conditioner=falls(small, see=size(partial(Elementwise, 2, context=1))),
    event_ndim=differs(3, see=lambda **o: Elementwise(2, Affine(), **o).event_shape),
)


def undone(**options: Any) -> Any:
    """The inverse of an autoregressive layer of four features."""
    layer = MaskedAutoregressive(4, Affine(), conditioner=masked, **options)
    return stirred(layer).inverse(rows(6, 4))


def passes(**options: Any) -> float:
    """How often the network of the layer is asked by ``inverse``."""
    with mock.patch.object(
        MaskedMLP, "forward", autospec=True, side_effect=MaskedMLP.forward
    ) as net:
        undone(**options)
    return float(net.call_count)


of(
    MaskedAutoregressive,
    lambda **o: mapped(MaskedAutoregressive(2, **o)),
    scalar=differs(Affine(), RationalQuadraticSpline(3)),
    conditioner=falls(masked, see=size(MaskedAutoregressive, 2)),
    context=rises(1, 2, see=size(MaskedAutoregressive, 2)),
    order=differs((1, 0)),
    inverse_method=(
        same("another way to the same numbers", "jacobi", see=undone, rounding=1e-5),
        rises("jacobi", see=passes),
    ),
)
of(
    Coupling,
    lambda **o: mapped(Coupling([0, 1], **o)),
    scalar=differs(Affine(), RationalQuadraticSpline(3)),
    conditioner=falls(small, see=size(Coupling, [0, 1])),
    context=rises(1, 2, see=size(Coupling, [0, 1])),
    event_ndim=differs(3, see=lambda **o: Coupling([0, 1], Affine(), **o).event_shape),
)
of(
    Conv1x1,
    lambda **o: mapped(Conv1x1(2, **o), IMAGE),
    linear=differs(DenseLinear, OrthogonalLinear),
)
of(Conv2d, size(Conv2d, 2), kernel=rises((3, 5), 5))
of(LULinear, lambda **o: mapped(LULinear(2, **o)), groups=differs((1, 1)))
of(OrthogonalLinear, size(OrthogonalLinear, 4), reflections=rises(6, 8))
of(Reshape, lambda **o: Reshape((2, 2), **o).noise_shape, noise_shape=differs((1, 4), (4, 1)))
of(Squeeze, lambda **o: Squeeze((1, 4, 4), **o).noise_shape[0], factor=rises(4))
of(Permutation.random, lambda **o: Permutation.random(9, **o).order, seed=seeds())

# Stochastic layers --------------------------------------------------------------------------

WELL = DoubleWell()


def walked(make: Any) -> Any:
    """Where a layer leads, from one seed of the generator."""
    return lambda **o: make(WELL, **o).walk(X)[:2]


STEPS = {"steps": differs(1, 3), "step_size": differs(0.001, (0.01, 0.02))}
of(Metropolis, walked(Metropolis), **STEPS)
of(MALA, walked(MALA), **STEPS)
of(HMC, walked(HMC), **STEPS, leapfrog=differs(2, 3))
of(
    OverdampedLangevin,
    walked(OverdampedLangevin),
    steps=differs(2, 3),
    step_size=differs(0.001, (0.01, 0.02)),
    learn=falls(False, see=size(OverdampedLangevin, WELL)),
)
of(
    UnderdampedLangevin,
    walked(UnderdampedLangevin),
    **STEPS,
    friction=differs(0.5, 5.0),
    mass=differs(2.0, (1.0, 3.0)),
    learn=falls(False, see=size(UnderdampedLangevin, WELL)),
)
KINDS = (Metropolis, MALA, HMC, OverdampedLangevin, UnderdampedLangevin)
WALKERS = [kind(WELL, steps=3) for kind in KINDS]
walker, counts = WALKERS[0], Dequantize(2)


def each(name: str) -> tuple[Expectation, ...]:
    """That a generator decides what a method of every stochastic layer draws."""
    return tuple(draws(see=partial(getattr(layer, name), X)) for layer in WALKERS)


for way in WAYS:
    of(getattr(EnergyTransform, way), None, generator=each(way))
of(
    EnergyTransform.walk,
    lambda **o: walker.walk(X, **o),
    generator=each("walk"),
    inverse=same("both directions are the same random move", True),
    choices=shows(lambda walk: walk.log_choice is not None, True, see=_walk_with_gradient),
)
of(
    StochasticTransform.walk,
    lambda **o: counts.walk(COUNTS, **o),
    context=same("the layer reads none", C[:4]),
    generator=draws(),
    inverse=differs(True),
    choices=same("a layer that decides nothing", True),
)
of(
    StochasticTransform.unnormalized,
    lambda **o: counts.unnormalized(COUNTS, **o),
    context=same("the layer reads none", C[:4]),
    generator=draws(),
)
of(
    Dequantize.forward,
    lambda **o: counts(COUNTS, **o),
    context=same("the layer reads none", C[:4]),
    generator=draws(),
)
of(
    Dequantize.inverse,
    lambda **o: counts.inverse(COUNTS + 0.5, **o),
    context=same("the layer reads none", C[:4]),
    generator=same("rounding down draws nothing", Fresh(lambda: seeded(1))),
)
noisy = Compose(Metropolis(WELL, steps=2), Standardize(2))
for way in (noisy.forward, noisy.inverse, noisy.unnormalized, noisy.states):
    also(way, lambda way=way, **o: way(X, **o), generator=draws())
also(
    DenseLinear.unnormalized,
    lambda **o: DenseLinear(2).unnormalized(X, **o),
    generator=same("the layer draws nothing", torch.Generator()),
    context=same("the layer reads none", C),
)
NUMBERS = torch.ones(4)
of(
    Walk,
    lambda **o: Walk(X, X[:, 0], **o),
    acceptance=differs(NUMBERS),
    nonfinite=differs(NUMBERS),
    log_choice=differs(NUMBERS),
)


def compiled(**options: Any) -> Any:
    """What the compiler is given; the compiler itself is left out."""
    with mock.patch("torch.compile", side_effect=lambda f, *_, **__: f) as compiler:
        MaskedAutoregressive(2, conditioner=masked).compile_inverse(**options)
    return [call.kwargs for call in compiler.call_args_list]


of(
    MaskedAutoregressive.compile_inverse,
    compiled,
    kwargs=differs({"dynamic": True}, {"mode": "reduce-overhead"}),
)
