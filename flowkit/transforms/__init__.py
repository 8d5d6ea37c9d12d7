"""Maps of vectors between data and noise, all on the Transform contract."""

from flowkit.transforms.activation import Activation
from flowkit.transforms.autoregressive import MaskedAutoregressive
from flowkit.transforms.base import Inverse, Transform
from flowkit.transforms.compose import Compose
from flowkit.transforms.coupling import Coupling
from flowkit.transforms.domain import Box, Chart, CircularShift
from flowkit.transforms.elementwise import Elementwise
from flowkit.transforms.langevin import OverdampedLangevin, UnderdampedLangevin
from flowkit.transforms.linear import (
    Conv1x1,
    Conv2d,
    DenseLinear,
    LULinear,
    OrthogonalLinear,
    TriangularLinear,
)
from flowkit.transforms.metropolis import HMC, MALA, Metropolis
from flowkit.transforms.normalize import ActNorm, Standardize, Whiten
from flowkit.transforms.permute import Permutation
from flowkit.transforms.reshape import FactorOut, Reshape, Squeeze
from flowkit.transforms.stochastic import Dequantize, StochasticTransform, Walk
from flowkit.transforms.unconstrain import Log, Logit, Unconstrain

__all__ = [
    "ActNorm",
    "Activation",
    "Box",
    "Chart",
    "CircularShift",
    "Compose",
    "Conv1x1",
    "Conv2d",
    "Coupling",
    "DenseLinear",
    "Dequantize",
    "Elementwise",
    "FactorOut",
    "HMC",
    "Inverse",
    "LULinear",
    "Log",
    "Logit",
    "MALA",
    "MaskedAutoregressive",
    "Metropolis",
    "OrthogonalLinear",
    "OverdampedLangevin",
    "Permutation",
    "Reshape",
    "Squeeze",
    "Standardize",
    "StochasticTransform",
    "Transform",
    "TriangularLinear",
    "UnderdampedLangevin",
    "Unconstrain",
    "Walk",
    "Whiten",
]
