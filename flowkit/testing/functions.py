"""Rules about layers that are functions: inverse, programs, constants, start (R4, R8 to R12)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from flowkit.bases import StandardNormal
from flowkit.testing.layers import Layer
from flowkit.testing.probe import expect_close, expect_shape, randomize


@torch.no_grad()
def round_trips(probe: Layer) -> None:
    """R4: both round trips, and log-determinants that cancel, near the data and far away."""
    for where, asked in [("the data", probe), *probe.far_away()]:
        z, log_det = probe.moved(*asked.rows)
        back, back_log_det = probe.moved.inverse(z, asked.context)
        again = probe.moved(back, asked.context)[0]
        for what, got, want in (
            ("inverse(forward(x))", back, asked.x),
            ("-log_det of the inverse", -back_log_det, log_det),
            ("forward(inverse(z))", again, z),
        ):
            expect_close(f"{what} at {where}", got, want, probe.tolerance)


@torch.no_grad()
def compiled(probe: Layer) -> None:
    """R8: ``torch.compile(fullgraph=True)`` gives the numbers of the eager program."""
    for name, module, value in probe.directions():
        torch.compiler.reset()
        program = torch.compile(module, fullgraph=True, backend=probe.backend, dynamic=False)
        got, want = program(value, probe.context), module(value, probe.context)
        for what, a, b in zip(probe.outputs, got, want, strict=True):
            expect_close(f"the {what} of compiled {name}", a, b, probe.tolerance)
    torch.compiler.reset()


def vmapped(probe: Layer) -> None:
    """R9: per-sample scores by ``vmap(grad(log_prob))``; ensembles by stacked parameters."""
    base = StandardNormal(probe.base.event_shape).to(probe.x.dtype)

    def log_prob(*row: Tensor) -> Tensor:
        # Not of a flow, which would refuse a base that goes on beyond the ends of a layer.
        z, log_det = probe.moved(*row)
        return base.log_prob(z) + log_det

    x = probe.x.clone().requires_grad_()
    (want,) = torch.autograd.grad(log_prob(x, *probe.rows[1:]).sum(), x)
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


@torch.no_grad()
def constants(probe: Layer) -> None:
    """R11: the promise of ``constant_log_det``; ``forward`` less ``unnormalized`` is constant."""
    rows = probe.at(probe.moved, probe.x).rows
    z, log_det = probe.moved(*rows)
    same_z, part = probe.moved.unnormalized(*rows)
    expect_close("z of unnormalized", same_z, z, probe.tolerance)
    expect_shape("log_det of unnormalized", part, log_det.shape)
    same = [("forward less unnormalized, the same for every x,", log_det - part)]
    if probe.moved.constant_log_det:
        same.append(("a log_det that does not depend on x", log_det))
    for what, value in same:
        expect_close(what, value, value[:1].expand_as(value), probe.tolerance)


@torch.no_grad()
def start(probe: Layer) -> None:
    """R12: before anything is learned the transform is the identity, unless stated otherwise."""
    z, log_det = probe.start(*probe.rows)
    expect_close("forward(x), which starts at the identity,", z, probe.x, probe.tolerance)
    expect_close("the log_det of the identity", log_det, 0 * log_det, probe.tolerance)
