"""Integers to real numbers by uniform noise, as a stochastic layer."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.stochastic.base import StochasticTransform


@register
class Dequantize(StochasticTransform):
    r"""Dequantise integers by uniform noise, :math:`z = x + u`, :math:`u \sim U(-1/2, 1/2)`.

    The inverse rounds. An integer k stands for the cell [k - 1/2, k + 1/2): the convention of
    :func:`flowkit.data.dequantize`. Counts from 0 to n - 1 become numbers in
    (-1/2, n - 1/2). Forward, u has density one; backward the rounding is certain: the log
    path-probability ratio is zero, and the density of a flow behind this layer bounds the
    probability of a count from below (``Flow.log_prob_bound``).

    Args:
        features: Number of features.

    Raises:
        ArgumentError: If ``features`` is no integer above 0.

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1, for the bound.

    Example:
        >>> import torch
        >>> from flowkit.stochastic import Dequantize
        >>> t, counts = Dequantize(2), torch.tensor([[0, 255]])
        >>> z, _ = t(counts, generator=torch.Generator().manual_seed(0))
        >>> t.inverse(z)[0]
        tensor([[  0., 255.]])
    """

    accepts_integers = True

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__((checks.integer("Dequantize", "features", features, least=1),))
        # Counts become floats of the dtype that the module is moved to.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Add uniform noise."""
        if not x.is_floating_point():
            x = x.to(self.like.dtype)
        noise = torch.empty_like(x).uniform_(-0.5, 0.5, generator=generator)
        # Rounding must not carry an integer into the next one's cell.
        here = x.detach()
        low, high = torch.nextafter(here - 0.5, here), torch.nextafter(here + 0.5, here)
        return (x + noise).clamp(low, high), x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Round to the nearest integer."""
        # Adding 0 turns -0 into 0.
        return z.round() + 0.0, z.new_zeros(z.shape[:-1])
