"""The usual two-dimensional toys, each a shape to draw from and a quadrature rule for its density.

Curves are integrated by Gauss-Legendre panels about five noise widths long.
"""

from collections.abc import Callable, Sequence
from math import ceil, hypot, pi

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import DataError
from flowkit.toys.base import NoisedShape


def sine(noise: float = 0.375) -> NoisedShape:
    r"""Return the noised sine wave.

    .. math:: x = 4\,(a, \sin 3a + b) + \text{noise}\cdot\varepsilon, \quad
        a \sim U(-2, 2),\ b \sim N(0, 0.25^2),\ \varepsilon \sim N(0, I)

    Args:
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy; its entropy at the standard noise is 4.4796 nats.

    Raises:
        DataError: If noise is not above 0.

    References:
        Chao et al., "Training energy-based normalizing flow with score-matching objectives",
        arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import sine
        >>> round(sine().entropy, 4)
        4.4796
    """

    def draw(n: int, generator: torch.Generator) -> Tensor:
        a = 4 * _uniform(n, generator) - 2
        b = 0.25 * torch.randn(n, generator=generator, dtype=torch.float64)
        return 4 * torch.stack([a, torch.sin(3 * a) + b], -1)

    a, weights = _quadrature(np.linspace(-2, 2, _panels(30, noise) + 1))
    centres = 4 * torch.stack([a, torch.sin(3 * a)], -1)
    # The vertical jitter b has standard deviation 1 after the stretch by 4.
    scale = (noise, hypot(noise, 1.0))
    return NoisedShape("sine", noise, draw, centres, weights / 4, (0.0, 0.0), scale)


def swirl(noise: float = 0.375) -> NoisedShape:
    r"""Return the noised one-armed spiral.

    .. math:: x = \tfrac{2.5}{3}\,(t\cos t - u_1 + 1,\ -t\sin t - u_2 + 2)
        + \text{noise}\cdot\varepsilon, \quad t = 3\pi\sqrt{v},\ v \sim U(0, 1),\
        u_i \sim U(0, \tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy; its entropy at the standard noise is 4.1394 nats.

    Raises:
        DataError: If noise is not above 0.

    References:
        Chao et al., arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import swirl
        >>> round(swirl().entropy, 4)
        4.1394
    """

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = 3 * pi * _uniform(n, generator).sqrt()
        jitter = 0.5 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return 2.5 / 3 * (_spiral(t) - jitter + torch.tensor([1.0, 2.0], dtype=torch.float64))

    t, weights = _spiral_quadrature(2.5 / 3, noise)
    middle = torch.tensor([0.75, 1.75], dtype=torch.float64)
    centres = 2.5 / 3 * (_spiral(t) + middle)
    box = 0.5 * 2.5 / 3
    return NoisedShape("swirl", noise, draw, centres, weights, (box, box), (noise, noise))


def checkerboard(noise: float = 0.375) -> NoisedShape:
    r"""Return the noised checkerboard: eight squares of side 3, in every second place of 4 by 4.

    .. math:: x = 3\,(a, c + \lfloor a \rfloor \bmod 2) + \text{noise}\cdot\varepsilon, \quad
        a \sim U(-2, 2),\ c \sim U(0, 1) - 2\,\mathrm{Bernoulli}(\tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy; its entropy at the standard noise is 4.6840 nats.

    Raises:
        DataError: If noise is not above 0.

    References:
        Chao et al., arXiv 2305.15267.

    Example:
        >>> from flowkit.toys import checkerboard
        >>> round(checkerboard().entropy, 4)
        4.684
    """

    def draw(n: int, generator: torch.Generator) -> Tensor:
        a = 4 * _uniform(n, generator) - 2
        c = _uniform(n, generator) - 2 * torch.randint(0, 2, (n,), generator=generator)
        return 3 * torch.stack([a, c + a.floor() % 2], -1)

    squares = [(a + 0.5, c + a % 2 + 0.5) for a in range(-2, 2) for c in (-2, 0)]
    centres = 3 * torch.tensor(squares, dtype=torch.float64)
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    return NoisedShape("checkerboard", noise, draw, centres, weights, (3.0, 3.0), (noise, noise))


