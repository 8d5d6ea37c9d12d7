"""Comparison of two samples in their tails, and the mean beyond a quantile."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowkit import checks
from flowkit.errors import DataError
from flowkit.statistics.tail_samples import row, sided


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
