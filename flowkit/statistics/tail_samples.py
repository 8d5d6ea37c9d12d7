"""Reading of samples for the statistics of tails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowkit import checks
from flowkit.arrays import as_array
from flowkit.errors import DataError

# Map each tail to a right one.
_FEWEST = 100
# Fraction of repeated numbers above which a sample counts as rounded or capped.
_TIES = 0.02
SIDES = {"both": np.abs, "right": np.positive, "left": np.negative}


def columns(x: Any) -> list[np.ndarray]:
    """Split a table into its columns, each centred at its median."""
    values = as_array(x)
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"expected a table of numbers, (rows, columns), got {type(x).__name__} of shape "
            f"{values.shape}; remedy: x[:, None] for one column"
        )
    return list((values - np.median(values, 0)).T)


def row(x: Any) -> np.ndarray:
    """Read ``(n,)`` finite numbers."""
    values = as_array(x)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"expected finite numbers (n,), got {type(x).__name__} of shape "
            f"{values.shape}; remedy: one column at a time, without missing values"
        )
    return values


def sided(owner: str, x: Any, tail: str) -> np.ndarray:
    """Numbers seen from one side, or their magnitudes."""
    turn: Callable[[np.ndarray], np.ndarray] = checks.choice(owner, "tail", tail, SIDES)
    return turn(row(x))


def tail_logs(owner: str, x: Any, tail: str) -> np.ndarray:
    """Take logarithms of what lies on the side of a tail, from the largest down."""
    values = sided(owner, x, tail)
    values = values[values > 0]
    if len(values) < _FEWEST:
        raise DataError(
            f"a tail is estimated from at least {_FEWEST} numbers other than zero on its side, "
            f"got {len(values)}"
        )
    logs = -np.sort(-np.log(values))
    half = logs[: int(0.5 * len(logs)) + 1]
    repeated = float(np.mean(half[1:] == half[:-1]))
    if repeated > _TIES:
        raise DataError(
            f"{repeated:.0%} of the larger half of the numbers repeat another: rounded or capped "
            "numbers show no tail index; remedy: add noise of one unit of rounding, leave capped "
            "numbers out"
        )
    return logs
