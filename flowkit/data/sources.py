"""Sources of samples: tensors in memory, arrays in files, and datasets, with one interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flowkit.data.files import FileArray, read_rows
from flowkit.errors import DataError


class TensorSource:
    """Samples in memory, moved to the device once.

    Args:
        tensors: Tensors with one entry per sample.
        device: Where they are stored.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.tensors = {name: value.to(device) for name, value in tensors.items()}
        self.device = device

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the samples at ``index``."""
        index = index.to(self.device)
        return {name: value[index] for name, value in self.tensors.items()}

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self.tensors)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Return a run of one array as stored, in the dtype of a batch."""
        return self.tensors[name][start:stop]

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return one array at ``index`` in float64; ``None`` if there is none of this name."""
        values = self.tensors.get(name)
        return None if values is None else values[index.to(self.device)].cpu().double()


class MappedSource:
    """Samples of arrays in files, of which only those of a batch are ever read.

    Args:
        arrays: Arrays with one row per sample, at least one of them in a file.
        dtype: The dtype of the batches.
        device: Where the batches go.
        labels: Names of arrays whose integers and booleans are not converted to ``dtype``.
    """

    def __init__(
        self,
        arrays: dict[str, FileArray | np.ndarray],
        dtype: torch.dtype,
        device: torch.device,
        labels: Collection[str] = (),
    ) -> None:
        self.arrays, self.dtype, self.device = arrays, dtype, device
        self.labels = labels

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the samples at ``index``; they are read in the order of the file."""
        return {
            name: as_dtype(_read(array, index), self.dtype, name in self.labels).to(self.device)
            for name, array in self.arrays.items()
        }

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self.arrays)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Return a run of one array as stored, in the dtype of a batch."""
        rows = np.arange(start, min(stop, len(self)))
        values = torch.from_numpy(read_rows(self.arrays[name], rows))
        return as_dtype(values, self.dtype, name in self.labels)

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return one array at ``index`` in float64; ``None`` if there is none of this name."""
        values = self.arrays.get(name)
        return None if values is None else _read(values, index).double()


def dense_and_real(values: Tensor, name: str) -> Tensor:
    """Return a tensor as it is, if it holds real numbers, one beside the other.

    Raises:
        DataError: If it is sparse, nested, quantised or complex, or has no numbers.
    """
    if values.is_nested or values.layout != torch.strided:
        layout = "nested" if values.is_nested else values.layout
        raise DataError(
            f"{name} expected a dense tensor, got one of layout {layout}; remedy: "
            f"{name}.to_dense()"
        )
    if values.is_quantized:
        raise DataError(
            f"{name} expected numbers, got {values.dtype}; remedy: {name}.dequantize()"
        )
    if values.is_complex():
        raise DataError(
            f"{name} expected real numbers, got {values.dtype}; remedy: real and imaginary part "
            "as two columns"
        )
    if values.is_meta:
        raise DataError(
            f"{name} expected numbers, got a tensor on the device meta, which has none; remedy: "
            "a tensor on the CPU or an accelerator"
        )
    return values


def as_dtype(values: Tensor, dtype: torch.dtype, labels: bool) -> Tensor:
    """Numbers of a dtype; labels that are integers or booleans stay so."""
    if not labels or values.is_floating_point():
        return values.to(dtype)
    return values if values.dtype == torch.bool else values.long()


def _read(array: FileArray | np.ndarray, index: Tensor) -> Tensor:
    rows, place = np.unique(index.numpy(), return_inverse=True)
    return torch.from_numpy(read_rows(array, rows)[place])


class DatasetSource:
    """Samples of a ``torch.utils.data.Dataset`` of tensors, ``(x, context)`` pairs or dicts.

    Named tuples are read by their names, as dicts are.

    Args:
        dataset: A map-style dataset with ``__len__``.
        dtype: The dtype of the batches.
        device: Where the batches go.
        labels: Names of arrays whose integers and booleans are not converted to ``dtype``.
    """

    def __init__(
        self,
        dataset: Dataset,
        dtype: torch.dtype,
        device: torch.device,
        labels: Collection[str] = (),
    ) -> None:
        self.dataset, self.dtype, self.device = dataset, dtype, device
        self.labels = labels

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Collate the items at ``index``; see :meth:`items` for errors."""
        return {
            name: as_dtype(value, self.dtype, name in self.labels).to(self.device)
            for name, value in self.items(index).items()
        }

    def items(self, index: Tensor) -> dict[str, Tensor]:
        """Collate the items at ``index`` in the dtypes that they have.

        Raises:
            DataError: If an item is not a tensor, a pair or a dict of numbers, dense and real, or
                has other names than the first.
        """
        try:
            given = [self.dataset[i] for i in index.tolist()]
            _check_items(given)
            items = default_collate(given)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"the items of the dataset cannot be put together ({str(error)[:200]}); remedy: "
                "items that are tensors, pairs (x, context) or dicts, all of one shape"
            ) from None
        if isinstance(items, Tensor):
            items = {"x": items}
        elif hasattr(items, "_asdict"):
            items = items._asdict()
        elif isinstance(items, (list, tuple)) and len(items) <= 2:
            items = dict(zip(("x", "context"), items, strict=False))
        kinds = (
            {name: type(value).__name__ for name, value in items.items()}
            if isinstance(items, dict)
            else f"{len(items)} parts"
        )
        if not isinstance(items, dict) or set(kinds.values()) != {"Tensor"}:  # type: ignore[union-attr]
            raise DataError(
                "expected a dataset of tensors, of pairs (x, context) of them, or of dicts of "
                f"them; its items hold {kinds}; remedy: encode text as numbers, and name three "
                "or more parts in a dict"
            )
        return {name: dense_and_real(value, name) for name, value in items.items()}

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return one part of the items at ``index`` in float64; ``None`` if they have none."""
        if name not in self.items(index[:1]):
            return None
        return self.items(index)[name].cpu().double()


def _check_items(items: list[Any]) -> None:
    """Refuse what torch would collate in part: dicts of different names, and masked arrays."""
    for item in items:
        parts: Any = item.values() if isinstance(item, Mapping) else item
        if not isinstance(item, (Mapping, tuple, list)):
            parts = [item]
        if any(map(np.ma.isMaskedArray, parts)):
            raise DataError(
                "the items of the dataset are masked arrays, whose masks torch drops; remedy: "
                "leave out the items with masked values"
            )
    names = [list(item) for item in items if isinstance(item, Mapping)]
    other = next((some for some in names if set(some) != set(names[0])), None)
    if other is not None:
        raise DataError(
            f"the items of the dataset have different names, {names[0]} and {other}; remedy: the "
            "same names in every item"
        )


Source = TensorSource | MappedSource | DatasetSource
