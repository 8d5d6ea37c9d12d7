"""Flow files: weights and recipe in one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from flowkit.errors import DataError, FlowFileError
from flowkit.flow import Flow
from flowkit.recipes import build
from flowkit.scalar import ScalarMap

_KEY = "flowkit"
_FORMAT = 1
# Integers of a recipe that are no sizes, so that nothing grows with them.
_NO_SIZES = {"bounds", "highest", "lower", "order", "seed", "upper"}
# What any file may ask for, however few its weights: some arguments leave no weights behind.
_LEAST_SIZE = 2**16
_LEAST_WEIGHTS = 2**20


def save(
    flow: Flow, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a flow to a file: weights as safetensors, the recipe as JSON in its header.

    The recipe is built once more and compared with the flow, so that a flow changed by hand is not
    saved as another density. The file is written beside its place and then moved, so an
    interrupted write leaves the old one. An existing file keeps its permissions.

    Args:
        flow: A flow built by a recipe with JSON arguments.
        path: Where to write, usually ``*.safetensors``.
        extra: What else to keep in the header, as JSON values: column names, say. Flowkit's
            functions ignore it; :func:`read_extra` returns it.

    Raises:
        FlowFileError: If the flow was not built by a recipe, was changed after it was, or
            ``extra`` is not JSON.

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
    path = Path(path)
    described = {"format": _FORMAT, **flow.recipe}
    if extra is not None:
        described["extra"] = dict(extra)
    try:
        header = {_KEY: json.dumps(described)}
    except (TypeError, ValueError) as error:
        raise FlowFileError(f"extra expected JSON values: {error}") from None
    # Copies, because safetensors refuses weights that share memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in flow.state_dict().items()
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Made here, with the permissions that a new file gets.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = (path if path.exists() else temporary).stat().st_mode
        save_file(state, temporary, metadata=header)
        temporary.chmod(mode & 0o7777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_recipe(flow: Flow, recipe: dict[str, Any]) -> None:
    """Refuse a flow that is not what its recipe builds, up to the weights."""
    try:
        with torch.random.fork_rng(devices=[]):
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

    The header is checked against the weights before anything of their size is built, and no code
    of the file is run.

    Args:
        path: The file.
        device: Where to put the flow.

    Raises:
        DataError: If there is no such device.
        FileNotFoundError: If there is no such file.
        FlowFileError: If the file is not a flow file, is damaged, or does not fit its own recipe.
    """
    path = Path(path)
    _check_device(device)
    with _open(path) as file:
        shapes = {
            name: tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
        }
        described = _read_header(file.metadata() or {}, path)
        _check_plausible(described, shapes, path)
        _check_shapes(described, shapes, path)
        state = {name: file.get_tensor(name) for name in shapes}
    flow = build(described["name"], **described["arguments"])
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    flow = flow.to(dtype=dtype)
    flow.load_state_dict(state)
    return flow.to(device).eval()


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
    except RecursionError:
        raise FlowFileError(f"the flowkit header of {path} is nested too deeply") from None


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


def _check_plausible(
    described: dict[str, Any], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Refuse a size beyond the number of weights before anything is built."""
    total = sum(math.prod(shape) for shape in shapes.values())

    def check(value: Any) -> None:
        if isinstance(value, dict):
            value = [item for name, item in value.items() if name not in _NO_SIZES]
        if isinstance(value, list):
            for item in value:
                check(item)
        elif isinstance(value, int) and abs(value) > max(total, _LEAST_SIZE):
            raise _asks_too_much(path, f"a size of {value}", total)

    arguments = described["arguments"]
    check(arguments)
    waves, lower = arguments.get("waves"), arguments.get("lower")
    if described["name"] == "box_flow" and isinstance(waves, int):
        # The directions of the waves are drawn before the network that reads them is made.
        features = len(lower) if isinstance(lower, list) else arguments.get("features")
        if isinstance(features, int) and waves * features**2 > total:
            raise _asks_too_much(path, f"{waves} waves of {features} features", total)


def _asks_too_much(path: Path, what: str, total: int) -> FlowFileError:
    return FlowFileError(
        f"{path}: its recipe asks for {what}, its weights are {total} numbers: the file is "
        "damaged or hostile"
    )


class _TooManyWeights(Exception):
    """Building has asked for more weights than allowed."""


@contextmanager
def _limited_weights(most: int) -> Iterator[None]:
    """Stop building a module of this thread as soon as it has more than ``most`` weights.

    Masks and other arrays follow the layers that they belong to, so this bounds them too.
    """
    thread = threading.get_ident()
    count = 0

    def add(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        nonlocal count
        if weight is not None and threading.get_ident() == thread:
            count += weight.numel()
            if count > most:
                raise _TooManyWeights

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _check_shapes(
    described: dict[str, Any], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    """Build the flow without memory and compare every name and shape."""
    total = sum(math.prod(shape) for shape in shapes.values())
    try:
        # Some slack, for recipes that replace layers while they build.
        with torch.device("meta"), _limited_weights(4 * total + _LEAST_WEIGHTS):
            skeleton = build(described["name"], **described["arguments"])
    except _TooManyWeights:
        raise _asks_too_much(path, "more weights than it holds", total) from None
    except Exception as error:  # whatever the recipe of a stranger's file runs into
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
