"""Rows: one view of tensors, memory-mapped arrays and datasets, and parts of them with weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from flowkit.errors import DataError

_ROWS_AT_ONCE = 8192
_FINGERPRINT_ROWS = 16


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

    def weights(self, index: Tensor) -> Tensor | None:
        """Return the weights at ``index`` in float64, or ``None`` if rows carry none."""
        weight = self.tensors.get("weight")
        return None if weight is None else weight.cpu().double()[index]


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
        return {
            name: _read(array, index).to(self.device, self.dtype)
            for name, array in self.arrays.items()
        }

    def weights(self, index: Tensor) -> Tensor | None:
        """Return the weights at ``index`` in float64, or ``None`` if rows carry none."""
        weight = self.arrays.get("weight")
        return None if weight is None else _read(weight, index).double()


def _read(array: np.ndarray, index: Tensor) -> Tensor:
    rows, place = np.unique(index.numpy(), return_inverse=True)
    # torch knows no other byte order than the machine's.
    return torch.from_numpy(np.asarray(array[rows], array.dtype.newbyteorder("="))[place])


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
        """Collate the items at ``index``.

        Raises:
            DataError: If an item is not a tensor, a pair or a dict of numbers.
        """
        try:
            items = default_collate([self.dataset[i] for i in index.tolist()])
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"the items of the dataset cannot be put together ({str(error)[:200]}); remedy: "
                "items that are tensors, pairs (x, context) or dicts, all of one shape"
            ) from None
        if isinstance(items, Tensor):
            items = {"x": items}
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
        return {name: value.to(self.device, self.dtype) for name, value in items.items()}

    def weights(self, index: Tensor) -> Tensor | None:
        """Return the weights at ``index`` in float64; if items carry any, this reads them all."""
        if "weight" not in self.batch(index[:1]):
            return None
        parts = [self.batch(part)["weight"] for part in index.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).cpu().double()


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

    def __init__(self, rows: Rows, index: Tensor, name: str) -> None:
        self.rows, self.index = rows, index
        self.weight = rows.weights(index)
        if self.weight is not None:
            total = self.weight.sum()
            if bool((self.weight < 0).any()) or not 0 < float(total) < float("inf"):
                raise DataError(
                    f"weight expected finite numbers >= 0 with a positive sum over the {name} "
                    f"rows, got a sum of {float(total):g} and a least one of "
                    f"{float(self.weight.min()):g}"
                )
            self.mean_weight = float(self.weight.mean())

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Return the rows with the numbers ``index``, which count from the start of the data."""
        batch = self.rows.batch(index)
        if "weight" in batch:
            batch["weight"] = batch["weight"] / self.mean_weight
        return batch

    def mean(self, use: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """Mean over the rows of a number that ``use`` returns for each batch."""
        total = torch.zeros(())
        for part in self.index.split(_ROWS_AT_ONCE):
            total = total + use(self.batch(part)).cpu().double() * len(part)
        return total / len(self)

    def representatives(self, count: int) -> Tensor:
        """Numbers of about ``count`` rows, each repeated in proportion to its weight."""
        chosen = torch.arange(len(self))
        if len(self) > count:
            chosen = torch.randperm(len(self))[:count]
        if self.weight is None:
            return self.index[chosen]
        weight = self.weight[chosen]
        chosen, weight = chosen[weight > 0], weight[weight > 0]
        # Weights that are multiples of the least one are met exactly; every row is met once.
        unit = torch.maximum(weight.min(), weight.mean() / 16)
        return self.index[chosen].repeat_interleave((weight / unit).round().long().clamp_min(1))

    def fingerprint(self) -> str:
        """Hash of a few rows, which tells data apart; empty for a dataset, which may augment."""
        if isinstance(self.rows, DatasetRows):
            return ""
        places = torch.linspace(0, len(self) - 1, min(_FINGERPRINT_ROWS, len(self))).long()
        digest = hashlib.sha256()
        for name, value in sorted(self.batch(self.index[places]).items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()
