"""Light and heavy margins joined by a normal copula, with the exact density and entropy."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowkit.datasets.toy import Toy
from flowkit.errors import DataError

# Widest margin of the quadratures and tables, in scales of its widest component.
_REACH = {"normal": 12.0, "t": 1e9}
_POINTS = 40_001


class _Margin:
    """A mixture of normals, or of Student-t distributions of one number of degrees of freedom."""

    def __init__(self, places: np.ndarray, scales: np.ndarray, df: float | None) -> None:
        from scipy import stats

        self.places, self.scales, self.df = places, scales, df
        self.law = stats.norm if df is None else stats.t(df)
        reach = _REACH["normal" if df is None else "t"] * scales.max()
        # Steps that grow with the distance, for tails of any length.
        side = np.sinh(np.linspace(-1, 1, _POINTS) * np.arcsinh(reach))
        self.grid = places.mean() + side

    def _mean(self, values: np.ndarray) -> np.ndarray:
        average: np.ndarray = values.mean(-1)
        return average

    def _standard(self, x: np.ndarray) -> np.ndarray:
        return (x[..., None] - self.places) / self.scales

    def pdf(self, x: np.ndarray) -> np.ndarray:
        """Density."""
        return self._mean(self.law.pdf(self._standard(x)) / self.scales)

    def log_slope(self, x: np.ndarray) -> np.ndarray:
        """Derivative of the logarithm of the density."""
        z = self._standard(x)
        each = -z if self.df is None else -(self.df + 1) * z / (self.df + z**2)
        shares = self.law.pdf(z) / self.scales
        return self._mean(shares * each / self.scales) / self._mean(shares)

    def normal_score(self, x: np.ndarray) -> np.ndarray:
        """The standard normal number with as much below it; from the nearer tail."""
        from scipy import special

        z = self._standard(x)
        below, above = self._mean(self.law.cdf(z)), self._mean(self.law.sf(z))
        score: np.ndarray = np.where(below < above, special.ndtri(below), -special.ndtri(above))
        return score

    @cached_property
    def table(self) -> np.ndarray:
        """Normal scores of the grid."""
        return self.normal_score(self.grid)

    def from_normal(self, s: np.ndarray) -> np.ndarray:
        """Undo ``normal_score``: by the table, and Newton steps."""
        inside = np.isfinite(self.table)
        x = np.interp(s, self.table[inside], self.grid[inside])
        for _ in range(4):
            density = np.exp(-0.5 * s**2) / np.sqrt(2 * np.pi)
            x = x - (self.normal_score(x) - s) * density / np.maximum(self.pdf(x), 1e-300)
        return x

    @cached_property
    def entropy(self) -> float:
        p = self.pdf(self.grid)
        values = -p * np.log(np.maximum(p, 1e-300))
        return float(np.sum(0.5 * (values[1:] + values[:-1]) * np.diff(self.grid)))


class HeavyCopula(Toy):
    r"""Margins of normal mixtures and heavy-tailed t mixtures under a normal copula.

    With :math:`s_i = \Phi^{-1}(F_i(x_i))` and the correlation matrix R,

    .. math:: \log p(x) = \sum_i \log p_i(x_i) - \tfrac12 \log|R|
              - \tfrac12 s^T (R^{-1} - I)\, s .

    The last ``heavy`` features are mixtures of two t distributions, all others mixtures of one to
    three normals. Places are drawn from U(-4, 4), scales from U(1, 2), and 2D pairs, drawn with
    replacement, are correlated by 0.25.

    Args:
        features: Number of features D.
        heavy: Number of heavy-tailed features.
        df: Their degrees of freedom, which are their tail index; above 0.
        seed: Seed of places, scales and correlations.

    Raises:
        DataError: If an argument is out of its range.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311, section 5, for the design.

    Example:
        >>> from flowkit.datasets import HeavyCopula
        >>> toy = HeavyCopula(8, heavy=4, df=2.0)
        >>> x = toy.sample(2000)
        >>> bool((-toy.log_prob(x).mean() - toy.entropy).abs() < 0.5)
        True
    """

    name = "heavy_copula"

    def __init__(self, features: int = 8, heavy: int = 1, df: float = 2.0, seed: int = 0) -> None:
        whole = all(type(n) is int for n in (features, heavy, seed))
        if not whole or features < 2 or not 0 <= heavy <= features or seed < 0 or not df > 0:
            raise DataError(
                "HeavyCopula expected features >= 2, heavy from 0 to features, df > 0 and seed >= "
                f"0; got {features!r}, {heavy!r}, {df!r} and {seed!r}"
            )
        self.features, self.heavy, self.df = features, heavy, float(df)
        rng = np.random.default_rng(seed)
        counts = [1] * (features // 4) + [2] * (features // 8) + [3] * (features // 8)
        counts = [*counts, *[2] * features][: features - heavy] + [2] * heavy
        self._margins = [
            _Margin(
                rng.uniform(-4, 4, count),
                rng.uniform(1, 2, count),
                self.df if i >= features - heavy else None,
            )
            for i, count in enumerate(counts)
        ]
        matrix = np.eye(features)
        for _ in range(2 * features):
            j, k = rng.choice(features, 2, replace=False)
            matrix[j, k] = matrix[k, j] = 0.25
        # The nearest of its kind by its eigenvalues, where it is not positive definite.
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 0.05)) @ vectors.T
        scale = np.sqrt(np.diag(matrix))
        self.correlation = matrix / np.outer(scale, scale)

    @property
    def tails(self) -> list[float | None]:
        """The tail index of each feature, ``None`` where it is light."""
        light = self.features - self.heavy
        return [None] * light + [self.df] * self.heavy

    @cached_property
    def entropy(self) -> float:
        r"""The sum of the margins' entropies and :math:`\frac12 \log|R|`."""
        half = 0.5 * np.linalg.slogdet(self.correlation)[1]
        return float(sum(m.entropy for m in self._margins) + half)

    def _columns(self, x: Tensor) -> np.ndarray:
        self._check(x)
        return x.detach().cpu().double().numpy()

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density; by NumPy, without a graph (:meth:`score` has the gradient).

        Args:
            x: Tensor (..., features).

        Returns:
            Tensor (...) in nats.

        Raises:
            DataError: If the last dimension of x is not the number of features.

        Example:
            >>> import torch
            >>> from flowkit.datasets import HeavyCopula
            >>> HeavyCopula(4).log_prob(torch.zeros(5, 4)).shape
            torch.Size([5])
        """
        rows = self._columns(x)
        pairs = [(m.pdf(rows[..., i]), m.normal_score(rows[..., i]))
                 for i, m in enumerate(self._margins)]  # fmt: skip
        s = np.stack([score for _, score in pairs], -1)
        with np.errstate(divide="ignore"):
            margins = sum(np.log(p) for p, _ in pairs)
        excess = np.linalg.inv(self.correlation) - np.eye(self.features)
        copula = -0.5 * np.linalg.slogdet(self.correlation)[1] - 0.5 * ((s @ excess) * s).sum(-1)
        return torch.as_tensor(margins + copula).to(x)

    def score(self, x: Tensor) -> Tensor:
        """Return the exact score; see :meth:`flowkit.datasets.Toy.score`."""
        rows = self._columns(x)
        s = np.stack([m.normal_score(rows[..., i]) for i, m in enumerate(self._margins)], -1)
        pull = s @ (np.linalg.inv(self.correlation) - np.eye(self.features))
        density = np.exp(-0.5 * s**2) / np.sqrt(2 * np.pi)
        columns = [
            m.log_slope(rows[..., i]) - pull[..., i] * m.pdf(rows[..., i]) / density[..., i]
            for i, m in enumerate(self._margins)
        ]
        return torch.as_tensor(np.stack(columns, -1)).to(x)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.features, generator=generator, dtype=torch.float64).numpy()
        s = z @ np.linalg.cholesky(self.correlation).T
        columns = [m.from_normal(s[:, i]) for i, m in enumerate(self._margins)]
        return torch.from_numpy(np.stack(columns, -1))
