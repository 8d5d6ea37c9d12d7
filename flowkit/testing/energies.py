"""check_energy: the contract of energies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from flowkit import checks
from flowkit.energies import Energy
from flowkit.errors import NotInvertibleError
from flowkit.testing.common import DRAWS, OF_PARTS, STANDARD_ERRORS, Part
from flowkit.testing.densities import mass_is_one
from flowkit.testing.probe import (
    DTYPES,
    ROWS,
    Rules,
    check_probe,
    expect,
    expect_close,
    noise_of,
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
    x = noise_of(ROWS, *energy.event_shape, generator=torch.Generator().manual_seed(seed))
    part = Part.of(energy, x, energy.context_size, seed)
    return check_probe("check_energy", type(energy).__name__, part, _RULES, dtypes, skip)


def _forces(part: Part) -> None:
    x = part.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(part(x, part.context).sum(), x)
    energy, force = part.moved.energy_and_force(part.x, part.context)
    expect_close("the force", force, -gradient, part.tolerance)
    expect_close("the energy beside it", energy, part(part.x, part.context), part.tolerance)


def _stein(part: Part) -> str | None:
    try:
        x = part.moved.sample(DRAWS, generator=part.generator())
    except (NotInvertibleError, NotImplementedError) as error:
        return str(error)
    force = part.moved.force(x).detach().reshape(DRAWS, -1).double()
    mean, deviation = force.mean(0), force.std(0) / math.sqrt(DRAWS)
    expect(
        bool((mean.abs() <= STANDARD_ERRORS * deviation + 1e-3).all()),
        f"expected a mean force of 0, got {mean.tolist()} with errors {deviation.tolist()}",
    )
    return None


@torch.no_grad()
def _normalizer(part: Part) -> str | None:
    try:
        exact = float(part.moved.log_normalizer())
    except (NotInvertibleError, NotImplementedError) as error:
        return str(error)
    return mass_is_one(lambda x: -part(x) - exact, None, part.x[0])


_RULES: Rules[Part] = {
    **OF_PARTS,
    "R5": ("the force is minus the gradient", _forces),
    "R14": ("exact samples have a mean force of zero", _stein),
    "R15": ("log_normalizer is that of a grid", _normalizer),
}
