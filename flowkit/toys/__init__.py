"""Known densities to learn on: planar toys, a torus, copulas, and energies with their constants."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowkit.toys.base import NoisedShape, Toy
from flowkit.toys.copula import HeavyCopula
from flowkit.toys.energies import DoubleWell, Funnel, GaussianMixture, Ring
from flowkit.toys.multimodal import Multimodal10, multimodal10
from flowkit.toys.picture import Picture
from flowkit.toys.planar import (
    checkerboard,
    eight_gaussians,
    rings,
    sine,
    swirl,
    two_moons,
    two_spirals,
)
from flowkit.toys.torus import TorusRings, torus_rings

#: Every toy by name, for loops and command lines: ``TOYS["swirl"]()`` is ``swirl()``.
TOYS: Mapping[str, Callable[[], Toy]] = MappingProxyType(
    {
        "sine": sine,
        "swirl": swirl,
        "checkerboard": checkerboard,
        "two_moons": two_moons,
        "two_spirals": two_spirals,
        "rings": rings,
        "eight_gaussians": eight_gaussians,
        "multimodal10": multimodal10,
        "torus_rings": torus_rings,
    }
)

__all__ = [
    "TOYS",
    "DoubleWell",
    "Funnel",
    "GaussianMixture",
    "HeavyCopula",
    "Multimodal10",
    "NoisedShape",
    "Picture",
    "Ring",
    "TorusRings",
    "Toy",
    "checkerboard",
    "eight_gaussians",
    "multimodal10",
    "rings",
    "sine",
    "swirl",
    "torus_rings",
    "two_moons",
    "two_spirals",
]
