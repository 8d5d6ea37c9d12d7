"""Layer: a transform with everything that the rules of transforms need to question it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from flowkit.bases import Base
from flowkit.errors import NotInvertibleError
from flowkit.testing.probe import BatchCase, Probe, expect, randomize
from flowkit.transforms import Transform
from flowkit.transforms.base import Inverse

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Layer(Probe):
    """A transform, inputs and settings, all in one dtype; ``x`` has an even number of rows.

    Attributes:
        base: Base of the density of R15.
        target: Normalised log-density over ``x`` for R14.
        far: Distances from the data at which a map of real variables is questioned.
        backend: Backend of ``torch.compile``.
        invertible: Whether the transform defines its inverse.
    """

    base: Base
    target: Callable[[Tensor], Tensor] | None
    far: tuple[float, ...]
    backend: str
    invertible: bool

    outputs: ClassVar[tuple[str, ...]] = ("output", "log_det")

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Self:
        """The same probe in another dtype and on another device, with copies of its modules."""
        base = copy.deepcopy(self.base).to(device, dtype)
        return replace(super().to(dtype, device), base=base)

    def call(
        self, module: torch.nn.Module, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Call a transform; a stochastic one gets the generator in its first state."""
        if self.moved.stochastic and x.device.type == "cpu":
            return module(x, context, generator=self.generator())
        return module(x, context)

    def shapes(self, module: Transform, event: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Shapes of the output and the log-determinant of one event."""
        return mapped_shape(module, event), ()

    def directions(self) -> Iterator[tuple[str, Any, Tensor]]:
        """Yield name, map and input of the forward direction and, if it exists, of the inverse."""
        yield "forward", self.moved, self.x
        if self.invertible:
            with torch.no_grad():
                z = self.call(self.moved, *self.rows)[0]
            yield "inverse", Inverse(self.moved), z

    def broadcasts(
        self, module: Transform, value: Tensor, want: Sequence[Tensor]
    ) -> list[BatchCase]:
        """One context for all rows and a column of them, or one that is not needed."""
        if self.context is None:
            return [("a context it does not need", value, value.new_ones(5), want)]
        rows, column = value.expand(2, *value.shape), self.context[:2].unsqueeze(1)
        grid = self.call(module, rows, column.expand(2, len(value), -1))
        return [
            ("one context for all rows", value, self.context[0], [t[0] for t in grid]),
            ("a column of contexts", value, column, grid),
        ]

    def learned(self) -> Transform:
        """A copy that was initialized with the data, and then learned."""
        learned = copy.deepcopy(self.start)
        learned.initialize(self.x, self.context)
        return randomize(learned, 0.1, self.generator())

    def at(self, moved: Transform, x: Tensor) -> Self:
        """The probe of a transform at other inputs, all of which have the first context."""
        context = None if self.context is None else self.context[:1].expand(len(x), -1)
        return replace(self, moved=moved, x=x, context=context)

    def inside(self) -> Self:
        """The probe at those of its inputs that lie in the domain."""
        with torch.no_grad():
            return self.at(self.moved, self.x[self.moved(*self.rows)[1].isfinite()])

    def far_away(self) -> list[tuple[str, Self]]:
        """The probe outwards by every distance in ``far``, if the domain is the whole space."""
        if plain(self.moved.domain) is not constraints.real:
            return []
        sign = torch.randint(0, 2, self.x.shape, generator=self.generator()).to(self.x) * 2 - 1
        return [(f"|x| near {far:g}", replace(self, x=self.x + far * sign)) for far in self.far]


def plain(domain: Any) -> Any:
    """The constraint of single numbers."""
    while isinstance(domain, constraints.independent):
        domain = domain.base_constraint
    return domain


def has_inverse(transform: Transform, x: Tensor, context: Tensor | None) -> bool:
    """Whether the transform defines its inverse."""
    try:
        with torch.no_grad():
            transform.inverse(transform(x, context)[0], context)
    except Exception as error:
        # One that does not work is for the rules to name.
        return not isinstance(error, NotInvertibleError)
    return True


def mapped_shape(transform: Transform, event: Sequence[int]) -> tuple[int, ...]:
    """Shape of what one event of this shape is mapped to."""
    if transform.noise_shape == transform.event_shape:
        return tuple(event)
    expect(
        None not in transform.noise_shape,
        f"expected all sizes of the noise_shape of a layer that changes shapes, got "
        f"{transform.noise_shape}",
    )
    return transform.noise_shape  # type: ignore[return-value]
