"""The contract as programs, for every kind of part: ``check_transform`` for layers, and others."""

from flowkit.testing.contract import check_transform
from flowkit.testing.objectives import check_objective
from flowkit.testing.parts import check_base, check_conditioner, check_energy
from flowkit.testing.scalars import check_scalar

__all__ = [
    "check_base",
    "check_conditioner",
    "check_energy",
    "check_objective",
    "check_scalar",
    "check_transform",
]
