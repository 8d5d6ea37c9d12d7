"""Split samples into those to train on and those to hold out, never within a group."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowkit.arrays import codes
from flowkit.errors import DataError

#: Different samples from which on equal ones are held out together.
_DIFFERENT = 10


def check_groups(groups: Any, samples: int) -> np.ndarray | None:
    """Number the groups of samples from 0.

    Raises:
        DataError: If there is not one name per sample.
    """
    if groups is None:
        return None
    if np.shape(groups) not in ((samples,), (samples, 1)):
        raise DataError(
            f"groups expected one group per row of X, shape ({samples},), got {np.shape(groups)}"
        )
    try:
        return codes(groups, "groups")
    except TypeError as error:
        raise DataError(
            f"groups expected names that can be sorted, such as integers or strings, got names "
            f"that cannot ({error}); remedy: groups=list(map(str, groups))"
        ) from None


def splits(
    owner: str, x: np.ndarray, groups: np.ndarray | None, seed: int, held: float, count: int = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numbers of the samples to train on and to hold out, in up to ``count`` disjoint splits.

    Args:
        owner: Who asks, for messages.
        x: ``(samples, columns)``; without groups equal samples are of the same one, if ten or more
            are different.
        groups: The number of the group of each sample, or ``None``.
        seed: Seed.
        held: Fraction of the groups that is held out in each split.
        count: Number of splits; fewer where there are too few groups.

    Raises:
        DataError: If there are fewer than two groups.
    """
    if groups is None:
        _, unit = np.unique(x, axis=0, return_inverse=True)
        unit = unit.reshape(-1)
        unit = np.arange(len(x)) if unit.max() + 1 < _DIFFERENT else unit
    else:
        _, unit = np.unique(groups, return_inverse=True)
    number = int(unit.max()) + 1
    if number < 2:
        raise DataError(
            f"{owner} holds out whole groups and expected at least 2, got 1; remedy: groups that "
            "differ, or a recipe by name with validation=None"
        )
    size = min(max(1, round(held * number)), number - 1)
    order = np.random.default_rng(seed).permutation(number)
    made = []
    for k in range(max(1, min(count, number // size))):
        outside = np.zeros(number, dtype=bool)
        outside[order[k * size : (k + 1) * size]] = True
        made.append((np.flatnonzero(~outside[unit]), np.flatnonzero(outside[unit])))
    return made
