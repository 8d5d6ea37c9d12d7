"""Tables of numbers: reading and writing .csv, .npy, and .parquet files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from flowkit.data.columns import Table, pyarrow
from flowkit.data.convert import check_finite
from flowkit.data.readers import READERS
from flowkit.errors import DataError, FlowkitError
from flowkit.files import existing, replacing

Blocks = Iterable[np.ndarray]

EXTENSIONS = (".csv", ".npy", ".parquet")


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
    suffix = check_extension(path)
    path = existing(path, "file")
    try:
        table = READERS[suffix](path, columns)
    except (FlowkitError, MemoryError, PermissionError):
        raise
    except Exception as error:  # damaged files fail in many ways
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is not a {suffix} file of numbers, or is damaged: {reason}"
        ) from error
    rows = len(table.values)
    if not rows:
        raise DataError(f"{path} has no rows")
    values, numbers = torch.from_numpy(table.values), torch.arange(1, rows + 1)
    check_finite(values, str(path), table.columns, numbers)
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


def write_blocks(path: str | Path, blocks: Blocks, rows: int, columns: Sequence[str]) -> None:
    """Write a table block by block, in the memory of one block.

    Args:
        path: As in :func:`write_table`.
        blocks: Arrays (some rows, columns) of one dtype.
        rows: Number of rows in all.
        columns: Names of the columns.
    """
    suffix = check_extension(path)
    writer = {".csv": _write_csv, ".npy": _write_npy, ".parquet": _write_parquet}
    with replacing(path) as file:
        writer[suffix](file, blocks, rows, columns)


def _write_csv(file: BinaryIO, blocks: Blocks, rows: int, columns: Sequence[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(columns)
    file.write(text.getvalue().encode())
    for block in blocks:
        # As many digits as give the same numbers back.
        digits = 17 if block.dtype == np.float64 else 9
        np.savetxt(file, block, fmt=f"%.{digits}g", delimiter=",")


def _write_npy(file: BinaryIO, blocks: Blocks, rows: int, columns: Sequence[str]) -> None:
    for place, block in enumerate(blocks):
        if place == 0:
            descr = np.lib.format.dtype_to_descr(block.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (rows, len(columns))}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(block).tobytes())


def _write_parquet(file: BinaryIO, blocks: Blocks, rows: int, columns: Sequence[str]) -> None:
    arrow = pyarrow()
    tables = (arrow.table(dict(zip(columns, block.T, strict=True))) for block in blocks)
    first = next(tables)
    with arrow.parquet.ParquetWriter(file, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def check_extension(path: str | Path) -> str:
    """Return the extension of a file, if it is known, and can be read here.

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
    return suffix
