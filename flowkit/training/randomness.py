"""Random numbers of a fit: generators of its own, seeded anew for every record."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from flowkit.bases import Base
from flowkit.data.batches import DataSplit
from flowkit.data.sources import DatasetSource
from flowkit.dependence import RowCovariance
from flowkit.energies import Energy
from flowkit.numerics.noise import drawing_from, lending_global, may_draw
from flowkit.objectives import Objective
from flowkit.scalar import ScalarMap
from flowkit.training.step import Step
from flowkit.transforms import Transform

# What draws by its contract from a generator that it is given, if at all.
_CONTRACTS = (Transform, Base, ScalarMap, Energy, Objective, RowCovariance)


def seed_of(*parts: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Randomness:
    """Draw the random numbers of a fit; the global random state is neither read nor changed.

    What draws without naming a generator (dropout, an embedding of the user's own, a Dataset, a
    callback) is redirected, which takes time, so only where such parts are. A compiled step cannot
    draw from a generator: the global state is lent to it, by one fit at a time.

    Args:
        seed: Seed of the fit.
        rank: Number of the process.
        generator: The generator of the fit.
        step: Flow and objective.
        optimizer: The optimiser, which may add noise.
        compiled: Whether steps are compiled.
    """

    def __init__(
        self,
        seed: int,
        rank: int,
        generator: torch.Generator,
        step: Step,
        optimizer: torch.optim.Optimizer,
        *,
        compiled: bool,
    ) -> None:
        self.seed, self.rank, self.generator, self.compiled = seed, rank, generator, compiled
        self.reading = torch.Generator()
        self.redirects = may_draw(step, _CONTRACTS)
        noisy = self.redirects or step.flow.stochastic or not step.objective.compiles
        self.lends = compiled and noisy
        self.optimizer_draws = not type(optimizer).__module__.startswith("torch.optim")

    def _seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        self.reading.manual_seed(seed)

    def begin_record(self, record: int) -> None:
        """Seed for the steps to a record, the same whether or not the fit was resumed before."""
        self._seed(seed_of(self.seed, record, 1 + self.rank))

    def begin_step(self, record: int, step: int) -> None:
        """Seed for a step evaluated several times: a line search needs the same noise."""
        self.generator.manual_seed(seed_of(self.seed, record, 1 + self.rank, step))

    def begin_validation(self, record: int) -> None:
        """Seed for validation: the same noise in every process, so that all decide the same."""
        self._seed(seed_of(self.seed, record, 0))

    def of_step(self) -> AbstractContextManager[Any]:
        """Around the loss of a batch that may be compiled."""
        if self.lends:
            return lending_global(self.generator)
        return nullcontext() if self.compiled else self.of_evaluation()

    def of_evaluation(self) -> AbstractContextManager[Any]:
        """Around a loss that is never compiled."""
        return drawing_from(self.generator if self.redirects else None)

    def of_reading(self, part: DataSplit | None) -> AbstractContextManager[Any]:
        """Around the reading of samples, which a Dataset may augment."""
        drawn = part is not None and isinstance(part.source, DatasetSource)
        return drawing_from(self.reading if drawn else None)

    def of_optimizer(self) -> AbstractContextManager[Any]:
        """Around a step of the optimiser."""
        return drawing_from(self.generator if self.optimizer_draws else None)

    def anywhere(self) -> AbstractContextManager[Any]:
        """Around callbacks, which may sample, and what is rare."""
        return drawing_from(self.generator)
