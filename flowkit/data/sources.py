"""Rows: one view of tensors, arrays in files and datasets, and parts of them with weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flowkit.data.files import FileArray, read_rows
from flowkit.data.order import Order, shuffled, stored
from flowkit.errors import DataError
from flowkit.training.inspection import NOTHING, Inspection

ROWS_AT_ONCE = 2048
_ROWS_AHEAD = 4096
_NUMBERS_HASHED = 2**20


class TensorRows:
    """Rows in memory, moved to the device once.

    Args:
        tensors: Tensors with one row an event.
        device: Where to keep them.
        seen: What a look at some of them has told.
    """

    def __init__(
        self, tensors: dict[str, Tensor], device: torch.device, seen: Inspection = NOTHING
    ) -> None:
        self.tensors = {name: value.to(device) for name, value in tensors.items()}
        self.device, self.seen = device, seen

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows at ``index``."""
        index = index.to(self.device)
        return {name: value[index] for name, value in self.tensors.items()}

    @property
    def names(self) -> list[str]:
        """What every row carries."""
        return list(self.tensors)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Return what stored rows carry by this name, as in a batch."""
        return self.tensors[name][start:stop]

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return what rows at ``index`` carry by this name, in float64; ``None`` if nothing."""
        values = self.tensors.get(name)
        return None if values is None else values[index.to(self.device)].cpu().double()


class MappedRows:
    """Rows of arrays in files: only the rows of a batch are ever read.

    Args:
        arrays: Arrays with one row an event, at least one of them in a file.
        dtype: The dtype of the batches.
        device: Where the batches go.
        labels: Names whose integers and booleans stay what they are.
        seen: What a look at some of them has told.
    """

    def __init__(
        self,
        arrays: dict[str, FileArray | np.ndarray],
        dtype: torch.dtype,
        device: torch.device,
        labels: Collection[str] = (),
        seen: Inspection = NOTHING,
    ) -> None:
        self.arrays, self.dtype, self.device = arrays, dtype, device
        self.labels, self.seen = labels, seen

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows at ``index``; they are read in the order of the file."""
        return {
            name: as_dtype(_read(array, index), self.dtype, name in self.labels).to(self.device)
            for name, array in self.arrays.items()
        }

    @property
    def names(self) -> list[str]:
        """What every row carries."""
        return list(self.arrays)

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Return what stored rows carry by this name, as in a batch."""
        rows = np.arange(start, min(stop, len(self)))
        values = torch.from_numpy(read_rows(self.arrays[name], rows))
        return as_dtype(values, self.dtype, name in self.labels)

    def column(self, name: str, index: Tensor) -> Tensor | None:
        """Return what rows at ``index`` carry by this name, in float64; ``None`` if nothing."""
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


class DatasetRows:
    """Rows of a ``torch.utils.data.Dataset`` of tensors, ``(x, context)`` pairs or dicts.

    Named tuples are read by their names, as dicts are.

    Args:
        dataset: A map-style dataset with ``__len__``.
        dtype: The dtype of the batches.
        device: Where the batches go.
        labels: Names whose integers and booleans stay what they are.
        seen: What a look at some of them has told.
    """

    def __init__(
        self,
        dataset: Dataset,
        dtype: torch.dtype,
        device: torch.device,
        labels: Collection[str] = (),
        seen: Inspection = NOTHING,
    ) -> None:
        self.dataset, self.dtype, self.device = dataset, dtype, device
        self.labels, self.seen = labels, seen

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
        """Return what items at ``index`` carry by this name, in float64; ``None`` if nothing."""
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


Rows = TensorRows | MappedRows | DatasetRows


