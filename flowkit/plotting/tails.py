"""Tails of samples: survival on logarithmic axes, mean excess, and quantiles of two samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from flowkit import checks
from flowkit.errors import DataError
from flowkit.plotting.arrays import DATA_COLOR, MODEL_COLOR, as_points
from flowkit.plotting.figure import curves

# The first sample is grey, as data are, then blue and further colors.
_COLORS = (DATA_COLOR, MODEL_COLOR, "#c0392b", "#2e8b57", "#8e5ea2", "#b8860b")
_SIDES = {"both": "|x|", "right": "x", "left": "-x"}
# Points of a curve; more are not seen.
_POINTS = 400


def pareto_plot(
    samples: Mapping[str, Any], *, tail: str = "both", unit: str = "", title: str = "tails"
) -> Figure:
    r"""Draw the fraction of each sample beyond t against t, both axes logarithmic.

    A tail of index :math:`\alpha` is a line of slope :math:`-\alpha` there; light tails bend down.

    Args:
        samples: Names, and ``(n,)`` numbers each; the first is drawn in grey, as data are.
        tail: ``"both"`` for magnitudes, ``"right"`` or ``"left"`` for one side.
        unit: Unit of the numbers, for the label.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ArgumentError: If there is no sample or more than six, or ``tail`` is unknown.
        DataError: If a sample has no finite numbers on the side of the tail.

    Example:
        >>> import numpy as np
        >>> from flowkit.plotting import pareto_plot
        >>> rng = np.random.default_rng(0)
        >>> figure = pareto_plot({"t": rng.standard_t(2, 999), "normal": rng.normal(size=999)})
        >>> figure.axes[0].get_xscale()
        'log'
    """
    sided = _sided("pareto_plot", samples, tail)
    # The larger halves: small numbers would take decades of the axis.
    start = min(float(np.median(x)) for _, x in sided)
    labels = f"t{_bracket(unit)}", f"fraction of {_SIDES[tail]} beyond t"
    with curves(title, *labels) as (figure, axis):
        for color, (name, x) in zip(_COLORS, sided, strict=False):
            kept = _spread(len(x))
            kept = kept[x[kept] >= start]
            axis.loglog(x[kept], (len(x) - kept) / len(samples[name]), color=color, label=name)
    return figure


def mean_excess_plot(
    samples: Mapping[str, Any],
    *,
    tail: str = "both",
    unit: str = "",
    title: str = "mean excess",
) -> Figure:
    r"""Draw the mean excess of each sample over a threshold t, :math:`E[x - t \mid x > t]`.

    It rises along a line of slope :math:`\xi / (1 - \xi)` for tails of an extreme-value index
    :math:`0 < \xi < 1`, is level for those of an exponential, and falls for lighter ones. The ten
    largest numbers are left out: a mean of a few says nothing.

    Args and errors are those of :func:`pareto_plot`; a sample needs more than twenty numbers.

    Example:
        >>> import numpy as np
        >>> from flowkit.plotting import mean_excess_plot
        >>> x = np.random.default_rng(0).exponential(size=1000)
        >>> mean_excess_plot({"x": x}, tail="right", unit="s").axes[0].get_xlabel()
        'threshold t [s]'
    """
    sided = _sided("mean_excess_plot", samples, tail, least=21)
    brackets = _bracket(unit)
    labels = f"threshold t{brackets}", f"mean of {_SIDES[tail]} - t beyond t{brackets}"
    with curves(title, *labels) as (figure, axis):
        for color, (name, x) in zip(_COLORS, sided, strict=False):
            kept = _spread(len(x) - 10)
            above = np.cumsum(x[::-1])[::-1][kept]
            axis.plot(x[kept], above / (len(x) - kept) - x[kept], color=color, label=name)
    return figure


def qq_plot(
    x: Any,
    samples: Mapping[str, Any],
    *,
    label: str = "data",
    unit: str = "",
    title: str = "quantiles",
) -> Figure:
    """Draw a Q-Q plot of samples against x, with asinh axes that show both tails.

    Args:
        x: ``(n,)`` numbers, the reference.
        samples: Names, and ``(m,)`` numbers each.
        label: Name of the reference.
        unit: Unit of the numbers, for the labels.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ArgumentError, DataError: As :func:`pareto_plot`.

    Example:
        >>> import numpy as np
        >>> from flowkit.plotting import qq_plot
        >>> rng = np.random.default_rng(0)
        >>> figure = qq_plot(rng.normal(size=500), {"model": rng.normal(size=800)})
        >>> figure.axes[0].get_xlabel()
        'quantiles of data'
    """
    reference = _numbers("qq_plot", "x", x)
    others = _named("qq_plot", samples, 5)
    width = float(np.subtract(*np.quantile(reference, [0.75, 0.25]))) or 1.0
    labels = f"quantiles of {label}{_bracket(unit)}", f"quantiles of samples{_bracket(unit)}"
    with curves(title, *labels) as (figure, axis):
        for color, (name, y) in zip(_COLORS[1:], others, strict=False):
            n = min(len(reference), len(y))
            # Dense at both ends, where single numbers count.
            kept = np.union1d(_spread(n), n - 1 - _spread(n))
            quantiles = (np.quantile(v, (kept + 0.5) / n) for v in (reference, y))
            axis.plot(*quantiles, ".", markersize=3, color=color, label=name)
        axis.plot(reference[[0, -1]], reference[[0, -1]], "0.75", linewidth=1, zorder=0)
        axis.set_xscale("asinh", linear_width=width)
        axis.set_yscale("asinh", linear_width=width)
        for each in (axis.xaxis, axis.yaxis):
            # Zero and powers of ten, from where the axis becomes logarithmic.
            low, high = each.get_view_interval()
            largest = max(-low, high, 10 * width)
            powers = 10.0 ** np.arange(np.ceil(np.log10(width)), np.log10(largest) + 1)
            each.set_major_locator(FixedLocator([*-powers[::-1], 0.0, *powers]))
            each.set_major_formatter("{x:g}")
            each.set_minor_locator(NullLocator())
            each.set_view_interval(low, high, ignore=True)
    return figure


def _bracket(unit: str) -> str:
    return f" [{unit}]" if unit else ""


def _spread(n: int) -> np.ndarray:
    """Choose places among n sorted numbers, ever denser towards the largest."""
    return np.unique(n - np.geomspace(1, n, min(n, _POINTS)).round().astype(int))


def _numbers(where: str, name: str, x: Any) -> np.ndarray:
    values = x if isinstance(x, Tensor) else np.asarray(x)
    if values.ndim != 1:
        raise DataError(
            f"{where} expected {name} as (n,) numbers, got {values.ndim} dimensions; remedy: one "
            "column at a time"
        )
    return np.sort(as_points(values[:, None], 1, f"{where}: {name}")[:, 0])


def _named(
    where: str, samples: Mapping[str, Any], most: int = len(_COLORS)
) -> list[tuple[str, np.ndarray]]:
    if not isinstance(samples, Mapping) or not 1 <= len(samples) <= most:
        kind = f"a dict of names and samples, one to {most} of them"
        raise checks.fail(where, "samples", kind, samples, "for example {'data': x}")
    return [(name, _numbers(where, repr(name), x)) for name, x in samples.items()]


def _sided(
    where: str, samples: Mapping[str, Any], tail: str, least: int = 1
) -> list[tuple[str, np.ndarray]]:
    """The numbers of each sample on one side, from the smallest."""
    checks.choice(where, "tail", tail, _SIDES)
    sided = []
    for name, x in _named(where, samples):
        side = np.sort(np.abs(x)) if tail == "both" else x if tail == "right" else -x[::-1]
        side = side[side > 0]
        if len(side) < least:
            raise DataError(
                f"{where} expected at least {least} number(s) on the {tail} side, got {len(side)} "
                f"of {name!r}"
            )
        sided.append((name, side))
    return sided
