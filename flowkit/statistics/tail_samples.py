"""Samples as the statistics of tails read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from flowkit.checks import as_array
from flowkit.errors import DataError

# What turns a tail into a right one.
SIDES = {"both": np.abs, "right": np.positive, "left": np.negative}


def _values(x: Any) -> np.ndarray:
    return as_array(x.detach().cpu().double() if isinstance(x, Tensor) else x)


def columns(x: Any) -> list[np.ndarray]:
    """The columns of a table, each about its median."""
    values = _values(x)
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"expected a table of numbers, (rows, columns), got {type(x).__name__} of shape "
            f"{values.shape}; remedy: x[:, None] for one column"
        )
    return list((values - np.median(values, 0)).T)


def row(x: Any) -> np.ndarray:
    """A row of finite numbers, or an error."""
    values = _values(x)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"expected a row of finite numbers, got {type(x).__name__} of shape "
            f"{values.shape}; remedy: one column at a time, without missing values"
        )
    return values


def sided(values: np.ndarray, tail: str, positive: bool) -> np.ndarray:
    """Numbers seen from one side, or their magnitudes; only the positive ones, if asked."""
    if tail not in SIDES:
        raise DataError(f"tail expected 'both', 'right' or 'left', got {tail!r}")
    seen = SIDES[tail](values)
    return seen[seen > 0] if positive else seen