def two_moons(noise: float = 0.1) -> NoisedShape:
    r"""Return two interleaved half circles, as scikit-learn's ``make_moons`` draws them.

    .. math:: x = (\cos t, \sin t) \ \text{or}\ (1 - \cos t, \tfrac12 - \sin t),
        \ \text{plus noise}\cdot\varepsilon, \quad t \sim U(0, \pi)

    Each moon has probability one half.

    Args:
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy.

    Raises:
        DataError: If noise is not above 0.

    Example:
        >>> from flowkit.toys import two_moons
        >>> two_moons(noise=0.05).entropy < two_moons(noise=0.1).entropy
        True
    """

    def moons(t: Tensor, inner: Tensor) -> Tensor:
        outer = torch.stack([t.cos(), t.sin()], -1)
        other = torch.stack([1 - t.cos(), 0.5 - t.sin()], -1)
        return torch.where(inner[..., None], other, outer)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = pi * _uniform(n, generator)
        return moons(t, _uniform(n, generator) < 0.5)

    t, weights = _quadrature(np.linspace(0, pi, _panels(pi, noise) + 1))
    inner = torch.arange(2 * len(t)) >= len(t)
    centres = moons(t.repeat(2), inner)
    return _curve("two_moons", noise, draw, centres, weights.repeat(2) / (2 * pi))


def two_spirals(noise: float = 0.1) -> NoisedShape:
    r"""Return two spiral arms that turn around each other.

    .. math:: x = \pm\tfrac13\,(-t\cos t + u_1,\ t\sin t + u_2) + \text{noise}\cdot\varepsilon,
        \quad t = 3\pi\sqrt{v},\ v \sim U(0, 1),\ u_i \sim U(0, \tfrac12)

    Args:
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy.

    Raises:
        DataError: If noise is not above 0.

    References:
        Grathwohl et al., "FFJORD", arXiv 1810.01367, whose toy it is.

    Example:
        >>> from flowkit.toys import two_spirals
        >>> two_spirals().sample(7).shape
        torch.Size([7, 2])
    """

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = 3 * pi * _uniform(n, generator).sqrt()
        jitter = 0.5 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        sign = 1 - 2 * torch.randint(0, 2, (n, 1), generator=generator)
        return sign * (jitter - _spiral(t)) / 3

    t, weights = _spiral_quadrature(1 / 3, noise)
    arm = (0.25 - _spiral(t)) / 3
    centres, weights = torch.cat([arm, -arm]), weights.repeat(2) / 2
    box = 0.5 / 3
    return NoisedShape("two_spirals", noise, draw, centres, weights, (box, box), (noise, noise))


