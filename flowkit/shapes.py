"""Shapes of samples and events, in numbers and in words, and checks of what a flow is given."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from flowkit import checks
from flowkit.checks import elements, shown
from flowkit.errors import ShapeError


def as_shape(shape: Any) -> tuple[int, ...]:
    """A sample shape: an integer or a sequence of integers, which may be 0.

    Example:
        >>> as_shape(3), as_shape([2, 3])
        ((3,), (2, 3))
    """
    try:
        size = tuple(
            operator.index(n) for n in (shape if isinstance(shape, (tuple, list)) else (shape,))
        )
    except (TypeError, RuntimeError):
        size = (-1,)
    if isinstance(shape, bool) or any(n < 0 for n in size):
        raise ShapeError(f"expected shape as an integer or sizes >= 0, got {shown(shape)}")
    elements("the shape of samples", *size)
    return size


def batch_text(event_shape: tuple[int | None, ...]) -> str:
    """Write an event shape for a message: ``(..., 3, *)``."""
    return "(" + ", ".join(["...", *("*" if n is None else str(n) for n in event_shape)]) + ")"


def last_axis_remedy(name: str, value: Any, event_shape: tuple[int | None, ...]) -> str:
    """The remedy for a tensor that lacks the last axis of length one, or nothing."""
    if not isinstance(value, Tensor) or event_shape != (1,):
        return ""
    return f"; remedy: {name}.unsqueeze(-1), if it holds one number each"


def check_event(owner: str, name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Refuse a tensor that is not ``(*batch, *shape)``, where ``None`` stands for any size."""
    event = x.shape[max(x.ndim - len(shape), 0) :]
    fits = (want in (None, got) for want, got in zip(shape, event, strict=False))
    if len(event) < len(shape) or not all(fits):
        raise ShapeError(
            f"{owner} expected {name} {batch_text(shape)}, got {tuple(x.shape)}"
            + last_axis_remedy(name, x, shape)
        )


def open_shape(owner: str, name: str, shape: Any) -> tuple[int | None, ...]:
    """Check the shape of an event whose sizes may be unknown, or that is a scalar."""
    sizes = [shape] if checks.is_integer(shape) else checks.as_list(shape)
    if sizes is None:
        raise checks.fail(owner, name, "an integer or a sequence of integers or None", shape)
    known = [1 if n is None else n for n in sizes]
    found = checks.event_shape(owner, known, name) if known else ()
    return tuple(None if n is None else size for n, size in zip(sizes, found, strict=True))


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
        values = f"{name}.to_numpy()" if hasattr(x, "to_numpy") else name
        raise ShapeError(
            f"Flow expected {name} as a torch.Tensor, got {type(x).__name__}; remedy: "
            f"torch.as_tensor({values}, dtype={dtype})"
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
