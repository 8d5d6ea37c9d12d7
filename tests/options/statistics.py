"""Numbers about samples, and chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.dependence import LinearMixedModel
from flowkit.energies import CallableEnergy
from flowkit.statistics import (
    expected_shortfall,
    free_energy_profile,
    log_partition,
    tail_estimate,
    tail_indices,
    tail_verdict,
)
from flowkit.stochastic import independence_chain, neutra_chain

from .harness import differs, draws, of, rises, same
from .parts import conditional, plain, rows, targets

# Heavy on the left, light on the right.
SKEWED = np.where(
    (t := np.random.default_rng(0).standard_t(2, 2000)) < 0,
    t,
    abs(np.random.default_rng(1).normal(size=2000)),
)
TABLE = np.stack([SKEWED, np.random.default_rng(2).normal(size=2000)], 1)
quick: dict[str, Any] = {"resamples": 10}


def estimate(function: Any, *args: Any, **fixed: Any) -> Any:
    """An estimate of a tail from few resamples."""
    return lambda **o: function(*args, **{**quick, **fixed, **o})


for function, own in (
    (tail_estimate, {"method": differs("moment", "kernel"), "fraction": differs(0.1, 0.3)}),
    (tail_verdict, {}),
):
    of(
        function,
        estimate(function, SKEWED),
        **own,
        tail=differs("left", "right"),
        resamples=differs(5, 20),
        seed=differs(1),
    )
of(
    tail_indices,
    estimate(tail_indices, TABLE),
    tail=differs("left", "right", "apart"),
    resamples=differs(5, 20),
    seed=differs(1),
)
of(
    expected_shortfall,
    lambda **o: expected_shortfall(SKEWED, **o),
    level=rises(0.99, 0.999),
    tail=differs("left", "right"),
    paper_scale=rises(True),
)

coordinate, log_weight = rows(500, 1)[:, 0], rows(500, 1, 1)[:, 0]
of(
    free_energy_profile,
    lambda **o: free_energy_profile(coordinate, **{"bins": 5, **o}).free_energy,
    log_weight=differs(log_weight),
    bins=rises(
        60, 70, see=lambda **o: float(len(free_energy_profile(coordinate, **o).free_energy))
    ),
    limits=differs((-1.0, 1.0), (-2.0, 2.0)),
)
of(
    log_partition,
    lambda **o: log_partition(log_weight, **o).value,
    reverse_log_weight=differs(log_weight + 1),
)

phenotype = rows(30, 1, 2)
markers = (rows(30, 4, 3) > 0).double()
factor = rows(30, 5, 4).double()
kinship = factor @ factor.mT
model = LinearMixedModel(kinship)
of(
    LinearMixedModel,
    lambda **o: LinearMixedModel(kinship, **o).score_test(phenotype, markers).statistic,
    covariates=differs(rows(30, 1, 5), rows(30, 2, 5)),
)
of(
    LinearMixedModel.score_test,
    lambda **o: model.score_test(phenotype, markers, **o).statistic,
    chunk=same("markers at a time, for memory", 1, 3, rounding=1e-10),
)

FLOW, READING = plain(), conditional()


def well(x: Tensor) -> Tensor:
    """The energy of a spring."""
    return 0.5 * x.square().sum(-1)


pulled = CallableEnergy(lambda x, c: (x - c).square().sum(-1), 2, context=1)


def chains(**options: Any) -> Any:
    """Chains of a spring."""
    return independence_chain(FLOW, well, **{"steps": 6, **options})


def neutra(**options: Any) -> Any:
    """Short chains of NUTS."""
    given = {"steps": 12, "chains": 1, "warmup": 4}
    return neutra_chain(FLOW, well, **given | options).x


of(
    independence_chain,
    chains,
    **targets(lambda **o: independence_chain(FLOW, steps=20, **o).x),
    steps=rises(9, 12, base=5, see=lambda **o: float(len(chains(**o).x))),
    chains=rises(5, 6, see=lambda **o: float(chains(**o).x.shape[1])),
    warmup=differs(0, 1),
    context=differs(
        torch.ones(1),
        base=torch.zeros(1),
        see=lambda **o: independence_chain(READING, pulled, steps=6, **o).x,
    ),
    generator=draws(),
)


def short(flow: Any, **options: Any) -> Any:
    """A short chain of NUTS in the noise of a flow."""
    return neutra_chain(flow, **{"steps": 8, "chains": 1, "warmup": 2, **options}).x


of(
    neutra_chain,
    neutra,
    **targets(lambda **o: short(FLOW, **o)),
    steps=rises(9, 12, base=5, see=lambda **o: float(len(neutra(**o)))),
    chains=rises(2, 3, see=lambda **o: float(neutra(**o).shape[1])),
    warmup=differs(0, 12),
    context=differs(
        torch.ones(1), base=torch.zeros(1), see=lambda **o: short(READING, energy=pulled, **o)
    ),
    generator=draws(),
    options=differs({"max_tree_depth": 1}, {"step_size": 1e-3}),
)
