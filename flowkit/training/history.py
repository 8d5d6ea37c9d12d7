"""The history of a fit, and its progress: what is done, and which weights it would leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowkit.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas

# Epochs at either end of a printed record.
_EPOCHS_SHOWN = 4


@dataclass(repr=False)
class History:
    """The losses and learning rates of every epoch of a fit, which print as a short table.

    Attributes:
        epochs: Numbers of the epochs, from 1.
        steps: Optimiser steps done at the end of each epoch.
        train: Mean training loss of each epoch.
        validation: Validation loss after each epoch; empty without validation.
        terms: The named parts of the training loss, one list each.
        learning_rate: Learning rate at the end of each epoch.
        seconds: Wall-clock time of each epoch, validation included.
        best_epoch: Epoch with the lowest validation loss, whose weights were restored.
        stopped: Why the fit ended: ``"epochs"``, ``"steps"``, ``"patience"`` or ``"callback"``;
            empty while it runs.

    Example:
        >>> from flowkit import History
        >>> history = History(
        ...     epochs=[1, 2], steps=[8, 16], train=[2.0, 1.5], validation=[1.9, 1.6],
        ...     learning_rate=[1e-3, 1e-4], seconds=[0.2, 0.1], best_epoch=2, stopped="epochs",
        ... )
        >>> history.best
        1.6
        >>> history
        History: 2 epochs, 16 steps, 0.3 s; best validation 1.6 in epoch 2; stopped by epochs
          epoch  step  train  validation  learning rate
              1     8      2         1.9          0.001
              2    16    1.5         1.6         0.0001
    """

    epochs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = ""

    @property
    def best(self) -> float | None:
        """The lowest validation loss, or ``None`` without validation."""
        return min((value for value in self.validation if value == value), default=None)

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, cells)) + 2 for cells in zip(*table, strict=True)]
        lines = [map(str.rjust, row, widths) for row in table]
        return "\n".join([self._headline(), *("".join(line).rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        rows = (f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in self._table())
        return f"<p>{self._headline()}</p><table>{''.join(rows)}</table>"

    def _headline(self) -> str:
        count = len(self.epochs)
        head = f"History: {count} epoch{'' if count == 1 else 's'}"
        if self.steps:
            head += f", {self.steps[-1]} steps"
        if self.seconds:
            head += f", {sum(self.seconds):.1f} s"
        if self.best_epoch is not None:
            head += f"; best validation {_short(self.best)} in epoch {self.best_epoch}"
        return f"{head}; stopped by {self.stopped}" if self.stopped else head

    def _columns(self) -> dict[str, list[Any]]:
        """What was recorded in every epoch, by name."""
        columns: dict[str, list[Any]] = {
            "epoch": self.epochs,
            "step": self.steps,
            "train": self.train,
            "validation": self.validation,
            "learning rate": self.learning_rate,
            **self.terms,
            "seconds": self.seconds,
        }
        count = len(self.epochs)
        return {name: values for name, values in columns.items() if len(values) == count > 0}

    def _table(self) -> list[list[str]]:
        """Names of the columns, then the first epochs, the best and the last ones."""
        columns = self._columns()
        shown = {n: c for n, c in columns.items() if n not in self.terms and n != "seconds"}
        count, best = len(self.epochs), (self.best_epoch or 0) - 1
        rows = [i for i in range(count) if min(i, count - 1 - i) < _EPOCHS_SHOWN or i == best]
        table, before = [list(shown)] if shown else [], -1
        for i in rows if shown else ():
            if i != before + 1:
                table.append(["...", *([""] * (len(shown) - 1))])
            table.append([_short(values[i]) for values in shown.values()])
            before = i
        return table

    def to_frame(self) -> pandas.DataFrame:
        """The record as a pandas DataFrame, one row per epoch, with the terms of the loss.

        Raises:
            MissingDependencyError: If pandas is not installed.

        Example:
            >>> from flowkit import History
            >>> History(epochs=[1, 2], train=[2.0, 1.5]).to_frame()
                   train
            epoch
            1        2.0
            2        1.5
        """
        try:
            import pandas
        except ImportError:
            raise MissingDependencyError(
                "History.to_frame needs pandas; remedy: pip install pandas"
            ) from None
        columns = self._columns() or {"epoch": []}
        return pandas.DataFrame(columns).set_index("epoch")

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        return asdict(self)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@dataclass
class Progress:
    """The progress of a fit from epoch to epoch.

    Attributes:
        total: Number of steps of the fit.
        averaged: Whether the weights are a moving average.
        history: The record.
        epoch: Number of finished epochs.
        done: Number of finished steps.
        waited: Number of epochs since the best one.
        weights: What is left if the fit ends now: the weights of the best validated epoch, or of
            the last finished one where nothing is validated; ``None`` before that.
    """

    total: int
    averaged: bool = False
    history: History = field(default_factory=History)
    epoch: int = 0
    done: int = 0
    waited: int = 0
    weights: dict[str, Tensor] | None = None
