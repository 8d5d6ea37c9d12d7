"""Readers of .csv, .npy and .parquet files, bounded by their size; nothing is unpickled."""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowkit.data.columns import choose, pyarrow
from flowkit.errors import DataError

Rows = tuple[np.ndarray, tuple[str, ...], int]

_MISSING = ("", "na", "n/a", "null", "none", "?", ".")
# Up to here float64 tells integers apart.
_LARGEST_INTEGER = 2**53
_LONG_INTEGER = re.compile(r"(?<![\d.])\d{16,}")
_BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
# Compressed columns may be larger than their file, but not by any factor.
_LEAST_BYTES, _EXPANSION = 2**26, 1000


def read_csv(path: Path, columns: Sequence[str] | None) -> Rows:
    """Read a .csv file, of commas, semicolons or tabs."""
    text = _text(path)
    try:
        return _parse_csv(text, columns, path)
    except csv.Error as error:
        raise DataError(f"{path} is not a .csv file: {error}") from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(_BYTE_ORDERS):
        raise DataError(f"{path} is UTF-16 or UTF-32 text; remedy: save it as UTF-8")
    if b"\0" in content:
        raise DataError(f"{path} is not a .csv file in UTF-8: it holds NUL bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a .csv file in UTF-8: byte {content[error.start]:#x} at "
            f"{error.start}; remedy: save it as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def _parse_csv(text: str, columns: Sequence[str] | None, path: Path) -> Rows:
    head = next(line for line in io.StringIO(text) if line.strip())
    delimiter = max(",;\t", key=head.count)

    def records() -> Any:
        return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    rows = records()
    first = [cell.strip() for cell in next(row for row in rows if row)]
    named = not _is_data(first)
    if named:
        # Only what follows the names decides how numbers are read.
        body = text.split("\n", rows.line_num)[-1]
    else:
        rows, body = records(), text
    chosen, names = choose(first if named else len(first), columns, path)
    values = _csv_values(rows, chosen, names, len(first), path, plain=_is_plain(body))
    return values, names, 0 if named else len(first)


def _is_data(cells: Sequence[str]) -> bool:
    """Whether a first row holds numbers, some of them missing perhaps, and no names."""
    numbers = [_is_number(cell) for cell in cells]
    missing = [cell.lower() in _MISSING for cell in cells]
    return any(numbers) and all(a or b for a, b in zip(numbers, missing, strict=True))


def _is_plain(text: str) -> bool:
    """Whether Python's float reads no more than the numbers of a table in this text."""
    return text.isascii() and "_" not in text and _LONG_INTEGER.search(text) is None


def _csv_values(
    rows: Any,
    chosen: Sequence[int],
    names: Sequence[str],
    width: int,
    path: Path,
    *,
    plain: bool,
) -> np.ndarray:
    """Read the numbers of the chosen columns; an empty cell is missing."""
    values, blank = array("d"), 0
    for row in rows:
        if not row:
            blank += 1
            continue
        if len(row) != width:
            raise DataError(
                f"{path}, line {rows.line_num}: expected {width} cells as in the first line, "
                f"got {len(row)}"
            )
        if width == 1 and values:
            # Within a single column an empty line is an empty cell.
            values.extend([math.nan] * blank)
        blank = 0
        try:
            if not plain:
                raise ValueError
            values.extend([float(row[i]) for i in chosen])
        except ValueError:
            values.extend([_number(row[i], names[k], rows, path) for k, i in enumerate(chosen)])
    return np.frombuffer(values, dtype=np.float64).reshape(-1, len(chosen)).copy()


def _number(cell: str, name: str, rows: Any, path: Path) -> float:
    text = cell.strip()
    if text.lower() in _MISSING:
        return math.nan
    if not _is_number(text):
        shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
        comma = "; a decimal comma or thousands separator" if "," in cell else ""
        raise DataError(
            f"{path}, line {rows.line_num}: column {name!r} holds text ({shown!r}{comma}); "
            "remedy: choose columns of numbers with --columns"
        )
    if text.lstrip("+-").isdigit() and abs(float(text)) >= _LARGEST_INTEGER:
        raise _too_long(path, name)
    return float(text)


def _is_number(text: str) -> bool:
    if not text.isascii() or "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _too_long(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: column {name!r} holds integers beyond 2**53, whose last digits float64 loses; "
        "remedy: subtract a constant from them, or leave the column out with --columns"
    )


def read_npy(path: Path, columns: Sequence[str] | None) -> Rows:
    """Read an array (rows, columns) of real numbers."""
    numbers = _npy_array(path)
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2:
        raise DataError(f"{path} expected an array (rows, columns), got shape {numbers.shape}")
    chosen, names = choose(numbers.shape[1], columns, path)
    unnamed = numbers.shape[1]
    numbers = numbers[:, chosen]
    if numbers.dtype.kind in "iu":
        far = ((numbers > _LARGEST_INTEGER) | (numbers < -_LARGEST_INTEGER)).any(0)
        if far.any():
            raise _too_long(path, names[int(far.argmax())])
    with np.errstate(over="ignore"):
        return numbers.astype(np.float64), names, unnamed


def _npy_array(path: Path) -> np.ndarray:
    """Map the array into memory: nothing is unpickled, and no more is read than the file holds."""
    try:
        with np.errstate(over="raise"):
            numbers = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a header is a Python literal, which fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a .npy file of numbers, or is damaged: {reason}") from None
    if numbers.dtype.kind not in "fiub":
        raise DataError(f"{path} expected an array of numbers, got {numbers.dtype}")
    left = path.stat().st_size - (numbers.offset or 0) - numbers.nbytes
    if left:
        raise DataError(f"{path} is damaged: {left} bytes follow its array")
    return np.asarray(numbers)


def read_parquet(path: Path, columns: Sequence[str] | None) -> Rows:
    """Read columns of real numbers."""
    arrow = pyarrow()
    try:
        file = arrow.parquet.ParquetFile(path)
        schema, about = file.schema_arrow, file.metadata
        chosen, names = choose([str(name) for name in schema.names], columns, path)
        _check_types(arrow, [schema.field(i).type for i in chosen], names, path)
        rows = sum(max(about.row_group(i).num_rows, 0) for i in range(about.num_row_groups))
        bytes_ = 8 * len(names) * max(rows, about.num_rows)
        if bytes_ > max(_LEAST_BYTES, _EXPANSION * path.stat().st_size):
            raise DataError(
                f"{path} is damaged or hostile: {path.stat().st_size} bytes announce "
                f"{max(rows, about.num_rows)} rows"
            )
        table = file.read(columns=list(names)).select(list(names))
        parts = [_parquet_column(arrow, table[name], name, path) for name in names]
    except DataError:
        raise
    except (arrow.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a .parquet file, or is damaged: {reason}") from None
    return np.column_stack(parts), names, 0


def _check_types(arrow: Any, kinds: Sequence[Any], names: Sequence[str], path: Path) -> None:
    types = arrow.types
    for name, kind in zip(names, kinds, strict=True):
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                f"{path}: column {name!r} holds {kind}, not numbers; remedy: choose columns of "
                "numbers with --columns"
            )


def _parquet_column(arrow: Any, column: Any, name: str, path: Path) -> np.ndarray:
    """Convert one column to float64, with NaN where a value is missing."""
    try:
        return column.cast(arrow.float64()).to_numpy()
    except arrow.ArrowInvalid:
        raise _too_long(path, name) from None


READERS: dict[str, Callable[[Path, Sequence[str] | None], Rows]] = {
    ".csv": read_csv,
    ".npy": read_npy,
    ".parquet": read_parquet,
}
