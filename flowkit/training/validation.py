"""Validate the weights after an epoch, and remember the best."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor

from flowkit.data.batches import DataSplit
from flowkit.training.keys import Reading
from flowkit.training.nonfinite import non_finite_error
from flowkit.training.progress import Progress
from flowkit.training.setup import Plan
from flowkit.training.step import StepInput


def validate(plan: Plan, progress: Progress, held: DataSplit, reading: Reading) -> None:
    """Record the validation loss after an epoch, and copy the weights if it is the best.

    Raises:
        NonFiniteLossError: If it is not finite.
    """
    random, model = plan.random, plan.judged
    random.begin_validation(progress.epoch)
    model.eval()
    losses: list[float] = []

    def evaluate(batch: dict[str, Tensor]) -> Tensor:
        # Objectives that differentiate with respect to x switch gradients on for themselves.
        with torch.no_grad(), plan.fabric.autocast(), random.of_evaluation():
            given = StepInput(reading.watched(batch), random.generator, 1.0)
            value = model(given).value.detach()
        losses.append(float(value))
        return value

    with plan.processes.together(progress.done), random.of_reading(held):
        here = held.mean(evaluate)
    value = float(plan.processes.mean(here))
    if not math.isfinite(value):
        bad = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
        numbers = next(islice(held.runs(), bad[0] if bad else 0, None))
        head = f"the validation loss became {value} after epoch {progress.epoch}"
        batch = held.batch(numbers)
        with random.anywhere():
            raise non_finite_error(model.flow, model.objective, batch, numbers, head, held.of)
    history = progress.history
    better = value < (math.inf if history.best is None else history.best)
    history.validation.append(value)
    progress.waited = 0 if better else progress.waited + 1
    if better:
        history.best_epoch, progress.best = progress.epoch, plan.weights()
