"""Maps of the domains that data live on to the unit cube: intervals and periodic variables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.errors import ArgumentError
from flowkit.numerics.rounding import clamp_through, next_inside
from flowkit.numerics.types import Context
from flowkit.transforms.normalize import moments
from flowkit.transforms.region import Region
from flowkit.transforms.unconstrain import Ends, product_constraint, refuse_outside
from flowkit.transforms.volume import ConstantVolume


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


class _Periodic(ConstantVolume):
    """What the layers of periodic variables share."""

    # A periodic variable takes any number, and the outside of an interval is mapped outside.
    extends = True

    def __init__(self, circular: tuple[bool, ...]) -> None:
        super().__init__((len(circular),))
        self.circular = circular
        self.register_buffer("around", torch.tensor(circular), persistent=False)

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """The periodic variables, and those of later layers."""
        return after | self.get_buffer("around")

    def _wrap(self, x: Tensor, lower: float, upper: float, others: Tensor) -> Tensor:
        """Periodic variables brought between two ends, and the others."""
        # x minus whole periods, not a remainder: its derivative is one at every order.
        period = upper - lower
        wrapped = x - period * torch.floor((x - lower).detach() / period)
        return torch.where(self.get_buffer("around"), clamp_through(wrapped, lower, upper), others)


@register
class Rescale(_Periodic):
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

    elementwise = True
    mean: Tensor
    scale: Tensor

    def __init__(
        self, lower: Ends, upper: Ends, *, circular: Sequence[bool] | None = None
    ) -> None:
        around = checks.flags("Rescale", "circular", () if circular is None else circular)
        count = None if circular is None else len(around)
        # Python numbers, not buffers: a buffer would be rounded to float32 for good.
        lows, highs = checks.bounds("Rescale", lower, upper, count)
        count = len(lows)
        around = around or (False,) * count
        for i, (periodic, a, b) in enumerate(zip(around, lows, highs, strict=True)):
            if math.isinf(a) != math.isinf(b) or (periodic and math.isinf(a)):
                kind = "periodic variable" if periodic else "feature"
                raise ArgumentError(
                    "Rescale expected both ends finite or, for a real variable, both infinite, "
                    f"got {a} and {b} for {kind} {i}"
                )
        super().__init__(around)
        self.lower, self.upper = lows, highs
        straight = [math.isinf(a) for a in lows]
        # A real variable has the ends of the cube, so that its part of the map is the identity.
        self._sides = [
            [side if math.isinf(end) else end for end in ends]
            for side, ends in ((-1.0, lows), (1.0, highs))
        ]
        self.keeps_intervals = not any(straight)
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

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends; -1 and 1 for real variables."""
        return like.new_tensor(self._sides[0]), like.new_tensor(self._sides[1])

    def _log_det(self, like: Tensor) -> Tensor:
        log_det = like.new_tensor(
            sum(math.log(2 / (b - a)) for a, b in zip(*self._sides, strict=True))
        )
        if not self.keeps_intervals:
            log_det = log_det - self.scale.log().sum().to(like.dtype)
        return log_det

    def _to_noise(self, x: Tensor) -> Tensor:
        z = _to_cube(x, *self._ends(x))
        if any(self.circular):
            z = self._wrap(z, -1.0, 1.0, z)
        if not self.keeps_intervals:
            z = torch.where(self.get_buffer("straight"), (x - self.mean) / self.scale, z)
        return z

    def _to_data(self, z: Tensor) -> Tensor:
        x = _from_cube(z, *self._ends(z))
        if not self.keeps_intervals:
            x = torch.where(self.get_buffer("straight"), z * self.scale + self.mean, x)
        return x


@register
class CircularShift(_Periodic):
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

    keeps_intervals = True

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
        super().__init__(around)
        self.lower, self.upper = lower, upper
        places = [i for i, periodic in enumerate(around) if periodic]
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
        whole = (region.lower == self.lower) & (region.upper == self.upper)
        return region if bool((whole | ~self.get_buffer("around")).all()) else None

    def _rotate(self, x: Tensor, sign: int) -> Tensor:
        shift = self.shift.new_zeros(len(self.circular))
        shift = shift.index_copy(0, self.get_buffer("places"), self.shift)
        return self._wrap(x + sign * shift, self.lower, self.upper, x)

    def _to_noise(self, x: Tensor) -> Tensor:
        return self._rotate(x, 1)

    def _to_data(self, z: Tensor) -> Tensor:
        return self._rotate(z, -1)
