"""The bytes of a flow file: what they must hold before a flow is built from them.

A header may ask for no more than the file holds, the digest covers every byte, and the numbers are
those that a flow can have. Reading costs time and memory in proportion to the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from flowkit.config import build
from flowkit.errors import FlowFileError

_KEY = "flowkit"
_FORMAT = 2
_NO_DIGEST = "0" * 64
# In the bytes of the file, where the description is a JSON string within JSON.
_DIGEST = re.compile(rb'\\"digest\\": \\"([0-9a-f]{64})\\"')
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Integers of a description that are no sizes, so that nothing grows with them.
_NO_SIZES = {"bounds", "lower", "max_frequency", "order", "seed", "steps", "upper", "weights"}
# What any file may ask for, however few its weights: some arguments leave no weights behind.
_LEAST_SIZE = 2**10
_LEAST_WEIGHTS = 2**20
# Parts of modules for each stored tensor: layers make up to four.
_PARTS = 16
_LEAST_PARTS = 1000


class Content(NamedTuple):
    """What a flow file holds.

    Attributes:
        part: Description of the flow; see :mod:`flowkit.config`.
        extra: What else was stored.
        state: The weights.
    """

    part: dict[str, Any]
    extra: dict[str, Any]
    state: dict[str, Tensor]


def write_content(part: dict[str, Any], extra: Any, state: dict[str, Tensor]) -> bytes:
    """Return the bytes of a flow file, with their digest.

    Raises:
        FlowFileError: If ``extra`` is not a dict of JSON values.
    """
    described = {"digest": _NO_DIGEST, "format": _FORMAT, "flow": part}
    if extra is not None:
        described["extra"] = extra
    try:
        text = json.dumps(described)
    except (RecursionError, TypeError, ValueError) as error:
        raise FlowFileError(f"extra expected JSON values: {error}") from None
    return seal(safetensors.torch.save(state, {_KEY: text}))


def seal(content: bytes) -> bytes:
    """Put the digest of all other bytes in its place in the header."""
    digest = _digest(content)
    found = _DIGEST.search(content)
    if digest is None or found is None:
        raise FlowFileError("the header has no place for a digest")
    return content[: found.start(1)] + digest.encode() + content[found.end(1) :]


def read_content(content: bytes, path: Path) -> Content:
    """Check the bytes of a flow file, and return what they hold.

    Raises:
        FlowFileError: If this is not a flow file, is damaged, asks for more than it holds, or its
            weights are not those of its flow.
    """
    try:
        state = safetensors.torch.load(content)
    except Exception as error:  # safetensors and torch report strange bytes in many ways
        reason = " ".join(str(error).split())[:200]
        raise FlowFileError(
            f"{path} is not a safetensors file, or is truncated ({reason}); remedy: save the flow "
            "again with flowkit.save"
        ) from None
    described = _read_header(content, path)
    _check_weights(described["flow"], state, path)
    return Content(described["flow"], described.get("extra", {}), state)


def build_from(content: Content, path: Path) -> Any:
    """Build the flow of a file, with its weights.

    Raises:
        FlowFileError: If the numbers are none that the flow can have.
    """
    with torch.random.fork_rng(devices=[]):  # for weights that are replaced at once
        flow = build(content.part)
    constants = {key: v for key, v in flow.state_dict().items() if v.dtype == torch.int64}
    for key, constant in constants.items():
        # Orders of features may differ between versions of NumPy, but are orders.
        if not torch.equal(content.state[key].flatten().sort()[0], constant.flatten().sort()[0]):
            raise FlowFileError(f"{path}: {key} is another set of integers; the file is damaged")
    floats = (value.dtype for value in content.state.values() if value.is_floating_point())
    flow = flow.to(dtype=next(floats, None))
    flow.load_state_dict(content.state)
    fault = weights_fault(flow, content.state)
    if fault is not None:
        raise FlowFileError(
            f"{path}: {fault}, so this is no density; remedy: fit the flow again and save it"
        )
    return flow.eval()


def weights_fault(flow: nn.Module, state: dict[str, Tensor]) -> str | None:
    """What in the weights makes the flow no density, in words."""
    dtypes = sorted({str(v.dtype) for v in state.values() if v.is_floating_point()})
    if len(dtypes) > 1:
        return f"the weights have the dtypes {' and '.join(dtypes)}"
    for name, value in state.items():
        if value.is_complex() or (value.is_floating_point() and value.dtype not in _FLOATS):
            return f"{name} has dtype {value.dtype}"
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"{name} holds NaN or infinity"
    for name, part in flow.named_modules():
        if hasattr(part, "stored_fault"):
            fault = part.stored_fault()
            if fault is not None:
                return f"{name}.{fault}".lstrip(".")
    return None


def _read_header(content: bytes, path: Path) -> dict[str, Any]:
    """The description in the header, after its digest was compared with the content."""
    # That the header is JSON, and its metadata are texts, safetensors has checked.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get(_KEY)
    if text is None:
        raise FlowFileError(
            f"{path} is a safetensors file without a flow in its header; remedy: build "
            "the flow in code and use load_state_dict, or write the file with flowkit.save"
        )
    try:
        described = json.loads(text)
    except (RecursionError, ValueError):
        described = None
    parts = described if isinstance(described, dict) else {}
    kinds = type(parts.get("flow")), type(parts.get("extra", {})), type(parts.get("format"))
    if kinds != (dict, dict, int):
        raise FlowFileError(f"the flowkit header of {path} is damaged")
    if described["format"] > _FORMAT:
        raise FlowFileError(
            f"{path} has format {described['format']}, this flowkit reads up to {_FORMAT}; "
            "remedy: upgrade flowkit-density"
        )
    digest = _digest(content)
    if digest is None or described.get("digest") != digest:
        raise FlowFileError(
            f"{path} was changed after it was saved: its digest is not that of its content; "
            "remedy: take the file from where it was written, or save the flow again with "
            "flowkit.save"
        )
    return described


def _digest(content: bytes) -> str | None:
    """SHA-256 of the content with zeros in the place of the digest; None without a place."""
    size = int.from_bytes(content[:8], "little")
    found = _DIGEST.search(content, 8, 8 + size)
    if found is None:
        return None
    digest = hashlib.sha256(content[: found.start(1)])
    digest.update(_NO_DIGEST.encode())
    digest.update(memoryview(content)[found.end(1) :])
    return digest.hexdigest()


def _check_sizes(value: Any, most: int) -> None:
    """Refuse sizes beyond the number of weights in a description.

    Raises:
        TooLarge: If there is one.
    """
    if isinstance(value, dict):
        value = [item for name, item in value.items() if name not in _NO_SIZES]
    if isinstance(value, list):
        for item in value:
            _check_sizes(item, most)
    elif isinstance(value, int) and abs(value) > most:
        raise TooLarge(f"larger sizes, as {value:.3g},")


class TooLarge(Exception):
    """Building has asked for more weights or layers than allowed."""


@contextmanager
def limited(weights: float, parts: float) -> Iterator[None]:
    """Stop building a module of this thread once it has too many weights, or too many parts.

    Masks and other arrays follow the layers that they belong to, so this bounds them too.

    Args:
        weights: The most numbers in parameters.
        parts: The most parameters, buffers and modules within modules.

    Raises:
        TooLarge: Within the block.
    """
    thread = threading.get_ident()
    numbers = count = 0

    def add(module: nn.Module, name: str, part: Any) -> None:
        nonlocal numbers, count
        if threading.get_ident() == thread:
            count += 1
            numbers += part.numel() if isinstance(part, nn.Parameter) else 0
            if numbers > weights:
                raise TooLarge("more weights")
            if count > parts:
                raise TooLarge("more layers")

    handles = [
        register_module_parameter_registration_hook(add),
        register_module_buffer_registration_hook(add),
        register_module_module_registration_hook(add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_weights(part: dict[str, Any], state: dict[str, Tensor], path: Path) -> None:
    """Build the flow without memory and compare every name, shape and kind of number."""
    total = sum(value.numel() for value in state.values())
    # Some slack, for parts that are replaced while they are built.
    most = (4 * total + _LEAST_WEIGHTS, _PARTS * len(state) + _LEAST_PARTS)
    try:
        _check_sizes(part, max(total, _LEAST_SIZE))
        with torch.device("meta"), limited(*most):
            skeleton = build(part)
    except TooLarge as error:
        raise FlowFileError(
            f"{path}: it asks for {error} than its {total} weights allow: the file is damaged or "
            "hostile"
        ) from None
    except Exception as error:  # whatever an untrusted description runs into
        raise FlowFileError(f"the flow in {path} cannot be built: {error}") from error
    expected = {name: _kind(value) for name, value in skeleton.state_dict().items()}
    found = {name: _kind(value) for name, value in state.items()}
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        name = wrong[0]
        raise FlowFileError(
            f"the weights in {path} do not fit its flow: {name} should be "
            f"{expected.get(name, 'absent')}, the file has {found.get(name, 'none')} "
            f"({len(wrong)} differences in all)"
        )


def _kind(value: Tensor) -> str:
    """Shape and kind of number, in words."""
    kind = "floating point" if value.dtype in _FLOATS else str(value.dtype).removeprefix("torch.")
    return f"{kind} of shape {tuple(value.shape)}"
