"""Arrays and tensors as JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import DescriptionError


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
