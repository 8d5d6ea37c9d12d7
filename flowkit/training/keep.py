"""Keep the start of a flow where held-out samples do not clearly prefer what training made."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowkit.data.batches import DataSplit, whole
from flowkit.numerics.noise import drawing_from
from flowkit.objectives import MaximumLikelihood
from flowkit.training.history import Progress
from flowkit.training.randomness import seed_of
from flowkit.training.setup import Plan, initialize

# Standard errors by which trained weights have to be better: the best of many validations is often
# better than the start by chance.
_ERRORS = 2.0
# Gains are counted up to so many nats per sample: one that the start finds impossible shall not
# hide what all others say in its standard error.
_MOST = 5.0


def keep_start(plan: Plan, progress: Progress) -> None:
    """Go back to the start unless held-out samples find the best weights clearly better.

    By more than two standard errors of the paired difference, of at most five nats per sample, for
    flows whose start the fit chose, by maximum likelihood. A start that is kept, a Gaussian or a
    Gaussian copula, is fitted again to all samples, if the fit split them itself.

    Args:
        plan: The fit.
        progress: Its progress, at the end; its weights and best step are replaced.
    """
    history, held, step = progress.history, plan.held, plan.step
    if not history.started or progress.start is None or held is None or plan.train is None:
        return
    if type(step.objective) is not MaximumLikelihood or step.flow.stochastic:
        return
    if history.best_step:
        with plan.processes.together(progress.done), plan.fabric.autocast(), torch.no_grad():
            gains = _log_densities(plan, progress.weights, held)
            gains -= _log_densities(plan, progress.start, held)
            gains = gains.clamp(-_MOST, _MOST)
            weight = held.source.column("weight", held.numbers.long())
            gains *= 1.0 if weight is None else weight.to(gains)
        (clear,) = plan.processes.any(_is_positive(_per_unit(gains, held)))
        if clear:
            return
    history.best_step, progress.weights = 0, progress.start
    if held.source is plan.train.source:
        step.load_state_dict(progress.start)
        generator = torch.Generator(plan.fabric.device).manual_seed(seed_of(plan.options.seed))
        with drawing_from(generator):
            initialize(step, whole(held.source, "training"), generator, history.started)
        progress.weights = {k: v.detach().clone() for k, v in step.state_dict().items()}


def _log_densities(plan: Plan, weights: Any, held: DataSplit) -> Tensor:
    """Log-densities of the held-out samples."""
    step = plan.step
    step.load_state_dict(weights)
    step.eval()
    parts = []
    for numbers in held.runs():
        batch = held.batch(numbers)
        parts.append(step.flow.log_prob(batch["x"], batch.get("context")).double())
    return torch.cat(parts)


def _per_unit(gains: Tensor, held: DataSplit) -> Tensor:
    """Sums over the samples that stay together."""
    if isinstance(held.units, Tensor):
        return gains
    return torch.stack([part.sum() for part in gains.split([len(unit) for unit in held.units])])


def _is_positive(gains: Tensor) -> bool:
    """Whether the mean is clearly above zero."""
    if len(gains) < 2:
        return False
    return float(gains.mean()) > _ERRORS * float(gains.std()) / math.sqrt(len(gains))
