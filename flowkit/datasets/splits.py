"""Train, validation and test parts of a table, and the one rule by which rows are dealt out.

Every loader of this package that returns rows returns a :class:`Splits`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.data.dequantize import dequantize
from flowkit.errors import DataError


def valid_seed(owner: str, seed: int) -> int:
    """Check a seed of generators."""
    return checks.integer(owner, "seed", seed, least=0, most=2**61)


class Splits(NamedTuple):
    """Three disjoint parts of a table.

    Attributes:
        train: Tensor (n_train, d), units of the source.
        validation: Tensor (n_validation, d).
        test: Tensor (n_test, d).
        columns: The d column names.

    Example:
        >>> from flowkit.datasets import wine
        >>> splits = wine()
        >>> tuple(splits.train.shape), splits.columns[0]
        ((142, 13), 'alcohol')
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    columns: tuple[str, ...]

    def standardized(self) -> "Splits":
        """Shift and scale every column by the mean and standard deviation of the training part.

        A log density per row rises by the sum of ``log(train.std(0))``: state it when numbers in
        original units are compared with standardised ones.

        Returns:
            New splits; columns of the training part have mean 0 and standard deviation 1.

        Raises:
            DataError: If a column is constant in the training part.

        Example:
            >>> from flowkit.datasets import wine
            >>> train = wine().standardized().train
            >>> bool((train.mean(0).abs() < 1e-5).all())
            True
        """
        mean, scale = self.train.mean(0), self.train.std(0, correction=0)
        constant = [name for name, s in zip(self.columns, scale.tolist(), strict=True) if s == 0]
        if constant:
            raise DataError(
                "standardized expected columns that vary in the training part, got constant "
                f"{', '.join(constant)}; drop them, or dequantize integers first"
            )
        train, validation, test = (
            (part - mean) / scale for part in (self.train, self.validation, self.test)
        )
        return Splits(train, validation, test, self.columns)

    def dequantized(self, *, seed: int = 0) -> "Splits":
        """Add uniform noise in (-1/2, 1/2) to every entry of a table of integers.

        See :func:`flowkit.data.dequantize` for the convention.

        Args:
            seed: Seed of private generators, one for each part.

        Returns:
            New splits of the same dtype.

        Raises:
            DataError: If a part holds anything but integers.

        Example:
            >>> from flowkit.datasets import digits
            >>> splits = digits().dequantized()
            >>> bool((splits.train.round() == digits().train).all())
            True
        """
        train, validation, test = (
            dequantize(part, seed=3 * valid_seed("dequantized", seed) + place, dtype=part.dtype)
            for place, part in enumerate((self.train, self.validation, self.test))
        )
        return Splits(train, validation, test, self.columns)


def split_rows(
    table: Tensor,
    columns: tuple[str, ...],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Splits:
    """Drop repeated rows, shuffle, and cut into 80 % train, 10 % validation and 10 % test.

    Repeated rows go first, so that no row of one part is a copy of a row of another part.

    Args:
        table: Tensor (n, d) with n of at least 10.
        columns: The d column names.
        seed: Seed of the shuffle; the global random state is left alone.
        dtype: Floating dtype of the parts.

    Returns:
        The three parts.

    Raises:
        DataError: If the table is not two-dimensional, is too small, holds NaN or infinity, or
            the number of names does not fit.

    Example:
        >>> import torch
        >>> from flowkit.datasets.splits import split_rows
        >>> table = torch.arange(40.0).reshape(20, 2).repeat(2, 1)
        >>> [len(part) for part in split_rows(table, ("a", "b"))[:3]]
        [16, 2, 2]
    """
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise DataError(
            f"split_rows expected a table (n, {len(columns)}) for its {len(columns)} column "
            f"names, got {tuple(table.shape)}; give one row per sample and one name per column"
        )
    if not bool(torch.isfinite(table).all()):
        raise DataError(
            "split_rows expected finite numbers, got NaN or infinity; drop or impute those rows"
        )
    rows = torch.unique(table.to(dtype), dim=0)
    if len(rows) < 10:
        raise DataError(
            f"split_rows expected at least 10 different rows, got {len(rows)}; "
            "a part would be empty: bring more rows"
        )
    generator = torch.Generator().manual_seed(valid_seed("split_rows", seed))
    rows = rows[torch.randperm(len(rows), generator=generator)]
    held = round(len(rows) / 10)
    train = len(rows) - 2 * held
    return Splits(rows[:train], rows[train : train + held], rows[train + held :], columns)
