"""Observations in time, each correlated with those before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.arrays import as_array, codes
from flowkit.config import register
from flowkit.dependence.base import RowCovariance
from flowkit.errors import DataError

# Nearest that two observations of a series may come, as a correlation.
_NEAREST = 1e-6


@register
class AutoregressiveTime(RowCovariance):
    r"""Exponential correlation in time, :math:`C_{ij} = e^{-|t_i - t_j| / \tau}`.

    Different series are independent. At regular times this is the autoregressive process of order
    one. An observation depends on those before through its predecessor alone, with
    :math:`a_i = e^{-(t_i - t_{i-1}) / \tau}`, so that everything costs O(np).

    .. math:: \log|C| = \sum_i \log(1 - a_i^2), \quad
              u^T C^{-1} u = \sum_i \frac{(u_i - a_i u_{i-1})^2}{1 - a_i^2}

    Args:
        times: ``(n,)`` times, in any order.
        series: ``(n,)`` names of series; one by default.
        tau: Start of the correlation time.
        learn: Whether it is learned.

    Raises:
        ArgumentError: If tau is not positive.
        DataError: If times are no numbers, or two observations of a series have the same.

    Example:
        >>> from flowkit.dependence import AutoregressiveTime
        >>> C = AutoregressiveTime([0.0, 1.0, 2.0], tau=1.0)
        >>> [round(v, 3) for v in C.matrix()[0].tolist()]
        [1.0, 0.368, 0.135]
    """

    order: Tensor
    gap: Tensor
    block: Tensor
    time: Tensor

    def __init__(
        self, times: Any, *, series: Any = None, tau: float = 1.0, learn: bool = True
    ) -> None:
        t = as_array(times)
        names = np.zeros(t.shape, np.int64) if series is None else codes(series, "series")
        if t.ndim != 1 or not len(t) or names.shape != t.shape or not np.isfinite(t).all():
            raise DataError(
                "AutoregressiveTime expected a finite time and a series per observation, got "
                f"arrays of {t.shape} and {names.shape}"
            )
        tau = checks.number("AutoregressiveTime", "tau", tau, above=0)
        learns = checks.flag("AutoregressiveTime", "learn", learn)
        order = np.lexsort((t, names))
        gap = np.diff(t[order], prepend=0.0)
        first = np.diff(names[order], prepend=-1) != 0
        gap[first] = 1.0
        if (gap == 0).any():
            raise DataError(
                "AutoregressiveTime expected different times within a series; remedy: a series "
                "for each, or EquicorrelatedBlocks for replicates"
            )
        super().__init__(len(t))
        buffers = {"order": order, "gap": gap, "first": first, "block": names, "time": t}
        for name, values in buffers.items():
            self.register_buffer(name, torch.from_numpy(values))
        # Logarithms are of multiples of a typical gap, so that units of time do not matter.
        inner = gap[~first]
        unit = float(np.median(inner)) if len(inner) else 1.0
        self.register_buffer("unit", torch.tensor(unit, dtype=torch.float64))
        self.log_tau = nn.Parameter(torch.tensor(np.log(tau / unit)), requires_grad=learns)

    @property
    def tau(self) -> Tensor:
        """The correlation time, in the units of the times."""
        return self.get_buffer("unit") * self.log_tau.exp()

    def _steps(self) -> tuple[Tensor, Tensor]:
        """Correlation with the predecessor, and variance given it, in the order of time."""
        rate = (self.gap / self.tau).clamp(min=_NEAREST)
        first = self.get_buffer("first")
        a = torch.where(first, torch.zeros_like(rate), torch.exp(-rate))
        return a, torch.where(first, torch.ones_like(rate), -torch.expm1(-2 * rate))

    def _restored(self, sorted_rows: Tensor) -> Tensor:
        return torch.zeros_like(sorted_rows).index_copy(0, self.order, sorted_rows)

    def _solve(self, u: Tensor) -> Tensor:
        """By the differences to predecessors."""
        a, variance = (v.to(u.dtype).unsqueeze(-1) for v in self._steps())
        rows = u[self.order]
        scaled = (rows - a * _later(rows, 1)) / variance
        after = nn.functional.pad((a * scaled)[1:], (0, 0, 0, 1))
        return self._restored(scaled - after)

    def log_det(self) -> Tensor:
        """``log |C|``."""
        return self._steps()[1].log().sum()

    def _correlate(self, noise: Tensor) -> Tensor:
        """One after the other, each from its predecessor."""
        a, variance = (v.to(noise.dtype) for v in self._steps())
        rows = variance.sqrt().unsqueeze(-1) * noise[self.order]
        # All predecessors at once: sums over ever longer stretches, log2(n) of them.
        step = 1
        factor = a.unsqueeze(-1)
        while step < len(rows):
            rows, factor = rows + factor * _later(rows, step), factor * _later(factor, step)
            step *= 2
        return self._restored(rows)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of C."""
        distance = (self.time[rows][:, None] - self.time[columns]).abs()
        same = self.block[rows][:, None] == self.block[columns]
        return torch.where(same, torch.exp(-distance / self.tau), torch.zeros_like(distance))


def _later(rows: Tensor, step: int) -> Tensor:
    """Every row a number of steps later, after zeros."""
    return nn.functional.pad(rows[:-step], (0, 0, step, 0))
