"""Estimates from samples and importance weights: free energies, tails, effective sizes."""

from flowkit.statistics.tail_estimates import tail_estimate
from flowkit.statistics.tails import expected_shortfall, tail_area, tail_indices, tail_verdict
from flowkit.statistics.weights import (
    effective_sample_size,
    free_energy_profile,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)

__all__ = [
    "effective_sample_size",
    "expected_shortfall",
    "free_energy_profile",
    "log_partition",
    "pareto_smooth",
    "reweighted_mean",
    "tail_area",
    "tail_estimate",
    "tail_indices",
    "tail_verdict",
]
