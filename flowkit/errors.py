"""The errors that flowkit raises on purpose: what was expected, what came, and the remedy.

Every class also inherits the built-in exception that a caller would expect, so that
``except ValueError`` keeps working. This module imports nothing of flowkit.
"""

from __future__ import annotations

from collections.abc import Sequence


class FlowkitError(Exception):
    """Base class of every error that flowkit raises on purpose."""


class ArgumentError(FlowkitError, ValueError):
    """An argument is of the wrong kind or out of its range; see :mod:`flowkit.checks`."""


class ShapeError(FlowkitError, ValueError):
    """A tensor has the wrong shape, dtype or number of features for the object it was given to."""


class DataError(FlowkitError, ValueError):
    """Data cannot be used as they are: empty, constant, not finite, not numeric, or misshapen."""


class OutsideError(DataError):
    """Rows of data lie outside the domain of a layer, where the density is zero.

    Args:
        text: The message, with ``{rows}`` where the numbers of the rows belong.
        rows: These numbers, in the batch that the layer was given.
    """

    def __init__(self, text: str, rows: Sequence[int]) -> None:
        self.text, self.rows = text, tuple(rows)
        super().__init__(text.replace("{rows}", str(list(self.rows))))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[int, ...]]]:
        return type(self), (self.text, self.rows)

    def renumbered(self, numbers: Sequence[int]) -> OutsideError:
        """The same error with the numbers that the rows have in the whole of the data."""
        return OutsideError(self.text, sorted(int(numbers[row]) for row in self.rows))


class DescriptionError(FlowkitError, TypeError):
    """A part cannot be described, or a description cannot be built; see :mod:`flowkit.config`."""


class FlowFileError(FlowkitError, ValueError):
    """A file is not a flow file, is damaged, or does not fit the flow that it describes."""


class CheckpointError(FlowkitError, ValueError):
    """A training checkpoint is damaged or belongs to another flow or to other settings."""


class ConvergenceError(FlowkitError, ArithmeticError):
    """A root search ended without the requested accuracy."""


class NonFiniteLossError(FlowkitError, ArithmeticError):
    """The loss became NaN or infinite during training."""


class NonFiniteEnergyError(FlowkitError, ArithmeticError):
    """An energy or a force became NaN or infinite in a simulation."""


class ProcessError(FlowkitError, RuntimeError):
    """A fit ends in this process because it failed in another one, whose error says why."""


class StochasticFlowError(FlowkitError, TypeError):
    """An exact density was requested from a flow that holds a stochastic layer."""


class NotInvertibleError(FlowkitError, NotImplementedError):
    """A direction, distribution function or sampler was requested that does not exist."""


class MissingDependencyError(FlowkitError, ImportError):
    """An optional package is needed; the message carries the pip line."""


class ConversionError(FlowkitError, TypeError):
    """A part of a model has no counterpart in the other library."""


class ContractError(FlowkitError, AssertionError):
    """A transform breaks a rule of the contract; see :mod:`flowkit.testing`."""
