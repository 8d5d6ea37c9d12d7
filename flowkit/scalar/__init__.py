"""Monotone maps of one number, their parameters handed in."""

from flowkit.scalar.activation import SmoothLeakyReLU
from flowkit.scalar.affine import Affine, soft_clip
from flowkit.scalar.base import ScalarMap
from flowkit.scalar.features import PerFeature
from flowkit.scalar.mixture import LogisticMixture
from flowkit.scalar.roots import (
    attach_newton,
    expand_bracket,
    find_root,
    find_root_by_newton,
    find_root_in_bins,
)
from flowkit.scalar.smooth import (
    CircularSmoothMixture,
    LineSmoothMixture,
    SmoothMixture,
    least_shape,
    smooth_step,
)
from flowkit.scalar.spline import CircularSpline, IntervalSpline, RationalQuadraticSpline
from flowkit.scalar.tails import ExtremeValue

__all__ = [
    "Affine",
    "CircularSmoothMixture",
    "CircularSpline",
    "ExtremeValue",
    "IntervalSpline",
    "LineSmoothMixture",
    "LogisticMixture",
    "PerFeature",
    "RationalQuadraticSpline",
    "ScalarMap",
    "SmoothLeakyReLU",
    "SmoothMixture",
    "attach_newton",
    "expand_bracket",
    "find_root",
    "find_root_by_newton",
    "find_root_in_bins",
    "least_shape",
    "smooth_step",
    "soft_clip",
]
