"""What draws: Monte Carlo layers, dequantisation, path weights and chains."""

from flowkit.stochastic.base import StochasticTransform, Walk
from flowkit.stochastic.chains import Chains, flow_mcmc
from flowkit.stochastic.dequantize import Dequantize
from flowkit.stochastic.langevin import OverdampedLangevin, UnderdampedLangevin
from flowkit.stochastic.metropolis import HMC, MALA, Metropolis

__all__ = [
    "HMC",
    "MALA",
    "Chains",
    "Dequantize",
    "Metropolis",
    "OverdampedLangevin",
    "StochasticTransform",
    "UnderdampedLangevin",
    "Walk",
    "flow_mcmc",
]
