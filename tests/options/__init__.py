"""The options of flowkit: for every keyword argument, what it must change, or must not.

``harness`` says what a case is, ``walk`` finds the arguments, the other modules hold the cases,
one module per part of the package. ``python -m tests.options`` prints how many are covered.
"""

from . import (  # noqa: F401
    bases,
    cli,
    conditioners,
    contract,
    datasets,
    dependence,
    energies,
    estimators,
    flow,
    interop,
    objectives,
    plotting,
    recipes,
    scalar,
    statistics,
    support,
    training,
    transforms,
)
from .harness import LEFT_OUT, TABLE
from .walk import arguments

__all__ = ["LEFT_OUT", "TABLE", "arguments"]
