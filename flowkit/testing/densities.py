"""Rules about densities: path weights of stochastic layers (R14), total mass (R15)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to

from flowkit.flow import Flow
from flowkit.testing.layers import Layer
from flowkit.testing.probe import DRAWS, expect, expect_mean
from flowkit.testing.runner import Skipped


@torch.no_grad()
def path_weights(probe: Layer) -> None:
    r"""R14: :math:`E[r(x)\, e^{s} / p_Z(z)] = 1` for a normalised target density r.

    The expectation is over noise :math:`z \sim p_Z` and its path to x; s is what ``inverse``
    returns in the log-determinant slot, the log-ratio of the path back to the path taken.
    """
    if probe.target is None:
        raise Skipped("needs target=, a normalised log-density over x")
    generator = probe.generator()
    rows = None if probe.context is None else probe.context[:1].expand(DRAWS, -1)
    z = probe.base.sample((DRAWS,), None, generator)
    x, ratio = probe.moved.inverse(z, rows, generator=generator)
    weights = torch.exp(probe.target(x) + ratio - probe.base.log_prob(z))
    expect_mean("path weights", weights, 1.0, probe.tolerance)


@torch.no_grad()
def total_mass(probe: Layer) -> None:
    """R15: the mass of the flow on its domain, by the trapezoidal rule in 1 and 2 dimensions."""
    context = None if probe.context is None else probe.context[0]
    flow = Flow(probe.moved, probe.base)
    expect_mass_of_one(
        lambda x: flow.log_prob(x, context),
        biject_to(probe.moved.domain),
        probe.x[0],
        max(2e-3, 10 * probe.tolerance),
    )


def expect_mass_of_one(
    log_prob: Callable[[Tensor], Tensor],
    to_domain: Transform | None,
    event: Tensor,
    tolerance: float = 0.02,
) -> None:
    """Expect a density to integrate to one, by the trapezoidal rule, if its events are small.

    Args:
        log_prob: The log-density ``(n, *event) -> (n,)``.
        to_domain: Maps the whole space to where it is defined; ``None`` for the identity.
        event: One event.
        tolerance: Largest error of the mass.
    """
    size = event.numel()
    if size > 2:
        raise Skipped(f"an event of {size} numbers is too large for a grid")
    # Steps that grow like cosh: fine around the origin, and 74 or 27 units wide.
    reach, points = (5.0, 4001) if size == 1 else (4.0, 321)
    s = torch.linspace(-reach, reach, points, dtype=event.dtype)
    log_step = math.log(2 * reach / (points - 1)) + s.cosh().log()
    x = u = torch.cartesian_prod(*[s.sinh()] * size).reshape(-1, *event.shape)
    log_steps = torch.cartesian_prod(*[log_step] * size).reshape(-1, size).sum(-1)
    if to_domain is not None:
        x = to_domain(u)
        # At the ends of a bounded domain the volume is zero, to rounding.
        log_steps = log_steps + to_domain.log_abs_det_jacobian(u, x).nan_to_num(neginf=-1e4)
    mass = torch.exp(log_prob(x) + log_steps).double().sum().item()
    expect(
        abs(mass - 1) <= tolerance, f"expected a density with a total mass of 1, got {mass:.6g}"
    )
