"""Maps of vectors between data and noise, all on the Transform contract."""

from flowkit.transforms.autoregressive import MaskedAutoregressive
from flowkit.transforms.base import Transform
from flowkit.transforms.compose import Compose
from flowkit.transforms.convolution import Conv1x1, Conv2d
from flowkit.transforms.coupling import Coupling
from flowkit.transforms.domain import CircularShift, Rescale
from flowkit.transforms.elementwise import Elementwise
from flowkit.transforms.gaps import ShortenGaps
from flowkit.transforms.gaussianize import Gaussianize
from flowkit.transforms.linear import DenseLinear, LULinear, OrthogonalLinear, TriangularLinear
from flowkit.transforms.normalize import ActNorm, Standardize, Whiten
from flowkit.transforms.permute import Permutation
from flowkit.transforms.reshape import FactorOut, Reshape, Squeeze
from flowkit.transforms.unconstrain import Log, Logit, Unconstrain

__all__ = [
    "ActNorm",
    "CircularShift",
    "Compose",
    "Conv1x1",
    "Conv2d",
    "Coupling",
    "DenseLinear",
    "Elementwise",
    "FactorOut",
    "Gaussianize",
    "LULinear",
    "Log",
    "Logit",
    "MaskedAutoregressive",
    "OrthogonalLinear",
    "Permutation",
    "Rescale",
    "Reshape",
    "ShortenGaps",
    "Squeeze",
    "Standardize",
    "Transform",
    "TriangularLinear",
    "Unconstrain",
    "Whiten",
]
