"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowkit.errors import DataError
from flowkit.plotting.arrays import DATA_COLOR, MODEL_COLOR
from flowkit.plotting.figure import curves


def plot_history(history: Any, *, label: str = "loss", title: str = "training") -> Figure:
    """Draw training and validation losses over steps, and mark the step that is restored.

    Args:
        history: What :func:`flowkit.fit` returned, or a dict or object with ``steps``, ``train``,
            ``validation`` (one number per step listed, or empty) and ``best_step`` (or None; 0 is
            the start, which is not drawn).
        label: Label of the vertical axis; put the unit here, such as
            ``"negative log-likelihood [nats]"``.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        DataError: If this is no such history, it is empty, the lists differ in length, or the
            best step is not among the steps.

    Example:
        >>> from flowkit.plotting import plot_history
        >>> run = {"steps": [25, 50], "train": [3.0, 2.0], "validation": [], "best_step": 50}
        >>> plot_history(run).axes[0].get_xlabel()
        'step'
    """
    steps, train, validation, best = _read(history)
    # A line through one point is invisible, so short runs get markers.
    marker = "o" if len(steps) < 25 else ""
    with curves(title, "step", label) as (figure, axis):
        axis.plot(steps, train, DATA_COLOR, marker=marker, ms=3, label="training")
        if validation:
            axis.plot(steps, validation, MODEL_COLOR, marker=marker, ms=3, label="validation")
        if best:
            value = (validation or train)[steps.index(best)]
            axis.axvline(best, color="0.75", linestyle="--", linewidth=1, zorder=0)
            ring: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "#c0392b"}
            name = f"restored: step {best}, {value:.4g}"
            axis.plot([best], [value], "o", ms=7, markeredgewidth=1.8, label=name, **ring)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def _read(history: Any) -> tuple[list[int], list[float], list[float], int | None]:
    """Check the parts of a history: steps, losses of training and validation, the best step."""
    names = ("steps", "train", "validation", "best_step")
    read = history.get if isinstance(history, Mapping) else partial(getattr, history)
    *losses, best = (read(name, None) for name in names)
    try:
        steps, train, validation = map(list, losses)
    except TypeError:
        raise DataError(
            f"plot_history expected what fit returned, got {type(history).__name__}; remedy: a "
            "History, or a dict with steps, train, validation and best_step"
        ) from None
    if not steps or len(train) != len(steps) or len(validation) not in (0, len(steps)):
        raise DataError(
            "plot_history expected one training loss per step listed and one or no validation "
            f"loss, got {len(steps)} steps, {len(train)} training and {len(validation)} "
            "validation losses"
        )
    if best is not None and best not in [0, *steps]:
        raise DataError(
            f"plot_history expected best_step to be among its steps {steps[0]}..{steps[-1]}, "
            f"got {best}"
        )
    return steps, train, validation, best
