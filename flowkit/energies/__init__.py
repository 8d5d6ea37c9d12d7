"""Energies: densities known up to a constant, in units of kT."""

from flowkit.energies.base import Energy, NegativeLogProb, from_callable
from flowkit.energies.conditional import ConditionalEnergy
from flowkit.energies.interpolation import Interpolation

__all__ = [
    "ConditionalEnergy",
    "Energy",
    "Interpolation",
    "NegativeLogProb",
    "from_callable",
]
