"""Energies whose normalizing constants are known exactly: double well, funnel and ring."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.toys.base import LOG_2PI, Draws, Toy


@register
class DoubleWell(Toy):
    r"""Two wells of different depth along the first coordinate, springs along the others.

    .. math:: u(x) = a x_1 + b x_1^2 + c x_1^4 + \tfrac12 \sum_{i>1} x_i^2

    With the default constants the right well holds 0.84430709 of the mass, the barrier is some
    10 kT high, and :math:`\log Z = 10.293479707` in two dimensions.

    Args:
        features: Number of features.
        a: Tilt.
        b: Curvature at the barrier, over two; negative for two wells.
        c: Quartic coefficient, above 0.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Noé et al. 2019, Boltzmann Generators, arXiv 1812.01729; the constants are those of Wu,
        Köhler and Noé 2020, arXiv 2002.06707.

    Example:
        >>> from flowkit.toys import DoubleWell
        >>> well = DoubleWell()
        >>> round(well.log_normalizer(), 9), round(well.probability_right(), 6)
        (10.293479707, 0.844307)
    """

    def __init__(
        self, features: int = 2, *, a: float = -0.5, b: float = -6.0, c: float = 1.0
    ) -> None:
        super().__init__(features)
        self.a = checks.number("DoubleWell", "a", a)
        self.b = checks.number("DoubleWell", "b", b)
        self.c = checks.number("DoubleWell", "c", c, above=0)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the energy in kT."""
        well, rest = self._well(x[..., 0]), x[..., 1:]
        return well + 0.5 * (rest * rest).sum(-1) if self.features > 1 else well

    def _well(self, first: Any) -> Any:
        return first * (self.a + first * (self.b + self.c * first * first))

    def profile(self, first: np.ndarray) -> np.ndarray:
        r"""Return the exact free energy along :math:`x_1`, :math:`-\log p(x_1)`, in kT.

        Example:
            >>> import numpy as np
            >>> from flowkit.toys import DoubleWell
            >>> DoubleWell().profile(np.array([0.0])).round(4)
            array([9.3745])
        """
        return self._well(np.asarray(first, dtype=np.float64)) + self._line.log_z

    def log_normalizer(self) -> float:
        r"""Return :math:`\log Z`, by quadrature to rounding."""
        return self._line.log_z + 0.5 * LOG_2PI * (self.features - 1)

    def entropy(self) -> float:
        r"""Return :math:`\log Z + E[u]` in nats, by quadrature to rounding."""
        return self._line.log_z + self._line.mean + 0.5 * (LOG_2PI + 1) * (self.features - 1)

    def probability_right(self) -> float:
        """Return the probability of :math:`x_1 > 0`."""
        return 1 - float(self._line.cdf_at(0.0))

    @functools.cached_property
    def _line(self) -> _Tabulated:
        # Half as far again as the outermost extremum, and on to where the quartic is 1000 kT.
        extrema = np.abs(np.roots([4 * self.c, 0.0, 2 * self.b, self.a]))
        reach = 1.5 * extrema.max() + (1000 / self.c) ** 0.25
        x = np.linspace(-reach, reach, 400_001)
        return _Tabulated(x, self._well(x))

    def _draw(self, n: int, draws: Draws) -> Tensor:
        normal = draws.normal(n, self.features)
        normal[:, 0] = self._line.quantile(draws.uniform(n))
        return normal


class _Tabulated:
    r"""The density :math:`g(x) e^{-u(x)} / Z` on a line, by the trapezoidal rule.

    The integrand and all its derivatives vanish at both ends, where this rule is exact.
    """

    def __init__(self, x: np.ndarray, u: np.ndarray, factor: np.ndarray | float = 1.0) -> None:
        mass = factor * np.exp(u.min() - u)
        steps = 0.5 * (mass[1:] + mass[:-1]) * (x[1] - x[0])
        total = steps.sum()
        self.x, self.cdf = x, np.concatenate([[0.0], np.cumsum(steps) / total])
        self.log_z = float(np.log(total) - u.min())
        self.mean = float((mass * u).sum() / mass.sum())

    def cdf_at(self, x: float) -> float:
        """The distribution function."""
        return float(np.interp(x, self.x, self.cdf))

    def quantile(self, p: Tensor) -> Tensor:
        """The inverse of the distribution function, in float64."""
        return torch.as_tensor(np.interp(p.cpu().numpy(), self.cdf, self.x)).to(p.device)


