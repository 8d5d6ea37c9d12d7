"""Half-lines and intervals mapped to the real line: positive, bounded and real features together.

``Log`` and ``Logit`` are the layers of one kind alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from flowkit import checks
from flowkit.config import register
from flowkit.errors import OutsideError
from flowkit.numerics.rounding import clamp_through, next_inside
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 5
#: Ends of features: one number for all or one per feature, ``None`` or infinity for none.
Ends = float | Sequence[float | None] | None


@register
class Unconstrain(Transform):
    r"""Map every feature from its domain onto the real line: the first layer for bounded data.

    .. math:: z = \log(x - l), \quad z = -\log(u - x), \quad z = \log(x - l) - \log(u - x), \quad
        z = x

    for a feature with a lower end l, with an upper end u, with both, and with none. All are
    increasing. At the ends and outside the density is zero: the log-determinant is ``-inf``, and
    gradients stay finite. The inverse keeps every number strictly between the ends, in any dtype:
    noise so far out that x cannot be told from an end gives the number next to it.

    Args:
        lower: Lower ends, one for each feature; ``-inf`` or ``None`` for none.
        upper: Upper ends; ``inf`` or ``None`` for none.

    Raises:
        ArgumentError: If the numbers of ends differ, or a lower end is not below its upper one.
        OutsideError: From ``initialize``, if rows are not inside; names rows, columns and ends.

    References:
        Carpenter et al. 2017, Stan, J. Stat. Soft. 76(1), section 2.5, for the transforms.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Unconstrain
        >>> t = Unconstrain([0.0, None, 0.0, None], [None, 5.0, 1.0, None])
        >>> z, log_det = t(torch.tensor([[1.0, 4.0, 0.5, 7.0], [-1.0, 4.0, 0.5, 7.0]]))
        >>> z[0], log_det
        (tensor([0., 0., 0., 7.]), tensor([1.3863,   -inf]))
    """

    elementwise = True

    def __init__(self, lower: Ends, upper: Ends) -> None:
        lows, highs = checks.bounds(type(self).__name__, lower, upper)
        super().__init__((len(lows),))
        # Python numbers, not buffers: a buffer would be rounded to float32 for good.
        self.lower, self.upper = lows, highs
        self._innermost = {
            dtype: [
                list(map(next_inside, ends, others, repeat(dtype)))
                for ends, others in ((lows, highs), (highs, lows))
            ]
            for dtype in _DTYPES
        }
        kinds = {tuple(map(math.isfinite, ends)) for ends in zip(lows, highs, strict=True)}
        self._below, self._above = (any(given) for given in zip(*kinds, strict=True))
        self._lines, self._half_lines, self._intervals = (
            any(sum(kind) == count for kind in kinds) for count in range(3)
        )

    @property
    def domain(self) -> constraints.Constraint:
        """The product of the lines, half-lines and intervals."""
        return product_constraint(self.lower, self.upper)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Check that all rows are inside; nothing is set."""
        lower, upper = self._ends(x)
        outside = (x <= lower) | (x >= upper)
        refuse_outside(self.label, x, outside, self.lower, self.upper, "strictly between")

    def _ends(self, like: Tensor) -> Mapped:
        return like.new_tensor(self.lower), like.new_tensor(self.upper)

    def _log_width(self, like: Tensor) -> Tensor:
        """Logarithms of the widths of intervals; 0 for others."""
        ends = zip(self.lower, self.upper, strict=True)
        return like.new_tensor([math.log(b - a) if math.isfinite(b - a) else 0.0 for a, b in ends])

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map the domain to the real line."""
        lower, upper = self._ends(x)
        inside = (x > lower) & (x < upper)
        one, z, log_slope = torch.ones_like(x), torch.zeros_like(x), self._log_width(x)
        if self._below:
            below = torch.where(inside & (lower > -math.inf), x - lower, one).log()
            z, log_slope = below, log_slope - below
        if self._above:
            above = torch.where(inside & (upper < math.inf), upper - x, one).log()
            z, log_slope = z - above, log_slope - above
        if self._lines:
            line = inside & (lower == -math.inf) & (upper == math.inf)
            z = torch.where(line, x, z)
        log_slope = torch.where(inside, log_slope, torch.full_like(x, -math.inf))
        # A missing value is not an impossible one.
        missing = x.isnan()
        return torch.where(missing, x, z), torch.where(missing, x, log_slope).sum(-1)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map the line to the domain."""
        ends = self._ends(z)
        has_lower, has_upper = ends[0] > -math.inf, ends[1] < math.inf
        lower, upper = (torch.where(end.isfinite(), end, 0.0) for end in ends)
        x, log_slope = z, torch.zeros_like(z)
        if self._half_lines:
            largest = math.log(torch.finfo(z.dtype).max) - 0.01
            outwards = torch.where(has_lower, z, -z)
            half = has_lower ^ has_upper
            distance = torch.where(half, outwards, torch.zeros_like(z)).clamp(max=largest).exp()
            x = torch.where(half, torch.where(has_lower, lower + distance, upper - distance), x)
            log_slope = torch.where(half, outwards, log_slope)
        if self._intervals:
            # From the nearer end, which keeps the digits of small distances.
            small = torch.sigmoid(torch.where(z < 0, z, -z)) * self._log_width(z).exp()
            between = torch.where(z < 0, lower + small, upper - small)
            log_both = self._log_width(z) + F.logsigmoid(z) + F.logsigmoid(-z)
            interval = has_lower & has_upper
            x = torch.where(interval, between, x)
            log_slope = torch.where(interval, log_both, log_slope)
        least, most = (z.new_tensor(values) for values in self._innermost[z.dtype])
        return clamp_through(x, least, most), log_slope.sum(-1)


