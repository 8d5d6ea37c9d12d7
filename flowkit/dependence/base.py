"""Covariance across rows: relatives, repeated measures, neighbours in time and space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkit.errors import DataError, ShapeError
from flowkit.numerics.gradients import ordinary

# Ends of a share of independence.
SHARES = (1e-6, 1 - 1e-6)
# Where a strength is looked for, as a logit or a logarithm.
_RAW = (-14.0, 14.0)


class RowCovariance(nn.Module):
    r"""A covariance C of n rows with a unit diagonal, for matrices with independent columns.

    Noise :math:`U \in R^{n \times p}` has columns :math:`U_{:j} \sim N(0, C)`, so that every row
    by itself is standard normal. Subclasses define :meth:`solve`, :meth:`log_det`,
    :meth:`colour` and :meth:`entries`.

    Args:
        rows: Number of rows n.

    Attributes:
        block: ``(n,)`` numbers of blocks, where rows fall apart into blocks that are independent
            of each other; else ``None``.
    """

    block: Tensor | None

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("block", None)

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u`` of ``u (n, p)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define solve(u)")

    def log_det(self) -> Tensor:
        """``log |C|``, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_det()")

    def colour(self, noise: Tensor) -> Tensor:
        """Rows with covariance C from independent normal ``noise (n, p)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define colour(noise)")

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``C[rows][:, columns]`` of two lists of places."""
        raise NotImplementedError(f"{type(self).__name__} does not define entries")

    def matrix(self) -> Tensor:
        """C itself, ``(n, n)``."""
        every = torch.arange(self.rows, device=self._like.device)
        return self.entries(every, every)

    def log_prob(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        r"""Log-density of ``u (n, p)``, a scalar in nats.

        .. math:: -\tfrac{np}2 \log 2\pi - \tfrac p2 \log|C| - \tfrac12 \mathrm{tr}\, U^T C^{-1} U

        Args:
            u: ``(n, p)``, or ``(m, p)`` of some of the rows.
            rows: ``(m,)``, their places; the density is their marginal one. All by default.
        """
        u = self._checked(u, rows)
        log_det, quadratic = self._log_det_and_quadratic(u, rows)
        constant = u.shape[0] * u.shape[1] * math.log(2 * math.pi)
        return -0.5 * (constant + u.shape[1] * log_det + quadratic)

    def _log_det_and_quadratic(self, u: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The log-determinant and the quadratic form; of some rows by a dense matrix."""
        if rows is None:
            return self.log_det(), (u * self.solve(u)).sum()
        return by_factor(torch.linalg.cholesky(self.entries(rows, rows).double()), u)

    def fit_strength(self, u: Tensor) -> None:
        """Set the parameters of C to the largest likelihood of the noise ``u (n, p)``.

        One number by Brent's method, several by L-BFGS, at fixed u: no steps to choose. In turns
        with steps of the flow, :class:`flowkit.dependence.UpdateCovariance` does that.
        """
        parameters = list(self.parameters())
        u = u.detach()
        if not parameters:
            return
        if len(parameters) == 1 and parameters[0].numel() == 1:
            _search(parameters[0], lambda: -float(self.log_prob(u)))
            return
        learned = [parameter.requires_grad for parameter in parameters]
        self.requires_grad_(True)
        optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            value = -self.log_prob(u) / u.numel()
            value.backward()
            return float(value.detach())

        try:
            with torch.inference_mode(False), torch.enable_grad():
                u = ordinary(u)
                optimizer.step(loss)
        finally:
            for parameter, learns in zip(parameters, learned, strict=True):
                parameter.requires_grad_(learns)
                parameter.grad = None

    def precision(self, rows: Tensor) -> Tensor:
        """``C^-1[rows][:, rows]`` of a list of places, by a solve with their unit vectors."""
        units = torch.nn.functional.one_hot(rows, self.rows).mT
        like = self.log_det()
        return self.solve(units.to(like))[rows]

    def sample(self, columns: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``(n, columns)``, columns independent of each other."""
        like = self._like
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        noise = torch.randn(
            self.rows, columns, generator=generator, dtype=dtype, device=like.device
        )
        return self.colour(noise)

    def sample_given(
        self, u: Tensor, observed: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw all rows given some: :math:`U_m \mid U_o \sim N(C_{mo} C_{oo}^{-1} U_o, \cdot)`.

        By Matheron's rule: a draw of all rows, corrected by what it misses of the observed ones.
        Solves with :math:`C_{oo}` as a dense matrix in float64.

        Args:
            u: ``(m, p)``, the observed rows.
            observed: ``(m,)``, their places.
            generator: Random generator.

        Returns:
            ``(n, p)``, with the observed rows in their places.
        """
        places = torch.as_tensor(observed, dtype=torch.long, device=u.device)
        if u.dim() != 2 or places.shape != u.shape[:1]:
            raise ShapeError(
                f"sample_given expected observed rows (m, p) and m places, got {tuple(u.shape)} "
                f"and {tuple(places.shape)}"
            )
        self.check_places(places)
        drawn = self.sample(u.shape[1], generator).to(u)
        every = torch.arange(self.rows, device=u.device)
        known = self.entries(places, places).double()
        across = self.entries(every, places).double()
        missed = torch.linalg.solve(known, (u - drawn[places]).double())
        drawn = drawn + (across @ missed).to(u)
        return drawn.index_copy(0, places, u)

    def check_places(self, rows: Tensor) -> None:
        """Raise a DataError unless these are different rows of the covariance."""
        inside = bool(((rows >= 0) & (rows < self.rows)).all())
        if not inside or int(torch.bincount(rows, minlength=1).max()) > 1:
            raise DataError(
                f"{type(self).__name__} expected different places from 0 to {self.rows - 1}, got "
                f"{rows[:5].tolist()}, ...; remedy: the number of each row in the covariance, not "
                "that of its block"
            )

    @property
    def _like(self) -> Tensor:
        """A tensor of the covariance, which says where it lies."""
        return next(iter([*self.parameters(), *self.buffers()]))

    def _checked(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        count = self.rows if rows is None else len(rows)
        if u.dim() != 2 or len(u) != count:
            raise ShapeError(
                f"{type(self).__name__} of {count} rows expected a matrix ({count}, p), "
                f"got {tuple(u.shape)}"
            )
        return u


class PartlyIndependent(RowCovariance):
    r"""What :math:`C = \lambda I + (1 - \lambda) G` shares, whatever G is."""

    def __init__(self, rows: int, independent: float, learn: bool) -> None:
        super().__init__(rows)
        start = raw_of(float(independent), *SHARES, "the independent share")
        self.raw = nn.Parameter(torch.tensor(start, dtype=torch.float64), requires_grad=learn)

    @property
    def independent(self) -> Tensor:
        r"""The share :math:`\lambda`."""
        return SHARES[0] + (SHARES[1] - SHARES[0]) * torch.sigmoid(self.raw)


def by_factor(factor: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-determinant and quadratic form of a covariance, by its Cholesky factor."""
    whitened = torch.linalg.solve_triangular(factor, u.to(factor), upper=False)
    return 2 * factor.diagonal().log().sum(), whitened.square().sum().to(u)


@torch.no_grad()
def _search(raw: nn.Parameter, loss: Callable[[], float]) -> None:
    """The least loss over one unbounded number, within what sigmoid and exp resolve."""
    from scipy import optimize

    def at(value: float) -> float:
        raw.fill_(value)
        return loss()

    raw.fill_(optimize.minimize_scalar(at, bounds=_RAW, method="bounded").x)


def raw_of(value: float, lower: float, upper: float, what: str) -> float:
    """The logit of where a number lies between two ends."""
    if not lower < value < upper:
        raise DataError(f"expected {what} between {lower:.4g} and {upper:.4g}, got {value!r}")
    share = (value - lower) / (upper - lower)
    return math.log(share / (1 - share))
