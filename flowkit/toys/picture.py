"""A gray picture as a density in the plane."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.arrays import as_array
from flowkit.config import register
from flowkit.errors import ArgumentError
from flowkit.numerics.noise import choose
from flowkit.toys.base import Draws, Toy


@register
class Picture(Toy):
    r"""A density in the plane drawn by a picture: :math:`u(x) = -\log \rho(x) + \frac k2 d(x)^2`.

    The heights of the pixels stand at their centers; between four of them :math:`\rho` is
    bilinear, and so continuous. Outside of the outermost centers it has the height of the
    nearest point inside, and a spring of stiffness k pulls back over the distance d. The longer
    side reaches from -1 to 1, with the first row of the picture on top. The entropy has no closed
    form.

    Args:
        heights: ``(rows, columns)``, every one above 0, in any unit: the density at the pixels.
            Of a photograph, for example ``darkness = 1 - gray / 255`` with some background.
        stiffness: The spring's k, in kT per unit of area.

    Raises:
        ArgumentError: If the picture is not of two dimensions with at least two rows and columns,
            or a height or the stiffness is not a finite number above 0.

    References:
        Wu, Köhler and Noé 2020, arXiv 2002.06707, section 4, for densities of pictures.

    Example:
        >>> import numpy as np, torch
        >>> from flowkit.toys import Picture
        >>> picture = Picture(np.array([[1.0, 2.0, 1.0], [1.0, 4.0, 1.0], [1.0, 2.0, 1.0]]))
        >>> round(picture(torch.zeros(2)).exp().item(), 4), round(picture.log_normalizer(), 4)
        (0.25, 2.0951)
    """

    heights: Tensor

    def __init__(self, heights: Any, *, stiffness: float = 1e4) -> None:
        array = as_array(heights)
        if array.ndim != 2 or min(array.shape) < 2:
            expected, remedy = "(rows, columns), at least 2 x 2", "of a color picture the mean(-1)"
            raise checks.fail("Picture", "heights", expected, heights, remedy)
        if not (np.isfinite(array).all() and (array > 0).all()):
            found = f"values from {array.min()} to {array.max()}"
            raise ArgumentError(
                f"Picture expected heights as finite numbers > 0, got {found}; remedy: add some "
                "background"
            )
        super().__init__(2)
        self.stiffness = checks.number("Picture", "stiffness", stiffness, above=0)
        rows, columns = array.shape
        self.pixel = 2 / (max(rows, columns) - 1)
        # The first row of the buffer is the lowest, so that indices grow with x.
        flipped = torch.as_tensor(array[::-1].copy()).to(torch.get_default_dtype())
        self.register_buffer("heights", flipped, persistent=False)

    @property
    def half_sizes(self) -> tuple[float, float]:
        """The largest coordinates of pixels, across and up."""
        rows, columns = self.heights.shape
        return 0.5 * self.pixel * (columns - 1), 0.5 * self.pixel * (rows - 1)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the energy in kT."""
        rows, columns = self.heights.shape
        half = self.half_sizes
        u, v = x[..., 0], x[..., 1]
        inside_u, inside_v = u.clamp(-half[0], half[0]), v.clamp(-half[1], half[1])
        across, up = (inside_u + half[0]) / self.pixel, (inside_v + half[1]) / self.pixel
        # NaN has no pixel; it comes out as NaN through the spring below.
        i = across.detach().nan_to_num(0.0).floor().clamp(0, columns - 2)
        j = up.detach().nan_to_num(0.0).floor().clamp(0, rows - 2)
        s, t = across - i, up - j
        corner = (j * columns + i).long()
        flat = self.heights.flatten().to(x.dtype)
        low = torch.lerp(flat[corner], flat[corner + 1], s)
        high = torch.lerp(flat[corner + columns], flat[corner + columns + 1], s)
        distance = (u - inside_u).square() + (v - inside_v).square()
        return 0.5 * self.stiffness * distance - torch.lerp(low, high, t).log()

    def log_normalizer(self) -> float:
        r"""Return :math:`\log Z`, exactly: the bilinear inside, and the Gaussian margins."""
        return math.log(self._masses().sum().item())

    @property
    def _edge(self) -> float:
        """Half of the mass of the Gaussian margin, over the height where it begins."""
        return 0.5 * math.sqrt(2 * math.pi / self.stiffness)

    def _masses(self) -> Tensor:
        """The mass of every pixel: a bilinear height is a sum of tents, with margins outside."""
        masses = self.heights.double()
        for axis, size in enumerate(masses.shape):
            width = masses.new_full((size,), self.pixel)
            width[0] = width[-1] = 0.5 * self.pixel + self._edge
            masses = masses * (width if axis else width.unsqueeze(1))
        return masses

    def _draw(self, n: int, draws: Draws) -> Tensor:
        """Exact points, margins included."""
        rows, columns = self.heights.shape
        which = choose(self._masses().flatten(), draws.uniform(n))
        coordinates = []
        for index, size, half in (
            (which % columns, columns, self.half_sizes[0]),
            (which // columns, rows, self.half_sizes[1]),
        ):
            tent = draws.uniform(n) - draws.uniform(n)
            center = index * self.pixel - half
            # At the outermost pixels half a tent stands inside and half a bell outside.
            outer = (index == 0) | (index == size - 1)
            sign = torch.where(index == 0, -1.0, 1.0)
            bell = draws.normal(n).abs() / math.sqrt(self.stiffness)
            beyond = draws.uniform(n) < self._edge / (0.5 * self.pixel + self._edge)
            rim = torch.where(beyond, sign * bell, -sign * self.pixel * tent.abs())
            coordinates.append(center + torch.where(outer, rim, self.pixel * tent))
        return torch.stack(coordinates, -1)
