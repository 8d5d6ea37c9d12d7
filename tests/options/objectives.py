"""Objectives: their own options, and what they are told in a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    ForceMatching,
    KernelNorm,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    WeightedSum,
    kernelised_flow,
    stochastic_flow,
)
from flowkit.bases import StandardNormal
from flowkit.objectives import Loss, Objective
from flowkit.objectives.base import Batch
from flowkit.stochastic import Dequantize
from flowkit.toys import DoubleWell
from flowkit.transforms import Compose, DenseLinear, Logit, Standardize

from .harness import Fresh, differs, draws, falls, of, rises, same
from .parts import UNIT, X, plain, rows, spring, stirred, targets, wall

FLOW = plain()
WELL = DoubleWell()


def loss(objective: Any, batch: dict[str, Tensor] | None = None, flow: Flow = FLOW) -> Tensor:
    """The value of an objective."""
    return objective(flow, {"x": X} if batch is None else batch).value


def gradient(objective: Any, batch: dict[str, Tensor], flow: Flow) -> Any:
    """The gradient of an objective."""
    parameters = [p for p in flow.parameters() if p.requires_grad]
    return torch.autograd.grad(
        objective(flow, batch).value, parameters, allow_unused=True, materialize_grads=True
    )


FORCES = {"x": X, "force": -0.5 * X}
of(
    ForceMatching,
    lambda **o: loss(ForceMatching(**o), FORCES),
    energy=differs(spring, WELL),
    log_prob=differs(lambda x: -wall(x), base=lambda x: -spring(x)),
)
MANY = {"x": rows(2000, 2)}


def spread(make: Any, **fixed: Any) -> Any:
    """How far values of an objective scatter from one call to the next."""

    def see(**options: Any) -> Tensor:
        objective = make(spring, **fixed, **options)
        return torch.stack([loss(objective, {}).detach() for _ in range(30)]).std()

    return see


of(
    ReverseKL,
    lambda **o: gradient(ReverseKL(spring, **o), {}, FLOW),
    estimator=differs("reparam"),
    samples=falls(256, base=16, see=spread(ReverseKL)),
    **targets(lambda **o: gradient(ReverseKL(**o), {}, FLOW)),
)
chain = stochastic_flow(2, energy=WELL, blocks=2, steps=2, hidden=(8,), learn_fractions=True)
of(
    PathKL,
    None,
    samples=falls(256, base=16, see=spread(PathKL)),
    **targets(lambda **o: gradient(PathKL(**o), {}, FLOW)),
    gradient=differs(
        "reinforce", see=lambda **o: gradient(PathKL(WELL, **o), {}, stirred(chain, 0))
    ),
)
scaled = Standardize(2)
scaled.initialize(3 * X)
prepared = stirred(Flow(Compose(Logit(2), scaled, DenseLinear(2)), StandardNormal(2)))
of(
    AfterPreprocessing,
    lambda **o: loss(
        AfterPreprocessing(SlicedScoreMatching(slices=None), **o), {"x": UNIT}, prepared
    ),
    layers=differs(1),
)


POSITIVE = {"x": UNIT}


def energies(make: Any) -> Any:
    """The loss of samples whose energy is above zero."""
    return rises(0.1, 0.2, see=lambda **o: loss(make(**o), {"x": 4 + X}))


of(
    SlicedScoreMatching,
    lambda **o: loss(SlicedScoreMatching(**o)),
    slices=differs(2, 50, None),
    non_negative=differs(True, see=lambda **o: loss(SlicedScoreMatching(**o), POSITIVE)),
    energy_weight=energies(SlicedScoreMatching),
)
of(
    DenoisingScoreMatching,
    lambda **o: loss(DenoisingScoreMatching(**o)),
    noise=falls(0.2, 0.4, see=lambda **o: loss(DenoisingScoreMatching(**o), MANY)),
    antithetic=differs(True),
    multiplicative=differs(True, see=lambda **o: loss(DenoisingScoreMatching(**o), POSITIVE)),
    energy_weight=energies(DenoisingScoreMatching),
)
of(
    FiniteDifferenceScoreMatching,
    lambda **o: loss(FiniteDifferenceScoreMatching(**o)),
    radius=differs(0.5, 1.0),
    energy_weight=energies(FiniteDifferenceScoreMatching),
)


# Calling an objective -----------------------------------------------------------------------


class Fading(Objective):
    """An objective whose noise fades over the fit."""

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        noise = torch.randn((), generator=generator)
        return Loss(noise * (2 - progress) + 0 * batch["x"].mean(), {})

    def start(self, batch: Batch, *, generator: torch.Generator | None = None) -> Batch:
        return {**batch, "x": batch["x"] + torch.rand((), generator=generator)}


def called(objective: Objective, flow: Flow = FLOW, batch: Any = None) -> Any:
    """The value of an objective, with what it is told about the fit."""
    given = {"x": X} if batch is None else batch
    return lambda **o: objective(flow, given, **o).value


def drawing(x: Tensor) -> Tensor:
    """An energy that draws, as one of a part of the data does."""
    return spring(x) * (1 + torch.rand(()))


noisy = Flow(Compose(Dequantize(2), DenseLinear(2)), StandardNormal(2))
DRAWING = {
    MaximumLikelihood: called(MaximumLikelihood(), noisy),
    ForceMatching: called(ForceMatching(drawing)),
    PathKL: called(PathKL(spring, samples=4), batch={}),
    ReverseKL: called(ReverseKL(spring, samples=4), batch={}),
    DenoisingScoreMatching: called(DenoisingScoreMatching()),
    StochasticMaximumLikelihood: called(StochasticMaximumLikelihood()),
}
MORE = {
    DenoisingScoreMatching: [
        called(DenoisingScoreMatching(multiplicative=True), batch=POSITIVE),
        called(SlicedScoreMatching()),
        called(FiniteDifferenceScoreMatching()),
    ],
    ReverseKL: [called(ReverseKL(spring, estimator="reparam", samples=4), batch={})],
    PathKL: [called(PathKL(WELL, samples=4, gradient="reinforce"), stirred(chain, 0), {})],
}
for kind, see in DRAWING.items():
    of(
        kind.forward,
        see,
        generator=(draws(), *(draws(see=other) for other in MORE.get(kind, []))),
        progress=same("none has a schedule", 0.3),
    )
of(
    KernelNorm.forward,
    called(KernelNorm(), kernelised_flow(2, layers=1, points=3)),
    generator=same("it draws nothing", Fresh(lambda: torch.Generator().manual_seed(1))),
    progress=same("there is no schedule", 0.3),
)
for holder in (WeightedSum((1.0, Fading())), AfterPreprocessing(Fading(), layers=1)):
    of(
        type(holder).forward,
        called(holder, prepared, {"x": UNIT}),
        generator=draws(),
        progress=differs(0.5, 0.1),
    )
    of(
        type(holder).start,
        lambda holder=holder, **o: holder.start({"x": X}, **o),
        generator=draws(),
    )
of(Objective.forward, None, **dict.fromkeys(("generator", "progress"), "abstract: raises"))
of(
    Objective.start,
    lambda **o: MaximumLikelihood().start({"x": X}, **o),
    generator=same("it starts nothing", Fresh(lambda: torch.Generator().manual_seed(1))),
)
