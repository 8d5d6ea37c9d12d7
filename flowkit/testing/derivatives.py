"""Rules about derivatives: of x and parameters (R7, R13), the Jacobian (R5), finite ones (R6)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.func import functional_call, jacrev, vmap

from flowkit.errors import ContractError
from flowkit.testing.probe import Probe, expect, expect_close, expect_finite
from flowkit.transforms import Transform

_NO_JACOBIAN = "a stochastic layer has no Jacobian"


def log_det_is_that_of_the_jacobian(probe: Probe) -> str | None:
    """R5: ``log_det`` equals ``slogdet`` of the Jacobian that autodiff finds, in float64."""
    if probe.moved.stochastic:
        return _NO_JACOBIAN
    exact = probe.to(torch.float64)
    inputs = [(probe.x, probe.context)]
    if probe.on_whole_line() and probe.far:
        inputs.append((probe.far_rows()[: len(probe.x)], probe.context))
    for x, context in inputs:
        for name, module, value in probe.directions(x, context):
            reference = exact.moved if name == "forward" else exact.moved.inv
            with torch.no_grad():
                log_det = module(value, context)[1]
            rows = (value.double(),) if context is None else (value.double(), context.double())
            jacobian = vmap(jacrev(lambda *row, m=reference: m(*row)[0]))(*rows)
            size = value[0].numel()
            want = torch.linalg.slogdet(jacobian.detach().reshape(-1, size, size))[1]
            what = f"log_det of {name} = log|det| of the Jacobian"
            expect_close(what, log_det, want, probe.tolerance)
    return None


def _landmarks(transform: Transform) -> list[float]:
    """Bounds and starting knots of every scalar map inside, and the ends of the domain."""
    places = [0.0]
    for module in transform.modules():
        scalar = getattr(module, "scalar", None)
        ends = [getattr(scalar, "bounds", None)]
        if (bound := getattr(scalar, "bound", None)) is not None:
            ends.append((-bound, bound))
        knots = getattr(scalar, "bins", 1)
        for low, high in filter(None, ends):
            if abs(low) + abs(high) < torch.inf:
                places += [low + (high - low) * i / knots for i in range(knots)] + [high]
        domain = getattr(module, "domain", None)
        while isinstance(domain, constraints.independent):
            domain = domain.base_constraint
        places += [
            float(end)
            for name in ("lower_bound", "upper_bound")
            if hasattr(domain, name)
            for end in torch.as_tensor(getattr(domain, name)).flatten()
        ]
    return sorted(set(places))


def gradients_are_finite_everywhere(probe: Probe) -> str | None:
    """R6: finite gradients at 0, at every bound and starting knot, and far outside."""
    if probe.moved.stochastic:
        return _NO_JACOBIAN
    far = [sign * distance for distance in probe.far for sign in (-1, 1)]
    places = probe.x.new_tensor(_landmarks(probe.moved) + far)
    event = probe.x.shape[1:]
    grid = places.reshape(-1, *(1,) * len(event)).expand(-1, *event)
    context = None if probe.context is None else probe.context[:1].expand(len(grid), -1)
    for transform in (probe.start, probe.moved):
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
    """R7: gradcheck and gradgradcheck of both directions in x, context and parameters."""
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
    return None


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
