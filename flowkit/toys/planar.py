"""The usual two-dimensional toys: shapes with noise, each with a quadrature rule for its density.

Curves are integrated by Gauss-Legendre panels about five noise widths long.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, hypot, log, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.toys.base import Draws, Toy, quadrature_entropy

# Samples times mixture components held at once by energy: 8 MB for each temporary.
_BLOCK = 2**20


class NoisedShape(Toy):
    r"""A planar shape blurred by Gaussian noise, with the exact density of the blurred points.

    The density is a mixture of K kernels at given centers: in coordinate d a kernel is
    the convolution of a uniform distribution of width :math:`b_d` with :math:`N(0, s_d^2)`,

    .. math:: p(x) = \sum_k w_k \prod_d \frac{1}{b_d}
        \left[\Phi\Big(\frac{x_d - c_{kd} + b_d/2}{s_d}\Big)
            - \Phi\Big(\frac{x_d - c_{kd} - b_d/2}{s_d}\Big)\right],

    and the plain normal density where :math:`b_d = 0`. A curve is a quadrature rule along it:
    nodes as centers, closer together than the noise is wide. That is the integral to seven digits
    wherever samples fall, and to some hundredths of a nat where the density is next to zero.
    Points are drawn from the continuous shape, never from the nodes. Computed in float64.

    A subclass defines ``_curve(t, branch)``, the points of its curves, which are all as likely,
    for t from 0 to 1 with the density :math:`m t^{m-1}`.

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001: without noise the shape
            has no density.
        lengths: The length of every curve; 0 for a single point.
        box: The width b.
        jitter: Standard deviation of further noise in the second coordinate.
        power: m.

    Raises:
        ArgumentError: If the noise is out of its range.
    """

    def __init__(
        self,
        noise: float,
        lengths: Sequence[float],
        *,
        box: float = 0.0,
        jitter: float = 0.0,
        power: int = 1,
    ) -> None:
        super().__init__(2)
        self.noise = checks.number(type(self).__name__, "noise", noise, least=1e-4)
        self._box, self._scale = box, (self.noise, hypot(self.noise, jitter))
        self._branches, self._power = len(lengths), power
        nodes = [self._nodes(length) for length in lengths]
        curves = [self._curve(t, torch.tensor(k)) for k, (t, _) in enumerate(nodes)]
        self._centers = torch.cat(curves)
        self._weights = torch.cat([weights for _, weights in nodes]) / len(lengths)

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        """The points ``(n, 2)`` at places ``t (n,)`` of curves, which are given by number."""
        raise NotImplementedError(f"{type(self).__name__} does not define _curve")

    def _nodes(self, length: float) -> tuple[Tensor, Tensor]:
        """Places t along a curve and their probabilities: 16 Gauss-Legendre nodes per panel."""
        if not length:
            return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        # Equal in t^m: the arm of a spiral grows as t^2.
        edges = np.linspace(0, 1, ceil(length / (5 * self.noise)) + 2) ** (1 / self._power)
        nodes, shares = np.polynomial.legendre.leggauss(16)
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        t = torch.from_numpy((middle + half * nodes).ravel())
        weights = torch.from_numpy((half * shares).ravel())
        return t, weights * self._power * t ** (self._power - 1)

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The rectangle ((x low, x high), (y low, y high)) that a figure of the toy should show.

        It reaches four standard deviations of the noise beyond the shape.

        Example:
            >>> from flowkit.toys import Circles
            >>> [round(end, 1) for end in Circles(radii=(4.0,), noise=0.5).limits[0]]
            [-6.0, 6.0]
        """
        return self._reach(0, 4.0), self._reach(1, 4.0)

    def entropy(self) -> float:
        r"""Return the entropy in nats, by quadrature, right to about eight digits.

        Example:
            >>> from flowkit.toys import Swirl
            >>> round(Swirl().entropy(), 4)
            4.1394
        """
        limits = self._reach(0, 9.0), self._reach(1, 9.0)
        return quadrature_entropy(self._log_kernel, self._weights, limits, self._scale)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return minus the log-density."""
        log_weights = self._weights.to(x.device).log()
        blocks = [
            torch.logsumexp(
                self._log_kernel(part[:, 0], 0) + self._log_kernel(part[:, 1], 1) + log_weights, -1
            )
            for part in x.reshape(-1, 2).double().split(max(1, _BLOCK // len(self._weights)))
        ]
        return -torch.cat(blocks).reshape(x.shape[:-1]).to(x.dtype)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        t, branch = draws.uniform(n) ** (1 / self._power), draws.integers(self._branches, n)
        points = self._curve(t, branch) + self._box * (draws.uniform(n, 2) - 0.5)
        return points + t.new_tensor(self._scale) * draws.normal(n, 2)

    def _log_kernel(self, values: Tensor, d: int) -> Tensor:
        """Log of every kernel's factor in coordinate d: values (n,) -> (n, K)."""
        box, scale = self._box, self._scale[d]
        distance = values[:, None] - self._centers[:, d].to(values.device)
        if box == 0:
            return -0.5 * (distance / scale) ** 2 - log(scale * sqrt(2 * pi))
        # By symmetry both arguments can be taken from the lower tail, where log_ndtr is accurate.
        distance = distance.abs()
        upper = torch.special.log_ndtr((box / 2 - distance) / scale)
        lower = torch.special.log_ndtr((-box / 2 - distance) / scale)
        return upper + torch.log1p(-(lower - upper).exp()) - log(box)

    def _reach(self, d: int, deviations: float) -> tuple[float, float]:
        margin = self._box / 2 + deviations * self._scale[d]
        centers = self._centers[:, d]
        return float(centers.min()) - margin, float(centers.max()) + margin


