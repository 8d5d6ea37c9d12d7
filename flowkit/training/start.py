"""Choose how a flow starts from data: by short fits from each start."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING

from flowkit.data.batches import DataSplit
from flowkit.training.arguments import Options
from flowkit.training.history import Progress
from flowkit.training.length import length, samples_per_step
from flowkit.training.loop import run
from flowkit.training.output import Output
from flowkit.training.processes import released
from flowkit.training.setup import Plan
from flowkit.training.step import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps of each trial: as few as 25 of less than 400 samples, which soon teach no more, up to 100;
# and their share of the fit at most.
_STEPS, _SAMPLES_PER_STEP, _SHARE = (25, 100), 16, 0.05


def choose_start(
    step: Step,
    fabric: Fabric,
    options: Options,
    train: DataSplit | None,
    held: DataSplit | None,
) -> str | None:
    """The start whose trial has the lowest validation loss; ``None`` if there is no choice.

    Args:
        step: Flow and objective; left as they are.
        fabric: Devices, precision, strategy.
        options: The options of the fit.
        train: Training samples.
        held: Validation samples.
    """
    flow = step.flow
    if bool(flow.initialized) or len(flow.starts) < 2 or train is None:
        return None
    # A fit that goes on has its start in the checkpoint.
    if held is None or (options.checkpoint is not None and options.checkpoint.exists()):
        return flow.starts[0]
    size = min(options.batch_size or samples_per_step(len(train)), len(train))
    usual = length(options, train.steps(size), size, len(held)).usual
    worth = min(max(_STEPS[0], len(train) // _SAMPLES_PER_STEP), _STEPS[1])
    steps = max(1, min(worth, round(_SHARE * usual)))
    trial_options = dataclasses.replace(
        options, epochs=None, steps=steps, patience=None, checkpoint=None, callbacks=(),
        compile=False,
    )  # fmt: skip
    best, loss = flow.starts[0], math.inf
    for start in flow.starts:
        # An objective without state warns once in all.
        stateless = not step.objective.state_dict()
        own = step.objective if stateless else copy.deepcopy(step.objective)
        trial = Step(copy.deepcopy(step.flow), own)
        plan = Plan(
            trial, fabric, trial_options, train=train, held=held, start=start, output=Output()
        )
        with released(plan.model):
            history = run(plan, Progress(steps, averaged=plan.average is not None), Output())
        if history.best is not None and history.best < loss:
            best, loss = start, history.best
    return best
