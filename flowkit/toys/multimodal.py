"""A ten-dimensional toy with 512 modes: a triangular map of Gaussian noise."""

from math import e, log, pi

import numpy as np
import torch
from torch import Tensor

from flowkit.config import register
from flowkit.errors import DataError
from flowkit.toys.base import Draws, Toy


@register
class Multimodal10(Toy):
    r"""Ten coordinates, each after the first close to plus or minus a sum of its predecessors.

    .. math:: y_0 = z_0, \quad y_i = \tanh(5 z_i)\,(y_{i-1} + 2 \cdot 2^i), \quad
        z \sim N(0, I_{10}),\ i = 1, \dots, 9

    The signs of :math:`z_1, \dots, z_9` make :math:`2^9 = 512` modes. There is no added noise, and
    mass piles up against the walls :math:`y_i = \pm(y_{i-1} + 2 \cdot 2^i)`: in every coordinate
    about a third of it lies within 0.02 % of a wall. Energies need float64; a point that rounding
    put on a wall counts as the last number before it (one coordinate in 6,000).

    References:
        Chao et al., arXiv 2305.15267, appendix.

    Example:
        >>> from flowkit.toys import Multimodal10
        >>> toy = Multimodal10().double()
        >>> x = toy.sample(4)
        >>> x.shape, bool(toy.log_prob(x).isfinite().all())
        (torch.Size([4, 10]), True)
    """

    def __init__(self) -> None:
        super().__init__(10)

    def entropy(self) -> float:
        r"""Return the entropy in nats, right to about 1e-4.

        The map is triangular, so the entropy is that of the noise plus the expected logarithms of
        its slopes :math:`5\,\mathrm{sech}^2(5 z_i)\,|y_{i-1} + 2 \cdot 2^i|`; the second factor is
        integrated backwards along the chain, one coordinate at a time.

        Example:
            >>> from flowkit.toys import Multimodal10
            >>> 0.0 < Multimodal10().entropy() < 14.19  # that of the noise is 14.19
            True
        """
        z = np.linspace(-9, 9, 1801)
        normal = np.exp(-0.5 * z**2)
        normal /= normal.sum()
        walls = np.tanh(5 * z)
        log_slope = log(5) - 2 * np.log(np.cosh(5 * z))
        reach = 9.0 + np.cumsum([0.0] + [2.0 * 2**i for i in range(1, 9)])
        following = np.zeros(2)
        following_at = np.array([-1.0, 1.0])
        for i in range(9, 0, -1):
            # An even number of points keeps the grid off the one place where a wall vanishes.
            previous = np.linspace(-reach[i - 1], reach[i - 1], 8002)
            wall = previous + 2.0 * 2**i
            rest = np.array([normal @ np.interp(walls * w, following_at, following) for w in wall])
            following_at, following = previous, np.log(np.abs(wall)) + rest
        chain = normal @ np.interp(z, following_at, following)
        return float(5 * log(2 * pi * e) + 9 * (normal @ log_slope) + chain)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return minus the log-density, by the change of variables; infinity outside the walls.

        Raises:
            DataError: If x is not float64: nearness to a wall needs all digits.
        """
        if x.dtype != torch.float64:
            raise DataError(
                f"Multimodal10 expected float64, got {x.dtype}, which cannot tell points near a "
                "wall apart; remedy: Multimodal10().double().sample(n)"
            )
        steps = torch.arange(1, 10, dtype=x.dtype, device=x.device)
        wall = x[..., :-1] + 2 * 2**steps
        ratio = x[..., 1:] / wall
        inside = ratio.abs() < 1 + 1e-12
        last = 1 - 2.0**-53
        t = ratio.clamp(-last, last)
        z = torch.cat([x[..., :1], torch.atanh(t) / 5], -1)
        log_normal = -0.5 * z.square().sum(-1) - 5 * log(2 * pi)
        log_slopes = log(5) + torch.log((1 - t) * (1 + t)) + wall.abs().log()
        return torch.where(inside.all(-1), log_slopes.sum(-1) - log_normal, torch.inf)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        z = draws.normal(n, 10)
        columns = [z[:, 0]]
        for i in range(1, 10):
            columns.append(torch.tanh(5 * z[:, i]) * (columns[-1] + 2 * 2**i))
        return torch.stack(columns, -1)
