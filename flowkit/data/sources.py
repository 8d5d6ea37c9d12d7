"""Sources of samples: tensors in memory, arrays in files, and datasets, with one interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from flowkit.data.files import read_rows
from flowkit.errors import DataError


class Source:
    """Samples that are read by their numbers.

    Args:
        arrays: Arrays with one entry per sample, by name.
        dtype: The dtype of the batches.
        device: Where the batches go.
        labels: Names of arrays whose integers and booleans are not converted to ``dtype``.
    """

    def __init__(
        self,
        arrays: Any,
        dtype: torch.dtype,
        device: torch.device,
        labels: Collection[str] = (),
    ) -> None:
        self.arrays, self.dtype, self.device, self.labels = arrays, dtype, device, labels

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def read(self, name: str, index: Tensor) -> Tensor:
        """Return one array at ``index`` as stored."""
        raise NotImplementedError

    def items(self, index: Tensor) -> dict[str, Tensor]:
        """Return all arrays at ``index`` as stored."""
        return {name: self.read(name, index) for name in self.arrays}

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the samples at ``index``."""
        return {name: self._cast(name, value) for name, value in self.items(index).items()}

    def _cast(self, name: str, values: Tensor) -> Tensor:
        return as_dtype(values, self.dtype, labels=name in self.labels).to(self.device)

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return one array at ``index`` in float64; ``None`` if there is none of this name."""
        return self.read(name, index).cpu().double() if name in self.arrays else None

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Return a run of one array, in the dtype of a batch."""
        return self._cast(name, self.read(name, torch.arange(start, min(stop, len(self)))))


class TensorSource(Source):
    """Samples in memory, moved to the device once.

    Args:
        tensors: Tensors with one entry per sample, in the dtypes of the batches.
        device: Where they are stored.
    """

    def __init__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        moved = {name: value.to(device) for name, value in tensors.items()}
        super().__init__(moved, torch.get_default_dtype(), device)

    def read(self, name: str, index: Tensor) -> Tensor:
        """Return one tensor at ``index``."""
        return self.arrays[name][index.to(self.device)]

    def _cast(self, name: str, values: Tensor) -> Tensor:
        return values


class MappedSource(Source):
    """Samples of arrays in files, of which only those of a batch are ever read."""

    def read(self, name: str, index: Tensor) -> Tensor:
        """Return one array at ``index``, read in the order of the file."""
        rows = index.numpy()
        if (rows[1:] > rows[:-1]).all():
            return torch.from_numpy(read_rows(self.arrays[name], rows))
        rows, place = np.unique(rows, return_inverse=True)
        return torch.from_numpy(read_rows(self.arrays[name], rows)[place])


def unusable(name: str, expected: str, got: Any, remedy: str) -> DataError:
    """Return the error of data of another kind than expected, to be raised.

    Example:
        >>> unusable("x", "a dense array", "a sparse one", "x.toarray()")
        DataError('x expected a dense array, got a sparse one; remedy: x.toarray()')
    """
    return DataError(f"{name} expected {expected}, got {got}; remedy: {remedy}")


def dense_and_real(values: Tensor, name: str) -> Tensor:
    """Return a tensor as it is, if it holds real numbers, one beside the other.

    Raises:
        DataError: If it is sparse, nested, quantised or complex, or has no numbers.
    """
    layout = "nested" if values.is_nested else values.layout
    if layout != torch.strided:
        raise unusable(name, "a dense tensor", f"one of layout {layout}", f"{name}.to_dense()")
    if values.is_quantized:
        raise unusable(name, "numbers", values.dtype, f"{name}.dequantize()")
    if values.is_complex():
        raise unusable(name, "real numbers", values.dtype, "real and imaginary part as columns")
    if values.is_meta:
        got = "a tensor on the device meta, which has none"
        raise unusable(name, "numbers", got, "a tensor on the CPU")
    return values


def as_dtype(values: Tensor, dtype: torch.dtype, *, labels: bool) -> Tensor:
    """Numbers of a dtype; labels that are integers or booleans stay so."""
    if not labels or values.is_floating_point():
        return values.to(dtype)
    return values if values.dtype == torch.bool else values.long()


class DatasetSource(Source):
    """Samples of a ``torch.utils.data.Dataset`` of tensors, ``(x, context)`` pairs or dicts.

    Named tuples are read by their names, as dicts are.

    ``arrays`` is the dataset, a map-style one with ``__len__``.
    """

    def __len__(self) -> int:
        return len(self.arrays)

    def items(self, index: Tensor) -> dict[str, Tensor]:
        """Collate the items at ``index`` in the dtypes that they have.

        Raises:
            DataError: If an item is not a tensor, a pair or a dict of numbers, dense and real, or
                has other names than the first.
        """
        try:
            given = [self.arrays[i] for i in index.tolist()]
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
