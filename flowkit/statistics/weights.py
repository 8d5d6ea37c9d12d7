"""Estimates from importance weights: normalizing constants, expectations, free energies.

All take logarithms of weights and compute in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.errors import DataError, ShapeError
from flowkit.statistics.estimates import Estimate

_FEW = 25


class FreeEnergyProfile(NamedTuple):
    """A free energy along a coordinate, in kT; float64.

    Attributes:
        centers: ``(bins,)``.
        free_energy: ``(bins,)``, infinite where a bin is empty.
        error: Standard errors ``(bins,)``, infinite there.
        edges: ``(bins + 1,)``.
    """

    centers: Tensor
    free_energy: Tensor
    error: Tensor
    edges: Tensor


class SmoothedWeights(NamedTuple):
    """Pareto-smoothed weights.

    Attributes:
        log_weight: ``(n,)``, in the order and scale of those given; float64.
        k_hat: The shape of their tail. Below 0.5 the weights have a finite variance; up to 0.7
            smoothed estimates are still good; above, do not trust them. -inf for equal weights,
            +inf where fewer than five of the tail are more than rounding of the largest.
    """

    log_weight: Tensor
    k_hat: float


def log_partition(log_weight: Tensor, reverse_log_weight: Tensor | None = None) -> Estimate:
    r"""Estimate the log-normalizer of a target from importance weights, with its standard error.

    .. math:: \log Z = \log \frac1n \sum_i w_i

    The error is that of the logarithm to first order, :math:`\mathrm{std}(w) / (\bar w \sqrt n)`;
    it needs independent samples, and weights of a finite variance: see :func:`pareto_smooth`.

    With weights :math:`w'_j` of m paths from samples of the target as well it is Bennett's
    acceptance ratio, the solution, for :math:`M = \log(n / m)` and the logistic function s, of

    .. math:: \sum_i s(\log w_i - \log Z - M) = \sum_j s(\log Z + M - \log w'_j),

    the estimate of the least variance among those that use both. The standard error is the
    asymptotic one. It lies between the means of the two log-weights in expectation.

    Args:
        log_weight: ``(n,)`` of :meth:`flowkit.Flow.sample_with_log_weight`; -inf is a weight of
            zero.
        reverse_log_weight: ``(m,)`` of :meth:`flowkit.Flow.reverse_log_weight`.

    Raises:
        DataError: If there are no weights, one is NaN or infinite, or all are zero.

    References:
        Bennett 1976, J. Comput. Phys. 22, 245; Shirts et al. 2003, Phys. Rev. Lett. 91, 140601,
        for the maximum-likelihood form and its variance.

    Example:
        >>> import torch
        >>> from flowkit.statistics import log_partition
        >>> value, error = log_partition(torch.tensor([0.0, 0.0, 0.0, 0.0]))
        >>> value.item(), error.item()
        (0.0, 0.0)
        >>> same = torch.full((10,), 2.5)
        >>> round(log_partition(same, same).value.item(), 9)
        2.5
    """
    log_w = _checked(log_weight)
    if reverse_log_weight is not None:
        # A path back that the flow cannot make has an infinite weight, and adds nothing.
        return _of_both_directions(log_w, -_checked(-reverse_log_weight))
    n = len(log_w)
    value = torch.logsumexp(log_w, 0) - math.log(n)
    ratio = torch.exp(log_w - value)
    error = (ratio - 1).square().mean().sqrt() / math.sqrt(n - 1) if n > 1 else value + math.inf
    return Estimate(value, error)


def _of_both_directions(forward: Tensor, reverse: Tensor) -> Estimate:
    """Bennett's acceptance ratio."""
    from scipy.optimize import brentq

    n, m = len(forward), len(reverse)
    offset = math.log(n / m)

    def difference(log_z: float) -> float:
        ahead = torch.sigmoid(forward - log_z - offset).sum()
        back = torch.sigmoid(log_z + offset - reverse).sum()
        return float(ahead - back)

    both = torch.cat([forward, reverse])
    finite, margin = both[both.isfinite()], 50 + abs(offset)
    ends = float(finite.min()) - margin, float(finite.max()) + margin
    log_z = brentq(difference, *ends, xtol=1e-12, rtol=8.9e-16)
    # Fermi functions of the pooled work: Shirts et al., equation 9.
    pooled = both - log_z - offset
    variance = 1 / (pooled.sigmoid() * (-pooled).sigmoid()).sum() - 1 / n - 1 / m
    value = torch.as_tensor(log_z, dtype=torch.float64)
    return Estimate(value, variance.clamp(min=0).sqrt())


def effective_sample_size(log_weight: Tensor) -> Tensor:
    r"""Compute Kish's effective sample size of importance weights, between 1 and n.

    .. math:: (\sum_i w_i)^2 / \sum_i w_i^2

    Args:
        log_weight: ``(n,)``.

    Raises:
        DataError: If there are no weights, one is NaN or infinite, or all are zero.

    Example:
        >>> import torch
        >>> from flowkit.statistics import effective_sample_size
        >>> round(effective_sample_size(torch.tensor([2.0, 2.0, -1e9])).item(), 6)
        2.0
    """
    log_w = _checked(log_weight)
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))


