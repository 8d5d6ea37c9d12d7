"""What the studies of papers share: options, records of results, tables, and the page.

A script makes a :class:`Study` of its options, stores each result in :class:`Records`, and writes
a page of tables with the command and the versions that made it. With ``--record FILE`` results are
stored there, one per line, and a later run continues; the records of the pages in
``docs/results/`` are in ``examples/papers/records/``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Study:
    """A script: its options, and the page that it writes.

    Args:
        file: ``__file__`` of the script.
        doc: Its docstring.
        small: The options of ``--small``, by name.
        packages: Packages whose versions the page names, of those that are installed.
        options: Every other option with its default: a number, a text, a list of them, a tuple of
            all choices, ``False`` for a flag; or its type, or the keywords of ``add_argument``.
    """

    def __init__(
        self,
        file: str,
        doc: str | None,
        *,
        small: dict[str, Any],
        packages: Sequence[str] = ("flowkit-density", "torch"),
        **options: Any,
    ) -> None:
        self.name = Path(file).stem
        self.small, self.packages = small, packages
        self.parser = argparse.ArgumentParser(description=doc)
        for name, default in options.items():
            self.parser.add_argument(f"--{name.replace('_', '-')}", **_argument(default))
        self.parser.add_argument("--small", action="store_true", help="seconds, to try it out")
        self.parser.add_argument("--record", type=Path, help="file of results, one per line")
        self.parser.add_argument("--output", type=Path, help=f"folder for {self.name}.md")
        self.options = argparse.Namespace()

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Read the options, and compute with one thread from now on."""
        self.options = self.parser.parse_args(arguments)
        if self.options.small:
            vars(self.options).update(self.small)
        torch.set_num_threads(1)
        return self.options

    @property
    def command(self) -> str:
        """The command that makes the page again."""
        given = {
            name: value
            for name, value in vars(self.options).items()
            if name not in ("output", "record", "runs") and value != self.parser.get_default(name)
        }
        words = ["python", f"examples/papers/{self.name}.py"]
        for name, value in ({"small": True} if self.options.small else given).items():
            listed = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
        return " ".join(words)

    def heading(self, title: str, *paragraphs: str) -> list[str]:
        """The first lines of the page: title, command, versions, and what was done."""
        installed = {d.name for d in distributions()}
        named = (p for p in self.packages if p in installed)
        versions = ", ".join(f"{package} {version(package)}" for package in named)
        machine = f"Python {platform.python_version()}, {platform.machine()}, one thread"
        lines = [f"# {title}", "", f"`{self.command}`: {versions}, {machine}."]
        return [*lines, *(line for text in paragraphs for line in ("", text)), ""]

    def write(self, lines: Iterable[str]) -> None:
        """Print the page, and store it in the folder of ``--output``."""
        text = "\n".join(lines).rstrip() + "\n"
        print(text)
        if self.options.output:
            self.options.output.mkdir(parents=True, exist_ok=True)
            (self.options.output / f"{self.name}.md").write_text(text)


def _argument(default: Any) -> dict[str, Any]:
    """The keywords of ``add_argument`` for a default value."""
    if default is False:
        return {"action": "store_true"}
    if isinstance(default, dict):
        return default
    if isinstance(default, type):
        return {"type": default}
    if isinstance(default, tuple):
        return {"choices": default, "default": list(default), "nargs": "+"}
    if isinstance(default, list):
        return {"type": type(default[0]), "default": default, "nargs": "+"}
    return {"type": type(default), "default": default}


class Records:
    """Results, those of earlier runs included.

    Args:
        path: File of one JSON object per line, or ``None``.
        kinds: The dataclasses of results. A line of several kinds names its own.
    """

    def __init__(self, path: Path | None, *kinds: Any) -> None:
        self.path, self.kinds = path, {kind.__name__: kind for kind in kinds}
        self.results: list[Any] = []
        if path and path.exists():
            self.results = [self._read(line) for line in path.read_text().splitlines()]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def lack(self, **key: Any) -> bool:
        """Whether no result has these values."""
        return not any(
            all(getattr(result, name, None) == value for name, value in key.items())
            for result in self
        )

    def of(self, kind: Any) -> list[Any]:
        """The results of one kind."""
        return [result for result in self if isinstance(result, kind)]

    def add(self, *results: Any) -> None:
        """Print and store results."""
        lines = [json.dumps({"kind": type(r).__name__, **asdict(r)}) for r in results]
        # As they are read again: the same types in any run.
        self.results += map(self._read, lines)
        print(*results, sep="\n", flush=True)
        if self.path:
            with self.path.open("a") as file:
                file.writelines(line + "\n" for line in lines)

    def _read(self, line: str) -> Any:
        values = json.loads(line)
        return self.kinds[values.pop("kind")](**values)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> list[str]:
    """Lines of a table, the first columns aligned to the left, the others to the right."""
    marks = ["---"] * left + ["--:"] * (len(header) - left)
    return [_line(header), f"|{'|'.join(marks)}|", *map(_line, rows), ""]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def mean_and_error(values: Any) -> tuple[float, float]:
    """The mean, and its standard error; NaN of a single value."""
    numbers = np.asarray(values, dtype=np.float64)
    error = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return float(numbers.mean()), float(error)


def spread(values: Any, digits: int = 3) -> str:
    """The mean and its standard error, as text."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f} +- {error:.{digits}f}"
