"""A two-dimensional density as a picture, with samples beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flowkit import checks
from flowkit.errors import DataError
from flowkit.plotting.arrays import MODEL_COLOR, as_points
from flowkit.plotting.figure import dots, panels

# Grid points handed to log_prob at once: small enough for a large flow on a small machine.
_BLOCK = 8192
_MOST_RESOLUTION = 10_000


def density_2d(
    log_prob: Callable[[Tensor], Tensor],
    limits: tuple[tuple[float, float], tuple[float, float]],
    *,
    samples: Any = None,
    resolution: int = 200,
    names: tuple[str, str] = ("$x_1$", "$x_2$"),
    title: str = "density",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Figure:
    r"""Draw the density :math:`p(x) = e^{\log p(x)}` over a rectangle, and samples beside it.

    Args:
        log_prob: Any function of a tensor (n, 2) that returns log densities (n,) in nats, such as
            the ``log_prob`` of a flow.
        limits: The rectangle ((x low, x high), (y low, y high)).
        samples: Points (n, 2) for a second panel, or None for the density alone. Points outside
            the rectangle are counted in the panel's title.
        resolution: Number of grid points along each side.
        names: Axis labels; put units here.
        title: Title of the density panel.
        dtype: dtype of the points handed to ``log_prob``.
        device: Device of the points handed to ``log_prob``.

    Returns:
        The figure; save it with ``figure.savefig(path)``.

    Raises:
        ArgumentError: If the limits are not increasing, or the resolution is below 2.
        DataError: If the log density has another shape or is NaN, or the samples are not finite
            points (n, 2).

    Example:
        >>> from flowkit.toys import TwoMoons
        >>> from flowkit.plotting import density_2d
        >>> toy = TwoMoons()
        >>> figure = density_2d(toy.log_prob, toy.limits, samples=toy.sample(500), resolution=40)
        >>> len(figure.axes)  # density, its color bar, samples
        3
    """
    checks.integer("density_2d", "resolution", resolution, least=2, most=_MOST_RESOLUTION)
    (x_low, x_high), (y_low, y_high) = _check_limits(limits)
    points = None if samples is None else as_points(samples, 2, "density_2d samples")
    x = np.linspace(x_low, x_high, resolution)
    y = np.linspace(y_low, y_high, resolution)
    density = _on_grid(log_prob, x, y, dtype, device)

    # Panels keep the shape of the rectangle, within reason.
    height = 4.0
    width = height * min(2.0, max(0.6, (x_high - x_low) / (y_high - y_low)))
    count = 1 if points is None else 2
    figure, (axes,) = panels(count * width + 1.2, height, 1, count)
    # Half a step on each side puts the middle of every cell on its grid point.
    dx, dy = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    picture = axes[0].imshow(
        density,
        origin="lower",
        extent=(x_low - dx, x_high + dx, y_low - dy, y_high + dy),
        aspect="auto",
        cmap="viridis",
        vmin=0.0,
        interpolation="bilinear",
    )
    figure.colorbar(picture, ax=axes[0], label="density", pad=0.02)
    axes[0].set_title(title)
    if points is not None:
        low, high = zip((x_low, x_high), (y_low, y_high), strict=True)
        outside = int(((points < low) | (points > high)).any(1).sum())
        size, alpha = np.clip(np.array([12000, 3000]) / len(points), [0.5, 0.15], [12, 0.7])
        dots(axes[1], points, color=MODEL_COLOR, size=size, alpha=alpha)
        beyond = f", {outside:,} outside" if outside else ""
        axes[1].set_title(f"{len(points):,} samples{beyond}")
    for axis in axes:
        axis.set(xlim=(x_low, x_high), ylim=(y_low, y_high), xlabel=names[0], ylabel=names[1])
    return figure


def _check_limits(limits: Any) -> list[tuple[float, ...]]:
    pairs = checks.as_list(limits)
    if pairs is not None and len(pairs) == 2:
        sides = [checks.numbers("density_2d", "limits", pair, 2) for pair in pairs]
        if all(low < high for low, high in sides):
            return sides
    expected = "((x low, x high), (y low, y high)), the smaller limit first"
    raise checks.fail("density_2d", "limits", expected, limits)


def _on_grid(
    log_prob: Callable[[Tensor], Tensor],
    x: np.ndarray,
    y: np.ndarray,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> np.ndarray:
    """Density on the grid, one row for each y."""
    columns, rows = np.meshgrid(x, y)
    grid = torch.tensor(np.stack([columns.ravel(), rows.ravel()], -1), dtype=dtype, device=device)
    blocks = []
    for part in grid.split(_BLOCK):
        with torch.no_grad():
            blocks.append(log_prob(part))
        if not isinstance(blocks[-1], Tensor):
            got = type(blocks[-1]).__name__
            raise DataError(
                f"density_2d expected log_prob to return a torch.Tensor, got {got}; remedy: "
                "lambda x: torch.as_tensor(log_prob(x))"
            )
        if blocks[-1].shape != part.shape[:1]:
            raise DataError(
                f"density_2d expected log_prob to return ({len(part)},) for {len(part)} points, "
                f"got {tuple(blocks[-1].shape)}; remedy: sum over the event dimension"
            )
    values = torch.cat(blocks).double().exp().cpu().numpy()
    if np.isnan(values).any():
        raise DataError(
            f"density_2d expected log densities, got NaN at {int(np.isnan(values).sum())} of "
            f"{len(values)} grid points; remedy: narrow the limits to where the density is defined"
        )
    return values.reshape(len(y), len(x))
