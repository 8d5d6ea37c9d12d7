"""Toys: their shapes, and what is drawn."""

from __future__ import annotations

from typing import Any

import torch

from flowkit.toys import (
    TOYS,
    Circles,
    DoubleWell,
    Funnel,
    GaussianMixture,
    HeavyCopula,
    Picture,
    Ring,
    TorusRings,
    Toy,
)

from .harness import differs, draws, falls, of, rises, seeds, shows
from .parts import X, ignores_context

POINT = torch.full((1, 2), 0.7)
FAR = torch.tensor([[0.0, 1e3]])
picture = Picture(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
every: list[Toy] = [picture, *(make() for make in TOYS.values())]
of(
    Toy.sample,
    None,
    shape=tuple(shows(lambda x: len(x) == 7, (7,), 7, see=toy.sample, base=1) for toy in every),
    generator=tuple(draws(see=lambda toy=toy, **o: toy.sample(20, **o)) for toy in every),
)
for toy in (picture, DoubleWell(), Funnel(2), GaussianMixture.ring(), Ring(), TorusRings()):
    ignores_context(toy, X, "energy")
ignores_context(TOYS["two_moons"](), X, "energy")
ignores_context(HeavyCopula(2), X, "energy")
ignores_context(TOYS["multimodal10"](), torch.zeros(3, 10, dtype=torch.float64), "energy")

for name in ("checkerboard", "sine", "swirl", "two_moons", "two_spirals", "circles"):
    make = TOYS[name]
    of(
        make,
        lambda make=make, **o: make(**o).sample(200, torch.Generator().manual_seed(0)),
        noise=differs(0.2, 0.5),
    )
of(
    Circles,
    lambda **o: Circles(**o).sample(200, torch.Generator().manual_seed(0)),
    radii=differs((1.0,), (1.0, 2.0)),
)
of(Picture, lambda **o: Picture(picture.heights, **o).energy(3 * POINT), stiffness=rises(2e4, 3e4))
of(TorusRings, lambda **o: TorusRings(**o).energy(X), width=differs(0.1, 0.2))


def copula(**options: Any) -> HeavyCopula:
    return HeavyCopula(**{"features": 2, **options})


of(
    HeavyCopula,
    lambda **o: copula(**o).log_prob(FAR),
    features=rises(3, 4, see=lambda **o: float(len(copula(**o).tails))),
    heavy=rises(2, see=lambda **o: float(sum(t is not None for t in copula(**o).tails))),
    df=falls(4.0, 30.0),
    seed=seeds(see=lambda **o: copula(features=5, **o).correlation),
)
of(
    DoubleWell,
    lambda **o: DoubleWell(**o).energy(POINT),
    features=rises(3, 4, see=lambda **o: float(DoubleWell(**o).features)),
    a=rises(0.0, 1.0),
    b=rises(-5.0, -4.0),
    c=rises(2.0, 3.0),
)
of(
    Funnel,
    lambda **o: Funnel(**{"features": 2, **o}).sample(200).std(),
    features=rises(11, 12, see=lambda **o: float(Funnel(**o).features)),
    scale=rises(4.0, 5.0),
)
CENTERS = [[0.0, 0.0], [3.0, 0.0]]
of(
    GaussianMixture,
    lambda **o: GaussianMixture(CENTERS, **o).energy(X),
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
of(Ring, lambda **o: Ring(**o).energy(10 * POINT), radius=falls(4.0, 5.0), width=falls(0.5, 1.0))