class Part:
    """Some of the rows, to train or to validate on; weights have mean one over them.

    Args:
        rows: The rows.
        index: Which of them.
        name: What they are for, for messages.

    Raises:
        DataError: If a weight is negative or not finite, or all weights of the part are zero.
    """

    #: Which data its row numbers are of.
    of = "the data"

    def __init__(self, rows: Rows, index: Order, name: str) -> None:
        self.rows, self.index = rows, index
        self.weighted = rows.column("weight", index.run(0, 1)) is not None
        if self.weighted:
            total, least = 0.0, float("inf")
            for numbers in self.runs():
                weight = rows.column("weight", numbers)
                total, least = total + float(weight.sum()), min(least, float(weight.min()))  # type: ignore[union-attr]
            if least < 0 or not 0 < total < float("inf"):
                raise DataError(
                    f"weight expected finite numbers >= 0 with a positive sum over the {name} "
                    f"rows, got a sum of {total:g} and a least one of {least:g}"
                )
            self.mean_weight = total / len(self)

    def __len__(self) -> int:
        return len(self.index)

    def steps(self, size: int) -> int:
        """How many batches of ``size`` rows an epoch has."""
        return len(self) // size

    def runs(self) -> Iterator[Tensor]:
        """Row numbers, some thousand at a time."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield self.index.run(start, start + ROWS_AT_ONCE)

    def batches(
        self, seed: int, size: int, rank: int, share: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Row numbers and rows of every full batch, in random order.

        Rows of files are read ahead in another thread, some batches at once.

        Args:
            seed: Seed of the order.
            size: Rows of a batch, over all processes.
            rank: Which of the processes this is.
            share: How many rows of each batch are for it.
        """
        order, count = shuffled(len(self), seed), self.steps(size)

        def numbers(step: int, steps: int) -> Tensor:
            first = size * torch.arange(step, min(step + steps, count)) + rank * share
            return self.index.at(order.at((first[:, None] + torch.arange(share)).flatten()))

        if not isinstance(self.rows, MappedRows):
            for step in range(count):
                index = numbers(step, 1)
                yield index, self.batch(index)
            return

        def read(step: int) -> tuple[Tensor, dict[str, Tensor]]:
            index = numbers(step, ahead)
            return index, self.batch(index)

        ahead = max(1, _ROWS_AHEAD // share)
        with ThreadPoolExecutor(1, "flowkit-rows") as reader:
            coming = reader.submit(read, 0)
            for step in range(0, count, ahead):
                index, rows = coming.result()
                if step + ahead < count:
                    coming = reader.submit(read, step + ahead)
                for start in range(0, len(index), share):
                    here = slice(start, start + share)
                    yield index[here], {name: value[here] for name, value in rows.items()}

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows with the numbers ``index``, which count from the start of the data."""
        batch = self.rows.batch(index)
        if "weight" in batch:
            batch["weight"] = batch["weight"] / self.mean_weight
        return batch

    def mean(self, use: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """Mean over the rows of a number that ``use`` returns for each batch."""
        total = torch.zeros(())
        for numbers in self.runs():
            total = total + use(self.batch(numbers)).cpu().double() * len(numbers)
        return total / len(self)

    def representatives(self, count: int) -> Tensor:
        """Numbers of about ``count`` rows, each repeated in proportion to its weight."""
        places = stored(len(self))
        if len(self) > count:
            places = shuffled(len(self), int(torch.randint(2**31, ())))
        index = self.index.at(places.run(0, count))
        weight = self.rows.column("weight", index) if self.weighted else None
        if weight is None:
            return index
        index, weight = index[weight > 0], weight[weight > 0]
        # Weights that are multiples of the least one are met exactly; every row is met once.
        unit = torch.maximum(weight.min(), weight.mean() / 16)
        return index.repeat_interleave((weight / unit).round().long().clamp_min(1))

    def fingerprint(self) -> str:
        """Hash of all rows, as stored, and of how many are in this part.

        Empty for a dataset, which may give other rows each time.
        """
        if isinstance(self.rows, DatasetRows):
            return ""
        digest = hashlib.blake2b(digest_size=32)
        for name in sorted(self.rows.names):
            first = self.rows.block(name, 0, 1)
            text = f"\n{name} {first.dtype} {len(self)} of {len(self.rows)}\n"
            digest.update(text.encode())
            rows = max(1, _NUMBERS_HASHED // max(1, first.numel()))
            for start in range(0, len(self.rows), rows):
                block = self.rows.block(name, start, start + rows)
                digest.update(block.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
