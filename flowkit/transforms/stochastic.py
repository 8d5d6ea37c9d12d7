"""Stochastic layers: maps whose log-determinant slot is a log path-probability ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.transforms.base import Transform


class StochasticTransform(Transform):
    r"""A layer that draws: its log-determinant slot holds a log path-probability ratio.

    A subclass defines ``forward`` and ``inverse`` with a ``generator=`` argument; both return
    :math:`\log \tilde q(z \to x) - \log q(x \to z)` of their own direction. A ratio is never
    left out of :meth:`unnormalized`.
    """

    stochastic = True

    def unnormalized(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same as ``forward``."""
        return self(x, context, generator=generator)


class Dequantize(StochasticTransform):
    r"""Counts to the line: :math:`z = x + u`, :math:`u \sim U[0, 1)`; back by rounding down.

    Forward, u has density one; backward the rounding is certain: the log path-probability ratio
    is zero, and the density of a flow behind this layer bounds the probability of a count from
    below (``Flow.log_prob_bound``).

    Args:
        features: Number of features.

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1, for the bound.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Dequantize
        >>> t, counts = Dequantize(2), torch.tensor([[0, 255]])
        >>> z, _ = t(counts, generator=torch.Generator().manual_seed(0))
        >>> t.inverse(z)[0]
        tensor([[  0., 255.]])
    """

    accepts_integers = True

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__((features,))
        # Counts become floats of the dtype that the module is moved to.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add uniform noise."""
        if not x.is_floating_point():
            x = x.to(self.like.dtype)
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        # Rounding must not carry a count into the next one's cell.
        last = torch.nextafter(x + 1, x)
        return torch.minimum(x + noise, last), x.new_zeros(x.shape[:-1])

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Round down."""
        return z.floor(), z.new_zeros(z.shape[:-1])
