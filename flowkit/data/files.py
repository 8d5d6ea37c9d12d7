"""Read rows of arrays in files; a file that changes during a fit is an error and no crash."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress

import numpy as np

from flowkit.errors import DataError

# Where the system maps so much at once, every row brings a megabyte of the file into memory.
_ROWS_MAPPED = 64
# A row that lies in the file with gaps is read with them up to this many bytes.
_SPAN = 4096


class FileArray:
    """Read an array in a file, without a map: only the bytes of the given rows.

    To touch a mapped page behind the end of a file that was cut off would end the process.

    Args:
        path: The file.
        array: A map of the file, or of a part of it, with rows in any order.

    Raises:
        DataError: From :meth:`read`, if the file is shorter than it was, or, where the map cannot
            be written to, was written to since.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from flowkit.data.files import FileArray
        >>> path = os.path.join(tempfile.mkdtemp(), "x.npy")
        >>> np.save(path, np.arange(6.0).reshape(3, 2))
        >>> FileArray(path, np.load(path, mmap_mode="r")).read(np.array([0, 2]))
        array([[0., 1.],
               [4., 5.]])
    """

    def __init__(self, path: str | os.PathLike[str], array: np.memmap) -> None:
        self.path, self.dtype, self.shape = path, array.dtype, array.shape
        self.ndim, self.size, self.strides = array.ndim, array.size, array.strides
        start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        begin = np.frombuffer(array._mmap, np.uint8)  # type: ignore[attr-defined]
        self.position = start + _address(array) - _address(begin)
        self._fixed = array.mode == "r"
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._stat = os.fstat(self._file)

    def __len__(self) -> int:
        return self.shape[0]

    def holds_the_same_file_as_its_map(self) -> bool:
        """Whether the file at the path is the mapped one, of which the map holds a descriptor."""
        mine = (self._stat.st_dev, self._stat.st_ino)
        for name in os.listdir("/dev/fd"):
            with suppress(OSError, ValueError):
                other = os.fstat(int(name))
                if int(name) != self._file and (other.st_dev, other.st_ino) == mine:
                    return True
        return False

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, which increase, in the byte order of the machine."""
        values = self._gather(rows, self.position, self.shape, self.strides)
        # Afterwards: what was read before the file changed is good.
        now = os.fstat(self._file)
        if now.st_size < self._stat.st_size or (
            self._fixed and now.st_mtime_ns != self._stat.st_mtime_ns
        ):
            raise self._changed()
        return values

    def _changed(self) -> DataError:
        now = os.fstat(self._file).st_size
        return DataError(
            f"the file {os.fspath(self.path)} changed while it was read: it had "
            f"{self._stat.st_size} bytes and has {now}, or was written to; remedy: write to "
            "another file and move it there when the fit has ended"
        )

    def _gather(
        self, rows: np.ndarray, position: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> np.ndarray:
        """The rows of an array that begins at ``position``."""
        each = [(size - 1) * stride for size, stride in zip(shape[1:], strides[1:], strict=True)]
        low = sum(min(0, reach) for reach in each)
        span = sum(map(abs, each)) + self.dtype.itemsize
        dense = int(np.prod(shape[1:])) * self.dtype.itemsize
        if span > max(2 * dense, _SPAN):
            # Far apart, as in Fortran order: one column after the other.
            axis = 1 + int(np.argmax(np.abs(strides[1:])))
            columns = [
                self._gather(
                    rows,
                    position + i * strides[axis],
                    shape[:axis] + shape[axis + 1 :],
                    strides[:axis] + strides[axis + 1 :],
                )
                for i in range(shape[axis])
            ]
            return np.stack(columns, axis)
        data = self._bytes(position + low + rows.astype(np.int64) * strides[0], span)
        values = np.ndarray(
            (len(rows), *shape[1:]), self.dtype, data, offset=-low, strides=(span, *strides[1:])
        )
        return values.astype(self.dtype.newbyteorder("="))

    def _bytes(self, places: np.ndarray, span: int) -> bytes:
        """``span`` bytes from each place on; neighbours are read together."""
        first = np.flatnonzero(np.diff(places, prepend=places[:1] - span - 1) != span)
        lengths = np.diff(first, append=len(places)) * span
        parts = [
            os.pread(self._file, length, place)
            for place, length in zip(places[first].tolist(), lengths.tolist(), strict=True)
        ]
        data = b"".join(parts)
        if len(data) != len(places) * span:
            raise self._changed()
        return data


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def in_file(array: np.memmap) -> FileArray | np.memmap:
    """Return the rows of a map as rows of its file, where the file is known and holds them all.

    A copy-on-write map may hold changes that are not in the file, and the file of another may be
    gone, or another one by now: these are left as they are.
    """
    if array.filename is None or array.mode == "c" or not os.path.isdir("/dev/fd"):
        return array
    try:
        opened = FileArray(array.filename, array)
    except OSError:
        return array
    return opened if opened.holds_the_same_file_as_its_map() else array


def read_rows(array: FileArray | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows with these numbers, which increase, in the byte order of the machine."""
    if isinstance(array, FileArray):
        return array.read(rows)
    values = np.empty((len(rows), *array.shape[1:]), array.dtype.newbyteorder("="))
    for start in range(0, len(rows), _ROWS_MAPPED):
        here = slice(start, start + _ROWS_MAPPED)
        _check_length(array)
        values[here] = array[rows[here]]
        _release(array)
    return values


def _check_length(array: np.ndarray) -> None:
    file = getattr(array, "_mmap", None)
    if file is None:
        return
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # type: ignore[attr-defined]
    if file.size() < start + len(file):
        raise DataError(
            f"the file of a memory map became shorter: {file.size()} of {start + len(file)} bytes "
            "are left; remedy: write to another file, and move it there when the fit has ended"
        )


def _release(array: np.ndarray) -> None:
    """Give back pages that were read: they would stay resident, in the end the whole file.

    Pages of the mode ``"c"`` stay, for they may hold changes that are not in the file.
    """
    file = getattr(array, "_mmap", None)
    if file is not None and getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)
