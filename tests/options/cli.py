"""The command line: every option changes what is written or printed."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from flowkit.cli import main
from flowkit.cli.demo import demo
from flowkit.data.tables import Table, read_table
from flowkit.datasets.photos import PhotographColors
from flowkit.io import load

from .harness import differs, falls, of, of_command, rises, same, shows
from .parts import folder, quietly, rows, state

FOLDER = folder()
DATA, COUNTS = FOLDER / "data.csv", FOLDER / "counts.csv"
for path, numbers in ((DATA, rows(60, 2).exp()), (COUNTS, (3 * rows(60, 2)).round())):
    np.savetxt(path, numbers.numpy(), delimiter=",", header="age,size", comments="")


def run(*words: Any) -> tuple[int, str, str]:
    """Exit code, what is printed, and what is said beside it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def once(words: tuple[str, ...], defaults: dict[str, Any]) -> list[Any]:
    """Options with defaults for those that are not among the words."""
    given = {*words, *(("--epochs",) if "--steps" in words else ())}
    return [w for name, value in defaults.items() if name not in given for w in (name, *value)]


FEW = {
    "--recipe": ("coupling_flow",),
    "--set": ("layers=1", "hidden=[8]", "start=standardize"),
    "--epochs": ("2",),
    "--batch-size": ("16",),
    "--quiet": (),
}


def fit(*words: str, data: Path = DATA) -> tuple[Any, str, str]:
    """A flow fitted on the command line, with what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        code, out, err = run("fit", data, "--output", model, *once(words, FEW), *words)
        assert code == 0, err
        return load(model), out.replace(folder, ""), err


def fitted(*words: str) -> Any:
    """The weights of a flow fitted on the command line."""
    return state(fit(*words)[0])


def steps(*words: str) -> float:
    """How many steps were done."""
    text = fit(*words)[1].split(" steps")[0]
    return float(text.split()[-1].replace(",", ""))


def size(*words: str) -> float:
    """Columns of the flow."""
    return float(fit(*words)[0].event_shape[0])


def output(*words: str) -> list[str]:
    """The files that a fit leaves."""
    with tempfile.TemporaryDirectory() as folder:
        there = [word.replace("HERE", folder) for word in words]
        run("fit", DATA, *once((), FEW), *(there or ["-o", f"{folder}/none.safetensors"]))
        return sorted(p.name for p in Path(folder).iterdir())


def threads(*words: str) -> list[int]:
    """The numbers of threads that torch is given."""
    file = model()
    with mock.patch("torch.set_num_threads") as call:
        run("describe", file, *words)
    return [c.args[0] for c in call.call_args_list]


def silent(*words: str) -> bool:
    """Whether a fit shows no progress bar."""
    told = {name: value for name, value in FEW.items() if name != "--quiet"}
    return not run("fit", DATA, "-o", FOLDER / "other.safetensors", *once((), told), *words)[2]


THREADS = "more threads do the same; that they are set shows in describe"
PATIENT = ("--epochs", "300", "--lr", "0.5", "--validation", "0.5")
of_command(
    "fit",
    fitted,
    {
        "--threads": same(THREADS, "2", rounding=1e-5),
        "--output": differs("HERE/a.safetensors", "HERE/b.safetensors", see=output),
        "--recipe": differs("autoregressive_flow"),
        "--set": differs(("layers=2",), ("layers=1", "hidden=[9]")),
        "--columns": falls("age", see=size),
        "--dequantize": differs(True, see=quietly(lambda *w: state(fit(*w, data=COUNTS)[0]))),
        "--validation": differs("0.3", "0.5"),
        "--epochs": rises("3", "4", see=steps),
        "--steps": rises("9", "12", see=steps),
        "--batch-size": falls("20", "30", see=steps),
        "--lr": differs("0.01", "0.03", using={"words": ("--validation", "0")}),
        "--patience": rises("2", "4", base="1", using={"words": PATIENT}, see=steps),
        "--seed": differs("1", "2"),
        "--quiet": shows(bool, True, see=silent),
    },
)


@functools.cache
def model() -> Path:
    """The file of a flow of whole numbers."""
    path = FOLDER / "model.safetensors"
    code, _, error = run("fit", COUNTS, "-o", path, "--dequantize", *once((), FEW))
    assert code == 0, error
    return path


def drawn(*words: str) -> Any:
    """The rows that a flow draws."""
    path = FOLDER / "drawn.csv"
    assert (
        run("sample", model(), *once(words, {"-n": ("5",), "--output": (path,)}), *words)[0] == 0
    )
    return read_table(path).values


def left(command: str, *words: str) -> list[str]:
    """The tables that a command leaves."""
    with tempfile.TemporaryDirectory() as folder:
        there = [word.replace("HERE", folder) for word in words]
        there = there or ["-o", f"{folder}/none.csv"]
        run(command, model(), *([COUNTS] if command == "score" else []), *there)
        return sorted(p.name for p in Path(folder).iterdir())


def score(*words: str) -> str:
    """What is printed about the density of a table."""
    code, out, _ = run("score", model(), COUNTS, *words)
    assert code == 0
    return out


TABLES = ("HERE/a.csv", "HERE/b.npy")
of_command(
    "sample",
    drawn,
    {
        "--threads": same(THREADS, "2"),
        "-n": rises("7", "9", see=lambda *w: float(len(drawn(*w)))),
        "--output": differs(*TABLES, see=lambda *w: left("sample", *w)),
        "--seed": differs("1", "2"),
    },
)
of_command(
    "score",
    score,
    {
        "--threads": same(THREADS, "2"),
        "--output": differs(*TABLES, see=lambda *w: left("score", *w)),
    },
)
of_command("describe", None, {"--threads": differs("2", "3", see=threads)})

# The demo, up to its training ---------------------------------------------------------------


class Enough(Exception):
    """Nothing after the training is of interest."""


PHOTO = PhotographColors(torch.arange(300_000).reshape(-1, 5) % 200, 200, 300)


def training(call: Any) -> Any:
    """What the training of the demo is given: its rows, the limits, the seed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("flowkit.cli.demo.photograph_colors", return_value=PHOTO),
        mock.patch("flowkit.cli.demo.train_flow", side_effect=Enough) as train,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(Enough),
    ):
        call(Path(folder) / "demo")
    _, points, held, *rest = train.call_args.args
    return len(points), points[:5], len(held), rest


