"""Gaussian models of samples, chosen by cross-validation: what normalising layers start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FOLDS = 5
# Samples that a choice is made with.
_ROWS = 10_000
# Penalties of a regression on context, relative to its variance; the last leaves the context out.
_RIDGES = (1e-9, 1e-2, 1e-1, math.inf)


def folds_by_value(values: Tensor) -> Tensor:
    """Assign floating-point numbers to folds, equal ones to the same fold.

    A weighted sample may arrive as copies, and no copy may be judged by a model of another.

    Example:
        >>> import torch
        >>> fold = folds_by_value(torch.tensor([0.5, 1.5, 0.5, 2.5]))
        >>> bool(fold[0] == fold[2]), int(fold.max()) < FOLDS
        (True, True)
    """
    return _mixed((values.double() + 0.0).view(torch.int64)) % FOLDS


def folds_by_row(rows: Tensor) -> Tensor:
    """Assign samples ``(n, D)`` to folds, equal ones to the same fold."""
    bits = _mixed((rows.double() + 0.0).contiguous().view(torch.int64))
    places = 2 * torch.arange(rows.shape[1], device=rows.device) + 1
    return _mixed((bits * places).sum(-1)) % FOLDS


def _mixed(bits: Tensor) -> Tensor:
    """Integers at random from others: the finaliser of splitmix64, less its sign."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (bits ^ ((bits >> 31) & ((1 << 33) - 1))) & (2**62 - 1)


def oracle_shrinkage(correlation: Tensor, count: int) -> float:
    """The oracle-approximating weight of the identity: Chen et al. 2010, eq. 23."""
    features = correlation.shape[0]
    squares = float(correlation.square().sum())
    rho = ((1 - 2 / features) * squares + features**2) / (
        (count + 1 - 2 / features) * max(squares - features, 1e-12)
    )
    return min(max(rho, 0.0), 1.0)


def shrinkages(correlation: Tensor, count: int, least: float) -> list[float]:
    """Candidate weights of the identity: (almost) none, the oracle-approximating one, one."""
    return [least, max(least, oracle_shrinkage(correlation, count)), 1.0]


def _correlation(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = rows.mean(0)
    centred = rows - mean
    scale = centred.square().mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    centred = centred / scale
    return mean, scale, centred.mT @ centred / len(rows)


def held_out(train: Tensor, held: Tensor, least: float) -> Tensor:
    """Sums of the log-densities of held-out samples, one per candidate shrinkage.

    A covariance that is not positive definite has ``-inf``.
    """
    mean, scale, correlation = _correlation(train)
    eye = torch.eye(len(scale), dtype=train.dtype, device=train.device)
    centred = (held - mean) / scale
    constant = 0.5 * math.log(2 * math.pi) * len(scale) + float(scale.log().sum())
    sums = []
    for rho in shrinkages(correlation, len(train), least):
        lower, failed = torch.linalg.cholesky_ex((1 - rho) * correlation + rho * eye)
        if int(failed):
            sums.append(-math.inf)
            continue
        noise = torch.linalg.solve_triangular(lower, centred.mT, upper=False)
        log_det = float(lower.diagonal().log().sum()) + constant
        sums.append(-0.5 * float(noise.square().sum()) - len(held) * log_det)
    return torch.tensor(sums, dtype=torch.float64)


def ridge_regression(context: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """Coefficients ``(D, C)`` of standardised features on context; zero for an infinite ridge."""
    count, features = context.shape
    if math.isinf(ridge):
        return rows.new_zeros(rows.shape[1], features)
    centred = context - context.mean(0)
    eye = torch.eye(features, dtype=rows.dtype, device=rows.device)
    level = centred.square().mean().clamp_min(torch.finfo(rows.dtype).tiny)
    matrix = centred.mT @ centred / count + ridge * level * eye
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(centred.mT @ (rows - rows.mean(0)) / count, factor).mT


def choose_gaussian(rows: Tensor, context: Tensor | None, least: float) -> tuple[float, int]:
    """Choose the Gaussian of standardised samples by five-fold cross-validation.

    Args:
        rows: Samples ``(n, D)``.
        context: Their context ``(n, C)``, on which the mean then depends linearly, or ``None``.
        least: The least shrinkage, which stands for the exact covariance.

    Returns:
        The ridge of the regression (infinite without one), and the place of the shrinkage among
        :func:`shrinkages`.
    """
    places = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS), device=rows.device).long()
    rows = rows[places]
    context = None if context is None else context[places]
    fold = folds_by_row(rows if context is None else torch.cat([rows, context], -1))
    ridges = (math.inf,) if context is None else _RIDGES
    sizes = torch.bincount(fold, minlength=FOLDS)
    if len(rows) < 20 or int(sizes.min()) < 1:
        return ridges[min(2, len(ridges) - 1)], 1
    scores = torch.zeros(len(ridges), 3, dtype=torch.float64)
    for j in range(FOLDS):
        held, train = fold == j, fold != j
        for i, ridge in enumerate(ridges):
            left = rows
            if context is not None:
                left = rows - context @ ridge_regression(context[train], rows[train], ridge).mT
            scores[i] += held_out(left[train], left[held], least)
    best = int(scores.argmax())
    return ridges[best // 3], best % 3
