"""Student-t base: power-law tails with learned tail indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit import checks
from flowkit.bases.base import Symmetric
from flowkit.bases.special import (
    log_one_plus_square,
    log_student_survival,
    normal_quantile,
    smaller_tail,
)
from flowkit.config import register
from flowkit.numerics.roots import attach_newton, find_root_by_newton
from flowkit.numerics.types import Context, Generator


def _lgamma_step(x: Tensor) -> Tensor:
    r"""``lgamma(x + 1/2) - lgamma(x)``, by its series where the difference would lose digits.

    :math:`\tfrac12 \log x - \tfrac1{8x} + \tfrac1{192 x^3} - \tfrac1{640 x^5} + O(x^{-7})`.
    """
    large = x > 20
    small = torch.where(large, torch.ones_like(x), x)
    u = 1 / torch.where(large, x, torch.full_like(x, 20.0))
    series = -0.5 * u.log() - u / 8 + u**3 / 192 - u**5 / 640 + 17 * u**7 / 14336
    return torch.where(large, series, torch.lgamma(small + 0.5) - torch.lgamma(small))


def _log_constant(df: Tensor) -> Tensor:
    """The log-density at 0."""
    return _lgamma_step(0.5 * df) - 0.5 * torch.log(math.pi * df)


def _log_density(z: Tensor, df: Tensor) -> Tensor:
    """The log-density of every feature."""
    log_term = log_one_plus_square(torch.where(z < 0, -z, z), df)
    return _log_constant(df) - 0.5 * (df + 1) * log_term


@register
class StudentT(Symmetric):
    r"""Independent Student-t distributions, one number of degrees of freedom per feature.

    :math:`\log p(z) = \log\Gamma(\tfrac{\nu+1}2) - \log\Gamma(\tfrac\nu2) - \tfrac12\log(\pi\nu)
    - \tfrac{\nu+1}2 \log(1 + z^2/\nu)`. The tail index of a feature is its :math:`\nu`.

    Args:
        features: Number of features.
        df: Starting degrees of freedom, one number or one per feature, positive.
        learn: Whether the degrees of freedom are learned (through softplus, so they stay positive)
            or constant.
        shared: Whether all features have the same, one number.

    Raises:
        ArgumentError: If a number of degrees of freedom is not positive.

    Example:
        >>> import torch
        >>> from flowkit.bases import StudentT
        >>> StudentT(2, df=[2.0, 30.0]).df.detach()
        tensor([ 2., 30.])
    """

    def __init__(
        self,
        features: int,
        *,
        df: float | Sequence[float] = 5.0,
        learn: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__(checks.integer("StudentT", "features", features, least=1))
        count = 1 if checks.flag("StudentT", "shared", shared) else features
        start = checks.numbers("StudentT", "df", df, count, above=0)
        raw = torch.tensor([value + math.log(-math.expm1(-value)) for value in start])
        if checks.flag("StudentT", "learn", learn):
            self.raw_df = nn.Parameter(raw)
        else:
            self.register_buffer("raw_df", raw)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, ``(features,)``."""
        return F.softplus(self.raw_df).expand(self.event_shape)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        return _log_density(z, self.df).sum(-1)

    def _noise(self, size: tuple[int, ...], generator: Generator) -> Tensor:
        """A normal over the root of a gamma; gradients reach the degrees of freedom."""
        eps = self._draw(torch.randn, size, generator)
        half = (0.5 * self.df).expand(size).contiguous()
        # Of half precision there is none.
        wide = half.to(torch.promote_types(half.dtype, torch.float32))
        gamma = torch._standard_gamma(wide, generator=generator).to(half.dtype)
        return eps * torch.rsqrt(gamma.clamp_min(torch.finfo(half.dtype).tiny) / half)

    def _log_survival(self, u: Tensor) -> Tensor:
        """By quadrature."""
        return log_student_survival(u, self.df, _log_constant(self.df))

    def _quantile(self, q: Tensor) -> Tensor:
        """By a root search in the logarithm of the smaller tail."""
        dtype = q.dtype
        # A search in half precision ends far from the root.
        wide = torch.promote_types(dtype, torch.float32)
        q, df = q.to(wide), self.df.to(wide)
        inside, tail = smaller_tail(q)
        constant, target = _log_constant(df), -tail.log()

        def value_and_log_slope(z: Tensor) -> tuple[Tensor, Tensor]:
            value = -log_student_survival(z, df, constant)
            return value, _log_density(z, df) + value

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
        distance = torch.where(inside, z, end_or_nan)
        return torch.where(q <= 0.5, -distance, distance).to(dtype)
