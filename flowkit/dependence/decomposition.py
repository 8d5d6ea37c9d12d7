"""One decomposition of a relationship matrix, for covariances with any variance proportion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowkit.errors import DataError, ShapeError

_GRID = 25


class Decomposition(nn.Module):
    r"""Eigenvalues and eigenvectors of a relationship matrix G, in float64.

    With :math:`G = Q \Lambda Q^T`, of which zero eigenvalues may be left out,
    :math:`C = \lambda I + (1 - \lambda) G` has the spectrum
    :math:`\lambda + (1 - \lambda) \Lambda`, and :math:`\lambda` outside the columns of Q.

    Args:
        values: ``(k,)`` eigenvalues.
        basis: ``(n, k)`` eigenvectors Q.
    """

    values: Tensor
    basis: Tensor

    def __init__(self, values: Tensor, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("basis", basis)
        self.complete = basis.shape[0] == basis.shape[1]

    @classmethod
    def of_matrix(cls, owner: str, matrix: Any, *, unit_diagonal: bool) -> Decomposition:
        """Decompose a positive semi-definite matrix ``(n, n)``."""
        values, basis = torch.linalg.eigh(symmetric(owner, matrix, unit_diagonal=unit_diagonal))
        if values[0] < -1e-6 * len(values):
            raise DataError(
                f"{owner} expected a positive semi-definite matrix, got an eigenvalue of "
                f"{float(values[0]):.3g}; remedy: Z Z^T of standardised markers Z"
            )
        return cls(values.clamp(min=0), basis)

    @classmethod
    def of_factor(cls, owner: str, factor: Any) -> Decomposition:
        """Decompose :math:`Z Z^T` of Z ``(n, k)``, whose rows are scaled to unit length."""
        wide = finite(owner, "a factor", factor)
        if wide.dim() != 2 or not wide.numel() or not bool((wide.norm(dim=-1) > 0).all()):
            raise DataError(
                f"{owner} expected a factor (n, k) of rows other than zero, got "
                f"{tuple(wide.shape)}"
            )
        unit = wide / wide.norm(dim=-1, keepdim=True)
        basis, roots, _ = torch.linalg.svd(unit, full_matrices=False)
        nonzero = roots > 1e-10 * roots.max()
        return cls(roots[nonzero].square(), basis[:, nonzero])

    def spectrum(self, proportion: Tensor | float) -> Tensor:
        r""":math:`\lambda + (1 - \lambda) \Lambda` ``(k,)``."""
        return proportion + (1 - proportion) * self.values

    def log_det(self, proportion: Tensor) -> Tensor:
        """``log |C|``."""
        missing = len(self.basis) - len(self.values)
        return self.spectrum(proportion).log().sum() + missing * proportion.log()

    def rotate(self, u: Tensor) -> Tensor:
        """``Q^T u``, multiplied from the left: so the product and its gradient are both fast."""
        return (u.mT.contiguous() @ self.basis.to(u.dtype)).mT

    def rotate_back(self, rotated: Tensor) -> Tensor:
        """``Q`` times coordinates along eigenvectors."""
        return self.basis.to(rotated.dtype) @ rotated

    def outside(self, u: Tensor, rotated: Tensor) -> Tensor:
        """``u - Q Q^T u``; exactly zero for all eigenvectors."""
        return torch.zeros_like(u) if self.complete else u - self.rotate_back(rotated)


def finite(owner: str, name: str, values: Any) -> Tensor:
    """Numbers as a tensor of finite float64 without gradients."""
    try:
        tensor = torch.as_tensor(values).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{owner} expected {name} of numbers, got {values!r:.60}") from None
    bad = ~tensor.isfinite()
    if bool(bad.any()):
        raise DataError(
            f"{owner} expected {name} of finite numbers, got {int(bad.sum())} of {tensor.numel()} "
            "that are not; remedy: leave out what is incomplete, or impute it"
        )
    return tensor


def symmetric(owner: str, matrix: Any, *, unit_diagonal: bool) -> Tensor:
    """Check a symmetric matrix ``(n, n)``; float64."""
    wide = finite(owner, "a matrix", matrix)
    if wide.dim() != 2 or wide.shape[0] != wide.shape[1] or not len(wide):
        raise ShapeError(f"{owner} expected a square matrix (n, n), got {tuple(wide.shape)}")
    if not torch.allclose(wide, wide.mT, atol=1e-6):
        raise DataError(
            f"{owner} expected a symmetric matrix, got one that differs from its transpose by "
            f"{float((wide - wide.mT).abs().max()):.3g}; remedy: (matrix + matrix.T) / 2"
        )
    if unit_diagonal:
        check_diagonal(owner, wide.diagonal())
    return (wide + wide.mT) / 2


def check_diagonal(owner: str, diagonal: Tensor) -> None:
    """Refuse a diagonal that is not all ones."""
    if not torch.allclose(diagonal, torch.ones_like(diagonal), atol=1e-4):
        raise DataError(
            f"{owner} expected a unit diagonal, got values from {float(diagonal.min()):.4g} to "
            f"{float(diagonal.max()):.4g}; remedy: divide by the roots of the diagonal, from both "
            "sides"
        )


def minimize(loss: Callable[[float], float], lower: float, upper: float) -> float:
    """The least loss of one number: Brent's method around the best point of a grid.

    A likelihood may have several maxima; the ends of an interval Brent's method does not try.
    """
    from scipy.optimize import minimize_scalar

    grid = np.linspace(lower, upper, _GRID)
    values = [loss(point) for point in grid]
    best = int(np.argmin(values))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    inner = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9})
    return float(inner.x) if inner.fun < values[best] else float(grid[best])
