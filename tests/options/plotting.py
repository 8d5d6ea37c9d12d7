"""Figures: the texts on them, and their ink."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from flowkit.plotting import (
    corner,
    density_2d,
    mean_excess_plot,
    pareto_plot,
    plot_history,
    pointillist,
    qq_plot,
)

from .harness import differs, of, rises
from .parts import rows

DATA, SAMPLES = rows(60, 2).numpy(), rows(50, 2, 1).numpy() + 1
RUN = SimpleNamespace(steps=[1, 2], train=[2.0, 1.0], validation=[2.1, 1.2], best_step=2)


def ink(figure: Any) -> Any:
    """The picture itself, coarsely."""
    figure.set_layout_engine("none")
    figure.set_dpi(20)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(np.float64)


def texts(figure: Any) -> list[str]:
    """Everything that is written on a figure."""
    return sorted(t.get_text() for t in figure.findobj(Text))


def written(function: Any, *args: Any) -> Any:
    return lambda **o: texts(function(*args, **o))


def drawn(function: Any, *args: Any) -> Any:
    return lambda **o: ink(function(*args, **o))


of(
    corner,
    drawn(corner, DATA),
    samples=differs(SAMPLES),
    names=differs(("age [a]", "size [m]"), see=written(corner, DATA)),
    bins=differs(5, 20),
    labels=differs(("seen", "drawn"), see=written(corner, DATA, SAMPLES)),
)
of(plot_history, written(plot_history, RUN), label=differs("nats"), title=differs("a run"))


def bell(x: torch.Tensor) -> torch.Tensor:
    """A density, in numbers as coarse as its dtype."""
    coarse = 0.5 if x.dtype == torch.float64 else 1.0
    return -coarse * x.square().sum(-1)


def elsewhere(**options: Any) -> Any:
    """The devices on which a density is asked for."""
    seen = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(str(x.device))
        return bell(torch.zeros(x.shape))

    density_2d(watched, LIMITS, resolution=4, **options)
    return seen


LIMITS = ((-2.0, 2.0), (-2.0, 2.0))
of(
    density_2d,
    lambda **o: ink(density_2d(bell, LIMITS, **{"resolution": 12, **o})),
    samples=differs(SAMPLES),
    resolution=rises(
        20, 30, base=10, see=lambda **o: float(grid(density_2d(bell, LIMITS, **o)).shape[0])
    ),
    names=differs(("age", "size"), see=written(density_2d, bell, LIMITS)),
    title=differs("posterior", see=written(density_2d, bell, LIMITS)),
    dtype=differs(torch.float64),
    device=differs("meta", see=elsewhere),
)


def grid(figure: Any) -> Any:
    """The numbers behind a picture."""
    return figure.axes[0].images[0].get_array()


PHOTO = np.full((4, 5, 3), 128)
POINTS = np.tile([10.0, 20.0, 30.0, 2.0, 1.0], (3, 1))
of(pointillist, written(pointillist, PHOTO, POINTS), title=differs("a model"))
TAILS = {"a": np.random.default_rng(0).standard_t(3, 300) + 0.3}
for function in (pareto_plot, mean_excess_plot):
    of(
        function,
        written(function, TAILS),
        tail=differs("left", "right", see=drawn(function, TAILS)),
        unit=differs("m"),
        title=differs("storms"),
    )
of(
    qq_plot,
    written(qq_plot, TAILS["a"], TAILS),
    label=differs("measured"),
    unit=differs("m"),
    title=differs("storms"),
)
