"""The ``flowkit`` command: fit, sample, score and describe flows of tables, and the demo.

Errors that a user can mend end in one line on stderr and exit code 2, never in a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from flowkit.cli.tables import check_extension, read_table, write_table
from flowkit.errors import DataError, FlowkitError, RecipeError, ShapeError

_LEAST_ROWS = 10
_BLOCK = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``flowkit`` command.

    Args:
        argv: The words after ``flowkit``; those of the process by default.

    Returns:
        The exit code: 0, or 2 after an error in the input, 130 after Ctrl-C.

    Example:
        >>> from flowkit.cli import main
        >>> main(["describe", "nowhere.safetensors"])  # the reason goes to stderr
        2
    """
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = options.run
    try:
        with _own_process(options.threads):
            command(options)
    except (FlowkitError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"flowkit {options.command}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"flowkit {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _own_process(threads: int) -> Iterator[None]:
    """Set threads for the command, and leave a caller's threads and random state as they were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    import flowkit

    parser = _Parser(
        prog="flowkit", description="Fit, sample and score densities with normalizing flows."
    )
    parser.add_argument("--version", action="version", version=f"flowkit {flowkit.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tables = "a .csv, .npy or .parquet file"

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument(
            "--threads", type=_positive, default=1, help="threads of torch; few are fast here"
        )
        return command

    command = add("fit", _fit, "Fit a flow to the rows of a table.")
    command.add_argument("data", metavar="DATA", help=tables)
    command.add_argument("-o", "--output", metavar="MODEL", required=True, help="file to write")
    command.add_argument("--recipe", default="coupling_flow", help="name of the flow")
    command.add_argument(
        "--set", dest="settings", metavar="NAME=VALUE", nargs="+", action="extend", default=[],
        help="arguments of the recipe, values as JSON: layers=4 scalar=affine 'hidden=[64, 64]'",
    )  # fmt: skip
    command.add_argument("--columns", help="names of the columns to use, separated by commas")
    command.add_argument(
        "--dequantize", action="store_true",
        help="dequantize columns of whole numbers: add uniform noise of one unit, and round "
        "samples down",
    )  # fmt: skip
    command.add_argument("--validation", type=float, default=0.1, help="fraction held out")
    command.add_argument("--epochs", type=_positive, default=100, help="passes over the rows")
    command.add_argument("--steps", type=_positive, help="optimiser steps, instead of epochs")
    command.add_argument("--batch-size", type=_positive, default=256, help="rows a step")
    command.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    command.add_argument(
        "--patience", type=_positive, default=20, help="epochs without gain before stopping"
    )
    command.add_argument("--seed", type=_seed, default=0, help="seed of everything random")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("sample", _sample, "Draw rows from a flow.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")
    command.add_argument("-n", type=_positive, default=1000, help="number of rows")
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=tables)
    command.add_argument("--seed", type=_seed, default=0, help="seed of the draw")

    command = add("score", _score, "Log-density of the rows of a table, in nats.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")
    command.add_argument("data", metavar="DATA", help=tables)
    command.add_argument("-o", "--output", metavar="OUT", help=f"one number a row: {tables}")
    command.add_argument("--seed", type=_seed, default=0, help="seed of the noise of --dequantize")

    command = add("describe", _describe, "Say what is in the file of a flow.")
    command.add_argument("model", metavar="MODEL", help="file of the flow")

    command = add("demo", _demo, "Fit the pixels of a photograph, and compare with three others.")
    command.add_argument("-o", "--output", default="demo", help="folder for what it writes")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=150.0, help="time for training")
    length.add_argument("--steps", type=_positive, help="optimiser steps, instead of seconds")
    command.add_argument("--seed", type=_seed, default=0, help="seed of everything random")
    command.add_argument(
        "--small", action="store_true", help="a thirtieth of the pixels, to see that all works"
    )
    return parser


def _positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return value


def _seed(text: str) -> int:
    """A whole number that every generator of random numbers takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number in [0, 2**63), got {text!r}")
    return int(text)


def _fit(options: argparse.Namespace) -> None:
    from flowkit.io import save
    from flowkit.training import fit
    from flowkit.training.data import needs_double, size_and_spread

    _check_writable(options.output)
    chosen = None if options.columns is None else [c.strip() for c in options.columns.split(",")]
    settings = _settings(options.settings)
    table = read_table(options.data, chosen)
    _check_varied(table.values, table.columns, options.data)
    whole = _whole_columns(table.values, table.columns)
    if options.dequantize and not whole:
        raise DataError(f"--dequantize expected columns of whole numbers, {options.data} has none")
    if whole and not options.dequantize:
        print(
            f"note: {', '.join(whole)} hold whole numbers, on which a density has no upper bound; "
            "consider --dequantize",
            file=sys.stderr,
        )
    noisy = whole if options.dequantize else []
    width = np.array([float(name in noisy) for name in table.columns])
    double = needs_double(*size_and_spread(table.values, width))
    fine = [name for name, is_fine in zip(table.columns, double, strict=True) if is_fine]
    if fine:
        print(
            f"note: float32 would lose digits of {', '.join(fine)}; the flow is fitted in float64",
            file=sys.stderr,
        )
    dtype = torch.float64 if fine else torch.float32
    x = _rows(table.values, table.columns, noisy, options.seed, dtype)

    torch.manual_seed(options.seed)
    flow = _build(options.recipe, x.shape[1], settings).to(dtype)
    with warnings.catch_warnings():
        if whole:
            # Said above, with the remedy of the command line.
            warnings.filterwarnings("ignore", "x: .* repeat values", UserWarning)
        history = fit(
            flow, x, validation=options.validation, epochs=options.epochs, steps=options.steps,
            batch_size=options.batch_size, lr=options.lr, patience=options.patience,
            seed=options.seed, progress=not options.quiet,
        )  # fmt: skip
    save(flow, options.output, extra={"columns": list(table.columns), "dequantized": noisy})
    held = (
        "" if history.best is None else f"; held-out log-likelihood {-history.best:.4f} nats a row"
    )
    print(
        f"{options.output}: {options.recipe} of {len(x):,} rows and {x.shape[1]} columns, "
        f"{history.steps[-1]:,} steps{held}"
    )


def _sample(options: argparse.Namespace) -> None:
    check_extension(options.output)
    _check_writable(options.output)
    flow, columns, noisy = _load(options.model)
    generator = torch.Generator().manual_seed(options.seed)
    sizes = [min(_BLOCK, options.n - start) for start in range(0, options.n, _BLOCK)]
    values = torch.cat([flow.sample(size, generator=generator) for size in sizes]).numpy()
    for name in noisy:
        at = columns.index(name)
        values[:, at] = np.floor(values[:, at])
    write_table(options.output, values, columns)
    print(f"{options.output}: {len(values):,} rows of {', '.join(columns)}")


def _score(options: argparse.Namespace) -> None:
    if options.output is not None:
        check_extension(options.output)
        _check_writable(options.output)
    flow, columns, noisy = _load(options.model)
    table = read_table(options.data, columns)
    if table.unnamed not in (0, len(columns)):
        raise DataError(
            f"{options.model} expected {len(columns)} columns, got {table.unnamed} in "
            f"{options.data}"
        )
    fractional = set(noisy) - set(_whole_columns(table.values, table.columns))
    if fractional:
        raise DataError(
            f"{options.data}: column(s) {', '.join(sorted(fractional))} expected whole numbers, "
            "as the flow was fitted to with --dequantize"
        )
    x = _rows(table.values, columns, noisy, options.seed, flow.dtype)
    with torch.no_grad():
        scores = torch.cat([flow.log_prob(block) for block in x.split(_BLOCK)]).double().numpy()
    if options.output is not None:
        write_table(options.output, scores[:, None], ["log_prob"])
    outside = int(np.isneginf(scores).sum())
    error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 and not outside else np.nan
    print(
        f"mean log-likelihood {scores.mean():.4f} +- {error:.4f} nats a row, {len(scores):,} rows"
        + (f", {outside:,} of them outside the support" if outside else "")
    )


def _describe(options: argparse.Namespace) -> None:
    flow, columns, noisy = _load(options.model)
    recipe = flow.recipe or {}
    arguments = ", ".join(f"{name}={value!r}" for name, value in recipe["arguments"].items())
    print(f"file      {options.model}")
    print(f"recipe    {recipe['name']}({arguments})")
    print(f"columns   {', '.join(columns)}")
    if noisy:
        print(f"whole     {', '.join(noisy)}")
    print(f"dtype     {str(flow.dtype).removeprefix('torch.')}")
    print(f"\n{flow.summary()}")


def _demo(options: argparse.Namespace) -> None:
    from flowkit.cli.demo import demo

    demo(
        Path(options.output),
        seconds=options.seconds, steps=options.steps, seed=options.seed, small=options.small,
    )  # fmt: skip


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """``name=value`` words as arguments; a value that is not JSON is a string."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise RecipeError(f"--set expected NAME=VALUE, got {word!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _build(name: str, columns: int, arguments: dict[str, Any]) -> Any:
    """Build a flow, or say in one line why there is not enough memory for it."""
    from flowkit.recipes.registry import build_for_columns

    try:
        flow = build_for_columns(name, columns, **arguments)
    except RuntimeError as error:
        raise RecipeError(f"{name} cannot be built with {arguments}: {error}") from error
    _check_plain(flow)
    return flow


def _load(path: str) -> tuple[Any, list[str], list[str]]:
    """The flow, the names of its columns, and those of whole numbers."""
    from flowkit.io import load, read_extra

    flow, extra = load(path), read_extra(path)
    _check_plain(flow)
    count = flow.event_shape[0]
    columns = extra.get("columns", [f"x{i + 1}" for i in range(count)])
    noisy = extra.get("dequantized", [])
    if len(columns) != count or not set(noisy) <= set(columns):
        raise DataError(f"{path} names the columns {columns}, its flow has {count}")
    return flow, columns, noisy


def _check_plain(flow: Any) -> None:
    if flow.needs_context or len(flow.event_shape) != 1:
        raise ShapeError(
            "the command line serves flows of plain rows; this one has events "
            f"{flow.event_shape} and {flow.context_size or 0} context features: use it from Python"
        )


def _check_writable(path: str) -> None:
    """Fail before the work, not after it."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to write {Path(path).name} to")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")


def _check_varied(values: np.ndarray, columns: Sequence[str], path: str) -> None:
    if len(values) < _LEAST_ROWS:
        raise DataError(f"a fit needs at least {_LEAST_ROWS} rows, {path} has {len(values)}")
    constant = [name for i, name in enumerate(columns) if np.ptp(values[:, i]) == 0]
    if constant:
        raise DataError(
            f"{path}: column(s) {', '.join(map(repr, constant))} are constant, so they have no "
            "density; remedy: leave them out with --columns"
        )


def _whole_columns(values: np.ndarray, columns: Sequence[str]) -> list[str]:
    return [name for i, name in enumerate(columns) if (values[:, i] == values[:, i].round()).all()]


def _rows(
    values: np.ndarray,
    columns: Sequence[str],
    noisy: Sequence[str],
    seed: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Rows as a flow of this dtype reads them, with noise on the columns of whole numbers."""
    from flowkit.datasets import dequantize

    x = torch.from_numpy(values).to(dtype)
    at = [columns.index(name) for name in noisy]
    if at:
        x[:, at] = dequantize(torch.from_numpy(values[:, at]), seed=seed, dtype=dtype)
    return x