def reweighted_mean(values: Tensor, log_weight: Tensor) -> Estimate:
    r"""Estimate a mean under the target from weighted samples, with its standard error.

    .. math:: \sum_i w_i f_i / \sum_i w_i

    The error is that of the ratio to first order,
    :math:`\sqrt{\sum_i w_i^2 (f_i - \bar f)^2} / \sum_i w_i`, for independent samples.

    Args:
        values: ``(n, *shape)``.
        log_weight: ``(n,)``.

    Returns:
        Two tensors ``(*shape,)``.

    Raises:
        DataError: If there are no weights, one is NaN or infinite, or all are zero.
        ShapeError: If there are more or fewer values than weights.

    References:
        Owen 2013, Monte Carlo theory, methods and examples, section 9.2.

    Example:
        >>> import torch
        >>> from flowkit.statistics import reweighted_mean
        >>> reweighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([0.0, -1e9])).value.item()
        1.0
    """
    log_w = _checked(log_weight)
    if values.shape[:1] != log_w.shape:
        raise ShapeError(
            f"reweighted_mean expected {len(log_w)} values, one per weight, got "
            f"{tuple(values.shape)}"
        )
    share = torch.softmax(log_w, 0).reshape(-1, *(1,) * (values.ndim - 1))
    # A weight of zero takes its value out, whatever it is.
    inside = share > 0
    exact = torch.where(inside, values.detach().to(log_w), 0.0)
    mean = (share * exact).sum(0)
    spread = torch.where(inside, share * (exact - mean), 0.0)
    error = spread.square().sum(0).sqrt()
    return Estimate(mean, error if len(log_w) > 1 else torch.full_like(error, math.inf))


def free_energy_profile(
    coordinate: Tensor,
    log_weight: Tensor | None = None,
    *,
    bins: int = 50,
    limits: tuple[float, float] | None = None,
) -> FreeEnergyProfile:
    r"""Estimate the free energy along a coordinate, :math:`F(b) = -\log p(b)`, in kT.

    The density :math:`p(b)` is the weight in bin b as a fraction of the whole, over its width: two
    profiles can be compared as they are. The error is that of a weighted fraction to first order,
    :math:`\sqrt{\sum_i w_i^2 (1_{i \in b} - P_b)^2} / (P_b \sum_i w_i)`; for a bin with few
    samples, and without any, it says little.

    Args:
        coordinate: ``(n,)``.
        log_weight: ``(n,)``; equal weights by default.
        bins: Number of bins.
        limits: The outer edges; by default the range of the coordinate where the weight is not 0.

    Raises:
        ArgumentError: If there are no bins or the limits are not in order.
        DataError: If weights are missing, NaN or infinite, or all zero.
        ShapeError: If coordinate and weights differ in shape.

    Example:
        >>> import torch
        >>> from flowkit.statistics import free_energy_profile
        >>> x = torch.tensor([0.1, 0.2, 0.3, 0.9])
        >>> free_energy_profile(x, bins=2, limits=(0.0, 1.0)).free_energy.round(decimals=4)
        tensor([-0.4055,  0.6931], dtype=torch.float64)
    """
    log_weight = torch.zeros_like(coordinate) if log_weight is None else log_weight
    log_w = _checked(log_weight)
    if coordinate.shape != log_w.shape:
        raise ShapeError(
            f"free_energy_profile expected coordinate and log_weight (n,), got "
            f"{tuple(coordinate.shape)} and {tuple(log_w.shape)}"
        )
    checks.integer("free_energy_profile", "bins", bins, least=1)
    share = torch.softmax(log_w, 0).cpu().numpy()
    x = coordinate.detach().double().cpu().numpy()
    if limits is None:
        limits = (float(x[share > 0].min()), float(x[share > 0].max()))
    low, high = checks.numbers("free_energy_profile", "limits", limits, 2)
    if not low < high:
        raise checks.fail("free_energy_profile", "limits", "(lower, upper) in order", limits)
    mass, edges = np.histogram(x, bins, (low, high), weights=share)
    squares, _ = np.histogram(x, bins, (low, high), weights=share**2)
    total = np.square(share).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        free_energy = -np.log(mass / np.diff(edges))
        variance = ((1 - 2 * mass) * squares + mass**2 * total) / mass**2
    error = np.where(mass > 0, np.sqrt(np.maximum(variance, 0)), np.inf)
    centers = 0.5 * (edges[1:] + edges[:-1])
    return FreeEnergyProfile(*map(torch.as_tensor, (centers, free_energy, error, edges)))


