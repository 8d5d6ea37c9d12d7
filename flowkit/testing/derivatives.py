"""Rules about derivatives: of x and parameters (R7, R13), the Jacobian (R5), finite ones (R6)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.func import functional_call, jacrev, vmap

from flowkit.errors import ContractError
from flowkit.scalar import ScalarMap
from flowkit.testing.points import (
    exact_points,
    expect_one_sided_derivatives,
    expect_second_derivatives,
)
from flowkit.testing.probe import Probe, expect, expect_close, expect_finite
from flowkit.transforms import CircularShift, Rescale, Transform

_NO_JACOBIAN = "a stochastic layer has no Jacobian"


def log_det_is_that_of_the_jacobian(probe: Probe) -> str | None:
    """R5: ``log_det`` equals ``slogdet`` of the Jacobian that autodiff finds, in float64."""
    if probe.moved.stochastic:
        return _NO_JACOBIAN
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
    return None


def _states(probe: Probe) -> tuple[Transform, Transform]:
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
        domain = getattr(module, "domain", None)
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        places.update(
            float(end)
            for name in ("lower_bound", "upper_bound")
            if hasattr(domain, name)
            for end in torch.as_tensor(getattr(domain, name)).flatten()
            if torch.isfinite(torch.as_tensor(end))
        )
    return [-0.0, *sorted(places)]


def _grid(probe: Probe, places: list[float]) -> Tensor:
    """A row for every place, at which all numbers are."""
    event = probe.x.shape[1:]
    return probe.x.new_tensor(places).reshape(-1, *(1,) * len(event)).expand(-1, *event)


def _one_by_one(probe: Probe, places: list[float]) -> Tensor:
    """Rows in which one number is at a place; three for each place, if there are so many."""
    event = probe.x.shape[1:]
    count = event.numel()
    index = torch.arange(len(places)).repeat_interleave(min(count, 3))
    numbers = (torch.arange(len(index)) % count).unsqueeze(-1)
    rows = probe.x[0].flatten().expand(len(index), -1)
    at_places = rows.scatter(-1, numbers, probe.x.new_tensor(places)[index].unsqueeze(-1))
    return at_places.unflatten(-1, event)


def _inside(probe: Probe, transform: Transform, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows that lie inside the domain, and one context for all of them."""
    context = None if probe.context is None else probe.context[0]
    with torch.no_grad():
        inside = torch.isfinite(transform(rows, context)[1])
    rows = rows[inside]
    return rows, None if context is None else context.expand(len(rows), -1)


def gradients_are_finite_everywhere(probe: Probe) -> str | None:
    """R6: finite gradients at the exact points, and far outside."""
    if probe.moved.stochastic:
        return _NO_JACOBIAN
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
    return None


def _expect_finite_gradients(
    name: str, module: Transform, value: Tensor, context: Tensor | None
) -> None:
    value = value.detach().requires_grad_()
    out, log_det = module(value, context)
    expect_finite(f"the output of {name}", out)
    wanted = [value, *(p for p in module.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(out.sum() + log_det.sum(), wanted, allow_unused=True)
    for what, gradient in itertools.zip_longest(["x"], gradients, fillvalue="a parameter"):
        if isinstance(gradient, Tensor):
            expect_finite(f"the gradient of {name} in {what}", gradient)


def two_orders_of_derivatives_are_right(probe: Probe) -> str | None:
    """R7: gradcheck and gradgradcheck in x, context and parameters; slopes at exact points."""
    if probe.moved.stochastic:
        return _NO_JACOBIAN
    if probe.dtype != torch.float64:
        return "finite differences need float64"
    context = None if probe.context is None else probe.context[:2]
    for name, module, value in probe.directions(probe.x[:2], context):
        # All parameters as one vector: one pair of evaluations serves them all.
        parameters = dict(module.named_parameters())
        vector = torch.cat([value.new_empty(0), *(p.flatten() for p in parameters.values())])
        given = [vector, value] if context is None else [vector, value, context]
        inputs = [tensor.detach().clone().requires_grad_() for tensor in given]

        def function(
            vector: Tensor,
            *rows: Tensor,
            module: Transform = module,
            parameters: Mapping[str, Tensor] = parameters,
        ) -> tuple[Tensor, ...]:
            pieces = vector.split([p.numel() for p in parameters.values()])
            shaped = {
                key: piece.reshape(p.shape)
                for (key, p), piece in zip(parameters.items(), pieces, strict=True)
            }
            out = functional_call(module, shaped, rows)
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
    for transform in _states(probe):
        _expect_slopes_at_exact_points(probe, transform)
    return None


def _smoothness(transform: Transform) -> float:
    """Number of continuous derivatives that all parts promise."""
    parts = [part for m in transform.modules() for part in (m, getattr(m, "scalar", None))]
    return min(getattr(part, "smoothness", math.inf) for part in parts)


def _expect_slopes_at_exact_points(probe: Probe, transform: Transform) -> None:
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


def every_parameter_gets_a_gradient(probe: Probe) -> str | None:
    """R13: no parameter is left out of the graph or has a gradient of zeros throughout."""
    wanted = {key: p for key, p in probe.moved.named_parameters() if p.requires_grad}
    if not wanted:
        return "the transform has no parameters to learn"
    z, log_det = probe.call(probe.moved, probe.x, probe.context)
    # Weights of their own, so that no symmetry of the sum makes a gradient vanish.
    weight = torch.linspace(0.5, 1.5, z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    loss = (weight * z.square()).sum() - log_det.sum()
    gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for key, gradient in zip(wanted, gradients, strict=True):
        if gradient is None:
            raise ContractError(f"expected a gradient for parameter {key!r}, got None")
        expect(
            bool((gradient != 0).any()),
            f"expected a gradient for parameter {key!r}, got zeros throughout",
        )
    return None
