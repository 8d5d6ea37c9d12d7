"""Maps between the line and the domains that data live on: intervals, half-lines, circles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowkit.transforms.base import Transform


def _nan_through(x: Tensor, z: Tensor) -> Tensor:
    """``z``, but NaN where ``x`` is: a missing value is not an impossible one."""
    return torch.where(x.isnan(), x, z)


def _outside(x: Tensor, inside: Tensor, log_slope: Tensor) -> Tensor:
    """``log_slope`` inside the domain, ``-inf`` outside, NaN where ``x`` is."""
    return _nan_through(x, torch.where(inside, log_slope, torch.full_like(x, -math.inf)))


class Logit(Transform):
    r"""The interval (lower, upper) onto the line: :math:`z = \log(x - l) - \log(u - x)`.

    Outside the interval the density is zero: the log-determinant is ``-inf`` there, and gradients
    stay finite.

    Args:
        features: Number of features.
        lower: Lower end l, a number for all features.
        upper: Upper end u.

    Raises:
        ValueError: If ``lower`` is not below ``upper``.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Logit
        >>> Logit(1, 0.0, 1.0)(torch.tensor([[0.5], [1.5]]))
        (tensor([[0.], [0.]]), tensor([1.3863,   -inf]))
    """

    def __init__(self, features: int, lower: float = 0.0, upper: float = 1.0) -> None:
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"Logit needs finite lower < upper, got {lower}, {upper}")
        super().__init__((features,))
        self.lower, self.upper = float(lower), float(upper)

    @property
    def domain(self) -> constraints.Constraint:
        """The open interval."""
        return constraints.independent(constraints.interval(self.lower, self.upper), 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the interval to the line."""
        inside = (x > self.lower) & (x < self.upper)
        safe = torch.where(inside, x, torch.full_like(x, 0.5 * (self.lower + self.upper)))
        below, above = (safe - self.lower).log(), (self.upper - safe).log()
        log_slope = math.log(self.upper - self.lower) - below - above
        return _nan_through(x, below - above), _outside(x, inside, log_slope).sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the line to the interval."""
        width = self.upper - self.lower
        # From the nearer end, which keeps the digits of small distances.
        small = width * torch.sigmoid(-z.abs())
        x = torch.where(z < 0, self.lower + small, self.upper - small)
        log_slope = math.log(width) + F.logsigmoid(z) + F.logsigmoid(-z)
        return x, log_slope.sum(-1)


class Box(Transform):
    r"""A box onto the cube :math:`[-1, 1]^D`: :math:`z = 2 (x - l) / (u - l) - 1`.

    An affine map, so the outside of the box becomes the outside of the cube; with a base that
    lives on the cube the density is zero there.

    Args:
        lower: Lower ends l, one a feature.
        upper: Upper ends u.

    Raises:
        ValueError: If the numbers of ends differ, or an end is not finite or not below its upper.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Box
        >>> Box([0.0, 0.0], [256.0, 640.0])(torch.tensor([128.0, 640.0]))[0]
        tensor([0., 1.])
    """

    constant_log_det = True

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
        lower, upper = torch.tensor(self.lower), torch.tensor(self.upper)
        return constraints.independent(constraints.interval(lower, upper), 1)

    @property
    def codomain(self) -> constraints.Constraint:
        """The cube."""
        return constraints.independent(constraints.interval(-1.0, 1.0), 1)

    def _log_det(self, like: Tensor) -> Tensor:
        ends = zip(self.lower, self.upper, strict=True)
        return like.new_tensor(sum(math.log(2 / (b - a)) for a, b in ends)).expand(like.shape[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the box to the cube."""
        lower, upper = self._ends(x)
        return 2 * (x - lower) / (upper - lower) - 1, self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the cube to the box."""
        lower, upper = self._ends(z)
        return lower + (z + 1) / 2 * (upper - lower), -self._log_det(z)


class Log(Transform):
    r"""The half-line (lower, inf) onto the line: :math:`z = \log(x - l)`.

    At or below ``lower`` the log-determinant is ``-inf`` and gradients stay finite.

    Args:
        features: Number of features.
        lower: The end l.

    Raises:
        ValueError: If ``lower`` is not finite.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Log
        >>> Log(1)(torch.ones(1, 1))[0]
        tensor([[0.]])
    """

    def __init__(self, features: int, lower: float = 0.0) -> None:
        if not math.isfinite(lower):
            raise ValueError(f"Log needs a finite lower end, got {lower}")
        super().__init__((features,))
        self.lower = float(lower)

    @property
    def domain(self) -> constraints.Constraint:
        """The open half-line."""
        return constraints.independent(constraints.greater_than(self.lower), 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the half-line to the line."""
        inside = x > self.lower
        z = torch.where(inside, x - self.lower, torch.ones_like(x)).log()
        return _nan_through(x, z), _outside(x, inside, -z).sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map the line to the half-line."""
        return z.exp() + self.lower, z.sum(-1)


class CircularShift(Transform):
    r"""Turn circles by learned angles: :math:`z = l + ((x + \varphi - l) \bmod P)`.

    Volume-preserving; ``x`` may be given outside :math:`[l, l + P)` and is read as a point of the
    circle. Starts at the identity on :math:`[l, l + P)`.

    Args:
        features: Number of circles.
        lower: Where each circle is cut open, l.
        upper: Where it closes, l + P.

    Raises:
        ValueError: If ``lower`` is not below ``upper``.

    Example:
        >>> import torch
        >>> from flowkit.transforms import CircularShift
        >>> CircularShift(1, 0.0, 1.0)(torch.tensor([[0.25], [1.25]]))[0].detach()
        tensor([[0.2500], [0.2500]])
    """

    constant_log_det = True

    def __init__(self, features: int, lower: float = -math.pi, upper: float = math.pi) -> None:
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"CircularShift needs finite lower < upper, got {lower}, {upper}")
        super().__init__((features,))
        self.lower, self.upper = float(lower), float(upper)
        self.shift = nn.Parameter(torch.zeros(features))

    @property
    def domain(self) -> constraints.Constraint:
        """One turn, closed at the cut."""
        return constraints.independent(constraints.interval(self.lower, self.upper), 1)

    @property
    def codomain(self) -> constraints.Constraint:
        """One turn, as the domain."""
        return self.domain

    def _turn(self, x: Tensor) -> Tensor:
        period = self.upper - self.lower
        # x minus whole turns, not a remainder: its derivative is one for every order of autodiff.
        return x - period * torch.floor((x - self.lower).detach() / period)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn by the angle."""
        return self._turn(x + self.shift), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn back."""
        return self._turn(z - self.shift), z.new_zeros(z.shape[:-1])
