"""Uniform base on a box."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit import checks
from flowkit.bases.base import Base
from flowkit.config import register
from flowkit.numerics.rounding import clamp_through, next_inside
from flowkit.numerics.types import Context, Generator


@register
class Uniform(Base):
    r"""Independent uniforms on [lower, upper]; the base of flows on boxes and tori.

    Args:
        features: Number of features.
        lower: Lower end, for all features.
        upper: Upper end.

    Raises:
        ArgumentError: If ``lower`` is not below ``upper``.

    Example:
        >>> import torch
        >>> from flowkit.bases import Uniform
        >>> Uniform(2, upper=2.0).log_prob(torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
        tensor([-1.3863,    -inf])
    """

    def __init__(self, features: int, *, lower: float = 0.0, upper: float = 1.0) -> None:
        super().__init__(checks.integer("Uniform", "features", features, least=1))
        self.lower = checks.number("Uniform", "lower", lower)
        self.upper = checks.number(
            "Uniform", "upper", upper, above=self.lower, remedy="an upper end above lower"
        )

    @property
    def support(self) -> constraints.Constraint:
        """The box."""
        return constraints.independent(constraints.interval(self.lower, self.upper), 1)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density; ``-inf`` outside the box."""
        inside = ((z >= self.lower) & (z <= self.upper)).all(-1)
        value = z.new_full((), -self.event_shape[0] * math.log(self.upper - self.lower))
        # z takes part with weight zero, so that gradients exist and vanish.
        nothing = 0 * torch.where(z.isfinite() | z.isnan(), z, torch.zeros_like(z)).sum(-1)
        return torch.where(inside, value, z.new_full((), -math.inf)) + nothing

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw uniforms."""
        u = self._draw(torch.rand, self._draw_shape(shape, context), generator)
        z = self.lower + (self.upper - self.lower) * u
        # Inside, also where rounding leads to an end: some layers have no number for the ends.
        least = next_inside(self.lower, self.upper, z.dtype)
        return z.clamp(least, next_inside(self.upper, self.lower, z.dtype))

    def _log_fraction(self, distance: Tensor) -> Tensor:
        """Logarithm of a distance from an end as a part of the interval."""
        width = self.upper - self.lower
        inside, beyond = distance > 0, distance >= width
        safe = torch.where(inside & ~beyond, distance, torch.full_like(distance, width))
        value = torch.where(inside, (safe / width).log(), torch.full_like(distance, -math.inf))
        return torch.where(distance.isnan(), distance, value)

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the fraction of the interval below."""
        return self._log_fraction(z - self.lower)

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the fraction of the interval above."""
        return self._log_fraction(self.upper - z)

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles."""
        return self._from_end(q, self.lower, self.upper)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of ``1 - q``."""
        return self._from_end(q, self.upper, self.lower)

    def _from_end(self, q: Tensor, start: float, end: float) -> Tensor:
        inside = (q >= 0) & (q <= 1)
        z = start + (end - start) * torch.where(inside, q, torch.full_like(q, 0.5))
        z = clamp_through(z, self.lower, self.upper)
        return torch.where(inside, z, torch.full_like(z, math.nan))