LENGTHS: dict[str, Any] = {"steps": 90, "seed": 0, "small": False}
of(
    demo,
    lambda **o: training(lambda folder: demo(folder, **{**LENGTHS, **o})),
    steps=differs(3),
    seed=differs(1),
    small=differs(True),
)


def demonstrated(*words: str) -> Any:
    """What the training of ``flowkit demo`` is given."""
    return training(lambda folder: main(["demo", *words, "--output", str(folder)]))


of_command(
    "demo",
    demonstrated,
    {
        "--threads": same(THREADS, "2"),
        "--steps": differs("3"),
        "--seed": differs("1"),
        "--small": differs(True),
        "--output": differs("HERE/a", "HERE/b", see=lambda *w: made(*w)),
    },
)


def made(*words: str) -> list[str]:
    """The folders that a demo makes."""
    with tempfile.TemporaryDirectory() as folder:
        there = [word.replace("HERE", folder) for word in words]
        training(lambda _: main(["demo", *(there or ["--output", f"{folder}/none"])]))
        return sorted(p.name for p in Path(folder).iterdir())


def exit_code(argv: Any) -> int:
    """What a command ends with; 0 after its help."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return main(argv=argv)
        except SystemExit as end:
            return int(end.code or 0)


of(
    main,
    exit_code,
    argv=differs(["describe", "nowhere.safetensors"], base=["score", "--help"]),
)
of(read_table, lambda **o: read_table(DATA, **o).columns, columns=differs(["size"], ["age"]))
of(Table, lambda **o: Table(np.zeros((1, 1)), ("a",), **o).unnamed, unnamed=rises(1))
