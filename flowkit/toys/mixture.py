"""Mixtures of round normal distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.arrays import as_array
from flowkit.config import register
from flowkit.numerics.noise import choose
from flowkit.toys.base import LOG_2PI, Draws, Toy, quadrature_entropy


@register
class GaussianMixture(Toy):
    r"""The energy of a mixture of round normals, :math:`-\log \sum_k w_k N(x; m_k, s_k^2 I)`.

    Args:
        means: ``(components, features)``.
        scales: Standard deviations, one per component or one for all.
        weights: One per component, in any scale; equal by default.

    Raises:
        ArgumentError: If the means are no table of finite numbers, or a scale or weight is not a
            finite number above 0.

    Example:
        >>> import torch
        >>> from flowkit.toys import GaussianMixture
        >>> mixture = GaussianMixture.ring(components=8, radius=4.0, scale=0.5)
        >>> mixture.log_normalizer(), mixture.sample(5).shape, round(mixture.entropy(), 4)
        (0.0, torch.Size([5, 2]), 3.5247)
    """

    means: Tensor
    scales: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        scales: float | Sequence[float] = 1.0,
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        # Checked as arrays: files are read by building flows without numbers.
        centers = as_array(means)
        if centers.ndim != 2 or not centers.size or not np.isfinite(centers).all():
            expected = "finite numbers (components, features)"
            raise checks.fail("GaussianMixture", "means", expected, means)
        count, features = centers.shape
        widths = checks.numbers("GaussianMixture", "scales", scales, count, above=0)
        given = 1.0 if weights is None else weights
        shares = np.array(checks.numbers("GaussianMixture", "weights", given, count, above=0))
        super().__init__(features)
        for name, array in (
            ("means", centers), ("scales", widths), ("log_weights", np.log(shares / shares.sum()))
        ):  # fmt: skip
            buffer = torch.as_tensor(array, dtype=torch.get_default_dtype())
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def ring(
        cls, *, components: int = 8, radius: float = 4.0, scale: float = 0.5
    ) -> GaussianMixture:
        """Make equal components around a circle in the plane; by default the "eight Gaussians".

        Raises:
            ArgumentError: If an argument is out of its range.
        """
        count = checks.integer("GaussianMixture.ring", "components", components, least=1)
        radius = checks.number("GaussianMixture.ring", "radius", radius)
        checks.elements("GaussianMixture.ring", count, 64)  # a list of two numbers each
        angles = 2 * math.pi * np.arange(count) / count
        return cls((radius * np.stack([np.cos(angles), np.sin(angles)], -1)).tolist(), scale)

    @property
    def _log_shares(self) -> Tensor:
        # In whatever dtype: the shares then add up to one.
        return torch.log_softmax(self.log_weights, 0)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return minus the log-density."""
        u = (x.unsqueeze(-2) - self.means) / self.scales.unsqueeze(-1)
        heights = self._log_shares - self.features * (self.scales.log() + 0.5 * LOG_2PI)
        return -torch.logsumexp(heights - 0.5 * (u * u).sum(-1), -1)

    def entropy(self) -> float:
        """Return the entropy in nats: of one component, or by quadrature on a line or plane."""
        scales, means = self.scales.double().cpu(), self.means.double().cpu()
        if len(scales) == 1:
            return self.features * (0.5 * (1 + LOG_2PI) + math.log(float(scales)))
        if self.features > 2:
            return super().entropy()

        def log_kernel(grid: Tensor, d: int) -> Tensor:
            u = (grid[:, None] - means[:, d]) / scales
            return -0.5 * u * u - scales.log() - 0.5 * LOG_2PI

        low, high = (means - 9 * scales[:, None]).amin(0), (means + 9 * scales[:, None]).amax(0)
        limits = list(zip(low.tolist(), high.tolist(), strict=True))
        weights = self._log_shares.double().cpu().exp()
        widths = [float(scales.min())] * self.features
        return quadrature_entropy(log_kernel, weights, limits, widths)

    def _draw(self, n: int, draws: Draws) -> Tensor:
        which = choose(self.log_weights.double().exp(), draws.uniform(n))
        scales = self.scales.double()[which].unsqueeze(-1)
        return self.means.double()[which] + scales * draws.normal(n, self.features)
