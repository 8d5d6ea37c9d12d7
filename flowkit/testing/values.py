"""Rules about the values of layers: inverse (R4), constants (R11), start (R12)."""

from __future__ import annotations

import torch

from flowkit.testing.layers import Layer
from flowkit.testing.probe import expect_close, expect_shape


@torch.no_grad()
def the_inverse_undoes_forward(probe: Layer) -> str | None:
    """R4: both round trips, and log-determinants that cancel, near the data and far away."""
    if not probe.invertible:
        return "the transform defines no inverse"
    inputs = [("the data", probe.x, probe.context)]
    if probe.on_whole_line() and probe.far:
        repeated = None if probe.context is None else probe.context.repeat(len(probe.far), 1)
        inputs.append((f"|x| up to {max(probe.far):g}", probe.far_rows(), repeated))
    for where, x, context in inputs:
        z, log_det = probe.moved(x, context)
        back, back_log_det = probe.moved.inverse(z, context)
        again = probe.moved(back, context)[0]
        for what, got, want in (
            ("inverse(forward(x))", back, x),
            ("-log_det of the inverse", -back_log_det, log_det),
            ("forward(inverse(z))", again, z),
        ):
            expect_close(f"{what} at {where}", got, want, probe.tolerance)
    return None


@torch.no_grad()
def constants_are_constant(probe: Layer) -> None:
    """R11: the promise of ``constant_log_det``; ``forward`` less ``unnormalized`` is constant."""
    context = None if probe.context is None else probe.context[:1].expand_as(probe.context)
    z, log_det = probe.moved(probe.x, context)
    same_z, part = probe.moved.unnormalized(probe.x, context)
    expect_close("z of unnormalized", same_z, z, probe.tolerance)
    expect_shape("log_det of unnormalized", part, log_det.shape)
    constants = [("forward less unnormalized, the same for every x,", log_det - part)]
    if probe.moved.constant_log_det:
        constants.append(("a log_det that does not depend on x", log_det))
    for what, value in constants:
        expect_close(what, value, value[:1].expand_as(value), probe.tolerance)


@torch.no_grad()
def starts_as_stated(probe: Layer) -> str | None:
    """R12: before anything is learned the transform is the identity, unless stated otherwise."""
    if not probe.starts_at_identity:
        return "stated not to start at the identity"
    z, log_det = probe.start(probe.x, probe.context)
    expect_close("forward(x), which starts at the identity,", z, probe.x, probe.tolerance)
    expect_close("the log_det of the identity", log_det, 0 * log_det, probe.tolerance)
    return None