def pareto_smooth(log_weight: Tensor) -> SmoothedWeights:
    r"""Smooth importance weights by a Pareto tail, whose shape k-hat tells if they can be trusted.

    The largest :math:`\min(n / 5, 3 \sqrt n)` weights are replaced by the expected order
    statistics of a generalised Pareto distribution fitted to them, and cut at the largest raw one.

    Args:
        log_weight: ``(n,)``.

    Raises:
        DataError: If weights are missing, NaN or infinite, or all zero; if there are fewer than 25
            that are not zero, whose tail cannot be fitted.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto Smoothed Importance Sampling, J. Mach.
        Learn. Res. 25(72), arXiv 1507.02646; the fit is that of Zhang and Stephens 2009,
        Technometrics 51(3), 316, as Pyro has it.

    Example:
        >>> import torch
        >>> from flowkit.statistics import pareto_smooth
        >>> generator = torch.Generator().manual_seed(0)
        >>> tail = -torch.rand(20_000, generator=generator).log()
        >>> bool(abs(pareto_smooth(0.4 * tail).k_hat - 0.4) < 0.15)
        True
    """
    from pyro.ops.stats import fit_generalized_pareto

    log_w = _checked(log_weight)
    n = int(log_w.isfinite().sum())
    if n < _FEW:
        raise DataError(
            f"pareto_smooth expected at least {_FEW} weights above zero, got {n}; remedy: more "
            "samples"
        )
    tail = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    order = torch.argsort(log_w)
    top, largest = order[-tail:], log_w[order[-1]]
    cut = log_w[order[-tail - 1]]
    if bool(cut == largest):
        return SmoothedWeights(log_w, -math.inf)  # equal weights have no tail
    threshold = torch.exp(cut - largest)
    excess = torch.exp(log_w[top] - largest) - threshold
    excess = excess[excess > 0]
    if len(excess) < 5:
        return SmoothedWeights(log_w, math.inf)  # a few weights are everything
    top, tail = order[-len(excess) :], len(excess)
    k, sigma = fit_generalized_pareto(excess.cpu())
    k, sigma = float(k), float(sigma)
    quantile = (torch.arange(tail, dtype=torch.float64) + 0.5) / tail
    stretched = torch.expm1(-k * torch.log1p(-quantile)) / k if k else -torch.log1p(-quantile)
    smoothed = torch.log(threshold + sigma * stretched.to(threshold)).clamp(max=0.0) + largest
    log_w = log_w.clone()
    log_w[top] = smoothed
    return SmoothedWeights(log_w, k)


def _checked(log_weight: Any) -> Tensor:
    """Log weights as a vector in float64, without gradients."""
    if not isinstance(log_weight, Tensor) or log_weight.ndim != 1 or not len(log_weight):
        got = tuple(log_weight.shape) if isinstance(log_weight, Tensor) else log_weight
        raise DataError(
            f"expected log weights (n,) with n >= 1, got {got!r}; remedy: log_weight.flatten() "
            "for samples of one target"
        )
    log_w = log_weight.detach().double()
    bad = log_w.isnan() | (log_w == torch.inf)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DataError(
            f"expected log weights below infinity, got {log_w[row].item()} at index {row} "
            f"({int(bad.sum())} of {len(log_w)} weights); remedy: an energy without NaN, and "
            "samples where the base has density"
        )
    if not bool(log_w.isfinite().any()):
        raise DataError(
            "all weights are zero: no sample reached where the target has density; remedy: "
            "another base, or more stochastic layers"
        )
    return log_w
