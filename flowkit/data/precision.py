"""The precision that a table needs: widths of rounded columns, and the dtype to train in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flowkit.errors import DataError

# Rounding to float32 would be seen in a column whose spread is at most this part of its size.
_SINGLE_SPREAD = 1e-3


def size_and_spread(values: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute value per column, or 1 if that is 0, and the spread relative to it.

    Args:
        values: ``(samples, columns)``.
        width: ``(columns,)``, the width of the noise that will be added to each; 0 for none.
    """
    size = np.maximum(np.abs(values).max(0), width)
    size = np.where(size > 0, size, 1.0)
    return size, np.hypot((values / size).std(0), width / size)


def needs_double(size: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Which columns, by :func:`size_and_spread`, lose digits in float32 or near its range.

    Example:
        >>> import numpy as np
        >>> table = np.array([[1.0, 20260101.0], [2.0, 20260102.0]])
        >>> needs_double(*size_and_spread(table, np.zeros(2)))
        array([False,  True])
    """
    return (spread <= _SINGLE_SPREAD) | (size <= 1e-15) | (size >= 1e15)


def choose_dtype(values: np.ndarray, width: np.ndarray, names: Sequence[Any]) -> torch.dtype:
    """Choose the dtype to train in, float32 where it holds the digits of every column.

    Args:
        values: ``(samples, columns)``, called X in messages.
        width: ``(columns,)``, the width of the noise that will be added to each; 0 for none.
        names: Names of the columns.

    Raises:
        DataError: If a column is constant, or its squares leave the range of float64.
    """
    size, spread = size_and_spread(values, width)
    constant = (
        "are constant, so they have no density; remedy: drop them, or set dequantize to the width "
        "to which they were rounded"
    )
    far = "hold numbers whose squares leave the range of float64; remedy: change their units"
    for why, wrong in {constant: spread <= 1e-10, far: (size < 1e-100) | (size > 1e100)}.items():
        if wrong.any():
            named = ", ".join(repr(names[i]) for i in np.flatnonzero(wrong).tolist())
            raise DataError(f"column(s) {named} of X {why}")
    return torch.float64 if needs_double(size, spread).any() else torch.float32