@register
class Funnel(Toy):
    r"""Neal's funnel: :math:`x_1 \sim N(0, s^2)`, and :math:`x_i \sim N(0, e^{x_1})` for the rest.

    Args:
        features: Number of features, at least 2.
        scale: The standard deviation s of the first.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Neal 2003, Slice sampling, Annals of Statistics 31(3), section 8.

    Example:
        >>> import torch
        >>> from flowkit.toys import Funnel
        >>> round(Funnel(3)(torch.zeros(3)).item(), 4)
        3.8554
    """

    def __init__(self, features: int = 10, *, scale: float = 3.0) -> None:
        super().__init__(checks.integer("Funnel", "features", features, least=2))
        self.scale = checks.number("Funnel", "scale", scale, above=0)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return minus the log-density."""
        first, rest = x[..., 0], x[..., 1:]
        n = self.features - 1
        # Short of infinity, which times 0 is NaN; by 1, for exp rounds its argument.
        precision = (-first).clamp(max=math.log(torch.finfo(x.dtype).max) - 1).exp()
        narrow = 0.5 * precision * (rest * rest).sum(-1) + 0.5 * n * first
        constant = math.log(self.scale) + 0.5 * (n + 1) * LOG_2PI
        return 0.5 * (first / self.scale).square() + narrow + constant

    def entropy(self) -> float:
        """Return the entropy in nats, in closed form: the width is 1 in the geometric mean."""
        return math.log(self.scale) + 0.5 * self.features * (LOG_2PI + 1)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        normal = draws.normal(n, self.features)
        first = self.scale * normal[:, :1]
        return torch.cat([first, torch.exp(0.5 * first) * normal[:, 1:]], -1)


@register
class Ring(Toy):
    r"""A circle in the plane, thickened: :math:`u(x) = (|x| - R)^2 / (2 w^2)`.

    .. math:: Z = 2\pi w^2 (a S + e), \quad H = \log Z + \frac{a S + 2 e}{2 (a S + e)}, \quad
              a = \tfrac R w,\ e = e^{-a^2/2},\ S = \sqrt{\pi/2}\,
              (1 + \mathrm{erf} \tfrac{a}{\sqrt2})

    Args:
        radius: R, above 0.
        width: w, above 0.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> from flowkit.toys import Ring
        >>> round(Ring(radius=3.0, width=0.3).log_normalizer(), 6)
        2.651455
    """

    def __init__(self, radius: float = 3.0, width: float = 0.3) -> None:
        super().__init__(2)
        self.radius = checks.number("Ring", "radius", radius, above=0)
        self.width = checks.number("Ring", "width", width, above=0)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the energy in kT."""
        return 0.5 * ((torch.linalg.vector_norm(x, dim=-1) - self.radius) / self.width).square()

    def _terms(self) -> tuple[float, float]:
        """The terms a S and e of the constants."""
        a = self.radius / self.width
        both = math.sqrt(math.pi / 2) * a * (1 + math.erf(a / math.sqrt(2)))
        return both, math.exp(-0.5 * a * a)

    def log_normalizer(self) -> float:
        r"""Return :math:`\log Z` in closed form."""
        return LOG_2PI + 2 * math.log(self.width) + math.log(sum(self._terms()))

    def entropy(self) -> float:
        """Return the entropy in nats, in closed form."""
        both, gaussian = self._terms()
        return self.log_normalizer() + 0.5 * (both + 2 * gaussian) / (both + gaussian)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        reach = 12 * self.width
        r = np.linspace(max(0.0, self.radius - reach), self.radius + reach, 200_001)
        line = _Tabulated(r, 0.5 * ((r - self.radius) / self.width) ** 2, r)
        normal = draws.normal(n, 2)
        direction = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        return direction * line.quantile(draws.uniform(n)).unsqueeze(-1)
