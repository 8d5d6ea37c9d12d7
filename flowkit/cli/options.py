"""The words of the command line: commands, options, and what their values may be."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from flowkit.cli.console import printable

# Threads that every machine can start.
_MOST_THREADS = max(64, os.cpu_count() or 1)
_MOST = 10**12


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        line = printable(" ".join(message.split()))
        if len(line) > 1000:
            line = f"{line[:1000]} ..."
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        text = f"{self.prog}: {line}; see {self.prog} --help\n"
        self.exit(2, text.encode(encoding, "backslashreplace").decode(encoding))


def make_parser(commands: dict[str, Callable[[argparse.Namespace], None]]) -> Parser:
    """The parser, which gives each command its function as ``options.run``."""
    import flowkit

    parser = Parser(
        prog="flowkit", description="Fit, sample and score densities with normalizing flows."
    )
    parser.add_argument("--version", action="version", version=f"flowkit {flowkit.__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tables = "a .csv, .npy or .parquet file"

    def add(name: str, text: str) -> Any:
        command = choices.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=commands[name])
        command.add_argument(
            "--threads", type=_integer(1, _MOST_THREADS), default=1,
            help="threads of torch; few are fast here",
        )  # fmt: skip
        return command

    positive, seed = _integer(1, _MOST), _integer(0, 2**63 - 1)
    command = add("fit", "Fit a flow to the rows of a table.")
    command.add_argument("data", metavar="DATA", help=tables)
    command.add_argument(
        "-o", "--output", metavar="MODEL", required=True,
        help="flow file to write; an older flow file is replaced",
    )  # fmt: skip
    command.add_argument("--recipe", default="coupling_flow", help="name of the flow")
    command.add_argument(
        "--set", dest="settings", metavar="NAME=VALUE", nargs="+", action="extend", default=[],
        help="arguments of the recipe, values as JSON: layers=4 scalar=affine 'hidden=[64, 64]'",
    )  # fmt: skip
    command.add_argument("--columns", help="names of the columns to use, separated by commas")
    command.add_argument(
        "--dequantize", action="store_true",
        help="dequantize columns of integers: add uniform noise in [-1/2, 1/2), score cells, and "
        "round samples to integers",
    )  # fmt: skip
    command.add_argument(
        "--validation", type=float, default=0.1, help="fraction of the rows held out, in [0, 1)"
    )
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, help="maximum number of epochs (100)")
    length.add_argument("--steps", type=positive, help="optimiser steps, in place of epochs")
    command.add_argument("--batch-size", type=positive, default=256, help="rows per step")
    command.add_argument("--lr", type=_above_zero, default=1e-3, help="learning rate")
    command.add_argument(
        "--patience", type=positive, default=20, help="epochs without gain before stopping"
    )
    command.add_argument("--seed", type=seed, default=0, help="seed of everything random")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("sample", "Draw rows from a flow.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")
    command.add_argument("-n", type=positive, default=1000, help="number of rows")
    command.add_argument(
        "-o", "--output", metavar="OUT", required=True, help=f"{tables}; an older one is replaced"
    )
    command.add_argument("--seed", type=seed, default=0, help="seed of the draw")

    command = add("score", "Log-density of the rows of a table, in nats.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")
    command.add_argument("data", metavar="DATA", help=tables)
    command.add_argument(
        "-o", "--output", metavar="OUT",
        help=f"{tables} for one number per row; an older one is replaced",
    )  # fmt: skip

    command = add("describe", "Say what is in the file of a flow.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")

    command = add("demo", "Fit the pixels of a photograph, and compare with three others.")
    command.add_argument("-o", "--output", default="demo", help="folder for what it writes")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=_above_zero, default=150.0, help="time for training")
    length.add_argument("--steps", type=positive, help="optimiser steps, instead of seconds")
    command.add_argument("--seed", type=seed, default=0, help="seed of everything random")
    command.add_argument(
        "--small", action="store_true", help="a thirtieth of the pixels, to see that all works"
    )
    return parser


def _integer(least: int, most: int) -> Callable[[str], int]:
    """A reader of integers in a range."""

    def read(text: str) -> int:
        # Decimal digits beyond those of the largest number need not be read.
        plain = text.isascii() and text.isdecimal() and len(text) <= len(str(most)) + 20
        value = int(text) if plain else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected an integer from {least} to {most}, got {text!r}"
            )
        return value

    return read


def _above_zero(text: str) -> float:
    """A reader of finite numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value