@register
class Logit(Unconstrain):
    r"""Map an interval (lower, upper) onto the real line: :math:`z = \log(x - l) - \log(u - x)`.

    Outside the interval the density is zero: the log-determinant is ``-inf`` there, and gradients
    stay finite. See :class:`Unconstrain`, of which this is the case of intervals alone.

    Args:
        features: Number of features.
        lower: Lower end l, one number or one per feature.
        upper: Upper end u, likewise.

    Raises:
        ArgumentError: If ends are not finite, ``lower`` is not below ``upper``, or there is not
            one per feature.
        OutsideError: From ``initialize``, if rows are not inside.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Logit
        >>> Logit(1)(torch.tensor([[0.5], [1.5]]))
        (tensor([[0.], [0.]]), tensor([1.3863,   -inf]))
    """

    def __init__(
        self,
        features: int,
        *,
        lower: float | Sequence[float] = 0.0,
        upper: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(*_finite("Logit", features, lower=lower, upper=upper))


@register
class Log(Unconstrain):
    r"""Map numbers above a bound onto the real line: :math:`z = \log(x - l)`.

    At or below ``lower`` the log-determinant is ``-inf`` and gradients stay finite. See
    :class:`Unconstrain`, of which this is the case of half-lines alone.

    Args:
        features: Number of features.
        lower: The end l, one number or one per feature.

    Raises:
        ArgumentError: If ``lower`` is not finite, or has another number of ends than features.
        OutsideError: From ``initialize``, if rows are not inside.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Log
        >>> Log(1)(torch.ones(1, 1))[0]
        tensor([[0.]])
    """

    def __init__(self, features: int, *, lower: float | Sequence[float] = 0.0) -> None:
        (lows,) = _finite("Log", features, lower=lower)
        super().__init__(lows, [math.inf] * len(lows))


def _finite(name: str, features: int, **ends: Ends) -> list[tuple[float, ...]]:
    """One finite end per feature, of each kind."""
    features = checks.integer(name, "features", features, least=1)
    return [checks.numbers(name, kind, values, features) for kind, values in ends.items()]


def _constraint(low: float, high: float) -> constraints.Constraint:
    """The line, a half-line or an interval."""
    if math.isinf(high):
        return constraints.real if math.isinf(low) else constraints.greater_than(low)
    return constraints.less_than(high) if math.isinf(low) else constraints.interval(low, high)


def product_constraint(lower: Sequence[float], upper: Sequence[float]) -> constraints.Constraint:
    """The constraint of a vector: of every number the line, a half-line or an interval."""
    parts = [_constraint(*ends) for ends in zip(lower, upper, strict=True)]
    if len(set(zip(lower, upper, strict=True))) == 1 or set(parts) == {constraints.real}:
        return constraints.independent(parts[0], 1)
    return constraints.independent(constraints.cat(parts, -1, [1] * len(parts)), 1)


@torch.no_grad()
def refuse_outside(
    label: str,
    x: Tensor,
    outside: Tensor,
    lower: Sequence[float],
    upper: Sequence[float],
    where: str,
) -> None:
    """Raise if any number of a batch is outside: name rows, columns and the ends."""
    if outside.is_meta or not bool(outside.any()):
        return
    rows, flags = x.reshape(-1, x.shape[-1]), outside.reshape(-1, x.shape[-1])
    columns = flags.any(0).nonzero().flatten().tolist()
    numbers = flags.any(1).nonzero().flatten()
    ends = "; ".join(
        f"column {i} holds {float(rows[:, i].min()):g} to {float(rows[:, i].max()):g} and has to "
        f"be {where} {lower[i]:g} and {upper[i]:g}"
        for i in columns[:_SHOWN]
    )
    more = " and others" if len(numbers) > _SHOWN else ""
    raise OutsideError(
        f"{label}: the density is zero for {len(numbers)} of {len(rows)} rows: row(s) {{rows}}"
        f"{more}; {ends}; remedy: wider bounds in the unit of the data, or leave those rows out",
        numbers[:_SHOWN].tolist(),
    )
