"""Light and heavy margins joined by a normal copula, with the exact density and entropy."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.energies.base import with_force
from flowkit.toys.base import Draws, Toy

# Points of the quadratures and tables.
_POINTS = 40_001


class _Margin:
    """A mixture of normals, or of Student-t distributions of one number of degrees of freedom."""

    def __init__(self, places: np.ndarray, scales: np.ndarray, df: float | None) -> None:
        from scipy import stats

        self.places, self.scales, self.df = places, scales, df
        self.law = stats.norm if df is None else stats.t(df)

    @cached_property
    def grid(self) -> np.ndarray:
        """Points of the quadrature, with steps that grow with the distance, for any tail."""
        reach = (12.0 if self.df is None else 1e9) * self.scales.max()
        return self.places.mean() + np.sinh(np.linspace(-1, 1, _POINTS) * np.arcsinh(reach))

    def _log_mean(self, values: np.ndarray) -> np.ndarray:
        from scipy import special

        return special.logsumexp(values, -1) - np.log(len(self.places))

    def _standard(self, x: np.ndarray) -> np.ndarray:
        return (x[..., None] - self.places) / self.scales

    def log_pdf(self, x: np.ndarray) -> np.ndarray:
        """Logarithm of the density."""
        return self._log_mean(self.law.logpdf(self._standard(x)) - np.log(self.scales))

    def log_slope(self, x: np.ndarray) -> np.ndarray:
        """Derivative of the logarithm of the density."""
        from scipy import special

        z = self._standard(x)
        each = -z if self.df is None else -(self.df + 1) * z / (self.df + z**2)
        shares = special.softmax(self.law.logpdf(z) - np.log(self.scales), -1)
        return (shares * each / self.scales).sum(-1)

    def normal_score(self, x: np.ndarray) -> np.ndarray:
        """The standard normal number with as much below it; from the nearer tail."""
        from scipy import special

        z = self._standard(x)
        below, above = self._log_mean(self.law.logcdf(z)), self._log_mean(self.law.logsf(z))
        nearer = special.ndtri_exp(np.minimum(below, above))
        return np.where(below < above, nearer, -nearer)

    @cached_property
    def table(self) -> np.ndarray:
        """Normal scores of the grid."""
        return self.normal_score(self.grid)

    def from_normal(self, s: np.ndarray) -> np.ndarray:
        """Undo ``normal_score``: by the table, and Newton steps."""
        inside = np.isfinite(self.table)
        x = np.interp(s, self.table[inside], self.grid[inside])
        for _ in range(4):
            x = x - (self.normal_score(x) - s) * np.exp(_log_normal(s) - self.log_pdf(x))
        return x

    def entropy(self) -> float:
        """The entropy, by the trapezoidal rule."""
        log_p, grid = torch.from_numpy(self.log_pdf(self.grid)), torch.from_numpy(self.grid)
        return float(torch.trapezoid(-log_p.exp() * log_p, grid))


def _log_normal(s: np.ndarray) -> np.ndarray:
    return -0.5 * s**2 - 0.5 * np.log(2 * np.pi)


@register
class HeavyCopula(Toy):
    r"""Margins of normal mixtures and heavy-tailed t mixtures under a normal copula.

    With :math:`s_i = \Phi^{-1}(F_i(x_i))` and the correlation matrix R,

    .. math:: \log p(x) = \sum_i \log p_i(x_i) - \tfrac12 \log|R|
              - \tfrac12 s^T (R^{-1} - I)\, s .

    The last ``heavy`` features are mixtures of two t distributions, all others mixtures of one to
    three normals. Places are drawn from U(-4, 4), scales from U(1, 2), and 2D pairs, drawn with
    replacement, are correlated by 0.25; where that is no correlation matrix, as it may happen for
    many features, R is one near it. Computed by NumPy: there are first derivatives only.

    Args:
        features: Number of features D, at least 2.
        heavy: Number of heavy-tailed features.
        df: Their degrees of freedom, which are their tail index; at least 1 and finite.
        seed: Seed of places, scales and correlations.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Laszkiewicz, Lederer, Fischer 2022, arXiv 2206.10311, section 5, for the design.

    Example:
        >>> import torch
        >>> from flowkit.toys import HeavyCopula
        >>> toy = HeavyCopula(8, heavy=4, df=2.0)
        >>> x = toy.sample(2000, torch.Generator().manual_seed(0))
        >>> bool((-toy.log_prob(x).mean() - toy.entropy()).abs() < 0.5)
        True
    """

    def __init__(
        self, features: int = 8, *, heavy: int = 1, df: float = 2.0, seed: int = 0
    ) -> None:
        owner = "HeavyCopula"
        super().__init__(checks.integer(owner, "features", features, least=2))
        checks.elements(owner, self.features, self.features)
        self.heavy = checks.integer(owner, "heavy", heavy, least=0, most=self.features)
        self.df = checks.number(owner, "df", df, least=1)
        seed = checks.integer(owner, "seed", seed, least=0, most=2**63 - 1)
        features, heavy = self.features, self.heavy
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
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 0.05)) @ vectors.T
        scale = np.sqrt(np.diag(matrix))
        self.correlation = matrix / np.outer(scale, scale)

    @property
    def tails(self) -> list[float | None]:
        """The tail index per feature, ``None`` where it is light."""
        light = self.features - self.heavy
        return [None] * light + [self.df] * self.heavy

    def entropy(self) -> float:
        r"""Return the sum of the entropies of the margins and :math:`\frac12 \log|R|`."""
        return sum(margin.entropy() for margin in self._margins) + self._half_log_det

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return minus the log-density."""
        if x.is_meta:
            return x.sum(-1)
        columns = np.moveaxis(x.detach().cpu().double().numpy(), -1, 0)
        pairs = list(zip(self._margins, columns, strict=True))
        s = np.stack([margin.normal_score(column) for margin, column in pairs], -1)
        pull = s @ (np.linalg.inv(self.correlation) - np.eye(self.features))
        log_p = np.stack([margin.log_pdf(column) for margin, column in pairs], -1)

        def energy() -> Tensor:
            value = 0.5 * (pull * s).sum(-1) + self._half_log_det - log_p.sum(-1)
            return torch.as_tensor(value).to(x)

        def score() -> Tensor:
            slopes = np.stack([margin.log_slope(column) for margin, column in pairs], -1)
            return torch.as_tensor(slopes - pull * np.exp(log_p - _log_normal(s))).to(x)

        return with_force(x, energy, score)

    @property
    def _half_log_det(self) -> float:
        return 0.5 * float(np.linalg.slogdet(self.correlation)[1])

    def _draw(self, n: int, draws: Draws) -> Tensor:
        z = draws.normal(n, self.features)
        s = z.cpu().numpy() @ np.linalg.cholesky(self.correlation).T
        columns = [m.from_normal(s[:, i]) for i, m in enumerate(self._margins)]
        return torch.from_numpy(np.stack(columns, -1)).to(z.device)
