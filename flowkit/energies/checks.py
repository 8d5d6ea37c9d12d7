"""What every energy is asked for, wherever it enters: one number per sample, and a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit.errors import DataError


def one_number_each(
    value: Any, x: Tensor, event_ndim: int, what: str = "row", name: str = "the energy"
) -> Tensor:
    """Return an energy with one number for every row of ``x``, or say what came instead.

    Args:
        value: What the energy returned.
        x: Where it was computed, ``(*batch, *event)``.
        event_ndim: Number of event dimensions of ``x``.
        what: What a row of ``x`` is called.
        name: What the function is called.

    Raises:
        DataError: If the value is no tensor of the shape ``(*batch,)``, of a floating dtype of at
            least the precision of ``x``, on its device.
    """
    expected = tuple(x.shape[: x.ndim - event_ndim])
    if not isinstance(value, Tensor) or tuple(value.shape) != expected:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(
            f"{name} returned {got} for {what}s {tuple(x.shape)}; expected a torch.Tensor "
            f"with one number a {what}, {expected}; remedy: compute it with torch, and sum over "
            "the coordinates only"
        )
    if value.device != x.device:
        raise DataError(
            f"{name} returned a tensor on {value.device} for {what}s on {x.device}; remedy: "
            "compute it where x is, with constants on x.device"
        )
    coarse = not value.is_floating_point() or (
        torch.promote_types(value.dtype, x.dtype) != value.dtype
        # Mixed precision lowers what it computes on purpose.
        and not torch.is_autocast_enabled(x.device.type)
    )
    if coarse:
        raise DataError(
            f"{name} returned {value.dtype} for {what}s in {x.dtype}, which loses digits; "
            "remedy: compute it in the dtype of x, with constants in x.dtype"
        )
    return value


def gradient_of(
    energy: Tensor, x: Tensor, *, create_graph: bool = False, name: str = "the energy"
) -> Tensor:
    r"""Return :math:`\nabla_x u`, of the shape of ``x``, of the energies of a batch.

    Args:
        energy: ``(*batch,)``, computed from ``x``.
        x: ``(*batch, *event)``, which requires a gradient.
        create_graph: Whether the gradient can be differentiated again.
        name: What the function is called.

    Raises:
        DataError: If the energy carries no gradient to ``x``.
    """
    gradient = None
    if energy.requires_grad:
        (gradient,) = torch.autograd.grad(
            energy.sum(), x, create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise no_gradient(name)
    return gradient


def varies(energy: Tensor) -> bool:
    """Whether finite energies differ, so that without a gradient to x something is lost."""
    finite = energy.detach().flatten()
    finite = finite[finite.isfinite()]
    return len(finite) > 0 and bool((finite != finite[0]).any())


def no_gradient(name: str = "the energy") -> DataError:
    """Make the error of an energy whose gradient to x is lost."""
    return DataError(
        f"{name} carries no gradient to x, so there is no force and nothing to learn from; "
        "remedy: compute it from x with torch, without numpy, torch.no_grad(), .detach() or "
        "rounding; for a program outside of torch, from_callable(function, event_shape, "
        "force=...) with its force"
    )
