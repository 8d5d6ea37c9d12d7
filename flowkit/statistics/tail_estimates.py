r"""Estimators of the extreme-value index of a sample.

A tail is heavy with index :math:`\alpha` if :math:`P(|X| > t)` falls like :math:`t^{-\alpha}`;
its extreme-value index is :math:`\xi = 1 / \alpha`. A Student-t with :math:`\nu` degrees of
freedom has :math:`\alpha = \nu`. (The published code of marginally tail-adaptive flows writes out
:math:`1 + 1 / \xi`, the exponent of a density, and takes it for the degrees of freedom: one too
many.) All estimates are scale-free and computed in float64; they are taken about zero, so centre
what lies far from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flowkit import checks
from flowkit.errors import DataError
from flowkit.statistics.bootstrap import BORDER, LARGEST, double_bootstrap
from flowkit.statistics.tail_samples import tail_logs

_BANDWIDTHS = 40
_KERNEL_POWER = 0.6


@dataclass(frozen=True)
class TailEstimate:
    """An estimate of an extreme-value index.

    Attributes:
        xi: Extreme-value index; not above 0 for light tails.
        fraction: Fraction of the sample that it was taken from: order statistics, or bandwidth.
    """

    xi: float
    fraction: float

    @property
    def index(self) -> float:
        """Tail index 1 / xi; infinite where xi is not positive."""
        return 1 / self.xi if self.xi > 0 else math.inf


def tail_estimate(
    x: Any,
    method: str = "hill",
    *,
    fraction: float | None = None,
    tail: str = "both",
    resamples: int = 100,
    seed: int = 0,
) -> TailEstimate:
    r"""Estimate the extreme-value index of a sample: Hill's, the moment or the kernel estimate.

    With the numbers :math:`X_{(1)} \ge X_{(2)} \ge \dots`, k of them in the fraction, and
    :math:`M_r = \frac1k \sum_{i \le k} (\log X_{(i)} - \log X_{(k+1)})^r`:

    ``"hill"``
        :math:`\hat\xi = M_1`, positive for every sample, heavy or not.
    ``"moment"``
        :math:`\hat\xi = M_1 + 1 - \frac12 (1 - M_1^2 / M_2)^{-1}`, of Dekkers, Einmahl and de
        Haan, consistent for light tails too, where it is not positive.
    ``"kernel"``
        That of Groeneboom, Lopuhaä and de Wolf, consistent for light tails too, with the biweight
        kernel K, :math:`\Delta_i = \log X_{(i)} - \log X_{(i+1)}`, :math:`u = i / n`, and
        :math:`K_h(u) = K(u / h) / h` for the fraction h:

        .. math:: \hat\xi = \sum_i u K_h(u) \Delta_i - 1 +
              \frac{\sum_i (u^{a+1} K_h(u))' \Delta_i}{\sum_i u^a K_h(u) \Delta_i}, \quad a = 0.6

    Unless it is given, the fraction is chosen by a double bootstrap: that which minimises a mean
    square in resamples of two sizes, :math:`n_1` and :math:`n_1^2 / n`, of
    :math:`M_2 - 2 M_1^2` for Hill, with the power of the ratio of both that Qi found; of the
    difference from an estimate of moments 2 and 3, as :math:`k_1^2 / k_2`, without the factor of
    order one that depends on :math:`\xi`; and of that from the triweight kernel.

    Args:
        x: ``(n,)`` numbers, at least 100 on the side of the tail.
        method: ``"hill"``, ``"moment"`` or ``"kernel"``.
        fraction: Part of the numbers on the side of the tail that is used, in (0, 1].
        tail: ``"both"`` for magnitudes, ``"right"`` or ``"left"`` for one side.
        resamples: Number of resamples of each size.
        seed: Seed of the resamples.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: If x is not ``(n,)`` finite numbers, enough of them on the side of the tail.

    References:
        Hill 1975, Ann. Stat. 3, 1163; Dekkers, Einmahl, de Haan 1989, Ann. Stat. 17, 1833;
        Groeneboom, Lopuhaä, de Wolf 2003, Ann. Stat. 31, 1956; for the double bootstrap Danielsson
        et al. 2001, J. Multivariate Anal. 76, 226, Qi 2008, Extremes 11, 15, and Draisma et al.
        1999, Extremes 2, 367.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_estimate
        >>> x = np.random.default_rng(0).pareto(2.0, 10_000) + 1
        >>> round(tail_estimate(x, fraction=0.9999).index, 1)
        2.0
    """
    owner = "tail_estimate"
    choose, estimate = checks.choice(owner, "method", method, _METHODS)
    checks.integer(owner, "resamples", resamples, least=2)
    checks.integer(owner, "seed", seed, least=0, most=None)
    logs = tail_logs(owner, x, tail)
    if fraction is None:
        fraction = choose(logs, resamples, seed)
    fraction = checks.number(owner, "fraction", fraction, least=2 / len(logs), most=1)
    return estimate(logs, fraction)


def _choose_for_hill(logs: np.ndarray, resamples: int, seed: int) -> float:
    k1, k2, size = double_bootstrap(logs, _hill_criterion, resamples, seed)
    share = math.log(k1) / math.log(size)
    return _clipped((2 / share - 1) ** (share - 1) * k1**2 / k2, len(logs))


def _choose_for_moments(logs: np.ndarray, resamples: int, seed: int) -> float:
    k1, k2, _ = double_bootstrap(logs, _moment_criterion, resamples, seed)
    return _clipped(k1**2 / k2, len(logs))


def _choose_bandwidth(logs: np.ndarray, resamples: int, seed: int) -> float:
    grid = np.geomspace(max(4 * BORDER, 20 / len(logs)), LARGEST, _BANDWIDTHS)
    h1, h2, size = double_bootstrap(logs, _kernel_criterion(grid), resamples, seed, grid)
    log_size, log_h = math.log(size), math.log(h1)
    power = -log_h / log_size
    factor = (143 * (log_size + log_h) ** 2 / (3 * (log_size - 13 * log_h) ** 2)) ** power
    return min(max(factor * h1**2 / h2, float(grid[0])), LARGEST)


def _clipped(k: float, n: int) -> float:
    """The fraction of k numbers among n, in its range."""
    return min(max(round(k), 2), int(LARGEST * n)) / n


def _of_moments(
    formula: Callable[..., Any], highest: int, logs: np.ndarray, fraction: float
) -> TailEstimate:
    """An estimate from the moments of the largest numbers above the next one."""
    k = min(round(fraction * len(logs)), len(logs) - 1)
    if logs[0] == logs[k - 1]:
        raise DataError(f"the {k} largest numbers are one number, which shows no tail")
    moments = (m[-1] for m in _log_moments(logs[: k + 1], highest))
    return TailEstimate(float(formula(*moments)), k / len(logs))


def _of_kernel(logs: np.ndarray, fraction: float) -> TailEstimate:
    spacings = np.append(logs[:-1] - logs[1:], 0.0)
    (xi,) = _kernel_estimates(spacings, len(logs), np.array([fraction]), 2)
    return TailEstimate(float(xi), fraction)


def _log_moments(logs: np.ndarray, highest: int) -> list[np.ndarray]:
    """The moments M_1.. above the (k+1)-th number, for every k from 1; one row per sample."""
    # Counted from the last number, so that sums of powers do not cancel.
    logs = logs - logs[..., -1:]
    count, below = np.arange(1, logs.shape[-1]), -logs[..., 1:]
    means = [np.cumsum(logs[..., :-1] ** r, -1) / count for r in range(highest + 1)]
    # By the binomial theorem.
    return [
        sum(math.comb(r, j) * means[j] * below ** (r - j) for j in range(r + 1))
        for r in range(1, highest + 1)
    ]


def _from_moments(first: Any, second: Any) -> Any:
    return first + 1 - 0.5 / (1 - first**2 / second)


def _hill_criterion(logs: np.ndarray, _: int) -> np.ndarray:
    first, second = _log_moments(logs, 2)
    return (second - 2 * first**2) ** 2


def _moment_criterion(logs: np.ndarray, _: int) -> np.ndarray:
    first, second, third = _log_moments(logs, 3)
    # Among the first few, resamples repeat a number and moments vanish.
    with np.errstate(divide="ignore", invalid="ignore"):
        other = np.sqrt(second / 2) + 1 - (2 / 3) / (1 - first * second / third)
        return (_from_moments(first, second) - other) ** 2


def _kernel_estimates(
    spacings: np.ndarray, n: int, bandwidths: np.ndarray, power: int
) -> np.ndarray:
    """Estimates ``(..., bandwidths)`` by the biweight (``power=2``) or triweight kernel (3)."""
    u = (np.arange(1, spacings.shape[-1] + 1) / n)[:, None]
    inside = np.clip(1 - (u / bandwidths) ** 2, 0, None)
    height = {2: 15 / 8, 3: 35 / 16}[power] / bandwidths
    value = height * inside**power
    slope = -2 * power * height * u / bandwidths**2 * inside ** (power - 1)
    first = u**_KERNEL_POWER * value
    second = (_KERNEL_POWER + 1) * first + u ** (_KERNEL_POWER + 1) * slope
    ratio: np.ndarray = (spacings @ second) / (spacings @ first)
    return spacings @ (u * value) - 1 + ratio


def _kernel_criterion(grid: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    def criterion(logs: np.ndarray, size: int) -> np.ndarray:
        spacings = logs[:, :-1] - logs[:, 1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            two, three = (_kernel_estimates(spacings, size, grid, power) for power in (2, 3))
            return (two - three) ** 2

    return criterion


_METHODS = {
    "hill": (_choose_for_hill, partial(_of_moments, lambda first: first, 1)),
    "moment": (_choose_for_moments, partial(_of_moments, _from_moments, 2)),
    "kernel": (_choose_bandwidth, _of_kernel),
}
