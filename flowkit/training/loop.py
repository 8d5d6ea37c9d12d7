"""Run a fit: steps, validation, annealing, stopping, checkpoints, restoring the best."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count, islice, repeat
from typing import Any

import torch
from torch import Tensor

from flowkit.data.batches import DataSplit
from flowkit.training.checkpoint import store
from flowkit.training.history import History, Progress
from flowkit.training.keep import keep_start
from flowkit.training.nonfinite import Suspects, weights_error
from flowkit.training.output import Output
from flowkit.training.randomness import seed_of
from flowkit.training.setup import Plan
from flowkit.training.step import StepInput
from flowkit.training.suitability import Reading
from flowkit.training.updates import Numbered, Updates
from flowkit.training.warn import warn


def run(plan: Plan, progress: Progress, output: Output) -> History:
    """Run until the fit stops, and leave the weights of the progress, however it ends.

    Args:
        plan: The fit.
        progress: What is done of it.
        output: What shows it.
    """
    try:
        advance(plan, progress, output)
        keep_start(plan, progress)
    except BaseException:
        output.end()
        raise
    finally:
        if progress.weights is not None:
            plan.step.load_state_dict(progress.weights)
        plan.step.eval()
        # Gradients of the last step would be added to those of the user's own steps.
        plan.step.zero_grad()
    output.end(progress)
    return progress.history


def advance(plan: Plan, progress: Progress, output: Output, records: int | None = None) -> None:
    """Go on with a fit until it stops, and leave the weights of its last step.

    Args:
        plan: The fit.
        progress: What is done of it.
        output: What shows it.
        records: Number of records after which to pause; ``None`` for no pause.
    """
    updates = Updates(plan, progress)
    output.begin(progress)
    if plan.held is not None and progress.weights is None:
        _validate_start(plan, progress, plan.held, updates.reading)
    # Closed also on Ctrl-C: no thread goes on reading.
    with closing(_batches(plan, progress.done)) as batches:
        while not progress.history.stopped and len(progress.history.steps) != records:
            # Here, so that a fit that goes on from this record does so too.
            if plan.anneals(progress):
                plan.anneal(progress)
            _do_record(plan, progress, updates, output, batches)
            _end_record(plan, progress, updates, output)


def _end_record(plan: Plan, progress: Progress, updates: Updates, output: Output) -> None:
    """Call the callbacks, decide whether to stop, and store the progress."""
    history, processes = progress.history, plan.processes
    if len(history.steps) == 1 and (unread := updates.reading.close()):
        warn(unread)
    with processes.together(progress.done), plan.random.anywhere():
        stop = [bool(callback(plan.step.flow, history)) for callback in plan.options.callbacks]
    if plan.average is not None:
        plan.average.copy_untrained()
    (by_callback,) = processes.any(any(stop))
    history.stopped = "callback" if by_callback else plan.reason_to_stop(progress)
    if plan.held is None:
        progress.weights = plan.weights()
    output.record(progress)
    with processes.together(progress.done):
        store(plan, progress)


def _batches(plan: Plan, done: int) -> Generator[Numbered, None, None]:
    """This process's samples of every batch after so many, with their numbers, without end."""
    if plan.train is None:
        yield from repeat((None, {}))
        return
    processes = plan.processes
    first, start = divmod(done, plan.per_epoch)
    for epoch in count(first):
        yield from plan.train.batches(
            seed_of(plan.options.seed, epoch), plan.batch_size,
            rank=processes.rank, processes=processes.count, start=start if epoch == first else 0,
        )  # fmt: skip


def _do_record(
    plan: Plan, progress: Progress, updates: Updates, output: Output, batches: Iterator[Numbered]
) -> None:
    """Do the steps to the next record, validate, and record what happened."""
    begun = time.perf_counter()
    history = progress.history
    plan.random.begin_record(len(history.steps))
    steps = min(plan.interval, progress.total - progress.done)
    sums: dict[str, Any] = {}
    plan.step.train()
    for _ in range(steps):
        loss = updates.step(batches)
        for name, value in (("", loss.value.detach()), *loss.terms.items()):
            sums[name] = sums.get(name, 0.0) + value
        output.step(progress, loss)
    updates.finish()
    if plan.average is not None:
        plan.average.copy_untrained()
    if error := weights_error(plan.step, progress.done):
        raise error
    like = sums[""]
    total = torch.stack([torch.as_tensor(v).detach().to(like) for v in sums.values()])
    means = (plan.processes.mean(total) / steps).tolist()
    history.steps.append(progress.done)
    history.epochs.append(progress.done / plan.per_epoch)
    history.train.append(means[0])
    for name, mean in zip(list(sums)[1:], means[1:], strict=True):
        history.terms.setdefault(name, []).append(mean)
    history.learning_rate.append(plan.optimizer.param_groups[0]["lr"])
    if plan.held is not None:
        _validate_record(plan, progress, plan.held, updates.reading)
    if plan.by_loss:
        plan.scheduler.step((history.validation or history.train)[-1])
    history.seconds.append(time.perf_counter() - begun)


def _validate_start(plan: Plan, progress: Progress, held: DataSplit, reading: Reading) -> None:
    """Validate before the first step; where that is not finite, anything is better."""
    value, _ = _validate(plan, progress, held, reading)
    progress.weights = plan.weights()
    if math.isfinite(value):
        progress.start = progress.weights
        progress.history.start, progress.history.best_step = value, 0


def _validate_record(plan: Plan, progress: Progress, held: DataSplit, reading: Reading) -> None:
    """Record the validation loss, and copy the weights if it is the best.

    Raises:
        NonFiniteLossError: If it is not finite.
    """
    value, bad = _validate(plan, progress, held, reading)
    if not math.isfinite(value):
        numbers = next(islice(held.runs(), bad[0] if bad else 0, None))
        suspects = Suspects(plan.judged, held.batch(numbers), numbers, held.of)
        with plan.random.anywhere():
            head = f"the validation loss became {value} after step {progress.done}"
            raise suspects.loss_error(head)
    history = progress.history
    better = value < (math.inf if history.best is None else history.best)
    history.validation.append(value)
    progress.waited = 0 if better else progress.waited + 1
    if better:
        history.best_step, progress.weights = progress.done, plan.weights()


def _validate(
    plan: Plan, progress: Progress, held: DataSplit, reading: Reading
) -> tuple[float, list[int]]:
    """The validation loss, and the numbers of the runs of samples where it is not finite."""
    random, model = plan.random, plan.judged
    random.begin_validation(len(progress.history.steps))
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
    bad = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
    return float(plan.processes.mean(here)), bad
