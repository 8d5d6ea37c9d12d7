"""Networks that emit the parameters of scalar maps."""

from flowkit.conditioners.base import AutoregressiveConditioner, Conditioner
from flowkit.conditioners.encodings import (
    AsinhEncoding,
    CircularEncoding,
    ClipEncoding,
    FourierEncoding,
)
from flowkit.conditioners.grouped import GroupedConditioner
from flowkit.conditioners.kernel import KernelConditioner, RandomFourierConditioner
from flowkit.conditioners.masked import MaskedMLP
from flowkit.conditioners.mlp import MLP, ConvNet, ResidualMLP
from flowkit.conditioners.standardize import StandardizeContext

__all__ = [
    "MLP",
    "AsinhEncoding",
    "AutoregressiveConditioner",
    "CircularEncoding",
    "ClipEncoding",
    "Conditioner",
    "ConvNet",
    "FourierEncoding",
    "GroupedConditioner",
    "KernelConditioner",
    "MaskedMLP",
    "RandomFourierConditioner",
    "ResidualMLP",
    "StandardizeContext",
]
