"""Rules about programs: compile (R8), vmap and ensembles (R9), copies and files (R10)."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from flowkit.bases import StandardNormal
from flowkit.config import build, describe
from flowkit.errors import DescriptionError
from flowkit.testing.probe import Probe, expect, expect_close, randomize

_RANDOM = "a stochastic layer draws anew in every call"


def compiled_equals_eager(probe: Probe) -> str | None:
    """R8: ``torch.compile(fullgraph=True)`` gives the numbers of the eager program."""
    if probe.moved.stochastic:
        return _RANDOM
    with torch.no_grad():
        for name, module, value in probe.directions():
            torch.compiler.reset()
            compiled = torch.compile(module, fullgraph=True, backend=probe.backend, dynamic=False)
            got, want = compiled(value, probe.context), module(value, probe.context)
            for what, a, b in zip(("output", "log_det"), got, want, strict=True):
                expect_close(f"the {what} of compiled {name}", a, b, probe.tolerance)
    torch.compiler.reset()
    return None


def it_vmaps(probe: Probe) -> str | None:
    """R9: per-sample scores by ``vmap(grad(log_prob))``; ensembles by stacked parameters."""
    if probe.moved.stochastic:
        return _RANDOM
    base = StandardNormal(probe.noise_shape).to(probe.dtype)

    def log_prob(*row: Tensor) -> Tensor:
        # Not of a flow, which would refuse a base that goes on beyond the ends of a layer.
        z, log_det = probe.moved(*row)
        return base.log_prob(z) + log_det

    x = probe.x.clone().requires_grad_()
    rows = (probe.x,) if probe.context is None else (probe.x, probe.context)
    (want,) = torch.autograd.grad(log_prob(x, *rows[1:]).sum(), x)
    got = vmap(grad(log_prob))(*rows)
    expect_close("vmap(grad(log_prob))", got, want, probe.tolerance)

    ensemble = [probe.moved, randomize(copy.deepcopy(probe.moved), 0.1, probe.generator())]
    parameters, buffers = stack_module_state(ensemble)
    if not parameters and not buffers:
        return None

    def member(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional_call(probe.moved, (parameters, buffers), rows)

    outputs = vmap(member)(parameters, buffers)
    for i, transform in enumerate(ensemble):
        for what, a, b in zip(("output", "log_det"), outputs, transform(*rows), strict=True):
            expect_close(f"the {what} of member {i} of an ensemble", a[i], b, probe.tolerance)
    return None


def copies_give_the_same_bits(probe: Probe) -> None:
    """R10: state_dict, deepcopy, pickle and description; nothing is remembered from a call."""
    learned = copy.deepcopy(probe.start)
    learned.initialize(probe.x, probe.context)
    randomize(learned, 0.1, probe.generator())
    loaded = copy.deepcopy(probe.start)
    # It has run before: whatever it remembers is now out of date.
    probe.call(loaded, probe.x, probe.context)
    expect_same_copies(learned, loaded, lambda module: probe.call(module, probe.x, probe.context))


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
