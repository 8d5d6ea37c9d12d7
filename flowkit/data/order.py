"""Orders of rows: as stored, or shuffled, without a list of millions of numbers in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STORED = 2**20
_ROUNDS = 6


@dataclass
class Order:
    """Some row numbers in some order.

    Args:
        size: How many.
        at: The row numbers at given places, ``(places,) -> (places,)``.
    """

    size: int
    at: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return self.size

    def run(self, start: int, stop: int) -> Tensor:
        """Return the row numbers at the places from ``start`` up to ``stop``."""
        return self.at(torch.arange(start, min(stop, self.size)))


def stored(rows: int) -> Order:
    """Return the rows one after the other."""
    return Order(rows, lambda places: places)


def shuffled(rows: int, seed: int) -> Order:
    """Return the rows in random order.

    Up to a million rows the order is drawn from all permutations alike and kept. Beyond it is
    computed place by place and takes no memory: a Feistel network of six rounds, of which four
    cannot be told from a random permutation if the rounds are random (Luby and Rackoff, 1988,
    doi:10.1137/0217022), on pairs of numbers below a power of two, repeated until the result is a
    row.

    Example:
        >>> order = shuffled(3_000_000, seed=0)
        >>> sorted(order.run(0, len(order)).tolist()) == list(range(3_000_000))
        True
    """
    if rows <= _STORED:
        permutation = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        return Order(rows, lambda places: permutation[places])
    half = np.uint64(((rows - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)

    def network(places: np.ndarray) -> np.ndarray:
        left, right = places >> half, places & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << half | right

    def at(places: Tensor) -> Tensor:
        out = network(places.numpy().astype(np.uint64))
        while (outside := out >= rows).any():
            out[outside] = network(out[outside])
        return torch.from_numpy(out.astype(np.int64))

    return Order(rows, at)


def _mix(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (splitmix64's finaliser)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
