"""The commands; the demo has a file of its own."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flowkit.cli.console import say
from flowkit.data.tables import Table, check_extension, read_table, write_blocks, write_table
from flowkit.errors import ArgumentError, DataError
from flowkit.files import check_writable, same_file

if TYPE_CHECKING:
    from flowkit.estimators import FlowDensity

_LEAST_ROWS = 10
_BLOCK = 8192
# Flows beyond this are not for tables: weights, and parts of layers.
_MOST_WEIGHTS, _MOST_PARTS = 2**28, 8_000
_TABLES = {
    ".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".npy", ".npz", ".ods", ".parquet",
    ".pickle", ".pkl", ".tsv", ".txt", ".xls", ".xlsx",
}  # fmt: skip


def fit(options: argparse.Namespace) -> None:
    """Fit a flow to the rows of a table."""
    from flowkit.data.precision import needs_double, size_and_spread
    from flowkit.estimators import FlowDensity

    _check_output(options.output, options.data)
    _check_model_output(Path(options.output))
    chosen = None if options.columns is None else [c.strip() for c in options.columns.split(",")]
    settings = _settings(options.settings)
    table = read_table(options.data, chosen)
    _check_varied(table, options.data)
    integers = _integer_columns(table)
    if options.dequantize and not integers:
        raise DataError(f"--dequantize expected columns of integers, {options.data} has none")
    if integers and not options.dequantize:
        _note(
            f"columns of integers: {_joined(integers)}, at which a density has no upper bound; "
            "remedy: --dequantize"
        )
    rounded = [name for name in _repeating_columns(table) if name not in integers]
    if rounded:
        _note(
            f"columns with values that repeat: {_joined(rounded)}, as rounded numbers do; a "
            "density has no upper bound at them; remedy: multiply them to integers and use "
            "--dequantize, or FlowDensity(dequantize=width) in Python"
        )
    noisy = integers if options.dequantize else []
    width = np.array([float(name in noisy) for name in table.columns])
    fine = _where(needs_double(*size_and_spread(table.values, width)), table)
    if fine:
        _note(f"float32 would lose digits of {', '.join(fine)}; the flow is fitted in float64")
    if options.recipe != "auto":
        _check_buildable(options.recipe, len(table.columns), settings)
    model = FlowDensity(
        options.recipe, settings,
        epochs=options.epochs, steps=options.steps, batch_size=options.batch_size,
        lr=options.lr, validation=options.validation, patience=options.patience,
        dequantize=width.tolist(), random_state=_random_state(options.seed),
        verbose=not options.quiet,
    )  # fmt: skip
    with warnings.catch_warnings():
        # Said above, with the names of the columns and the remedy of the command line.
        warnings.filterwarnings("ignore", "x: .* repeat values", UserWarning)
        model.fit(table.values)
    model.feature_names_in_ = np.array(table.columns, dtype=object)
    model.save(options.output)
    say(
        f"{options.output}: {_what(model, options.recipe)} of {len(table.values):,} rows and "
        f"{len(table.columns)} columns{_validated(model)}"
    )


def _what(model: FlowDensity, recipe: str) -> str:
    """What was fitted: the recipe, or what was averaged, the heaviest first."""
    if recipe != "auto":
        return recipe
    found = model.comparison_
    order = sorted(range(len(found.names)), key=lambda k: -found.weights[k])
    return " + ".join(
        f"{found.weights[k]:.2f} {found.names[k]}" for k in order if found.weights[k]
    )


def _validated(model: FlowDensity) -> str:
    """Steps and the validation likelihood of one flow; of several only that they were compared."""
    best, steps = model.history_.best, model.history_.steps
    if hasattr(model, "comparison_"):
        return f", weighted on {model.comparison_.samples:,} held-out rows"
    held = "" if best is None else f"; best validation log-likelihood {-best:.4f} nats per sample"
    return f", {steps[-1]:,} steps{held}"


def sample(options: argparse.Namespace) -> None:
    """Draw samples from a flow."""
    check_extension(options.output)
    _check_output(options.output, options.model)
    model, columns, _ = _load(options.model)

    def blocks() -> Iterator[np.ndarray]:
        random_state = _random_state(options.seed)
        dtype = "f8" if model.dtype_ == torch.float64 else "f4"
        for start in range(0, options.n, _BLOCK):
            values = model.sample(min(_BLOCK, options.n - start), random_state).astype(dtype)
            bad = ~np.isfinite(values).all(1)
            if bad.any():
                raise DataError(
                    f"{options.model} drew {bad.sum()} of {len(values)} samples that are not "
                    "finite; remedy: fit it again, with a lower --lr or fewer layers"
                )
            yield values

    write_blocks(options.output, blocks(), options.n, columns)
    say(f"{options.output}: {options.n:,} samples of {', '.join(columns)}")


def score(options: argparse.Namespace) -> None:
    """Compute the log-density of the rows of a table, in nats."""
    if options.output is not None:
        check_extension(options.output)
        _check_output(options.output, options.model, options.data)
    model, columns, _ = _load(options.model)
    table = read_table(options.data, columns)
    if table.unnamed not in (0, len(columns)):
        raise DataError(
            f"{options.model} expected {len(columns)} columns, got {table.unnamed} in "
            f"{options.data}"
        )
    model.lattice_.check(table.values, options.data, columns)
    scores = model.score_samples(table.values)
    if np.isnan(scores).any():
        first = int(np.isnan(scores).argmax()) + 1
        raise DataError(
            f"{options.model} has no density (NaN) at {np.isnan(scores).sum()} of {len(scores)} "
            f"rows of {options.data}, the first of them row {first}; remedy: leave those rows "
            "out, or fit the flow again"
        )
    if options.output is not None:
        write_table(options.output, scores[:, None], ["log_prob"])
    outside = int(np.isneginf(scores).sum())
    error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 and not outside else np.nan
    say(
        f"mean log-likelihood {scores.mean():.4f} +- {error:.4f} nats per sample, "
        f"{len(scores):,} samples"
        + (f", {outside:,} of them outside the support" if outside else "")
    )


def describe(options: argparse.Namespace) -> None:
    """Show how the flow of a file was made, and its layers."""
    from flowkit.io import read_extra

    model, columns, noisy = _load(options.model)
    recipe = _shown_recipe(read_extra(options.model).get("estimator"))
    facts = {
        "file": options.model,
        "recipe": recipe,
        "columns": _joined(columns),
        "integers": _joined(noisy),
        "dtype": str(model.dtype_).removeprefix("torch."),
    }
    lines = [f"{name:<9} {fact}" for name, fact in facts.items() if fact]
    say("\n".join([*lines, "", str(model.flow_.to(model.dtype_).summary())]))


def _shown_recipe(stored: Any) -> str:
    """The call of the recipe that an estimator stored; nothing where a file has none."""
    try:
        name, options = (stored["parameters"][key] for key in ("recipe", "options"))
        arguments = ", ".join(f"{key}={json.dumps(v)}" for key, v in (options or {}).items())
    except (AttributeError, KeyError, TypeError):
        return ""
    return f"{name}({arguments})".replace("\n", "\\n")


def demo(options: argparse.Namespace) -> None:
    """Fit the pixels of a photograph, and compare with three others."""
    from flowkit.cli.demo import demo as run

    run(Path(options.output), steps=options.steps, seed=options.seed, small=options.small)


COMMANDS = (fit, sample, score, describe, demo)


def _note(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)


def _joined(names: Sequence[str]) -> str:
    """Names on one line, whatever they hold."""
    return ", ".join(name.replace("\n", "\\n") for name in names)


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """``name=value`` words as arguments; a value that is not JSON is a string."""
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ArgumentError(f"--set expected NAME=VALUE, got {word!r}")
        if name in settings:
            raise ArgumentError(f"--set names {name!r} twice")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
        except RecursionError:
            raise ArgumentError(f"--set {name}: the value is nested too deeply") from None
    return settings


def _random_state(seed: int) -> np.random.RandomState:
    """The random state of any seed, also of more than 32 bits."""
    return np.random.RandomState(np.random.MT19937(seed))


def _check_buildable(name: str, columns: int, arguments: dict[str, Any]) -> None:
    """Say in one line why a flow cannot be built, or not in the memory there is."""
    from flowkit.content import TooLarge, limited
    from flowkit.recipes.parts import build_for_columns

    try:
        with torch.device("meta"), limited(_MOST_WEIGHTS, _MOST_PARTS):
            build_for_columns(name, columns, **arguments)
    except TooLarge as error:
        raise ArgumentError(
            f"{name} cannot be built with {arguments}: it has {error} than the {_MOST_WEIGHTS:,} "
            f"weights and {_MOST_PARTS:,} parts that the command line builds"
        ) from None
    except (RuntimeError, TypeError, RecursionError) as error:
        raise ArgumentError(f"{name} cannot be built with {arguments}: {error}") from error


def _load(path: str) -> tuple[FlowDensity, list[str], list[str]]:
    """The model, the names of its columns, and those of integers."""
    from flowkit.estimators import FlowDensity
    from flowkit.estimators.base import check_exact
    from flowkit.io import load, read_extra

    flow, extra = load(path), read_extra(path)
    check_exact(path, flow)
    count = flow.event_shape[0]
    columns = extra.get("columns", [f"x{i + 1}" for i in range(count)])
    noisy = extra.get("dequantized", [])
    if not _are_names(columns) or len(columns) != count:
        raise DataError(f"{path} names the columns {columns}, its flow has {count}")
    if not _are_names(noisy) or not set(noisy) <= set(columns):
        raise DataError(f"{path} names dequantized columns {noisy}, its flow has {columns}")
    width = [float(name in noisy) for name in columns]
    return FlowDensity.from_flow(flow, width), columns, noisy


def _are_names(value: Any) -> bool:
    """Whether this is a list of different texts."""
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def _check_output(output: str, *inputs: str) -> None:
    """Refuse what would be lost, before the work."""
    for path in inputs:
        if same_file(output, path):
            spelled = "" if output == path else f" ({path})"
            raise DataError(
                f"{output} is also an input{spelled}, which would be lost; remedy: another name "
                "for the output"
            )
    check_writable(output)


def _check_model_output(output: Path) -> None:
    """Refuse to write a flow to a table, or over what is no flow file."""
    if output.suffix.lower() in _TABLES:
        raise DataError(
            f"{output}: a flow is not written to a {output.suffix.lower()} file; remedy: -o "
            f"{output.stem}.safetensors"
        )
    if output.is_file() and not _may_be_flow(output):
        raise DataError(
            f"{output} is there already and is no flow file, so it is not replaced; remedy: "
            "another name"
        )


def _may_be_flow(path: Path) -> bool:
    """Whether a file is empty or begins as safetensors do."""
    with path.open("rb") as file:
        head = file.read(9)
    return not head or (
        head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8
    )


def _check_varied(table: Table, path: str) -> None:
    if len(table.values) < _LEAST_ROWS:
        raise DataError(f"a fit needs at least {_LEAST_ROWS} rows, {path} has {len(table.values)}")
    constant = _where(table.values.min(0) == table.values.max(0), table)
    if constant:
        raise DataError(
            f"{path}: column(s) {', '.join(map(repr, constant))} are constant, so they have no "
            "density; remedy: leave them out with --columns"
        )


def _integer_columns(table: Table) -> list[str]:
    return _where((table.values == table.values.round()).all(0), table)


def _where(chosen: np.ndarray, table: Table) -> list[str]:
    """Names of the chosen columns."""
    return [table.columns[i] for i in np.flatnonzero(chosen)]


def _repeating_columns(table: Table) -> list[str]:
    from flowkit.data.inspection import evenly_spaced, repeated_values

    some = torch.from_numpy(table.values)[evenly_spaced(*table.values.shape)]
    return [table.columns[column] for column in repeated_values(some)]
