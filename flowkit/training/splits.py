"""Validate by many random splits, where one is too noisy."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.objectives import Objective
from flowkit.training.fit import fit
from flowkit.training.history import History


@dataclass(frozen=True)
class SplitScores:
    """Validation losses of several splits, as :func:`repeated_splits` returns them.

    Attributes:
        histories: The record of each fit.
        scores: Lowest validation loss of each, in nats per sample for a likelihood.
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

        Splits share samples, so that this is too small as an error of the mean.
        """
        return statistics.stdev(self.scores) / math.sqrt(len(self.scores))

    @property
    def steps(self) -> int:
        """Median of the best steps: about how long to train on all samples, without validation."""
        return max(1, round(statistics.median(h.best_step or 0 for h in self.histories)))


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
    """Fit a new flow to each of several random splits of the data, and collect validation losses.

    For some hundreds of samples, where the split alone changes the loss by more than what is to be
    chosen: compare settings by the mean over the same splits, then train the best on all samples.
    Scores are losses of the objective in evaluation mode, and compare only where these do.

    Args:
        build: Builds a new flow, started from a seed of its own for each split.
        data: As in :func:`flowkit.fit`.
        objective: As in :func:`flowkit.fit`; copied for each split.
        splits: Number of splits, at least 2.
        validation: Fraction of the samples held out.
        seed: Seed of the splits and of all fits; the same seed gives the same splits.
        **options: Further arguments of :func:`flowkit.fit`.

    Raises:
        ArgumentError: If an argument is out of its range, or ``build`` returns a fitted flow.
        DataError: From a fit.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> from flowkit.training import repeated_splits
        >>> x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
        >>> result = repeated_splits(
        ...     lambda: elementwise_flow(1), x, splits=2, epochs=3, progress=False
        ... )
        >>> len(result.scores), result.steps >= 1
        (2, True)
    """
    splits = checks.integer("repeated_splits", "splits", splits, least=2)
    checks.number("repeated_splits", "validation", validation, above=0, below=1)
    seed = checks.integer("repeated_splits", "seed", seed, least=0)
    if "checkpoint" in options:
        raise ArgumentError(
            "repeated_splits writes no checkpoint, got checkpoint=...: its fits are of different "
            "flows; remedy: leave it out"
        )
    histories = []
    for i in range(splits):
        with drawing_from(torch.Generator().manual_seed(seed + i)):
            flow = build()
        if bool(flow.initialized):
            raise ArgumentError(
                "repeated_splits expected build() to return a new flow each time, got one that "
                "has been fitted; remedy: repeated_splits(lambda: coupling_flow(...), ...)"
            )
        own = copy.deepcopy(objective)
        histories.append(fit(flow, data, own, validation=validation, seed=seed + i, **options))
    scores = tuple(math.nan if h.best is None else h.best for h in histories)
    return SplitScores(tuple(histories), scores)
