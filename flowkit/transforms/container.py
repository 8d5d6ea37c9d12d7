"""What the layers share that hold others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkit.errors import ShapeError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform


def apply_all(
    layers: Sequence[Transform],
    direction: str,
    x: Tensor,
    context: Context,
    generator: Generator = None,
) -> Mapped:
    """Apply layers, whose shapes fit by construction, in their order; log-determinants add up.

    Args:
        layers: The layers, at least one.
        direction: The method of theirs that is called.
        x: Input of the first.
        context: Read by all, or ``None``.
        generator: Source of randomness of stochastic layers.
    """
    total: Any = None
    for layer in layers:
        call: Any = layer if direction == "forward" else getattr(layer, direction)
        x, log_det = call(x, context, generator, _fits=True)
        total = log_det if total is None else total + log_det
    return x, total


class Container(Transform):
    """A layer that applies others; a subclass defines all directions in one method."""

    def __init__(
        self,
        held: Sequence[Transform],
        event_shape: Sequence[int | None],
        noise_shape: Sequence[int | None] | None = None,
    ) -> None:
        sizes = {t.context_size for t in held if t.needs_context}
        if len(sizes) > 1:
            raise ShapeError(f"{type(self).__name__} needs one context size, got {sorted(sizes)}")
        super().__init__(event_shape, context=max(sizes, default=0), noise_shape=noise_shape)
        self.needs_context = bool(sizes)
        self.constant_log_det = all(t.constant_log_det for t in held)
        self.stochastic = any(t.stochastic for t in held)
        self._restricts = any(t.restricts for t in held)

    @property
    def restricts(self) -> bool:
        """Whether any layer restricts what it reads."""
        return self._restricts

    def _run(
        self, direction: str, value: Tensor, context: Context, generator: Generator
    ) -> Mapped:
        """Apply the layers in a direction: ``"forward"``, ``"inverse"`` or ``"unnormalized"``."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise."""
        return self._run("forward", x, context, generator)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data."""
        return self._run("inverse", z, context, generator)

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Like ``forward``; only log-determinants that depend on ``x`` are computed."""
        return self._run("unnormalized", x, context, generator)
