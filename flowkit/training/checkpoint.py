"""Write and read checkpoints: all that a fit needs to go on, atomically, without running code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.checks import is_integer
from flowkit.errors import CheckpointError, DataError
from flowkit.files import check_writable, remove_leftovers, replacing
from flowkit.training.history import History

_HEAD = b"flowkit checkpoint 1\n"
_DIGEST = hashlib.sha256
_PARTS = ("settings", "step", "optimizer", "history")
_COUNTS = ("epoch", "done", "waited")
_COLUMNS = ("epochs", "steps", "train", "learning_rate", "seconds")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def prepare_path(path: str | os.PathLike[str]) -> Path:
    """Check before any step that a checkpoint can be written, and make its folder.

    Temporary files that killed processes left beside it are removed.

    Raises:
        CheckpointError: If it cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_writable(target)
        remove_leftovers(target.parent)
        with tempfile.TemporaryFile(dir=target.parent) as trial:
            trial.write(bytes(4096))
            trial.flush()
            os.fsync(trial.fileno())
    except (OSError, ValueError) as error:
        raise _cannot_write(target, error) from None
    return target


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
    remedy = "remedy: continue with the flow and settings that wrote it, or choose another path"
    stored = content["settings"]
    for name, value in settings.items():
        if name == "total_steps" or stored.get(name) == value:
            continue
        if name in ("weights", "flow"):
            raise CheckpointError(f"the checkpoint {path} is of another flow; {remedy}")
        if name in ("data", "validation"):
            other = "other data" if name == "data" else "other validation data"
            raise CheckpointError(f"the checkpoint {path} is of {other}; {remedy}")
        raise CheckpointError(
            f"the checkpoint {path} was written with {name}={stored.get(name)!r}, this fit "
            f"has {name}={value!r}; {remedy}"
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
    wrong = _first_wrong(content)
    if wrong:
        raise damaged(f"no valid {wrong} in it")
    return content


def _first_wrong(content: Any) -> str:
    """Name the first invalid part; empty if all are valid."""
    if not isinstance(content, dict):
        return "content"
    best = content.get("best", ())
    valid = {name: isinstance(content.get(name), dict) for name in _PARTS}
    valid |= {k: is_integer(content.get(k)) and content[k] >= 0 for k in _COUNTS}
    valid["best"] = best is None or isinstance(best, dict)
    wrong = [name for name, fine in valid.items() if not fine]
    if wrong:
        return wrong[0]
    if type(content["settings"].get("total_steps")) is not int:
        return "total_steps"
    if not all(isinstance(v, Tensor) for v in (*content["step"].values(), *(best or {}).values())):
        return "weights"
    return "" if _is_record(content["history"], content["epoch"], content["done"]) else "history"


def _is_record(record: dict[str, Any], epoch: int, done: int) -> bool:
    names = {field.name for field in fields(History)}
    if set(record) != names or not isinstance(record["terms"], dict):
        return False
    lists = [*map(record.get, _COLUMNS), *record["terms"].values()]
    lists += [record["validation"]] if record["validation"] else []
    best = record["best_epoch"]
    return (
        all(isinstance(values, list) and len(values) == epoch for values in lists)
        and all(type(value) in (int, float) for values in lists for value in values)
        and (record["steps"] or [0])[-1] == done
        and isinstance(record["stopped"], str)
        and (best is None or (type(best) is int and 1 <= best <= epoch))
    )


def same_shapes(state: dict[str, Any], module: nn.Module) -> bool:
    """Whether a state has the names and shapes of a module's."""
    own = module.state_dict()
    return state.keys() == own.keys() and all(state[k].shape == own[k].shape for k in own)


def described(part: nn.Module) -> Any:
    """Describe an objective, and those in it, by class and plain settings.

    Of classes from elsewhere the name alone: what their attributes mean is not known here.
    """
    name = type(part).__qualname__
    if not type(part).__module__.startswith("flowkit."):
        return name
    settings = {
        key: value
        for key, value in sorted(vars(part).items())
        if not key.startswith("_") and key != "training" and _is_plain(value)
    }
    inner = [described(child) for child in part.children()]
    return [name, settings, inner] if settings or inner else name


def plain_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of an optimiser's parameters that are plain numbers, texts or flags."""
    return {key: value for key, value in group.items() if _is_plain(value) and key != "params"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
