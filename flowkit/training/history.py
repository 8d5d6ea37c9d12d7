"""History: what happened during a fit, one number an epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """The record that :func:`flowkit.fit` returns.

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
        >>> History(epochs=[1, 2], train=[2.0, 1.5], validation=[1.9, 1.6], best_epoch=2).best
        1.6
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

    def to_dict(self) -> dict[str, Any]:
        """The record as plain Python values, ready for JSON."""
        return asdict(self)
