"""Rules about programs: compile (R8), vmap and ensembles (R9)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from flowkit.bases import StandardNormal
from flowkit.testing.layers import Layer
from flowkit.testing.probe import expect_close, randomize


@torch.no_grad()
def compiled_equals_eager(probe: Layer) -> None:
    """R8: ``torch.compile(fullgraph=True)`` gives the numbers of the eager program."""
    for name, module, value in probe.directions():
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend=probe.backend, dynamic=False)
        got, want = compiled(value, probe.context), module(value, probe.context)
        for what, a, b in zip(probe.outputs, got, want, strict=True):
            expect_close(f"the {what} of compiled {name}", a, b, probe.tolerance)
    torch.compiler.reset()


def it_vmaps(probe: Layer) -> None:
    """R9: per-sample scores by ``vmap(grad(log_prob))``; ensembles by stacked parameters."""
    base = StandardNormal(probe.base.event_shape).to(probe.dtype)

    def log_prob(*row: Tensor) -> Tensor:
        # Not of a flow, which would refuse a base that goes on beyond the ends of a layer.
        z, log_det = probe.moved(*row)
        return base.log_prob(z) + log_det

    x, *context = probe.rows
    x = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(log_prob(x, *context).sum(), x)
    got = vmap(grad(log_prob))(*probe.rows)
    expect_close("vmap(grad(log_prob))", got, want, probe.tolerance)

    ensemble = [probe.moved, randomize(copy.deepcopy(probe.moved), 0.1, probe.generator())]
    state = stack_module_state(ensemble)
    if not any(state):
        return
    outputs = vmap(lambda *own: functional_call(probe.moved, own, probe.rows))(*state)
    for i, transform in enumerate(ensemble):
        for what, a, b in zip(probe.outputs, outputs, transform(*probe.rows), strict=True):
            expect_close(f"the {what} of member {i} of an ensemble", a[i], b, probe.tolerance)
