"""History: what happened during a fit, one number an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# Epochs at either end of a printed record.
_ROWS_SHOWN = 4
_WIDTHS = {"epoch": 5, "step": 6}


@dataclass(repr=False)
class History:
    """The record that :func:`flowkit.fit` returns; it prints as a short table.

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
          epoch    step        train   validation  learning rate
              1       8            2          1.9          0.001
              2      16          1.5          1.6         0.0001
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
        count = len(self.epochs)
        head = f"History: {count} epoch{'' if count == 1 else 's'}"
        if self.steps:
            head += f", {self.steps[-1]} steps"
        if self.seconds:
            head += f", {sum(self.seconds):.1f} s"
        if self.best_epoch is not None:
            head += f"; best validation {_short(self.best)} in epoch {self.best_epoch}"
        if self.stopped:
            head += f"; stopped by {self.stopped}"
        columns: dict[str, list[Any]] = {
            "epoch": self.epochs,
            "step": self.steps,
            "train": self.train,
            "validation": self.validation,
            "learning rate": self.learning_rate,
        }
        shown = {name: values for name, values in columns.items() if len(values) == count > 0}
        if not shown:
            return head
        rows = list(range(count))
        if count > 2 * _ROWS_SHOWN:
            rows = rows[:_ROWS_SHOWN] + rows[-_ROWS_SHOWN:]
        best = (self.best_epoch or 0) - 1
        if best in range(count) and best not in rows:
            rows.insert(_ROWS_SHOWN, best)
        width = {
            name: max(len(name), 3 if name in ("epoch", "step") else 11) + 2 for name in shown
        }
        lines = ["".join(f"{name:>{width[name]}}" for name in shown)]
        before = -1
        for i in rows:
            if i != before + 1:
                lines.append(f"{'...':>7}")
            before = i
            lines.append(
                "".join(f"{_short(values[i]):>{width[name]}}" for name, values in shown.items())
            )
        return "\n".join([head, *lines])

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        return asdict(self)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
