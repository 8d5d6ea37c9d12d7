"""Continue a fit from its checkpoint, and write it after every epoch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import CheckpointError
from flowkit.training.checkpoint import read_checkpoint, write_checkpoint
from flowkit.training.history import History, Progress
from flowkit.training.output import Output
from flowkit.training.setup import Plan
from flowkit.training.warn import warn

# What is stored of the progress, beside the history and the weights.
_COUNTS = ("epoch", "done", "waited")


def begin(plan: Plan, output: Output) -> Progress:
    """Return the progress of a fit, from its checkpoint if there is one.

    Args:
        plan: The fit.
        output: What shows the fit.

    Raises:
        CheckpointError: If the checkpoint is damaged or belongs to another fit.
    """
    progress = Progress(plan.total, averaged=plan.average is not None)
    path = plan.options.checkpoint
    if path is None or not path.exists():
        return progress
    content = read_checkpoint(path, plan.settings)
    if content["settings"]["total_steps"] != plan.total:
        _plan_anew(plan, path, content)
    try:
        _load(plan, progress, content)
    except Exception as error:
        raise CheckpointError(
            f"the state in {path} does not fit this fit ({error}); remedy: continue with "
            "the settings that wrote it, or choose another path"
        ) from None
    output.say(f"goes on from {path}, after epoch {progress.epoch} (step {progress.done})")
    if progress.done > plan.total:
        warn(
            f"the checkpoint {path} is of a fit that has done {progress.done} steps already, more "
            f"than the {plan.total} of this fit, so nothing is left to do and the "
            "flow gets its weights; remedy: more epochs, or another path to start over"
        )
    return progress


def store(plan: Plan, progress: Progress) -> None:
    """Write the checkpoint, in the first process."""
    if plan.options.checkpoint is not None and plan.fabric.is_global_zero:
        content = {
            "settings": plan.settings,
            **{name: part.state_dict() for name, part in plan.stateful.items()},
            **{name: getattr(progress, name) for name in _COUNTS},
            "weights": None if plan.held is None else progress.weights,
            "history": asdict(progress.history),
        }
        write_checkpoint(plan.options.checkpoint, content)


def _load(plan: Plan, progress: Progress, content: dict[str, Any]) -> None:
    """Load the states of weights, optimiser, schedule and average, and the progress."""
    weights = content["weights"]
    if weights is not None and _shapes(weights) != _shapes(plan.judged.state_dict()):
        raise CheckpointError("its best weights are of another flow")
    for name, part in plan.stateful.items():
        if content[name].keys() != part.state_dict().keys():
            raise CheckpointError(f"its {name} is another one")
        part.load_state_dict(content[name])
    progress.history = History(**content["history"])
    for name in _COUNTS:
        setattr(progress, name, content[name])
    progress.weights = plan.weights() if plan.held is None else weights
    progress.history.stopped = plan.reason_to_stop(progress)


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _plan_anew(plan: Plan, path: Path, content: dict[str, Any]) -> None:
    """Replace the stored schedule by the one over the present length.

    From here on the rate at step t is that of a fit of the present length; the steps that are
    done had that of the length that was planned then.
    """
    if plan.scheduler is None or content["done"] >= plan.total:
        return
    try:
        steps = int(content["scheduler"].get("last_epoch", content["done"]))
        groups = content["optimizer"]["param_groups"]
        # Torch warns of schedules that step before the optimizer, which has done so elsewhere.
        plan.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
        for _ in range(steps):
            plan.scheduler.step()
        content["scheduler"] = plan.scheduler.state_dict()
        for stored, planned in zip(groups, plan.optimizer.param_groups, strict=True):
            stored.update({k: v for k, v in planned.items() if k != "params"})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the schedule in {path} cannot be planned over another number of steps "
            f"({error}); remedy: the {content['settings']['total_steps']} steps that wrote "
            "it, or another path"
        ) from None
