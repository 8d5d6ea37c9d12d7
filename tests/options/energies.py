"""Energies: of functions, of densities, between two."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from flowkit.bases import StandardNormal
from flowkit.energies import (
    CallableEnergy,
    ConditionalEnergy,
    Energy,
    Interpolation,
    NegativeLogProb,
)
from flowkit.energies.base import as_energy, with_force
from flowkit.energies.checks import one_number_each
from flowkit.energies.target import Target
from flowkit.numerics.gradients import no_gradient, value_and_gradient
from flowkit.toys import DoubleWell

from .harness import differs, draws, falls, number_of_parameters, of, rises, shows
from .parts import (
    C,
    D,
    X,
    conditional,
    message,
    plain,
    reads_context,
    targets,
)

POINT = torch.full((1, 2), 0.7)


def springs(x: Tensor, *context: Tensor) -> Tensor:
    """Springs, at rest at the sum of the context."""
    at = sum((c.sum(-1, keepdim=True) for c in context), torch.zeros(1))
    return 0.5 * (x - at).square().sum(-1)


def push(x: Tensor) -> Tensor:
    """A force that belongs to no energy here, so that it is seen."""
    return torch.full_like(x, 3.0)


def lost(x: Tensor, *_: Any) -> Tensor:
    """An energy without a gradient."""
    return springs(x.detach())


PULLED = CallableEnergy(springs, 2, context=1)
of(
    CallableEnergy,
    lambda **o: CallableEnergy(springs, 2, **o).energy(POINT),
    force=differs(push, see=lambda **o: CallableEnergy(springs, 2, **o).force(POINT)),
    context=shows(
        lambda e: e == 1, 1, see=lambda **o: CallableEnergy(springs, 2, **o).context_size
    ),
    kT=falls(2.0, 4.0),
)
of(Energy, lambda **o: Energy((2,), **o).context_size, context=rises(1, 2))
of(Energy.energy, None, context="abstract: raises, whatever is given")
for method in ("shape", "generator"):
    of(Energy.sample, None, **{method: "abstract: raises, whatever is given"})
reads_context(PULLED, X, "forward", "force", "energy_and_force")
of(
    as_energy,
    lambda **o: as_energy(springs, (2,), **o).context_size,
    context=rises(1, 2),
)
of(
    NegativeLogProb,
    lambda **o: NegativeLogProb(conditional(), **o).context_size,
    context=rises(1),
)
density = NegativeLogProb(conditional(), context=1)
reads_context(density, X, "energy")
of(
    one_number_each,
    lambda **o: message(lambda: one_number_each(torch.zeros(3), X, 1, **o)),
    name=differs("log_prob"),
)
of(no_gradient, lambda **o: str(no_gradient(**o)), name=differs("log_prob"))


def gradient(**options: Any) -> Any:
    """Energies and gradients of springs."""
    return value_and_gradient(springs, X.clone().requires_grad_(), C, **options)


of(
    value_and_gradient,
    None,
    context=differs(
        C,
        see=lambda **o: value_and_gradient(
            lambda x, c: springs(x, *([] if c is None else [c])), X, **o
        ),
    ),
    graph=shows(lambda pair: pair[1].requires_grad, True, base=False, see=gradient),
    name=differs("log_prob", see=lambda **o: message(lambda: value_and_gradient(lost, X, **o))),
)
of(
    with_force,
    lambda **o: with_force(X, lambda: springs(X), lambda: push(X), **o),
    scale=falls(2.0, 4.0),
)

# A target: an energy, or a log-density in its place -----------------------------------------

FLOW = conditional()


def target(**options: Any) -> Any:
    """The energies of a target."""
    return Target("a test", **options)(FLOW, X)


def drawing(x: Tensor, *_: Tensor) -> Tensor:
    """An energy that draws, as one of a part of the data does."""
    return springs(x) * (1 + torch.rand(()))


of(
    Target,
    target,
    **targets(target),
    differentiated=shows(bool, True, see=lambda **o: message(lambda: asked(**o))),
)


def asked(**options: Any) -> Any:
    """A target of an energy whose gradient is lost."""
    return Target("a test", lost, **options)(FLOW, X.clone().requires_grad_())


for name in ("forward", "force"):
    of(
        getattr(Target, name),
        lambda name=name, **o: getattr(Target("a test", springs), name)(FLOW, X, **o),
        context=differs(D, base=C),
        generator=draws(
            see=lambda name=name, **o: getattr(Target("a test", drawing), name)(FLOW, X, **o)
        ),
    )


def warned(**options: Any) -> str:
    """The warning about an energy that falls, if its context is below zero at last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Target("a test", tilted).examine_direction(plain(), X, **options)
    return "".join(str(w.message) for w in caught)


def tilted(x: Tensor, *context: Tensor) -> Tensor:
    """An energy that falls without bound, unless a context turns it."""
    return (1.0 if context else -1.0) * x.square().sum(-1)


of(
    Target.examine_direction,
    warned,
    context=differs(C),
    remedy=differs("the other sign"),
)
reads_context(ConditionalEnergy(DoubleWell(), [True, False]), X[:, :1], "energy")
start = NegativeLogProb(StandardNormal(2))
of(
    Interpolation,
    lambda **o: number_of_parameters(Interpolation(start, DoubleWell(), 0.5, **o)),
    learn=rises(True),
)
reads_context(Interpolation(start, PULLED, 0.5), X, "energy")
of(
    NegativeLogProb.sample,
    start.sample,
    shape=shows(lambda x: len(x) == 7, (7,), 7),
    generator=draws(see=lambda **o: start.sample(20, **o)),
)
