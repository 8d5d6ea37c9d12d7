"""The double bootstrap, which chooses how many order statistics belong to a tail.

Danielsson et al. 2001, J. Multivariate Anal. 76, 226; Qi 2008, Extremes 11, 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

#: Only the larger half of a sample is taken for its tail.
LARGEST = 0.5
#: Where a criterion is searched for its minimum: not among the first few order statistics.
BORDER = 0.005
# Numbers of resamples held at once.
_BLOCK = 2_000_000


def double_bootstrap(
    logs: np.ndarray,
    criterion: Callable[[np.ndarray, int], np.ndarray],
    resamples: int,
    seed: int,
    grid: np.ndarray | None = None,
) -> tuple[float, float, int]:
    """Find where the mean criterion is least in resamples of two sizes.

    If the smaller resamples want more order statistics than the larger, the first places are left
    out, more and more.

    Args:
        logs: ``(n,)`` logarithms from the largest down.
        criterion: A function of ``(resamples, largest)`` logarithms and the size of a resample
            that returns numbers per resample.
        resamples: Number of resamples of each size.
        seed: Seed of the resamples.
        grid: What the columns of the criterion stand for; by default numbers of order statistics
            from 1.

    Returns:
        The minimum of the larger resamples, that of the smaller ones, and the larger size.
    """
    n = len(logs)
    rng = np.random.default_rng(seed)
    size = int(n ** (0.5 * (1 + math.log(n // 2) / math.log(n))))
    sizes = (size, max(size**2 // n, 20))
    curves = []
    for m in sizes:
        kept = int(LARGEST * m) + 1
        counts, total = np.zeros(1), np.zeros(1)
        block = max(_BLOCK // kept, 1)
        for done in range(0, resamples, block):
            drawn = _largest_of_resamples(n, m, kept, min(block, resamples - done), rng)
            values = criterion(logs[drawn], m)
            # A resample that repeats its largest number has no moments there: others have.
            good = np.isfinite(values)
            counts = counts + good.sum(0)
            total = total + np.where(good, values, 0).sum(0)
        curves.append(np.where(counts > resamples // 2, total / np.maximum(counts, 1), np.inf))
    border = BORDER
    while True:
        best = []
        for count, curve in zip(sizes, curves, strict=True):
            places = np.arange(1.0, len(curve) + 1) if grid is None else grid
            lowest = max(border * count, 2.0) if grid is None else border
            best.append(float(places[np.argmin(np.where(places >= lowest, curve, np.inf))]))
        border += BORDER
        if best[1] <= best[0] or border >= 0.5 * LARGEST:
            return best[0], min(best[1], best[0]), size


def _largest_of_resamples(
    n: int, size: int, kept: int, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Ranks of the largest ``kept`` of ``size`` draws with replacement, each row in order.

    Uniform order statistics are partial sums of exponentials over their total: no sorting.
    """
    steps = rng.exponential(size=(resamples, kept)).cumsum(1)
    total = steps[:, -1:] + rng.gamma(size + 1 - kept, size=(resamples, 1))
    return np.minimum((n * steps / total).astype(np.int64), n - 1)
