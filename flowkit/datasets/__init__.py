"""Data to learn on without a download: toys with known entropies, photographs, small tables.

Random choices follow the ``seed`` of each call; the global random state is never touched. Heavy
packages are imported only by the loader that needs them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flowkit.datasets.copula import HeavyCopula
from flowkit.datasets.dequantize import dequantize
from flowkit.datasets.images import fashion_mnist
from flowkit.datasets.mice import Mice, heterogeneous_stock_mice
from flowkit.datasets.multimodal import Multimodal10, multimodal10
from flowkit.datasets.patches import PATCH_IMAGES, photograph_patches
from flowkit.datasets.photos import (
    PHOTOGRAPHS,
    PhotographColours,
    load_photograph,
    photograph_colours,
)
from flowkit.datasets.shapes import (
    checkerboard,
    eight_gaussians,
    rings,
    sine,
    swirl,
    two_moons,
    two_spirals,
)
from flowkit.datasets.splits import Splits, split_rows
from flowkit.datasets.stocks import StockReturns, stock_returns
from flowkit.datasets.tables import breast_cancer, diabetes, digits, magic, wine
from flowkit.datasets.torus import TorusRings, torus_rings
from flowkit.datasets.toy import NoisedShape, Toy

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
    "PATCH_IMAGES",
    "PHOTOGRAPHS",
    "TOYS",
    "HeavyCopula",
    "Mice",
    "Multimodal10",
    "NoisedShape",
    "PhotographColours",
    "Splits",
    "StockReturns",
    "TorusRings",
    "Toy",
    "breast_cancer",
    "checkerboard",
    "dequantize",
    "diabetes",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "heterogeneous_stock_mice",
    "load_photograph",
    "magic",
    "multimodal10",
    "photograph_colours",
    "photograph_patches",
    "rings",
    "sine",
    "split_rows",
    "stock_returns",
    "swirl",
    "torus_rings",
    "two_moons",
    "two_spirals",
    "wine",
]
