"""Checkpoints: all that a fit needs to go on, written atomically, read without running code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from flowkit.errors import CheckpointError


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside the target and move: an interrupted write leaves the previous checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint and make sure that it belongs to this flow and these settings.

    Args:
        path: The file.
        settings: What must agree: the flow, the data, seed, batch size, and so on.

    Raises:
        CheckpointError: If the file is damaged or belongs to something else.
    """
    remedy = "remedy: continue with the flow and settings that wrote it, or choose another path"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored = content["settings"]
    except Exception as error:  # damaged bytes surface as almost any exception
        raise CheckpointError(
            f"{path} is not a flowkit checkpoint, or is damaged ({type(error).__name__}); remedy: "
            "delete it or choose another path"
        ) from None
    for name, value in settings.items():
        if stored.get(name) != value:
            if name in ("weights", "flow"):
                raise CheckpointError(f"the checkpoint {path} is of another flow; {remedy}")
            if name == "data":
                raise CheckpointError(f"the checkpoint {path} is of other data; {remedy}")
            raise CheckpointError(
                f"the checkpoint {path} was written with {name}={stored.get(name)!r}, this fit "
                f"has {name}={value!r}; {remedy}"
            )
    return content
