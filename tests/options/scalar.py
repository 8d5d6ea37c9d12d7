"""Scalar maps and the root searches behind their inverses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.interop.nflows.scalars import (
    SigmoidAffine,
    SoftplusAffine,
    SoftplusIntervalSpline,
    SoftplusSpline,
)
from flowkit.numerics.bins import find_root_in_bins
from flowkit.numerics.roots import attach_newton
from flowkit.scalar import (
    Affine,
    CircularSmoothMixture,
    CircularSpline,
    IntervalSpline,
    LogisticMixture,
    RationalQuadraticSpline,
    RealSmoothMixture,
    SmoothLeakyReLU,
    SmoothMixture,
)

from .harness import Expectation, differs, falls, of, rises, same
from .parts import rows

GRID = torch.linspace(0.05, 0.95, 7)


def at(make: Any, size: float = 1.0) -> Any:
    """A map with random parameters, on a grid inside all intervals used here."""

    def see(**options: Any) -> tuple[Tensor, Tensor]:
        scalar = make(**options)
        params = size * rows(7, 100)[:, : scalar.param_size]
        return scalar.forward(GRID, params)

    return see


def param_size(make: Any) -> Any:
    """How many parameters a map reads."""
    return lambda **o: float(make(**o).param_size)


def least_slope(make: Any) -> Any:
    """The least slope of a map whose parameters try everything."""
    return lambda **o: at(make, 30.0)(**o)[1].min()


def slope_at_knots(make: Any) -> Any:
    """The slope inside equal bins, whose slopes at the knots are as small as can be."""

    def see(**options: Any) -> Any:
        scalar = make(**options)
        return scalar.knots(torch.full((scalar.param_size,), -100.0))[2].min()

    return see


def spline(make: Any, **ends: Expectation) -> None:
    of(
        make,
        at(make),
        bins=rises(16, 20, see=param_size(make)),
        min_size=differs(0.5, 0.9),
        min_slope=rises(0.1, 0.5, see=slope_at_knots(make)),
        **ends,
    )


def moved_end(make: Any, value: Tensor, name: str) -> Any:
    """What a map makes of a number beyond an end that is moved past it."""
    return lambda **o: make(**o).forward(value, torch.ones(make(**o).param_size))


ENDS = {"lower": differs(-1.0, -2.0), "upper": differs(2.0, 3.0)}
spline(RationalQuadraticSpline, bound=differs(2.0, 1.0))
for kind in (IntervalSpline, CircularSpline, SoftplusIntervalSpline):
    spline(kind, **ENDS)
spline(SoftplusSpline, bound=differs(2.0, 1.0))

of(Affine, at(Affine, 5.0), max_log_scale=differs(1.0, None))
of(
    LogisticMixture,
    at(LogisticMixture, 5.0),
    components=rises(9, 10, see=param_size(LogisticMixture)),
    max_log_scale=differs(1.0, 2.0),
)
of(SmoothLeakyReLU, at(SmoothLeakyReLU), alpha=differs(0.1, 0.9))
for kind in (SigmoidAffine, SoftplusAffine):
    of(kind, least_slope(kind), floor=rises(0.1, 0.5))


class Calls:
    """Counts how often a search looks at its function, and at how many points."""

    def __init__(self) -> None:
        self.points = 0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.points += x.numel()
        return 1e3 * torch.atan(1e4 * (x - 0.3)), 1e7 / (1 + (1e4 * (x - 0.3)) ** 2)

    def take(self, index: Tensor) -> Calls:
        return self


def searched(**options: Any) -> float:
    """Points that a search in bins looks at."""
    f, zeros = Calls(), torch.zeros(5, dtype=torch.float64)
    find_root_in_bins(f, zeros + 0.9, zeros, zeros + 1, **options)
    return float(f.points)


def undone(make: Any) -> Any:
    """The inverse of a map."""

    def see(**options: Any) -> Any:
        scalar = make(**options)
        return scalar.inverse(GRID, rows(7, 100)[:, : scalar.param_size])

    return see


SEARCH = "how the inverse is searched for, not what it is"
for kind in (SmoothMixture, RealSmoothMixture, CircularSmoothMixture):
    of(
        kind,
        at(kind, 3.0),
        components=rises(9, 10, see=param_size(kind)),
        exponent=differs(0.5, 2.0),
        min_density=rises(0.1, 0.5, see=least_slope(kind)),
        max_log_scale=differs(1.0, 2.0),
        lower=differs(-1.0, -2.0),
        upper=differs(2.0, 3.0),
        points=same(SEARCH, 12, see=undone(kind), rounding=1e-5),
        tolerance=same(SEARCH, 1e-3, see=undone(kind), rounding=1e-5),
    )


def newton(**options: Any) -> float:
    """How many derivatives of the cubic root at 1 are right, from the first on."""
    y = torch.ones((), dtype=torch.float64, requires_grad=True)

    def cube(x: Tensor) -> tuple[Tensor, Tensor]:
        return x**3, torch.log(3 * x**2)

    value = attach_newton(cube, torch.ones_like(y), y, **options)
    right, expected = 0, 1.0
    for order in range(6):
        if not value.requires_grad:
            break
        (value,) = torch.autograd.grad(value, y, create_graph=True)
        expected *= 1 / 3 - order
        if abs(float(value.detach()) - expected) > 1e-9:
            break
        right += 1
    return float(right)


of(attach_newton, newton, steps=rises(2, 3, base=1))
of(find_root_in_bins, searched, points=rises(200), tolerance=falls(1e-2, 0.3))
