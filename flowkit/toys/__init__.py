"""Known densities to learn and to test on: planar toys, a torus, copulas, wells."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowkit import checks
from flowkit.toys.base import Toy as Toy
from flowkit.toys.copula import HeavyCopula
from flowkit.toys.mixture import GaussianMixture
from flowkit.toys.multimodal import Multimodal10
from flowkit.toys.picture import Picture
from flowkit.toys.planar import Checkerboard, Circles, Sine, Swirl, TwoMoons, TwoSpirals
from flowkit.toys.torus import TorusRings
from flowkit.toys.wells import DoubleWell, Funnel, Ring

#: Every toy that needs no argument, by name, for loops and command lines: ``TOYS["swirl"]()``.
TOYS: Mapping[str, Callable[..., Toy]] = MappingProxyType(
    {
        "checkerboard": Checkerboard,
        "circles": Circles,
        "double_well": DoubleWell,
        "eight_gaussians": GaussianMixture.ring,
        "funnel": Funnel,
        "heavy_copula": HeavyCopula,
        "multimodal10": Multimodal10,
        "ring": Ring,
        "sine": Sine,
        "swirl": Swirl,
        "torus_rings": TorusRings,
        "two_moons": TwoMoons,
        "two_spirals": TwoSpirals,
    }
)


def make_toy(name: str, features: int) -> Toy:
    """Make a toy by its name, of this number of features where it has a choice."""
    make = checks.choice("toy", "name", name, TOYS)
    return make(features) if "features" in inspect.signature(make).parameters else make()


__all__ = [
    "Checkerboard",
    "Circles",
    "DoubleWell",
    "Funnel",
    "GaussianMixture",
    "HeavyCopula",
    "Multimodal10",
    "Picture",
    "Ring",
    "Sine",
    "Swirl",
    "TorusRings",
    "TwoMoons",
    "TwoSpirals",
]
