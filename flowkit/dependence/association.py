"""Association of phenotypes with genetic markers among related individuals.

A linear mixed model on plain tensors; its phenotypes may be the noise of a flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.dependence.decomposition import Decomposition, finite, minimize
from flowkit.errors import DataError, ShapeError

# Where the variance proportion is searched for.
_PROPORTIONS = (1e-6, 1.0)
# Share of a marker's square that covariates must leave.
_LEFT = 1e-12


@dataclass(frozen=True)
class Association:
    """Score tests of M markers; float64.

    Attributes:
        statistic: ``(M,)``, chi-square without an association.
        degrees: Degrees of freedom: the number of phenotypes.
        effect: Change of each phenotype per unit of the marker, by generalised least squares with
            the covariance of no association: ``(M,)``, or ``(M, p)`` for phenotypes ``(n, p)``.
        residual_proportion: The variance proportion of the identity in the null model.
    """

    statistic: Tensor
    degrees: int
    effect: Tensor
    residual_proportion: float

    @property
    def p_value(self) -> Tensor:
        """The probability of such a statistic without an association, ``(M,)``."""
        from scipy.stats import chi2

        return torch.from_numpy(chi2.sf(self.statistic.numpy(), self.degrees))

    @property
    def genomic_control(self) -> float:
        """Median of the statistics over that of chi-square: about 1 without associations."""
        from scipy.stats import chi2

        return float(np.median(self.statistic.numpy()) / chi2.median(self.degrees))

    def adjusted(self) -> Association:
        """The same with statistics divided by the genomic control, where it is above 1.

        References:
            Devlin, Roeder 1999, Biometrics 55(4), 997.
        """
        return replace(self, statistic=self.statistic / max(1.0, self.genomic_control))


@register
class LinearMixedModel:
    r"""A linear mixed model of phenotypes Y ``(n, p)``, which tests genetic markers one by one.

    .. math:: Y = X B + U, \quad \mathrm{cov}(\mathrm{vec}\, U) = \Sigma \otimes V, \quad
              V = \lambda I + (1 - \lambda) G

    of covariates X with an intercept, and a relationship matrix G, which is decomposed once. The
    variance proportion :math:`\lambda` in [1e-6, 1], the same for all phenotypes, maximises the
    restricted likelihood without markers. With

    .. math:: P = V^{-1} - V^{-1} X (X^T V^{-1} X)^{-1} X^T V^{-1}, \quad
              \hat\Sigma = \frac{Y^T P Y}{n - q}, \quad s = Y^T P m

    of a marker m and q columns of X, the statistic of the score test is

    .. math:: \frac{s^T \hat\Sigma^{-1} s}{m^T P m}

    which is chi-square with p degrees of freedom if nothing is associated, for one phenotype
    :math:`(m^T P y)^2 / (\hat\sigma^2\, m^T P m)`. It is the same for any invertible linear map
    of the phenotypes.

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

    def __init__(self, kinship: Any, *, covariates: Any = None) -> None:
        owner = "LinearMixedModel"
        self._relationship = Decomposition.of_matrix(owner, kinship, unit_diagonal=False).cpu()
        self.rows = len(self._relationship.basis)
        design = torch.ones(self.rows, 1, dtype=torch.float64)
        if covariates is not None:
            design = torch.cat([design, self._table(covariates, "covariates")], 1)
        # Of unit columns, so that the rank does not depend on their scales.
        scaled = design / design.norm(dim=0).clamp(min=1e-300)
        rank = int(torch.linalg.matrix_rank(scaled))
        if rank < design.shape[1] or rank >= self.rows:
            raise DataError(
                f"{owner} expected fewer covariates than its {self.rows} observations, and "
                f"linearly independent ones beside the intercept, got {design.shape[1]} columns "
                f"with it, of rank {rank}; remedy: leave out constants and columns that follow "
                "from others"
            )
        self._design = self._relationship.rotate(scaled)
        self._freedom = self.rows - design.shape[1]

    def score_test(self, phenotypes: Any, markers: Any, *, chunk: int = 2000) -> Association:
        r"""Test every marker for an association with the phenotypes.

        A marker that is constant, or that the covariates determine, has the statistic 0, the
        p-value 1 and the effect 0.

        Args:
            phenotypes: ``(n,)``, or ``(n, p)`` for one test of all p together.
            markers: ``(n, M)``, such as doses of an allele.
            chunk: Number of markers computed at a time.

        Raises:
            ArgumentError: If chunk is no integer above 0.
            ShapeError: If there are not n observations.
            DataError: If a value is not finite, or phenotypes are linearly dependent.
        """
        chunk = checks.integer("score_test", "chunk", chunk, least=1)
        y = _finite(phenotypes, "phenotypes")
        tested = torch.as_tensor(markers).detach()
        if tested.ndim != 2 or len(tested) != self.rows:
            raise ShapeError(
                f"LinearMixedModel expected markers ({self.rows}, M), got {tuple(tested.shape)}"
            )
        rotated, scale = self._standardised(
            self._table(y[:, None] if y.ndim == 1 else y, "phenotypes")
        )
        proportion = self._fitted_proportion(rotated)
        root, axes, _, rest = self._whitened(rotated, proportion)
        factor = torch.linalg.cholesky(rest.mT @ rest / self._freedom)

        def test(part: Tensor) -> tuple[Tensor, Tensor]:
            doses = _finite(part, "markers")
            # The intercept takes the mean out anyhow: less rounding.
            whitened = self._relationship.rotate(doses - doses.mean(0)) / root
            left = _residual(whitened, axes)
            square = left.square().sum(0)
            varies = square > _LEFT * doses.square().sum(0)
            square = torch.where(varies, square, 1.0)
            score = torch.where(varies, rest.mT @ left, 0.0)
            standard = torch.linalg.solve_triangular(factor, score, upper=False)
            return standard.square().sum(0) / square, (score / square).mT * scale

        parts = [test(part) for part in tested.split(chunk, dim=1)]
        statistic, effect = (torch.cat(values) for values in zip(*parts, strict=True))
        if y.ndim == 1:
            effect = effect[:, 0]
        return Association(statistic, len(scale), effect, proportion)

    def _standardised(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated phenotypes of unit scale, on which no test depends, and their scales."""
        scale = table.std(0)
        scaled = (table - table.mean(0)) / scale.clamp(min=1e-300)
        columns = table.shape[1]
        singular = bool((scale == 0).any()) or columns > self._freedom
        if singular or int(torch.linalg.matrix_rank(scaled, rtol=1e-10)) < columns:
            raise DataError(
                f"score_test expected at most {self._freedom} linearly independent phenotypes, "
                f"got {columns} of a lower rank; remedy: leave out constants and columns that "
                "follow from others"
            )
        return self._relationship.rotate(scaled), scale

    def _fitted_proportion(self, rotated: Tensor) -> float:
        """The maximum of the restricted likelihood of rotated phenotypes."""

        def loss(proportion: float) -> float:
            root, _, triangle, rest = self._whitened(rotated, proportion)
            log_dets = 2 * (root.log().sum() + triangle.diagonal().abs().log().sum())
            spread = torch.linalg.slogdet(rest.mT @ rest)[1]
            return float(self._freedom * spread + rotated.shape[1] * log_dets)

        return minimize(loss, *_PROPORTIONS)

    def _whitened(self, rotated: Tensor, proportion: float) -> tuple[Tensor, ...]:
        """Standard deviations, QR factors of covariates, what these leave of phenotypes."""
        root = self._relationship.spectrum(proportion).sqrt().unsqueeze(-1)
        axes, triangle = torch.linalg.qr(self._design / root)
        return root, axes, triangle, _residual(rotated / root, axes)

    def _table(self, values: Any, name: str) -> Tensor:
        table = _finite(values, name)
        if table.ndim != 2 or len(table) != self.rows or not table.shape[1]:
            raise ShapeError(
                f"LinearMixedModel expected {name} ({self.rows}, k), one row for each of the "
                f"{self.rows} individuals of the kinship, got {tuple(table.shape)}"
            )
        return table


def rank_normalised(values: Any) -> Tensor:
    r"""Map ranks to normal scores, :math:`\Phi^{-1}\bigl((r - \tfrac38) / (n + \tfrac14)\bigr)`.

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
        2009, Behav. Genet. 39(5), 580, on their use in genetics.

    Example:
        >>> import torch
        >>> from flowkit.dependence import rank_normalised
        >>> rank_normalised(torch.tensor([3.0, 100.0, 5.0])).round(decimals=3)
        tensor([-0.8690,  0.8690,  0.0000], dtype=torch.float64)
    """
    from scipy.stats import norm, rankdata

    table = _finite(values, "values", "rank_normalised")
    if table.ndim not in (1, 2) or not len(table):
        raise ShapeError(f"rank_normalised expected (n,) or (n, p), got {tuple(table.shape)}")
    ranks = rankdata(table.numpy(), axis=0)
    return torch.from_numpy(norm.ppf((ranks - 0.375) / (len(table) + 0.25)))


def _residual(values: Tensor, axes: Tensor) -> Tensor:
    """What orthonormal columns leave of others."""
    return values - axes @ (axes.mT @ values)


def _finite(values: Any, name: str, owner: str = "LinearMixedModel") -> Tensor:
    return finite(owner, name, values).cpu()
