"""Shapes and numbers as they are given: read, and written in messages."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import Tensor

from flowkit.errors import DataError, ShapeError


def not_positive(name: str, values: Tensor) -> str | None:
    """Say that stored numbers are not all above 0; None if they are.

    Example:
        >>> import torch
        >>> not_positive("scale", torch.tensor([1.0, -2.0]))
        'scale holds -2, expected numbers above 0'
    """
    least = float(values.min()) if values.numel() else 1.0
    return None if least > 0 else f"{name} holds {least:g}, expected numbers above 0"


def as_shape(shape: Any) -> tuple[int, ...]:
    """A number or a sequence of numbers as a shape.

    Raises:
        ShapeError: If it is neither, or a size is below 0.

    Example:
        >>> as_shape(3), as_shape([2, 3])
        ((3,), (2, 3))
    """
    try:
        size = tuple(
            operator.index(n) for n in (shape if isinstance(shape, (tuple, list)) else (shape,))
        )
    except TypeError:
        size = (-1,)
    if any(n < 0 for n in size):
        raise ShapeError(f"expected a number or shape of sizes >= 0, got {shape!r}")
    return size


def codes(names: Any, what: str) -> np.ndarray:
    """Names as whole numbers from 0, in the order of the names.

    Raises:
        DataError: If there is not one name a row, or one is missing.

    Example:
        >>> codes(["b", "a", "b"], "family")
        array([1, 0, 1])
    """
    array = np.asarray(names.detach().cpu() if hasattr(names, "detach") else names)
    flat = array.reshape(-1) if array.shape[1:] == (1,) else array
    if flat.ndim != 1 or not len(flat):
        raise DataError(f"{what} expected one name a row, got an array of {array.shape}")
    if any(value is None or value != value for value in flat.tolist()):
        raise DataError(
            f"{what} expected a name for every row, got missing ones; remedy: a name of its own "
            "for each such row, or leave it out"
        )
    return np.unique(flat, return_inverse=True)[1].astype(np.int64)


def as_array(values: Any) -> np.ndarray:
    """Numbers as an array in float64; one without dimensions of NaN where they are none."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def batch_text(event_shape: tuple[int | None, ...]) -> str:
    """Write an event shape for a message: ``(..., 3, *)``."""
    return "(" + ", ".join(["...", *("*" if n is None else str(n) for n in event_shape)]) + ")"


def last_axis_remedy(name: str, value: Any, event_shape: tuple[int | None, ...]) -> str:
    """The remedy for a tensor that lacks the last axis of length one, or nothing."""
    if not isinstance(value, Tensor) or event_shape != (1,):
        return ""
    return f"; remedy: {name}.unsqueeze(-1), if it holds one number each"
