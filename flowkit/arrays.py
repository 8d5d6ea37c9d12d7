"""Arrays: numbers from what users give, names as integers, and arrays as JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import DataError, DescriptionError


def write_array(value: np.ndarray | Tensor) -> dict[str, Any]:
    """Numbers as base64 with their dtype and shape.

    Raises:
        DescriptionError: If the dtype is not one of numbers.
    """
    kind = "tensor" if isinstance(value, Tensor) else "array"
    array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else value
    if array.dtype.kind not in "biuf":
        raise DescriptionError(f"an array of {array.dtype} has no description; remedy: numbers")
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {kind: data, "dtype": array.dtype.str, "shape": list(array.shape)}


def read_array(value: dict[str, Any]) -> np.ndarray | Tensor:
    """Undo :func:`write_array`.

    Raises:
        DescriptionError: If the text, the dtype or the shape is damaged.
    """
    kind = "tensor" if "tensor" in value else "array"
    try:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"dtype {dtype}")
        data = np.frombuffer(base64.b64decode(value[kind], validate=True), dtype)
        array = data.reshape(value["shape"]).copy()
    except (KeyError, TypeError, ValueError) as error:
        raise DescriptionError(f"the description of an array is damaged: {error}") from None
    return torch.from_numpy(array) if kind == "tensor" else array


def as_array(values: Any) -> np.ndarray:
    """Numbers as an array in float64; one without dimensions of NaN where they are none."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def codes(names: Any, what: str) -> np.ndarray:
    """Names as integers from 0, in the order of the names.

    Example:
        >>> codes(["b", "a", "b"], "family")
        array([1, 0, 1])
    """
    array = np.asarray(names.detach().cpu() if hasattr(names, "detach") else names)
    flat = array.reshape(-1) if array.shape[1:] == (1,) else array
    if flat.ndim != 1 or not len(flat):
        raise DataError(f"{what} expected one name per row, got an array of {array.shape}")
    if any(value is None or value != value for value in flat.tolist()):
        raise DataError(
            f"{what} expected a name for every row, got missing ones; remedy: a name of its own "
            "for each such row, or leave it out"
        )
    return np.unique(flat, return_inverse=True)[1].astype(np.int64)


def not_positive(name: str, values: Tensor) -> str | None:
    """Say that stored numbers are not all above 0; None if they are.

    Example:
        >>> import torch
        >>> not_positive("scale", torch.tensor([1.0, -2.0]))
        'scale holds -2, expected numbers above 0'
    """
    least = float(values.min()) if values.numel() else 1.0
    return None if least > 0 else f"{name} holds {least:g}, expected numbers above 0"
