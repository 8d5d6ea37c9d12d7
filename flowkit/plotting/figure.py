"""The figure that every function of the package returns: it shows itself in a notebook."""

from __future__ import annotations

import io

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


def simple_figure(title: str) -> tuple[NotebookFigure, Axes]:
    """Make a figure of one panel with a faint grid and no frame above and at the right."""
    figure = NotebookFigure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
