"""Energies whose normalizing constants are known exactly, to learn and to test with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.arrays import as_array
from flowkit.config import register
from flowkit.energies.base import Energy
from flowkit.errors import DataError
from flowkit.shapes import as_shape

_LOG_2PI = math.log(2 * math.pi)


class _Toy(Energy):
    """An energy of constants; samples have the dtype and device that it was moved to."""

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__((features,))
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def sample(
        self, shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact samples ``(*shape, features)``."""
        shape = as_shape(shape)
        size = (*shape, *self.event_shape)
        like: dict[str, Any] = {"dtype": self.like.dtype, "device": self.like.device}
        normal = torch.randn(size, generator=generator, **like)
        uniform = torch.rand(shape, generator=generator, **like)
        return self._arrange(normal, uniform)

    def _arrange(self, normal: Tensor, uniform: Tensor) -> Tensor:
        """A sample from normals, one a coordinate, and a uniform number a row."""
        raise NotImplementedError


@register
class DoubleWell(_Toy):
    r"""Two wells of different depth along the first coordinate, springs along the others.

    .. math:: u(x) = a x_1 + b x_1^2 + c x_1^4 + \tfrac12 \sum_{i>1} x_i^2

    With the default constants the right well holds 0.84430709 of the mass, the barrier is some
    10 kT high, and :math:`\log Z = 10.293479707` in two dimensions.

    Args:
        features: Number of features.
        a: Tilt.
        b: Curvature at the barrier, over two; negative for two wells.
        c: Quartic term, above 0.

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
        self, features: int = 2, a: float = -0.5, b: float = -6.0, c: float = 1.0
    ) -> None:
        _check(type(self).__name__, features=features, a=a, b=b)
        _check_positive(type(self).__name__, c=c)
        super().__init__(features)
        self.a, self.b, self.c = float(a), float(b), float(c)
        self.options = {"features": features, "a": self.a, "b": self.b, "c": self.c}

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy in kT."""
        first = x[..., 0]
        well = first * (self.a + first * (self.b + self.c * first * first))
        if self.event_shape == (1,):
            return well
        rest = x[..., 1:]
        return well + 0.5 * (rest * rest).sum(-1)

    def profile(self, first: np.ndarray) -> np.ndarray:
        r"""The exact free energy along :math:`x_1`: :math:`-\log p(x_1)`, in kT.

        Example:
            >>> import numpy as np
            >>> from flowkit.toys import DoubleWell
            >>> DoubleWell().profile(np.array([0.0])).round(4)
            array([9.3745])
        """
        x = np.asarray(first, dtype=np.float64)
        return x * (self.a + x * (self.b + self.c * x * x)) + self._line()[2]

    def log_normalizer(self) -> float:
        r""":math:`\log Z`, by quadrature to rounding."""
        return self._line()[2] + 0.5 * _LOG_2PI * (self.event_shape[0] - 1)

    def probability_right(self) -> float:
        """The probability of :math:`x_1 > 0`."""
        return 1 - float(np.interp(0.0, *self._line()[:2]))

    def _line(self) -> tuple[np.ndarray, np.ndarray, float]:
        return _tabulate(self.a, self.b, self.c)

    def _arrange(self, normal: Tensor, uniform: Tensor) -> Tensor:
        positions, cdf, _ = self._line()
        first = np.interp(uniform.double().cpu().numpy(), cdf, positions)
        normal[..., 0] = torch.as_tensor(first).to(normal)
        return normal


