"""Rules that every part with one tensor as its output keeps: bases, conditioners, energies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flowkit.errors import ContractError
from flowkit.testing.probe import (
    TOLERANCE,
    expect,
    expect_close,
    expect_finite,
    expect_shape,
    randomize,
)
from flowkit.testing.programs import expect_same_copies
from flowkit.testing.report import ContractReport
from flowkit.testing.runner import run_rules

ROWS, DRAWS, ERRORS = 6, 20_000, 5.0
DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Part:
    """A module that maps ``(*batch, *event)`` and a context to one tensor, in one dtype.

    Attributes:
        start: A copy as the constructor left it.
        moved: A copy with randomised parameters.
        call: ``call(module, x, context) -> (*batch, *out)``.
        x: ``(n, *event)``.
        context: ``(n, C)`` or ``None``.
        out: Shape of the output of one event.
        tolerance: Largest error, relative to one plus the magnitude.
    """

    start: Any
    moved: Any
    call: Callable[[Any, Tensor, Tensor | None], Tensor]
    x: Tensor
    context: Tensor | None
    out: tuple[int, ...]
    tolerance: float

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Part:
        """The same part in another dtype and on another device."""
        moved, start = (copy.deepcopy(m).to(device, dtype) for m in (self.moved, self.start))
        context = None if self.context is None else self.context.to(device, dtype)
        x = self.x.to(device, dtype)
        return replace(self, start=start, moved=moved, x=x, context=context)

    def __call__(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """The output, with randomised parameters."""
        return self.call(self.moved, self.x if x is None else x, context)


PartRule = Callable[[Part], "str | None"]


def _shapes(part: Part) -> None:
    expect_shape("the output", part(part.x, part.context), (len(part.x), *part.out))


@torch.no_grad()
def _batches(part: Part) -> None:
    x, c = part.x, part.context
    want = part(x, c)
    two = (2, len(x) // 2)
    pairs = c if c is None else c.unflatten(0, two)
    expect_close("two batch dimensions", part(x.unflatten(0, two), pairs).flatten(0, 1), want,
                 part.tolerance)  # fmt: skip
    expect_close("no batch dimension", part(x[0], c if c is None else c[0]), want[0],
                 part.tolerance)  # fmt: skip
    expect_shape("the output of an empty batch", part(x[:0], c if c is None else c[:0]),
                 (0, *part.out))  # fmt: skip


@torch.no_grad()
def _dtypes(part: Part) -> None:
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cpu"), (torch.float32, "meta")):
        other = part.to(dtype, device)
        got = other(other.x, other.context)
        expect(
            got.dtype == dtype and got.device.type == device,
            f"expected numbers in {dtype} on {device}, got {got.dtype} on {got.device}; remedy: "
            "make new tensors with x.new_zeros and the like",
        )


def _gradients(part: Part) -> None:
    x = torch.cat([part.x, 0 * part.x, 1e3 * part.x]).requires_grad_()
    context = None if part.context is None else part.context.repeat(3, 1)
    value = part(x, context)
    inside = value.detach().isfinite()
    (gradient,) = torch.autograd.grad(value[inside].sum(), x, allow_unused=True)
    if gradient is not None:
        expect_finite("the gradient in x", gradient)


def _derivatives(part: Part) -> str | None:
    if part.x.dtype != torch.float64:
        return "finite differences need float64"
    names = [name for name, p in part.moved.named_parameters() if p.requires_grad]
    given = [part.x[:2], *([] if part.context is None else [part.context[:2]])]
    given += [part.moved.get_parameter(name) for name in names]
    inputs = [tensor.detach().clone().requires_grad_() for tensor in given]

    def value(x: Tensor, *rest: Tensor) -> Tensor:
        context, values = (None, rest) if part.context is None else (rest[0], rest[1:])
        named = {f"module.{name}": v for name, v in zip(names, values, strict=True)}
        whole = _Called(part.moved, part.call)
        return functional_call(whole, named, (x, context))

    if not value(*inputs).requires_grad:
        return "nothing is differentiable"
    for order, check in (
        ("first", torch.autograd.gradcheck),
        ("second", torch.autograd.gradgradcheck),
    ):
        try:
            check(value, inputs, fast_mode=True)
        except RuntimeError as error:
            raise ContractError(
                f"expected {order} derivatives as by finite differences; got: {error}"
            ) from error
    return None


class _Called(nn.Module):
    def __init__(self, module: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.call(self.module, x, context)


def _vmaps(part: Part) -> None:
    want = part(part.x, part.context)
    rows = (part.x,) if part.context is None else (part.x, part.context)
    expect_close("vmap over samples", vmap(part)(*rows), want, part.tolerance)


@torch.no_grad()
def _copies(part: Part) -> None:
    expect_same_copies(
        part.moved, copy.deepcopy(part.start), lambda m: (part.call(m, part.x, part.context),)
    )


def _learns(part: Part) -> str | None:
    wanted = {name: p for name, p in part.moved.named_parameters() if p.requires_grad}
    if not wanted:
        return "there are no parameters to learn"
    value = part(part.x, part.context)
    weight = torch.linspace(0.5, 1.5, value.numel()).to(value).reshape(value.shape)
    gradients = torch.autograd.grad(
        (weight * value).sum(), list(wanted.values()), allow_unused=True
    )
    for name, gradient in zip(wanted, gradients, strict=True):
        expect(
            gradient is not None and bool((gradient != 0).any()),
            f"expected a gradient for parameter {name!r}, got none, or zeros throughout",
        )
    return None


_COMMON: dict[str, tuple[str, PartRule]] = {
    "R1": ("the output has the shape stated", _shapes),
    "R2": ("every batch shape gives the same numbers", _batches),
    "R3": ("dtype and device follow the input", _dtypes),
    "R6": ("gradients are finite", _gradients),
    "R7": ("two orders of derivatives are right", _derivatives),
    "R9": ("vmap gives the same numbers", _vmaps),
    "R10": ("copies give the same bits", _copies),
    "R13": ("every parameter gets a gradient", _learns),
}


def check_part(
    owner: str,
    part: Part,
    rules: Mapping[str, tuple[str, PartRule]],
    skip: Mapping[str, str] | None,
    dtypes: Sequence[torch.dtype],
    seed: int,
) -> ContractReport:
    """Ask the common rules and those of a kind, in the order of their numbers."""

    def asked(rule: PartRule, dtype: torch.dtype) -> str | None:
        return rule(replace(part.to(dtype), tolerance=TOLERANCE[dtype]))

    order = sorted({**_COMMON, **rules}.items(), key=lambda item: int(item[0][1:]))
    questions = {name: (title, partial(asked, rule)) for name, (title, rule) in order}
    return run_rules(owner, type(part.start).__name__, questions, dtypes, skip, seed)


def part_of(module: Any, call: Any, x: Tensor, size: int, out: Sequence[int], seed: int) -> Part:
    """A part in float64 with inputs ``x`` and contexts of ``size`` features."""
    generator = torch.Generator().manual_seed(seed)
    start = copy.deepcopy(module).double().eval()
    moved = randomize(copy.deepcopy(start), 0.3, generator)
    drawn = torch.randn(len(x), size, generator=generator, dtype=torch.float64)
    return Part(start, moved, call, x, drawn if size else None, tuple(out), 0.0)


def noise_of(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
