"""All one- and two-dimensional margins of a table, with the samples of a model on top."""

import textwrap
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowkit import checks
from flowkit.errors import DataError
from flowkit.plotting.arrays import DATA_COLOR, MODEL_COLOR, as_points
from flowkit.plotting.figure import dots, panels

# Fractions of the points inside the outer and the inner contour.
_FRACTIONS = (0.9, 0.5)
_MOST_COLUMNS = 16
# Fewer points than this make contours of noise, so they are drawn as points.
_FEW = 500
# Cells along each axis of the histograms under the contours.
_CELLS = 50


def corner(
    data: Any,
    samples: Any = None,
    *,
    names: Sequence[str] | None = None,
    bins: int | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> Figure:
    """Draw a corner plot: histograms on the diagonal, contours of every pair of columns below it.

    The contours are those of smoothed histograms and hold 50 % and 90 % of the points; a table of
    fewer than 500 rows is drawn as points. Axes span the central 99 % of each table, and a margin.

    Args:
        data: Points (n, d), drawn in grey, d from 2 to 16.
        samples: Points (m, d), drawn in blue lines, or None.
        names: d column names; put units here. By default those of a frame.
        bins: Number of bins of the histograms, 5 or more; None chooses it by the size of the
            smaller table.
        labels: Names of the two tables in the legend.

    Returns:
        The figure, d by d axes.

    Raises:
        ArgumentError: If there are fewer than 5 bins.
        DataError: If tables or names do not fit one another, a column is constant, d is out of
            range, or numbers are not finite.

    Example:
        >>> from flowkit.datasets import wine
        >>> from flowkit.plotting import corner
        >>> splits = wine()
        >>> figure = corner(splits.train[:, :3], splits.test[:, :3], names=splits.columns[:3])
        >>> figure.axes[-1].get_xlabel()
        'ash'
    """
    tables = [as_points(data, None, "corner data")]
    d = tables[0].shape[1]
    if samples is not None:
        tables.append(as_points(samples, d, "corner samples"))
    if names is None:
        names = getattr(data, "columns", [f"$x_{{{i + 1}}}$" for i in range(d)])
    names = tuple(map(str, names))
    if bins is None:
        bins = int(np.clip(2 * min(len(table) for table in tables) ** (1 / 3), 8, 40))
    checks.integer("corner", "bins", bins, least=5)
    if not 2 <= d <= _MOST_COLUMNS or len(names) != d:
        raise DataError(
            f"corner expected 2 to {_MOST_COLUMNS} columns and a name for each, got {d} columns "
            f"and {len(names)} names; remedy: choose the columns to look at"
        )
    spans = [_span([table[:, i] for table in tables], names[i]) for i in range(d)]

    side = 1.9 if d <= 6 else 1.4
    figure, grid = panels(side * d + 0.8, side * d + 0.6, d, d)
    for axis in grid[np.triu_indices(d, 1)]:
        axis.set_visible(False)
    for column, row in combinations_with_replacement(range(d), 2):
        axis = grid[row, column]
        shown = [table[:, [column, row]] for table in tables]
        if column == row:
            _margin(axis, shown, np.linspace(*spans[row], bins + 1).tolist())
        else:
            _pair(axis, shown, spans[column], spans[row])
            axis.set_ylim(spans[row])
        axis.set_xlim(spans[column])
        axis.locator_params(nbins=3)
        _label(axis, names, row, column, d)
    figure.align_labels()
    handles: list[Patch | Line2D] = [Patch(color=DATA_COLOR, alpha=0.5, label=labels[0])]
    if samples is not None:
        handles.append(Line2D([], [], color=MODEL_COLOR, label=labels[1]))
    # The upper triangle is empty: the legend fits there and nowhere else.
    figure.legend(handles=handles, loc="upper right", frameon=False, fontsize="large")
    return figure


def _span(columns: list[np.ndarray], name: str) -> tuple[float, float]:
    """The central 99 % of each table, whichever reaches farther, and a margin."""
    ends = np.array([np.quantile(values, (0.005, 0.995)) for values in columns])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not low < high:
        raise DataError(
            f"corner expected columns that vary, got nearly constant {name}; leave that column out"
        )
    margin = 0.1 * (high - low)
    return low - margin, high + margin


def _margin(axis: Axes, tables: list[np.ndarray], edges: list[float]) -> None:
    """Histograms of the first column, as densities."""
    styles: tuple[dict[str, Any], ...] = (
        {"color": DATA_COLOR, "alpha": 0.5},
        {"color": MODEL_COLOR, "histtype": "step", "lw": 1.5},
    )
    for table, style in zip(tables, styles, strict=False):
        axis.hist(table[:, 0], edges, density=True, **style)


def _pair(
    axis: Axes,
    tables: list[np.ndarray],
    x_span: tuple[float, float],
    y_span: tuple[float, float],
) -> None:
    """Two columns: contours with areas for the data and lines for the samples, or points."""
    x_edges, y_edges = np.linspace(*x_span, _CELLS + 1), np.linspace(*y_span, _CELLS + 1)
    x, y = (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2
    for table, color in zip(tables, (DATA_COLOR, MODEL_COLOR), strict=False):
        filled = color == DATA_COLOR
        if len(table) < _FEW:
            dots(axis, table, color=color, size=5 if filled else 9, alpha=0.8)
            continue
        density, levels = _levels(table, x_edges, y_edges)
        if filled:
            shades = [to_rgba(color, alpha) for alpha in (0.28, 0.6)]
            axis.contourf(x, y, density, [*levels, np.inf], colors=shades)
        else:
            axis.contour(x, y, density, levels, colors=color, linewidths=(0.9, 1.5))


def _levels(
    table: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """A smoothed histogram, one row for each y, and the heights whose areas hold the fractions."""
    from scipy.ndimage import gaussian_filter

    counts, _, _ = np.histogram2d(table[:, 0], table[:, 1], bins=(x_edges, y_edges))
    # The fewer the points, the wider the kernel: Scott's power of n, times the radius of the
    # filled bins, which several far modes inflate less than they would the standard deviation.
    radius = np.sqrt((counts > 0).sum() / np.pi)
    width = 0.5 * radius * max(1.0, counts.sum()) ** (-1 / 6)
    density = gaussian_filter(counts.T, float(np.clip(width, 0.8, 4.0)), mode="constant")
    ranked = np.sort(density.ravel())[::-1]
    held = np.cumsum(ranked) / ranked.sum()
    levels = [float(ranked[np.searchsorted(held, fraction)]) for fraction in _FRACTIONS]
    if not 0 < levels[0] < levels[1]:
        levels = [0.1 * float(ranked[0]), 0.5 * float(ranked[0])]
    return density, levels


def _label(axis: Axes, names: tuple[str, ...], row: int, column: int, d: int) -> None:
    """Label only the outside of the triangle."""
    if row == d - 1:
        axis.set_xlabel(_wrapped(names[column]))
    else:
        axis.tick_params(labelbottom=False)
    if column == row:
        # Heights of a histogram of one column mean nothing to the eye.
        axis.set_yticks([])
        if row == 0:
            axis.set_ylabel("density")
    elif column == 0:
        axis.set_ylabel(_wrapped(names[row]))
    else:
        axis.tick_params(labelleft=False)


def _wrapped(name: str) -> str:
    """Break a long name into lines; formulas stay as they are."""
    return name if "$" in name else textwrap.fill(name.replace("_", " "), 13)
