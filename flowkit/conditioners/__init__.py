"""Networks that emit the parameters of scalar maps."""

from flowkit.conditioners.conv import ConvNet
from flowkit.conditioners.encodings import CircularFeatures, CircularMaskedMLP
from flowkit.conditioners.fourier import FourierMaskedMLP
from flowkit.conditioners.grouped import GroupedConditioner
from flowkit.conditioners.kernel import KernelConditioner, RandomFourierConditioner
from flowkit.conditioners.masked import AutoregressiveConditioner, MaskedMLP
from flowkit.conditioners.mlp import ACTIVATIONS, MLP, Conditioner, ResidualMLP
from flowkit.conditioners.standardize import StandardizeContext

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "AutoregressiveConditioner",
    "CircularFeatures",
    "CircularMaskedMLP",
    "Conditioner",
    "ConvNet",
    "FourierMaskedMLP",
    "GroupedConditioner",
    "KernelConditioner",
    "MaskedMLP",
    "RandomFourierConditioner",
    "ResidualMLP",
    "StandardizeContext",
]
