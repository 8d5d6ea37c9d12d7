"""Split data into training and validation samples, and draw batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowkit.arrays import codes
from flowkit.data.sources import DatasetSource, MappedSource, Source
from flowkit.errors import DataError

SAMPLES_AT_ONCE = 2048
_SAMPLES_AHEAD = 4096
_NUMBERS_HASHED = 2**20

Batch = dict[str, Tensor]
T = TypeVar("T")


class DataSplit:
    """Some of the samples, to train or to validate on; weights have mean one over them.

    A split consists of units that stay together: single samples, or whole groups. A batch has a
    fixed number of units, about as many as hold ``size`` samples. Where units are groups, the
    weights of a batch are multiplied by its number of samples over the expected one, so that the
    mean over a batch estimates that over all samples without bias, whatever the sizes of groups.

    Args:
        source: The data.
        units: Numbers of the samples, or a list with the numbers of each group.
        purpose: What they are for, for messages: ``"training"`` or ``"validation"``.
        of: Which data the sample numbers are of, for messages.

    Raises:
        DataError: If a weight is negative or not finite, or all weights of the split are zero.
    """

    def __init__(
        self, source: Source, units: Tensor | list[Tensor], purpose: str, of: str = "the data"
    ) -> None:
        self.source, self.units, self.of = source, units, of
        self.grouped = not isinstance(units, Tensor)
        self.numbers = units if isinstance(units, Tensor) else torch.cat(units)
        self.weighted = source.column("weight", self._samples(torch.tensor([0]))) is not None
        self.mean_weight = self._mean_weight(purpose) if self.weighted else 1.0

    def __len__(self) -> int:
        return len(self.numbers)

    def _samples(self, places: Tensor) -> Tensor:
        """Sample numbers of the units at some places."""
        if isinstance(self.units, Tensor):
            return self.units[places].long()
        return torch.cat([self.units[i] for i in places.tolist()])

    def _mean_weight(self, purpose: str) -> float:
        total, least = 0.0, float("inf")
        for numbers in self.runs():
            weight = self.source.column("weight", numbers)
            total, least = total + float(weight.sum()), min(least, float(weight.min()))  # type: ignore[union-attr]
        if least < 0 or not 0 < total < float("inf"):
            raise DataError(
                f"weight expected finite numbers >= 0 with a positive sum over the {purpose} "
                f"samples, got a sum of {total:g} and a least one of {least:g}"
            )
        return total / len(self)

    def _units_per_batch(self, size: int) -> int:
        return max(1, round(size * len(self.units) / len(self)))

    def steps(self, size: int) -> int:
        """Number of batches of about ``size`` samples in an epoch."""
        return max(1, len(self.units) // self._units_per_batch(size))

    def runs(self) -> Iterator[Tensor]:
        """Sample numbers of whole units in order, some thousand at a time."""
        sizes: Any = SAMPLES_AT_ONCE
        if self.grouped:
            lengths = torch.tensor([len(group) for group in self.units])
            # Groups that begin within the same thousands are one run.
            run = (lengths.cumsum(0) - lengths) // SAMPLES_AT_ONCE
            sizes = [size for size in run.bincount(lengths).long().tolist() if size]
        yield from (some.long() for some in self.numbers.split(sizes))

    def batches(
        self, seed: int, size: int, *, rank: int = 0, processes: int = 1, start: int = 0
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Sample numbers and samples of every full batch, in random order.

        Samples of files are read ahead in another thread, some batches at once.

        Args:
            seed: Seed of the order.
            size: Samples per batch, over all processes.
            rank: Number of this process.
            processes: Number of processes, which share each batch.
            start: Number of batches to leave out.

        Raises:
            DataError: If several processes would share batches of groups.
        """
        if self.grouped and processes > 1:
            raise DataError(
                "batches of whole groups are drawn in one process only; remedy: a Fabric with "
                "devices=1, or samples without 'group'"
            )
        order, count = _permutation(len(self.units), seed), self.steps(size)
        every = self._units_per_batch(size)
        share = every // processes

        def numbers(step: int) -> Tensor:
            first = every * step + rank * share
            return self._samples(order[first : first + share].long())

        mapped = isinstance(self.source, MappedSource)
        ahead = max(1, _SAMPLES_AHEAD // max(1, size // processes)) if mapped else 1

        def read(step: int) -> list[tuple[Tensor, Batch]]:
            each = [numbers(k) for k in range(step, min(step + ahead, count))]
            lengths = [len(index) for index in each]
            parts = {k: v.split(lengths) for k, v in self.batch(torch.cat(each)).items()}
            return [
                (index, self._balanced({name: part[i] for name, part in parts.items()}, every))
                for i, index in enumerate(each)
            ]

        blocks: Iterator[list[tuple[Tensor, Batch]]] = map(read, range(start, count, ahead))
        for block in _ahead(blocks) if mapped else blocks:
            yield from block

    def _balanced(self, batch: Batch, units: int) -> Batch:
        """A batch of groups, weighted by its size over the expected size."""
        if not self.grouped:
            return batch
        size = len(next(iter(batch.values())))
        weight = batch.get("weight", torch.ones(size).to(batch["group"]))
        expected = units * len(self) / len(self.units)
        return {**batch, "weight": weight * (size / expected)}

    def batch(self, index: Tensor) -> Batch:
        """Return the samples with these numbers, which count from the start of the data."""
        batch = self.source.batch(index)
        if "weight" in batch:
            batch["weight"] = batch["weight"] / self.mean_weight
        return batch

    def mean(self, value: Callable[[Batch], Tensor]) -> Tensor:
        """Mean over the samples of a number that ``value`` returns for each batch."""
        total = torch.zeros(())
        for numbers in self.runs():
            total = total + value(self.batch(numbers)).cpu().double() * len(numbers)
        return total / len(self)

    def representatives(self, count: int) -> Tensor:
        """Numbers of about ``count`` samples, each repeated in proportion to its weight."""
        index = self.numbers
        if len(self) > count:
            index = index[_permutation(len(self), int(torch.randint(2**31, ())))[:count].long()]
        index = index.long()
        weight = self.source.column("weight", index) if self.weighted else None
        if weight is None:
            return index
        return index.repeat_interleave(repeats(weight))

    def fingerprint(self) -> str:
        """Hash of all data, as stored, and of the number of samples in this split.

        Empty for a dataset, which may give other samples each time.
        """
        if isinstance(self.source, DatasetSource):
            return ""
        digest = hashlib.blake2b(digest_size=32)
        for name in sorted(self.source.arrays):
            first = self.source.block(name, 0, 1)
            text = f"\n{name} {first.dtype} {len(self)} of {len(self.source)}\n"
            digest.update(text.encode())
            samples = max(1, _NUMBERS_HASHED // max(1, first.numel()))
            for start in range(0, len(self.source), samples):
                block = self.source.block(name, start, start + samples)
                digest.update(block.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def repeats(weight: Tensor) -> Tensor:
    """How often to repeat each sample, in proportion to its weight; 0 for a weight of 0.

    Weights that are multiples of the least one are met exactly; every other sample is met once.

    Example:
        >>> repeats(torch.tensor([0.5, 0.0, 1.5]))
        tensor([1, 0, 3])
    """
    positive = weight[weight > 0]
    unit = torch.maximum(positive.min(), positive.mean() / 16)
    return torch.where(weight > 0, (weight / unit).round().long().clamp_min(1), 0)


def _ahead(blocks: Iterator[T]) -> Iterator[T]:
    """Blocks that another thread reads, one of them ahead."""
    with ThreadPoolExecutor(1, "flowkit-rows") as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def _integers(count: int) -> torch.dtype:
    """A dtype that numbers so many units in little memory."""
    return torch.int32 if 2**20 < count < 2**31 else torch.int64


def _permutation(count: int, seed: int) -> Tensor:
    """A random permutation of ``count`` units.

    Example:
        >>> sorted(_permutation(5, seed=0).tolist())
        [0, 1, 2, 3, 4]
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, dtype=_integers(count))


def _units(source: Source) -> Tensor | list[Tensor]:
    """Sample numbers of each group, of which none is split; of single samples without groups."""
    everything = torch.arange(len(source), dtype=_integers(len(source)))
    if source.column("group", torch.tensor([0])) is None:
        return everything
    parts = [source.column("group", some.long()) for some in everything.split(SAMPLES_AT_ONCE)]
    code = torch.from_numpy(codes(torch.cat(parts), "group"))  # type: ignore[arg-type]
    return list(code.argsort(stable=True).split(code.bincount().tolist()))


def whole(source: Source, purpose: str, of: str = "the data") -> DataSplit:
    """A split of all samples, in their groups if the data have any."""
    return DataSplit(source, _units(source), purpose, of)


def split(
    source: Source, validation: float | Source, seed: int
) -> tuple[DataSplit, DataSplit | None]:
    """Random training and validation samples, or groups if the data have any.

    Args:
        source: The data.
        validation: The fraction that is held out, or separate validation data.
        seed: Seed of the split.

    Raises:
        DataError: If there are fewer than two samples, or fewer than two groups to split.
    """
    if len(source) < 2:
        raise DataError(f"fit needs at least 2 samples, got {len(source)}")
    if isinstance(validation, Source):
        return whole(source, "training"), whole(validation, "validation", "the validation data")
    units = _units(source)
    count = len(units)
    if count < 2 and validation:
        raise DataError(
            "validation by whole groups expected at least 2 groups, got 1; remedy: "
            "validation=None, or validation data of their own"
        )
    held = min(max(1, round(validation * count)), count - 1) if validation else 0
    order = _permutation(count, seed)
    if isinstance(units, Tensor):
        parts: list[Any] = [order[held:], order[:held]]
    else:
        # Groups of which none is held out stay in the order in which they are stored.
        places = order.tolist() if held else range(count)
        parts = [[units[i] for i in some] for some in (places[held:], places[:held])]
    train = DataSplit(source, parts[0], "training")
    return train, DataSplit(source, parts[1], "validation") if held else None
