"""Networks that emit the parameters of scalar maps."""

from flowkit.conditioners.circular import CircularFeatures, CircularMaskedMLP
from flowkit.conditioners.context import StandardizeContext
from flowkit.conditioners.conv import ConvNet
from flowkit.conditioners.fourier import FourierMaskedMLP
from flowkit.conditioners.grouped import Grouped
from flowkit.conditioners.kernel import KernelConditioner, RandomFourierConditioner
from flowkit.conditioners.kernels import (
    Kernel,
    KernelProduct,
    KernelSum,
    Matern,
    RationalQuadratic,
    SquaredExponential,
)
from flowkit.conditioners.masked import AutoregressiveConditioner, MaskedMLP
from flowkit.conditioners.mlp import ACTIVATIONS, MLP, Conditioner, ResidualMLP

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "AutoregressiveConditioner",
    "CircularFeatures",
    "CircularMaskedMLP",
    "Conditioner",
    "ConvNet",
    "FourierMaskedMLP",
    "Grouped",
    "Kernel",
    "KernelConditioner",
    "KernelProduct",
    "KernelSum",
    "MaskedMLP",
    "Matern",
    "RandomFourierConditioner",
    "RationalQuadratic",
    "ResidualMLP",
    "SquaredExponential",
    "StandardizeContext",
]
