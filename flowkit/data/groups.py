"""Rows that stay together: whole groups are held out, and whole groups make a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flowkit.checks import codes
from flowkit.data.convert import split
from flowkit.data.order import Order, shuffled, stored
from flowkit.data.sources import ROWS_AT_ONCE, Part, Rows
from flowkit.errors import DataError


class GroupedPart(Part):
    """Some of the groups of rows.

    A batch has a fixed number of groups, about as many as have ``size`` rows together, and its
    weights are scaled by the rows that it has over those that it has on average: so the mean over
    the rows of a batch estimates that over all rows without bias, whatever the sizes of groups.

    Args:
        rows: The rows.
        groups: Row numbers of each group.
        name: What they are for, for messages.
    """

    def __init__(self, rows: Rows, groups: list[Tensor], name: str) -> None:
        index = torch.cat(groups)
        self.groups = groups
        super().__init__(rows, Order(len(index), lambda places: index[places]), name)

    def _share(self, size: int) -> int:
        """Groups of a batch of about ``size`` rows."""
        return max(1, round(size * len(self.groups) / len(self)))

    def steps(self, size: int) -> int:
        """How many batches of about ``size`` rows an epoch has."""
        return max(1, len(self.groups) // self._share(size))

    def runs(self) -> Iterator[Tensor]:
        """Row numbers of whole groups, some thousand at a time."""
        waiting: list[Tensor] = []
        for group in self.groups:
            if waiting and sum(map(len, waiting)) + len(group) > ROWS_AT_ONCE:
                yield torch.cat(waiting)
                waiting = []
            waiting.append(group)
        yield torch.cat(waiting)

    def batches(
        self, seed: int, size: int, rank: int, share: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Row numbers and rows of every batch, in random order of the groups."""
        if share != size:
            raise DataError(
                "batches of whole groups are drawn in one process only; remedy: a Fabric with "
                "devices=1, or rows without 'group'"
            )
        order, each = shuffled(len(self.groups), seed), self._share(size)
        for step in range(self.steps(size)):
            index = torch.cat([self.groups[i] for i in order.run(each * step, each * step + each)])
            batch = self.batch(index)
            expected = each * len(self) / len(self.groups)
            weight = batch.get("weight", torch.ones(len(index)).to(batch["group"]))
            yield index, {**batch, "weight": weight * (len(index) / expected)}


def groups_of(rows: Rows) -> list[Tensor] | None:
    """Row numbers of each group, or ``None`` if rows name none."""
    every = stored(len(rows))
    if rows.column("group", every.run(0, 1)) is None:
        return None
    parts = [
        rows.column("group", every.run(start, start + ROWS_AT_ONCE))
        for start in range(0, len(rows), ROWS_AT_ONCE)
    ]
    names = torch.cat([part for part in parts if part is not None])
    code = torch.from_numpy(codes(names, "group"))
    return list(code.argsort(stable=True).split(code.bincount().tolist()))


def part_of(rows: Rows, name: str) -> Part:
    """All rows, in their groups if they have any."""
    groups = groups_of(rows)
    if groups is None:
        return Part(rows, stored(len(rows)), name)
    return GroupedPart(rows, groups, name)


def split_parts(rows: Rows, fraction: float, seed: int) -> tuple[Part, Part | None]:
    """Random training and validation rows, of whole groups if rows have any.

    Raises:
        DataError: If the fraction is not in [0, 1), or there is one row or group alone to split.
    """
    groups = groups_of(rows)
    if groups is None:
        train, held = split(len(rows), fraction, seed)
        return Part(rows, train, "training"), Part(rows, held, "validation") if len(held) else None
    if fraction == 0:
        return GroupedPart(rows, groups, "training"), None
    if len(groups) < 2:
        raise DataError(
            "validation by whole groups expected at least 2 groups, got 1; remedy: "
            "validation=None, or rows of its own"
        )
    train, held = split(len(groups), fraction, seed)
    chosen, others = ([groups[i] for i in part.run(0, len(part))] for part in (train, held))
    return GroupedPart(rows, chosen, "training"), GroupedPart(rows, others, "validation")
