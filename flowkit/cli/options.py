"""Commands and options of the command line, and what their values may be."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

from flowkit.cli.console import complain

# Threads that every machine can start.
_MOST_THREADS = max(64, os.cpu_count() or 1)
_MOST = 10**12
_TABLE = "a .csv, .npy or .parquet file"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        complain(self.prog, f"{message}; see {self.prog} --help")
        self.exit(2)


def make_parser(commands: dict[str, Callable[[argparse.Namespace], None]]) -> Parser:
    """Make the parser, which gives each command its function as ``options.run``."""
    parser = Parser(
        prog="flowkit", description="Fit, sample and score densities with normalizing flows."
    )
    release = f"flowkit {version('flowkit-density')}"
    parser.add_argument("--version", action="version", version=release)
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_options) in _COMMANDS.items():
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
        add_options(command)
    return parser


def _fit(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", metavar="DATA", help=_TABLE)
    add(
        "-o", "--output", metavar="MODEL", required=True,
        help="flow file to write; an older flow file is replaced",
    )  # fmt: skip
    add("--recipe", default="coupling_flow", help="name of the flow")
    add(
        "--set", dest="settings", metavar="NAME=VALUE", nargs="+", action="extend", default=[],
        help="arguments of the recipe, values as JSON: layers=4 scalar=affine 'hidden=[64, 64]'",
    )  # fmt: skip
    add("--columns", help="names of the columns to use, separated by commas")
    add(
        "--dequantize", action="store_true",
        help="dequantize columns of integers: add uniform noise in [-1/2, 1/2), score cells, and "
        "round samples to integers",
    )  # fmt: skip
    add("--validation", type=float, default=0.1, help="held-out fraction, in [0, 1)")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_POSITIVE, help="maximum number of epochs (100)")
    length.add_argument("--steps", type=_POSITIVE, help="optimiser steps, in place of epochs")
    add("--batch-size", type=_POSITIVE, default=256, help="samples per step")
    add("--lr", type=_above_zero, default=1e-3, help="learning rate")
    add("--patience", type=_POSITIVE, default=20, help="epochs without gain before stopping")
    add("--seed", type=_SEED, default=0, help="seed of everything random")
    add("--quiet", action="store_true", help="no progress bar")


def _sample(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", help="flow file")
    add("-n", type=_POSITIVE, default=1000, help="number of samples")
    add("-o", "--output", metavar="OUT", required=True, help=f"{_TABLE}; an older one is replaced")
    add("--seed", type=_SEED, default=0, help="seed of the draw")


def _score(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", help="flow file")
    add("data", metavar="DATA", help=_TABLE)
    add(
        "-o", "--output", metavar="OUT",
        help=f"{_TABLE} for one number per row; an older one is replaced",
    )  # fmt: skip


def _describe(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="flow file")


def _demo(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("-o", "--output", default="demo", help="folder for what it writes")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=_above_zero, default=150.0, help="time for training")
    length.add_argument("--steps", type=_POSITIVE, help="optimiser steps, instead of seconds")
    add("--seed", type=_SEED, default=0, help="seed of everything random")
    add("--small", action="store_true", help="a thirtieth of the pixels, to see that all works")


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


_POSITIVE, _SEED = _integer(1, _MOST), _integer(0, 2**63 - 1)
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "fit": ("Fit a flow to the rows of a table.", _fit),
    "sample": ("Draw samples from a flow.", _sample),
    "score": ("Compute the log-density of the rows of a table, in nats.", _score),
    "describe": ("Show how the flow of a file was made, and its layers.", _describe),
    "demo": ("Fit the pixels of a photograph, and compare with three others.", _demo),
}
