"""Validation by many random splits, where one would say little."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.objectives import Objective
from flowkit.training.fit import fit
from flowkit.training.history import History


@dataclass(frozen=True)
class SplitScores:
    """What :func:`repeated_splits` returns.

    Attributes:
        histories: The record of each fit.
        scores: Lowest validation loss of each, nats a row for a likelihood.
    """

    histories: tuple[History, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return statistics.mean(self.scores)

    @property
    def error(self) -> float:
        """Their standard deviation over the root of their number.

        Splits share rows, so that this is too small as an error of the mean.
        """
        return statistics.stdev(self.scores) / math.sqrt(len(self.scores))

    @property
    def epochs(self) -> int:
        """Median of the best epochs: about how long to train on all rows, without validation.

        The rate of a fit falls to zero over its epochs, unless ``scheduler=None``.
        """
        return round(statistics.median(h.best_epoch or 1 for h in self.histories))


def repeated_splits(
    build: Callable[[], Flow],
    data: Any,
    objective: Objective | None = None,
    *,
    splits: int = 5,
    validation: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> SplitScores:
    """Fit a new flow to each of some random splits of the data, and keep the validation losses.

    For some hundreds of rows, where the split alone moves the loss by more than what is to be
    chosen: compare settings by the mean over the same splits, then train the best on all rows.
    Scores are losses of the objective in evaluation mode, and compare only where these do.

    Args:
        build: Builds a new flow, started from a seed of its own for each split.
        data: As in :func:`flowkit.fit`.
        objective: As in :func:`flowkit.fit`; copied for each split.
        splits: Number of splits, at least 2.
        validation: Fraction of the rows held out.
        seed: Seed of the splits and of all fits; the same seed gives the same splits.
        **options: Further arguments of :func:`flowkit.fit`.

    Raises:
        DataError: If the number of splits or the fraction is out of its range, or from a fit.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> from flowkit.training import repeated_splits
        >>> x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
        >>> found = repeated_splits(
        ...     lambda: elementwise_flow(1), x, splits=2, epochs=3, progress=False
        ... )
        >>> len(found.scores), 1 <= found.epochs <= 3
        (2, True)
    """
    if type(splits) is not int or splits < 2:
        raise DataError(f"repeated_splits expected splits as a whole number >= 2, got {splits!r}")
    if not isinstance(validation, Real) or not 0 < float(validation) < 1:
        raise DataError(
            f"repeated_splits expected validation as a fraction between 0 and 1, got "
            f"{validation!r}"
        )
    if "checkpoint" in options:
        raise DataError("repeated_splits keeps no checkpoint: its fits are of different flows")
    histories = []
    for i in range(splits):
        with drawing_from(torch.Generator().manual_seed(seed + i)):
            flow = build()
        if bool(flow.initialized):
            raise DataError(
                "repeated_splits expected build() to return a new flow each time, got one that "
                "has been fitted; remedy: repeated_splits(lambda: coupling_flow(...), ...)"
            )
        own = copy.deepcopy(objective)
        histories.append(fit(flow, data, own, validation=validation, seed=seed + i, **options))
    scores = tuple(math.nan if h.best is None else h.best for h in histories)
    return SplitScores(tuple(histories), scores)
