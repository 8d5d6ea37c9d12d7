"""Figures of densities, samples and training, made with matplotlib alone.

Every function returns a ``matplotlib.figure.Figure`` of its own: no global state of pyplot is
touched, and no figure has to be closed. In a notebook the figure is shown where it is the value of
a cell, or by ``display(figure)``; elsewhere, save it with ``figure.savefig(path)``.
"""

from flowkit.plotting.corners import corner
from flowkit.plotting.curves import plot_history
from flowkit.plotting.density import density_2d
from flowkit.plotting.pointillism import pointillist
from flowkit.plotting.tails import mean_excess_plot, pareto_plot, qq_plot

__all__ = [
    "corner",
    "density_2d",
    "mean_excess_plot",
    "pareto_plot",
    "plot_history",
    "pointillist",
    "qq_plot",
]
