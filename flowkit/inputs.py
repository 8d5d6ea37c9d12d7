"""Checks of the tensors that a flow is given, and the remedies that fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.errors import ShapeError
from flowkit.shapes import batch_text, last_axis_remedy


def check_tensor(name: str, x: Any, dtype: torch.dtype | None, device: torch.device) -> None:
    """Refuse what is no tensor, or one of another dtype or device; integers pass.

    Args:
        name: The name of the argument.
        x: What was given.
        dtype: What the flow computes in; ``None`` for anything.
        device: Where the flow is.

    Raises:
        ShapeError: With the conversion that helps.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"Flow expected {name} as a torch.Tensor, got {type(x).__name__}; remedy: "
            f"torch.as_tensor({name}, dtype={dtype})"
        )
    if dtype is not None and (x.is_floating_point() or x.is_complex()) and x.dtype != dtype:
        raise ShapeError(
            f"this flow computes in {dtype}, but {name} is {x.dtype}; remedy: "
            f"{name}.to({dtype}), or flow.to({x.dtype})"
        )
    if x.device != device:
        raise ShapeError(
            f"this flow is on {device}, but {name} is on {x.device}; remedy: "
            f"{name}.to({str(device)!r}), or flow.to({str(x.device)!r})"
        )


def check_event(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor whose last dimensions are not the event.

    Raises:
        ShapeError: If it is not ``(*batch, *shape)``.
    """
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ShapeError(
            f"Flow expected {name} {batch_text(shape)}, got {tuple(x.shape)}"
            + last_axis_remedy(name, x, shape)
        )
