"""Objective and score of rounded columns, whose values stand for cells."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flowkit.density import Density
from flowkit.flow import Flow
from flowkit.objectives import Loss, MaximumLikelihood
from flowkit.objectives.base import Batch

_POINTS = 32


class DequantizedLikelihood(MaximumLikelihood):
    """Maximum likelihood of rounded data, with uniform noise over their cells in every batch.

    Args:
        width: ``(columns,)``, the width of the cells around the values; 0 for no cell.
    """

    reads = MaximumLikelihood.reads

    width: Tensor

    def __init__(self, width: Tensor) -> None:
        super().__init__()
        self.register_buffer("width", width)

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Compute the loss of samples with noise."""
        return super().forward(flow, self.start(batch, generator=generator))

    def start(self, batch: Batch, *, generator: torch.Generator | None = None) -> Batch:
        """Add uniform noise that fills the cells of rounded values, which are their centres."""
        x = batch["x"]
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return {**batch, "x": x + self.width * (noise - 0.5)}


@torch.no_grad()
def cell_log_prob(flow: Density, x: Tensor, width: np.ndarray) -> Tensor:
    r"""Compute the logarithm of the average density over the cell of each sample.

    .. math:: \log \frac1K \sum_{k=1}^K p(x + w \odot u_k)

    with K = 32 fixed points of a Sobol sequence in the centred unit cube: for one rounded column
    the composite midpoint rule. Times the widths it is the probability of the rounded sample.

    Args:
        flow: The flow.
        x: ``(samples, columns)``.
        width: ``(columns,)``, 0 for columns that were not rounded.

    Returns:
        ``(samples,)``.
    """
    rounded = np.flatnonzero(width > 0).tolist()
    if not rounded:
        return flow.log_prob(x)
    points = torch.quasirandom.SobolEngine(len(rounded)).draw(_POINTS, dtype=torch.float64)
    shifts = torch.zeros(_POINTS, x.shape[1], dtype=torch.float64)
    shifts[:, rounded] = (points + 0.5 / _POINTS - 0.5) * torch.from_numpy(width[rounded])
    shifts = shifts.to(x)
    return torch.logsumexp(torch.stack([flow.log_prob(x + s) for s in shifts]), 0) - math.log(
        _POINTS
    )
