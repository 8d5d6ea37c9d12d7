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

from flowkit.errors import CheckpointError, DataError
from flowkit.files import check_writable, remove_leftovers, replacing
from flowkit.training.history import History

_HEAD = b"flowkit checkpoint 1\n"
_DIGEST = hashlib.sha256
_OTHER = {
    "weights": "is of another flow",
    "flow": "is of another flow",
    "data": "is of other data",
    "validation": "is of other validation data",
}
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
    if not _is_record(content.get("history"), content.get("epoch"), content.get("done")):
        raise damaged("no valid history in it")
    return content


def _is_record(record: Any, epoch: Any, done: Any) -> bool:
    """Whether a record is that of so many epochs and steps."""
    names = {field.name for field in fields(History)}
    if not isinstance(record, dict) or record.keys() != names:
        return False
    terms, best = record["terms"], record["best_epoch"]
    if not isinstance(terms, dict):
        return False
    lists = [*map(record.get, _COLUMNS), *terms.values(), record["validation"] or record["train"]]
    return (
        all(isinstance(values, list) and len(values) == epoch for values in lists)
        and all(type(value) in (int, float) for values in lists for value in values)
        and (record["steps"] or [0])[-1] == done
        and isinstance(record["stopped"], str)
        and (best is None or (type(best) is int and 1 <= best <= epoch))
    )
