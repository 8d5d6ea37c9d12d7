"""Fit flows: minimise an objective over data."""

from flowkit.training.fit import fit
from flowkit.training.history import History as History
from flowkit.training.splits import repeated_splits

__all__ = ["fit", "repeated_splits"]
