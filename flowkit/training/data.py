"""Rows: one view of arrays, frames, tensors, datasets and memory-mapped files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flowkit.errors import DataError


def as_tensor(values: Any, name: str, dtype: torch.dtype) -> Tensor:
    """Turn an array, frame, list or tensor of numbers into a tensor, or say why it cannot be.

    Integers of ``x`` become floating point too; a flow of counts starts with ``Dequantize``.

    Raises:
        DataError: If there is text, a missing or an infinite value, or nothing at all.

    Example:
        >>> import torch
        >>> as_tensor([[1, 2], [3, 4]], "x", torch.float32)
        tensor([[1., 2.],
                [3., 4.]])
    """
    columns = [str(c) for c in getattr(values, "columns", [])]
    if columns:
        text = [
            str(c) for c, kind in values.dtypes.items() if getattr(kind, "kind", "O") not in "fiub"
        ]
        if text:
            raise DataError(
                f"{name}: column(s) {', '.join(map(repr, text))} do not hold numbers; remedy: "
                "drop them or encode them as numbers"
            )
        values = values.to_numpy(dtype=float, na_value=np.nan)
    if not isinstance(values, Tensor):
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise DataError(f"{name}: rows have different lengths ({error})") from None
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"{name} expected numbers, got an array of dtype {array.dtype}; remedy: encode "
                "text as numbers, and convert with array.astype(float)"
            )
        values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if values.is_complex():
        raise DataError(f"{name} expected real numbers, got {values.dtype}")
    if values.ndim < 1 or values.numel() == 0:
        raise DataError(f"{name} is empty: its shape is {tuple(values.shape)}")
    tensor = values.detach().to(dtype)
    check_finite(tensor, name, columns)
    _warn_of_lost_digits(values.detach(), dtype, name, columns)
    return tensor


def _warn_of_lost_digits(
    values: Tensor, dtype: torch.dtype, name: str, columns: list[str]
) -> None:
    """Say so if a column's variation is close to what its new dtype can resolve."""
    if dtype == torch.float64 or values.ndim != 2 or values.dtype == dtype or len(values) < 2:
        return
    spread, size = values.double().std(0), values.double().abs().amax(0)
    lost = (spread < 1e3 * torch.finfo(dtype).eps * size) & (spread > 0)
    if bool(lost.any()):
        named = [columns[i] if columns else i for i in lost.nonzero().flatten().tolist()[:5]]
        warnings.warn(
            f"{name}: column(s) {named} vary by less than {1e3 * torch.finfo(dtype).eps:.0e} of "
            f"their size, and {dtype} keeps few digits of that; remedy: subtract an offset, or "
            "train in float64 with flow.double()",
            stacklevel=5,
        )


def check_finite(tensor: Tensor, name: str, columns: list[str] | None = None) -> None:
    """Raise a DataError that names rows and columns with NaN or infinite values."""
    bad = ~torch.isfinite(tensor)
    if not bool(bad.any()):
        return
    flat = bad.reshape(len(bad), -1)
    rows, where = flat.any(1).nonzero().flatten(), flat.any(0).nonzero().flatten().tolist()
    named = [columns[i] if columns else i for i in where[:5]]
    raise DataError(
        f"{name} has NaN or infinite values in {len(rows)} of {len(bad)} rows (first rows: "
        f"{rows[:5].tolist()}; columns: {named}); remedy: drop these rows or fill the gaps"
    )


def mean_one(weight: Tensor) -> Tensor:
    """Scale weights to mean one.

    Raises:
        DataError: If a weight is negative, or all are zero.
    """
    if bool((weight < 0).any()) or not bool(weight.sum() > 0):
        raise DataError("weight expected numbers >= 0 with a positive sum")
    return weight / weight.mean()


class TensorRows:
    """Rows in memory, moved to the device once.

    Args:
        tensors: Tensors with one row an event.
        device: Where to keep them.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors = {name: value.to(device) for name, value in tensors.items()}
        self.device = device

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows at ``index``."""
        index = index.to(self.device)
        return {name: value[index] for name, value in self.tensors.items()}


class MappedRows:
    """Rows of memory-mapped arrays: only the rows of a batch are ever read.

    Args:
        arrays: Arrays with one row an event, at least one of them memory-mapped.
        dtype: The dtype of the batches.
        device: Where the batches go.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.arrays, self.dtype, self.device = arrays, dtype, device

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows at ``index``; they are read in the order of the file."""
        rows, place = np.unique(index.numpy(), return_inverse=True)
        return {
            name: torch.from_numpy(np.asarray(array[rows])[place]).to(self.device, self.dtype)
            for name, array in self.arrays.items()
        }