@register
class Sine(NoisedShape):
    r"""A noised sine wave in the plane; its entropy at the standard noise is 4.4796 nats.

    .. math:: x = 4\,(a, \sin 3a + b) + \text{noise}\cdot\varepsilon, \quad
        a \sim U(-2, 2),\ b \sim N(0, 0.25^2),\ \varepsilon \sim N(0, I)

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If the noise is out of its range.

    References:
        Chao et al., "Training energy-based normalizing flow with score-matching objectives",
        arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import Sine
        >>> round(Sine().entropy(), 4)
        4.4796
    """

    def __init__(self, noise: float = 0.375) -> None:
        # The vertical jitter b has standard deviation 1 after the stretch by 4.
        super().__init__(noise, [30.0], jitter=1.0)

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        a = 4 * t - 2
        return 4 * torch.stack([a, torch.sin(3 * a)], -1)


@register
class Swirl(NoisedShape):
    r"""A noised one-armed spiral in the plane; its entropy at the standard noise is 4.1394 nats.

    .. math:: x = \tfrac{2.5}{3}\,(t\cos t - u_1 + 1,\ -t\sin t - u_2 + 2)
        + \text{noise}\cdot\varepsilon, \quad t = 3\pi\sqrt{v},\ v \sim U(0, 1),\
        u_i \sim U(0, \tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If the noise is out of its range.

    References:
        Chao et al., arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import Swirl
        >>> round(Swirl().entropy(), 4)
        4.1394
    """

    def __init__(self, noise: float = 0.375) -> None:
        super().__init__(noise, [2.5 / 3 * _SPIRAL], box=0.5 * 2.5 / 3, power=2)

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        return 2.5 / 3 * (_spiral(t) + t.new_tensor([0.75, 1.75]))


@register
class Checkerboard(NoisedShape):
    r"""Eight noised squares of side 3 in a checkerboard of 4 by 4; the entropy is 4.6840 nats.

    .. math:: x = 3\,(a, c + \lfloor a \rfloor \bmod 2) + \text{noise}\cdot\varepsilon, \quad
        a \sim U(-2, 2),\ c \sim U(0, 1) - 2\,\mathrm{Bernoulli}(\tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If the noise is out of its range.

    References:
        Chao et al., arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import Checkerboard
        >>> round(Checkerboard().entropy(), 4)
        4.684
    """

    def __init__(self, noise: float = 0.375) -> None:
        super().__init__(noise, [0.0] * 8, box=3.0)

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        a, c = branch // 2 - 2, 2 * (branch % 2) - 2
        return 3 * (torch.stack([a, c + a % 2], -1).to(t) + 0.5).expand(*t.shape, 2)


