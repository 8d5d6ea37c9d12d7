"""Maps of the domains that data live on to the unit cube: intervals and periodic variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.errors import ArgumentError, NotInvertibleError
from flowkit.numerics.rounding import clamp_through, next_inside
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.normalize import moments
from flowkit.transforms.region import Region
from flowkit.transforms.unconstrain import Ends, product_constraint, refuse_outside


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


def _refuse_circular(layer: Rescale | CircularShift) -> None:
    if any(layer.circular):
        raise NotInvertibleError(
            f"{layer.label} has periodic variables, without a first point for a distribution "
            "function or a quantile to count from; remedy: an interval, or integrate exp(log_prob)"
        )


@register
class Rescale(Transform):
    r"""Bring intervals and periodic variables to [-1, 1], and real variables to unit scale.

    A feature with ends [l, u] becomes :math:`z = 2 (x - l) / (u - l) - 1`, one without
    :math:`z = (x - \mu) / \sigma` with constants that ``initialize`` sets from data. A periodic
    variable may be given outside its ends and is read modulo the period. The outside of an
    interval becomes the outside of [-1, 1], where a base that lives on the cube has no density.

    Args:
        lower: Lower ends l, one number or one per feature; ``-inf`` or ``None`` for none.
        upper: Upper ends u; ``inf`` or ``None`` for none.
        circular: One boolean per feature, true for periodic variables; none by default.

    Raises:
        ArgumentError: If the numbers of features differ, an end is not below its upper, only one
            end is infinite, or a periodic variable has no ends.
        OutsideError: From ``initialize``, if samples are outside an interval.
        DataError: From ``initialize``, if a real variable is constant or there are fewer than two
            samples.
        NotInvertibleError: From the distribution functions of a flow of periodic variables.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Rescale
        >>> Rescale(0.0, [256.0, 640.0])(torch.tensor([128.0, 640.0]))[0]
        tensor([0., 1.])
        >>> t = Rescale([0.0, 0.0, None], [1.0, 4.0, None], circular=[True, False, False])
        >>> t(torch.tensor([1.75, 1.0, 5.0]))[0]
        tensor([ 0.5000, -0.5000,  5.0000])
    """

    constant_log_det = True
    elementwise = True
    # What is outside becomes the outside of the cube.
    restricts = False
    mean: Tensor
    scale: Tensor

    def __init__(
        self, lower: Ends, upper: Ends, *, circular: Sequence[bool] | None = None
    ) -> None:
        count = None if circular is None else len(checks.flags("Rescale", "circular", circular))
        # Python numbers, not buffers: a buffer would be rounded to float32 for good.
        lows, highs = checks.bounds("Rescale", lower, upper, count)
        count = len(lows)
        given = [False] * count if circular is None else circular
        around = checks.flags("Rescale", "circular", given, count)
        for i, (periodic, a, b) in enumerate(zip(around, lows, highs, strict=True)):
            if math.isinf(a) != math.isinf(b) or (periodic and math.isinf(a)):
                kind = "periodic variable" if periodic else "feature"
                raise ArgumentError(
                    "Rescale expected both ends finite or, for a real variable, both infinite, "
                    f"got {a} and {b} for {kind} {i}"
                )
        super().__init__((count,))
        self.circular, self.lower, self.upper = around, lows, highs
        straight = [math.isinf(a) for a in self.lower]
        self.keeps_intervals = not any(straight)
        self.register_buffer("around", torch.tensor(around), persistent=False)
        self.register_buffer("straight", torch.tensor(straight), persistent=False)
        # Stored only where there is something to learn from data.
        learned = any(straight)
        self.register_buffer("mean", torch.zeros(count), persistent=learned)
        self.register_buffer("scale", torch.ones(count), persistent=learned)

    @property
    def domain(self) -> constraints.Constraint:
        """Real numbers, intervals, and one period, closed at both ends."""
        return product_constraint(self.lower, self.upper)

    @property
    def codomain(self) -> constraints.Constraint:
        """Real numbers and [-1, 1]."""
        ends = [1.0 if math.isfinite(a) else math.inf for a in self.lower]
        return product_constraint([-end for end in ends], ends)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Check that intervals hold the data; take mean and scale of real variables from them."""
        straight = self.get_buffer("straight")
        samples = x.reshape(-1, len(straight))
        low, high = samples.new_tensor(self.lower), samples.new_tensor(self.upper)
        outside = ((samples < low) | (samples > high)) & ~self.get_buffer("around")
        refuse_outside(self.label, samples, outside, self.lower, self.upper, "between")
        real = straight.nonzero().flatten()
        if real.numel():
            mean, scale = moments(x.index_select(-1, real), 1, self.label)
            self.mean[real] = mean.to(self.mean)
            self.scale[real] = scale.to(self.scale)

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        return not_positive("scale", self.scale)

    @property
    def _outer(self) -> tuple[constraints.Constraint, constraints.Constraint]:
        """The real line: an affine map goes on outside of its ends."""
        line = constraints.independent(constraints.real, 1)
        return line, line

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """The periodic variables, and those of later layers."""
        return after | self.get_buffer("around")

    def orientation(self) -> Tensor | float:
        """Increasing; periodic variables have no distribution function."""
        _refuse_circular(self)
        return 1.0

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends; -1 and 1 for real variables."""
        lower = [-1.0 if math.isinf(a) else a for a in self.lower]
        upper = [1.0 if math.isinf(b) else b for b in self.upper]
        return like.new_tensor(lower), like.new_tensor(upper)

    def _log_det(self, like: Tensor) -> Tensor:
        ends = zip(self.lower, self.upper, strict=True)
        log_det = like.new_tensor(sum(math.log(2 / (b - a)) for a, b in ends if b - a < math.inf))
        if not self.keeps_intervals:
            log_det = log_det - self.scale.log().sum().to(like.dtype)
        return log_det.expand(like.shape[:-1])

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Bring to [-1, 1] and to unit scale."""
        z = _to_cube(x, *self._ends(x))
        if any(self.circular):
            # z minus whole periods, not a remainder: its derivative is one at every order.
            wrapped = z - 2 * torch.floor((z + 1) / 2).detach()
            z = torch.where(self.get_buffer("around"), clamp_through(wrapped, -1.0, 1.0), z)
        if not self.keeps_intervals:
            z = torch.where(self.get_buffer("straight"), (x - self.mean) / self.scale, z)
        return z, self._log_det(x)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Return to the coordinates of the data."""
        x = _from_cube(z, *self._ends(z))
        if not self.keeps_intervals:
            x = torch.where(self.get_buffer("straight"), z * self.scale + self.mean, x)
        return x, -self._log_det(z)


@register
class CircularShift(Transform):
    r"""Rotate periodic variables by learned angles: :math:`z = l + ((x + \varphi - l) \bmod P)`.

    Volume-preserving; ``x`` may be given outside :math:`[l, l + P)` and is read modulo the period.
    Starts at the identity on :math:`[l, l + P)`.

    Args:
        features: Number of features.
        lower: Start of the period, l.
        upper: End of the period, l + P.
        circular: One boolean per feature, true for periodic variables; others are left as they
            are. All by default.

    Raises:
        ArgumentError: If ``lower`` is not below ``upper``, there is not one boolean per feature,
            or none is true.
        NotInvertibleError: From the distribution functions of a flow of periodic variables.

    Example:
        >>> import torch
        >>> from flowkit.transforms import CircularShift
        >>> t = CircularShift(1, lower=0.0, upper=1.0)
        >>> t(torch.tensor([[0.25], [1.25]]))[0].detach()
        tensor([[0.2500], [0.2500]])
    """

    constant_log_det = True
    keeps_intervals = True
    # A periodic variable takes any number.
    restricts = False

    def __init__(
        self,
        features: int,
        *,
        lower: float = -math.pi,
        upper: float = math.pi,
        circular: Sequence[bool] | None = None,
    ) -> None:
        name = "CircularShift"
        features = checks.integer(name, "features", features, least=1)
        lower = checks.number(name, "lower", lower)
        upper = checks.number(name, "upper", upper, above=lower, remedy="an upper end above lower")
        if circular is None:
            circular = [True] * features
        around = checks.flags(name, "circular", circular, features)
        if not any(around):
            raise checks.fail(name, "circular", "booleans with at least one true", circular)
        super().__init__((features,))
        self.lower, self.upper, self.circular = lower, upper, around
        self.register_buffer("around", torch.tensor(around), persistent=False)
        # Where the shift of each feature is; the last place holds a zero.
        count = itertools.count()
        places = [next(count) if c else sum(around) for c in around]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.shift = nn.Parameter(torch.zeros(sum(around)))

    @property
    def domain(self) -> constraints.Constraint:
        """One period, closed at both ends; the real line for other features."""
        return product_constraint(
            [self.lower if c else -math.inf for c in self.circular],
            [self.upper if c else math.inf for c in self.circular],
        )

    @property
    def codomain(self) -> constraints.Constraint:
        """The same as the domain."""
        return self.domain

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a whole period; of a part of it there is no box on the other side."""
        lower = torch.where(self.get_buffer("around"), self.lower, region.lower)
        upper = torch.where(self.get_buffer("around"), self.upper, region.upper)
        same = (lower == region.lower) & (upper == region.upper)
        return region if bool(same.all()) else None

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """The periodic variables, and those of later layers."""
        return after | self.get_buffer("around")

    def _rotate(self, x: Tensor, sign: int) -> Tensor:
        around, period = self.get_buffer("around"), self.upper - self.lower
        shift = torch.cat([self.shift, self.shift.new_zeros(1)])
        rotated = x + sign * shift.index_select(0, self.get_buffer("places"))
        # x minus whole periods, not a remainder: its derivative is one at every order.
        rotated = rotated - period * torch.floor((rotated - self.lower).detach() / period)
        return torch.where(around, clamp_through(rotated, self.lower, self.upper), x)

    def orientation(self) -> Tensor | float:
        """Raises: periodic variables have no distribution function."""
        _refuse_circular(self)
        return 1.0

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Rotate."""
        return self._rotate(x, 1), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Rotate back."""
        return self._rotate(z, -1), z.new_zeros(z.shape[:-1])
