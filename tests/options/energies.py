"""Energies: of functions, of densities, between two, and toys."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from flowkit.bases import StandardNormal
from flowkit.energies import (
    Conditional,
    Energy,
    Interpolation,
    NegativeLogProb,
    as_energy,
    from_callable,
)
from flowkit.energies.checks import gradient_of, no_gradient, one_number_each
from flowkit.energies.target import Target
from flowkit.toys import DoubleWell, Funnel, GaussianMixture, Picture, Ring

from .harness import differs, draws, falls, number_of_parameters, of, rises, shows
from .parts import (
    C,
    D,
    X,
    conditional,
    ignores_context,
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


PULLED = from_callable(springs, 2, context=1)
of(
    from_callable,
    lambda **o: from_callable(springs, 2, **o).energy(POINT),
    force=differs(push, see=lambda **o: from_callable(springs, 2, **o).force(POINT)),
    context=shows(
        lambda e: e == 1, 1, see=lambda **o: from_callable(springs, 2, **o).context_size
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
density = NegativeLogProb(conditional(), 1)
reads_context(density, X, "energy")
of(
    one_number_each,
    lambda **o: message(lambda: one_number_each(torch.zeros(3), X, 1, **o)),
    what=differs("sample"),
    name=differs("log_prob"),
)
of(no_gradient, lambda **o: str(no_gradient(**o)), name=differs("log_prob"))


def pulled_back(**options: Any) -> bool:
    """Whether the gradient of an energy has one of its own."""
    x = X.clone().requires_grad_()
    return gradient_of(springs(x).square(), x, **options).requires_grad


of(
    gradient_of,
    pulled_back,
    create_graph=shows(bool, True),
    name=differs("log_prob", see=lambda **o: message(lambda: gradient_of(torch.ones(6), X, **o))),
)

# A target: an energy, or a log-density in its place -----------------------------------------

FLOW = conditional()


def lost(x: Tensor) -> Tensor:
    """An energy without a gradient."""
    return springs(x.detach())


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
reads_context(Conditional(DoubleWell(), [True, False]), X[:, :1], "energy")
start = NegativeLogProb(StandardNormal(2))
of(
    Interpolation,
    lambda **o: number_of_parameters(Interpolation(start, DoubleWell(), 0.5, **o)),
    learn=rises(True),
)
reads_context(Interpolation(start, PULLED, 0.5), X, "energy")

picture = Picture(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
of(
    Picture,
    lambda **o: Picture(picture.heights, **o).energy(3 * POINT),
    stiffness=rises(2e4, 3e4),
)


def sampled(energy: Any) -> dict[str, Any]:
    """Cases of an exact sampler."""
    return {
        "shape": shows(lambda x: len(x) == 7, (7,), 7),
        "generator": draws(see=lambda **o: energy.sample(20, **o)),
    }


ring = GaussianMixture.ring()
TOYS = (DoubleWell(), ring, Funnel(2), Ring())
for energy in (start, picture):
    of(type(energy).sample, energy.sample, **sampled(energy))
every = [sampled(energy) for energy in TOYS]
of(
    DoubleWell.sample,  # of all toys
    None,
    shape=tuple(
        shows(lambda x: len(x) == 7, (7,), 7, see=energy.sample, base=1) for energy in TOYS
    ),
    generator=tuple(cases["generator"] for cases in every),
)
for energy in (picture, DoubleWell(), ring, Funnel(2), Ring()):
    ignores_context(energy, X, "energy")

# Toys ---------------------------------------------------------------------------------------

of(
    DoubleWell,
    lambda **o: DoubleWell(**o).energy(POINT),
    features=rises(3, 4, see=lambda **o: float(DoubleWell(**o).event_shape[0])),
    a=rises(0.0, 1.0),
    b=rises(-5.0, -4.0),
    c=rises(2.0, 3.0),
)
of(
    Funnel,
    lambda **o: Funnel(**{"features": 2, **o}).sample(200).std(),
    features=rises(11, 12, see=lambda **o: float(Funnel(**o).event_shape[0])),
    scale=rises(4.0, 5.0),
)
CENTRES = [[0.0, 0.0], [3.0, 0.0]]
of(
    GaussianMixture,
    lambda **o: GaussianMixture(CENTRES, **o).energy(X),
    scales=differs(0.5, (0.5, 2.0)),
    weights=differs((0.9, 0.1), (0.1, 0.9)),
)
of(
    GaussianMixture.ring,
    lambda **o: GaussianMixture.ring(**o).energy(10 * POINT),
    components=rises(9, 10, see=lambda **o: float(len(GaussianMixture.ring(**o).means))),
    radius=falls(5.0, 6.0),
    scale=falls(1.0, 2.0),
)
of(
    Ring,
    lambda **o: Ring(**o).energy(10 * POINT),
    radius=falls(4.0, 5.0),
    width=falls(0.5, 1.0),
)
