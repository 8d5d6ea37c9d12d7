"""Maps between the domains that data live on and the unit cube: boxes and circles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.errors import NotInvertibleError
from flowkit.numerics.rounding import clamp_through, next_inside
from flowkit.transforms.base import Transform
from flowkit.transforms.normalize import _moments
from flowkit.transforms.region import Region
from flowkit.transforms.unconstrain import product_constraint, refuse_outside


def _to_cube(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Intervals to [-1, 1]; no number outside is rounded to an end."""
    z = 2 * (x - lower) / (upper - lower) - 1
    beyond = next_inside(1.0, 2.0, x.dtype)
    z = torch.where(x > upper, clamp_through(z, beyond, math.inf), z)
    return torch.where(x < lower, clamp_through(z, -math.inf, -beyond), z)


def _from_cube(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Back from the nearer end: no number is rounded out of its interval, ends are exact."""
    half = (upper - lower) / 2
    x = torch.where(z < 0, lower + (z + 1) * half, upper - (1 - z) * half)
    return torch.where(z.abs() <= 1, clamp_through(x, lower, upper), x)


@register
class Box(Transform):
    r"""A box onto the cube :math:`[-1, 1]^D`: :math:`z = 2 (x - l) / (u - l) - 1`.

    An affine map, so the outside of the box becomes the outside of the cube; with a base that
    lives on the cube the density is zero there.

    Args:
        lower: Lower ends l, one a feature.
        upper: Upper ends u.

    Raises:
        ValueError: If the numbers of ends differ, or an end is not finite or not below its upper.
        OutsideError: From ``initialize``, if rows are outside; names rows, columns and ends.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Box
        >>> Box([0.0, 0.0], [256.0, 640.0])(torch.tensor([128.0, 640.0]))[0]
        tensor([0., 1.])
    """

    constant_log_det = True
    elementwise = True
    keeps_intervals = True
    # What is outside becomes the outside of the cube.
    restricts = False

    def __init__(self, lower: Sequence[float], upper: Sequence[float]) -> None:
        lower, upper = [float(value) for value in lower], [float(value) for value in upper]
        ends = list(zip(lower, upper, strict=False))
        if len(lower) != len(upper) or not ends:
            raise ValueError(f"Box needs one lower and upper end a feature, got {lower}, {upper}")
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in ends):
            raise ValueError(f"Box needs finite lower < upper, got {lower}, {upper}")
        super().__init__((len(lower),))
        # Python numbers, not buffers: a buffer would be rounded to float32 for good.
        self.lower, self.upper = tuple(lower), tuple(upper)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.lower), like.new_tensor(self.upper)

    @property
    def domain(self) -> constraints.Constraint:
        """The box."""
        return product_constraint(self.lower, self.upper)

    @property
    def codomain(self) -> constraints.Constraint:
        """The cube."""
        return constraints.independent(constraints.interval(-1.0, 1.0), 1)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Check that all rows are inside; nothing is set."""
        lower, upper = self._ends(x)
        outside = (x < lower) | (x > upper)
        refuse_outside(self.label, x, outside, self.lower, self.upper, "between")

    @property
    def _outer(self) -> tuple[constraints.Constraint, constraints.Constraint]:
        """The line: an affine map goes on outside of its ends."""
        line = constraints.independent(constraints.real, 1)
        return line, line

    def _log_det(self, like: Tensor) -> Tensor:
        ends = zip(self.lower, self.upper, strict=True)
        return like.new_tensor(sum(math.log(2 / (b - a)) for a, b in ends)).expand(like.shape[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the box to the cube."""
        return _to_cube(x, *self._ends(x)), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the cube to the box."""
        lower, upper = self._ends(z)
        return _from_cube(z, lower, upper), -self._log_det(z)


def _as_circular(name: str, circular: Sequence[bool], features: int) -> list[bool]:
    """One boolean a feature, or an error; places of circles are not taken for booleans."""
    if len(circular) != features or any(c not in (0, 1) for c in circular):
        raise ValueError(
            f"{name} needs circular to be one boolean for each of {features} features, not places "
            f"of circles, got {list(circular)}"
        )
    return [bool(c) for c in circular]


def _refuse_circles(layer: Rescale | CircularShift) -> None:
    if any(layer.circular):
        raise NotInvertibleError(
            f"{layer.label} turns circles, where there is no first point for a distribution "
            "function or a quantile to count from; remedy: an interval, or integrate exp(log_prob)"
        )


@register
class Rescale(Transform):
    r"""Circles, intervals and lines, brought to [-1, 1] and to unit scale.

    A circle or an interval [l, u] becomes :math:`z = 2 (x - l) / (u - l) - 1`; ``x`` on a circle
    may be given outside and is read modulo the period. A line becomes :math:`z = (x - \mu) /
    \sigma` with constants that ``initialize`` sets from data. Outside an interval the result is
    outside [-1, 1], where a base that lives on the cube has no density.

    Args:
        circular: One boolean a feature, true for circles.
        lower: Lower ends l, one a feature; ``-inf`` for a line.
        upper: Upper ends u; ``inf`` for a line.

    Raises:
        ValueError: If the numbers of features differ, an end is not below its upper, only one end
            is infinite, or a circle has no ends.
        OutsideError: From ``initialize``, if rows are outside an interval.
        DataError: From ``initialize``, if a line is constant or there are fewer than two rows.
        NotInvertibleError: From the distribution functions of a flow on a circle.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Rescale
        >>> chart = Rescale([True, False, False], [0.0, 0.0, -torch.inf], [1.0, 4.0, torch.inf])
        >>> chart(torch.tensor([1.75, 1.0, 5.0]))[0]
        tensor([ 0.5000, -0.5000,  5.0000])
    """

    constant_log_det = True
    elementwise = True
    # What is outside becomes the outside of the cube.
    restricts = False
    mean: Tensor
    scale: Tensor

    def __init__(
        self, circular: Sequence[bool], lower: Sequence[float], upper: Sequence[float]
    ) -> None:
        lower, upper = [float(a) for a in lower], [float(b) for b in upper]
        if len(lower) != len(upper) or not lower:
            raise ValueError(
                f"Rescale needs one lower and one upper end a feature, got {lower} and {upper}"
            )
        circular = _as_circular("Rescale", circular, len(lower))
        for i, (turns, a, b) in enumerate(zip(circular, lower, upper, strict=True)):
            if not a < b or math.isinf(a) != math.isinf(b) or (turns and math.isinf(a)):
                raise ValueError(
                    "Rescale needs lower < upper, both finite or, for a line, both infinite; got "
                    f"{a} and {b} for {'the circle' if turns else 'feature'} {i}"
                )
        super().__init__((len(circular),))
        self.circular = tuple(circular)
        # Python numbers, not buffers: a buffer would be rounded to float32 for good.
        self.lower, self.upper = tuple(lower), tuple(upper)
        straight = [math.isinf(a) for a in lower]
        self.keeps_intervals = not any(straight)
        self.register_buffer("around", torch.tensor(circular), persistent=False)
        self.register_buffer("straight", torch.tensor(straight), persistent=False)
        self.register_buffer("mean", torch.zeros(len(circular)))
        self.register_buffer("scale", torch.ones(len(circular)))

    @property
    def domain(self) -> constraints.Constraint:
        """Lines, intervals, and circles as one turn, closed at the cut."""
        return product_constraint(self.lower, self.upper)

    @property
    def codomain(self) -> constraints.Constraint:
        """Lines and [-1, 1]."""
        ends = [1.0 if math.isfinite(a) else math.inf for a in self.lower]
        return product_constraint([-end for end in ends], ends)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Take mean and standard deviation of the lines from data."""
        straight = self.get_buffer("straight")
        rows = x.reshape(-1, len(straight))
        low, high = rows.new_tensor(self.lower), rows.new_tensor(self.upper)
        outside = ((rows < low) | (rows > high)) & ~self.get_buffer("around")
        refuse_outside(self.label, rows, outside, self.lower, self.upper, "between")
        lines = straight.nonzero().flatten()
        if lines.numel():
            mean, scale = _moments(x.index_select(-1, lines), 1, self.label)
            self.mean[lines] = mean.to(self.mean)
            self.scale[lines] = scale.to(self.scale)

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        return not_positive("scale", self.scale)

    @property
    def _outer(self) -> tuple[constraints.Constraint, constraints.Constraint]:
        """The line: an affine map goes on outside of its ends."""
        line = constraints.independent(constraints.real, 1)
        return line, line

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """The circles, and those of later layers."""
        return after | self.get_buffer("around")

    def orientation(self) -> Tensor | float:
        """Increasing; circles have no distribution function."""
        _refuse_circles(self)
        return 1.0

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends; -1 and 1 for lines."""
        ends = [
            (-1.0, 1.0) if math.isinf(a) else (a, b)
            for a, b in zip(self.lower, self.upper, strict=True)
        ]
        lower, upper = (like.new_tensor(values) for values in zip(*ends, strict=True))
        return lower, upper

    def _log_det(self, like: Tensor) -> Tensor:
        lower, upper = self._ends(like)
        half = torch.where(self.get_buffer("straight"), self.scale, (upper - lower) / 2)
        return -half.log().sum().to(like.dtype).expand(like.shape[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bring to [-1, 1] and to unit scale."""
        z = _to_cube(x, *self._ends(x))
        # z minus whole turns, not a remainder: its derivative is one for every order of autodiff.
        turned = z - 2 * torch.floor((z + 1) / 2).detach()
        z = torch.where(self.get_buffer("around"), clamp_through(turned, -1.0, 1.0), z)
        return torch.where(
            self.get_buffer("straight"), (x - self.mean) / self.scale, z
        ), self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return to the coordinates of the data."""
        x = _from_cube(z, *self._ends(z))
        x = torch.where(self.get_buffer("straight"), z * self.scale + self.mean, x)
        return x, -self._log_det(z)


@register
class CircularShift(Transform):
    r"""Turn circles by learned angles: :math:`z = l + ((x + \varphi - l) \bmod P)`.

    Volume-preserving; ``x`` may be given outside :math:`[l, l + P)` and is read as a point of the
    circle. Starts at the identity on :math:`[l, l + P)`.

    Args:
        features: Number of circles.
        lower: Where each circle is cut open, l.
        upper: Where it closes, l + P.
        circular: One boolean a feature, true for circles; others stay. All by default.

    Raises:
        ValueError: If ``lower`` is not below ``upper``, there is not one boolean a feature, or
            none is true.
        NotInvertibleError: From the distribution functions of a flow on a circle.

    Example:
        >>> import torch
        >>> from flowkit.transforms import CircularShift
        >>> CircularShift(1, 0.0, 1.0)(torch.tensor([[0.25], [1.25]]))[0].detach()
        tensor([[0.2500], [0.2500]])
    """

    constant_log_det = True
    keeps_intervals = True
    # A circle takes any number.
    restricts = False

    def __init__(
        self,
        features: int,
        lower: float = -math.pi,
        upper: float = math.pi,
        circular: Sequence[bool] | None = None,
    ) -> None:
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"CircularShift needs finite lower < upper, got {lower}, {upper}")
        circular = _as_circular(
            "CircularShift", [True] * features if circular is None else circular, features
        )
        if not any(circular):
            raise ValueError(f"CircularShift needs a circle to turn, got circular={circular}")
        super().__init__((features,))
        self.lower, self.upper = float(lower), float(upper)
        self.circular = tuple(circular)
        self.register_buffer("around", torch.tensor(circular), persistent=False)
        # Where the shift of each feature is; the last place holds a zero.
        turn = itertools.count()
        places = [next(turn) if c else sum(circular) for c in circular]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.shift = nn.Parameter(torch.zeros(sum(circular)))

    @property
    def domain(self) -> constraints.Constraint:
        """One turn, closed at the cut; lines for what is no circle."""
        return product_constraint(
            [self.lower if c else -math.inf for c in self.circular],
            [self.upper if c else math.inf for c in self.circular],
        )

    @property
    def codomain(self) -> constraints.Constraint:
        """The same as the domain."""
        return self.domain

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """A whole turn stays one; of an arc there is no box on the other side."""
        lower = torch.where(self.get_buffer("around"), self.lower, region.lower)
        upper = torch.where(self.get_buffer("around"), self.upper, region.upper)
        same = (lower == region.lower) & (upper == region.upper)
        return region if bool(same.all()) else None

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """The circles, and those of later layers."""
        return after | self.get_buffer("around")

    def _turn(self, x: Tensor, sign: int) -> Tensor:
        around, period = self.get_buffer("around"), self.upper - self.lower
        shift = torch.cat([self.shift, self.shift.new_zeros(1)])
        turned = x + sign * shift.index_select(0, self.get_buffer("places"))
        # x minus whole turns, not a remainder: its derivative is one for every order of autodiff.
        turned = turned - period * torch.floor((turned - self.lower).detach() / period)
        return torch.where(around, clamp_through(turned, self.lower, self.upper), x)

    def orientation(self) -> Tensor | float:
        """Raises: circles have no distribution function."""
        _refuse_circles(self)
        return 1.0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn by the angle."""
        return self._turn(x, 1), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn back."""
        return self._turn(z, -1), z.new_zeros(z.shape[:-1])
