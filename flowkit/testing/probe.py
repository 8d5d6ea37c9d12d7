"""Probe: a transform in one dtype with everything that the rules need to question it.

A rule is a function of a probe. It raises ``ContractError`` where the rule is broken, returns
``None`` where it holds, and returns the reason where it does not apply.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from flowkit.bases import Base
from flowkit.errors import ContractError, NotInvertibleError
from flowkit.transforms import Inverse, Transform

Rule = Callable[["Probe"], "str | None"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


@dataclass(frozen=True)
class Probe:
    """A transform, inputs and settings, all in one dtype.

    Attributes:
        start: A copy of the transform as it was given.
        moved: A copy with randomised parameters; all rules but R12 question this one.
        x: Inputs ``(n, *event)``, an even number of rows.
        context: ``(n, C)``, or ``None`` for a transform that reads none.
        base: Base of the density of R15.
        target: Normalised log-density over ``x`` for R14.
        far: Distances from the data at which a map of the whole line is questioned.
        tolerance: Largest error, relative to one plus the magnitude.
        backend: Backend of ``torch.compile``.
        starts_at_identity: What R12 expects.
        invertible: Whether the transform defines its inverse.
        seed: Seed of everything random.
    """

    start: Transform
    moved: Transform
    x: Tensor
    context: Tensor | None
    base: Base
    target: Callable[[Tensor], Tensor] | None
    far: tuple[float, ...]
    tolerance: float
    backend: str
    starts_at_identity: bool
    invertible: bool
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the numbers are computed."""
        return self.x.dtype

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one ``z``."""
        return mapped_shape(self.moved, self.x.shape[1:])

    def to(self, dtype: torch.dtype) -> Probe:
        """The same probe in another dtype."""
        return replace(
            self,
            start=copy.deepcopy(self.start).to(dtype),
            moved=copy.deepcopy(self.moved).to(dtype),
            x=self.x.to(dtype),
            context=None if self.context is None else self.context.to(dtype),
            base=copy.deepcopy(self.base).to(dtype),
        )

    def generator(self) -> torch.Generator:
        """A fresh generator, always in the same state."""
        return torch.Generator().manual_seed(self.seed)

    def call(
        self, module: torch.nn.Module, x: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Call a transform; a stochastic one gets the generator in its first state."""
        if self.moved.stochastic and x.device.type == "cpu":
            return module(x, context, generator=self.generator())
        return module(x, context)

    def directions(
        self,
        x: Tensor | None = None,
        context: Tensor | None = None,
        transform: Transform | None = None,
    ) -> Iterator[tuple[str, Transform, Tensor]]:
        """Yield name, map and input of the forward direction and, if it exists, of the inverse."""
        if x is None:
            x, context = self.x, self.context
        transform = self.moved if transform is None else transform
        yield "forward", transform, x
        if self.invertible:
            with torch.no_grad():
                z = self.call(transform, x, context)[0]
            yield "inverse", Inverse(transform), z

    def far_rows(self) -> Tensor:
        """Rows of ``x`` moved outwards by every distance in ``far``, to either side."""
        sign = torch.randint(0, 2, self.x.shape, generator=self.generator()).to(self.x) * 2 - 1
        return torch.cat([self.x + distance * sign for distance in self.far])

    def on_whole_line(self) -> bool:
        """Whether the domain of ``x`` is the whole space."""
        domain = self.moved.domain
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        return domain is constraints.real


def has_inverse(transform: Transform, x: Tensor, context: Tensor | None) -> bool:
    """Whether the transform defines its inverse."""
    try:
        with torch.no_grad():
            transform.inverse(transform(x, context)[0], context)
    except NotInvertibleError:
        return False
    except Exception:
        return True  # It has one that does not work, which is for the rules to say.
    return True


def mapped_shape(transform: Transform, event: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what one event of this shape is mapped to."""
    if transform.noise_shape == transform.event_shape:
        return tuple(event)
    expect(
        None not in transform.noise_shape,
        f"expected all sizes of the noise_shape of a layer that changes shapes, got "
        f"{transform.noise_shape}",
    )
    return transform.noise_shape  # type: ignore[return-value]


def draw_inputs(transform: Transform, rows: int, generator: torch.Generator) -> Tensor:
    """Draw ``(rows, *event)`` in float64 from the transform's domain."""
    event = [2 + i if size is None else size for i, size in enumerate(transform.event_shape)]
    raw = torch.randn(rows, *event, generator=generator, dtype=torch.float64)
    return transform_to(transform.domain)(raw)


@torch.no_grad()
def randomize(transform: Transform, noise: float, generator: torch.Generator) -> Transform:
    """Add normal noise to every parameter, in place; the numbers do not depend on the dtype."""
    for parameter in transform.parameters():
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((noise * step).to(parameter))
    return transform


def expect(condition: bool, message: str) -> None:  # noqa: FBT001
    """Raise ``ContractError`` with ``message`` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def expect_shape(what: str, got: Tensor, shape: tuple[int, ...]) -> None:
    """Expect a tensor of this shape."""
    expect(
        isinstance(got, Tensor) and tuple(got.shape) == tuple(shape),
        f"expected {what} of shape {tuple(shape)}, got "
        f"{tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__}",
    )


def expect_close(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Expect equal shapes, and numbers equal up to ``tolerance (1 + |want|)``."""
    expect_shape(what, got, tuple(want.shape))
    if got.numel() == 0:
        return
    got, want = got.detach().double().flatten(), want.detach().double().flatten()
    error = torch.where(got == want, torch.zeros_like(got), (got - want).abs() / (1 + want.abs()))
    worst = int(error.nan_to_num(nan=torch.inf).argmax())
    expect(
        bool(error[worst] <= tolerance),
        f"expected {what} = {want[worst].item():.9g}, got {got[worst].item():.9g}: the relative "
        f"error {error[worst].item():.2g} exceeds {tolerance:.2g}",
    )


def expect_finite(what: str, got: Tensor) -> None:
    """Expect neither NaN nor infinity."""
    bad = ~torch.isfinite(got)
    expect(
        not bool(bad.any()),
        f"expected {what} to be finite, got {got[bad][:3].tolist()} in {int(bad.sum())} of "
        f"{got.numel()} places",
    )
