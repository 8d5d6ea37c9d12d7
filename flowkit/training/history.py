"""The history of a fit, and its progress: what is done, and which weights it would leave."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowkit.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas

# Validations at either end of a printed record.
_SHOWN = 4


@dataclass(repr=False)
class History:
    """The losses and learning rates of a fit from validation to validation, printed as a table.

    A fit of so many ``epochs`` is recorded after each, any other every 25 steps or so; without
    validation at the same times.

    Attributes:
        steps: Optimiser steps done at each record.
        epochs: Passes through the data done at each record; of 100 steps each without data.
        train: Mean training loss since the record before.
        validation: Validation loss; empty without validation.
        terms: The named parts of the training loss, one list each.
        learning_rate: Learning rate.
        seconds: Wall-clock time since the record before, validation included.
        start: Validation loss before the first step; ``None`` without validation, or where it is
            not finite.
        started: Name of the start that was chosen, of those in ``flow.starts``; empty if there was
            no choice.
        best_step: Step with the lowest validation loss, whose weights were restored; 0 if nothing
            was better than the start, or clearly better than a start that the fit chose.
        annealed: Step at which the rate began to fall because validation had stopped improving;
            ``None`` if it did not.
        plan: What the fit chose: samples, batches, optimiser, schedule, at most how many steps.
        stopped: Why the fit ended: ``"epochs"``, ``"steps"``, ``"patience"`` or ``"callback"``;
            empty while it runs.

    Example:
        >>> from flowkit import History
        >>> history = History(
        ...     steps=[8, 16], epochs=[1.0, 2.0], train=[2.0, 1.5], validation=[1.9, 1.6],
        ...     learning_rate=[1e-3, 1e-4], seconds=[0.2, 0.1], best_step=16, stopped="epochs",
        ... )
        >>> history.best
        1.6
        >>> history
        History: 16 steps (2 epochs), 0.3 s; best validation 1.6 at step 16; stopped by epochs
          step  epoch  train  validation  learning rate
             8      1      2         1.9          0.001
            16      2    1.5         1.6         0.0001
    """

    steps: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    start: float | None = None
    started: str = ""
    best_step: int | None = None
    annealed: int | None = None
    plan: str = ""
    stopped: str = ""

    @property
    def best(self) -> float | None:
        """The lowest validation loss, or that of the start where the start was kept.

        ``None`` without validation.
        """
        if self.best_step == 0:
            return self.start
        values = self.validation if self.start is None else [self.start, *self.validation]
        return min((value for value in values if value == value), default=None)

    def __repr__(self) -> str:
        table = self._table()
        widths = [max(map(len, cells)) + 2 for cells in zip(*table, strict=True)]
        lines = [map(str.rjust, row, widths) for row in table]
        return "\n".join([self._headline(), *("".join(line).rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        rows = (f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in self._table())
        return f"<p>{self._headline()}</p><table>{''.join(rows)}</table>"

    def _headline(self) -> str:
        head = f"History: {self.steps[-1] if self.steps else 0} steps"
        if self.epochs:
            head += f" ({_short(self.epochs[-1])} epochs)"
        if self.seconds:
            head += f", {sum(self.seconds):.1f} s"
        if self.best_step is not None:
            head += f"; best validation {_short(self.best)} at step {self.best_step}"
        if self.annealed is not None:
            head += f"; annealed from step {self.annealed}"
        return f"{head}; stopped by {self.stopped}" if self.stopped else head

    def _columns(self) -> dict[str, list[Any]]:
        """What was recorded every time, by name."""
        columns: dict[str, list[Any]] = {
            "step": self.steps,
            "epoch": self.epochs,
            "train": self.train,
            "validation": self.validation,
            "learning rate": self.learning_rate,
            **self.terms,
            "seconds": self.seconds,
        }
        count = len(self.steps)
        return {name: values for name, values in columns.items() if len(values) == count > 0}

    def _table(self) -> list[list[str]]:
        """Names of the columns, then the first records, the best and the last ones."""
        columns = self._columns()
        shown = {n: c for n, c in columns.items() if n not in self.terms and n != "seconds"}
        count = len(self.steps)
        best = self.steps.index(self.best_step) if self.best_step in self.steps else -1
        rows = [i for i in range(count) if min(i, count - 1 - i) < _SHOWN or i == best]
        table, before = [list(shown)] if shown else [], -1
        for i in rows if shown else ():
            if i != before + 1:
                table.append(["...", *([""] * (len(shown) - 1))])
            table.append([_short(values[i]) for values in shown.values()])
            before = i
        return table

    def to_frame(self) -> pandas.DataFrame:
        """The record as a pandas DataFrame, indexed by step, with the terms of the loss.

        Raises:
            MissingDependencyError: If pandas is not installed.

        Example:
            >>> from flowkit import History
            >>> History(steps=[8, 16], train=[2.0, 1.5]).to_frame()
                  train
            step
            8       2.0
            16      1.5
        """
        try:
            import pandas
        except ImportError:
            raise MissingDependencyError(
                "History.to_frame needs pandas; remedy: pip install pandas"
            ) from None
        columns = self._columns() or {"step": []}
        return pandas.DataFrame(columns).set_index("step")

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        return asdict(self)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@dataclass
class Progress:
    """The progress of a fit from record to record.

    Attributes:
        total: Number of steps of the fit, at most; exactly, once it anneals.
        averaged: Whether the weights are a moving average.
        history: The record.
        done: Number of finished steps.
        waited: Number of validations since the best one.
        weights: What is left if the fit ends now: the best validated weights, or where nothing is
            validated those of the last record; ``None`` before that.
        start: The weights before the first step, where they were validated.
    """

    total: int
    averaged: bool = False
    history: History = field(default_factory=History)
    done: int = 0
    waited: int = 0
    weights: dict[str, Tensor] | None = None
    start: dict[str, Tensor] | None = None
