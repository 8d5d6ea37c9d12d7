"""Maximum likelihood."""

from __future__ import annotations

import torch

from flowkit.flow import Flow
from flowkit.objectives.base import Batch, Loss, Objective, mean_over_rows


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
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the mean negative log-density."""
        x, context = batch["x"], batch.get("context")
        if flow.stochastic:
            score = flow.log_prob_bound(x, context, generator=generator)
        else:
            score = flow.log_prob(x, context)
        nll = -mean_over_rows(score, batch.get("weight"))
        return Loss(nll, {"nll": nll.detach()})
