"""Toy: an energy of which everything is known, to learn and to test with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowkit import checks
from flowkit.energies.base import Energy
from flowkit.errors import NotInvertibleError
from flowkit.numerics.types import Generator
from flowkit.shapes import as_shape

LOG_2PI = math.log(2 * math.pi)


class Draws:
    """Random numbers in float64, from one generator on one device."""

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.generator, self.device = generator, device

    def uniform(self, *size: int) -> Tensor:
        """Numbers from U(0, 1)."""
        return torch.rand(size, generator=self.generator, device=self.device, dtype=torch.float64)

    def normal(self, *size: int) -> Tensor:
        """Numbers from N(0, 1)."""
        return torch.randn(size, generator=self.generator, device=self.device, dtype=torch.float64)

    def integers(self, high: int, *size: int) -> Tensor:
        """Integers from 0 to ``high - 1``."""
        return torch.randint(high, size, generator=self.generator, device=self.device)


class Toy(Energy):
    r"""Base class of toy densities, with an exact sampler and, where known, constant and entropy.

    :math:`p(x) = e^{-u(x)} / Z`. A subclass defines :meth:`energy` and ``_draw(n, draws)``, and
    what it knows of :meth:`log_normalizer` (zero by default) and :meth:`entropy`. Samples have
    the dtype and device of the module: ``toy.double()`` draws in float64.

    Args:
        features: Number of coordinates.

    Example:
        >>> import torch
        >>> from flowkit.toys import TwoMoons
        >>> toy = TwoMoons()
        >>> x = toy.sample(3, torch.Generator().manual_seed(1))
        >>> x.shape, toy.log_prob(x).shape, toy.score(x).shape
        (torch.Size([3, 2]), torch.Size([3]), torch.Size([3, 2]))
    """

    like: Tensor

    def __init__(self, features: int) -> None:
        features = checks.integer(type(self).__name__, "features", features, least=1)
        super().__init__((features,))
        self.register_buffer("like", torch.zeros(()), persistent=False)

    @property
    def features(self) -> int:
        """Number of coordinates."""
        return self.event_shape[0]

    def log_normalizer(self) -> float:
        r"""Return :math:`\log Z`; zero for an energy that is minus a log-density."""
        return 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(*batch,)`` in nats at ``x (*batch, features)``.

        Raises:
            NotInvertibleError: If the normalizing constant is not known.
            ShapeError: If the last dimension of ``x`` is another.
        """
        return -(self.energy(x) + self.log_normalizer())

    def score(self, x: Tensor) -> Tensor:
        r"""Return :math:`\nabla_x \log p(x)`, of the shape of ``x``: the same as the force."""
        return self.force(x)

    def entropy(self) -> float:
        r"""Return the differential entropy :math:`-\int p \log p` in nats.

        No model has a lower expected negative log-likelihood than this on samples of the toy.

        Raises:
            NotInvertibleError: If it is not known.
        """
        raise NotInvertibleError(
            f"the entropy of {type(self).__name__} is not known; remedy: the mean of -log_prob "
            "over samples"
        )

    def sample(self, shape: int | tuple[int, ...] = (), generator: Generator = None) -> Tensor:
        """Draw exact samples ``(*shape, features)``."""
        shape = as_shape(shape)
        if generator is not None:
            remedy = "torch.Generator().manual_seed(0)"
            checks.instance(type(self).__name__, "generator", generator, torch.Generator, remedy)
        points = self._draw(math.prod(shape), Draws(generator, self.like.device))
        return points.reshape(*shape, self.features).to(self.like.dtype)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        """Draw ``n`` points in float64."""
        raise NotImplementedError(f"{type(self).__name__} does not define _draw")


def quadrature_entropy(
    log_kernel: Callable[[Tensor, int], Tensor],
    weights: Tensor,
    limits: Sequence[tuple[float, float]],
    widths: Sequence[float],
) -> float:
    r"""Integrate :math:`-p \log p` of :math:`p = \sum_k w_k \prod_d f_{kd}`, on a line or plane.

    The trapezoidal rule on a grid of a quarter of the width of the kernels converges
    exponentially for smooth densities that vanish at the limits: about eight digits are right.

    Args:
        log_kernel: ``log_kernel(grid (n,), d) -> (n, K)``, the logarithms of :math:`f_{kd}`.
        weights: ``(K,)``, which sum to 1.
        limits: Ends of every coordinate, where the density is next to zero.
        widths: The least standard deviation of the kernels in every coordinate.
    """
    factors, cell = [], 1.0
    for d, ((low, high), width) in enumerate(zip(limits, widths, strict=True)):
        points = int((high - low) / width * 4) + 2
        checks.elements("entropy", points, len(weights))
        grid = torch.linspace(low, high, points, dtype=torch.float64)
        factors.append(log_kernel(grid, d).exp())
        cell *= (high - low) / (points - 1)
    first = factors[0] * weights
    if len(factors) == 1:
        return float(torch.special.entr(first.sum(-1)).sum() * cell)
    # Kernels are products, so the density on rows of the grid is one matrix product.
    blocks = first.split(max(1, 2**22 // len(factors[1])))
    return sum(float(torch.special.entr(b @ factors[1].mT).sum()) for b in blocks) * cell
