"""What the command prints: one place where text from files and arguments becomes harmless."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_LONGEST = 1000


def printable(text: str) -> str:
    r"""Escape what a terminal would obey instead of show: control and format characters.

    Example:
        >>> printable("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def say(text: str) -> None:
    """Print lines for the reader, at once even into a file."""
    _print(text, sys.stdout)


def complain(program: str, text: object) -> None:
    """Print one line about an error of a program, ``flowkit fit``."""
    line = " ".join(str(text).split())
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]} ... ({len(line):,} characters)"
    with suppress(OSError):
        _print(f"{program}: {line}", sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed by the shell
        return
    safe = "\n".join(printable(line) for line in text.split("\n"))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(safe.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def why(error: BaseException) -> str:
    """The reason of an error, without the number of an OSError."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{place}{error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show warnings as one line each, without the place in the code that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        with suppress(OSError):
            _print(f"note: {' '.join(str(message).split())}", sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def abandon_stdout() -> None:
    """Let the interpreter end in silence after the reader of stdout has gone."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
