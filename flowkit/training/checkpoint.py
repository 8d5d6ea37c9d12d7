"""Checkpoints, from which a fit goes on: written atomically, and read without running code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from flowkit.errors import CheckpointError, DataError
from flowkit.files import check_writable, remove_leftovers, replacing
from flowkit.training.history import History, Progress
from flowkit.training.output import Output
from flowkit.training.setup import Plan, shapes
from flowkit.training.warn import warn

_HEAD = b"flowkit checkpoint 1\n"
_DIGEST = hashlib.sha256
_OTHER = {
    "weights": "is of another flow",
    "flow": "is of another flow",
    "data": "is of other data",
    "validation": "is of other validation data",
}
_COLUMNS = ("steps", "epochs", "train", "learning_rate", "seconds")
# What is stored of the progress, beside the history and the weights.
_COUNTS = ("done", "waited", "total")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def prepare_path(path: Path) -> None:
    """Check before any step that a checkpoint can be written, and make its folder.

    Temporary files that killed processes left beside it are removed.

    Raises:
        CheckpointError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
        remove_leftovers(path.parent)
        with tempfile.TemporaryFile(dir=path.parent) as trial:
            trial.write(bytes(4096))
            trial.flush()
            os.fsync(trial.fileno())
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; an interrupted write leaves the previous one as it was.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    try:
        with replacing(path) as file:
            for part in (_HEAD, _DIGEST(payload).digest(), payload):
                file.write(part)
    except (OSError, DataError) as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> CheckpointError:
    number = getattr(error, "errno", None)
    if number in _FULL:
        return CheckpointError(
            f"the checkpoint {path} cannot be written: no space left on its disk "
            f"({os.strerror(number)}), and an older checkpoint is as it was; remedy: free some "
            "space, or choose a path on another disk, and run the fit again: it goes on from there"
        )
    why = getattr(error, "strerror", None) or str(error)
    return CheckpointError(
        f"the checkpoint {path} cannot be written: {why}; remedy: choose a path in a folder that "
        "can be written"
    )


def read_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint, and check that it belongs to this flow and these settings.

    Args:
        path: The file.
        settings: What must agree: the flow, the data, seed, batch size, and so on. The total
            number of steps may be another.

    Raises:
        CheckpointError: If the file is damaged or belongs to something else.
    """
    content = _read(path)
    stored = content["settings"]
    for name, value in settings.items():
        if name == "total_steps" or stored.get(name) == value:
            continue
        found = f"was written with {name}={stored.get(name)!r}, this fit has {name}={value!r}"
        raise CheckpointError(
            f"the checkpoint {path} {_OTHER.get(name, found)}; remedy: continue with the flow and "
            "settings that wrote it, or choose another path"
        )
    return content


def _read(path: Path) -> dict[str, Any]:
    def damaged(why: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not a flowkit checkpoint, or is damaged ({why}); remedy: delete it, or "
            "choose another path"
        )

    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror}; remedy: choose another path"
        ) from None
    start = len(_HEAD) + _DIGEST().digest_size
    if bytes(data[: len(_HEAD)]) != _HEAD:
        raise damaged("it does not begin as one")
    if bytes(data[len(_HEAD) : start]) != _DIGEST(data[start:]).digest():
        raise damaged("its content does not have the digest that was written with it")
    try:
        content = torch.load(io.BytesIO(data[start:]), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no state surface as almost any exception
        raise damaged(type(error).__name__) from None
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or type(settings.get("total_steps")) is not int:
        raise damaged("no valid settings in it")
    if any(type(content.get(name)) is not int or content[name] < 0 for name in _COUNTS):
        raise damaged("no valid numbers of steps in it")
    if not _is_record(content.get("history"), content["done"]):
        raise damaged("no valid history in it")
    return content


def _is_record(record: Any, done: Any) -> bool:
    """Whether a record is that of so many steps."""
    names = {field.name for field in fields(History)}
    if not isinstance(record, dict) or record.keys() != names:
        return False
    terms, steps, best = record["terms"], record["steps"], record["best_step"]
    if not isinstance(terms, dict) or not isinstance(steps, list):
        return False
    lists = [*map(record.get, _COLUMNS), *terms.values(), record["validation"] or record["train"]]
    return (
        all(isinstance(values, list) and len(values) == len(steps) for values in lists)
        and all(type(value) in (int, float) for values in lists for value in values)
        and (steps or [0])[-1] == done
        and isinstance(record["stopped"], str)
        and (best is None or best in [0, *steps])
        and (record["annealed"] is None or record["annealed"] in steps)
        and type(record["start"]) in (float, type(None))
        and isinstance(record["plan"], str)
    )


def resume(plan: Plan, output: Output) -> Progress:
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
    weights, start = content.get("weights"), content.get("start")
    try:
        for kept in (weights, start):
            if kept is not None and shapes(kept) != plan.settings["weights"]:
                raise CheckpointError("its best weights are of another flow")
        load_state(plan, progress, content)
        if content["settings"]["total_steps"] != plan.total:
            # A new length begins with the constant rate, and has its own plateau.
            if progress.history.annealed is not None:
                progress.history.annealed, progress.waited = None, 0
            progress.total = plan.total
        progress.history.stopped = plan.reason_to_stop(progress)
    except Exception as error:
        raise CheckpointError(
            f"the state in {path} does not fit this fit ({error}); remedy: continue with "
            "the settings that wrote it, or choose another path"
        ) from None
    output.say(f"goes on from {path}, after step {progress.done}")
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
        content = {"settings": plan.settings, **state(plan, progress)}
        write_checkpoint(plan.options.checkpoint, content)


def state(plan: Plan, progress: Progress) -> dict[str, Any]:
    """What a fit goes on from."""
    return {
        **{name: part.state_dict() for name, part in plan.stateful.items()},
        **{name: getattr(progress, name) for name in _COUNTS},
        "weights": None if plan.held is None else progress.weights,
        "start": progress.start,
        "history": asdict(progress.history),
    }


def load_state(plan: Plan, progress: Progress, content: dict[str, Any]) -> None:
    """Go on from a state.

    Raises:
        CheckpointError: If it is of another kind of fit.
    """
    for name, part in plan.stateful.items():
        if content[name].keys() != part.state_dict().keys():
            raise CheckpointError(f"its {name} is another one")
        part.load_state_dict(content[name])
    progress.history = History(**content["history"])
    for name in _COUNTS:
        setattr(progress, name, content[name])
    progress.weights = plan.weights() if plan.held is None else content["weights"]
    progress.start = content.get("start")


def _plan_anew(plan: Plan, path: Path, content: dict[str, Any]) -> None:
    """Replace the stored schedule by the one over the present length.

    From here on the rate at step t is that of a fit of the present length; the steps that are
    done had that of the length that was planned then.
    """
    if plan.scheduler is None or plan.by_loss or content["done"] >= plan.total:
        return
    try:
        steps = int(content["scheduler"].get("last_epoch", content["done"]))
        groups = content["optimizer"]["param_groups"]
        # Torch warns of schedules that step before the optimizer, which has done so elsewhere.
        plan.scheduler.optimizer._opt_called = True
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
