"""Rows that are dependent: covariances, joint densities, and their likelihood."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from linear_operator import to_linear_operator
from torch import Tensor

from flowkit import DependentLikelihood, Flow
from flowkit.bases import StandardNormal
from flowkit.dependence import (
    AutoregressiveTime,
    EquicorrelatedBlocks,
    Kinship,
    Spatial,
    StructuredKinship,
    SumOfCovariances,
    UpdateCovariance,
    joint_log_prob,
    sample_jointly,
)
from flowkit.dependence.base import RowCovariance
from flowkit.dependence.joint import noise_and_log_det
from flowkit.kernels import Matern
from flowkit.transforms import DenseLinear

from .harness import Fresh, differs, draws, falls, number_of_parameters, of, rises, same
from .parts import C, D, X, conditional, rows, stirred

BLOCKS = (0, 0, 1, 1, 2, 2)
families = EquicorrelatedBlocks(BLOCKS, rho=0.5)
PLACED = {"x": X, "row": torch.arange(6)}
NORMAL = Flow(stirred(DenseLinear(2)), StandardNormal(2))


def dependent(**options: Any) -> Any:
    """The loss of dependent rows in training, and its gradient."""
    objective = DependentLikelihood(families, **options).train()
    half = {"x": X[:4], "row": torch.arange(4)}
    batch = PLACED if options.get("mode", "exact") == "exact" else half
    return objective(NORMAL, batch).value


of(
    DependentLikelihood,
    dependent,
    mode=differs("blocks", "pairs"),
    chunk=same("the same in less memory", 2, 4, rounding=1e-6),
)
READING = conditional()
big = to_linear_operator(torch.eye(40, dtype=torch.float64) * 0.5 + 0.5)
guessed = DependentLikelihood(StructuredKinship(big, exact=1, probes=4))
MANY = {"x": rows(40, 2), "row": torch.arange(40)}
of(
    DependentLikelihood.forward,
    lambda **o: guessed(NORMAL, MANY, **o).value,
    generator=draws(rounding=1e-9),
    progress=same("there is no schedule", 0.3),
)
of(
    DependentLikelihood.start,
    lambda **o: guessed.start(MANY, **o),
    generator=same("solves draw nothing", Fresh(lambda: torch.Generator().manual_seed(1))),
)


def of_rows(function: Any, *args: Any, **fixed: Any) -> Any:
    """A function of all rows, with context in any case."""
    return lambda **o: function(*args, **{"context": C, **fixed, **o})


for function in (joint_log_prob, noise_and_log_det):
    args = (READING, X, families) if function is joint_log_prob else (READING, X)
    of(
        function,
        of_rows(function, *args),
        context=differs(D, base=C),
        chunk=same("the same in less memory", 2, 4, rounding=1e-6),
    )
THIRD = torch.tensor([2])
of(
    sample_jointly,
    of_rows(sample_jointly, READING, families),
    context=differs(D, base=C),
    x=differs(X[:1] + 1, base=X[:1], using={"observed": THIRD}),
    observed=differs(torch.tensor([4]), base=THIRD, using={"x": X[:1]}),
    generator=draws(),
)
of(
    RowCovariance.log_prob,
    lambda **o: families.log_prob(X, **o),
    rows=differs(torch.tensor([0, 2, 4, 1, 3, 5])),
)
of(
    RowCovariance.sample,
    lambda **o: families.sample(**o),
    columns=rises(2, 3, see=lambda **o: float(families.sample(**o).shape[1])),
    generator=draws(),
)
of(
    RowCovariance.sample_given,
    lambda **o: families.sample_given(X[:2], torch.tensor([0, 2]), **o),
    generator=draws(),
)


def correlation(records: int, **options: Any) -> Tensor:
    """The correlation that a callback sets after some records."""
    own = EquicorrelatedBlocks(BLOCKS, rho=0.1)
    flow = conditional() if "context" in options else NORMAL
    alike = X[[0, 0, 1, 1, 2, 2]] + 0.3 * rows(6, 2, 1)
    UpdateCovariance(own, alike, **options)(flow, SimpleNamespace(steps=[1] * records))
    return own.rho.detach()


of(
    UpdateCovariance,
    lambda **o: correlation(3, **o),
    context=differs(5 * D, base=C),
    every=differs(2),
)


def entries(make: Any, *args: Any) -> Any:
    """The matrix of a covariance."""
    return lambda **o: make(*args, **o).matrix().detach()


def count(make: Any, *args: Any) -> Any:
    """How many numbers of a covariance are learned."""
    return lambda **o: number_of_parameters(make(*args, **o))


related = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.0]], dtype=torch.float64)
factor = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
of(
    EquicorrelatedBlocks,
    entries(EquicorrelatedBlocks, BLOCKS),
    rho=rises(0.3, 0.6),
    per_block=rises(True, see=count(EquicorrelatedBlocks, BLOCKS)),
    learn=falls(False, see=count(EquicorrelatedBlocks, BLOCKS)),
)
kernel = Matern(1, nu=0.5, length_scale=1.0, learn=False)
places = torch.tensor([[0.0], [1.0], [3.0]])
of(
    Spatial,
    entries(Spatial, places, kernel),
    residual_proportion=falls(0.4, 0.8),
    learn=falls(False, see=count(Spatial, places, kernel)),
)
two = (EquicorrelatedBlocks((0, 0, 1), rho=0.5), EquicorrelatedBlocks((0, 1, 1), rho=0.2))
of(
    SumOfCovariances,
    entries(SumOfCovariances, *two),
    weights=differs((3.0, 1.0), (1.0, 3.0)),
    learn=falls(False, see=count(SumOfCovariances, *two)),
)
of(
    Kinship,
    entries(Kinship, related),
    matrix=differs(torch.eye(3, dtype=torch.float64), base=related, see=entries(Kinship)),
    factor=differs(factor.flip(0), base=factor, see=entries(Kinship)),
    residual_proportion=falls(0.7, 0.9),
    learn=falls(False, see=count(Kinship, related)),
)
times = (0.0, 1.0, 2.5)
of(
    AutoregressiveTime,
    entries(AutoregressiveTime, times),
    series=falls((0, 0, 1), (0, 1, 2)),
    tau=rises(2.0, 5.0),
    learn=falls(False, see=count(AutoregressiveTime, times)),
)
operator = to_linear_operator(related)


def searched(**options: Any) -> Any:
    """A log-determinant by conjugate gradients and probes, beyond the exact size."""
    return StructuredKinship(big, **options).log_det().detach()


of(
    StructuredKinship,
    entries(StructuredKinship, operator),
    residual_proportion=falls(0.7, 0.9),
    learn=falls(False, see=count(StructuredKinship, operator)),
    exact=differs(1, see=searched, rounding=1e-9),
    probes=differs(4, 8, see=searched, using={"exact": 1}, rounding=1e-9),
)
