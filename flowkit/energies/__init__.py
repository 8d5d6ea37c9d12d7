"""Energies: densities known up to a constant, in units of kT."""

from flowkit.energies.base import Energy, NegativeLogProb, as_energy, from_callable
from flowkit.energies.conditional import Conditional
from flowkit.energies.interpolation import Interpolation
from flowkit.energies.picture import Picture
from flowkit.energies.toy import TOYS, DoubleWell, Funnel, GaussianMixture, Ring

__all__ = [
    "TOYS",
    "Conditional",
    "DoubleWell",
    "Energy",
    "Funnel",
    "GaussianMixture",
    "Interpolation",
    "NegativeLogProb",
    "Picture",
    "Ring",
    "as_energy",
    "from_callable",
]
