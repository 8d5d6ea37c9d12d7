"""Affine layers that start from data: fixed (Standardize, Whiten) and learned (ActNorm)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.errors import DataError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.covariance import choose_gaussian, ridge_regression, shrinkages
from flowkit.transforms.volume import (
    ConstantVolume,
    at_least_single,
    full_precision,
    solve_events,
)

# From the interquartile range of a normal to its standard deviation.
_NORMAL_RANGE = 1.3489795003921634


def moments(x: Tensor, event_ndim: int, label: str, *, robust: bool = False) -> Mapped:
    """Centre and scale over everything but the first dimension of the event."""
    features = x.shape[-event_ndim]
    rows = x.movedim(-event_ndim, -1).reshape(-1, features).double()
    if rows.shape[0] < 2:
        raise DataError(f"{label} needs at least 2 rows to start from data, got {rows.shape[0]}")
    mean, scale = rows.mean(0), rows.std(0, unbiased=False)
    if robust:
        ordered = rows.sort(0).values
        low, mean, high = (ordered[round(q * (len(rows) - 1))] for q in (0.25, 0.5, 0.75))
        scale = (high - low) / _NORMAL_RANGE
    constant = (~(scale > 1e-10 * mean.abs())).nonzero().flatten().tolist()
    if constant:
        fault, remedy = f"column(s) {constant} are constant, so they have no density", "drop them"
        if robust:
            fault = f"half of column(s) {constant} is one value, so they have no robust scale"
            remedy = "robust=False"
        raise DataError(f"{label}: {fault}; remedy: {remedy}, or add noise to them")
    return mean, scale


@register
class Standardize(ConstantVolume):
    r"""Standardise features, :math:`z = (x - \mu) / \sigma`, with constants set once from data.

    As the first layer of a flow it keeps densities in the user's units, and is saved with the
    flow.

    Args:
        features: Number of features.
        robust: Take the median and the interquartile range (that of a normal is 1.349 standard
            deviations) instead of mean and standard deviation, which heavy tails may not have.

    Raises:
        DataError: From ``initialize``, if a column is constant or there are fewer than two rows.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Standardize
        >>> t = Standardize(1)
        >>> t.initialize(torch.tensor([[10.0], [30.0]]))
        >>> t(torch.tensor([[40.0]]))[0]
        tensor([[2.]])
    """

    elementwise = True
    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, *, robust: bool = False) -> None:
        features = checks.integer("Standardize", "features", features, least=1)
        super().__init__((features,))
        self.robust = checks.flag("Standardize", "robust", robust)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Take centre and scale from data."""
        mean, scale = moments(x, 1, self.label, robust=self.robust)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        return not_positive("scale", self.scale)

    def _log_det(self, x: Tensor) -> Tensor:
        return -self.scale.log().sum()

    def _to_noise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def _to_data(self, z: Tensor) -> Tensor:
        return z * self.scale + self.mean


