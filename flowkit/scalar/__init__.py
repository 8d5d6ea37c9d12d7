"""Increasing functions of one number, with their parameters handed in."""

from flowkit.scalar.activation import SmoothLeakyReLU
from flowkit.scalar.affine import Affine
from flowkit.scalar.base import ScalarMap
from flowkit.scalar.features import PerFeature
from flowkit.scalar.mixture import LogisticMixture
from flowkit.scalar.smooth import CircularSmoothMixture, RealSmoothMixture, SmoothMixture
from flowkit.scalar.spline import CircularSpline, IntervalSpline, RationalQuadraticSpline
from flowkit.scalar.tails import TailTransform

__all__ = [
    "Affine",
    "CircularSmoothMixture",
    "CircularSpline",
    "IntervalSpline",
    "LogisticMixture",
    "PerFeature",
    "RationalQuadraticSpline",
    "RealSmoothMixture",
    "ScalarMap",
    "SmoothLeakyReLU",
    "SmoothMixture",
    "TailTransform",
]
