"""Energies: densities known up to a constant, in units of kT."""

from flowkit.energies.base import Energy, NegativeLogProb, as_energy, from_callable
from flowkit.energies.conditional import Conditional
from flowkit.energies.interpolation import Interpolation

__all__ = [
    "Conditional",
    "Energy",
    "Interpolation",
    "NegativeLogProb",
    "as_energy",
    "from_callable",
]
