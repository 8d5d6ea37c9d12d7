"""Tables of numbers: reading and writing .csv, .npy, and .parquet files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from flowkit.data.columns import _listed, pyarrow
from flowkit.data.readers import READERS
from flowkit.errors import DataError
from flowkit.files import replacing

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
            text, missing or infinite values, or integers that float64 cannot hold.
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
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    values, names, unnamed = READERS[path.suffix.lower()](path, columns)
    if not len(values):
        raise DataError(f"{path} has no rows")
    table = Table(values, names, unnamed)
    _check_finite(table, path)
    return table


def write_table(path: str | Path, values: Any, columns: Sequence[str]) -> None:
    """Write a table; .npy keeps the numbers only.

    The file is written beside its place and moved there, so that a failure leaves an older one.

    Args:
        path: A .csv, .npy or .parquet file; an existing one is replaced.
        values: Array (rows, columns).
        columns: Names of the columns.

    Raises:
        DataError: If the extension is another.
        MissingDependencyError: If pyarrow is needed and not installed.
        OSError: If the path cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(f"{folder}/t.csv", [[1.0, 0.25]], ["a", "b"])
        ...     read_table(f"{folder}/t.csv").columns
        ('a', 'b')
    """
    values = np.asarray(values)
    write_blocks(path, [values], len(values), columns)


def write_blocks(
    path: str | Path, blocks: Iterable[np.ndarray], rows: int, columns: Sequence[str]
) -> None:
    """Write a table block by block, in the memory of one block.

    Args:
        path: As in :func:`write_table`.
        blocks: Arrays (some rows, columns) of one dtype.
        rows: Number of rows in all.
        columns: Names of the columns.
    """
    path = Path(path)
    check_extension(path)
    writer = {".csv": _write_csv, ".npy": _write_npy, ".parquet": _write_parquet}
    with replacing(path) as file:
        writer[path.suffix.lower()](file, blocks, rows, columns)


def _write_csv(
    file: BinaryIO, blocks: Iterable[np.ndarray], rows: int, columns: Sequence[str]
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(columns)
    file.write(text.getvalue().encode())
    for block in blocks:
        # As many digits as give the same numbers back.
        digits = 17 if block.dtype == np.float64 else 9
        np.savetxt(file, block, fmt=f"%.{digits}g", delimiter=",")


def _write_npy(
    file: BinaryIO, blocks: Iterable[np.ndarray], rows: int, columns: Sequence[str]
) -> None:
    for place, block in enumerate(blocks):
        if place == 0:
            descr = np.lib.format.dtype_to_descr(block.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (rows, len(columns))}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(block).tobytes())


def _write_parquet(
    file: BinaryIO, blocks: Iterable[np.ndarray], rows: int, columns: Sequence[str]
) -> None:
    arrow, writer = pyarrow(), None
    for block in blocks:
        table = arrow.table({name: block[:, i] for i, name in enumerate(columns)})
        writer = writer or arrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


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
        pyarrow()


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
