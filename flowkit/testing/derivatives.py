"""Rules about the derivatives of layers: the Jacobian (R5), finite ones (R6), slopes (R7)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from flowkit.scalar import ScalarMap
from flowkit.testing.common import two_orders_of_derivatives_are_right
from flowkit.testing.layers import Layer, plain
from flowkit.testing.points import (
    exact_points,
    expect_one_sided_derivatives,
    expect_second_derivatives,
)
from flowkit.testing.probe import expect, expect_close, expect_finite, expect_finite_gradients
from flowkit.transforms import CircularShift, Rescale, Transform


def log_det_is_that_of_the_jacobian(probe: Layer) -> None:
    """R5: ``log_det`` equals ``slogdet`` of the Jacobian that autodiff finds, in float64."""
    inputs = [(probe.moved, probe.x, probe.context)]
    if probe.on_whole_line() and probe.far:
        inputs.append((probe.moved, probe.far_rows()[: len(probe.x)], probe.context))
    inputs += [
        (transform, *_inside(probe, transform, _grid(probe, _landmarks(transform))))
        for transform in _states(probe)
    ]
    for transform, x, context in inputs:
        if not len(x):
            continue
        for name, module, value in probe.directions(x, context, transform):
            exact = copy.deepcopy(module).double()
            with torch.no_grad():
                log_det = module(value, context)[1]
            rows = (value.double(),) if context is None else (value.double(), context.double())
            jacobian = vmap(jacrev(lambda *row, m=exact: m(*row)[0]))(*rows)
            size = value[0].numel()
            want = torch.linalg.slogdet(jacobian.detach().reshape(-1, size, size))[1]
            what = f"log_det of {name} = log|det| of the Jacobian"
            # A Jacobian that is not a number is for R6 to name.
            known = ~want.isnan()
            expect_close(what, log_det[known], want[known], probe.tolerance)


def _states(probe: Layer) -> tuple[Transform, Transform]:
    """The transform as it was given, and with random parameters."""
    return probe.start, probe.moved


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
        places.update(
            float(end)
            for name in ("lower_bound", "upper_bound")
            if hasattr(domain, name)
            for end in torch.as_tensor(getattr(domain, name)).flatten()
            if torch.isfinite(torch.as_tensor(end))
        )
    return [-0.0, *sorted(places)]


def _grid(probe: Layer, places: list[float]) -> Tensor:
    """A row for every place, at which all numbers are."""
    event = probe.x.shape[1:]
    return probe.x.new_tensor(places).reshape(-1, *(1,) * len(event)).expand(-1, *event)


def _one_by_one(probe: Layer, places: list[float]) -> Tensor:
    """Rows in which one number is at a place; three for each place, if there are so many."""
    event = probe.x.shape[1:]
    count = event.numel()
    index = torch.arange(len(places)).repeat_interleave(min(count, 3))
    numbers = (torch.arange(len(index)) % count).unsqueeze(-1)
    rows = probe.x[0].flatten().expand(len(index), -1)
    at_places = rows.scatter(-1, numbers, probe.x.new_tensor(places)[index].unsqueeze(-1))
    return at_places.unflatten(-1, event)


def _inside(probe: Layer, transform: Transform, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows that lie inside the domain, and one context for all of them."""
    context = None if probe.context is None else probe.context[0]
    with torch.no_grad():
        inside = torch.isfinite(transform(rows, context)[1])
    rows = rows[inside]
    return rows, None if context is None else context.expand(len(rows), -1)


def gradients_are_finite_everywhere(probe: Layer) -> None:
    """R6: finite gradients at the exact points, and far outside."""
    far = [sign * distance for distance in probe.far for sign in (-1, 1)]
    for transform in _states(probe):
        grid = _grid(probe, _landmarks(transform) + far)
        context = None if probe.context is None else probe.context[:1].expand(len(grid), -1)
        z, log_det = transform(grid, context)
        inside = torch.isfinite(log_det.detach())
        expect(not bool(torch.isnan(log_det).any()), "expected log_det without NaN, got NaN")
        _expect_finite_gradients("forward", transform, grid, context)
        if probe.invertible:
            kept = None if context is None else context[inside]
            _expect_finite_gradients("inverse", transform.inv, z.detach()[inside], kept)


def _expect_finite_gradients(
    name: str, module: Transform, value: Tensor, context: Tensor | None
) -> None:
    value = value.detach().requires_grad_()
    out, log_det = module(value, context)
    expect_finite(f"the output of {name}", out)
    total = out.sum() + log_det.sum()
    expect_finite_gradients(name, total, {"x": value, **dict(module.named_parameters())})


def derivatives_are_right(probe: Layer) -> str | None:
    """R7: two orders of derivatives, and slopes at exact points."""
    reason = two_orders_of_derivatives_are_right(probe)
    if reason is None:
        for transform in _states(probe):
            _expect_slopes_at_exact_points(probe, transform)
    return reason


def _smoothness(transform: Transform) -> float:
    """Number of continuous derivatives that all parts promise."""
    parts = [part for m in transform.modules() for part in (m, getattr(m, "scalar", None))]
    return min(getattr(part, "smoothness", math.inf) for part in parts)


def _expect_slopes_at_exact_points(probe: Layer, transform: Transform) -> None:
    wraps = any(isinstance(m, (Rescale, CircularShift)) for m in transform.modules())
    smooth, generator = _smoothness(transform) >= 2, probe.generator()
    # Two numbers at once, each beside a knot, have more than two sides.
    at_places = _grid if smooth else _one_by_one
    x, context = _inside(probe, transform, at_places(probe, _landmarks(transform)))
    if not len(x):
        return
    for name, module, value in probe.directions(x, context, transform):
        event = value.shape[1:]

        def function(
            rows: Tensor, module: Transform = module, event: torch.Size = event
        ) -> tuple[Tensor, Tensor]:
            out, log_det = module(rows.unflatten(-1, event), context)
            out = out.reshape(*log_det.shape, -1)
            return out @ torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype), log_det

        points = value.flatten(1)
        what = f"{name}, z and then log_det,"
        expect_one_sided_derivatives(what, function, points, (True, smooth), wraps=wraps)
        if smooth:
            expect_second_derivatives(what, function, points, generator, wraps=wraps)
