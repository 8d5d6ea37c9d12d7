"""Rules about the derivatives of layers: the Jacobian (R5), finite ones (R6), slopes (R7)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from flowkit.scalar import ScalarMap
from flowkit.testing.common import two_orders_of_derivatives
from flowkit.testing.layers import Layer, plain
from flowkit.testing.points import (
    exact_points,
    expect_one_sided_derivatives,
    expect_second_derivatives,
)
from flowkit.testing.probe import expect, expect_close, expect_finite, expect_finite_gradients
from flowkit.transforms import CircularShift, Rescale, Transform


def jacobian(probe: Layer) -> None:
    """R5: ``log_det`` equals ``slogdet`` of the Jacobian that autodiff finds, in float64."""
    far = [asked for _, asked in probe.far_away()[:1]]
    for asked in [probe, *far, *(at.inside() for at in _at_landmarks(probe))]:
        for name, module, value in asked.directions() if len(asked.x) else ():
            exact = copy.deepcopy(module).double()
            with torch.no_grad():
                log_det = module(value, asked.context)[1]
            rows = (tensor.double() for tensor in (value, *asked.rows[1:]))
            slopes = vmap(jacrev(lambda *row, m=exact: m(*row)[0]))(*rows)
            size = value[0].numel()
            want = torch.linalg.slogdet(slopes.detach().reshape(-1, size, size))[1]
            what = f"log_det of {name} = log|det| of the Jacobian"
            # A Jacobian that is not a number is for R6 to name.
            known = ~want.isnan()
            expect_close(what, log_det[known], want[known], probe.tolerance)


def _at_landmarks(probe: Layer, *more: float) -> Iterator[Layer]:
    """The transform as it was given, and with random parameters, where all numbers are at once."""
    for transform in (probe.start, probe.moved):
        places = probe.x.new_tensor([*_landmarks(transform), *more])
        event = probe.x.shape[1:]
        yield probe.at(transform, places.reshape(-1, *[1] * len(event)).expand(-1, *event))


def _landmarks(transform: Transform) -> list[float]:
    """Exact points of every scalar map inside, and the ends of the domain."""
    places = {0.0}
    for module in transform.modules():
        scalar, own = getattr(module, "scalar", None), getattr(module, "params", None)
        if isinstance(scalar, ScalarMap):
            params = [torch.zeros(scalar.param_size, dtype=torch.float64)]
            params += [own] if isinstance(own, Tensor) else []
            places.update(*(exact_points(scalar, p) for p in params))
        domain = plain(getattr(module, "domain", None))
        for name in ("lower_bound", "upper_bound"):
            ends = torch.as_tensor(getattr(domain, name, math.inf)).flatten()
            places.update(ends[ends.isfinite()].tolist())
    return [-0.0, *sorted(places)]


def _one_by_one(probe: Layer, transform: Transform) -> Tensor:
    """Rows in which one number is at a place; three for each place, if there are so many."""
    places, event = _landmarks(transform), probe.x.shape[1:]
    count = event.numel()
    index = torch.arange(len(places)).repeat_interleave(min(count, 3))
    numbers = (torch.arange(len(index)) % count).unsqueeze(-1)
    rows = probe.x[0].flatten().expand(len(index), -1)
    at_places = rows.scatter(-1, numbers, probe.x.new_tensor(places)[index].unsqueeze(-1))
    return at_places.unflatten(-1, event)


def finite_gradients(probe: Layer) -> None:
    """R6: finite gradients at the exact points, and far outside."""
    for at in _at_landmarks(probe, *probe.far, *(-far for far in probe.far)):
        with torch.no_grad():
            log_det = at.moved(*at.rows)[1]
        expect(not log_det.isnan().any(), "expected log_det without NaN, got NaN")
        _expect_finite_gradients("forward", at.moved, *at.rows)
        inside = at.inside()
        for name, module, value in inside.directions():
            _expect_finite_gradients(name, module, value, *inside.rows[1:])


def _expect_finite_gradients(name: str, module: Transform, x: Tensor, *context: Tensor) -> None:
    value = x.detach().requires_grad_()
    out, log_det = module(value, *context)
    expect_finite(f"the output of {name}", out)
    total = out.sum() + log_det.sum()
    expect_finite_gradients(name, total, {"x": value, **dict(module.named_parameters())})


def derivatives(probe: Layer) -> None:
    """R7: two orders of derivatives, and slopes at exact points."""
    two_orders_of_derivatives(probe)
    for at in _at_landmarks(probe):
        # Two numbers at once, each beside a knot, have more than two sides.
        smooth = _smoothness(at.moved) >= 2
        asked = at if smooth else at.at(at.moved, _one_by_one(probe, at.moved))
        _expect_slopes(asked.inside(), smooth)


def _smoothness(transform: Transform) -> float:
    """Number of continuous derivatives that all parts promise."""
    parts = [part for m in transform.modules() for part in (m, getattr(m, "scalar", None))]
    return min(getattr(part, "smoothness", math.inf) for part in parts)


def _expect_slopes(probe: Layer, smooth: bool) -> None:  # noqa: FBT001
    wraps = any(isinstance(m, (Rescale, CircularShift)) for m in probe.moved.modules())
    generator = probe.generator()
    for name, module, value in probe.directions() if len(probe.x) else ():

        def function(
            rows: Tensor, module: Transform = module, event: torch.Size = value.shape[1:]
        ) -> tuple[Tensor, Tensor]:
            out, log_det = module(rows.unflatten(-1, event), probe.context)
            out = out.reshape(*log_det.shape, -1)
            return out @ torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype), log_det

        points = value.flatten(1)
        what = f"{name}, z and then log_det,"
        expect_one_sided_derivatives(what, function, points, (True, smooth), wraps=wraps)
        if smooth:
            expect_second_derivatives(what, function, points, generator, wraps=wraps)
