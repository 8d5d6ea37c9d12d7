"""Run every Python block of the documentation as printed.

``python docs/run_snippets.py`` runs all pages, or those that follow as arguments. Each page runs
in a fresh interpreter and an empty folder, its blocks in order, as one program (``__main__``). A
block that raises, or warns, fails the run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Deprecations are those of torch's own compiler.
WARNINGS = ["-Werror", "-Wignore::DeprecationWarning", "-Wignore::FutureWarning"]
BLOCK = re.compile(
    r"^( *)```(?:\{code-cell\} )?python\n(?:\1:[^\n]*\n)*(.*?)^\1```$", re.MULTILINE | re.DOTALL
)


def pages() -> list[Path]:
    """All pages with Python blocks: the README and the documentation."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "_build" not in page.parts and any(blocks(page))]


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The Python blocks of a page, each with the number of lines before it."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        yield text.count("\n", 0, block.start(2)), textwrap.dedent(block[2])


def run_here(page: Path) -> None:
    """Run the blocks of a page in this process, in place of its ``__main__``."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    for lines, code in blocks(page):
        exec(compile("\n" * lines + code, str(page), "exec"), vars(main))


def run(page: Path) -> str:
    """Run a page in an interpreter of its own; returns its error output, empty if it works."""
    environment = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *WARNINGS, Path(__file__).resolve(), "--here", page.resolve()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    return "" if done.returncode == 0 else done.stderr or f"exit status {done.returncode}"


def main() -> None:
    """Run all pages, or those that are named; exit with an error if one fails."""
    if sys.argv[1:2] == ["--here"]:
        run_here(Path(sys.argv[2]))
        return
    failed = 0
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        begun = time.perf_counter()
        error = run(page)
        failed += bool(error)
        state = "FAILED" if error else "ok"
        print(f"{page.name}: {state}, {time.perf_counter() - begun:.0f} s", flush=True)
        if error:
            print(textwrap.indent(error, "    "), flush=True)
    if failed:
        sys.exit(f"{failed} page(s) have a block that does not run as printed")


if __name__ == "__main__":
    main()
