"""Bases that are not normal: uniform, logistic, Student-t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowkit.bases.base import Base
from flowkit.bases.special import log_one_plus_square, log_student_survival, normal_quantile
from flowkit.config import register
from flowkit.numerics.roots import attach_newton, find_root_by_newton
from flowkit.numerics.rounding import clamp_through, next_inside


@register
class Uniform(Base):
    r"""Independent uniforms on [lower, upper]; the base of flows on boxes and tori.

    Args:
        features: Number of features.
        lower: Lower end, for all features.
        upper: Upper end.

    Raises:
        ValueError: If ``lower`` is not below ``upper``.

    Example:
        >>> import torch
        >>> from flowkit.bases import Uniform
        >>> Uniform(2, 0.0, 2.0).log_prob(torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
        tensor([-1.3863,    -inf])
    """

    like: Tensor

    def __init__(self, features: int, lower: float = 0.0, upper: float = 1.0) -> None:
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"Uniform needs finite lower < upper, got {lower}, {upper}")
        super().__init__((features,))
        self.lower, self.upper = float(lower), float(upper)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    @property
    def support(self) -> constraints.Constraint:
        """The box."""
        return constraints.independent(constraints.interval(self.lower, self.upper), 1)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density; ``-inf`` outside the box."""
        inside = ((z >= self.lower) & (z <= self.upper)).all(-1)
        value = z.new_full((), -self.event_shape[0] * math.log(self.upper - self.lower))
        # z takes part with weight zero, so that gradients exist and vanish.
        nothing = 0 * torch.where(z.isfinite() | z.isnan(), z, torch.zeros_like(z)).sum(-1)
        return torch.where(inside, value, z.new_full((), -math.inf)) + nothing

    def sample(
        self,
        shape: tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw uniforms."""
        size = self._draw_shape(shape, context)
        u = torch.rand(size, generator=generator, dtype=self.like.dtype, device=self.like.device)
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

    def log_cdf(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Logarithm of the fraction of the interval below."""
        return self._log_fraction(z - self.lower)

    def log_survival(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Logarithm of the fraction of the interval above."""
        return self._log_fraction(self.upper - z)

    def icdf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles."""
        return self._from_end(q, self.lower, self.upper)

    def isf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles of ``1 - q``."""
        return self._from_end(q, self.upper, self.lower)

    def _from_end(self, q: Tensor, start: float, end: float) -> Tensor:
        inside = (q >= 0) & (q <= 1)
        z = start + (end - start) * torch.where(inside, q, torch.full_like(q, 0.5))
        z = clamp_through(z, self.lower, self.upper)
        return torch.where(inside, z, torch.full_like(z, math.nan))


@register
class Logistic(Base):
    r"""Independent standard logistics, :math:`\log p = \sum_i \log\sigma(z_i) + \log\sigma(-z_i)`.

    Args:
        features: Number of features.

    Example:
        >>> import torch
        >>> from flowkit.bases import Logistic
        >>> Logistic(1).cdf(torch.zeros(1, 1))
        tensor([[0.5000]])
    """

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__((features,))
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density."""
        return (F.logsigmoid(z) + F.logsigmoid(-z)).sum(-1)

    def sample(
        self,
        shape: tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the logit of a uniform."""
        size = self._draw_shape(shape, context)
        u = torch.rand(size, generator=generator, dtype=self.like.dtype, device=self.like.device)
        return torch.logit(u, eps=torch.finfo(u.dtype).eps)

    def log_cdf(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """``logsigmoid(z)``."""
        return F.logsigmoid(z)

    def log_survival(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """``logsigmoid(-z)``."""
        return F.logsigmoid(-z)

    def icdf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """``logit(q)``."""
        return torch.logit(q)

    def isf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """``-logit(q)``."""
        return -torch.logit(q)


def _lgamma_step(x: Tensor) -> Tensor:
    r"""``lgamma(x + 1/2) - lgamma(x)``, by its series where the difference would lose digits.

    :math:`\tfrac12 \log x - \tfrac1{8x} + \tfrac1{192 x^3} - \tfrac1{640 x^5} + O(x^{-7})`.
    """
    large = x > 20
    small = torch.where(large, torch.ones_like(x), x)
    u = 1 / torch.where(large, x, torch.full_like(x, 20.0))
    series = -0.5 * u.log() - u / 8 + u**3 / 192 - u**5 / 640 + 17 * u**7 / 14336
    return torch.where(large, series, torch.lgamma(small + 0.5) - torch.lgamma(small))


@register
class StudentT(Base):
    r"""Independent Student-t distributions, one number of degrees of freedom a feature.

    :math:`\log p(z) = \log\Gamma(\tfrac{\nu+1}2) - \log\Gamma(\tfrac\nu2) - \tfrac12\log(\pi\nu)
    - \tfrac{\nu+1}2 \log(1 + z^2/\nu)`. The tail index of a feature is its :math:`\nu`.

    Args:
        features: Number of features.
        df: Starting degrees of freedom, one number or one a feature, positive.
        learn: Whether the degrees of freedom are learned (through softplus, so they stay positive)
            or kept.
        shared: Whether all features have the same, one number.

    Raises:
        ValueError: If a number of degrees of freedom is not positive.

    Example:
        >>> import torch
        >>> from flowkit.bases import StudentT
        >>> StudentT(2, df=[2.0, 30.0]).df.detach()
        tensor([ 2., 30.])
    """

    def __init__(
        self,
        features: int,
        df: float | Sequence[float] = 5.0,
        learn: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__((features,))
        count = 1 if shared else features
        start = list(df) if isinstance(df, Sequence) else [df] * count
        if len(start) != count or not all(0 < value < math.inf for value in start):
            raise ValueError(
                f"StudentT needs positive, finite degrees of freedom, one or {count}, got {df}"
            )
        raw = torch.tensor([value + math.log(-math.expm1(-value)) for value in start])
        if learn:
            self.raw_df = nn.Parameter(raw)
        else:
            self.register_buffer("raw_df", raw)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``(features,)``."""
        return F.softplus(self.raw_df).expand(self.event_shape)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density."""
        return self._log_density(z).sum(-1)

    def _log_density(self, z: Tensor) -> Tensor:
        """The log-density of every feature."""
        df = self.df
        log_term = log_one_plus_square(torch.where(z < 0, -z, z), df)
        return self._log_constant() - 0.5 * (df + 1) * log_term

    def _log_constant(self) -> Tensor:
        """The log-density of each feature at 0."""
        return _lgamma_step(0.5 * self.df) - 0.5 * torch.log(math.pi * self.df)

    def sample(
        self,
        shape: tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw a normal over the root of a gamma; gradients reach the degrees of freedom."""
        size = self._draw_shape(shape, context)
        df = self.df
        eps = torch.randn(size, generator=generator, dtype=df.dtype, device=df.device)
        half = (0.5 * df).expand(size).contiguous()
        # Of half precision there is none.
        wide = half.to(torch.promote_types(half.dtype, torch.float32))
        gamma = torch._standard_gamma(wide, generator=generator).to(half.dtype)
        return eps * torch.rsqrt(gamma.clamp_min(torch.finfo(df.dtype).tiny) / half)

    def log_cdf(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """That of Student's t, by quadrature."""
        return log_student_survival(-z, self.df, self._log_constant())

    def log_survival(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """That of Student's t, by quadrature."""
        return log_student_survival(z, self.df, self._log_constant())

    def icdf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles, by a root search in the logarithm of the smaller tail."""
        return self._quantile(q, q <= 0.5)

    def isf(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantiles of ``1 - q``."""
        return self._quantile(q, q > 0.5)

    def _quantile(self, q: Tensor, lower: Tensor) -> Tensor:
        """The point with ``q``, or ``1 - q``, of the mass in the tail that it is in."""
        inside = (q > 0) & (q < 1)
        tail = torch.where(q > 0.5, 1 - q, q)
        tail = torch.where(inside, tail, torch.full_like(q, 0.5))
        df, constant, target = self.df, self._log_constant(), -tail.log()

        def value_and_log_slope(z: Tensor) -> tuple[Tensor, Tensor]:
            value = -log_student_survival(z, df, constant)
            return value, self._log_density(z) + value

        def residual(s: Tensor) -> tuple[Tensor, Tensor]:
            # Powers of z make the tail: the search is over s = log(1 + z).
            value, log_slope = value_and_log_slope(s.expm1())
            return value - target, (log_slope + s).exp()

        least = torch.zeros_like(target)
        most = torch.full_like(target, math.log(torch.finfo(q.dtype).max) - 0.01)
        start = find_root_by_newton(residual, least, least, most)[0].expm1()

        # What is larger than the largest number stays there.
        reached = start < torch.finfo(q.dtype).max ** 0.9
        near = torch.where(reached, start, torch.zeros_like(start))
        goal = torch.where(reached, target, torch.full_like(target, math.log(2)))
        z = torch.where(reached, attach_newton(value_and_log_slope, near, goal), start)
        # The ends: the quantile is infinite there, and NaN beyond.
        end_or_nan = normal_quantile(q).abs()
        return torch.where(lower, -1.0, 1.0).to(q.dtype) * torch.where(inside, z, end_or_nan)
