"""Rules that every part keeps: layers, bases, conditioners, energies."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from flowkit.config import build, describe
from flowkit.errors import ContractError, DescriptionError
from flowkit.testing.probe import (
    Probe,
    Rules,
    expect,
    expect_close,
    expect_finite_gradients,
    expect_shape,
    noise_of,
    states,
)

DRAWS, STANDARD_ERRORS = 20_000, 5.0

_BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "no batch dims": lambda rows: rows[0],
    "two batch dims": lambda rows: rows.unflatten(0, (2, -1)),
    "an empty batch": lambda rows: rows[:0],
}
_PLACES = [
    (torch.float64, "cpu"),
    (torch.float32, "cpu"),
    (torch.bfloat16, "cpu"),
    (torch.float32, "meta"),
]


def _outputs(probe: Probe) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Every output with its name and the shape that it should have."""
    for name, module, value in probe.directions():
        got = probe.call(module, value, probe.context)
        shapes = probe.shapes(module, value.shape[1:])
        for what, tensor, shape in zip(probe.outputs, got, shapes, strict=True):
            yield f"the {what} of {name}", tensor, (len(value), *shape)


@torch.no_grad()
def shapes_are_as_stated(probe: Probe) -> None:
    """R1: outputs have the shapes that are stated."""
    for what, tensor, shape in _outputs(probe):
        expect_shape(what, tensor, shape)


@torch.no_grad()
def every_batch_shape_gives_the_same_numbers(probe: Probe) -> None:
    """R2: no batch dims, one, two, an empty batch, broadcast context."""
    context = probe.context
    for name, module, value in probe.directions():
        want = probe.call(module, value, context)
        cases = [
            (how, cut(value), None if context is None else cut(context), [cut(t) for t in want])
            for how, cut in _BATCHES.items()
        ]
        for how, x, c, wanted in [*cases, *probe.broadcasts(module, value, want)]:
            for what, a, b in zip(probe.outputs, probe.call(module, x, c), wanted, strict=True):
                what = f"the {what} of {name} with {how}"
                if getattr(probe.moved, "stochastic", False):
                    expect_shape(what, a, b.shape)
                else:
                    expect_close(what, a, b, probe.tolerance)


@torch.no_grad()
def dtype_and_device_follow_the_input(probe: Probe) -> None:
    """R3: float64, float32, a bfloat16 smoke run, and the meta device."""
    for dtype, device in _PLACES:
        for what, tensor, shape in _outputs(probe.to(dtype, device)):
            expect(
                tensor.dtype == dtype and tensor.device.type == device,
                f"expected {what} in {dtype} on the device of x ({device}), got {tensor.dtype} on "
                f"{tensor.device}; remedy: make new tensors with x.new_zeros and the like",
            )
            expect_shape(what, tensor, shape)


class _Called(nn.Module):
    """What a probe calls, as a module that torch can give other parameters."""

    def __init__(self, probe: Probe, module: nn.Module) -> None:
        super().__init__()
        self.call, self.module = probe.call, module

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.call(self.module, *rows)


def two_orders_of_derivatives_are_right(probe: Probe) -> str | None:
    """R7: gradcheck and gradgradcheck in x, context and parameters."""
    if probe.dtype != torch.float64:
        return "finite differences need float64"
    for name, module, value in probe.directions():
        # All parameters as one vector: one pair of evaluations serves them all.
        whole = _Called(probe, module)
        parameters = dict(whole.named_parameters())
        vector = torch.cat([value.new_empty(0), *(p.flatten() for p in parameters.values())])
        given = [vector, *(tensor[:2] for tensor in (value, *probe.rows[1:]))]
        inputs = [tensor.detach().clone().requires_grad_() for tensor in given]

        def function(
            vector: Tensor,
            *rows: Tensor,
            whole: nn.Module = whole,
            parameters: Mapping[str, Tensor] = parameters,
        ) -> tuple[Tensor, ...]:
            pieces = vector.split([p.numel() for p in parameters.values()])
            shaped = {
                key: piece.reshape(p.shape)
                for (key, p), piece in zip(parameters.items(), pieces, strict=True)
            }
            out = functional_call(whole, shaped, rows)
            return tuple(tensor for tensor in out if tensor.requires_grad)

        for order, check in (
            ("first", torch.autograd.gradcheck),
            ("second", torch.autograd.gradgradcheck),
        ):
            try:
                check(function, inputs, fast_mode=True)
            except RuntimeError as error:
                raise ContractError(
                    f"expected the {order} derivatives of {name} to match finite differences; "
                    f"got: {error}"
                ) from error
    return None


def copies_give_the_same_bits(probe: Probe) -> None:
    """R10: state_dict, deepcopy, pickle and description; nothing is remembered from a call."""
    loaded = copy.deepcopy(probe.start)
    # It has run before: whatever it remembers is now out of date.
    probe.call(loaded, *probe.rows)
    expect_same_copies(probe.learned(), loaded, lambda module: probe.call(module, *probe.rows))


