"""Exact quantities of a density by change of variables: log-density, energy, score, quantiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit import checks
from flowkit.ends import within
from flowkit.errors import NotInvertibleError, ShapeError
from flowkit.numerics.rounding import clamp_through
from flowkit.numerics.types import Context, Generator, Sizes
from flowkit.pushforward import Pushforward
from flowkit.shapes import check_tensor
from flowkit.transforms.base import broadcast_context
from flowkit.transforms.region import region_of


class ChangeOfVariables(Pushforward):
    r"""A density by change of variables: :math:`\log p(x) = \log p_Z(T(x)) + \log|\det T'(x)|`.

    Every method but :meth:`log_prob_bound` needs a transform without stochastic layers, whose
    density has no closed form.
    """

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Return ``log_prob(x, context)``, so that compile, DDP and hooks see one entry point."""
        self._require_exact("log_prob")
        x, context = self._prepare(x, context)
        return self._log_prob(x, context)

    def log_prob_bound(
        self, x: Tensor, context: Context = None, n: int = 1, generator: Generator = None
    ) -> Tensor:
        r"""A stochastic lower bound of the log-density, from ``n`` paths per sample.

        :math:`\log \frac1n \sum_j p_Z(z_j)\, \tilde q_j(z_j \to x) / q_j(x \to z_j)`. Its
        expectation is at most the log-density, grows with ``n``, and is equal to it without
        stochastic layers.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``.
            n: Number of paths.
            generator: Source of randomness.

        References:
            Burda et al. 2016, arXiv 1509.00519, for the average over paths.
        """
        n = checks.integer("log_prob_bound", "n", n, least=1)
        x, context = self._prepare(x, context)
        terms = self._log_density(self.transform, x.expand(n, *x.shape), context, generator)
        return torch.logsumexp(terms, 0) - math.log(n)

    @torch.no_grad()
    def in_support(self, x: Tensor, context: Context = None) -> Tensor:
        """Whether the density is positive: where ``log_prob`` is finite, ``(*batch,)``.

        With a stochastic layer there is no ``log_prob``: the box of :meth:`region` tells, and if
        that is not known, every finite x counts.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``, where the support depends on it.

        Raises:
            ShapeError: If the support depends on a context and there is none.
        """
        x = x.to(self._like())
        if self.stochastic:
            region = self.region(context)
            dims = tuple(range(-len(self.event_shape), 0))
            inside = x.isfinite() if region is None else (x >= region.lower) & (x <= region.upper)
            return (inside & x.isfinite()).all(dims)
        if context is None and self.needs_context:
            if self.region() is None:
                raise ShapeError(
                    "the support of this flow depends on its context; remedy: "
                    "flow.distribution(context).support, or flow.in_support(x, context)"
                )
            # Any context tells, then.
            embedded = x.new_zeros(max(self.transform.context_size, self.base.context_size))
            x, embedded = broadcast_context(x, embedded, len(self.event_shape))
        else:
            x, embedded = self._prepare(x, context)  # type: ignore[assignment]
        return self._log_prob(x, embedded).isfinite()

    def rsample_and_log_prob(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-density in one pass; both carry gradients."""
        self._require_exact("log_prob")
        x, log_base, log_det = self._draw(shape, context, generator)
        return x, log_base - log_det

    def _energy(self, x: Tensor, context: Context) -> Tensor:
        """The energy of prepared inputs."""
        return -self._log_density(self.transform.unnormalized, x, context)

    def log_normalizer(self, context: Context = None) -> Tensor:
        r"""The exact :math:`\log Z` of :math:`p = e^{-E} / Z`, from the constant log-determinants.

        Returns:
            ``(*b,)``, the batch of the context.
        """
        self._require_exact("log_normalizer")
        embedded = self.embed(context)
        batch = () if embedded is None else embedded.shape[:-1]
        x = self._inner_point(batch, embedded)
        return self.transform.unnormalized(x, embedded)[1] - self.transform(x, embedded)[1]

    def _inner_point(self, batch: tuple[int, ...], context: Context) -> Tensor:
        """A point with density ``(*batch, *event)``: what the middle of the base is mapped to."""
        like = self._like()
        shape = self.base.event_shape
        region = region_of(self.base.support, shape, like)
        middle = like.new_zeros(shape) if region is None else region.interior()
        if not self.transform.restricts and self.event_shape == shape:
            return middle.expand(*batch, *shape)
        return self.transform.inverse(middle.expand(*batch, *shape), context)[0]

    def _require_scalar(self) -> None:
        self._require_exact("the distribution function")
        if self.event_shape != (1,):
            raise ShapeError(
                f"distribution functions exist for scalar events; this flow has {self.event_shape}"
            )
        if self._has_circles:
            raise NotInvertibleError(
                f"{self.transform.label} has a periodic variable, without a first point for a "
                "distribution function or a quantile to count from; remedy: an interval, or "
                "integrate exp(log_prob)"
            )

    def _tail(self, x: Tensor, context: Context, *, upper: bool) -> Tensor:
        """Log-probability of one side of ``x``, which is the other side of a decreasing map."""
        self._require_scalar()
        x, context = self._prepare(x, context)
        infinite = x.isinf().squeeze(-1)
        z, log_det = self.transform(torch.where(x.isinf(), 0.0, x), context)
        above, below = self.base.log_survival(z, context), self.base.log_cdf(z, context)
        increasing = torch.as_tensor(self.transform.orientation() > 0, device=z.device)
        first, second = (above, below) if upper else (below, above)
        value = torch.where(increasing, first, second).squeeze(-1)
        # Layers are no maps outside of their domain: there only the side counts.
        outside, before = infinite, x.squeeze(-1) < 0
        if self.transform.restricts:
            inner = self._inner_point(x.shape[:-1], context).squeeze(-1)
            before = torch.where(infinite, before, x.squeeze(-1) < inner)
            outside = outside | (log_det == -math.inf)
        whole = before if upper else ~before
        return torch.where(outside, torch.where(whole, 0.0, -math.inf).to(value), value)

    def log_survival(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X > x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        0 below the support and ``-inf`` above it; NaN where x is NaN.
        """
        return self._tail(x, context, upper=True)

    def log_cdf(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        ``-inf`` below the support and 0 above it; NaN where x is NaN.
        """
        return self._tail(x, context, upper=False)

    def quantile(self, q: Tensor, context: Context = None) -> Tensor:
        r"""The ``x`` with ``P(X <= x) = q`` of a scalar event; ``q (*batch,) -> (*batch, 1)``.

        0 and 1 give the ends of the support, which may be infinite; a ``q`` outside [0, 1], or
        NaN, gives NaN.
        """
        self._require_scalar()
        check_tensor("q", q, self.dtype, self.device)
        given = context
        q, context = self._prepare(q.unsqueeze(-1), context)
        inner = (q > 0) & (q < 1)
        safe = torch.where(inner, q, 0.5)
        increasing = torch.as_tensor(self.transform.orientation() > 0, device=q.device)
        z = torch.where(increasing, self.base.icdf(safe, context), self.base.isf(safe, context))
        # An end of the base may be where a layer ends, to which rounding shall not lead.
        z = within(self.base, z)
        x = self.transform.inverse(z, context)[0]
        ends, region = x.new_tensor(math.nan), self.region(given)
        if region is not None:
            # Rounding shall not lead out of the support.
            x = clamp_through(x, region.lower, region.upper)
            ends = torch.where(q == 0, region.lower, torch.where(q == 1, region.upper, math.nan))
        return torch.where(inner, x, ends)
