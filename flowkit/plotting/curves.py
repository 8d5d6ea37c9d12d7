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
    """Draw the training and validation loss of every epoch, and mark the epoch that is restored.

    Args:
        history: What :func:`flowkit.fit` returned, or a dict or object with ``epochs``, ``train``,
            ``validation`` (one number per epoch, or empty) and ``best_epoch`` (or None).
        label: Label of the vertical axis; put the unit here, such as
            ``"negative log-likelihood [nats]"``.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        DataError: If this is no such history, there is no epoch, the lists differ in length, or
            the best epoch is not among the epochs.

    Example:
        >>> from flowkit.plotting import plot_history
        >>> run = {"epochs": [1, 2], "train": [3.0, 2.0], "validation": [], "best_epoch": 2}
        >>> plot_history(run).axes[0].get_xlabel()
        'epoch'
    """
    epochs, train, validation, best = _read(history)
    # A line through one point is invisible, so short runs get markers.
    marker = "o" if len(epochs) < 25 else ""
    with curves(title, "epoch", label) as (figure, axis):
        axis.plot(epochs, train, DATA_COLOR, marker=marker, ms=3, label="training")
        if validation:
            axis.plot(epochs, validation, MODEL_COLOR, marker=marker, ms=3, label="validation")
        if best is not None:
            value = (validation or train)[epochs.index(best)]
            axis.axvline(best, color="0.75", linestyle="--", linewidth=1, zorder=0)
            ring: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "#c0392b"}
            name = f"restored: epoch {best}, {value:.4g}"
            axis.plot([best], [value], "o", ms=7, markeredgewidth=1.8, label=name, **ring)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def _read(history: Any) -> tuple[list[int], list[float], list[float], int | None]:
    """Check the parts of a history: epochs, losses of training and validation, the best epoch."""
    names = ("epochs", "train", "validation", "best_epoch")
    read = history.get if isinstance(history, Mapping) else partial(getattr, history)
    *losses, best = (read(name, None) for name in names)
    try:
        epochs, train, validation = map(list, losses)
    except TypeError:
        raise DataError(
            f"plot_history expected what fit returned, got {type(history).__name__}; remedy: a "
            "History, or a dict with epochs, train, validation and best_epoch"
        ) from None
    if not epochs or len(train) != len(epochs) or len(validation) not in (0, len(epochs)):
        raise DataError(
            "plot_history expected one training loss per epoch and one or no validation loss, got "
            f"{len(epochs)} epochs, {len(train)} training and {len(validation)} validation losses"
        )
    if best is not None and best not in epochs:
        raise DataError(
            f"plot_history expected best_epoch to be among its epochs {epochs[0]}..{epochs[-1]}, "
            f"got {best}"
        )
    return epochs, train, validation, best
