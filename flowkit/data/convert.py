"""Convert arrays, frames, tensors, datasets and files to a source of samples, or say why not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from flowkit.arrays import codes
from flowkit.data.files import FileArray, in_file, read_rows
from flowkit.data.inspection import Inspection, evenly_spaced, inspect
from flowkit.data.sources import (
    DatasetSource,
    MappedSource,
    Source,
    TensorSource,
    as_dtype,
    dense_and_real,
    unusable,
)
from flowkit.errors import DataError

# As if of so many numbers each: items may take long to read.
_ITEMS_AT_MOST = 8000


def columns_of(values: Any) -> list[str]:
    """Names of the columns of a frame."""
    return [str(c) for c in getattr(values, "columns", [])]


def as_numbers(values: Any, name: str) -> Tensor:
    """Convert an array, frame, list or tensor of numbers to a tensor of the dtype that they have.

    Raises:
        DataError: If there is text, or nothing at all.

    Example:
        >>> as_numbers([[1, 2], [3, 4]], "x")
        tensor([[1, 2],
                [3, 4]])
    """
    if columns_of(values) and hasattr(values, "iloc"):
        values = _frame_to_array(values, name)
    if not isinstance(values, Tensor):
        values = _array_to_tensor(values, name)
    values = dense_and_real(values, name)
    if values.ndim < 1 or values.numel() == 0:
        raise DataError(
            f"{name} is empty: its shape is {tuple(values.shape)}; remedy: at least two samples"
        )
    return values.detach()


def _frame_to_array(frame: Any, name: str) -> np.ndarray:
    """Columns of numbers, also where they are stored as objects; gaps become NaN."""
    text = [
        str(column)
        for i, (column, kind) in enumerate(frame.dtypes.items())
        if getattr(kind, "kind", "O") not in "fiub"
        and not all(
            isinstance(value, Number) and not isinstance(value, complex)
            for value in frame.iloc[:, i].dropna()
        )
    ]
    if text:
        raise DataError(
            f"{name}: column(s) {', '.join(map(repr, text))} do not hold numbers; remedy: "
            "drop them or encode them as numbers"
        )
    return frame.to_numpy(dtype=float, na_value=np.nan)


def _array_to_tensor(values: Any, name: str) -> Tensor:
    if hasattr(values, "toarray"):
        got = f"a sparse {type(values).__name__}"
        raise unusable(name, "a dense array", got, f"{name}.toarray()")
    if isinstance(values, np.ma.MaskedArray):
        _check_numeric(values.dtype, name)
        values = np.ma.filled(values.astype(float), np.nan)
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(v, Tensor) for v in values):
            return torch.stack([torch.as_tensor(value).detach() for value in values])
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{name}: no array can be made of this {type(values).__name__}; rows may have "
            f"different lengths ({error}); remedy: one array or tensor of numbers, or a dict of "
            "several, such as x and context"
        ) from None
    _check_numeric(array.dtype, name)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _check_numeric(dtype: np.dtype, name: str) -> None:
    if dtype.kind not in "fiubc" or (dtype.kind == "f" and dtype.itemsize > 8):
        remedy = "encode text as numbers, and convert with array.astype(float)"
        raise unusable(name, "numbers", f"an array of dtype {dtype}", remedy)


def check_finite(
    tensor: Tensor,
    name: str,
    columns: Sequence[str] | None = None,
    numbers: Tensor | None = None,
) -> None:
    """Raise a DataError that names rows and columns with NaN or infinite values.

    Args:
        tensor: One row per sample.
        name: What it is.
        columns: Names of its columns.
        numbers: Row numbers in the data; 0, 1, ... by default.
    """
    bad = ~torch.isfinite(tensor)
    if not bool(bad.any()):
        return
    flat = bad.reshape(len(bad), -1)
    rows, where = flat.any(1).nonzero().flatten().cpu(), flat.any(0).nonzero().flatten().tolist()
    named = [columns[i] if columns else i for i in where[:5]]
    first = (rows if numbers is None else numbers[rows])[:5].tolist()
    raise DataError(
        f"{name} has missing (NaN) or infinite values in {len(rows)} of {len(bad)} rows "
        f"(first rows: {first}; columns: {named}); remedy: drop these rows or fill the gaps"
    )


@dataclass(frozen=True)
class Expected:
    """What a model expects of data.

    Attributes:
        dtype: Floating-point dtype of the batches.
        device: Where the batches go.
        event_shape: Shape of one event.
        context: Number of features of a context; 0 for any number, ``None`` for any shape.
        reads_labels: Says of a context of integers or booleans whether the model reads it as it
            is; ``None`` for a model that reads numbers of ``dtype`` only.
    """

    dtype: torch.dtype
    device: torch.device
    event_shape: tuple[int, ...]
    context: int | None = 0
    reads_labels: Callable[[Tensor], bool] | None = None


def as_source(data: Any, expected: Expected, of: str = "data") -> tuple[Source, Inspection]:
    """Convert data to a source of samples, and inspect some of them.

    Args:
        data: An array, frame, list or tensor of events; a dict of them with the keys ``x``,
            ``context``, ``weight`` and what the objective reads; a Dataset; a ``np.memmap``, or
            the path of an ``.npy`` file, which is read batch by batch.
        expected: What the model expects.
        of: Which data these are, for messages.

    Raises:
        DataError: If the data cannot be used; the message says what to do.
    """
    dtype, device = expected.dtype, expected.device
    if isinstance(data, (Dataset, DataLoader)):
        source = _source_of_dataset(data, dtype, device)
        first = source.items(torch.tensor([0]))
        _check_shapes({name: tuple(v.shape) for name, v in first.items()}, expected)
        some = source.items(evenly_spaced(len(source), _ITEMS_AT_MOST))
        source.labels = _labels(some, expected)
        return source, inspect(some, dtype, {})
    named = dict(data) if isinstance(data, Mapping) else {"x": data}
    if not named:
        raise DataError("data is an empty dict; remedy: a dict with the key x")
    named = {
        name: _open(value, of) if isinstance(value, (str, os.PathLike)) else value
        for name, value in named.items()
    }
    if "group" in named:
        # Counted from zero: names may be texts, or numbers with more digits than the dtype has.
        named["group"] = codes(named["group"], "group")
    mapped = {name: _in_file(value, name) for name, value in named.items() if _is_mapped(value)}
    numbers = {k: as_numbers(v, k) for k, v in named.items() if k not in mapped}
    shapes = {name: tuple(value.shape) for name, value in (mapped | numbers).items()}
    _check_shapes(shapes, expected, mapped="x" in mapped)
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"expected arrays of one length, got lengths {lengths}")
    some = {name: _some(values) for name, values in (numbers | mapped).items()}
    labels = _labels(some, expected)
    tensors = {k: as_dtype(v, dtype, labels=k in labels) for k, v in numbers.items()}
    columns = {name: columns_of(named[name]) for name in numbers}
    for name, value in tensors.items():
        check_finite(value, name, columns[name])
    seen = inspect(some, dtype, columns)
    if not mapped:
        return TensorSource(tensors, device), seen
    arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
    return MappedSource(mapped | arrays, dtype, device, labels), seen


def _labels(some: Mapping[str, Tensor], expected: Expected) -> tuple[str, ...]:
    """Names of arrays whose integers or booleans the model reads as they are."""
    context = some.get("context")
    if context is None or context.is_floating_point() or expected.reads_labels is None:
        return ()
    first = as_dtype(context[:1], expected.dtype, labels=True).to(expected.device)
    return ("context",) if expected.reads_labels(first) else ()


def _source_of_dataset(data: Any, dtype: torch.dtype, device: torch.device) -> DatasetSource:
    if isinstance(data, DataLoader):
        own = "" if data.collate_fn is default_collate else ", whose items are collated by torch"
        raise DataError(
            "expected samples that can be split, shuffled and read again by their numbers, got a "
            f"DataLoader; remedy: loader.dataset, here a {type(data.dataset).__name__}{own}, and "
            f"batch_size={data.batch_size or 256}"
        )
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise DataError(
            "expected a map-style dataset, with __len__ and __getitem__, got "
            f"{type(data).__name__}; remedy: for example torch.stack(list(dataset))"
        )
    source = DatasetSource(data, dtype, device)
    if len(source) < 1:
        raise DataError("the dataset is empty; remedy: at least two items")
    return source


def _some(values: Any) -> Tensor:
    """Some of the samples of an array, as stored."""
    index = evenly_spaced(len(values), math.prod(values.shape[1:]))
    if isinstance(values, Tensor):
        return values[index]
    return torch.from_numpy(read_rows(values, index.numpy()))


def _is_mapped(value: Any) -> bool:
    return isinstance(value, np.memmap) and getattr(value, "_mmap", None) is not None


def _in_file(array: np.memmap, name: str) -> FileArray | np.memmap:
    _check_numeric(array.dtype, name)
    if array.dtype.kind == "c" or array.size == 0:
        got = f"an array of dtype {array.dtype} and shape {array.shape}"
        raise unusable(name, "real numbers", got, "another file")
    return in_file(array)


def _open(path: str | os.PathLike[str], of: str) -> np.ndarray:
    if Path(path).suffix != ".npy":
        raise DataError(
            f"{of} expected the path of an .npy file, got {path}; remedy: read it into an array "
            "or a frame first"
        )
    if not Path(path).is_file():
        raise DataError(f"no file at {path}; remedy: the path of an existing .npy file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path} cannot be memory-mapped as an array of numbers ({error}); remedy: write it "
            "with numpy.save from an array of floats"
        ) from None


def _check_shapes(
    shapes: dict[str, tuple[int, ...]], expected: Expected, *, mapped: bool = False
) -> None:
    event_shape, context = expected.event_shape, expected.context
    if "x" in shapes:
        got = shapes["x"]
        if got[1:] != event_shape:
            names = ", ".join(["samples", *map(str, event_shape)])
            hint = ""
            if event_shape == (1,) and len(got) == 1:
                x = "numpy.load(path, mmap_mode='r')" if mapped else "x"
                hint = f"; remedy: {x}.reshape(-1, 1)"
            raise DataError(f"x expected shape ({names}), as the flow has it; got {got}{hint}")
    if "weight" in shapes and len(shapes["weight"]) != 1:
        raise DataError(
            f"weight expected shape (samples,), got {shapes['weight']}; remedy: "
            "weight.reshape(-1), if it holds one number per sample"
        )
    got = shapes.get("context", ())
    if got and context is not None and (len(got) != 2 or context not in (0, got[1])):
        if len(got) == 1 and context < 2:
            remedy = "context.reshape(-1, 1), if it holds one number per sample"
        elif len(got) > 2 and context in (0, math.prod(got[1:])):
            remedy = "context.flatten(1), or Flow(transform, base, embedding=net) with a network"
        elif len(got) > 2:
            remedy = "Flow(transform, base, embedding=net) with a network that reads such contexts"
        else:
            size = got[1] if len(got) == 2 else 1
            remedy = f"a flow with context={size}, or contexts of {context} numbers"
        raise DataError(
            f"context expected shape (samples, {context or 'C'}), got {got}; remedy: {remedy}"
        )
