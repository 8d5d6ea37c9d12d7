"""Rules that every part keeps: layers, bases, conditioners, energies."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowkit.config import build, describe
from flowkit.errors import ContractError
from flowkit.testing.probe import Probe, expect, expect_close, expect_shape
from flowkit.testing.runner import Rules, Skipped

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


@torch.no_grad()
def _shapes(probe: Probe) -> None:
    """R1: outputs have the shapes that are stated."""
    for what, tensor, shape in _outputs(probe):
        expect_shape(what, tensor, shape)


def _outputs(probe: Probe) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Every output with its name and the shape that it should have."""
    for name, module, value in probe.directions():
        got = probe.call(module, value, probe.context)
        shapes = probe.shapes(module, value.shape[1:])
        for what, tensor, shape in zip(probe.outputs, got, shapes, strict=True):
            yield f"the {what} of {name}", tensor, (len(value), *shape)


@torch.no_grad()
def _batches(probe: Probe) -> None:
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
def _places(probe: Probe) -> None:
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
    """What a probe calls, as a function of all parameters in one vector and of the inputs."""

    def __init__(self, probe: Probe, module: nn.Module) -> None:
        super().__init__()
        self.call, self.module = probe.call, module

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        return self.call(self.module, *rows)

    def at(self, vector: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
        own = dict(self.named_parameters())
        pieces = vector.split([p.numel() for p in own.values()])
        shaped = {k: v.reshape(p.shape) for (k, p), v in zip(own.items(), pieces, strict=True)}
        return tuple(t for t in functional_call(self, shaped, rows) if t.requires_grad)


def two_orders_of_derivatives(probe: Probe) -> None:
    """R7: gradcheck and gradgradcheck in x, context and parameters."""
    if probe.x.dtype != torch.float64:
        raise Skipped("finite differences need float64")
    for name, module, value in probe.directions():
        # All parameters as one vector: one pair of evaluations serves them all.
        whole = _Called(probe, module)
        vector = torch.cat([value.new_empty(0), *(p.flatten() for p in whole.parameters())])
        given = [vector, *(tensor[:2] for tensor in (value, *probe.rows[1:]))]
        inputs = [tensor.detach().clone().requires_grad_() for tensor in given]
        for order, check in (
            ("first", torch.autograd.gradcheck),
            ("second", torch.autograd.gradgradcheck),
        ):
            try:
                check(whole.at, inputs, fast_mode=True)
            except RuntimeError as error:
                raise ContractError(
                    f"expected the {order} derivatives of {name} to match finite differences; "
                    f"got: {error}"
                ) from error


def _copies(probe: Probe) -> None:
    """R10: state_dict, deepcopy and pickle; nothing is remembered from a call."""
    loaded = copy.deepcopy(probe.start)
    # It has run before: whatever it remembers is now out of date.
    probe.call(loaded, *probe.rows)
    expect_same_copies(probe.learned(), loaded, lambda module: probe.call(module, *probe.rows))


def _description(probe: Probe) -> None:
    """R16: the part that is built from a description, with the same parameters."""
    module = probe.learned()
    built = build(json.loads(json.dumps(describe(module)))).to(probe.x.dtype).eval()
    built.load_state_dict(module.state_dict())
    got, want = (probe.call(m, *probe.rows) for m in (built, module))
    _expect_same("build(describe(...))", got, want)


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
    for how, module_again in copies.items():
        _expect_same(how, call(module_again), want)


def _expect_same(how: str, got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for what, a, b in zip(("output", "log_det"), got, want, strict=False):
        expect(
            torch.equal(a, b),
            f"expected the {what} after {how} to be the same to the bit, got a difference of "
            f"{(a - b).abs().max().item():.2g}; remedy: keep state in parameters and buffers, "
            "and no tensor that a call has made",
        )


def _learning(probe: Probe) -> None:
    """R13: no parameter is left out of the graph or has a gradient of zeros throughout."""
    wanted = {key: p for key, p in probe.moved.named_parameters() if p.requires_grad}
    if not wanted:
        raise Skipped("there are no parameters to learn")
    out, *log_det = probe.call(probe.moved, *probe.rows)
    # Weights of their own, so that no symmetry of the sum makes a gradient vanish.
    weight = torch.linspace(0.5, 1.5, out.numel()).to(out).reshape(out.shape)
    loss = (weight * out.square()).sum() - sum(value.sum() for value in log_det)
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for key, gradient in zip(wanted, gradients, strict=True):
        got = "None" if gradient is None else "zeros throughout"
        expect(
            gradient is not None and (gradient != 0).any(),
            f"expected a gradient for parameter {key!r}, got {got}",
        )


COMMON: Rules = {
    "R1": ("outputs have the shapes stated", _shapes),
    "R2": ("every batch shape gives the same numbers", _batches),
    "R3": ("dtype and device follow the input", _places),
    "R7": ("two orders of derivatives are right", two_orders_of_derivatives),
    "R10": ("copies give the same bits", _copies),
    "R13": ("every parameter gets a gradient", _learning),
    "R16": ("a description builds the same part", _description),
}
