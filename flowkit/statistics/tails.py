"""Verdicts on tails: whether they are heavy, by three estimators, for samples and for columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowkit import checks
from flowkit.errors import DataError
from flowkit.statistics.tail_estimates import (
    TailEstimate,
    hill_estimate,
    kernel_estimate,
    moment_estimate,
)
from flowkit.statistics.tail_samples import SIDES, columns, tail_logs

#: From this index on a tail is as good as light.
_LIGHT_INDEX = 10.0


@dataclass(frozen=True)
class TailVerdict:
    """The verdict of three estimators whether a tail is heavy.

    Attributes:
        heavy: The verdict.
        index: The tail index of a heavy tail; infinite for a light one.
        interval: Of a heavy tail, (lower, upper): the index, and 95 % of the sampling error of
            Hill's estimate from a quarter of the order statistics that the index is taken from.
            The index balances that error with a bias; fewer order statistics leave the bias
            behind. Over 60 samples of 10,000, the interval held the index of t distributions with
            2, 3 and 5 degrees of freedom in 97, 95 and 88 %, that of a Pareto law in 92 %, and of
            a mixture of two shifted t, whose body looks like a heavier tail, in 15 %.
        hill: Hill's estimate.
        moment: The moment estimate.
        kernel: The kernel estimate.
    """

    heavy: bool
    index: float
    interval: tuple[float, float]
    hill: TailEstimate
    moment: TailEstimate
    kernel: TailEstimate


def tail_verdict(
    x: Any, *, tail: str = "both", resamples: int = 100, seed: int = 0
) -> TailVerdict:
    """Decide whether a tail is heavy: it is light if neither moments nor kernel find it heavy.

    The index is Hill's, whose estimate is positive for light tails too and does not enter the
    verdict; a tail of an index above 10 counts as light. Tails that fall slower
    than every normal, but faster than every power, such as those of a Laplace density, may be
    called heavy.

    Args and errors are those of :func:`hill_estimate`.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311, for the rule.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_verdict
        >>> rng = np.random.default_rng(0)
        >>> tail_verdict(rng.normal(size=10_000)).heavy
        False
        >>> verdict = tail_verdict(rng.standard_t(2, 10_000))
        >>> verdict.heavy, 1.5 < verdict.index < 2.5
        (True, True)
    """
    options: dict[str, Any] = {"tail": tail, "resamples": resamples, "seed": seed}
    hill, moment, kernel = (
        estimate(x, **options) for estimate in (hill_estimate, moment_estimate, kernel_estimate)
    )
    heavy = max(moment.xi, kernel.xi) > 0 and hill.index <= _LIGHT_INDEX
    if not heavy:
        return TailVerdict(False, math.inf, (math.inf, math.inf), hill, moment, kernel)
    n = len(tail_logs("tail_verdict", x, tail))
    few = max(round(hill.fraction * n / 4), 10)
    index, error = hill_estimate(x, few, tail=tail).index, 1.96 / math.sqrt(few)
    ends = (min(hill.index, index / (1 + error)), max(hill.index, index / (1 - error)))
    return TailVerdict(True, hill.index, ends, hill, moment, kernel)


def tail_indices(x: Any, *, tail: str = "both", resamples: int = 100, seed: int = 0) -> list[Any]:
    """Estimate the tail index of every column, infinite where the tail is light.

    Taken about each column's median, by :func:`tail_verdict`.

    Args:
        x: ``(n, columns)`` numbers, at least 100 on the side of the tail.
        tail: ``"both"`` for magnitudes, ``"right"`` or ``"left"`` for one side, ``"apart"`` for a
            pair (left, right) per column.
        resamples: As in :func:`hill_estimate`.
        seed: Seed of the resamples.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: If x is no table of enough finite numbers.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_indices
        >>> rng = np.random.default_rng(0)
        >>> x = np.stack([rng.normal(size=2000), rng.standard_t(2, 2000)], -1)
        >>> light, heavy = tail_indices(x)
        >>> light, 1 < heavy < 3
        (inf, True)
    """
    checks.choice("tail_indices", "tail", tail, (*SIDES, "apart"))
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    sides = ("left", "right") if tail == "apart" else (tail,)
    found = [
        tuple(_verdict(i, column, tail=side, **options).index for side in sides)
        for i, column in enumerate(columns(x))
    ]
    return found if tail == "apart" else [pair[0] for pair in found]


def tail_confusion(tails: Sequence[Any], x: Any, **options: Any) -> np.ndarray:
    """Count how many columns of a sample have the tails that they should, about their medians.

    Args:
        tails: The tail index of each column, infinite or ``None`` where it is light, or a pair of
            its left and its right one, as from :func:`tail_indices`.
        x: ``(n, columns)`` numbers.
        **options: Those of :func:`tail_verdict`.

    Returns:
        ``(2, 2)`` counts: light and heavy by ``tails`` in rows, by verdict on x in columns.

    Raises:
        ArgumentError, DataError: As :func:`tail_indices`, and if there is not one tail per
            column.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_confusion
        >>> rng = np.random.default_rng(0)
        >>> x = np.stack([rng.normal(size=2000), rng.standard_t(2, 2000)], -1)
        >>> tail_confusion([None, 2.0], x)
        array([[1, 0],
               [0, 1]])
    """
    table = columns(x)
    if checks.as_list(tails) is None or len(tails) != len(table):
        expected = f"one tail index, or a pair of them, for each of {len(table)} columns"
        raise checks.fail("tail_confusion", "tails", expected, tails)
    counts = np.zeros((2, 2), dtype=int)
    for i, (tail, column) in enumerate(zip(tails, table, strict=True)):
        pair = tail if isinstance(tail, (tuple, list)) else (tail,)
        heavy = any(t is not None and t < math.inf for t in pair)
        counts[int(heavy), int(_verdict(i, column, **options).heavy)] += 1
    return counts


def _verdict(i: int, column: np.ndarray, **options: Any) -> TailVerdict:
    """Judge a column; an error says which one it was."""
    try:
        return tail_verdict(column, **options)
    except DataError as error:
        raise DataError(f"column {i}: {error}") from error
