"""A smooth density on the torus with an exact score: rings in the angle plane."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from flowkit.errors import DataError
from flowkit.toys.base import Toy

_RINGS = ((1.0, 1.0), (2.0, 0.8), (1.5, 0.6), (2.5, 0.4))


@dataclass(frozen=True, eq=False)
class TorusRings(Toy):
    r"""Rings on the torus :math:`[-\pi, \pi)^2`, periodic and smooth wherever there is mass.

    .. math:: p(x) \propto \sum_i a_i \exp\Bigl(-\frac{(r(x) - m_i)^2}{2 s^2}\Bigr),\quad
        r^2 = 2 + \cos x_1 + \cos x_2,

    with :math:`m = (1, 2, 1.5, 2.5)`, :math:`a = (1, 0.8, 0.6, 0.4)` and the width s. Only at
    :math:`(\pi, \pi)`, where the density is next to nothing, r has a cusp. The normaliser and the
    entropy come from a trapezoidal rule, which converges exponentially for periodic functions.

    Attributes:
        width: Width s of the rings, in units of r.

    References:
        The potential of Köhler, Krämer and Noé 2021, arXiv 2110.00351, with cosines instead of
        squared angles, whose derivatives do not meet at the cut.

    Raises:
        DataError: If the width is not a positive number.

    Example:
        >>> from flowkit.toys import torus_rings
        >>> toy = torus_rings()
        >>> x = toy.sample(2000)
        >>> bool((-toy.log_prob(x).mean() - toy.entropy).abs() < 0.1)
        True
    """

    width: float = 0.05
    name: str = field(default="torus_rings", init=False)
    features: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.width < math.inf:
            raise DataError(
                f"TorusRings expected a finite width > 0, got {self.width!r}; remedy: for example "
                "width=0.05"
            )

    def _unnormalized(self, x: Tensor) -> Tensor:
        # Where both cosines are -1 the root would have no derivative.
        radius = (2 + x.cos().sum(-1)).clamp_min(1e-12).sqrt()
        terms = [math.log(a) - (radius - m).square() / (2 * self.width**2) for m, a in _RINGS]
        return torch.logsumexp(torch.stack(terms), 0)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """Log-normaliser and entropy, from 2048 x 2048 points."""
        n = 2048
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) - math.pi
        total = weighted = 0.0
        for row in angle.split(64):
            grid = torch.stack(torch.meshgrid(row, angle, indexing="ij"), -1)
            value = self._unnormalized(grid)
            density = value.exp()
            total += float(density.sum())
            weighted += float((density * value).sum())
        log_z = math.log(total * (2 * math.pi / n) ** 2)
        return log_z, log_z - weighted / total

    @property
    def entropy(self) -> float:
        """Differential entropy in nats."""
        return self._moments[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x (..., 2), shape (...); angles in radians, any turn."""
        self._check(x)
        return self._unnormalized(x) - self._moments[0]

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact points, by rejection from the uniform density."""
        kept, found = [torch.empty(0, 2, dtype=torch.float64)], 0
        log_bound = math.log(sum(a for _, a in _RINGS))
        while found < n:
            x = torch.rand(20_000, 3, generator=generator, dtype=torch.float64)
            angles = (2 * x[:, :2] - 1) * math.pi
            kept.append(angles[x[:, 2].log() < self._unnormalized(angles) - log_bound])
            found += len(kept[-1])
        return torch.cat(kept)[:n]


def torus_rings() -> TorusRings:
    """Return the :class:`TorusRings` of the usual width.

    Example:
        >>> from flowkit.toys import torus_rings
        >>> torus_rings().sample(3, seed=1).shape
        torch.Size([3, 2])
    """
    return TorusRings()
