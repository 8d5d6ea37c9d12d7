"""Rules about values: shapes (R1, R2), dtypes (R3), inverse (R4), constants (R11), start (R12)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from flowkit.testing.probe import Probe, expect, expect_close, expect_shape, mapped_shape

_BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "no batch dims": lambda rows: rows[0],
    "two batch dims": lambda rows: rows.unflatten(0, (2, -1)),
    "an empty batch": lambda rows: rows[:0],
}


@torch.no_grad()
def log_det_has_batch_shape(probe: Probe) -> None:
    """R1: ``z`` has the shape that is stated, ``log_det`` the shape of the batch."""
    for name, module, value in probe.directions():
        out, log_det = probe.call(module, value, probe.context)
        batch = value.shape[: value.ndim - module.event_ndim]
        event = mapped_shape(module, value.shape[len(batch) :])
        expect_shape(f"the output of {name}", out, (*batch, *event))
        expect_shape(f"the log_det of {name}", log_det, tuple(batch))


@torch.no_grad()
def every_batch_shape_gives_the_same_numbers(probe: Probe) -> None:
    """R2: no batch dims, one, two, an empty batch, broadcast context."""
    for name, module, value in probe.directions():
        context = probe.context
        out, log_det = probe.call(module, value, context)

        cases: list[tuple[str, Tensor, Tensor | None, Tensor, Tensor]] = [
            (how, cut(value), None if context is None else cut(context), cut(out), cut(log_det))
            for how, cut in _BATCHES.items()
        ]
        if context is None:
            cases.append(("a context it does not need", value, value.new_ones(5), out, log_det))
        else:
            rows = value.expand(2, *value.shape)
            column = context[:2].unsqueeze(1)
            grid = probe.call(module, rows, column.expand(2, len(value), -1))
            cases += [
                ("one context for all rows", value, context[0], grid[0][0], grid[1][0]),
                ("a column of contexts", value, column, *grid),
            ]
        for how, inputs, context_, *wanted in cases:
            got = probe.call(module, inputs, context_)
            for what, a, b in zip(("output", "log_det"), got, wanted, strict=True):
                what = f"the {what} of {name} with {how}"
                if probe.moved.stochastic:
                    expect_shape(what, a, tuple(b.shape))
                else:
                    expect_close(what, a, b, probe.tolerance)


@torch.no_grad()
def dtype_and_device_follow_the_input(probe: Probe) -> None:
    """R3: float64, float32, a bfloat16 smoke run, and the meta device."""
    context = probe.context
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        other = probe.to(dtype)
        for name, module, value in other.directions():
            out, log_det = other.call(module, value, other.context)
            for what, tensor in (("output", out), ("log_det", log_det)):
                expect(
                    tensor.dtype == dtype,
                    f"expected the {what} of {name} in {dtype}, got {tensor.dtype}; remedy: make "
                    "new tensors with x.new_zeros and the like",
                )
    meta = copy.deepcopy(probe.moved).to("meta")
    value, context = probe.x.to("meta"), None if context is None else context.to("meta")
    for name, module in (("forward", meta), ("inverse", meta.inv))[: 1 + probe.invertible]:
        wanted = (len(value), *mapped_shape(module, value.shape[1:]))
        out, log_det = probe.call(module, value, context)
        for what, tensor in (("output", out), ("log_det", log_det)):
            expect(
                tensor.device.type == "meta",
                f"expected the {what} of {name} on the device of x (meta), got {tensor.device}; "
                "remedy: make new tensors with x.new_zeros and the like",
            )
        expect_shape(f"the output of {name} on the meta device", out, wanted)
        value = out


@torch.no_grad()
def the_inverse_undoes_forward(probe: Probe) -> str | None:
    """R4: both round trips, and log-determinants that cancel, near the data and far away."""
    if probe.moved.stochastic:
        return "a stochastic layer is not undone by its inverse"
    if not probe.invertible:
        return "the transform defines no inverse"
    inputs = [("the data", probe.x, probe.context)]
    if probe.on_whole_line() and probe.far:
        repeated = None if probe.context is None else probe.context.repeat(len(probe.far), 1)
        inputs.append((f"|x| up to {max(probe.far):g}", probe.far_rows(), repeated))
    for where, x, context in inputs:
        z, log_det = probe.moved(x, context)
        back, back_log_det = probe.moved.inverse(z, context)
        expect_close(f"inverse(forward(x)) at {where}", back, x, probe.tolerance)
        expect_close(
            f"-log_det of the inverse at {where}", -back_log_det, log_det, probe.tolerance
        )
        again = probe.moved(back, context)[0]
        expect_close(f"forward(inverse(z)) at {where}", again, z, probe.tolerance)
    return None


@torch.no_grad()
def constants_are_constant(probe: Probe) -> str | None:
    """R11: the promise of ``constant_log_det``; ``forward`` less ``unnormalized`` is constant."""
    if probe.moved.stochastic:
        return "a stochastic layer has no log-determinant"
    context = None if probe.context is None else probe.context[:1].expand_as(probe.context)
    z, log_det = probe.moved(probe.x, context)
    if probe.moved.constant_log_det:
        same = log_det[:1].expand_as(log_det)
        expect_close("a log_det that does not depend on x", log_det, same, probe.tolerance)
    same_z, part = probe.moved.unnormalized(probe.x, context)
    expect_close("z of unnormalized", same_z, z, probe.tolerance)
    expect_shape("log_det of unnormalized", part, tuple(log_det.shape))
    rest = log_det - part
    expect_close(
        "forward less unnormalized, the same for every x,",
        rest,
        rest[:1].expand_as(rest),
        probe.tolerance,
    )
    return None


@torch.no_grad()
def starts_as_stated(probe: Probe) -> str | None:
    """R12: before anything is learned the transform is the identity, unless stated otherwise."""
    if probe.moved.stochastic:
        return "a stochastic layer is not the identity"
    if not probe.starts_at_identity:
        return "stated not to start at the identity"
    z, log_det = probe.start(probe.x, probe.context)
    expect_close("forward(x), which starts at the identity,", z, probe.x, probe.tolerance)
    expect_close(
        "the log_det of the identity", log_det, torch.zeros_like(log_det), probe.tolerance
    )
    return None
