"""Training curves."""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowkit.errors import DataError
from flowkit.plotting.arrays import DATA_COLOUR, MODEL_COLOUR
from flowkit.plotting.figure import NotebookFigure


class HistoryLike(Protocol):
    """What :func:`history` reads: one number per epoch, and where the best one was."""

    @property
    def epochs(self) -> Sequence[int]:
        """Epoch numbers."""

    @property
    def train(self) -> Sequence[float]:
        """Training loss of each epoch."""

    @property
    def validation(self) -> Sequence[float]:
        """Validation loss of each epoch, or empty."""

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were kept, or None."""


def history(history: HistoryLike, *, label: str = "loss", title: str = "training") -> Figure:
    """Draw the training and validation loss of every epoch, and mark the epoch that was kept.

    Args:
        history: What ``fit`` returned, or any object with ``epochs``, ``train``, ``validation``
            and ``best_epoch``.
        label: Label of the vertical axis; put the unit here, such as
            ``"negative log-likelihood [nats]"``.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        DataError: If there is no epoch, the lists differ in length, or the best epoch is not
            among the epochs.

    Example:
        >>> from types import SimpleNamespace
        >>> from flowkit.plotting import history
        >>> run = SimpleNamespace(
        ...     epochs=[1, 2, 3], train=[3.0, 2.0, 1.5], validation=[3.1, 2.4, 2.6], best_epoch=2
        ... )
        >>> history(run).axes[0].get_xlabel()
        'epoch'
    """
    epochs, train = list(history.epochs), list(history.train)
    validation, best = list(history.validation), history.best_epoch
    if not epochs or len(train) != len(epochs) or len(validation) not in (0, len(epochs)):
        raise DataError(
            "history expected one training loss per epoch and one or no validation loss, got "
            f"{len(epochs)} epochs, {len(train)} training and {len(validation)} validation "
            "losses; pass what fit returned"
        )
    if best is not None and best not in epochs:
        raise DataError(
            f"history expected best_epoch to be among its epochs {epochs[0]}..{epochs[-1]}, "
            f"got {best}; pass what fit returned"
        )
    figure = NotebookFigure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    # A line through one point is invisible, so short runs get markers.
    marker = "o" if len(epochs) < 25 else ""
    axis.plot(epochs, train, color=DATA_COLOUR, marker=marker, ms=3, label="training")
    if validation:
        axis.plot(epochs, validation, color=MODEL_COLOUR, marker=marker, ms=3, label="validation")
    if best is not None:
        value = (validation or train)[epochs.index(best)]
        axis.axvline(best, color="0.75", linestyle="--", linewidth=1, zorder=0)
        axis.plot(
            [best],
            [value],
            linestyle="",
            marker="o",
            ms=7,
            markerfacecolor="white",
            markeredgecolor="#c0392b",
            markeredgewidth=1.8,
            label=f"kept: epoch {best}, {value:.4g}",
        )
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.set_title(title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
