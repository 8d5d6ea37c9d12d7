"""Flow files: weights and recipe in one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flowkit.errors import FlowFileError, FlowkitError
from flowkit.flow import Flow
from flowkit.recipes import build

_KEY = "flowkit"
_FORMAT = 1


def save(
    flow: Flow, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a flow to a file: weights as safetensors, the recipe as JSON in its header.

    The file is written beside its place and then moved, so an interrupted write leaves the old
    one.

    Args:
        flow: A flow built by a recipe with JSON arguments.
        path: Where to write, usually ``*.safetensors``.
        extra: What else to keep in the header, as JSON values: column names, say. Flowkit's
            functions ignore it; :func:`read_extra` returns it.

    Raises:
        FlowFileError: If the flow was not built by a recipe, or ``extra`` is not JSON.

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
    path = Path(path)
    described = {"format": _FORMAT, **flow.recipe}
    if extra is not None:
        described["extra"] = dict(extra)
    try:
        header = {_KEY: json.dumps(described)}
    except (TypeError, ValueError) as error:
        raise FlowFileError(f"extra expected JSON values: {error}") from None
    state = {name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(state, temporary, metadata=header)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Flow:
    """Read a flow from a file written by :func:`save`.

    The header is checked against the weights before anything of their size is built, and no code
    of the file is run.

    Args:
        path: The file.
        device: Where to put the flow.

    Raises:
        FileNotFoundError: If there is no such file.
        FlowFileError: If the file is not a flow file, is damaged, or does not fit its own recipe.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no flow file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shapes = {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }
            described = _read_header(metadata, path)
            _check_plausible(described["arguments"], shapes, path)
            _check_shapes(described, shapes, path)
            state = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise FlowFileError(
            f"{path} is not a safetensors file, or is truncated ({error}); remedy: save the flow "
            "again with flowkit.save"
        ) from None
    flow = build(described["name"], **described["arguments"])
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    flow = flow.to(dtype=dtype)
    flow.load_state_dict(state)
    return flow.to(device).eval()


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save` was given as ``extra``, without reading the weights.

    Args:
        path: The file.

    Returns:
        The dict; empty if the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        FlowFileError: If the file is not a flow file, or its header is damaged.

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
    with _open(path) as file:
        extra = _read_header(file.metadata() or {}, path).get("extra", {})
    if not isinstance(extra, dict):
        raise FlowFileError(f"the flowkit header of {path} is damaged")
    return extra


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The open safetensors file, with errors in words."""
    if not path.is_file():
        raise FileNotFoundError(f"no flow file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise FlowFileError(
            f"{path} is not a safetensors file, or is truncated ({error}); remedy: save the flow "
            "again with flowkit.save"
        ) from None


def _read_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if _KEY not in metadata:
        raise FlowFileError(
            f"{path} is a safetensors file without a flowkit recipe in its header; remedy: build "
            "the flow in code and use load_state_dict, or write the file with flowkit.save"
        )
    try:
        described = json.loads(metadata[_KEY])
        fits = (
            isinstance(described["name"], str)
            and isinstance(described["arguments"], dict)
            and isinstance(described["format"], int)
        )
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise FlowFileError(f"the flowkit header of {path} is damaged")
    if described["format"] > _FORMAT:
        raise FlowFileError(
            f"{path} has format {described['format']}, this flowkit reads up to {_FORMAT}; "
            "remedy: upgrade flowkit-density"
        )
    return described


def _check_plausible(arguments: Any, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """No size in a recipe can exceed the number of weights: refuse it before building anything."""
    total = sum(torch.Size(shape).numel() for shape in shapes.values())

    def check(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                check(item)
        elif (
            isinstance(value, int) and not isinstance(value, bool) and abs(value) > max(total, 64)
        ):
            raise FlowFileError(
                f"{path}: its recipe asks for a size of {value}, its weights are "
                f"{total} numbers: the file is damaged or hostile"
            )

    check([value for name, value in arguments.items() if name != "seed"])


def _check_shapes(
    described: dict[str, Any], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Build the flow without memory and compare every name and shape."""
    try:
        with torch.device("meta"):
            skeleton = build(described["name"], **described["arguments"])
    except (FlowkitError, TypeError, ValueError) as error:
        raise FlowFileError(f"the recipe in {path} cannot be built: {error}") from error
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    if expected != shapes:
        wrong = sorted(
            name
            for name in expected.keys() | shapes.keys()
            if expected.get(name) != shapes.get(name)
        )
        name = wrong[0]
        raise FlowFileError(
            f"the weights in {path} do not fit its recipe {described['name']}: {name} should have "
            f"shape {expected.get(name, 'none')}, the file has {shapes.get(name, 'none')} "
            f"({len(wrong)} differences in all)"
        )
