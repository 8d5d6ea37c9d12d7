"""Numbers about samples and models."""

from flowkit.statistics.mcmc import Chains, flow_mcmc
from flowkit.statistics.weights import (
    Estimate,
    FreeEnergyProfile,
    SmoothedWeights,
    bennett_acceptance_ratio,
    effective_sample_size,
    free_energy_profile,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)

__all__ = [
    "Chains",
    "Estimate",
    "FreeEnergyProfile",
    "SmoothedWeights",
    "bennett_acceptance_ratio",
    "effective_sample_size",
    "flow_mcmc",
    "free_energy_profile",
    "log_partition",
    "pareto_smooth",
    "reweighted_mean",
]