def rings(radii: Sequence[float] = (0.75, 1.5, 2.25, 3.0), noise: float = 0.1) -> NoisedShape:
    r"""Return concentric circles, each with the same share of the points; one radius gives a ring.

    .. math:: x = r\,(\cos t, \sin t) + \text{noise}\cdot\varepsilon, \quad t \sim U(0, 2\pi),\
        r \sim U\{r_1, \dots, r_m\}

    Args:
        radii: Radii of the circles, each above 0.
        noise: Standard deviation of the isotropic noise.

    Returns:
        The toy.

    Raises:
        DataError: If there is no radius, a radius is not above 0, or noise is not above 0.

    Example:
        >>> from flowkit.toys import rings
        >>> ring = rings(radii=(2.0,), noise=0.1)
        >>> round(float(ring.sample(1000).norm(dim=-1).mean()), 1)
        2.0
    """
    if len(radii) == 0 or not all(0 < r < float("inf") for r in radii):
        raise DataError(
            f"rings expected one or more finite radii above 0, got {tuple(radii)!r}; "
            "write for example rings(radii=(1.0, 2.0))"
        )
    lengths = torch.tensor(radii, dtype=torch.float64)

    def circle(t: Tensor) -> Tensor:
        return torch.stack([t.cos(), t.sin()], -1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        r = lengths[torch.randint(0, len(lengths), (n, 1), generator=generator)]
        return r * circle(2 * pi * _uniform(n, generator))

    # On a closed curve equally spaced nodes converge exponentially: two to a noise width will do.
    counts = [8 + ceil(4 * pi * r / noise) if noise > 0 else 8 for r in radii]
    angles = [torch.arange(m, dtype=torch.float64) * (2 * pi / m) for m in counts]
    centres = torch.cat([r * circle(t) for r, t in zip(radii, angles, strict=True)])
    weights = torch.cat(
        [torch.full((m,), 1 / (m * len(counts)), dtype=torch.float64) for m in counts]
    )
    return _curve("rings", noise, draw, centres, weights)


def eight_gaussians(radius: float = 4.0, noise: float = 0.5) -> NoisedShape:
    r"""Return eight equal round Gaussians, evenly spaced on a circle.

    .. math:: p(x) = \tfrac18 \sum_{k=0}^{7} N\big(x;\ r(\cos\tfrac{\pi k}{4},
        \sin\tfrac{\pi k}{4}),\ \text{noise}^2 I\big)

    Args:
        radius: Radius r of the circle.
        noise: Standard deviation of each Gaussian.

    Returns:
        The toy. For Gaussians far apart its entropy tends to ``log(8) + log(2 pi e noise^2)``.

    Raises:
        DataError: If noise is not above 0.

    Example:
        >>> from math import e, log, pi
        >>> from flowkit.toys import eight_gaussians
        >>> toy = eight_gaussians(noise=0.1)
        >>> abs(toy.entropy - log(8 * 2 * pi * e * 0.1**2)) < 1e-6
        True
    """
    angles = torch.arange(8, dtype=torch.float64) * (pi / 4)
    centres = radius * torch.stack([angles.cos(), angles.sin()], -1)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return centres[torch.randint(0, 8, (n,), generator=generator)]

    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    return _curve("eight_gaussians", noise, draw, centres, weights)


def _curve(
    name: str,
    noise: float,
    draw: Callable[[int, torch.Generator], Tensor],
    centres: Tensor,
    weights: Tensor,
) -> NoisedShape:
    """A shape without a uniform part and with the same noise in both directions."""
    return NoisedShape(name, noise, draw, centres, weights, (0.0, 0.0), (noise, noise))


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _spiral(t: Tensor) -> Tensor:
    return torch.stack([t * t.cos(), -t * t.sin()], -1)


def _spiral_quadrature(stretch: float, noise: float) -> tuple[Tensor, Tensor]:
    """Nodes and probabilities of the angle t = 3 pi sqrt(U(0, 1)) of a spiral."""
    # Panels of equal length along the arm, which grows as t^2 / 2, are equal in t^2.
    length = stretch * ((3 * pi) ** 2 / 2 + 3 * pi)
    panels = _panels(length, noise)
    t, weights = _quadrature(3 * pi * np.sqrt(np.linspace(0, 1, panels + 1)))
    return t, weights * 2 * t / (3 * pi) ** 2


def _panels(length: float, noise: float) -> int:
    """Number of panels, each at most five standard deviations long, on a curve of this length."""
    # A noise that is no positive number is refused by NoisedShape, in words.
    return ceil(length / (5 * noise)) + 1 if 0 < noise < float("inf") else 1


def _quadrature(edges: np.ndarray) -> tuple[Tensor, Tensor]:
    """Sixteen Gauss-Legendre nodes and weights in every panel between two edges."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    middle = (edges[1:] + edges[:-1])[:, None] / 2
    return (
        torch.from_numpy((middle + half * nodes).ravel()),
        torch.from_numpy((half * weights).ravel()),
    )
