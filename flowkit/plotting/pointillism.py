"""A photograph beside the samples of a density of its pixels."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowkit.errors import DataError
from flowkit.plotting.arrays import as_points
from flowkit.plotting.figure import dots, panels


def pointillist(photo: Any, points: Any, *, title: str = "samples") -> Figure:
    """Draw a photograph beside samples of color and position, one colored dot per sample.

    Args:
        photo: Array (height, width, 3), colors in 0..255.
        points: Points (n, 5): red, green, blue in -0.5..255.5 and x, y in pixels, whose centres
            are the integers, y counted from the top, as from
            :func:`flowkit.datasets.photograph_colors` dequantised. Colors beyond the range are
            clipped; points beyond the frame are counted in the title.
        title: Title of the samples' panel.

    Returns:
        The figure.

    Raises:
        DataError: If the photograph is not (height, width, 3) or the points are not finite
            points (n, 5).

    Example:
        >>> from flowkit.datasets import photograph_colors
        >>> from flowkit.plotting import pointillist
        >>> photo = photograph_colors("china.jpg")
        >>> figure = pointillist(photo.image(), photo.dequantized()[::500])
        >>> [axis.get_title() for axis in figure.axes]
        ['photograph', 'samples: 547 points']
    """
    image = np.asarray(photo)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(
            f"pointillist expected a photograph (height, width, 3), got {image.shape}; "
            "remedy: put the colors last"
        )
    points = as_points(points, 5, "pointillist points")
    height, width = image.shape[:2]
    x, y = points[:, 3], points[:, 4]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    colors = np.clip((points[inside, :3] + 0.5) / 256, 0, 1)

    panel = 5.5
    size = 2 * panel, panel * height / width + 0.55
    figure, ((left, right),) = panels(*size, 1, 2, sharex=True, sharey=True)
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    left.imshow(np.clip(image, 0, 255).astype(np.uint8), extent=frame)
    left.set_title("photograph")
    # Dots of twice the area of the panel; a layer of wider ones beneath fills the gaps that chance
    # leaves with the color of the neighbours.
    area = 2 * (0.9 * 72 * panel) ** 2 * height / width / len(points)
    for wider in (5.0, 1.0):
        dots(right, points[inside, 3:], color=colors, size=wider * float(np.clip(area, 0.3, 200)))
    beyond = f", {1 - inside.mean():.1%} outside" if not inside.all() else ""
    right.set_title(f"{title}: {len(points):,} points{beyond}")
    for axis in (left, right):
        axis.set(aspect="equal", xlim=frame[:2], ylim=frame[2:], xlabel="x [pixels]")
    left.set_ylabel("y [pixels]")
    return figure
