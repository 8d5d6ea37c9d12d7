"""Tables of numbers in and out: .csv with numpy alone, .npy, and .parquet with pyarrow."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowkit.errors import DataError, MissingDependencyError

EXTENSIONS = (".csv", ".npy", ".parquet")


class Table(NamedTuple):
    """Finite numbers with a name for every column.

    Attributes:
        values: float64 array (rows, columns).
        columns: Names of the columns; ``x1, x2, ...`` where the file has none.
        unnamed: Number of columns of a file without names; 0 for one with names.
    """

    values: np.ndarray
    columns: tuple[str, ...]
    unnamed: int = 0


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Table:
    r"""Read a table of finite numbers.

    A .csv file is separated by commas, semicolons or tabs; its first row holds the names unless it
    is all numbers. A .npy file holds an array (rows, columns).

    Args:
        path: A .csv, .npy or .parquet file.
        columns: The columns to read, in this order; the others may hold anything. A file without
            names gives its columns these names if their number fits.

    Raises:
        DataError: If the file has another extension, is damaged or empty, lacks a column, or holds
            text, missing or infinite values.
        FileNotFoundError: If there is no such file.
        MissingDependencyError: If pyarrow is needed and not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "table.csv"
        ...     _ = path.write_text("height,weight\n1.5,50\n1.8,80\n")
        ...     read_table(path, ["weight"])
        Table(values=array([[50.], [80.]]), columns=('weight',), unnamed=0)
    """
    path = Path(path)
    check_extension(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    reader = {".csv": _read_csv, ".npy": _read_npy, ".parquet": _read_parquet}[path.suffix.lower()]
    table = reader(path, columns)
    if not len(table.values):
        raise DataError(f"{path} has no rows")
    _check_finite(table, path)
    return table


def write_table(path: str | Path, values: Any, columns: Sequence[str]) -> None:
    """Write a table; .npy keeps the numbers only.

    Args:
        path: A .csv, .npy or .parquet file; an existing one is replaced.
        values: Array (rows, columns).
        columns: Names of the columns.

    Raises:
        DataError: If the extension is another.
        MissingDependencyError: If pyarrow is needed and not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(f"{folder}/t.csv", [[1.0, 0.25]], ["a", "b"])
        ...     read_table(f"{folder}/t.csv").columns
        ('a', 'b')
    """
    path = Path(path)
    check_extension(path)
    values = np.asarray(values)
    if path.suffix.lower() == ".npy":
        np.save(path, values)
    elif path.suffix.lower() == ".parquet":
        arrow = _pyarrow()
        parts = {name: values[:, i] for i, name in enumerate(columns)}
        arrow.parquet.write_table(arrow.table(parts), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)
            # As many digits as give the same numbers back.
            digits = 17 if values.dtype == np.float64 else 9
            np.savetxt(file, values, fmt=f"%.{digits}g", delimiter=",")


def check_extension(path: str | Path) -> None:
    """Refuse an unknown extension, and .parquet without pyarrow, before any work is done.

    Raises:
        DataError: If the extension is not one of ``EXTENSIONS``.
        MissingDependencyError: If pyarrow is needed and not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXTENSIONS:
        raise DataError(
            f"expected a file with the extension {', '.join(EXTENSIONS)}, got {str(path)!r}"
        )
    if suffix == ".parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            '.parquet files need pyarrow; remedy: pip install "flowkit-density[tables]"'
        ) from None
    return pyarrow


def _read_csv(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            line = file.readline()
            if not line.strip():
                raise DataError(f"{path} is empty")
            delimiter = max(",;\t", key=line.count)
            first = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]
            file.seek(0)
            rows = csv.reader(file, delimiter=delimiter)
            named = not all(_is_number(cell) for cell in first)
            if named:
                next(rows)
            chosen, names = _choose(first if named else len(first), columns, path)
            values = _csv_values(rows, chosen, names, len(first), path)
            return Table(values, names, 0 if named else len(first))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a .csv file in UTF-8: {error}") from None


def _csv_values(
    rows: Any, chosen: list[int], names: tuple[str, ...], width: int, path: Path
) -> np.ndarray:
    """The numbers of the chosen columns; an empty cell is missing."""
    values: list[list[float]] = []
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            raise DataError(
                f"{path}, line {rows.line_num}: expected {width} cells as in the first line, "
                f"got {len(row)}"
            )
        try:
            values.append([float(row[i]) for i in chosen])
        except ValueError:
            values.append([_number(row[i], names[k], rows, path) for k, i in enumerate(chosen)])
    return np.array(values, dtype=float).reshape(-1, len(chosen))


_MISSING = ("", "na", "n/a", "null", "none", "?", ".")


def _number(cell: str, name: str, rows: Any, path: Path) -> float:
    if cell.strip().lower() in _MISSING:
        return float("nan")
    if _is_number(cell):
        return float(cell)
    raise DataError(
        f"{path}, line {rows.line_num}: column {name!r} holds text ({cell!r}); remedy: choose "
        "columns of numbers with --columns"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_npy(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a .npy file of numbers, or is damaged: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else "an archive of arrays"
        raise DataError(f"{path} expected an array of numbers, got {kind}")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"{path} expected an array (rows, columns), got shape {array.shape}")
    chosen, names = _choose(array.shape[1], columns, path)
    return Table(array[:, chosen].astype(float), names, array.shape[1])


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    arrow = _pyarrow()
    try:
        file = arrow.parquet.ParquetFile(path)
        chosen, names = _choose([str(n) for n in file.schema_arrow.names], columns, path)
        table = file.read(columns=list(names)).select(list(names))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a .parquet file, or is damaged: {error}") from None
    types = arrow.types
    for name, kind in zip(names, table.schema.types, strict=True):
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                f"{path}: column {name!r} holds {kind}, not numbers; remedy: choose columns of "
                "numbers with --columns"
            )
    parts = [np.array(table[name].to_pylist(), dtype=float) for name in names]
    return Table(np.column_stack(parts), names)


def _choose(
    present: Sequence[str] | int, columns: Sequence[str] | None, path: Path
) -> tuple[list[int], tuple[str, ...]]:
    """Positions and names of the wanted columns, in a file with names or with a mere number."""
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
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path} has more than one column named {_listed(twice)}")
    wanted = names if columns is None else tuple(columns)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"{path} has no column {_listed(missing)}; it has {_listed(names)}")
    if len(set(wanted)) < len(wanted):
        raise DataError(f"columns were named twice: {_listed(wanted)}")
    return [names.index(name) for name in wanted], wanted


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"


def _check_finite(table: Table, path: Path) -> None:
    bad = ~np.isfinite(table.values)
    if bad.any():
        rows = bad.any(1)
        names = [name for name, any_ in zip(table.columns, bad.any(0), strict=True) if any_]
        raise DataError(
            f"{path} has missing or infinite values in {rows.sum()} of {len(rows)} rows "
            f"(first: row {int(rows.argmax()) + 1}; columns {_listed(names)}); remedy: drop these "
            "rows or fill the gaps"
        )
