"""Gaussian models of samples, chosen by cross-validation: what normalising layers start from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FOLDS = 5
# Samples that a choice is made with, and features beyond which it would take minutes.
_ROWS, _FEATURES = 10_000, 1_000
# Penalties of a regression on context, relative to its variance; the last leaves the context out.
_SHRINKAGES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
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


def shrinkages(correlation: Tensor, count: int, least: float) -> Tensor:
    """Candidate weights of the identity: from (almost) none to one, the oracle's the first."""
    grid = (*_SHRINKAGES, 1.0)
    weights = [oracle_shrinkage(correlation, count), least, *(max(least, rho) for rho in grid)]
    return correlation.new_tensor(weights).clamp_min(least)


def held_out(train: Tensor, held: Tensor, least: float) -> Tensor:
    """Log-densities of held-out samples, one column per candidate shrinkage."""
    mean, scale = train.mean(0), train.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rows = (train - mean) / scale
    correlation = rows.mT @ rows / len(rows)
    values, vectors = torch.linalg.eigh(correlation)
    rho = shrinkages(correlation, len(rows), least).unsqueeze(-1)
    variance = (1 - rho) * values.clamp_min(0) + rho
    squares = ((held - mean) / scale @ vectors).square()
    constant = 0.5 * math.log(2 * math.pi) * len(scale) + scale.log().sum()
    return -0.5 * (squares @ (1 / variance).mT + variance.log().sum(-1)) - constant


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
        The ridge of the regression (infinite without one), and the place of the shrinkage in
        :func:`shrinkages`.
    """
    places = torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS), device=rows.device).long()
    rows = rows[places]
    context = None if context is None else context[places]
    fold = folds_by_row(rows if context is None else torch.cat([rows, context], -1))
    ridges = (math.inf,) if context is None else _RIDGES
    sizes = torch.bincount(fold, minlength=FOLDS)
    if len(rows) < 20 or rows.shape[1] > _FEATURES or int(sizes.min()) < 1:
        return ridges[min(2, len(ridges) - 1)], 0
    scores = []
    for ridge in ridges:
        total = torch.zeros((), dtype=rows.dtype, device=rows.device)
        for j in range(FOLDS):
            held, train = fold == j, fold != j
            left = rows
            if context is not None:
                left = rows - context @ ridge_regression(context[train], rows[train], ridge).mT
            total = total + held_out(left[train], left[held], least).sum(0)
        scores.append(total)
    best = int(torch.stack(scores).argmax())
    return ridges[best // len(scores[0])], best % len(scores[0])