def expect_same_copies(
    module: nn.Module, other: nn.Module, call: Callable[[Any], tuple[Tensor, ...]]
) -> None:
    """Expect the same bits of a module after every way to copy it.

    Args:
        module: The module.
        other: One of the same kind with other weights, which gets those of the module.
        call: What is computed with a module.
    """
    want = call(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copies = {
        "a state_dict that was saved and loaded": other,
        "deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
    }
    try:
        description = json.loads(json.dumps(describe(module)))
    except DescriptionError:
        pass  # A class that is not registered has no description.
    else:
        floats = (t for t in module.state_dict().values() if t.is_floating_point())
        built = build(description).to(next(floats, torch.empty(0)).dtype).eval()
        built.load_state_dict(module.state_dict())
        copies["build(describe(...))"] = built
    for how, module_again in copies.items():
        for i, (a, b) in enumerate(zip(call(module_again), want, strict=True)):
            what = "output" if i == 0 else "log_det"
            expect(
                torch.equal(a, b),
                f"expected the {what} after {how} to be the same to the bit, got a difference of "
                f"{(a - b).abs().max().item():.2g}; remedy: keep state in parameters and buffers, "
                "and no tensor that a call has made",
            )


def every_parameter_gets_a_gradient(probe: Probe) -> str | None:
    """R13: no parameter is left out of the graph or has a gradient of zeros throughout."""
    wanted = {key: p for key, p in probe.moved.named_parameters() if p.requires_grad}
    if not wanted:
        return "there are no parameters to learn"
    out, *log_det = probe.call(probe.moved, *probe.rows)
    # Weights of their own, so that no symmetry of the sum makes a gradient vanish.
    weight = torch.linspace(0.5, 1.5, out.numel()).to(out).reshape(out.shape)
    loss = (weight * out.square()).sum() - sum(value.sum() for value in log_det)
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for key, gradient in zip(wanted, gradients, strict=True):
        got = "None" if gradient is None else "zeros throughout"
        expect(
            gradient is not None and bool((gradient != 0).any()),
            f"expected a gradient for parameter {key!r}, got {got}",
        )
    return None


COMMON: Rules[Any] = {
    "R1": ("outputs have the shapes stated", shapes_are_as_stated),
    "R2": ("every batch shape gives the same numbers", every_batch_shape_gives_the_same_numbers),
    "R3": ("dtype and device follow the input", dtype_and_device_follow_the_input),
    "R7": ("two orders of derivatives are right", two_orders_of_derivatives_are_right),
    "R10": ("copies give the same bits", copies_give_the_same_bits),
    "R13": ("every parameter gets a gradient", every_parameter_gets_a_gradient),
}


@dataclass(frozen=True)
class Part(Probe):
    """A module with one tensor as its output: a base, a conditioner, an energy.

    Attributes:
        function: ``function(module, x, context) -> (*batch, *out)``.
        out: Shape of the output of one event.
    """

    function: Callable[[Any, Tensor, Tensor | None], Tensor]
    out: tuple[int, ...]

    @classmethod
    def of(
        cls, module: nn.Module, x: Tensor, size: int, seed: int,
        *, function: Callable[..., Tensor] = nn.Module.__call__, out: Sequence[int] = (),
    ) -> Part:  # fmt: skip
        """A part in float64 with inputs ``x`` and drawn contexts of ``size`` features."""
        generator = torch.Generator().manual_seed(seed)
        start, moved = states(module, 0.3, generator)
        context = noise_of(len(x), size, generator=generator) if size else None
        return cls(start, moved, x, context, 0.0, seed, function, tuple(out))

    def call(self, module: Any, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """The output of a copy of the module."""
        return (self.function(module, x, context),)

    def shapes(self, module: Any, event: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The shape of the output of one event."""
        return (self.out,)

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The output, with randomised parameters."""
        return self.function(self.moved, x, context)


def _gradients(part: Part) -> None:
    x = torch.cat([part.x, 0 * part.x, 1e3 * part.x]).requires_grad_()
    value = part(x, *(context.repeat(3, 1) for context in part.rows[1:]))
    inside = value.detach().isfinite()
    expect_finite_gradients("the output", value[inside], {"x": x})


def _derivatives(part: Part) -> str | None:
    if not part(*(tensor.clone().requires_grad_() for tensor in part.rows)).requires_grad:
        return "nothing is differentiable"
    return two_orders_of_derivatives_are_right(part)


def _vmaps(part: Part) -> None:
    expect_close("vmap over samples", vmap(part)(*part.rows), part(*part.rows), part.tolerance)


OF_PARTS: Rules[Part] = {
    **COMMON,
    "R6": ("gradients are finite", _gradients),
    "R7": ("two orders of derivatives are right", _derivatives),
    "R9": ("vmap gives the same numbers", _vmaps),
}
