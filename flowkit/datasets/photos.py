"""A photograph as a density: every pixel is a point (red, green, blue, x, y).

The pixels of scikit-learn's two photographs need no download; samples of a fitted density, drawn
at their position in their color, repaint the picture (:func:`flowkit.plotting.pointillist`).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.data.dequantize import dequantize

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


class PhotographColors(NamedTuple):
    """The pixels of one photograph.

    Attributes:
        points: int64 tensor (height * width, 5), row by row from the top left corner: red, green
            and blue in 0..255, x in 0..width-1 and y in 0..height-1 counted from the top.
        height: Number of pixel rows.
        width: Number of pixel columns.
        columns: The five column names.

    Example:
        >>> from flowkit.datasets import photograph_colors
        >>> photo = photograph_colors("china.jpg")
        >>> tuple(photo.points.shape), photo.height, photo.width
        ((273280, 5), 427, 640)
    """

    points: Tensor
    height: int
    width: int
    columns: tuple[str, ...] = ("red", "green", "blue", "x", "y")

    def image(self) -> np.ndarray:
        """Return the photograph as a uint8 array (height, width, 3).

        Example:
            >>> from flowkit.datasets import photograph_colors
            >>> photograph_colors().image().shape
            (427, 640, 3)
        """
        colors = self.points[:, :3].to(torch.uint8).numpy()
        return colors.reshape(self.height, self.width, 3)

    def dequantized(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the points with uniform noise in (-1/2, 1/2) added to all five columns.

        See :func:`flowkit.data.dequantize` for the convention.

        Args:
            seed: Seed of a private generator.
            dtype: Floating dtype of the result.

        Returns:
            Tensor (height * width, 5): colors in (-0.5, 255.5), x in (-0.5, width - 0.5), y in
            (-0.5, height - 0.5).

        Example:
            >>> from flowkit.datasets import photograph_colors
            >>> points = photograph_colors().dequantized(seed=1)
            >>> bool(points.min() > -0.5), bool((points[:, 3] < 639.5).all())
            (True, True)
        """
        return dequantize(self.points, seed=seed, dtype=dtype)


def photograph_colors(name: str = "china.jpg") -> PhotographColors:
    """Load the pixels of a photograph: 273,280 samples of color and position, five numbers each.

    Args:
        name: ``"china.jpg"`` or ``"flower.jpg"``.

    Returns:
        The integer points, the size of the picture and the column names.

    Raises:
        ArgumentError: If there is no photograph of that name.

    References:
        The photographs are by danielbuechele (china) and vultilion (flower), CC BY 2.0.

    Example:
        >>> from flowkit.datasets import photograph_colors
        >>> photograph_colors("flower.jpg").points[0].tolist()
        [2, 19, 13, 0, 0]
    """
    image = load_photograph(name)
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    points = np.column_stack([image.reshape(-1, 3), x.ravel(), y.ravel()]).astype(np.int64)
    return PhotographColors(torch.from_numpy(points), height, width)


def load_photograph(name: str) -> np.ndarray:
    """One of scikit-learn's two photographs as a uint8 array (height, width, 3)."""
    from sklearn.datasets import load_sample_image

    checks.choice("photograph", "name", name, PHOTOGRAPHS)
    return np.array(load_sample_image(name), dtype=np.uint8)