@register
class Whiten(ConstantVolume):
    r"""Whiten features, :math:`z = L^{-1} (x - \mu - B c)`, by the covariance of the data.

    A flow that begins with it starts as the normal distribution of the data, with context c as a
    linear regression with normal residuals. :math:`L L^T` is the covariance of the data or of the
    residuals with correlations :math:`(1 - \rho) R + \rho I`. Of :math:`\rho = 0` (the data's
    own), the oracle-approximating one, 1 (a diagonal) and some in between, the one with the
    highest log-likelihood in five-fold cross-validation is taken; so is the ridge of the
    regression. The constants are set once by ``initialize``; until then the layer is the
    identity.

    Args:
        features: Number of features D.
        context: Number of context features.

    Raises:
        DataError: From ``initialize``, if a column is constant or there are fewer than two rows.

    References:
        Chen et al. 2010, Shrinkage algorithms for MMSE covariance estimation, arXiv 0907.4698,
        eq. 23, for the shrinkage.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Whiten
        >>> x = torch.randn(1000, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]])
        >>> t = Whiten(2)
        >>> t.initialize(x)
        >>> torch.allclose(t(x)[0].T.cov(), torch.eye(2), atol=0.05)
        True
    """

    mean: Tensor
    whitener: Tensor
    coefficients: Tensor

    def __init__(self, features: int, *, context: int = 0) -> None:
        features = checks.integer("Whiten", "features", features, least=1)
        checks.elements("Whiten", features, features)
        super().__init__((features,), context=context)
        self.elementwise = features == 1
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("whitener", torch.eye(features))
        self.register_buffer("coefficients", torch.zeros(features, self.context_size))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Take mean, regression on the context and covariance from data."""
        mean, scale = moments(x, 1, self.label)
        if self.needs_context:
            x, context = self._prepare(x, context, "x")
        rows = (x.reshape(-1, x.shape[-1]).double() - mean) / scale
        read = context.reshape(-1, self.context_size).double() if self.needs_context else None  # type: ignore[union-attr]
        # Below it, rounding of the data would decide.
        least = max(1e-14, 1e3 * torch.finfo(self.mean.dtype).eps ** 2)
        ridge, place = choose_gaussian(rows, read, least)
        if read is not None:
            slopes = scale.unsqueeze(-1) * ridge_regression(read, rows, ridge)
            self.coefficients.copy_(slopes)
            rows = rows - read @ (slopes / scale.unsqueeze(-1)).mT
            mean = mean + scale * rows.mean(0)
            rows = rows - rows.mean(0)
            left = rows.square().mean(0).sqrt().clamp_min(least**0.5)
            rows, scale = rows / left, scale * left
        correlation = rows.mT @ rows / len(rows)
        rho = float(shrinkages(correlation, len(rows), least)[place])
        eye = torch.eye(len(scale), dtype=rows.dtype, device=rows.device)
        lower, failed = torch.linalg.cholesky_ex((1 - rho) * correlation + rho * eye)
        while int(failed):
            rho = min(1.0, 10 * rho)
            lower, failed = torch.linalg.cholesky_ex((1 - rho) * correlation + rho * eye)
        factor = scale.unsqueeze(-1) * lower
        self.mean.copy_(mean)
        self.whitener.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        if bool(self.whitener.triu(1).any()):
            return "whitener is not lower triangular"
        return not_positive("whitener's diagonal", self.whitener.diagonal())

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise."""
        return super().forward(x - self._regression(x, context), _fits=True)  # type: ignore[call-arg]

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data."""
        x, log_det = super().inverse(z, _fits=True)  # type: ignore[call-arg]
        return x + self._regression(x, context), log_det

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Map data to noise; the log-determinant is not computed."""
        return super().unnormalized(x - self._regression(x, context), _fits=True)  # type: ignore[call-arg]

    def _regression(self, x: Tensor, context: Context) -> Tensor | float:
        """What the context adds to the mean."""
        if not self.needs_context or context is None:
            return 0.0
        with full_precision(x):
            return F.linear(context.to(x.dtype), self.coefficients)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.whitener.diagonal().log().sum()

    def _to_noise(self, x: Tensor) -> Tensor:
        return F.linear(x - self.mean, self.whitener)

    def _to_data(self, z: Tensor) -> Tensor:
        whitener = at_least_single(self.whitener)
        solve = partial(torch.linalg.solve_triangular, whitener, upper=False)
        return solve_events(solve, z) + self.mean


@register
class ActNorm(ConstantVolume):
    r"""Shift and scale each feature or channel by learned constants: :math:`z = (x - b)\, e^{-s}`.

    ``initialize`` sets them so that the first batch leaves with mean 0 and variance 1; until then
    the layer is the identity.

    Args:
        features: Number of features, or of channels.
        event_ndim: 1 for vectors; 3 for images ``(channels, height, width)``.

    References:
        Kingma and Dhariwal 2018, Glow, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> from flowkit.transforms import ActNorm
        >>> ActNorm(3, event_ndim=3)(torch.randn(2, 3, 4, 4))[1].shape
        torch.Size([2])
    """

    elementwise = True

    def __init__(self, features: int, *, event_ndim: int = 1) -> None:
        features = checks.integer("ActNorm", "features", features, least=1)
        event_ndim = checks.integer("ActNorm", "event_ndim", event_ndim, least=1, most=8)
        super().__init__((features, *(None,) * (event_ndim - 1)))
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Take shift and scale from data."""
        mean, scale = moments(x, self.event_ndim, self.label)
        self.shift.copy_(mean)
        self.log_scale.copy_(scale.log())

    def _per_feature(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (self.event_ndim - 1))

    def _log_det(self, x: Tensor) -> Tensor:
        return -self.log_scale.sum() * x.shape[x.ndim - self.event_ndim + 1 :].numel()

    def _to_noise(self, x: Tensor) -> Tensor:
        return (x - self._per_feature(self.shift)) * self._per_feature(torch.exp(-self.log_scale))

    def _to_data(self, z: Tensor) -> Tensor:
        return z * self._per_feature(self.log_scale.exp()) + self._per_feature(self.shift)
