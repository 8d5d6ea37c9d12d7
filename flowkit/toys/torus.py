"""A smooth density on the torus with an exact score: rings in the angle plane."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.toys.base import Draws, Toy

_RINGS = ((1.0, 1.0), (2.0, 0.8), (1.5, 0.6), (2.5, 0.4))


@register
class TorusRings(Toy):
    r"""Rings on the torus :math:`[-\pi, \pi)^2`, periodic and smooth wherever there is mass.

    .. math:: p(x) \propto \sum_i a_i \exp\Bigl(-\frac{(r(x) - m_i)^2}{2 s^2}\Bigr),\quad
        r^2 = 2 + \cos x_1 + \cos x_2,

    with :math:`m = (1, 2, 1.5, 2.5)`, :math:`a = (1, 0.8, 0.6, 0.4)` and the width s. Only at
    :math:`(\pi, \pi)`, where the density is next to zero, r has a cusp. The constant and the
    entropy come from a trapezoidal rule, which converges exponentially for periodic functions.
    Angles are in radians, and any of those that differ by a multiple of :math:`2\pi` will do.

    Args:
        width: Width s of the rings, in units of r, from 0.01 to 100.

    Raises:
        ArgumentError: If the width is out of its range.

    References:
        The potential of Köhler, Krämer and Noé 2021, arXiv 2110.00351, with cosines instead of
        squared angles, whose derivatives do not meet at the cut.

    Example:
        >>> import torch
        >>> from flowkit.toys import TorusRings
        >>> toy = TorusRings()
        >>> x = toy.sample(2000, torch.Generator().manual_seed(0))
        >>> bool((-toy.log_prob(x).mean() - toy.entropy()).abs() < 0.1)
        True
    """

    def __init__(self, width: float = 0.05) -> None:
        super().__init__(2)
        self.width = checks.number("TorusRings", "width", width, least=0.01, most=100)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the energy in kT."""
        # Where both cosines are -1 the root would have no derivative.
        radius = (2 + x.cos().sum(-1)).clamp_min(1e-12).sqrt()
        terms = [math.log(a) - (radius - m).square() / (2 * self.width**2) for m, a in _RINGS]
        return -torch.logsumexp(torch.stack(terms), 0)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """The logarithm of the constant and the entropy, from 2048 x 2048 points."""
        n = 2048
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n) - math.pi
        total = weighted = 0.0
        for block in angle.split(64):
            grid = torch.stack(torch.meshgrid(block, angle, indexing="ij"), -1)
            energy = self.energy(grid)
            density = torch.exp(-energy)
            total += float(density.sum())
            weighted += float((density * energy).sum())
        log_z = math.log(total * (2 * math.pi / n) ** 2)
        return log_z, log_z + weighted / total

    def log_normalizer(self) -> float:
        r"""Return :math:`\log Z`, by quadrature to rounding."""
        return self._moments[0]

    def entropy(self) -> float:
        """Return the entropy in nats, by quadrature to rounding."""
        return self._moments[1]

    def _draw(self, n: int, draws: Draws) -> Tensor:
        """Exact points, by rejection from the uniform density."""
        accepted = [draws.uniform(0, 2)]
        count, log_bound = 0, math.log(sum(a for _, a in _RINGS))
        while count < n:
            x = draws.uniform(20_000, 3)
            angles = (2 * x[:, :2] - 1) * math.pi
            accepted.append(angles[x[:, 2].log() < -self.energy(angles) - log_bound])
            count += len(accepted[-1])
        return torch.cat(accepted)[:n]
