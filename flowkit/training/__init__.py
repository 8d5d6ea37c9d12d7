"""How to minimise an objective."""

from flowkit.training.fit import fit
from flowkit.training.history import History

__all__ = ["History", "fit"]
