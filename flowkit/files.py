"""Files are written beside their place and then moved there: no failure leaves half of one.

Everything that flowkit writes goes through :func:`replacing`; a full disk, an exception or a kill
leaves an older file as it was.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flowkit.errors import DataError

try:
    import fcntl
except ImportError:  # Windows, which deletes no file that somebody has open
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".flowkit-", ".part"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends without an exception.

    The content goes to a temporary file in the same folder, is flushed to the disk, and is moved
    to its place in one step. Temporary files that killed processes left in the folder are
    removed. A new file has the permissions that the umask leaves; an existing one keeps its own.
    A symbolic link stays a link, and the file that it points to is replaced; other hard links
    to the file keep the old content.

    Args:
        path: Where the file goes.

    Raises:
        DataError: If the path is a device, a pipe or a socket.
        OSError: If the path is a folder or cannot be written, or the disk is full; names the path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = Path(folder) / "numbers"
        ...     with replacing(place) as file:
        ...         _ = file.write(b"1 2 3")
        ...     place.read_bytes(), len(list(Path(folder).iterdir()))
        (b'1 2 3', 1)
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    remove_leftovers(target.parent)
    temporary: Path | None = None
    try:
        temporary, file = _temporary_in(target.parent)
        with file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()
            os.replace(temporary, target)
        _flush_folder(target.parent)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before the work whose result goes there.

    Raises:
        DataError: If the path is a device, a pipe or a socket, or no path at all.
        OSError: If its folder is missing or not writable, or the path is a folder or a file that
            may not be written.

    Example:
        >>> check_writable("nowhere/flow.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no folder nowhere to write flow.safetensors to
    """
    name = os.fsdecode(path)
    if "\0" in name:
        raise DataError(f"{name!r} is no path: it holds a NUL character")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{name} is a folder, expected the name of a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(path).parent} to write {Path(path).name} to")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write {Path(path).name} in {Path(path).parent}")
    if target.exists():
        if not target.is_file():
            raise DataError(f"{name} is a device or a pipe, expected the name of a file to write")
        if not os.access(target, os.W_OK):
            raise PermissionError(f"no permission to write {name}, which is write-protected")


def existing(path: str | os.PathLike[str], what: str) -> Path:
    """Check that there is a regular file at a path.

    Args:
        path: Where it should be.
        what: What it should be, for messages.

    Raises:
        FileNotFoundError: If there is none.
        IsADirectoryError: If it is a folder.

    Example:
        >>> existing("nowhere.csv", "table")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no table at nowhere.csv
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, expected a {what}")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no {what} at {path}")
    return Path(path)


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths are one existing file, by whatever spelling or links.

    Example:
        >>> same_file(".", "./."), same_file("nowhere", "nowhere")
        (True, False)
    """
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that ended before they could do it."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR)
            try:
                if fcntl is not None:
                    # Whoever still writes it holds the lock.
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(handle)
            if fcntl is None:
                path.unlink()


def _temporary_in(folder: Path) -> tuple[Path, BinaryIO]:
    """A new, locked file in the folder."""
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(4)}{_SUFFIX}"
        with suppress(FileExistsError):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            file = os.fdopen(handle, "w+b")
            if fcntl is None:
                return path, file
            # Another process may take the new file for a leftover before it is locked.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path).st_ino == os.fstat(handle).st_ino:
                    return path, file
            file.close()


def _flush_folder(folder: Path) -> None:
    """Make the move itself survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
