"""How to minimise an objective."""

from flowkit.training.fit import fit
from flowkit.training.history import History
from flowkit.training.validation import SplitScores, repeated_splits

__all__ = ["History", "SplitScores", "fit", "repeated_splits"]
