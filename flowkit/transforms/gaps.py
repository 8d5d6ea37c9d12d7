"""A layer that brings far clusters of a feature nearer to each other."""

from __future__ import annotations

import torch

from flowkit.config import register
from flowkit.numerics.types import Context
from flowkit.transforms.gaussianize import SplineLayer
from flowkit.transforms.normalize import moments
from flowkit.transforms.quantiles import GAP_KNOTS, shortened


@register
class ShortenGaps(SplineLayer):
    r"""Shorten wide gaps between the values of a feature, which networks cannot resolve.

    Where a feature has values far apart and none between (1,000 from each other, of spread 1),
    a standardised feature has clusters so narrow that splines and networks do not see into them.
    This layer is the identity on each cluster, up to one shift and one scale for all, and a
    monotone spline across the gap, which becomes three times as long as what a hundredth of the
    samples span beside it:

    .. math:: z = \frac{x - s_k - m}{c}, \quad x \text{ in cluster } k.

    A gap counts from ten times that span on, up to four per feature, with at least four samples
    on both sides. Features with such gaps are standardised; all others are left as they are. The
    constants are set once by ``initialize``; until then the layer is the identity.

    Args:
        features: Number of features.

    Raises:
        ArgumentError: If ``features`` is not an integer >= 1.
        DataError: From ``initialize``, if a column is constant or there are fewer than two
            samples.

    Example:
        >>> import torch
        >>> from flowkit.transforms import ShortenGaps
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> x[:500] += 1000
        >>> t = ShortenGaps(1)
        >>> t.initialize(x)
        >>> z = t(x)[0]
        >>> bool(z[:500].std() > 0.1), bool(z[:500].min() > z[500:].max())
        (True, True)
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, GAP_KNOTS)

    @torch.no_grad()
    def initialize(self, x: torch.Tensor, context: Context = None) -> None:
        """Find the gaps."""
        mean, scale = moments(x, 1, self.label)
        rows = (x.reshape(-1, x.shape[-1]).double() - mean) / scale
        eps = torch.finfo(self.slopes.dtype).eps
        fitted = shortened(rows, 8 * eps, (mean / scale).abs())
        known, size = (fitted.number > 0).unsqueeze(-1), scale.unsqueeze(-1)
        line = torch.linspace(-2, 2, GAP_KNOTS, dtype=size.dtype, device=size.device)
        self.knots_x.copy_(torch.where(known, mean.unsqueeze(-1) + size * fitted.x, line))
        self.knots_z.copy_(torch.where(known, fitted.z, line))
        self.slopes.copy_(torch.where(known, fitted.slope / size, 1.0))
        self.count.copy_(fitted.number)
