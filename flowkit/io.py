"""Flow files: weights and description in one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowkit.config import describe
from flowkit.content import Content, build_from, read_content, weights_fault, write_content
from flowkit.density import Density, check_density
from flowkit.errors import DataError, DescriptionError, FlowFileError
from flowkit.files import existing, replacing


def save(
    flow: Density, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a flow to a safetensors file: its weights, and in the header how to build it again.

    Every flow that is composed of registered parts can be written: of flowkit's own, and of
    classes and functions of yours with :func:`flowkit.register` above their definition. The
    header holds a digest of the content, by which :func:`load` notices damage. The file is
    written beside its place and then moved, so that an interrupted write or a full disk leaves
    the old one; see :func:`flowkit.files.replacing`.

    Args:
        flow: A flow, or a :class:`flowkit.FlowMixture`.
        path: Where to write, usually ``*.safetensors``.
        extra: What else to keep in the header, as JSON values: column names, say. Flowkit's
            functions ignore it; :func:`flowkit.io.read_extra` returns it.

    Raises:
        DataError: If the path is a device or a pipe.
        FlowFileError: If a part is not registered, was changed after it was made, holds NaN,
            infinity or weights of several dtypes, or ``extra`` is not JSON.
        OSError: If the path cannot be written.

    Example:
        >>> import tempfile, torch
        >>> import flowkit
        >>> flow = flowkit.coupling_flow(features=2, layers=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     flowkit.save(flow, f"{folder}/flow.safetensors")
        ...     again = flowkit.load(f"{folder}/flow.safetensors")
        >>> x = torch.randn(5, 2)
        >>> torch.equal(flow.log_prob(x), again.log_prob(x))
        True
    """
    check_density("save", flow, "save(flow, path)")
    try:
        part = describe(flow)
    except DescriptionError as error:
        raise FlowFileError(f"this flow cannot be saved: {error}") from error
    # Copies, because safetensors refuses weights that share memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in flow.state_dict().items()
    }
    fault = weights_fault(flow, state)
    if fault is not None:
        raise FlowFileError(
            f"this flow cannot be saved, for {fault}; remedy: fit it again, or flow.float()"
        )
    content = write_content(part, None if extra is None else dict(extra), state)
    # What is written can be read.
    read_content(content, Path(path))
    with replacing(path) as file:
        file.write(content)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Read a flow or a mixture of flows from a file written by :func:`save`.

    The header is checked against the weights before anything of their size is built: time and
    memory follow the size of the file. No code of the file is run.

    Args:
        path: The file.
        device: Where to put the flow.

    Returns:
        The :class:`flowkit.Flow` or :class:`flowkit.FlowMixture`, in evaluation mode.

    Raises:
        DataError: If there is no such device.
        FileNotFoundError: If there is no such file.
        FlowFileError: If the file is not a flow file, is damaged, does not fit its own
            description, or holds numbers that no flow can have.
    """
    _check_device(device)
    return build_from(_read(path), Path(path)).to(device)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"load cannot put a flow on device {str(device)!r} ({reason}); remedy: device='cpu', "
            "or a device that torch finds on this machine"
        ) from None


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` was given as ``extra``, without building the flow.

    Args:
        path: The file.

    Returns:
        The dict; empty if the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        FlowFileError: As :func:`load`.

    Example:
        >>> import tempfile
        >>> import flowkit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/flow.safetensors"
        ...     flowkit.save(flowkit.elementwise_flow(1), path, extra={"columns": ["height"]})
        ...     flowkit.io.read_extra(path)
        {'columns': ['height']}
    """
    return _read(path).extra


def _read(path: str | os.PathLike[str]) -> Content:
    file = existing(path, "flow file")
    return read_content(file.read_bytes(), file)
