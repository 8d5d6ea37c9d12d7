"""What draws: Monte Carlo layers, dequantisation, path weights and chains."""

from flowkit.stochastic.base import StochasticTransform
from flowkit.stochastic.chains import independence_chain, neutra_chain
from flowkit.stochastic.dequantize import Dequantize
from flowkit.stochastic.langevin import OverdampedLangevin, UnderdampedLangevin
from flowkit.stochastic.metropolis import HMC, MALA, Metropolis

__all__ = [
    "HMC",
    "MALA",
    "Dequantize",
    "Metropolis",
    "OverdampedLangevin",
    "StochasticTransform",
    "UnderdampedLangevin",
    "independence_chain",
    "neutra_chain",
]
