"""Layers whose log-determinant does not depend on x, and the precision that they compute in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off: conditioners may run in low precision, events and densities never."""
    kind = x.device.type
    # The meta device has no autocast to ask about.
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def at_least_single(x: Tensor) -> Tensor:
    """Factorisations and solves do not exist in half precision: do those in single."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def solve_events(solve: Callable[[Tensor], Tensor], z: Tensor, event_ndim: int = 1) -> Tensor:
    """Undo a matrix, for ``z (*batch, *event)``, in single precision or better.

    Args:
        solve: From columns ``(numbers of an event, n)`` to others.
        z: The events.
        event_ndim: Number of their dimensions.
    """
    rows = z.flatten(-event_ndim).unsqueeze(0).flatten(0, -2)
    return solve(at_least_single(rows.mT)).mT.reshape(z.shape).to(z.dtype)


class ConstantVolume(Transform):
    """A layer whose log-determinant does not depend on ``x``.

    A subclass defines the two maps of events and, unless it is zero, the log-determinant.
    """

    constant_log_det = True
    _to_noise: Callable[[Tensor], Tensor]
    _to_data: Callable[[Tensor], Tensor]

    def _log_det(self, x: Tensor) -> Tensor:
        """``log|det dz/dx|``, a scalar; of ``x`` the size, the dtype and the device count."""
        return x.new_zeros(())

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise."""
        with full_precision(x):
            return self._to_noise(x), self._log_det(x).expand(x.shape[: x.ndim - self.event_ndim])

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data."""
        with full_precision(z):
            log_det = 0 - self._log_det(z)
            return self._to_data(z), log_det.expand(z.shape[: z.ndim - self.noise_ndim])

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Map data to noise; the log-determinant is not computed."""
        with full_precision(x):
            return self._to_noise(x), x.new_zeros(x.shape[: x.ndim - self.event_ndim])
