"""The values that rounded columns can take: samples are rounded to them, scores are read there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from flowkit.errors import DataError

# How far from its lattice a value may lie, as a fraction of the width of a cell.
_TOLERANCE = 0.01
_LARGEST_DENOMINATOR = 10**6


class Lattice(NamedTuple):
    r"""Per column, the values :math:`o + k w` with integer k; a width of 0 is a continuous column.

    A value stands for the cell :math:`[v - w/2, v + w/2)` around it: the convention of
    :func:`flowkit.data.dequantize`.

    Attributes:
        width: ``(columns,)``, the distance w between neighbouring values.
        offset: ``(columns,)``, one of the values, at most w / 2 from 0.

    Example:
        >>> import numpy as np
        >>> lattice = Lattice.of(np.array([[0.3, 1.7], [12.7, 0.2]]), [0.1, 0.0])
        >>> lattice.round(np.array([[0.31, 1.23]])).tolist()
        [[0.3, 1.23]]
    """

    width: np.ndarray
    offset: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, width: Sequence[float] | np.ndarray) -> Lattice:
        """The lattice of these widths that the first row lies on.

        Args:
            values: ``(rows, columns)``, at least one row.
            width: ``(columns,)``, numbers >= 0.
        """
        width = np.asarray(width, dtype=np.float64)
        first = np.asarray(values[0], dtype=np.float64)
        step = np.where(width > 0, width, 1.0)
        rest = np.where(width > 0, first - step * np.rint(first / step), 0.0)
        return cls(width, np.array([_simple(r, w) for r, w in zip(rest, width, strict=True)]))

    def round(self, values: np.ndarray) -> np.ndarray:
        """The nearest values of the lattice, to the last digit: 0.3, not 0.30000000000000004.

        Args:
            values: ``(rows, columns)``.

        Returns:
            float64, of the same shape; continuous columns are as they were.
        """
        out = np.array(values, dtype=np.float64)
        for i in np.flatnonzero(self.width > 0):
            width, offset = float(self.width[i]), float(self.offset[i])
            out[:, i] = _multiples(np.rint((out[:, i] - offset) / width), width, offset)
        return out

    def check(self, values: np.ndarray, name: str, columns: Sequence[Any]) -> None:
        """Refuse values that lie between those of the lattice.

        Args:
            values: ``(rows, columns)``.
            name: What they are called in the message.
            columns: Names of the columns.

        Raises:
            DataError: If a value is further from the lattice than a hundredth of a cell.
        """
        step = np.where(self.width > 0, self.width, np.inf)
        off = np.abs(values - self.round(values)) > _TOLERANCE * step
        if off.any():
            row, i = np.argwhere(off)[0].tolist()
            raise DataError(
                f"{name} expected values rounded to multiples of {self.width[i]:g} in column "
                f"{columns[i]!r}, got {values[row, i]:.15g} in row {row}; remedy: round them as "
                "the data that were fitted, or set dequantize to the width of their rounding"
            )


def _simple(offset: float, width: float) -> float:
    """The offset without the rounding errors of the division by the width."""
    if abs(offset) <= _TOLERANCE * width:
        return 0.0
    near = float(Fraction(offset).limit_denominator(_LARGEST_DENOMINATOR))
    return near if abs(near - offset) <= 1e-9 * width else offset


def _multiples(k: np.ndarray, width: float, offset: float) -> np.ndarray:
    """The float64 numbers nearest to ``offset + k width``, for decimal widths such as 0.1."""
    w, o = (Fraction(x).limit_denominator(_LARGEST_DENOMINATOR) for x in (width, offset))
    if (float(w), float(o)) == (width, offset):
        # One rounding only: the numerator is an integer.
        whole = math.lcm(w.denominator, o.denominator)
        return (k * int(w * whole) + int(o * whole)) / whole
    value = k * width + offset
    return np.array([float(f"{v:.15g}") for v in value]).reshape(k.shape)
