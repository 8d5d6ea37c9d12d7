"""Base distributions, as modules."""

from flowkit.bases.base import Base
from flowkit.bases.normal import DiagonalNormal, NormalMixture, StandardNormal
from flowkit.bases.other import Logistic, StudentT, Uniform
from flowkit.bases.product import Product

__all__ = [
    "Base",
    "DiagonalNormal",
    "Logistic",
    "NormalMixture",
    "Product",
    "StandardNormal",
    "StudentT",
    "Uniform",
]
