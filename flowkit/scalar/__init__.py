"""Monotone maps of one number, their parameters handed in."""

from flowkit.scalar.affine import Affine, soft_clip
from flowkit.scalar.base import ScalarMap
from flowkit.scalar.mixture import LogisticMixture
from flowkit.scalar.roots import attach_newton, expand_bracket, find_root, find_root_by_newton
from flowkit.scalar.spline import CircularSpline, IntervalSpline, RationalQuadraticSpline

__all__ = [
    "Affine",
    "CircularSpline",
    "IntervalSpline",
    "LogisticMixture",
    "RationalQuadraticSpline",
    "ScalarMap",
    "attach_newton",
    "expand_bracket",
    "find_root",
    "find_root_by_newton",
    "soft_clip",
]