@register
class TwoMoons(NoisedShape):
    r"""Two interleaved noised half circles, as scikit-learn's ``make_moons`` draws them.

    .. math:: x = (\cos t, \sin t) \ \text{or}\ (1 - \cos t, \tfrac12 - \sin t),
        \ \text{plus noise}\cdot\varepsilon, \quad t \sim U(0, \pi)

    Each moon has probability one half.

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If the noise is out of its range.

    Example:
        >>> from flowkit.toys import TwoMoons
        >>> TwoMoons(noise=0.05).entropy() < TwoMoons(noise=0.1).entropy()
        True
    """

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(noise, [pi, pi])

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        x = torch.stack([(pi * t).cos(), (pi * t).sin()], -1)
        return torch.where(branch[..., None] == 1, t.new_tensor([1.0, 0.5]) - x, x)


@register
class TwoSpirals(NoisedShape):
    r"""Two noised spiral arms that wind around each other.

    .. math:: x = \pm\tfrac13\,(-t\cos t + u_1,\ t\sin t + u_2) + \text{noise}\cdot\varepsilon,
        \quad t = 3\pi\sqrt{v},\ v \sim U(0, 1),\ u_i \sim U(0, \tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If the noise is out of its range.

    References:
        Grathwohl et al., "FFJORD", arXiv 1810.01367, whose toy it is.

    Example:
        >>> from flowkit.toys import TwoSpirals
        >>> TwoSpirals().sample(7).shape
        torch.Size([7, 2])
    """

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(noise, [_SPIRAL / 3] * 2, box=0.5 / 3, power=2)

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        return (1 - 2 * branch[..., None]) * (0.25 - _spiral(t)) / 3


@register
class Circles(NoisedShape):
    r"""Concentric noised circles, each with the same share of the points.

    .. math:: x = r\,(\cos t, \sin t) + \text{noise}\cdot\varepsilon, \quad t \sim U(0, 2\pi),\
        r \sim U\{r_1, \dots, r_m\}

    Args:
        radii: Radii of the circles, each above 0.
        noise: Standard deviation of the isotropic noise, at least 0.0001.

    Raises:
        ArgumentError: If there is no radius, a radius is not above 0, or the noise is out of its
            range.

    Example:
        >>> from flowkit.toys import Circles
        >>> circle = Circles(radii=(2.0,), noise=0.1)
        >>> round(float(circle.sample(1000).norm(dim=-1).mean()), 1)
        2.0
    """

    def __init__(
        self, radii: Sequence[float] = (0.75, 1.5, 2.25, 3.0), *, noise: float = 0.1
    ) -> None:
        count = len(checks.as_list(radii) or ())
        if not count:
            raise checks.fail("Circles", "radii", "one or more numbers > 0", radii, "(1.0, 2.0)")
        self.radii = checks.numbers("Circles", "radii", radii, count, above=0)
        super().__init__(noise, [2 * pi * r for r in self.radii])

    def _nodes(self, length: float) -> tuple[Tensor, Tensor]:
        # On a closed curve equally spaced nodes converge exponentially: two per noise width.
        count = ceil(9 + 2 * length / self.noise)
        checks.elements("Circles", count, 16)
        t = torch.linspace(0, 1, count, dtype=torch.float64)[:-1]
        return t, torch.full_like(t, 1 / len(t))

    def _curve(self, t: Tensor, branch: Tensor) -> Tensor:
        circle = torch.stack([(2 * pi * t).cos(), (2 * pi * t).sin()], -1)
        return t.new_tensor(self.radii)[branch].unsqueeze(-1) * circle


#: Length of the arm of a spiral.
_SPIRAL = (3 * pi) ** 2 / 2 + 3 * pi


def _spiral(t: Tensor) -> Tensor:
    t = 3 * pi * t
    return torch.stack([t * t.cos(), -t * t.sin()], -1)
