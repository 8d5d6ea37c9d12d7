"""Readers of .csv, .npy and .parquet files, bounded by their size; nothing is unpickled."""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from flowkit.data.columns import Table, choose, pyarrow
from flowkit.errors import DataError

_MISSING = {"", "na", "n/a", "null", "none", "?", "."}
# Up to here float64 tells integers apart.
_LARGEST_INTEGER = 2**53
_LONG_INTEGER = re.compile(r"(?<![\d.])\d{16,}")
_BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
# Compressed columns may be larger than their file, but not by any factor.
_LEAST_BYTES, _EXPANSION = 2**26, 1000


def read_csv(path: Path, columns: Sequence[str] | None) -> Table:
    """Read a .csv file, of commas, semicolons or tabs; an empty cell is missing."""
    text = _text(path)
    head = next(line for line in io.StringIO(text) if line.strip())
    delimiter = max(",;\t", key=head.count)
    source = io.StringIO(text.rstrip("\r\n"), newline="")
    rows = csv.reader(source, delimiter=delimiter, strict=True)
    first = [cell.strip() for cell in next(filter(None, rows))]
    width, named = len(first), not _is_data(first)
    chosen, names = choose(first if named else width, columns, path)
    # Only what follows the names decides whether Python's float reads too much.
    body = text[source.tell() :] if named else text
    plain = body.isascii() and "_" not in body and _LONG_INTEGER.search(body) is None
    values = array("d")
    for row in rows if named else chain([first], rows):
        # Within a single column an empty line is an empty cell.
        cells = row or [""] * (width == 1 and len(values) > 0)
        if not cells:
            continue
        if len(cells) != width:
            raise DataError(
                f"{path}, line {rows.line_num}: expected {width} cells as in the first line, "
                f"got {len(cells)}"
            )
        try:
            if not plain:
                raise ValueError
            values.extend([float(cells[i]) for i in chosen])
        except ValueError:
            place = f"{path}, line {rows.line_num}"
            values.extend([_cell(cells[i], names[k], place) for k, i in enumerate(chosen)])
    table = np.frombuffer(values, dtype=np.float64).reshape(-1, len(chosen)).copy()
    return Table(table, names, 0 if named else width)


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


def _is_data(cells: Sequence[str]) -> bool:
    """Whether a first row holds numbers, some of them missing perhaps, and no names."""
    try:
        return len([_number(cell) for cell in cells if cell.lower() not in _MISSING]) > 0
    except ValueError:
        return False


def _number(text: str) -> float:
    """A number as tables write it; Python's own may have underscores and other digits."""
    if not text.isascii() or "_" in text:
        raise ValueError
    return float(text)


def _cell(cell: str, name: str, place: str) -> float:
    """The number in a cell, NaN where it is missing."""
    text = cell.strip()
    try:
        number = math.nan if text.lower() in _MISSING else _number(text)
    except ValueError:
        shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
        comma = "; a decimal comma or thousands separator" if "," in cell else ""
        raise DataError(
            f"{place}: column {name!r} holds text ({shown!r}{comma}); remedy: choose columns of "
            "numbers with --columns"
        ) from None
    if abs(number) >= _LARGEST_INTEGER and text.lstrip("+-").isdigit():
        raise _too_long(place, name)
    return number


def _too_long(place: str | Path, name: str) -> DataError:
    return DataError(
        f"{place}: column {name!r} holds integers beyond 2**53, whose last digits float64 loses; "
        "remedy: subtract a constant from them, or leave the column out with --columns"
    )


def read_npy(path: Path, columns: Sequence[str] | None) -> Table:
    """Read an array (rows, columns) of real numbers."""
    # A map: nothing is unpickled, and no more is read than the file holds.
    with np.errstate(over="raise"):
        mapped = np.lib.format.open_memmap(path, mode="r")
    if mapped.dtype.kind not in "fiub":
        raise DataError(f"{path} expected an array of numbers, got {mapped.dtype}")
    left = path.stat().st_size - (mapped.offset or 0) - mapped.nbytes
    if left:
        raise DataError(f"{path} is damaged: {left} bytes follow its array")
    numbers = np.asarray(mapped[:, None] if mapped.ndim == 1 else mapped)
    if numbers.ndim != 2:
        raise DataError(f"{path} expected an array (rows, columns), got shape {numbers.shape}")
    chosen, names = choose(numbers.shape[1], columns, path)
    values = numbers[:, chosen]
    if values.dtype.kind in "iu":
        far = ((values > _LARGEST_INTEGER) | (values < -_LARGEST_INTEGER)).any(0)
        if far.any():
            raise _too_long(path, names[int(far.argmax())])
    with np.errstate(over="ignore"):
        return Table(values.astype(np.float64), names, numbers.shape[1])


def read_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    """Read columns of real numbers, NaN where a value is missing."""
    arrow = pyarrow()
    types, file = arrow.types, arrow.parquet.ParquetFile(path)
    schema, about = file.schema_arrow, file.metadata
    chosen, names = choose([str(name) for name in schema.names], columns, path)
    for name, i in zip(names, chosen, strict=True):
        kind = schema.field(i).type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                f"{path}: column {name!r} holds {kind}, not numbers; remedy: choose columns of "
                "numbers with --columns"
            )
    groups = sum(max(about.row_group(i).num_rows, 0) for i in range(about.num_row_groups))
    rows, size = max(groups, about.num_rows), path.stat().st_size
    if 8 * len(names) * rows > max(_LEAST_BYTES, _EXPANSION * size):
        raise DataError(f"{path} is damaged or hostile: {size} bytes announce {rows} rows")
    read = file.read(columns=list(names))
    parts = []
    for name in names:
        try:
            parts.append(read[name].cast(arrow.float64()).to_numpy())
        except arrow.ArrowInvalid:
            raise _too_long(path, name) from None
    return Table(np.column_stack(parts), names)


READERS: dict[str, Callable[[Path, Sequence[str] | None], Table]] = {
    ".csv": read_csv,
    ".npy": read_npy,
    ".parquet": read_parquet,
}
