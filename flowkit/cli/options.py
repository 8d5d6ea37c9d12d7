"""Commands and options of the command line, and what their values may be."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, NoReturn

from flowkit import checks
from flowkit.cli.console import complain
from flowkit.errors import ArgumentError

_TABLE = "a .csv, .npy or .parquet file"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        complain(self.prog, f"{message}; see {self.prog} --help")
        self.exit(2)


def make_parser(commands: Iterable[Callable[[argparse.Namespace], None]]) -> Parser:
    """Make the parser, which gives each command its function as ``options.run``.

    Args:
        commands: Functions whose names and docstrings are those of the commands.
    """
    parser = Parser(
        prog="flowkit", description="Fit, sample and score densities with normalizing flows."
    )
    release = f"flowkit {version('flowkit-density')}"
    parser.add_argument("--version", action="version", version=release)
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function in commands:
        command = choices.add_parser(
            function.__name__,
            help=function.__doc__,
            description=function.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=function)
        command.add_argument(
            "--threads", type=_THREADS, default=1, help="threads of torch; few are fast here"
        )
        _OPTIONS[function.__name__](command)
    return parser


def _fit(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", metavar="DATA", help=_TABLE)
    add(
        "-o", "--output", metavar="MODEL", required=True,
        help="flow file to write; an older flow file is replaced",
    )  # fmt: skip
    add("--recipe", default="auto", help="name of the flow, or auto: several are compared")
    add(
        "--set", dest="settings", metavar="NAME=VALUE", nargs="+", action="extend", default=[],
        help="arguments of the recipe, values as JSON: layers=4 scalar=affine 'hidden=[64, 64]'; "
        "with auto only lower and upper",
    )  # fmt: skip
    add("--columns", help="names of the columns to use, separated by commas")
    add(
        "--dequantize", action="store_true",
        help="dequantize columns of integers: add uniform noise in [-1/2, 1/2), score cells, and "
        "round samples to integers",
    )  # fmt: skip
    add("--validation", type=_FRACTION, default=0.15, help="held-out fraction, in [0, 1)")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_POSITIVE, help="maximum number of epochs")
    length.add_argument(
        "--steps", type=_POSITIVE, help="maximum number of steps, in place of epochs"
    )
    add("--batch-size", type=_POSITIVE, help="samples per step (by default chosen by the rows)")
    add("--lr", type=_ABOVE_ZERO, default=2e-3, help="learning rate")
    add(
        "--patience", type=_POSITIVE, default=16,
        help="validations without gain before the learning rate falls to zero",
    )  # fmt: skip
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
    add("--steps", type=_POSITIVE, default=3000, help="optimiser steps")
    add("--seed", type=_SEED, default=0, help="seed of everything random")
    add(
        "--small", action="store_true",
        help="a thirtieth of the pixels and of the steps, to see that all works",
    )  # fmt: skip


def _checked(check: Callable[..., Any], **limits: Any) -> Callable[[str], Any]:
    """A reader of numbers, by the check of arguments in Python."""

    def read(text: str) -> Any:
        try:
            value = json.loads(text)
        except (RecursionError, ValueError):
            value = text
        try:
            return check("", "value", value, **limits)
        except ArgumentError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    return read


_POSITIVE = _checked(checks.integer, least=1, most=10**12)
_SEED = _checked(checks.integer, least=0, most=2**63 - 1)
# Threads that every machine can start.
_THREADS = _checked(checks.integer, least=1, most=max(64, os.cpu_count() or 1))
_ABOVE_ZERO = _checked(checks.number, above=0)
_FRACTION = _checked(checks.number, least=0, below=1)
_OPTIONS = {"fit": _fit, "sample": _sample, "score": _score, "describe": _describe, "demo": _demo}
