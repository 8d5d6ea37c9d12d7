"""Association of phenotypes with genetic markers, where people are related.

A linear mixed model on plain tensors: it knows no flow, whose noise can be its phenotypes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit.errors import DataError, ShapeError

# Where the independent share is looked for.
_SHARES = (1e-6, 1.0)
_GRID = 25
# Share of a marker's square that covariates must leave.
_LEFT = 1e-12


@dataclass(frozen=True)
class Association:
    """Score tests of M markers; float64.

    Attributes:
        statistic: ``(M,)``, chi-square without an association.
        p_value: ``(M,)``.
        degrees: Degrees of freedom: the number of phenotypes.
        effect: Change of each phenotype a unit of the marker, by generalised least squares with
            the covariance of no association: ``(M,)``, or ``(M, p)`` for phenotypes ``(n, p)``.
        independent: The share of independence of the null model.
    """

    statistic: Tensor
    p_value: Tensor
    degrees: int
    effect: Tensor
    independent: float

    @property
    def genomic_control(self) -> float:
        """Median of the statistics over that of chi-square: about 1 if most markers do nothing."""
        from scipy.stats import chi2

        return float(np.median(self.statistic.numpy()) / chi2.median(self.degrees))

    def adjusted(self) -> Association:
        """The same with statistics divided by the genomic control, where it is above 1.

        References:
            Devlin, Roeder 1999, Biometrics 55(4), 997.
        """
        statistic = self.statistic / max(1.0, self.genomic_control)
        return replace(self, statistic=statistic, p_value=_p_value(statistic, self.degrees))


class LinearMixedModel:
    r"""A linear mixed model of phenotypes Y ``(n, p)``, to test markers one by one.

    .. math:: Y = X B + U, \quad \mathrm{cov}(\mathrm{vec}\, U) = \Sigma \otimes V, \quad
              V = \lambda I + (1 - \lambda) G

    of covariates X with an intercept, and a relationship matrix G, which is decomposed once. The
    share :math:`\lambda` in [1e-6, 1] of independence, the same for all phenotypes, is that of the
    largest restricted likelihood without markers. With

    .. math:: P = V^{-1} - V^{-1} X (X^T V^{-1} X)^{-1} X^T V^{-1}, \quad
              \hat\Sigma = \frac{Y^T P Y}{n - q}, \quad s = Y^T P m

    of a marker m and q columns of X, the statistic of the score test is

    .. math:: \frac{s^T \hat\Sigma^{-1} s}{m^T P m}

    which is chi-square with p degrees of freedom if nothing is associated, for one phenotype
    :math:`(m^T P y)^2 / (\hat\sigma^2\, m^T P m)`. It is the same for any linear map of the
    phenotypes that can be undone.

    Args:
        kinship: G ``(n, n)``, symmetric and positive semi-definite.
        covariates: ``(n, k)``, beside the intercept.

    Raises:
        ShapeError: If kinship or covariates have another shape.
        DataError: If they are not finite, G is not symmetric and positive semi-definite, or
            covariates and intercept are linearly dependent.

    References:
        Kang et al. 2010, Nat. Genet. 42, 348, for one variance ratio for all markers; Zhou and
        Stephens 2014, Nat. Methods 11, 407, for several phenotypes, with a matrix for each of the
        two parts where here is one.

    Example:
        >>> import torch
        >>> from flowkit.dependence import LinearMixedModel
        >>> generator = torch.Generator().manual_seed(0)
        >>> markers = torch.randint(3, (200, 4), generator=generator).double()
        >>> noise = torch.randn(200, generator=generator)
        >>> model = LinearMixedModel(torch.eye(200))
        >>> tests = model.score_test(markers[:, 2] + noise, markers)
        >>> (tests.p_value < 1e-6).tolist()
        [False, False, True, False]
    """

    def __init__(self, kinship: Any, covariates: Any = None) -> None:
        matrix = _finite(kinship, "kinship")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ShapeError(
                f"LinearMixedModel expected a kinship (n, n), got {tuple(matrix.shape)}"
            )
        if not torch.allclose(matrix, matrix.mT, atol=1e-6):
            raise DataError(
                "LinearMixedModel expected a symmetric kinship, got one that differs from its "
                f"transpose by {float((matrix - matrix.mT).abs().max()):.3g}; remedy: "
                "(kinship + kinship.T) / 2"
            )
        self.rows = len(matrix)
        values, self._basis = torch.linalg.eigh((matrix + matrix.mT) / 2)
        if values[0] < -1e-6 * self.rows:
            raise DataError(
                "LinearMixedModel expected a positive semi-definite kinship, got an eigenvalue of "
                f"{float(values[0]):.3g}; remedy: a relationship Z Z^T of standardised markers"
            )
        self._values = values.clamp(min=0)
        columns = [torch.ones(self.rows, 1, dtype=torch.float64)]
        if covariates is not None:
            columns.append(self._table(covariates, "covariates"))
        design = torch.cat(columns, 1)
        # Of unit columns, so that the rank does not depend on their scales.
        scaled = design / design.norm(dim=0).clamp(min=1e-300)
        rank = int(torch.linalg.matrix_rank(scaled))
        if rank < design.shape[1] or rank >= self.rows:
            raise DataError(
                f"LinearMixedModel expected fewer covariates than its {self.rows} rows, and "
                f"linearly independent ones beside the intercept, got {design.shape[1]} columns "
                f"with it, of rank {rank}; remedy: leave out constants and columns that follow "
                "from others"
            )
        self._design = self._basis.mT @ scaled

    def score_test(self, phenotypes: Any, markers: Any, chunk: int = 2000) -> Association:
        r"""Test every marker for an association with the phenotypes.

        A marker that is constant, or that the covariates determine, has the statistic 0, the
        p-value 1 and the effect 0.

        Args:
            phenotypes: ``(n,)``, or ``(n, p)`` for one test of all p together.
            markers: ``(n, M)``, such as doses of an allele.
            chunk: Markers at a time.

        Raises:
            ShapeError: If there are not n rows.
            DataError: If a value is not finite, or phenotypes are linearly dependent.
        """
        y = _finite(phenotypes, "phenotypes")
        table = self._table(y[:, None] if y.ndim == 1 else y, "phenotypes")
        tested = torch.as_tensor(markers).detach()
        if tested.ndim != 2 or len(tested) != self.rows:
            raise ShapeError(
                f"LinearMixedModel expected markers ({self.rows}, M), got {tuple(tested.shape)}"
            )
        # Scales do not matter for the test: taken out here, put back into the effects.
        scale = table.std(0)
        columns, freedom = table.shape[1], self.rows - self._design.shape[1]
        scaled = (table - table.mean(0)) / scale.clamp(min=1e-300)
        turned = self._basis.mT @ scaled
        singular = bool((scale == 0).any()) or columns > freedom
        if singular or int(torch.linalg.matrix_rank(scaled, rtol=1e-10)) < columns:
            raise DataError(
                f"score_test expected at most {freedom} linearly independent phenotypes, got "
                f"{columns} of a lower rank; remedy: leave out constants and columns that follow "
                "from others"
            )
        share = self._best_share(turned)
        root = self._spectrum(share).sqrt().unsqueeze(-1)
        axes = torch.linalg.qr(self._design / root)[0]
        rest = _residual(turned / root, axes)
        factor = torch.linalg.cholesky(rest.mT @ rest / freedom)
        statistics, effects = [], []
        for part in tested.split(chunk, dim=1):
            doses = _finite(part, "markers")
            # The intercept takes the mean out anyhow: less rounding.
            whitened = (self._basis.mT @ (doses - doses.mean(0))) / root
            left = _residual(whitened, axes)
            square = left.square().sum(0)
            seen = square > _LEFT * doses.square().sum(0)
            square = torch.where(seen, square, 1.0)
            score = torch.where(seen, rest.mT @ left, 0.0)
            standard = torch.linalg.solve_triangular(factor, score, upper=False)
            statistics.append(standard.square().sum(0) / square)
            effects.append((score / square).mT * scale)
        empty = torch.zeros(0, columns, dtype=torch.float64)
        statistic = torch.cat([*statistics, empty[:, 0]])
        effect = torch.cat([*effects, empty])
        return Association(
            statistic,
            _p_value(statistic, columns),
            columns,
            effect[:, 0] if y.ndim == 1 else effect,
            share,
        )

    def _spectrum(self, share: float) -> Tensor:
        return share + (1 - share) * self._values

    def _best_share(self, turned: Tensor) -> float:
        """The share of the largest restricted likelihood of rotated phenotypes."""
        from scipy.optimize import minimize_scalar

        columns, freedom = turned.shape[1], self.rows - self._design.shape[1]

        def loss(share: float) -> float:
            spectrum = self._spectrum(share)
            root = spectrum.sqrt().unsqueeze(-1)
            axes, triangle = torch.linalg.qr(self._design / root)
            rest = _residual(turned / root, axes)
            information = 2 * triangle.diagonal().abs().log().sum()
            spread = torch.linalg.slogdet(rest.mT @ rest)[1]
            return float(freedom * spread + columns * (spectrum.log().sum() + information))

        # The likelihood may have several maxima: Brent's method around the best of a grid, whose
        # ends it does not try itself.
        grid = np.linspace(*_SHARES, _GRID)
        values = [loss(share) for share in grid]
        best = int(np.argmin(values))
        around = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
        found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-9})
        return float(found.x) if found.fun < values[best] else float(grid[best])

    def _table(self, values: Any, name: str) -> Tensor:
        table = _finite(values, name)
        if table.ndim != 2 or len(table) != self.rows or not table.shape[1]:
            raise ShapeError(
                f"LinearMixedModel expected {name} ({self.rows}, k), a row of each of the "
                f"{self.rows} in the kinship, got {tuple(table.shape)}"
            )
        return table


def rank_normalised(values: Any) -> Tensor:
    r"""Normal scores of ranks, :math:`\Phi^{-1}\bigl((r - \tfrac38) / (n + \tfrac14)\bigr)`.

    Every column becomes nearly normal, whatever its distribution, but columns are not made jointly
    normal. Ties share the mean of their ranks.

    Args:
        values: ``(n,)`` or ``(n, p)``.

    Returns:
        The same shape, in float64.

    Raises:
        ShapeError: If values have another shape.
        DataError: If one is not finite.

    References:
        Blom 1958, Statistical Estimates and Transformed Beta-Variables; Beasley, Erickson, Allison
        2009, Behav. Genet. 39(5), 580, on what it does and does not do in genetics.

    Example:
        >>> import torch
        >>> from flowkit.dependence import rank_normalised
        >>> rank_normalised(torch.tensor([3.0, 100.0, 5.0])).round(decimals=3)
        tensor([-0.8690,  0.8690,  0.0000], dtype=torch.float64)
    """
    from scipy.stats import norm, rankdata

    table = _finite(values, "values")
    if table.ndim not in (1, 2) or not len(table):
        raise ShapeError(f"rank_normalised expected (n,) or (n, p), got {tuple(table.shape)}")
    ranks = rankdata(table.numpy(), axis=0)
    return torch.from_numpy(norm.ppf((ranks - 0.375) / (len(table) + 0.25)))


def _residual(values: Tensor, axes: Tensor) -> Tensor:
    """What orthonormal columns leave of others."""
    return values - axes @ (axes.mT @ values)


def _p_value(statistic: Tensor, degrees: int) -> Tensor:
    from scipy.stats import chi2

    return torch.from_numpy(np.asarray(chi2.sf(statistic.numpy(), degrees)))


def _finite(values: Any, name: str) -> Tensor:
    """Values in float64 on the CPU, without gradients."""
    tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    bad = ~tensor.isfinite()
    if bool(bad.any()):
        raise DataError(
            f"expected finite {name}, got {int(bad.sum())} values that are not, of "
            f"{tensor.numel()}; remedy: rows with all values, or impute them"
        )
    return tensor
