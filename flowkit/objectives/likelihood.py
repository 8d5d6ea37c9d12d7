"""Maximum likelihood."""

from __future__ import annotations

from flowkit.config import register
from flowkit.flow import Flow
from flowkit.numerics.types import Generator
from flowkit.objectives.base import Batch, Loss, Objective, weighted_mean


@register
class MaximumLikelihood(Objective):
    r"""Mean negative log-density, :math:`-\frac1n \sum_i w_i \log p(x_i | c_i)`, in nats.

    Reads ``x``, and if present ``context`` and ``weight``; weights should have mean one over the
    data, where ``fit`` brings them. For a flow with a stochastic layer the
    log-density is replaced by its one-path lower bound.

    Example:
        >>> import torch
        >>> from flowkit import MaximumLikelihood, elementwise_flow
        >>> loss = MaximumLikelihood()(elementwise_flow(1), {"x": torch.zeros(4, 1)})
        >>> round(loss.value.item(), 4)
        0.9189
    """

    compiles = True
    reads = frozenset({"x", "context", "weight"})
    diverges_at_ties = True

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the mean negative log-density."""
        x, context = batch["x"], batch.get("context")
        if flow.stochastic:
            score = flow.log_prob_bound(x, context, generator=generator)
        else:
            score = flow.log_prob(x, context)
        nll = -weighted_mean(score, batch.get("weight"))
        return Loss(nll, {"nll": nll.detach()})


@register
class StochasticMaximumLikelihood(Objective):
    r"""Maximum likelihood by contrasting the energies of data and of samples: no determinant.

    .. math:: \frac1n \sum_i w_i E(x_i) - \frac1n \sum_i w_i E(x_i^-), \qquad x_i^- \sim p

    Its expected gradient is that of the negative log-likelihood, for
    :math:`\nabla \log Z = -E_p[\nabla E]`; no gradient goes through the samples. Sampling costs
    an inverse of every layer, but no determinant. The value says nothing about the fit: its
    expectation is zero for a perfect one, and for many others. Validate with the likelihood.

    Reads ``x``, and ``context`` and ``weight`` if present.

    Raises:
        StochasticFlowError: If a layer of the flow is stochastic.

    References:
        Younes 1999, Stochastics 65, 177; Chao et al. 2023, arXiv 2305.15267, for flows.

    Example:
        >>> import torch
        >>> from flowkit import StochasticMaximumLikelihood, elementwise_flow
        >>> flow = elementwise_flow(1, scalar="affine")
        >>> loss = StochasticMaximumLikelihood()(flow, {"x": torch.randn(100, 1)})
        >>> loss.value.shape
        torch.Size([])
    """

    reads = frozenset({"x", "context", "weight"})
    diverges_at_ties = True

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the difference of the mean energies."""
        x, context, weight = batch["x"], batch.get("context"), batch.get("weight")
        shape = x.shape[:1] if context is None else ()
        samples = flow.sample(shape, context, generator)
        data = weighted_mean(flow.energy(x, context), weight)
        own = weighted_mean(flow.energy(samples, context), weight)
        return Loss(data - own, {"energy": data.detach(), "energy_of_samples": own.detach()})
