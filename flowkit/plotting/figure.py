"""Figures that show themselves in a notebook, and what is the same on all of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as the value of a cell, exactly once.

    pyplot does not know of it, so it is not drawn a second time at the end of the cell, does not
    count among the open figures, and need not be closed. A notebook shows matplotlib's own
    figures only once pyplot has been imported there.

    Example:
        >>> NotebookFigure()._repr_png_()[1:4]
        b'PNG'
    """

    def _repr_png_(self) -> bytes:
        """The picture, for IPython."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[NotebookFigure, np.ndarray]:
    """Make a figure in inches, and a table of its panels."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


@contextmanager
def curves(title: str, xlabel: str, ylabel: str) -> Iterator[tuple[NotebookFigure, Axes]]:
    """Make a figure of one panel, with a legend once the curves are drawn."""
    figure, ((axis,),) = panels(6.4, 4.0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    yield figure, axis
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.legend(frameon=False)


def dots(axis: Axes, points: np.ndarray, *, color: Any, size: float, alpha: float = 1.0) -> None:
    """Draw points (n, 2 or more) by their first two columns, without outlines."""
    x, y = points.T[:2]
    axis.scatter(x, y, size, color, alpha=alpha, linewidths=0, rasterized=True)
