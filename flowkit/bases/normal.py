"""Normal bases: standard, diagonal (own parameters or from context), and mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.bases.base import Base, Symmetric
from flowkit.bases.special import (
    LOG_SQRT_2PI,
    keep_digits,
    log_normal_survival,
    normal_quantile,
    smaller_tail,
)
from flowkit.config import register
from flowkit.errors import DataError, ShapeError
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.roots import attach_newton, find_root_by_newton
from flowkit.numerics.types import Context, Generator


def _log_normal(u: Tensor) -> Tensor:
    return -0.5 * u * u - LOG_SQRT_2PI


class _Normal(Symmetric):
    """What normals have in common."""

    _log_survival = staticmethod(log_normal_survival)
    _quantile = staticmethod(normal_quantile)

    def _noise(self, size: tuple[int, ...], generator: Generator) -> Tensor:
        return self._draw(torch.randn, size, generator)


@register
class StandardNormal(_Normal):
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

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__(event_shape)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        dims = tuple(range(-len(self.event_shape), 0))
        return -0.5 * (z * z).sum(dims) - LOG_SQRT_2PI * math.prod(self.event_shape)


@register
class DiagonalNormal(_Normal):
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
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def _moments(self, context: Context) -> tuple[Tensor, Tensor]:
        params = self.params if self.from_context is None else self.from_context(context)
        mean, raw = params.unflatten(-1, (2, -1)).unbind(-2)  # type: ignore[union-attr]
        return mean, soft_clip(raw, self.max_log_scale)

    def _standardize(self, z: Tensor, context: Context) -> Tensor:
        mean, log_scale = self._moments(context)
        return (z - mean) * torch.exp(-log_scale)

    def _restore(self, u: Tensor, context: Context) -> Tensor:
        mean, log_scale = self._moments(context)
        return mean + log_scale.exp() * u

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        mean, log_scale = self._moments(context)
        u = (z - mean) * torch.exp(-log_scale)
        return (_log_normal(u) - log_scale).sum(-1)


@register
class NormalMixture(Base):
    r"""A learned mixture of K normals: :math:`p(z) = \sum_k w_k N(z; \mu_k, \Sigma_k)`.

    The means start spread over a standard normal, or where :meth:`assign` puts them. Samples carry
    gradients to means and covariances, not to the weights. Distribution function and quantiles
    exist for one feature.

    Args:
        features: Number of features D.
        components: Number of components K.
        covariance: ``"diagonal"``, or ``"full"``, with :math:`\Sigma_k^{-1} = P_k^T P_k` and
            :math:`P_k = (I + N_k)\, \mathrm{diag}(e^{-s_k})`, where :math:`N_k` is strictly lower
            triangular.
        seed: Seed of the starting means; torch's global random state by default.

    Example:
        >>> import torch
        >>> from flowkit.bases import NormalMixture
        >>> NormalMixture(2, components=5).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    reparameterized = False

    def __init__(
        self,
        features: int,
        *,
        components: int = 8,
        covariance: str = "diagonal",
        seed: int | None = None,
    ) -> None:
        name = "NormalMixture"
        super().__init__(checks.integer(name, "features", features, least=1))
        checks.integer(name, "components", components, least=1)
        self.covariance = checks.choice(name, "covariance", covariance, ("diagonal", "full"))
        full = covariance == "full"
        checks.elements(name, components * features, features if full else 1)
        generator = None
        if seed is not None:
            seed = checks.integer(name, "seed", seed, least=0, most=2**63 - 1)
            generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, features, generator=generator))
        self.log_scales = nn.Parameter(torch.zeros(components, features))
        lower = torch.zeros(components, features, features) if full else None
        self.lower = None if lower is None else nn.Parameter(lower)

    @torch.no_grad()
    def assign(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set the components, such as those that scikit-learn's ``GaussianMixture`` has found.

        Args:
            weights: ``(K,)``, positive.
            means: ``(K, D)``.
            covariances: ``(K, D, D)``; without full covariances their diagonals count.

        Raises:
            ShapeError: If a shape is another one.
            DataError: If a covariance is not positive definite.
        """
        count, features = self.means.shape
        shapes = {"weights": (count,), "means": (count, features)}
        shapes["covariances"] = (count, features, features)
        for (name, shape), given in zip(
            shapes.items(), (weights, means, covariances), strict=True
        ):
            if tuple(given.shape) != shape:
                raise ShapeError(
                    f"NormalMixture expected {name} of shape {shape}, got {tuple(given.shape)}"
                )
        kept = covariances.double()
        if self.lower is None:
            kept = torch.diag_embed(kept.diagonal(dim1=-2, dim2=-1))
        factor, failed = torch.linalg.cholesky_ex(kept)
        if bool(failed.any()):
            raise DataError(
                f"NormalMixture expected positive definite covariances, got component(s) "
                f"{failed.nonzero().flatten().tolist()} that are not; remedy: add a small number "
                "to their diagonals"
            )
        eye = torch.eye(features, dtype=factor.dtype, device=factor.device).expand_as(factor)
        precision = torch.linalg.solve_triangular(factor, eye, upper=False)
        diagonal = precision.diagonal(dim1=-2, dim2=-1)
        self.logits.copy_(weights.log())
        self.means.copy_(means)
        self.log_scales.copy_(-diagonal.log())
        if self.lower is not None:
            self.lower.copy_((precision / diagonal.unsqueeze(-2)).tril(-1))

    def _standardize(self, z: Tensor) -> Tensor:
        u = (z.unsqueeze(-2) - self.means) * torch.exp(-self.log_scales)
        if self.lower is None:
            return u
        return u + torch.einsum("kij,...kj->...ki", self.lower.tril(-1), u)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density."""
        inside = (_log_normal(self._standardize(z)) - self.log_scales).sum(-1)
        return self._mix(inside)

    def _mix(self, terms: Tensor) -> Tensor:
        """Logarithm of the weighted sum; without gradient where all terms underflow."""
        terms = torch.log_softmax(self.logits, -1) + terms
        nothing = (terms == -math.inf).all(-1, keepdim=True)
        value = torch.logsumexp(torch.where(nothing, torch.zeros_like(terms), terms), -1)
        return torch.where(nothing.squeeze(-1), -math.inf, value)

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw a component, then a normal."""
        size = self._draw_shape(shape, context)
        # Gumbel's trick: any number of rows, none included, and a reproducible generator.
        gumbel = self._draw(torch.rand, (*size[:-1], len(self.logits)), generator)
        gumbel = -torch.log(-torch.log(gumbel.clamp(1e-30, 1 - 1e-7)))
        # Up to a constant, the logits are the logarithms of the weights.
        which = (self.logits.detach() + gumbel).argmax(-1)
        eps = self._draw(torch.randn, size, generator)
        if self.lower is not None:
            # Solves do not exist in half precision.
            dtype = torch.promote_types(eps.dtype, torch.float32)
            unit, columns = self.lower.tril(-1)[which].to(dtype), eps.unsqueeze(-1).to(dtype)
            solve = torch.linalg.solve_triangular
            solved = solve(unit, columns, upper=False, unitriangular=True)
            eps = solved.squeeze(-1).to(eps.dtype)
        return self.means[which] + self.log_scales[which].exp() * eps

    def _tail(self, z: Tensor, sign: Tensor) -> Tensor:
        """Log-probability above ``z``, or below it where the sign is -1.

        Near probability one by the other side, which keeps the digits.
        """
        if self.event_shape != (1,):
            return self._each("log_cdf", z, None)
        u = sign.unsqueeze(-2) * self._standardize(z)
        sides = (log_normal_survival(side).squeeze(-1) for side in (u, -u))
        return keep_digits(*(self._mix(side).unsqueeze(-1) for side in sides))

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Distribution function, for one feature."""
        return self._tail(z, -torch.ones_like(z))

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Survival function, for one feature."""
        return self._tail(z, torch.ones_like(z))

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles, for one feature, by a root search between the components' own quantiles."""
        return self._quantile(q, q <= 0.5)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of ``1 - q``, for one feature."""
        return self._quantile(q, q > 0.5)

    def _quantile(self, q: Tensor, lower: Tensor) -> Tensor:
        """The point with ``q``, or ``1 - q``, of the mass in the tail that it is in."""
        if self.event_shape != (1,):
            return self._each("icdf", q, None)
        inside, tail = smaller_tail(q)
        sign = torch.where(lower, 1.0, -1.0).to(q.dtype)

        target = sign * tail.log()
        with torch.no_grad():
            u = (sign * normal_quantile(tail)).unsqueeze(-2)
            each = self.means + self.log_scales.exp() * u
            margin = 1e-3 * (1 + each.abs().amax(-2))
            first, last = each.amin(-2) - margin, each.amax(-2) + margin

        def value_and_log_slope(z: Tensor) -> tuple[Tensor, Tensor]:
            value = sign * self._tail(z, -sign)
            return value, self.log_prob(z).unsqueeze(-1) + value.abs()

        def residual(z: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = value_and_log_slope(z)
            return value - target, log_slope.exp()

        start, _ = find_root_by_newton(residual, (first + last) / 2, first, last)
        z = attach_newton(value_and_log_slope, start, target)
        # The ends: the quantile is infinite there, and NaN beyond.
        side = torch.where(lower == (q < 0.5), 1.0, -1.0).to(q.dtype)
        return torch.where(inside, z, side * normal_quantile(q))
