"""Normal bases: standard, diagonal (own parameters or from context), and mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.bases.base import Base
from flowkit.bases.special import log_normal_survival, normal_quantile
from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.roots import attach_newton, find_root_by_newton
from flowkit.numerics.types import Context, Generator

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def _log_normal(u: Tensor) -> Tensor:
    return -0.5 * u * u - _LOG_SQRT_2PI


@register
class StandardNormal(Base):
    r"""Independent standard normals: :math:`\log p(z) = -\frac12 |z|^2 - \frac D2 \log 2\pi`.

    Args:
        event_shape: Sizes of the event; one number for vectors.

    Raises:
        ArgumentError: If a size is not an integer >= 1.

    Example:
        >>> import torch
        >>> from flowkit.bases import StandardNormal
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    like: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        dims = tuple(range(-len(self.event_shape), 0))
        return -0.5 * (z * z).sum(dims) - _LOG_SQRT_2PI * math.prod(self.event_shape)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw standard normals."""
        size = self._draw_shape(shape, context)
        return torch.randn(
            size, generator=generator, dtype=self.like.dtype, device=self.like.device
        )

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the normal distribution function."""
        return log_normal_survival(-z)

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the normal survival function."""
        return log_normal_survival(z)

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """``ndtri(q)``."""
        return normal_quantile(q)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """``-ndtri(q)``."""
        return -normal_quantile(q)


@register
class DiagonalNormal(Base):
    r"""Independent normals with learned mean and scale, constant or from context.

    Without context the parameters are the base's own. With context they are affine in it:
    :math:`(\mu, s) = A c + b`, with the log-scale softly bounded; for anything richer let the
    transform read the context.

    Args:
        features: Number of features.
        context: Number of context features.
        max_log_scale: Bound on the log-scale; ``None`` for none.

    Example:
        >>> import torch
        >>> from flowkit.bases import DiagonalNormal
        >>> DiagonalNormal(2, context=3).sample((4,), torch.zeros(5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self, features: int, *, context: int = 0, max_log_scale: float | None = 10.0
    ) -> None:
        name = "DiagonalNormal"
        super().__init__(checks.integer(name, "features", features, least=1), context=context)
        if max_log_scale is not None:
            max_log_scale = checks.number(name, "max_log_scale", max_log_scale, above=0)
        checks.elements(name, 2 * features, max(context, 1))
        self.max_log_scale = max_log_scale
        self.params = None if context else nn.Parameter(torch.zeros(2 * features))
        self.from_context = nn.Linear(context, 2 * features) if context else None
        if self.from_context is not None:
            nn.init.zeros_(self.from_context.weight)
            nn.init.zeros_(self.from_context.bias)

    def _moments(self, context: Context) -> tuple[Tensor, Tensor]:
        params = self.params if self.from_context is None else self.from_context(context)
        mean, raw = params.unflatten(-1, (2, -1)).unbind(-2)  # type: ignore[union-attr]
        return mean, soft_clip(raw, self.max_log_scale)

    def _standardize(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._moments(context)
        return (z - mean) * torch.exp(-log_scale), log_scale

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        u, log_scale = self._standardize(z, context)
        return (_log_normal(u) - log_scale).sum(-1)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw ``mean + scale * eps``."""
        mean, log_scale = self._moments(context)
        size = self._draw_shape(shape, context)
        eps = torch.randn(size, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + log_scale.exp() * eps

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """That of the standardised value."""
        return log_normal_survival(-self._standardize(z, context)[0])

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """That of the standardised value."""
        return log_normal_survival(self._standardize(z, context)[0])

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """``mean + scale * ndtri(q)``."""
        mean, log_scale = self._moments(context)
        return mean + log_scale.exp() * normal_quantile(q)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """``mean - scale * ndtri(q)``."""
        mean, log_scale = self._moments(context)
        return mean - log_scale.exp() * normal_quantile(q)


@register
class NormalMixture(Base):
    r"""A learned mixture of K diagonal normals: :math:`p(z) = \sum_k w_k N(z; \mu_k, \sigma_k)`.

    The means start spread over a standard normal. Samples carry gradients to
    means and scales, not to the weights. Distribution function and quantiles exist for one
    feature.

    Args:
        features: Number of features D.
        components: Number of components K.
        seed: Seed of the starting means; torch's global random state by default.

    Example:
        >>> import torch
        >>> from flowkit.bases import NormalMixture
        >>> NormalMixture(2, components=5).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    reparameterized = False

    def __init__(self, features: int, *, components: int = 8, seed: int | None = None) -> None:
        name = "NormalMixture"
        super().__init__(checks.integer(name, "features", features, least=1))
        checks.integer(name, "components", components, least=1)
        checks.elements(name, components, features)
        generator = None
        if seed is not None:
            seed = checks.integer(name, "seed", seed, least=0, most=2**63 - 1)
            generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, features, generator=generator))
        self.log_scales = nn.Parameter(torch.zeros(components, features))

    def _standardize(self, z: Tensor) -> Tensor:
        return (z.unsqueeze(-2) - self.means) * torch.exp(-self.log_scales)

    def _log_weights(self) -> Tensor:
        return torch.log_softmax(self.logits, -1)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        inside = (_log_normal(self._standardize(z)) - self.log_scales).sum(-1)
        return self._mix(inside)

    def _mix(self, terms: Tensor) -> Tensor:
        """Logarithm of the weighted sum; without gradient where all terms underflow."""
        terms = self._log_weights() + terms
        nothing = (terms == -math.inf).all(-1, keepdim=True)
        value = torch.logsumexp(torch.where(nothing, torch.zeros_like(terms), terms), -1)
        return torch.where(nothing.squeeze(-1), -math.inf, value)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw a component, then a normal."""
        size = self._draw_shape(shape, context)
        like: dict[str, Any] = {"dtype": self.means.dtype, "device": self.means.device}
        # Gumbel's trick: any number of rows, none included, and a reproducible generator.
        gumbel = torch.rand(*size[:-1], len(self.logits), generator=generator, **like)
        gumbel = -torch.log(-torch.log(gumbel.clamp(1e-30, 1 - 1e-7)))
        which = (self._log_weights().detach() + gumbel).argmax(-1)
        eps = torch.randn(size, generator=generator, **like)
        return self.means[which] + self.log_scales[which].exp() * eps

    def _tail(self, z: Tensor, sign: float) -> Tensor:
        """Log-probability above ``z``, or below it for the sign -1."""
        if self.event_shape != (1,):
            return super().log_cdf(z)
        tails = log_normal_survival(sign * self._standardize(z)).squeeze(-1)
        return self._mix(tails).unsqueeze(-1)

    def _from_smaller(self, z: Tensor, sign: float) -> Tensor:
        """The same, near probability one by the other side, which keeps the digits."""
        tail, other = self._tail(z, sign), self._tail(z, -sign)
        near_one = other < -math.log(2)
        safe = torch.where(near_one, other, torch.full_like(other, -1.0))
        return torch.where(near_one, torch.log1p(-safe.exp()), tail)

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Distribution function, for one feature."""
        return self._from_smaller(z, -1.0)

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Survival function, for one feature."""
        return self._from_smaller(z, 1.0)

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles, for one feature, by a root search between the components' own quantiles."""
        return self._quantile(q, q <= 0.5)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of ``1 - q``, for one feature."""
        return self._quantile(q, q > 0.5)

    def _quantile(self, q: Tensor, lower: Tensor) -> Tensor:
        """The point with ``q``, or ``1 - q``, of the mass in the tail that it is in."""
        if self.event_shape != (1,):
            return super().icdf(q)
        inside = (q > 0) & (q < 1)
        # Each side of the median in its own tail, where probabilities keep their digits.
        tail = torch.where(q > 0.5, 1 - q, q)
        tail = torch.where(inside, tail, torch.full_like(q, 0.5))
        sign = torch.where(lower, 1.0, -1.0).to(q.dtype)

        def log_tail(z: Tensor) -> Tensor:
            return sign * torch.where(lower, self.log_cdf(z), self.log_survival(z))

        target = sign * tail.log()
        with torch.no_grad():
            u = (sign * normal_quantile(tail)).unsqueeze(-2)
            each = self.means + self.log_scales.exp() * u
            margin = 1e-3 * (1 + each.abs().amax(-2))
            first, last = each.amin(-2) - margin, each.amax(-2) + margin

        def value_and_log_slope(z: Tensor) -> tuple[Tensor, Tensor]:
            value = log_tail(z)
            return value, self.log_prob(z).unsqueeze(-1) + value.abs()

        def residual(z: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = value_and_log_slope(z)
            return value - target, log_slope.exp()

        start, _ = find_root_by_newton(residual, (first + last) / 2, first, last)
        z = attach_newton(value_and_log_slope, start, target)
        # The ends: the quantile is infinite there, and NaN beyond.
        side = torch.where(lower == (q < 0.5), 1.0, -1.0).to(q.dtype)
        return torch.where(inside, z, side * normal_quantile(q))
