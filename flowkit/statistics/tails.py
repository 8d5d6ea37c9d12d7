"""Tails of samples: whether they are heavy, how far apart two are, the mean beyond a quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowkit import checks
from flowkit.errors import DataError
from flowkit.statistics.tail_estimates import TailEstimate, tail_estimate
from flowkit.statistics.tail_samples import SIDES, columns, row, sided, tail_logs

#: From this index on a tail is as good as light.
_LIGHT_INDEX = 10.0


@dataclass(frozen=True)
class TailVerdict:
    """The verdict of three estimators whether a tail is heavy.

    Attributes:
        index: The tail index of a heavy tail; infinite for a light one.
        interval: Of a heavy tail, (lower, upper): the index, and 95 % of the sampling error of
            Hill's estimate from a quarter of the order statistics that the index is taken from.
            The index balances that error with a bias; fewer order statistics leave the bias
            behind. Over 60 samples of 10,000, the interval held the index of t distributions with
            2, 3 and 5 degrees of freedom in 97, 95 and 88 %, that of a Pareto law in 92 %, and of
            a mixture of two shifted t, whose body looks like a heavier tail, in 15 %.
        hill: Hill's estimate.
        moment: The moment estimate.
        kernel: The kernel estimate.
    """

    index: float
    interval: tuple[float, float]
    hill: TailEstimate
    moment: TailEstimate
    kernel: TailEstimate

    @property
    def heavy(self) -> bool:
        """The verdict."""
        return self.index < math.inf


def tail_verdict(
    x: Any, *, tail: str = "both", resamples: int = 100, seed: int = 0
) -> TailVerdict:
    """Decide whether a tail is heavy, by two estimates of its extreme-value index.

    It is light if neither the moment estimate nor the kernel estimate finds it heavy.

    The index is Hill's, whose estimate is positive for light tails too and does not enter the
    verdict; a tail of an index above 10 counts as light. Tails that fall slower
    than every normal, but faster than every power, such as those of a Laplace density, may be
    called heavy.

    Args and errors are those of :func:`tail_estimate`.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311, for the rule.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_verdict
        >>> rng = np.random.default_rng(0)
        >>> tail_verdict(rng.normal(size=10_000)).heavy
        False
        >>> verdict = tail_verdict(rng.standard_t(2, 10_000))
        >>> verdict.heavy, 1.5 < verdict.index < 2.5
        (True, True)
    """
    options: dict[str, Any] = {"tail": tail, "resamples": resamples, "seed": seed}
    three = [tail_estimate(x, method, **options) for method in ("hill", "moment", "kernel")]
    hill, moment, kernel = three
    if not (max(moment.xi, kernel.xi) > 0 and hill.index <= _LIGHT_INDEX):
        return TailVerdict(math.inf, (math.inf, math.inf), *three)
    n = len(tail_logs("tail_verdict", x, tail))
    few = max(round(hill.fraction * n / 4), 10)
    index, error = tail_estimate(x, fraction=few / n, tail=tail).index, 1.96 / math.sqrt(few)
    ends = (min(hill.index, index / (1 + error)), max(hill.index, index / (1 - error)))
    return TailVerdict(hill.index, ends, *three)


def tail_indices(x: Any, *, tail: str = "both", resamples: int = 100, seed: int = 0) -> list[Any]:
    """Estimate the tail index of every column, infinite where the tail is light.

    Taken about each column's median, by :func:`tail_verdict`.

    Args:
        x: ``(n, columns)`` numbers, at least 100 on the side of the tail.
        tail: ``"both"`` for magnitudes, ``"right"`` or ``"left"`` for one side, ``"apart"`` for a
            pair (left, right) per column.
        resamples: As in :func:`tail_estimate`.
        seed: Seed of the resamples.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: If x is no table of enough finite numbers.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_indices
        >>> rng = np.random.default_rng(0)
        >>> x = np.stack([rng.normal(size=2000), rng.standard_t(2, 2000)], -1)
        >>> light, heavy = tail_indices(x)
        >>> light, 1 < heavy < 3
        (inf, True)
    """
    checks.choice("tail_indices", "tail", tail, (*SIDES, "apart"))
    sides = ("left", "right") if tail == "apart" else (tail,)
    found = []
    for i, column in enumerate(columns(x)):
        try:
            of_sides = (
                tail_verdict(column, tail=side, resamples=resamples, seed=seed) for side in sides
            )
            found.append(tuple(verdict.index for verdict in of_sides))
        except DataError as error:
            raise DataError(f"column {i}: {error}") from error
    return found if tail == "apart" else [index for (index,) in found]


def tail_area(x: Any, y: Any) -> float:
    r"""Compute the area between the log-log tail plots of two samples, a distance of their tails.

    :math:`\sum_{i=1}^n |\log Q_{|x|}(1 - i/n) - \log Q_{|y|}(1 - i/n)|\, \log\frac{i+1}i`, with n
    the smaller sample size and Q the quantiles: far tails weigh as much as near ones. For
    :math:`y = c x` it is :math:`|\log c| \log(n + 1)`.

    Args:
        x: ``(n,)`` numbers other than zero.
        y: ``(m,)`` numbers other than zero.

    Raises:
        DataError: If one is not ``(n,)`` such finite numbers.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311.

    Example:
        >>> import numpy as np
        >>> from flowkit.statistics import tail_area
        >>> x = np.arange(1.0, 1001.0)
        >>> bool(np.isclose(tail_area(x, 3 * x), np.log(3) * np.log(1001)))
        True
    """
    first, second = np.abs(row(x)), np.abs(row(y))
    if not (first.all() and second.all()):
        raise DataError(
            "tail_area expected numbers other than zero, which have no logarithm; remedy: leave "
            "zeros out of both samples"
        )
    n = min(len(first), len(second))
    i = np.arange(1, n + 1)
    gaps = [np.log(np.quantile(a, 1 - i / n)) for a in (first, second)]
    return float(np.sum(np.abs(gaps[0] - gaps[1]) * np.log1p(1 / i)))


def expected_shortfall(
    x: Any, level: float = 0.95, *, tail: str = "both", paper_scale: bool = False
) -> float:
    r"""Compute the expected shortfall, the mean of a sample beyond a quantile.

    .. math:: E[X \mid X \ge Q(p)]

    Args:
        x: ``(n,)`` numbers.
        level: The p in (0, 1).
        tail: ``"both"`` for magnitudes, ``"right"`` for x, ``"left"`` for -x (losses).
        paper_scale: Divide by 1 - p once more, as the "tail value at risk" of Laszkiewicz et al.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: If x is not ``(n,)`` finite numbers.

    Example:
        >>> from flowkit.statistics import expected_shortfall
        >>> expected_shortfall([-10.0, 1.0, 2.0, 3.0], 0.75), expected_shortfall([1, 2, 3, 4], 0.5)
        (10.0, 3.5)
    """
    level = checks.number("expected_shortfall", "level", level, above=0, below=1)
    values = sided("expected_shortfall", x, tail)
    mean = float(values[values >= np.quantile(values, level)].mean())
    return mean / (1 - level) if paper_scale else mean
