"""The progress of a fit: what is done, and which weights it would leave."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from flowkit.training.history import History


@dataclass
class Progress:
    """The progress of a fit from epoch to epoch.

    Attributes:
        total: Number of steps of the fit.
        per_epoch: Number of steps per epoch.
        averaged: Whether the weights are a moving average.
        history: The record.
        epoch: Number of finished epochs.
        done: Number of finished steps.
        waited: Number of epochs since the best one.
        best: Weights of the best validated epoch.
        last: Weights of the last finished epoch, where nothing is validated.
    """

    total: int
    per_epoch: int
    averaged: bool = False
    history: History = field(default_factory=History)
    epoch: int = 0
    done: int = 0
    waited: int = 0
    best: dict[str, Tensor] | None = None
    last: dict[str, Tensor] | None = None

    @property
    def salvaged(self) -> dict[str, Tensor] | None:
        """The weights that are left if the fit fails now; ``None`` before an epoch is finished."""
        return self.last if self.best is None else self.best
