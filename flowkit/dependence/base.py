"""Covariances across observations: relatives, repeated measures, neighbours in time and space."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.dependence.decomposition import minimize
from flowkit.errors import DataError, ShapeError
from flowkit.numerics.gradients import ordinary

# Ends of a variance proportion.
PROPORTIONS = (1e-6, 1 - 1e-6)
# Where an unbounded parameter, a logit or a logarithm, is searched for.
_RAW = (-14.0, 14.0)


class RowCovariance(nn.Module):
    r"""Base class of covariances C across n observations, with a unit diagonal.

    Noise :math:`U \in R^{n \times p}` has independent columns :math:`U_{:j} \sim N(0, C)`, so that
    each observation by itself is standard normal. A subclass defines :meth:`log_det`,
    :meth:`entries`, and ``_power(u, exponent)``, a power of C times u, or in its place
    ``_solve(u)`` and ``_correlate(noise)``; a faster ``_terms(u)`` is optional.

    Args:
        rows: Number of observations n.

    Attributes:
        block: ``(n,)`` numbers of blocks that are independent of each other; ``None`` without.

    References:
        Kirchler, Lippert, Kloft 2023, arXiv 2209.14933.
    """

    block: Tensor | None

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = checks.integer(type(self).__name__, "rows", rows, least=1)
        self.register_buffer("block", None)

    def solve(self, u: Tensor) -> Tensor:
        """``C^-1 u`` of ``u (n, p)``."""
        return self._solve(self._wide(u)).to(u.dtype)

    def correlate(self, noise: Tensor) -> Tensor:
        """Map independent normal ``noise (n, p)`` to noise with covariance C."""
        return self._correlate(self._wide(noise)).to(noise.dtype)

    def log_det(self) -> Tensor:
        """``log |C|``, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_det()")

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``C[rows][:, columns]`` of two lists of indices."""
        raise NotImplementedError(f"{type(self).__name__} does not define entries")

    def _solve(self, u: Tensor) -> Tensor:
        return self._power(u, -1.0)

    def _correlate(self, noise: Tensor) -> Tensor:
        return self._power(noise, 0.5)

    def _power(self, u: Tensor, exponent: float) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _power(u, exponent)")

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The log-determinant, and the quadratic form of all observations."""
        return self.log_det(), (u * self._solve(u)).sum()

    def _terms_at(self, u: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """A function that returns the terms of ``u`` at the parameters of the moment."""
        return partial(self._terms, u)

    def _marginal_terms(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same of some observations, here by a dense matrix."""
        return by_factor(torch.linalg.cholesky(self.entries(rows, rows).double()), u)

    def matrix(self) -> Tensor:
        """C itself, ``(n, n)``."""
        every = torch.arange(self.rows, device=self._like.device)
        return self.entries(every, every)

    def log_prob(self, u: Tensor, rows: Tensor | None = None) -> Tensor:
        r"""Log-density of ``u (n, p)``, a scalar in nats.

        .. math:: -\tfrac{np}2 \log 2\pi - \tfrac p2 \log|C| - \tfrac12 \mathrm{tr}\, U^T C^{-1} U

        Args:
            u: ``(n, p)``, or ``(m, p)`` of some of the observations.
            rows: ``(m,)``, their indices; the density is their marginal one. All by default.
        """
        wide = self._wide(u, None if rows is None else len(rows))
        log_det, quadratic = (
            self._terms(wide) if rows is None else self._marginal_terms(wide, rows)
        )
        constant = u.shape[0] * u.shape[1] * math.log(2 * math.pi)
        return -0.5 * (constant + u.shape[1] * log_det + quadratic.to(u.dtype))

    def fit_parameters(self, u: Tensor) -> None:
        """Set the parameters of C to the maximum likelihood of the noise ``u (n, p)``.

        One number by a grid and Brent's method, several by L-BFGS, at fixed u.
        :class:`flowkit.dependence.UpdateCovariance` alternates it with steps of a flow.
        """
        parameters = list(self.parameters())
        if not parameters:
            return
        with torch.inference_mode(mode=False):
            terms = self._terms_at(self._wide(ordinary(u.detach())))

            def loss() -> Tensor:
                log_det, quadratic = terms()
                return 0.5 * (u.shape[1] * log_det + quadratic) / u.numel()

            if len(parameters) == 1 and parameters[0].numel() == 1:
                _search(parameters[0], loss)
            else:
                _descend(parameters, loss)

    def precision(self, rows: Tensor) -> Tensor:
        """``C^-1[rows][:, rows]`` of a list of indices, by a solve with their unit vectors."""
        units = nn.functional.one_hot(rows, self.rows).mT
        return self.solve(units.to(self.log_det()))[rows]

    def sample(self, columns: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise ``(n, columns)`` with independent columns."""
        size = (self.rows, checks.integer("sample", "columns", columns, least=0))
        device, dtype = self._like.device, self._like.dtype
        return self.correlate(torch.randn(size, generator=generator, device=device, dtype=dtype))

    def sample_given(
        self, u: Tensor, observed: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw all noise given some: :math:`U_m \mid U_o \sim N(C_{mo} C_{oo}^{-1} U_o, \cdot)`.

        By Matheron's rule: a draw of all, corrected by its error at the observed indices. Solves
        with :math:`C_{oo}` as a dense matrix in float64.

        Args:
            u: ``(m, p)``, the observed noise.
            observed: ``(m,)``, its indices.
            generator: Random generator.

        Returns:
            ``(n, p)``, with u at the observed indices.
        """
        rows = torch.as_tensor(observed, dtype=torch.long, device=u.device)
        if u.dim() != 2 or rows.shape != u.shape[:1]:
            raise ShapeError(
                f"sample_given expected observed noise (m, p) and m indices, got "
                f"{tuple(u.shape)} and {tuple(rows.shape)}"
            )
        self.check_rows(rows)
        drawn = self.sample(u.shape[1], generator).to(u)
        every = torch.arange(self.rows, device=u.device)
        known = self.entries(rows, rows).double()
        across = self.entries(every, rows).double()
        error = torch.linalg.solve(known, (u - drawn[rows]).double())
        return (drawn + (across @ error).to(u)).index_copy(0, rows, u)

    def check_rows(self, rows: Tensor) -> None:
        """Raise a DataError unless these are different indices of observations."""
        inside = bool(((rows >= 0) & (rows < self.rows)).all())
        if not inside or int(torch.bincount(rows, minlength=1).max()) > 1:
            raise DataError(
                f"{type(self).__name__} expected different indices from 0 to {self.rows - 1}, got "
                f"{rows[:5].tolist()}, ...; remedy: the number of each observation in the "
                "covariance, not that of its block"
            )

    @property
    def _like(self) -> Tensor:
        """A tensor of the covariance, for its dtype and device."""
        return next(iter([*self.parameters(), *self.buffers()]))

    def _wide(self, u: Tensor, count: int | None = None) -> Tensor:
        """A matrix with one row per observation, in the wider dtype of its own and C's."""
        count = self.rows if count is None else count
        if u.dim() != 2 or len(u) != count:
            raise ShapeError(
                f"{type(self).__name__} of {count} observations expected a matrix ({count}, p), "
                f"got {tuple(u.shape)}"
            )
        own = next((p.dtype for p in self.parameters()), u.dtype)
        return u.to(torch.promote_types(u.dtype, own))


class Mixed(RowCovariance):
    r"""Base class of :math:`C = \lambda I + (1 - \lambda) G` with a relationship matrix G.

    A subclass defines ``_related(rows, columns)``, entries of G.
    """

    def __init__(self, rows: int, *, residual_proportion: float, learn: bool) -> None:
        super().__init__(rows)
        raw = logit(type(self).__name__, "residual_proportion", residual_proportion, *PROPORTIONS)
        learns = checks.flag(type(self).__name__, "learn", learn)
        self.raw = nn.Parameter(torch.tensor(raw, dtype=torch.float64), requires_grad=learns)

    @property
    def residual_proportion(self) -> Tensor:
        r"""The proportion :math:`\lambda` of variance that observations do not share."""
        return PROPORTIONS[0] + (PROPORTIONS[1] - PROPORTIONS[0]) * torch.sigmoid(self.raw)

    def _related(self, rows: Tensor, columns: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _related")

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        proportion = self.residual_proportion
        same = rows[:, None] == columns
        return proportion * same + (1 - proportion) * self._related(rows, columns)


def by_factor(factor: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-determinant and quadratic form of a covariance, by its Cholesky factor."""
    whitened = torch.linalg.solve_triangular(factor, u.to(factor), upper=False)
    return 2 * factor.diagonal().log().sum(), whitened.square().sum()


@torch.no_grad()
def _search(raw: nn.Parameter, loss: Callable[[], Tensor]) -> None:
    """The least loss of one unbounded number, within what sigmoid and exp resolve."""

    def at(value: float) -> float:
        raw.fill_(value)
        return float(loss())

    raw.fill_(minimize(at, *_RAW))


def _descend(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> None:
    """The least loss of several numbers, by L-BFGS; whether they are learned stays as it is."""
    learned = [parameter.requires_grad for parameter in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    try:
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer.step(step)
    finally:
        for parameter, learns in zip(parameters, learned, strict=True):
            parameter.requires_grad_(learns)
            parameter.grad = None


def logit(owner: str, name: str, value: float, lower: float, upper: float) -> float:
    """The logit of where a number lies between two ends."""
    value = checks.number(owner, name, value, above=lower, below=upper)
    return math.log((value - lower) / (upper - value))
