"""Molecules: a flow as the potential of molecular dynamics."""

from flowkit.molecules.dynamics import FlowPotential, Trajectory

__all__ = ["FlowPotential", "Trajectory"]
