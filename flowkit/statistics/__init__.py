"""Estimates from samples and importance weights: free energies, tails, effective sizes."""

from flowkit.statistics.tail_distances import expected_shortfall, tail_area
from flowkit.statistics.tail_estimates import hill_estimate, kernel_estimate, moment_estimate
from flowkit.statistics.tails import tail_confusion, tail_indices, tail_verdict
from flowkit.statistics.weights import (
    bennett_acceptance_ratio,
    effective_sample_size,
    free_energy_profile,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)

__all__ = [
    "bennett_acceptance_ratio",
    "effective_sample_size",
    "expected_shortfall",
    "free_energy_profile",
    "hill_estimate",
    "kernel_estimate",
    "log_partition",
    "moment_estimate",
    "pareto_smooth",
    "reweighted_mean",
    "tail_area",
    "tail_confusion",
    "tail_indices",
    "tail_verdict",
]