class DatasetRows:
    """Rows of a ``torch.utils.data.Dataset`` of tensors, ``(x, context)`` pairs or dicts.

    Args:
        dataset: A map-style dataset with ``__len__``.
        dtype: The dtype of the batches.
        device: Where the batches go.
    """

    def __init__(self, dataset: Dataset, dtype: torch.dtype, device: torch.device) -> None:
        self.dataset, self.dtype, self.device = dataset, dtype, device

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Collate the items at ``index``."""
        items = default_collate([self.dataset[i] for i in index.tolist()])
        if isinstance(items, Tensor):
            items = {"x": items}
        elif isinstance(items, (list, tuple)):
            items = dict(zip(("x", "context"), items, strict=False))
        return {name: value.to(self.device, self.dtype) for name, value in items.items()}


Rows = TensorRows | MappedRows | DatasetRows


def as_rows(
    data: Any, dtype: torch.dtype, device: torch.device, event_shape: tuple[int, ...]
) -> Rows:
    """Make rows of whatever the user has.

    Args:
        data: An array, frame, list or tensor of events; a dict of them with the keys ``x``,
            ``context``, ``weight`` and what the objective reads; a Dataset; a ``np.memmap``, or
            the path of an ``.npy`` file, which is memory-mapped.
        dtype: Floating-point dtype of the batches.
        device: Where the batches go.
        event_shape: Shape of one event of ``x``.

    Raises:
        DataError: If the data cannot be used; the message says what to do.
    """
    if isinstance(data, Dataset):
        rows: Rows = DatasetRows(data, dtype, device)
        if len(rows) < 1:
            raise DataError("the dataset is empty")
        shapes = {name: tuple(v.shape) for name, v in rows.batch(torch.tensor([0])).items()}
    else:
        named = dict(data) if isinstance(data, Mapping) else {"x": data}
        named = {
            name: _open(value) if isinstance(value, (str, os.PathLike)) else value
            for name, value in named.items()
        }
        if any(isinstance(value, np.memmap) for value in named.values()):
            arrays = {name: np.asanyarray(value) for name, value in named.items()}
            for name, array in arrays.items():
                if array.dtype.kind not in "fiub":
                    raise DataError(f"{name} expected numbers, got dtype {array.dtype}")
            if "weight" in arrays:
                arrays["weight"] = mean_one(torch.from_numpy(np.array(arrays["weight"]))).numpy()
            rows = MappedRows(arrays, dtype, device)
        else:
            tensors = {k: as_tensor(v, k, dtype) for k, v in named.items()}
            if "weight" in tensors:
                tensors["weight"] = mean_one(tensors["weight"])
            rows = TensorRows(tensors, device)
        source = rows.arrays if isinstance(rows, MappedRows) else rows.tensors
        shapes = {name: tuple(value.shape) for name, value in source.items()}
    _check_shapes(shapes, event_shape, check_length=not isinstance(rows, DatasetRows))
    return rows


def _open(path: str | os.PathLike[str]) -> np.ndarray:
    if Path(path).suffix != ".npy":
        raise DataError(f"expected the path of an .npy file, got {path}")
    if not Path(path).is_file():
        raise DataError(f"no file at {path}")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _check_shapes(
    shapes: dict[str, tuple[int, ...]], event_shape: tuple[int, ...], check_length: bool
) -> None:
    if "x" in shapes:
        got = shapes["x"]
        if got[1:] != event_shape:
            wanted = ", ".join(["rows", *map(str, event_shape)])
            hint = "; remedy: x.reshape(-1, 1)" if event_shape == (1,) and len(got) == 1 else ""
            raise DataError(f"x expected shape ({wanted}), as the flow has it; got {got}{hint}")
    if "context" in shapes and len(shapes["context"]) != 2:
        raise DataError(f"context expected shape (rows, C), got {shapes['context']}")
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if check_length and len(set(lengths.values())) > 1:
        raise DataError(f"expected one row an event in every array, got lengths {lengths}")


def split(rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Random training and validation indices.

    Raises:
        DataError: If the fraction is not in [0, 1) or leaves either part empty.

    Example:
        >>> train, held_out = split(10, 0.2, seed=0)
        >>> len(train), len(held_out)
        (8, 2)
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation expected a fraction in [0, 1), got {fraction}")
    if rows < 2:
        raise DataError(f"fit needs at least 2 rows, got {rows}")
    held = min(max(1, round(fraction * rows)), rows - 1) if fraction > 0 else 0
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[held:], order[:held]


def in_batches(
    rows: Rows, index: Tensor, size: int, use: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """Mean over rows of a number that ``use`` returns for each batch."""
    total = torch.zeros((), dtype=torch.float64)
    for part in index.split(size):
        total += use(rows.batch(part)).double().cpu() * len(part)
    return total / len(index)
