"""What the figures share: numbers from tensors or arrays, checked, and the two colours.

Data are always grey, a model and its samples always blue.
"""

from typing import Any

import numpy as np
import torch

from flowkit.errors import DataError

DATA_COLOUR = "0.45"
MODEL_COLOUR = "#1f5fa8"


def as_rows(values: Any, columns: int | None, what: str) -> np.ndarray:
    """Return a finite float64 array (n, d) with n of at least 1, from a tensor, array or list.

    Args:
        values: Rows (n, d).
        columns: The d that is needed, or None for any.
        what: Name of the argument, for the error text.

    Returns:
        The array.

    Raises:
        DataError: If the values are not such rows, or hold NaN or infinity.

    Example:
        >>> from flowkit.plotting.arrays import as_rows
        >>> as_rows([[1, 2], [3, 4]], 2, "samples").shape
        (2, 2)
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or (columns is not None and rows.shape[1] != columns):
        raise DataError(
            f"{what} expected rows (n, {columns or 'd'}) with n of at least 1, got {rows.shape}; "
            "give one point per row"
        )
    broken = int((~np.isfinite(rows).all(1)).sum())
    if broken:
        raise DataError(
            f"{what} expected finite numbers, got NaN or infinity in {broken} of {len(rows)} "
            "rows; drop those rows and say in the caption how many they were"
        )
    return rows