@functools.lru_cache(maxsize=8)
def _tabulate(a: float, b: float, c: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Positions, distribution function there, and log-normalizer of a quartic well."""
    # Half as far again as the outermost extremum, and on to where the quartic is 1000 kT.
    extrema = np.abs(np.roots([4 * c, 0.0, 2 * b, a]))
    reach = 1.5 * extrema.max() + (1000 / c) ** 0.25
    x = np.linspace(-reach, reach, 400_001)
    u = x * (a + x * (b + c * x * x))
    mass = np.exp(u.min() - u)
    # The integrand and all its derivatives vanish at both ends, where this rule is exact.
    steps = 0.5 * (mass[1:] + mass[:-1]) * (x[1] - x[0])
    total = steps.sum()
    cdf = np.concatenate([[0.0], np.cumsum(steps) / total])
    return x, cdf, float(np.log(total) - u.min())


@register
class GaussianMixture(_Toy):
    r"""The energy of a mixture of round normals, :math:`-\log \sum_k w_k N(x; m_k, s_k^2 I)`.

    Args:
        means: ``(components, features)``.
        scales: Standard deviations, one a component or one for all.
        weights: One a component, in any scale; equal by default.

    Example:
        >>> import torch
        >>> from flowkit.toys import GaussianMixture
        >>> mixture = GaussianMixture.ring(components=8, radius=4.0, scale=0.5)
        >>> mixture.log_normalizer(), mixture.sample(5).shape
        (0.0, torch.Size([5, 2]))
    """

    means: Tensor
    scales: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        scales: float | Sequence[float] = 1.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        # Checked as arrays: files are read by building flows without numbers.
        centres = as_array(means)
        if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
            raise DataError(
                f"GaussianMixture expected means (components, features), got {means!r}"
            )
        count, features = centres.shape
        given = {"scales": scales, "weights": 1.0 if weights is None else weights}
        positive = {}
        for name, values in given.items():
            array = as_array(values)
            if array.shape not in ((), (count,)) or not ((array > 0) & np.isfinite(array)).all():
                raise DataError(
                    f"GaussianMixture expected {name} > 0, one for each of {count} components, "
                    f"got {values!r}"
                )
            positive[name] = np.broadcast_to(array, (count,)).copy()
        super().__init__(features)
        self.options = {
            "means": tuple(map(tuple, centres.tolist())),
            "scales": tuple(positive["scales"].tolist()),
            "weights": tuple(positive["weights"].tolist()),
        }
        shares = positive["weights"] / positive["weights"].sum()
        for name, array in (
            ("means", centres), ("scales", positive["scales"]), ("log_weights", np.log(shares))
        ):  # fmt: skip
            buffer = torch.as_tensor(array, dtype=torch.get_default_dtype())
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def ring(cls, components: int = 8, radius: float = 4.0, scale: float = 0.5) -> GaussianMixture:
        """Equal components around a circle in the plane."""
        angles = 2 * math.pi * np.arange(components) / components
        return cls((radius * np.stack([np.cos(angles), np.sin(angles)], -1)).tolist(), scale)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy in kT."""
        u = (x.unsqueeze(-2) - self.means) / self.scales.unsqueeze(-1)
        features = self.event_shape[0]
        # In whatever dtype: the shares then add up to one.
        shares = torch.log_softmax(self.log_weights, 0)
        heights = shares - features * (self.scales.log() + 0.5 * _LOG_2PI)
        return -torch.logsumexp(heights - 0.5 * (u * u).sum(-1), -1)

    def log_normalizer(self) -> float:
        """Zero: mixtures are normalised."""
        return 0.0

    def _arrange(self, normal: Tensor, uniform: Tensor) -> Tensor:
        which = torch.searchsorted(self.log_weights.exp().cumsum(0), uniform)
        which = which.clamp(max=len(self.scales) - 1)
        return self.means[which] + self.scales[which].unsqueeze(-1) * normal


@register
class Funnel(_Toy):
    r"""Neal's funnel: :math:`x_1 \sim N(0, s^2)`, and :math:`x_i \sim N(0, e^{x_1})` for the rest.

    Args:
        features: Number of features, at least 2.
        scale: The standard deviation s of the first.

    References:
        Neal 2003, Slice sampling, Annals of Statistics 31(3), section 8.

    Example:
        >>> import torch
        >>> from flowkit.toys import Funnel
        >>> round(Funnel(3)(torch.zeros(3)).item(), 4)
        3.8554
    """

    def __init__(self, features: int = 10, scale: float = 3.0) -> None:
        _check(type(self).__name__, least=2, features=features)
        _check_positive(type(self).__name__, scale=scale)
        super().__init__(features)
        self.scale = float(scale)
        self.options = {"features": features, "scale": self.scale}

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy in kT."""
        first, rest = x[..., 0], x[..., 1:]
        n = rest.shape[-1]
        narrow = 0.5 * torch.exp(-first) * (rest * rest).sum(-1) + 0.5 * n * first
        constant = math.log(self.scale) + 0.5 * (n + 1) * _LOG_2PI
        return 0.5 * (first / self.scale).square() + narrow + constant

    def log_normalizer(self) -> float:
        """Zero: the funnel is normalised."""
        return 0.0

    def _arrange(self, normal: Tensor, uniform: Tensor) -> Tensor:
        first = self.scale * normal[..., :1]
        return torch.cat([first, torch.exp(0.5 * first) * normal[..., 1:]], -1)


@register
class Ring(_Toy):
    r"""A circle in the plane, thickened: :math:`u(x) = (|x| - R)^2 / (2 w^2)`.

    .. math:: Z = 2\pi \Big[ w^2 e^{-R^2/2w^2} + \sqrt{\pi/2}\, R w\, (1 + \mathrm{erf}
              \tfrac{R}{\sqrt2 w}) \Big]

    Args:
        radius: R, above 0.
        width: w.

    Example:
        >>> from flowkit.toys import Ring
        >>> round(Ring(radius=3.0, width=0.3).log_normalizer(), 6)
        2.651455
    """

    def __init__(self, radius: float = 3.0, width: float = 0.3) -> None:
        _check_positive(type(self).__name__, radius=radius, width=width)
        super().__init__(2)
        self.radius, self.width = float(radius), float(width)
        self.options = {"radius": self.radius, "width": self.width}

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy in kT."""
        return 0.5 * ((torch.linalg.vector_norm(x, dim=-1) - self.radius) / self.width).square()

    def log_normalizer(self) -> float:
        r""":math:`\log Z` in closed form."""
        ratio = self.radius / self.width
        gaussian = self.width**2 * math.exp(-0.5 * ratio**2)
        both = math.sqrt(math.pi / 2) * self.radius * self.width
        return math.log(2 * math.pi * (gaussian + both * (1 + math.erf(ratio / math.sqrt(2)))))

    def _arrange(self, normal: Tensor, uniform: Tensor) -> Tensor:
        reach = 12 * self.width
        r = np.linspace(max(0.0, self.radius - reach), self.radius + reach, 200_001)
        mass = r * np.exp(-0.5 * ((r - self.radius) / self.width) ** 2)
        cdf = np.concatenate([[0.0], np.cumsum(0.5 * (mass[1:] + mass[:-1]))])
        radius = np.interp(uniform.double().cpu().numpy() * cdf[-1], cdf, r)
        direction = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        return direction * torch.as_tensor(radius).to(normal).unsqueeze(-1)


# By name, for a number of features.
TOYS: dict[str, Callable[[int], Energy]] = {
    "double_well": DoubleWell,
    "funnel": Funnel,
    "mixture": lambda features: GaussianMixture.ring(),
    "ring": lambda features: Ring(),
}


def _check(name: str, least: int = 1, **values: float) -> None:
    for what, value in values.items():
        if what == "features" and (type(value) is not int or value < least):
            raise DataError(
                f"{name} expected features as a whole number >= {least}, got {value!r}"
            )
        if isinstance(value, bool) or not math.isfinite(value):
            raise DataError(f"{name} expected {what} as a finite number, got {value!r}")


def _check_positive(name: str, **values: float) -> None:
    for what, value in values.items():
        if isinstance(value, bool) or not 0 < value < math.inf:
            raise DataError(f"{name} expected {what} as a finite number > 0, got {value!r}")
