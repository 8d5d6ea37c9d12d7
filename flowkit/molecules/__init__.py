"""Molecules: a flow as the potential of molecular dynamics."""

from flowkit.molecules.dynamics import FlowPotential

__all__ = ["FlowPotential"]
