"""Base distributions, as modules."""

from flowkit.bases.base import Base
from flowkit.bases.normal import DiagonalNormal, NormalMixture, StandardNormal
from flowkit.bases.other import Logistic, StudentT, Uniform

__all__ = [
    "Base",
    "DiagonalNormal",
    "Logistic",
    "NormalMixture",
    "StandardNormal",
    "StudentT",
    "Uniform",
]
