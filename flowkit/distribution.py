"""A flow seen as a ``torch.distributions.Distribution``, and as Pyro's where Pyro is imported."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from flowkit import checks
from flowkit.density import Density
from flowkit.errors import NotInvertibleError, ShapeError
from flowkit.numerics.types import Context, Generator, Sizes
from flowkit.shapes import check_event
from flowkit.statistics.estimates import Estimate, mean_of
from flowkit.support import Support

# Samples per member of the batch behind a mean or variance, and their seed.
_MOMENT_SAMPLES = 10_000
_MOMENT_SEED = 0


class FlowDistribution(Distribution):
    r"""A flow at a given context, with the interface of ``torch.distributions``.

    :math:`p(x \mid c)` with the batch of the context, or an empty batch without; ``expand`` makes
    it larger. ``sample(shape)`` is ``(*shape, *batch, *event)`` and ``log_prob`` broadcasts the
    batch of its value against that of the distribution. ``flow.distribution(context)`` makes one.

    Flows of scalar events have ``cdf`` and ``icdf``. ``entropy``, ``mean``, ``variance``,
    ``stddev`` and ``torch.distributions.kl_divergence`` from or to a flow are Monte Carlo
    estimates; each docstring says from how many samples.

    Args:
        flow: The flow; its parameters are shared, so gradients reach them.
        context: ``(*b, C)`` or ``None``.
        batch_shape: A batch to which that of the context is expanded.

    Raises:
        ShapeError: If the context does not fit, or its batch cannot be expanded to
            ``batch_shape``; a conditional flow needs a context, an unconditional one takes none.
        NotInvertibleError: From ``rsample``, if samples carry no gradient to some parameter
            (``has_rsample`` is then false).

    Example:
        >>> import torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import LULinear
        >>> d = Flow(LULinear(2), StandardNormal(2)).distribution().expand((3,))
        >>> d.sample((5,)).shape, d.log_prob(torch.zeros(2)).shape
        (torch.Size([5, 3, 2]), torch.Size([3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, flow: Density, context: Context = None, batch_shape: Sizes | None = None
    ) -> None:
        own = flow.context_batch(context)
        batch = _expanded(own, own if batch_shape is None else batch_shape)
        self.flow = flow
        self.context = context
        if context is not None:
            # An embedding may take other events than vectors, and one batch dimension only, so
            # the context gets no new dimensions: samples do.
            last = batch[len(batch) - len(own) :]
            self.context = context.expand(*last, *context.shape[len(own) :])
        self._extra = batch[: len(batch) - len(own)]
        # The flow checks shapes and dtypes itself, and is -inf outside its support.
        super().__init__(torch.Size(batch), torch.Size(flow.event_shape), validate_args=False)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive, at this context: see :class:`flowkit.support.Support`."""
        return Support(self.flow, self.context)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients to every parameter."""
        return self.flow.reparameterized

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same distribution with a larger batch.

        Raises:
            ShapeError: If the batch cannot be expanded to ``batch_shape``.
        """
        return type(self)(self.flow, self.context, _expanded(self.batch_shape, batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)`` with gradients."""
        if not self.has_rsample:
            raise NotInvertibleError(
                "samples of this flow carry no gradient to some of its parameters, as with a "
                "NormalMixture as base or a stochastic layer; remedy: sample(), or another base"
            )
        return self.flow.rsample((*sample_shape, *self._extra), self.context)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)``, without gradients."""
        return self.flow.sample((*sample_shape, *self._extra), self.context)

    def _broadcast(self, value: Tensor, event: Sizes) -> Tensor:
        """Broadcast the batch of ``value (*batch, *event)``; the event has to fit as it is."""
        check_event("Flow", "value", value, event)
        own = tuple(value.shape[: value.ndim - len(event)])
        try:
            batch = torch.broadcast_shapes(own, self.batch_shape)
        except RuntimeError:
            raise ShapeError(
                f"the batch {own} of value does not broadcast with the batch "
                f"{tuple(self.batch_shape)} of the distribution"
            ) from None
        return value.expand((*batch, *event))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, broadcast against the batch.

        Raises:
            ShapeError: If ``value`` is not ``(..., *event)``.
        """
        return self.flow.log_prob(self._broadcast(value, self.event_shape), self.context)

    def cdf(self, value: Tensor) -> Tensor:
        """Return ``P(X <= value)`` of a flow of scalar events, ``(..., 1) -> (...)``."""
        return self.flow.cdf(self._broadcast(value, self.event_shape), self.context)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantiles of a flow of scalar events, ``(...) -> (..., 1)``."""
        return self.flow.quantile(self._broadcast(value, ()), self.context)

    def entropy(self, n: int = 4096, generator: Generator = None) -> Tensor:
        """Estimate the differential entropy in nats, ``(*batch,)``, from ``n`` samples.

        :meth:`flowkit.Flow.entropy` also returns the standard error, and says when there are
        gradients.
        """
        return self.flow.entropy(n, self.context, generator).value.expand(self.batch_shape)

    def _moment_samples(self) -> Tensor:
        """Samples of one seed, so that a property is one number and no global state changes."""
        generator = torch.Generator(self.flow.device).manual_seed(_MOMENT_SEED)
        return self._draw((_MOMENT_SAMPLES,), generator)

    @property
    def mean(self) -> Tensor:
        """The mean of 10,000 samples of one seed, ``(*batch, *event)``.

        Its standard error is a hundredth of :attr:`stddev`; where the expectation does not exist,
        as of a Student t with one degree of freedom, the number means nothing. It carries
        gradients if ``has_rsample`` is true.
        """
        return self._moment_samples().mean(0).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """The variance of 10,000 samples of one seed, ``(*batch, *event)``; see :attr:`mean`."""
        return self._moment_samples().var(0).expand(self._extended_shape())

    @property
    def mode(self) -> Tensor:
        """Refuse: a flow has no formula for its mode."""
        raise _none("mode", "start an optimiser of log_prob from the best of many samples")

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: FBT001, FBT002
        """Refuse: the density is continuous."""
        raise _none("enumeration of its support", "sample(), or a discrete distribution")

    def _draw(self, shape: Sizes, generator: Generator) -> Tensor:
        """Samples ``(*shape, *context_batch, *event)``, with gradients where they carry any."""
        draw = self.flow.rsample if self.has_rsample else self.flow.sample
        return draw(shape, self.context, generator)


def _none(what: str, remedy: str) -> NotInvertibleError:
    return NotInvertibleError(f"the distribution of a flow has no {what}; remedy: {remedy}")


def _expanded(own: Sizes, batch_shape: Any) -> Sizes:
    """``batch_shape``, if torch would expand a tensor of the shape ``own`` to it."""
    try:
        batch = tuple(torch.Size(batch_shape))
        fits = min(batch, default=0) >= 0 and torch.broadcast_shapes(own, batch) == batch
    except (TypeError, RuntimeError):
        fits = False
    if not fits:
        raise ShapeError(
            f"a distribution of the batch {tuple(own)} cannot be expanded to {batch_shape!r}; "
            "remedy: keep its last dimensions (those of size 1 may grow), and add others in front"
        )
    return batch


def estimate_kl(
    p: Distribution, q: Distribution, n: int = 4096, generator: Generator = None
) -> Estimate:
    r"""Estimate :math:`KL(p \| q) = E_p[\log p(x) - \log q(x)]` in nats from ``n`` samples of p.

    ``torch.distributions.kl_divergence`` returns its value where p or q is a flow. The estimate
    carries gradients to the parameters of q, and to those of p if ``p.has_rsample`` is true.

    Args:
        p: A :class:`FlowDistribution`, or another distribution of the same events.
        q: Likewise.
        n: Number of samples per member of the batch.
        generator: Source of randomness; torch's own distributions only draw from the global one.

    Raises:
        ArgumentError: If n is not an integer of 2 or more.
        ShapeError: If the events differ in shape.

    Example:
        >>> import torch
        >>> from torch.distributions import MultivariateNormal
        >>> from flowkit import coupling_flow
        >>> from flowkit.distribution import estimate_kl
        >>> normal = MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> _ = torch.manual_seed(0)
        >>> value, error = estimate_kl(coupling_flow(2).distribution(), normal)
        >>> bool((value - 1).abs() < 4 * error), bool(error < 0.03)
        (True, True)
    """
    n = checks.integer("estimate_kl", "n", n, least=2, remedy="for example n=10_000")
    if p.event_shape != q.event_shape:
        raise ShapeError(
            f"a divergence needs two distributions of the same events, got {tuple(p.event_shape)} "
            f"and {tuple(q.event_shape)}; remedy: torch.distributions.Independent"
        )
    with torch.set_grad_enabled(torch.is_grad_enabled() and p.has_rsample):
        if isinstance(p, FlowDistribution):
            x = p._draw((n, *p._extra), generator)
        else:
            x = (p.rsample if p.has_rsample else p.sample)((n,))
        log_p = p.log_prob(x)
    return mean_of(log_p - q.log_prob(x))


@register_kl(FlowDistribution, FlowDistribution)
@register_kl(FlowDistribution, Distribution)
@register_kl(Distribution, FlowDistribution)
def _kl(p: Distribution, q: Distribution) -> Tensor:
    return estimate_kl(p, q).value


@functools.cache
def _pyro_class() -> type[FlowDistribution]:
    """The same class with Pyro's methods, made when Pyro is there: flowkit does not import it."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    class PyroFlowDistribution(FlowDistribution, TorchDistributionMixin):  # type: ignore[misc, override]
        """A flow as a Pyro distribution, with ``to_event``, ``mask`` and the rest."""

        def __reduce__(self) -> Any:
            # A class made in a function cannot be found by name; a pickle asks for it anew.
            return flow_distribution, (self.flow, self.context, tuple(self.batch_shape))

    return PyroFlowDistribution


def flow_distribution(
    flow: Density, context: Context = None, batch_shape: Sizes | None = None
) -> FlowDistribution:
    """Return the ``torch.distributions`` view of a flow, also Pyro's if Pyro is imported.

    In a Pyro model it is a sample site like any other: inside ``pyro.plate`` with one context per
    sample, observed, or as a latent variable under NUTS and SVI. ``pyro.module("flow", flow)``
    makes its parameters known to SVI.

    Args:
        flow: The flow.
        context: ``(*b, C)`` or ``None``.
        batch_shape: A batch to which that of the context is expanded.

    Returns:
        A :class:`FlowDistribution`.

    Raises:
        ShapeError: If the flow is conditional and there is no context.

    Example:
        >>> import pyro, torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import LULinear
        >>> flow = Flow(LULinear(2), StandardNormal(2))
        >>> def model(rows):
        ...     with pyro.plate("rows", len(rows)):
        ...         return pyro.sample("x", flow.distribution(), obs=rows)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3, 2))
        >>> bool(torch.allclose(trace.log_prob_sum(), 3 * flow.log_prob(torch.zeros(2))))
        True
    """
    # Code that has not imported Pyro cannot need Pyro's methods.
    kind = _pyro_class() if "pyro" in sys.modules else FlowDistribution
    return kind(flow, context, batch_shape)
