"""Tables, their columns by name or number, and the package that reads .parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowkit.errors import DataError, MissingDependencyError


class Table(NamedTuple):
    """Numbers with a name for every column.

    Attributes:
        values: float64 array (rows, columns).
        columns: Names of the columns; ``x1, x2, ...`` where the file has none.
        unnamed: Number of columns of a file without names; 0 for one with names.
    """

    values: np.ndarray
    columns: tuple[str, ...]
    unnamed: int = 0


def pyarrow() -> Any:
    """Import pyarrow with its submodule for files.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            '.parquet files need pyarrow; remedy: pip install "flowkit-density[tables]"'
        ) from None
    return pyarrow


def choose(
    present: Sequence[str] | int, columns: Sequence[str] | None, path: Path
) -> tuple[list[int], tuple[str, ...]]:
    """Choose columns by name, in a file with names or with a mere number of columns.

    Raises:
        DataError: If there are no columns, or a chosen one is missing, nameless or named twice.
    """
    if not present:
        raise DataError(f"{path} has no columns")
    if isinstance(present, int):
        names = tuple(f"x{i + 1}" for i in range(present))
        if columns is not None and not set(columns) <= set(names):
            if len(columns) != present:
                raise DataError(
                    f"expected the {len(columns)} columns {_listed(columns)}, got {path} without "
                    f"names and with {present} columns"
                )
            names = tuple(columns)
    else:
        names = tuple(present)
    chosen = names if columns is None else tuple(columns)
    if "" in chosen:
        raise DataError(
            f"{path}: column {chosen.index('') + 1} has no name; remedy: name it (pandas writes "
            "its index so: index=False), or choose others with --columns"
        )
    missing = [name for name in chosen if name not in names]
    if missing:
        raise DataError(f"{path} has no column {_listed(missing)}; it has {_listed(names)}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name in chosen)
    if twice:
        raise DataError(f"{path} has more than one column named {_listed(twice)}")
    if len(set(chosen)) < len(chosen):
        raise DataError(f"columns were named twice: {_listed(chosen)}")
    place = {name: i for i, name in enumerate(names)}
    return [place[name] for name in chosen], chosen


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"
