"""Flow files: weights and recipe in one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowkit.content import build_from, read_content, weights_fault, write_content
from flowkit.errors import DataError, FlowFileError
from flowkit.files import replacing
from flowkit.flow import Flow
from flowkit.noise import drawing_from
from flowkit.recipes import build
from flowkit.scalar import ScalarMap


def save(
    flow: Flow, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a flow to a file: weights as safetensors, the recipe as JSON in its header.

    The recipe is built once more and compared with the flow, so that a flow changed by hand is not
    saved as another density. The header holds a digest of the content, by which :func:`load`
    notices damage. The file is written beside its place and then moved, so that an interrupted
    write or a full disk leaves the old one; see :func:`flowkit.files.replacing`.

    Args:
        flow: A flow built by a recipe with JSON arguments.
        path: Where to write, usually ``*.safetensors``.
        extra: What else to keep in the header, as JSON values: column names, say. Flowkit's
            functions ignore it; :func:`read_extra` returns it.

    Raises:
        DataError: If the path is a device or a pipe.
        FlowFileError: If the flow was not built by a recipe, was changed after it was, holds NaN,
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
    if flow.recipe is None:
        raise FlowFileError(
            "this flow was not built by a recipe with JSON arguments, so a file cannot describe "
            "it; remedy: build it with a flowkit recipe (or register your own with "
            "flowkit.recipes.recipe), or save flow.state_dict() and rebuild the flow in code"
        )
    _check_recipe(flow, flow.recipe)
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
    content = write_content(flow.recipe, None if extra is None else dict(extra), state)
    # What is written can be read.
    read_content(content, Path(path))
    with replacing(path) as file:
        file.write(content)


def _check_recipe(flow: Flow, recipe: dict[str, Any]) -> None:
    """Refuse a flow that is not what its recipe builds, up to the weights."""
    try:
        with drawing_from(torch.Generator()):
            again = build(recipe["name"], **recipe["arguments"])
    except Exception as error:
        raise FlowFileError(
            f"the recipe {recipe['name']} of this flow cannot be built again: {error}"
        ) from error
    difference = _first_difference(flow, again)
    if difference is not None:
        raise FlowFileError(
            f"this flow is not what its recipe {recipe['name']} builds: {difference}; a file "
            "would load as another density; remedy: choose this by an argument of the recipe, "
            "register a recipe of your own with flowkit.recipes.recipe, or save "
            "flow.state_dict() and rebuild the flow in code"
        )


def _first_difference(flow: nn.Module, again: nn.Module) -> str | None:
    """Where two modules differ in what is not saved as a weight, in words."""
    ours, theirs = dict(flow.named_modules()), dict(again.named_modules())
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        place = f"flow.{name}" if name else "the flow"
        found, expected = (_class_name(part.get(name)) for part in (ours, theirs))
        if found != expected:
            return f"{place} is {found}, expected {expected}"
        left, right = _settings(ours[name]), _settings(theirs[name])
        for key in left | right:
            if not _equal(left.get(key), right.get(key)):
                return f"{place} has {key}={left.get(key)}, expected {right.get(key)}"
    shapes = [{k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (flow, again)]
    for key in shapes[1] | shapes[0]:
        found, expected = (str(part.get(key, "none")) for part in shapes)
        if found != expected:
            return f"flow.{key} has shape {found}, expected {expected}"
    constants = dict(again.named_buffers())
    for key, value in flow.named_buffers():
        constant = constants.get(key, value)
        if key not in shapes[0] and not torch.equal(value.cpu(), constant.cpu().to(value.dtype)):
            return f"flow.{key} holds other numbers"
    return None


def _class_name(module: nn.Module | None) -> str:
    return (
        "nothing" if module is None else f"{type(module).__module__}.{type(module).__qualname__}"
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """Public attributes that are plain values or scalar maps, and what the module prints."""
    settings = {
        name: value
        for name, value in vars(module).items()
        if not (name.startswith("_") or name in ("training", "recipe"))
        and (_is_plain(value) or isinstance(value, ScalarMap))
    }
    return {**settings, "settings": module.extra_repr()}


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, ScalarMap):
        return type(left) is type(right) and vars(left) == vars(right)
    return bool(left == right)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Flow:
    """Read a flow from a file written by :func:`save`.

    The header is checked against the weights before anything of their size is built: time and
    memory follow the size of the file. No code of the file is run.

    Args:
        path: The file.
        device: Where to put the flow.

    Raises:
        DataError: If there is no such device.
        FileNotFoundError: If there is no such file.
        FlowFileError: If the file is not a flow file, is damaged, does not fit its own recipe, or
            holds numbers that no flow can have.
    """
    path = Path(path)
    _check_device(device)
    return build_from(read_content(_read_bytes(path), path), path).to(device)


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
    path = Path(path)
    return read_content(_read_bytes(path), path).extra


def _read_bytes(path: Path) -> bytes:
    """The content of a regular file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a flow file")
    if not path.is_file():
        raise FileNotFoundError(f"no flow file at {path}")
    return path.read_bytes()
