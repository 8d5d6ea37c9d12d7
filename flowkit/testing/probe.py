"""Probe: a part in one dtype with everything that the rules need to question it.

A rule is a function of a probe. It raises ``ContractError`` where the rule is broken, and
``Skipped`` where it does not apply.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from flowkit.errors import ContractError
from flowkit.testing.runner import ContractReport, Rules, run_rules

if TYPE_CHECKING:
    from typing_extensions import Self

ROWS, DRAWS = 6, 20_000
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}

AnyModule = TypeVar("AnyModule", bound=nn.Module)
#: A name for messages, an input with its context, and what is expected.
BatchCase = tuple[str, Tensor, "Tensor | None", Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A module that maps ``(*batch, *event)`` and a context to tensors, all in one dtype.

    Attributes:
        start: A copy of the module as its constructor left it.
        moved: A copy with randomised parameters; all rules but R12 question this one.
        x: Inputs ``(n, *event)``.
        context: ``(n, C)``, or ``None`` for a module that reads none.
        seed: Seed of everything random.
        tolerance: Largest error, relative to one plus the magnitude.
        function: ``function(module, x, context) -> (*batch, *out)``.
        out: Shape of the output of one event.
    """

    start: Any
    moved: Any
    x: Tensor
    context: Tensor | None
    seed: int
    tolerance: float = 0.0
    function: Callable[..., Tensor] = nn.Module.__call__
    out: tuple[int, ...] = ()

    outputs: ClassVar[tuple[str, ...]] = ("output",)

    @classmethod
    def of(cls, module: nn.Module, x: Tensor, size: int, seed: int, **more: Any) -> Self:
        """A probe in float64 with inputs ``x`` and drawn contexts of ``size`` features."""
        generator = torch.Generator().manual_seed(seed)
        start, moved = states(module, 0.3, generator)
        context = noise_of(len(x), size, generator=generator) if size else None
        return cls(start=start, moved=moved, x=x, context=context, seed=seed, **more)

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """The inputs, with the context if there is one."""
        return (self.x,) if self.context is None else (self.x, self.context)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Self:
        """The same probe in another dtype and on another device, with copies of its modules."""
        start, moved = (copy.deepcopy(m).to(device, dtype) for m in (self.start, self.moved))
        context = None if self.context is None else self.context.to(device, dtype)
        x = self.x.to(device, dtype)
        return replace(self, start=start, moved=moved, x=x, context=context)

    def generator(self) -> torch.Generator:
        """A fresh generator, always in the same state."""
        return torch.Generator().manual_seed(self.seed)

    def call(self, module: Any, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """What a copy of the module computes: one tensor for every name in ``outputs``."""
        return (self.function(module, x, context),)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output, with randomised parameters."""
        return self.call(self.moved, x, context)[0]

    def shapes(self, module: Any, event: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs for one event."""
        return (self.out,)

    def directions(self) -> Iterator[tuple[str, Any, Tensor]]:
        """Yield name, module and input for every way in which the module can be called."""
        yield type(self.start).__name__, self.moved, self.x

    def broadcasts(self, module: Any, value: Tensor, want: Sequence[Tensor]) -> list[BatchCase]:
        """Batches whose context is broadcast."""
        return []

    def learned(self) -> Any:
        """A copy that differs from the start as a trained one does."""
        return copy.deepcopy(self.moved)


def check_probe(
    owner: str,
    label: str,
    probe: Probe,
    rules: Rules,
    dtypes: Sequence[torch.dtype],
    skip: Mapping[str, str] | None,
    tolerance: Mapping[torch.dtype, float] = TOLERANCE,
) -> ContractReport:
    """Ask the rules, in the order of their numbers, about fresh copies of a probe in float64."""

    def prepare(dtype: torch.dtype) -> Probe:
        # Fresh copies for every rule: what a call may leave behind goes no further.
        return replace(probe.to(dtype), tolerance=tolerance[dtype])

    known = tuple(tolerance)
    return run_rules(owner, label, rules, prepare, dtypes, skip, probe.seed, known)


def states(
    module: AnyModule, noise: float, generator: torch.Generator
) -> tuple[AnyModule, AnyModule]:
    """Copies in float64 and evaluation mode, as the module is and with randomised parameters."""
    start = copy.deepcopy(module).double().eval()
    return start, randomize(copy.deepcopy(start), noise, generator)


def noise_of(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def randomize(module: AnyModule, noise: float, generator: torch.Generator) -> AnyModule:
    """Add normal noise to every parameter, in place; the numbers do not depend on the dtype."""
    for parameter in module.parameters():
        step = noise_of(*parameter.shape, generator=generator)
        parameter.add_((noise * step).to(parameter))
    return module


def expect(condition: bool | Tensor, message: str) -> None:  # noqa: FBT001
    """Raise ``ContractError`` with ``message`` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def expect_shape(what: str, got: Tensor, shape: tuple[int, ...]) -> None:
    """Expect a tensor of this shape."""
    found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
    expect(found == tuple(shape), f"expected {what} of shape {tuple(shape)}, got {found}")


def expect_close(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Expect equal shapes, and numbers equal up to ``tolerance (1 + |want|)``."""
    expect_shape(what, got, tuple(want.shape))
    if got.numel() == 0:
        return
    got, want = got.detach().double().flatten(), want.detach().double().flatten()
    error = torch.where(got == want, torch.zeros_like(got), (got - want).abs() / (1 + want.abs()))
    worst = int(error.nan_to_num(nan=torch.inf).argmax())
    expect(
        error[worst] <= tolerance,
        f"expected {what} = {want[worst].item():.9g}, got {got[worst].item():.9g}: the relative "
        f"error {error[worst].item():.2g} exceeds {tolerance:.2g}",
    )


def expect_mean(what: str, draws: Tensor, want: float, slack: float = 1e-3) -> None:
    """Expect a mean over ``draws (n, ...)``, to five standard errors and a little."""
    mean, error = draws.double().mean(0), draws.double().std(0) / math.sqrt(len(draws))
    expect(
        ((mean - want).abs() <= 5 * error + slack).all(),
        f"expected {what} with mean {want:g}, got {mean.tolist()} with a standard error of "
        f"{error.tolist()}",
    )


def expect_finite(what: str, got: Tensor) -> None:
    """Expect neither NaN nor infinity."""
    bad = ~torch.isfinite(got)
    expect(
        not bad.any(),
        f"expected {what} to be finite, got {got[bad][:3].tolist()} in {int(bad.sum())} of "
        f"{got.numel()} places",
    )


def expect_finite_gradients(what: str, value: Tensor, named: Mapping[str, Tensor]) -> None:
    """Expect finite gradients of the sum of a tensor in others, by their names."""
    if not value.requires_grad:
        return
    gradients = torch.autograd.grad(
        value.sum(), list(named.values()), retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(named, gradients, strict=True):
        if gradient is not None:
            expect_finite(f"the gradient of {what} in {name}", gradient)
