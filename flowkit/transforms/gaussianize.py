"""A layer that gives every feature a normal distribution, by a spline through its quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform, broadcast_context
from flowkit.transforms.margins import Margins, from_normal, to_normal
from flowkit.transforms.normalize import moments
from flowkit.transforms.quantiles import GAP_KNOTS, fit_margins
from flowkit.transforms.volume import at_least_single, full_precision


class SplineLayer(Transform):
    """A monotone spline per feature, whose constants ``initialize`` sets; the identity before.

    Args:
        features: Number of features.
        size: Number of knots that are stored for each.
    """

    elementwise = True
    knots_x: Tensor
    knots_z: Tensor
    slopes: Tensor
    count: Tensor
    tails: Tensor
    places: Tensor

    def __init__(self, features: int, size: int) -> None:
        features = checks.integer(type(self).__name__, "features", features, least=1)
        super().__init__((features,))
        line = torch.linspace(-2, 2, size).repeat(features, 1)
        self.register_buffer("knots_x", line)
        self.register_buffer("knots_z", line.clone())
        self.register_buffer("slopes", torch.ones_like(line))
        # Of 64 bits are constants, which files may not change.
        self.register_buffer("count", torch.zeros(features, dtype=torch.int32))
        self.register_buffer("tails", torch.zeros(features, 2))
        self.register_buffer("places", torch.arange(features), persistent=False)

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        for name, knots in (("knots_x", self.knots_x), ("knots_z", self.knots_z)):
            places = torch.arange(knots.shape[1] - 1, device=knots.device)
            real = places < (self.count.clamp_min(2) - 1).unsqueeze(-1)
            if bool((real & ~(knots.diff() > 0)).any()):
                return f"{name} do not increase"
        if bool(
            ((self.count < 0) | (self.count > self.knots_x.shape[1]) | (self.count == 1)).any()
        ):
            return f"count is not 0 or between 2 and {self.knots_x.shape[1]}"
        if bool((self.tails < 0).any()):
            return "tails holds numbers below 0"
        return not_positive("slopes", self.slopes)

    def _margins(self, like: Tensor) -> Margins:
        parts = (self.knots_x, self.knots_z, self.slopes)
        knots, z, slopes = (part.to(like.dtype) for part in parts)
        return Margins(knots, z, slopes, self.count.long(), self.tails.to(like.dtype))

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise."""
        with full_precision(x):
            value = at_least_single(x)
            z, log_slope = to_normal(self._margins(value), value, self.places)
            return z.to(x.dtype), log_slope.sum(-1).to(x.dtype)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data."""
        with full_precision(z):
            value = at_least_single(z)
            x, log_slope = from_normal(self._margins(value), value, self.places)
            return x.to(z.dtype), -log_slope.sum(-1).to(z.dtype)


@register
class Gaussianize(SplineLayer):
    r"""Map each feature to a normal by a monotone spline through its quantiles.

    A flow that begins with it starts as independent features with the distributions of the data;
    with :class:`Whiten` behind it, as a Gaussian copula with these margins.

    The spline is rational-quadratic, with knots at the quantiles of equally spaced normal scores
    and slopes that are harmonic means of those beside them. Their number is chosen per feature by
    five-fold cross-validated likelihood; few samples or few different values leave an affine map.
    Wide gaps get knots at both sides. With slope s at the outermost knot, which has the value a,
    and at a distance d from it, the map goes on as

    .. math:: z = \sqrt{a^2 + \frac{2}{\xi}
        \log\Bigl(1 + \xi \bigl(a s d + \tfrac{1}{2} s^2 d^2\bigr)\Bigr)},

    which is the line a + s d, a normal tail, for :math:`\xi = 0`. Where held-out samples clearly
    prefer it, :math:`\xi > 0` makes a power law of tail index :math:`2 / \xi`. If a Gaussian of
    all features fits held-out samples clearly better without the maps of features that are nearly
    linear functions of others or of the context, or without any, these are affine. The constants
    are set once by ``initialize``; until then the layer is the identity.

    Args:
        features: Number of features.
        knots: Largest number of knots of a feature, apart from those at gaps.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: From ``initialize``, if a column is constant or there are fewer than two
            samples.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Gaussianize
        >>> x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).exp()
        >>> t = Gaussianize(1)
        >>> t.initialize(x)
        >>> bool((t(x)[0] - x.log()).abs().mean() < 0.05)
        True
    """

    def __init__(self, features: int, *, knots: int = 40) -> None:
        knots = checks.integer("Gaussianize", "knots", knots, least=4, most=1000)
        super().__init__(features, knots + GAP_KNOTS)
        self.knots = knots

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Fit the splines to data."""
        mean, deviation = moments(x, 1, self.label)
        rows = x.reshape(-1, x.shape[-1]).double()
        centre, scale = _middle(rows, deviation)
        eps = torch.finfo(self.slopes.dtype).eps
        rows, offset = (rows - centre) / scale, (centre / scale).abs()
        read = None if context is None else _read(x, context)
        fitted = fit_margins(rows, self.knots, 8 * eps, offset, read)
        # An affine map has no knots; it is the identity if the feature is standardised already.
        affine = fitted.number == 0
        standard = (mean.abs() < 1e-5) & ((deviation - 1).abs() < 1e-5)
        centre, scale = torch.where(affine, mean, centre), torch.where(affine, deviation, scale)
        line = torch.full_like(fitted.x, 2.0)
        line[:, 0] = -2.0
        flat, size = affine.unsqueeze(-1), scale.unsqueeze(-1)
        self.knots_x.copy_(centre.unsqueeze(-1) + size * torch.where(flat, line, fitted.x))
        self.knots_z.copy_(torch.where(flat, line, fitted.z))
        self.slopes.copy_(torch.where(flat, torch.ones_like(line), fitted.slope) / size)
        self.count.copy_(torch.where(affine, 2 * (~standard).long(), fitted.number))
        self.tails.copy_(torch.where(flat, torch.zeros_like(fitted.shape), fitted.shape))


def _read(x: Tensor, context: Tensor) -> Tensor:
    """One row of context per sample."""
    return broadcast_context(x, context, 1)[1].reshape(-1, context.shape[-1]).double()


def _middle(rows: Tensor, deviation: Tensor) -> Mapped:
    """Median and scale of the middle half of ``rows (n, D)``, of a number of them.

    Outliers may stretch the deviation without end; ties may leave the middle without scale.
    """
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), 10_000)).long()].sort(0).values
    low, centre, high = (some[round(q * (len(some) - 1))] for q in (0.25, 0.5, 0.75))
    return centre, torch.maximum((high - low) / 1.349, 1e-4 * deviation)
