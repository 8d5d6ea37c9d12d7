"""Energies: densities known up to a constant, in units of kT."""

from flowkit.energies.base import CallableEnergy, Energy, NegativeLogProb
from flowkit.energies.conditional import ConditionalEnergy
from flowkit.energies.interpolation import Interpolation

__all__ = [
    "CallableEnergy",
    "ConditionalEnergy",
    "Energy",
    "Interpolation",
    "NegativeLogProb",
]
