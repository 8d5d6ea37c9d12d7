"""Rules about densities: path weights of stochastic layers (R14), total mass (R15)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to

from flowkit.flow import Flow
from flowkit.testing.common import DRAWS, STANDARD_ERRORS
from flowkit.testing.layers import Layer
from flowkit.testing.probe import expect


@torch.no_grad()
def path_weights_average_to_one(probe: Layer) -> str | None:
    r"""R14: :math:`E[r(x)\, e^{s} / p_Z(z)] = 1` for a normalised target density r.

    The expectation is over noise :math:`z \sim p_Z` and its path to x; s is what ``inverse``
    returns in the log-determinant slot, the log-ratio of the path back to the path taken.
    """
    if not probe.moved.stochastic:
        return "the transform is deterministic"
    if probe.target is None:
        return "needs target=, a normalised log-density over x"
    if not probe.invertible:
        return "the transform defines no inverse"
    generator = probe.generator()
    rows = None if probe.context is None else probe.context[:1].expand(DRAWS, -1)
    z = probe.base.sample((DRAWS,), None, generator)
    x, ratio = probe.moved.inverse(z, rows, generator=generator)
    weights = torch.exp(probe.target(x) + ratio - probe.base.log_prob(z)).double()
    mean, error = weights.mean().item(), weights.std().item() / math.sqrt(DRAWS)
    expect(
        abs(mean - 1) <= STANDARD_ERRORS * error + probe.tolerance,
        f"expected path weights with mean 1, got {mean:.5g} with a standard error of {error:.2g}",
    )
    return None


@torch.no_grad()
def the_density_integrates_to_one(probe: Layer) -> str | None:
    """R15: the mass of the flow on its domain, by the trapezoidal rule in 1 and 2 dimensions."""
    context = None if probe.context is None else probe.context[0]
    flow = Flow(probe.moved, probe.base)
    return mass_is_one(
        lambda x: flow.log_prob(x, context),
        biject_to(probe.moved.domain),
        probe.x[0],
        max(2e-3, 10 * probe.tolerance),
    )


def mass_is_one(
    log_prob: Callable[[Tensor], Tensor],
    to_domain: Transform | None,
    event: Tensor,
    tolerance: float = 0.02,
) -> str | None:
    """Expect a total mass of 1 of a density, if its events are small enough.

    Args:
        log_prob: The log-density ``(n, *event) -> (n,)``.
        to_domain: Maps the whole space to where it is defined; ``None`` for the identity.
        event: One event.
        tolerance: Largest error of the mass.
    """
    if event.numel() > 2:
        return f"an event of {event.numel()} numbers is too large for a grid"
    mass = total_mass(log_prob, to_domain, event.shape, event.dtype)
    expect(
        abs(mass - 1) <= tolerance, f"expected a density with a total mass of 1, got {mass:.6g}"
    )
    return None


def total_mass(
    log_prob: Callable[[Tensor], Tensor],
    to_domain: Transform | None,
    event: Sequence[int],
    dtype: torch.dtype,
) -> float:
    """The integral of a density in one or two dimensions, by the trapezoidal rule.

    Args:
        log_prob: The log-density ``(n, *event) -> (n,)``.
        to_domain: Maps the whole space to where it is defined; ``None`` for the identity.
        event: The shape of the event.
        dtype: The dtype of the numbers.
    """
    size = math.prod(event)
    # Steps that grow like cosh: fine around the origin, and 74 or 27 units wide.
    reach, points = (5.0, 4001) if size == 1 else (4.0, 321)
    s = torch.linspace(-reach, reach, points, dtype=dtype)
    log_step = math.log(2 * reach / (points - 1)) + s.cosh().log()
    x = u = torch.cartesian_prod(*[s.sinh()] * size).reshape(-1, *event)
    log_steps = torch.cartesian_prod(*[log_step] * size).reshape(-1, size).sum(-1)
    if to_domain is not None:
        x = to_domain(u)
        # At the ends of a bounded domain the volume is zero, to rounding.
        log_steps = log_steps + to_domain.log_abs_det_jacobian(u, x).nan_to_num(neginf=-1e4)
    return torch.exp(log_prob(x) + log_steps).double().sum().item()
