"""Rules about programs: compile (R8), vmap and ensembles (R9), copies and files (R10)."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from flowkit.bases import StandardNormal
from flowkit.testing.probe import Probe, expect, expect_close, randomize
from flowkit.transforms import Transform

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
    base = StandardNormal(*probe.noise_shape).to(probe.dtype)

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
    """R10: state_dict through a file, deepcopy and pickle; nothing is remembered from a call."""
    learned = copy.deepcopy(probe.start)
    learned.initialize(probe.x, probe.context)
    randomize(learned, 0.1, probe.generator())
    want = probe.call(learned, probe.x, probe.context)

    file = io.BytesIO()
    torch.save(learned.state_dict(), file)
    file.seek(0)
    loaded = copy.deepcopy(probe.start)
    # It has run before: whatever it remembers is now out of date.
    probe.call(loaded, probe.x, probe.context)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies: dict[str, Transform] = {
        "a state_dict that was saved and loaded": loaded,
        "deepcopy": copy.deepcopy(learned),
        "pickle": pickle.loads(pickle.dumps(learned)),
    }
    for how, other in copies.items():
        got = probe.call(other, probe.x, probe.context)
        for what, a, b in zip(("output", "log_det"), got, want, strict=True):
            expect(
                torch.equal(a, b),
                f"expected the {what} after {how} to be the same to the bit, got a difference of "
                f"{(a - b).abs().max().item():.2g}; remedy: keep state in parameters and buffers, "
                "and no tensor that a call has made",
            )
