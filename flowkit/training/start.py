"""Choose how a flow starts from data: by short fits from each start."""

from __future__ import annotations

import copy
import dataclasses
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flowkit.data.batches import DataSplit
from flowkit.errors import NonFiniteLossError
from flowkit.training.arguments import Options
from flowkit.training.checkpoint import state
from flowkit.training.history import Progress
from flowkit.training.length import length, samples_per_step
from flowkit.training.loop import advance
from flowkit.training.output import Output
from flowkit.training.processes import released
from flowkit.training.setup import Plan
from flowkit.training.step import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps of a trial: one for two samples, within these; and their share of the fit at most. The
# start that is ahead after 100 steps of a thousand samples is often behind after 300.
_SAMPLES_PER_STEP, _STEPS, _SHARE = 2, (100, 400), 2 / 15
# The worst is given up after this part of a trial.
_EARLY = 1 / 4

_Trial = tuple[str, Plan, Progress]


def choose_start(
    step: Step,
    fabric: Fabric,
    options: Options,
    train: DataSplit | None,
    held: DataSplit | None,
    output: Output,
) -> tuple[str | None, dict[str, Any] | None]:
    """The start whose trial has the lowest validation loss, and the state that it has reached.

    A trial is the beginning of the fit from that start, which goes on from there.

    Args:
        step: Flow and objective; left as they are.
        fabric: Devices, precision, strategy.
        options: The options of the fit.
        train: Training samples.
        held: Validation samples.
        output: What says that starts are tried.

    Returns:
        The start, ``None`` if there is no choice; and the state, ``None`` without a trial.
    """
    flow = step.flow
    if bool(flow.initialized) or len(flow.starts) < 2 or train is None:
        return None, None
    # A fit that goes on has its start in the checkpoint.
    if held is None or (options.checkpoint is not None and options.checkpoint.exists()):
        return flow.starts[0], None
    quiet = dataclasses.replace(options, checkpoint=None, callbacks=(), compile=False)
    records, trains = _records(options, train, len(held)), _trains_copies(step, options)
    if not trains:
        quiet, records = dataclasses.replace(quiet, optimizer=None), 0
    with ExitStack() as stack:
        trials: list[_Trial] = []
        for start in flow.starts:
            trial = _copy(step)
            plan = Plan(trial, fabric, quiet, train=train, held=held, start=start, output=Output())
            stack.enter_context(released(plan.model))
            trials.append((start, plan, Progress(plan.total, averaged=plan.average is not None)))
        steps = records * trials[0][1].interval
        output.say(f"tries the starts {', '.join(flow.starts)} for {steps} steps at most")
        for until, left in ((math.ceil(_EARLY * records), 2), (records, 1)):
            trials = sorted(_advanced(trials, until), key=lambda trial: _loss(trial[2]))[:left]
        start, plan, progress = trials[0]
        progress.history.started = start
        return start, state(plan, progress) if trains else None


def _advanced(trials: list[_Trial], records: int) -> list[_Trial]:
    """Go on with trials, and give up those whose loss is not finite, if it is in another one."""
    left, errors = [], []
    for start, plan, progress in trials:
        try:
            advance(plan, progress, Output(), records)
            left.append((start, plan, progress))
        except NonFiniteLossError as error:
            errors.append(error)
    if not left:
        raise errors[0]
    return left


def _copy(step: Step) -> Step:
    """A copy, in which flow and objective share what they share."""
    # An objective without state warns once in all.
    if not step.objective.state_dict():
        return Step(copy.deepcopy(step.flow), step.objective)
    return copy.deepcopy(step)


def _trains_copies(step: Step, options: Options) -> bool:
    """Whether the optimiser is of the parameters that it is given, and not of the flow's own."""
    given = [p for p in _copy(step).parameters() if p.requires_grad]
    if options.optimizer is None or not given:
        return True
    groups = getattr(options.optimizer(given), "param_groups", ())
    return {id(p) for group in groups for p in group["params"]} <= {*map(id, given)}


def _records(options: Options, train: DataSplit, held: int) -> int:
    """Number of records of a trial; 0 compares the starts before training."""
    samples = len(train)
    size = min(options.batch_size or samples_per_step(samples), samples)
    planned = length(options, train.steps(size), size, held)
    worth = min(max(_STEPS[0], samples // _SAMPLES_PER_STEP), _STEPS[1])
    return round(min(worth, _SHARE * planned.usual) / planned.interval)


def _loss(progress: Progress) -> float:
    best = progress.history.best
    return math.inf if best is None or math.isnan(best) else best
