"""Toy densities that know their own log density and entropy.

:class:`Toy` is the face that all of them share; :class:`NoisedShape` gives it to every planar
shape that is blurred by Gaussian noise. The shapes themselves are in ``shapes.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import log, pi, sqrt
from numbers import Integral

import torch
from torch import Tensor

from flowkit.errors import DataError
from flowkit.numerics.gradients import leaf

# Rows times mixture components held at once by log_prob: 8 MB for each temporary.
_BLOCK = 2**20


class Toy(ABC):
    """A density with a sampler, an exact log density and a known entropy.

    Attributes:
        name: What the toy is called in a table or a legend.
        features: Number d of coordinates.

    Example:
        >>> from flowkit.toys import two_moons
        >>> toy = two_moons()
        >>> toy.sample(3, seed=1).shape, toy.features
        (torch.Size([3, 2]), 2)
    """

    name: str
    features: int

    def sample(self, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw n independent points; the same seed gives the same points in every dtype.

        Args:
            n: Number of points, 0 or more.
            seed: Seed of a private generator; the global random state is left alone.
            dtype: Floating dtype of the result.

        Returns:
            Tensor (n, d).

        Raises:
            DataError: If n is not a whole number of 0 or more.

        Example:
            >>> from flowkit.toys import swirl
            >>> bool((swirl().sample(5, seed=3) == swirl().sample(5, seed=3)).all())
            True
        """
        if not isinstance(n, Integral) or n < 0:
            raise DataError(
                f"{self.name}.sample expected a whole number of points of 0 or more, got {n!r}; "
                "write for example sample(1000)"
            )
        return self._draw(int(n), torch.Generator().manual_seed(seed)).to(dtype)

    def score(self, x: Tensor) -> Tensor:
        r"""Return the exact score of the density, by automatic differentiation.

        .. math:: s(x) = \nabla_x \log p(x)

        Args:
            x: Tensor (..., d).

        Returns:
            Tensor (..., d).

        Raises:
            DataError: If the last dimension of x is not d.

        Example:
            >>> import torch
            >>> from flowkit.toys import checkerboard
            >>> checkerboard().score(torch.zeros(4, 2)).shape
            torch.Size([4, 2])
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = leaf(x)
            (gradient,) = torch.autograd.grad(self.log_prob(x).sum(), x)
        return gradient

    @property
    @abstractmethod
    def entropy(self) -> float:
        r"""Differential entropy :math:`-\int p \log p` in nats.

        No model has a lower expected negative log-likelihood than this on samples of the toy.
        """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x (..., d), shape (...)."""

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points as float64."""

    def _check(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.features or not x.is_floating_point():
            raise DataError(
                f"{self.name}.log_prob expected a floating tensor (..., {self.features}), "
                f"got {x.dtype} {tuple(x.shape)}; give one point per row"
            )


@dataclass(frozen=True, eq=False)
class NoisedShape(Toy):
    r"""A planar shape blurred by Gaussian noise, with the exact density of the blurred points.

    The density is a mixture of K equal kernels at the given centres: in coordinate d a kernel is
    the convolution of a uniform distribution of width :math:`b_d` with :math:`N(0, s_d^2)`,

    .. math:: p(x) = \sum_k w_k \prod_d \frac{1}{b_d}
        \left[\Phi\Big(\frac{x_d - c_{kd} + b_d/2}{s_d}\Big)
            - \Phi\Big(\frac{x_d - c_{kd} - b_d/2}{s_d}\Big)\right],

    and the plain normal density where :math:`b_d = 0`. A curve is a quadrature rule along it:
    nodes as centres, closer together than the noise is wide. That is the integral to seven digits
    wherever samples fall, and to some hundredths of a nat where the density is next to nothing.
    Points are drawn from the continuous shape, never from the nodes.

    Attributes:
        name: What the toy is called.
        noise: Standard deviation of the isotropic noise, in the units of the coordinates.
        draw: Function of (n, generator) that draws n points (n, 2) of the shape without noise.
        centres: Tensor (K, 2).
        weights: Tensor (K,), summing to 1.
        box: Widths :math:`b` of the uniform part, one for each coordinate.
        scale: Standard deviations :math:`s` of the normal part, noise included.

    Example:
        >>> from flowkit.toys import sine
        >>> toy = sine()
        >>> x = toy.sample(2000)
        >>> bool((-toy.log_prob(x).mean() - toy.entropy).abs() < 0.1)
        True
    """

    name: str
    noise: float
    draw: Callable[[int, torch.Generator], Tensor]
    centres: Tensor
    weights: Tensor
    box: tuple[float, float]
    scale: tuple[float, float]
    features: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise < float("inf"):
            raise DataError(
                f"{self.name} expected a finite noise above 0, got {self.noise!r}; without noise "
                "the shape has no density"
            )

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The rectangle ((x low, x high), (y low, y high)) that a figure of the toy should show.

        It reaches four standard deviations of the noise beyond the shape.

        Example:
            >>> from flowkit.toys import eight_gaussians
            >>> eight_gaussians(radius=4.0, noise=0.5).limits[0]
            (-6.0, 6.0)
        """
        return self._reach(0, 4.0), self._reach(1, 4.0)

    @cached_property
    def entropy(self) -> float:
        r"""Differential entropy in nats, by the trapezoidal rule on a grid finer than the noise.

        The rule converges exponentially for smooth densities that vanish at the border: about
        eight digits are right.

        Example:
            >>> from flowkit.toys import swirl
            >>> round(swirl().entropy, 4)
            4.1394
        """
        kernels, cell = [], 1.0
        for d in range(2):
            low, high = self._reach(d, 9.0)
            points = int((high - low) / self.scale[d] * 4) + 2
            grid = torch.linspace(low, high, points, dtype=torch.float64)
            kernels.append(self._log_kernel(grid, d).exp())
            cell *= (high - low) / (points - 1)
        # Kernels are products, so the density on the whole grid is one matrix product.
        density = (kernels[0] * self.weights) @ kernels[1].mT
        return float(torch.special.entr(density).sum() * cell)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log density of the blurred points, computed in float64.

        Args:
            x: Tensor (..., 2).

        Returns:
            Tensor (...) in nats, dtype of x, differentiable in x.

        Raises:
            DataError: If the last dimension of x is not 2 or x is not floating.

        Example:
            >>> import torch
            >>> from flowkit.toys import rings
            >>> toy = rings(radii=(2.0,), noise=0.1)
            >>> on, off = toy.log_prob(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
            >>> bool(on > off)
            True
        """
        self._check(x)
        points = x.reshape(-1, 2).double()
        log_weights = self.weights.to(points.device).log()
        blocks = [
            torch.logsumexp(
                self._log_kernel(rows[:, 0], 0) + self._log_kernel(rows[:, 1], 1) + log_weights, -1
            )
            for rows in points.split(max(1, _BLOCK // len(self.weights)))
        ]
        return torch.cat(blocks).reshape(x.shape[:-1]).to(x.dtype)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        clean = self.draw(n, generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return clean + self.noise * noise

    def _log_kernel(self, values: Tensor, d: int) -> Tensor:
        """Log of every kernel's factor in coordinate d: values (n,) -> (n, K)."""
        centres, box, scale = self.centres[:, d].to(values.device), self.box[d], self.scale[d]
        distance = values[:, None] - centres
        if box == 0:
            return -0.5 * (distance / scale) ** 2 - log(scale * sqrt(2 * pi))
        # By symmetry both arguments can be taken from the lower tail, where log_ndtr is accurate.
        distance = distance.abs()
        upper = torch.special.log_ndtr((box / 2 - distance) / scale)
        lower = torch.special.log_ndtr((-box / 2 - distance) / scale)
        return upper + torch.log1p(-(lower - upper).exp()) - log(box)

    def _reach(self, d: int, deviations: float) -> tuple[float, float]:
        margin = self.box[d] / 2 + deviations * self.scale[d]
        centres = self.centres[:, d]
        return float(centres.min()) - margin, float(centres.max()) + margin
