"""Read files that other packages bring; an error says how to get one that is missing."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from flowkit.errors import DataError, MissingDependencyError


def installed(package: str, *parts: str) -> Path:
    """Where a file of a Python package is, of which nothing is imported.

    Example:
        >>> installed("flowkit", "flow.py").is_file(), installed("nowhere", "a.csv").is_file()
        (True, False)
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(folders[0] if folders else package, *parts)


def read_packaged(owner: str, path: Path, remedy: str) -> bytes:
    """The content of a file, of one that ends in ``.gz`` after decompression.

    Args:
        owner: Whose data these are, for messages.
        path: The file.
        remedy: How to get it.

    Raises:
        MissingDependencyError: If it is not there.
        DataError: If it cannot be read.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise MissingDependencyError(f"{owner} found no {path}; remedy: {remedy}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{owner} cannot read {path}: {error}; remedy: fetch it anew") from error


def read_lines(owner: str, path: Path, remedy: str) -> list[str]:
    """The lines of a text file that are not blank; see :func:`read_packaged`."""
    # Bytes that are no text become no number.
    text = read_packaged(owner, path, remedy).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def as_table(owner: str, rows: Sequence[Sequence[str]], what: str) -> np.ndarray:
    """Numbers in words as an array (rows, columns) in float64, NaN for ``NA``.

    Raises:
        DataError: If there are none, a row is shorter than the next, or a word is no number.
    """
    try:
        numbers = [[float("nan" if word == "NA" else word) for word in row] for row in rows]
        table = np.array(numbers, dtype=np.float64)
        if table.ndim != 2 or not table.size:
            raise ValueError("no table")
    except ValueError as error:
        raise DataError(
            f"{owner} expected numbers and NA as {what}, a row as long as the next: {error}; "
            "remedy: fetch the data anew"
        ) from None
    return table
