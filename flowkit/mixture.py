"""FlowMixture: several fitted flows averaged as densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.bases.special import keep_digits
from flowkit.config import register
from flowkit.density import Density, check_density
from flowkit.distribution import FlowDistribution, flow_distribution
from flowkit.errors import ShapeError, StochasticFlowError
from flowkit.numerics.noise import choose
from flowkit.numerics.roots import all_known, attach_newton, find_root_finely
from flowkit.numerics.types import Context, Generator, Sizes
from flowkit.shapes import as_shape, check_tensor
from flowkit.summary import as_html, as_table, as_text
from flowkit.support import Support
from flowkit.transforms.region import Region

# How far beyond the quantiles of the flows that of the mixture is searched, in roundings.
_ROUNDINGS = 256


@register
class FlowMixture(Density):
    r"""A mixture of fitted flows, :math:`p(x) = \sum_k w_k\, p_k(x)`: densities are averaged.

    :math:`\log p(x) = \mathrm{logsumexp}_k(\log w_k + \log p_k(x))`, which a far tail of one flow
    cannot spoil, as it would an average of log-densities. It scores, samples and is saved as a
    flow is; a map to noise it has not. The weights are fixed: fit each flow, then mix them.

    Args:
        flows: One flow or more with events of one shape, and contexts of one size or none.
        weights: One number >= 0 for each, scaled to a sum of one; equal by default.

    Raises:
        ArgumentError: If there is no flow, or a weight is negative, or all are zero.
        ShapeError: If the flows differ in events, contexts, dtype or device.
        StochasticFlowError: If a flow has a stochastic layer, and so no log-density.

    Attributes:
        flows: The flows.
        weights: Their weights ``(K,)``.

    Example:
        >>> import torch
        >>> from flowkit import FlowMixture, autoregressive_flow, coupling_flow
        >>> flows = [coupling_flow(2), autoregressive_flow(2)]
        >>> mixture = FlowMixture(flows, weights=[3, 1])
        >>> mixture.weights
        tensor([0.7500, 0.2500])
        >>> x = mixture.sample(4)
        >>> both = 0.75 * flows[0].log_prob(x).exp() + 0.25 * flows[1].log_prob(x).exp()
        >>> torch.allclose(mixture.log_prob(x).exp(), both)
        True
    """

    weights: Tensor

    def __init__(
        self, flows: Sequence[Density], weights: Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        listed = checks.as_list(flows)
        if not listed:
            remedy = "FlowMixture([flow, other])"
            raise checks.fail(owner, "flows", "a sequence of one flow or more", flows, remedy)
        for flow in listed:
            if check_density(owner, flow, "FlowMixture([flow, other])").stochastic:
                raise StochasticFlowError(
                    f"{owner} expected flows with an exact density, got one with a stochastic "
                    "layer; remedy: flows without it"
                )
        given = 1.0 if weights is None else weights
        numbers = checks.numbers(owner, "weights", given, len(listed), least=0)
        if not any(numbers):
            expected = "numbers >= 0 of which one is positive"
            raise checks.fail(owner, "weights", expected, weights, "weights=None for equal ones")
        _require_alike(owner, listed)
        self.event_shape = listed[0].event_shape
        self.flows = nn.ModuleList(listed)
        largest = max(numbers)
        total = math.fsum(number / largest for number in numbers)
        dtype = next((flow.dtype for flow in listed if flow.dtype is not None), None)
        shares = [number / largest / total for number in numbers]
        self.register_buffer("weights", torch.tensor(shares, dtype=dtype, device=listed[0].device))

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the weights ``(K,)``, ``-inf`` for a weight of zero."""
        # Scaled once more, for weights that were rounded to another dtype.
        return (self.weights / self.weights.sum()).log()

    @property
    def initialized(self) -> Tensor:
        """Whether all flows have started from data."""
        return torch.stack([flow.initialized for flow in self._parts]).all()

    @property
    def needs_context(self) -> bool:
        """Whether a context must be given."""
        return self._parts[0].needs_context

    @property
    def context_size(self) -> int | None:
        """Number of context features to give; ``None`` if an embedding decides."""
        return self._parts[0].context_size

    @property
    def stochastic(self) -> bool:
        """Never: the density is exact."""
        return False

    @property
    def reparameterized(self) -> bool:
        """Whether samples of ``rsample`` carry gradients to every parameter."""
        return all(flow.reparameterized for flow in self._parts)

    @property
    def _parts(self) -> list[Any]:
        """The flows as a list, of which type checkers know no modules without attributes."""
        return list(self.flows)

    def _each(self, name: str, *args: Any) -> Tensor:
        """What a method of every flow returns, ``(K, ...)``."""
        return torch.stack([getattr(flow, name)(*args) for flow in self._parts])

    def _beside(self, weights: Tensor, terms: Tensor) -> Tensor:
        """The weights ``(K,)`` in the number of dimensions of terms ``(K, ...)``."""
        return weights.reshape(-1, *(1,) * (terms.ndim - 1))

    def _mix(self, terms: Tensor) -> Tensor:
        """The logarithm of the weighted sum of ``exp(terms)``, which are ``(K, *batch)``.

        Terms that add nothing get no gradient, and neither does a sum of nothing.
        """
        log_weights = self._beside(self.log_weights, terms)
        nothing = (log_weights == -math.inf) | (terms == -math.inf)
        empty = nothing.all(0)
        value = torch.where(nothing, -math.inf, log_weights + terms)
        value = torch.logsumexp(torch.where(empty, 0.0, value), 0)
        return torch.where(empty, -math.inf, value)

    def context_batch(self, context: Context) -> tuple[int, ...]:
        """Check a context ``(*b, C)``, and return its batch ``b``; empty without one."""
        return self._parts[0].context_batch(context)

    def _prepare(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        # Each flow embeds the context for itself.
        return self._parts[0]._prepare(x, context)[0], context

    def _energy(self, x: Tensor, context: Context) -> Tensor:
        return -self(x, context)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Return ``log_prob(x, context)``, so that compile and hooks see one entry point."""
        return self._mix(self._each("log_prob", x, context))

    def log_normalizer(self, context: Context = None) -> Tensor:
        r"""Zero ``(*b,)``: the energy of a mixture is :math:`-\log p` itself."""
        return self._like().new_zeros(self.context_batch(context))

    def rsample(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw samples that carry gradients to the parameters of the flow that each came from."""
        owner, remedy = type(self).__name__, "torch.Generator().manual_seed(0)"
        if generator is not None:
            checks.instance(owner, "generator", generator, torch.Generator, remedy)
        full = (*as_shape(shape), *self.context_batch(context))
        at = torch.rand(
            math.prod(full), generator=generator, dtype=self.weights.dtype, device=self.device
        )
        # Above zero, where no flow without weight is chosen.
        which = choose(self.weights, 1 - at)
        places = [(which == k).nonzero().squeeze(-1) for k in range(len(self.flows))]
        given: list[tuple[Any, Context]] = [(len(place), None) for place in places]
        if context is not None:
            event = context.shape[len(self.context_batch(context)) :]
            rows = context.expand(*full, *event).reshape(-1, *event)
            given = [((), rows[place]) for place in places]
        drawn = [
            flow.rsample(*each, generator) for flow, each in zip(self._parts, given, strict=True)
        ]
        x = torch.cat(drawn)[torch.cat(places).argsort()]
        return x.reshape(*full, *self.event_shape)

    def rsample_and_log_prob(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-density; both carry gradients."""
        x = self.rsample(shape, context, generator)
        return x, self.log_prob(x, context)

    @torch.no_grad()
    def in_support(self, x: Tensor, context: Context = None) -> Tensor:
        """Whether the density of a flow with weight is positive, ``(*batch,)``.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``, where the support depends on it.

        Raises:
            ShapeError: If the support depends on a context and there is none.
        """
        inside = self._each("in_support", x, context)
        return (inside & self._beside(self.weights > 0, inside)).any(0)

    @torch.no_grad()
    def _ends(self, context: Context) -> tuple[Region, Region] | None:
        """The boxes ``(K, *b, *event)`` of all flows, and the least box around those with weight.

        ``None`` if the support of a flow is no box.
        """
        boxes = [flow.region(context) for flow in self._parts]
        if None in boxes:
            return None
        each = Region(
            *(torch.stack(torch.broadcast_tensors(*ends)) for ends in zip(*boxes, strict=True))
        )
        used = self._beside(self.weights > 0, each.lower)
        # Without weight a box is empty.
        lower = torch.where(used, each.lower, math.inf)
        upper = torch.where(used, each.upper, -math.inf)
        return Region(lower, upper), Region(lower.amin(0), upper.amax(0))

    def region(self, context: Context = None) -> Region | None:
        """The box that is the union of the supports; ``None`` if it is none, or not known.

        A box within which all others are; for scalar events also intervals that overlap.

        Args:
            context: ``(*b, C)``, for ends that depend on it; without one, those are not known.
        """
        ends = self._ends(context)
        if ends is None:
            return None
        (lower, upper), around = ends
        dims = tuple(range(-len(self.event_shape), 0))
        whole = ((lower == around.lower) & (upper == around.upper)).all(dims).any(0)
        if self.event_shape == (1,):
            first = lower.argsort(0)
            starts = lower.gather(0, first)[1:]
            reached = upper.gather(0, first).cummax(0).values[:-1]
            # Boxes without weight come last, and start at infinity.
            joined = (starts < reached) | (starts == math.inf)
            whole = whole | joined.all(0).squeeze(-1)
        return around if all_known(whole) else None

    @property
    def support(self) -> Support:
        """Where the density is positive: the union of the supports, see :class:`Support`."""
        return Support(self)

    def distribution(self, context: Context = None) -> FlowDistribution:
        """A ``torch.distributions`` view, which Pyro accepts too; its batch is the context's."""
        return flow_distribution(self, context)

    def _tails(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Log-probabilities below and above ``x``; near one by the other side, for its digits."""
        below = self._mix(self._each("log_cdf", x, context))
        above = self._mix(self._each("log_survival", x, context))
        return keep_digits(below, above), keep_digits(above, below)

    def log_survival(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X > x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        0 below the support and ``-inf`` above it; NaN where x is NaN.
        """
        return self._tails(x, context)[1]

    def log_cdf(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        ``-inf`` below the support and 0 above it; NaN where x is NaN.
        """
        return self._tails(x, context)[0]

    def quantile(self, q: Tensor, context: Context = None) -> Tensor:
        r"""The ``x`` with ``P(X <= x) = q`` of a scalar event; ``q (*batch,) -> (*batch, 1)``.

        A root search between the quantiles of the flows, with derivatives in q, the context and
        all parameters. 0 and 1 give the ends of the support, which may be infinite; a ``q``
        outside [0, 1], or NaN, gives NaN.
        """
        check_tensor("q", q, self.dtype, self.device)
        q = q.to(self._like())
        inner = (q > 0) & (q < 1)
        safe = torch.where(inner, q, 0.5)
        with torch.no_grad():
            each = self._each("quantile", safe, context)
        inner, q, safe = (value.unsqueeze(-1).expand(each.shape[1:]) for value in (inner, q, safe))
        target = safe.log() - torch.log1p(-safe)

        def log_odds(x: Tensor) -> tuple[Tensor, Tensor]:
            below, above = self._tails(x, context)
            log_slope = self.log_prob(x, context) - below - above
            return (below - above).unsqueeze(-1), log_slope.unsqueeze(-1)

        def residual(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = log_odds(x)
            return value - target, log_slope.exp()

        with torch.no_grad():
            used = self._beside(self.weights > 0, each)
            lower = torch.where(used, each, math.inf).amin(0)
            upper = torch.where(used, each, -math.inf).amax(0)
            width, rounding = upper - lower, _ROUNDINGS * torch.finfo(q.dtype).eps
            for end, sign in ((lower, -1), (upper, 1)):
                value, slope = residual(end)
                # By rounding the value at an end may have the sign of the other one.
                margin = torch.where(sign * value < 0, 4 * value.abs() / slope, 0.0)
                margin = torch.where(margin.isfinite(), margin, 0.0)
                end += sign * (margin + rounding * (width + end.abs()))
            start = find_root_finely(residual, lower, upper)
        x = attach_newton(log_odds, start, target)
        ends, found = x.new_tensor(math.nan), self._ends(context)
        if found is not None:
            low, high = found[1]
            ends = torch.where(q == 0, low, torch.where(q == 1, high, math.nan))
        return torch.where(inner, x, ends)

    def stored_fault(self) -> str | None:
        """What makes stored weights none of a mixture, in words."""
        least, total = float(self.weights.min()), float(self.weights.sum())
        if least < 0 or total <= 0:
            return f"weights holds {min(least, total):g}, expected numbers >= 0 with a sum above 0"
        return None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all flows in place: see :meth:`flowkit.Flow.compile`."""
        for flow in self._parts:
            flow.compile(*args, **kwargs)

    def summary(self) -> str:
        """A table of the flows with their weights, layers and numbers of parameters, to print.

        Example:
            >>> from flowkit import Flow, FlowMixture
            >>> from flowkit.bases import Logistic, StandardNormal
            >>> from flowkit.transforms import LULinear
            >>> flows = [Flow(LULinear(2), base) for base in (StandardNormal(2), Logistic(2))]
            >>> print(FlowMixture(flows, weights=[0.7, 0.3]).summary())
            weight 0.7                         6
              LULinear(features=2)             6
              StandardNormal                   0
            weight 0.3                         6
              LULinear(features=2)             6
              Logistic                         0
            total parameters                  12
        """
        return as_table(self)

    def _layer_sizes(self) -> list[tuple[str, int]]:
        weights = ["?"] * len(self.flows)
        if not self.weights.is_meta:
            weights = [f"{weight:.4g}" for weight in self.weights.tolist()]
        rows = []
        for weight, flow in zip(weights, self._parts, strict=True):
            rows.append((f"weight {weight}", sum(p.numel() for p in flow.parameters())))
            rows.extend((f"  {name}", count) for name, count in flow._layer_sizes())
        return rows

    __repr__ = as_text
    _repr_html_ = as_html


def _require_alike(owner: str, flows: list[Density]) -> None:
    """Refuse flows that cannot be mixed.

    Raises:
        ShapeError: If they differ in events, contexts, dtype or device.
    """
    facts: dict[str, list[Any]] = {
        "events of one shape": [flow.event_shape for flow in flows],
        "one context size, 0 for none": [
            flow.context_size if flow.needs_context else 0 for flow in flows
        ],
        "one dtype": [flow.dtype for flow in flows if flow.dtype is not None],
        "one device": [flow.device for flow in flows],
    }
    for name, values in facts.items():
        unlike = [value for value in values if value != values[0]]
        if unlike:
            raise ShapeError(
                f"{owner} expected flows with {name}, got {values[0]} and {unlike[0]}; remedy: "
                "flows that were fitted to the same data, moved by .to(...) to one dtype and "
                "device"
            )
