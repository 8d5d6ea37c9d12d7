"""Checks of the values of energies: one number per sample, of the precision of the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.errors import DataError


def one_number_each(value: Any, x: Tensor, event_ndim: int, name: str = "the energy") -> Tensor:
    """Return an energy with one number per sample of ``x``, or raise what is wrong with it.

    Args:
        value: The value that the energy returned.
        x: Where it was computed, ``(*batch, *event)``.
        event_ndim: Number of event dimensions of ``x``; 0 for a force, with a number for each
            coordinate.
        name: The name of the function in messages.

    Raises:
        DataError: If the value is no tensor of the shape ``(*batch,)``, of a floating dtype of at
            least the precision of ``x``, on its device.
    """
    expected = tuple(x.shape[: x.ndim - event_ndim])
    if not isinstance(value, Tensor) or tuple(value.shape) != expected:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        each, rest = (
            ("sample", ", and sum over the coordinates only") if event_ndim else ("coordinate", "")
        )
        raise DataError(
            f"{name} returned {got} for samples {tuple(x.shape)}; expected a torch.Tensor with "
            f"one number per {each}, {expected}; remedy: compute it with torch{rest}"
        )
    if value.device != x.device:
        raise DataError(
            f"{name} returned a tensor on {value.device} for samples on {x.device}; remedy: "
            "compute it where x is, with constants on x.device"
        )
    coarse = not value.is_floating_point() or (
        torch.promote_types(value.dtype, x.dtype) != value.dtype
        # Mixed precision lowers what it computes on purpose.
        and not torch.is_autocast_enabled(x.device.type)
    )
    if coarse:
        raise DataError(
            f"{name} returned {value.dtype} for samples in {x.dtype}, which loses digits; "
            "remedy: compute it in the dtype of x, with constants in x.dtype"
        )
    return value


def varies(energy: Tensor) -> bool:
    """Whether finite energies differ, so that without a gradient to x something is lost."""
    finite = energy.detach().flatten()
    finite = finite[finite.isfinite()]
    return len(finite) > 0 and bool((finite != finite[0]).any())
