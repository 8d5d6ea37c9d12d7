"""check_energy: the contract of energies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from flowkit import checks
from flowkit.energies import Energy
from flowkit.errors import NotInvertibleError
from flowkit.testing.densities import total_mass
from flowkit.testing.parts import (
    DRAWS,
    DTYPES,
    ERRORS,
    ROWS,
    Part,
    PartRule,
    check_part,
    noise_of,
    part_of,
)
from flowkit.testing.probe import (
    expect,
    expect_close,
)
from flowkit.testing.report import ContractReport


def check_energy(
    energy: Energy,
    *,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
) -> ContractReport:
    """Check an energy against the contract.

    R1 to R3 shapes, batches, dtypes; R5 the force is minus the gradient; R6, R7 derivatives; R9
    vmap; R10 copies; R13 gradients; R14 exact samples have a mean force of zero; R15
    ``log_normalizer`` is that of a grid, in one and two dimensions.

    Args:
        energy: The energy.
        skip: Rules that shall not be checked, each with a reason.
        dtypes: The dtypes in which every rule is run.
        seed: Seed of everything random.

    Raises:
        ContractError: If a rule is broken; names the rule, what was expected and what came.

    Example:
        >>> from flowkit.testing import check_energy
        >>> from flowkit.toys import DoubleWell
        >>> check_energy(DoubleWell()).skipped
        {'R13': 'there are no parameters to learn'}
    """
    seed = checks.integer("check_energy", "seed", seed, least=0, most=None)
    call = lambda module, x, context: module(x, context)  # noqa: E731
    rules: dict[str, tuple[str, PartRule]] = {
        "R5": ("the force is minus the gradient", _forces),
        "R14": ("exact samples have a mean force of zero", partial(_stein, seed=seed)),
        "R15": ("log_normalizer is that of a grid", _normalizer),
    }
    x = noise_of(ROWS, *energy.event_shape, seed=seed)
    part = part_of(energy, call, x, energy.context_size, (), seed)
    return check_part("check_energy", part, rules, skip, dtypes, seed)


def _forces(part: Part) -> None:
    x = part.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(part(x, part.context).sum(), x)
    energy, force = part.moved.energy_and_force(part.x, part.context)
    expect_close("the force", force, -gradient, part.tolerance)
    expect_close("the energy beside it", energy, part(part.x, part.context), part.tolerance)


def _stein(part: Part, seed: int) -> str | None:
    try:
        x = part.moved.sample(DRAWS, generator=torch.Generator().manual_seed(seed))
    except (NotInvertibleError, NotImplementedError) as error:
        return str(error)
    force = part.moved.force(x).detach().reshape(DRAWS, -1).double()
    mean, deviation = force.mean(0), force.std(0) / math.sqrt(DRAWS)
    expect(
        bool((mean.abs() <= ERRORS * deviation + 1e-3).all()),
        f"expected a mean force of 0, got {mean.tolist()} with errors {deviation.tolist()}",
    )
    return None


@torch.no_grad()
def _normalizer(part: Part) -> str | None:
    size = part.x[0].numel()
    try:
        exact = float(part.moved.log_normalizer())
    except (NotInvertibleError, NotImplementedError) as error:
        return str(error)
    if size > 2:
        return f"an event of {size} numbers is too large for a grid"
    mass = total_mass(lambda x: -part(x) - exact, None, part.x.shape[1:], part.x.dtype)
    expect(abs(mass - 1) <= 0.02, f"expected exp(-u) / Z with a mass of 1, got {mass:.6g}")
    return None
