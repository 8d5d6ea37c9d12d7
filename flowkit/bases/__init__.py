"""Base distributions, as modules."""

from flowkit.bases.base import Base
from flowkit.bases.logistic import Logistic
from flowkit.bases.normal import DiagonalNormal, NormalMixture, StandardNormal
from flowkit.bases.product import ProductBase
from flowkit.bases.student import StudentT
from flowkit.bases.uniform import Uniform

__all__ = [
    "Base",
    "DiagonalNormal",
    "Logistic",
    "NormalMixture",
    "ProductBase",
    "StandardNormal",
    "StudentT",
    "Uniform",
]
