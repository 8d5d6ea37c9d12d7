"""What the figures share: numbers from tensors or arrays, checked, and the two colors.

Data are always grey, a model and its samples always blue.
"""

from typing import Any

import numpy as np

from flowkit.arrays import as_array
from flowkit.errors import DataError

DATA_COLOR = "0.45"
MODEL_COLOR = "#1f5fa8"


def as_points(values: Any, columns: int | None, what: str) -> np.ndarray:
    """Convert a tensor, array or list to finite float64 points (n, d), n at least 1.

    Args:
        values: Points (n, d).
        columns: The d that is needed, or None for any.
        what: Name of the argument, for the error text.

    Raises:
        DataError: If the values are not such points, or hold NaN or infinity.

    Example:
        >>> as_points([[1, 2], [3, 4]], 2, "samples").shape
        (2, 2)
    """
    points = as_array(values)
    if (
        points.ndim != 2
        or len(points) == 0
        or (columns is not None and points.shape[1] != columns)
    ):
        raise DataError(
            f"{what} expected points (n, {columns or 'd'}) with n of at least 1, got "
            f"{type(values).__name__} of shape {points.shape}; remedy: one point per row"
        )
    broken = int((~np.isfinite(points).all(1)).sum())
    if broken:
        raise DataError(
            f"{what} expected finite numbers, got NaN or infinity in {broken} of {len(points)} "
            "points; remedy: drop those points and say in the caption how many they were"
        )
    return points
