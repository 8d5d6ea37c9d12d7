"""fit: every option changes weights, history or what is written, or changes nothing by promise."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import Dataset

from flowkit import (
    AfterPreprocessing,
    Flow,
    History,
    MaximumLikelihood,
    ReverseKL,
    SlicedScoreMatching,
    fit,
)
from flowkit.data.batches import DataSplit, whole
from flowkit.data.convert import Expected, as_source, check_finite
from flowkit.data.inspection import Inspection
from flowkit.data.sources import DatasetSource, MappedSource, Source, TensorSource
from flowkit.training import repeated_splits
from flowkit.training.history import Progress
from flowkit.training.nonfinite import Suspects
from flowkit.training.output import Bar, Output
from flowkit.training.step import Step

from .harness import differs, falls, of, rises, same, seeds, shows
from .parts import folder, message, plain, rows, state

# Skewed, so that a few steps are better than the start.
DATA, OTHER = rows(64, 2).exp(), 2 * rows(64, 2, 1)
SHORT: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "lr": 1e-2,
    "scheduler": None,
    "progress": False,
}


def run(**options: Any) -> tuple[Flow, History]:
    """A flow and its history after a short fit; an optimiser of one's own has its own rate."""
    flow, short = plain(), dict(SHORT)
    if options.get("optimizer"):
        del short["lr"]
    return flow, fit(flow, **{"data": DATA, **short, **options})


def weights(**options: Any) -> Any:
    """The weights after a short fit."""
    return state(run(**options)[0])


def record(**options: Any) -> Any:
    """Losses and learning rates of a short fit."""
    history = run(**options)[1]
    return history.train, history.validation, history.learning_rate


def moved(**options: Any) -> float:
    """How far the weights went from where they were."""
    flow, _ = run(**options)
    pairs = zip(flow.parameters(), plain().parameters(), strict=True)
    return float(sum((p - q).detach().square().sum() for p, q in pairs) ** 0.5)


def records(**options: Any) -> float:
    """How many records were made."""
    return float(len(run(**options)[1].train))


def rate(**options: Any) -> float:
    """The learning rate at the end."""
    return run(**options)[1].learning_rate[-1]


def fallen(**options: Any) -> float:
    """The step from which the rate fell."""
    return float(run(**options)[1].annealed or 0)


def steps(**options: Any) -> float:
    """How many steps were done."""
    return float(run(**options)[1].steps[-1])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain gradient descent, whose steps are as long as the gradient."""
    return torch.optim.SGD(parameters, lr=1e-2)


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser whose steps need a closure."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)


def halving(optimizer: Any, total: int) -> Any:
    """A schedule of one's own."""
    return StepLR(optimizer, 1, 0.5)


def compiled(**options: Any) -> Any:
    """Weights, and how often the step was compiled; the compiler itself is left out."""
    with (
        mock.patch("flowkit.training.setup.can_compile", return_value=True),
        mock.patch("torch.compile", side_effect=lambda module: module) as compiler,
    ):
        return weights(**options), compiler.call_count


FILE = folder() / "fit.ckpt"


def checkpointed(**options: Any) -> bool:
    """Whether a fit leaves a file, from which it ends with the same weights."""
    FILE.unlink(missing_ok=True)
    first = weights(**options)
    there = FILE.exists()
    again = weights(**options)
    assert all(torch.equal(first[name], again[name]) for name in first)
    return there


def afresh(**options: Any) -> Any:
    """Weights of a fit that finds no file."""
    FILE.unlink(missing_ok=True)
    return weights(**options)


def shown(**options: Any) -> bool:
    """Whether a fit writes to the terminal."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        run(**{"progress": True, **options})
    return bool(text.getvalue())


def stop_at_once(flow: Flow, history: History) -> bool:
    """A callback that has seen enough."""
    return True


of(
    fit,
    weights,
    data=differs(OTHER, base=DATA),
    objective=differs(
        SlicedScoreMatching(slices=None),
        AfterPreprocessing(SlicedScoreMatching(slices=None)),
        ReverseKL(lambda x: x.square().sum(-1), samples=8),
    ),
    validation=(
        differs(0.5, OTHER, base=0.1, see=record),
        shows(lambda losses: not losses, None, see=lambda **o: run(**o)[1].validation),
    ),
    epochs=rises(4, 6, base=2, see=records),
    steps=rises(5, 9, base=2, using={"epochs": None}, see=steps),
    batch_size=(
        falls(16, 32, base=8, see=steps),
        same("64 is chosen where all samples are fewer", None, base=64),
    ),
    lr=rises(1e-2, 3e-2, base=1e-3, see=moved),
    optimizer=differs(sgd, torch.optim.AdamW),
    scheduler=(
        differs("cosine", "plateau", halving, base=None, see=record),
        falls("cosine", base=None, see=rate),
        falls("plateau", base=None, see=rate),
        # Where validation cannot become better, the rate falls before the end.
        rises(
            "plateau",
            base=None,
            using={"patience": 2, "epochs": 80, "lr": 1e-9, "validation": OTHER},
            see=steps,
        ),
    ),
    clip=falls(1e-2, 1e-3, base=None, using={"optimizer": sgd}, see=moved),
    patience=(
        rises(3, 6, base=1, using={"epochs": 30, "validation": OTHER, "lr": 0.3}, see=records),
        rises(
            3,
            6,
            base=1,
            using={"epochs": 90, "validation": OTHER, "lr": 0.3, "scheduler": "plateau"},
            see=fallen,
        ),
    ),
    ema=(
        falls(0.2, 0.4, base=None, using={"validation": None}, see=moved),
        differs(0.2, 0.4, base=None, see=record),
        same("it is on", 0.99, base="auto", see=record),
        same(
            "an optimiser with a closure has none", None, base="auto", using={"optimizer": lbfgs}
        ),
    ),
    compile=(
        same("a short fit does not pay", False, "auto", base=False, see=compiled),
        shows(lambda seen: seen[1] == 1, True, base=False, see=compiled),
        same("a program of the same numbers", True, base=False, see=lambda **o: compiled(**o)[0]),
    ),
    fabric=shows(
        lambda numbers: all(v.dtype != torch.float32 for v in numbers.values() if v.ndim),
        Fabric(accelerator="cpu", devices=1, precision="64-true"),
    ),
    checkpoint=(
        shows(bool, FILE, see=checkpointed),
        same("the fit is that without", FILE, see=afresh),
    ),
    seed=seeds(see=record),
    progress=(
        same("it shows in what is written", True),
        shows(lambda written: not written, False, see=shown),
    ),
    callbacks=falls((stop_at_once,), see=records),
)

of(
    History,
    lambda **o: History(**o),
    epochs=differs([1.0]),
    steps=differs([1]),
    train=differs([1.0]),
    validation=differs([1.0]),
    terms=differs({"nll": [1.0]}),
    learning_rate=differs([1.0]),
    seconds=differs([1.0]),
    start=differs(1.0, see=lambda **o: History(**o).best),
    best_step=differs(1),
    annealed=differs(1),
    plan=differs("100 samples", see=lambda **o: History(**o).plan),
    stopped=differs("epochs"),
)


def scores(**options: Any) -> Any:
    """Validation losses over some splits."""
    fixed = {k: v for k, v in SHORT.items() if k != "epochs"}
    return repeated_splits(plain, DATA, **{"splits": 2, "epochs": 1, **fixed, **options}).scores


of(
    repeated_splits,
    scores,
    objective=differs(SlicedScoreMatching(slices=None)),
    splits=rises(3, 4, base=2, see=lambda **o: float(len(scores(**o)))),
    validation=differs(0.4, 0.5),
    seed=seeds(),
    options=differs({"epochs": 2}, {"epochs": 2, "lr": 0.1}),
)
holes = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
of(
    check_finite,
    lambda **o: message(lambda: check_finite(holes, "x", **o)),
    columns=differs(["age", "size"]),
    numbers=differs(torch.tensor([17, 4])),
)

# What reads the data ------------------------------------------------------------------------

of(
    Inspection,
    lambda **o: Inspection(**o),
    lost=differs("digits of x"),
    repeats=differs((0,)),
    columns=differs(("age",)),
)
CPU = torch.device("cpu")
counted = {"x": DATA.numpy(), "row": np.arange(64)}
PAIRS = Expected(torch.float32, CPU, (2,))


def reads(**options: Any) -> Any:
    """Contexts of two features."""
    given = {"x": DATA, "context": DATA}
    return as_source(given, Expected(torch.float32, CPU, (2,), **options))


of(
    Expected,
    lambda **o: Expected(torch.float32, CPU, (2,), **o),
    context=shows(bool, 3, see=lambda **o: message(lambda: reads(**o))),
    reads_labels=differs(bool),
)


def batch(source: Any) -> Any:
    """The first samples, with the dtypes in which they come."""
    return source.batch(torch.arange(3))


of(
    Source,
    lambda **o: batch(MappedSource(counted, torch.float32, CPU, **o)),
    labels=differs(("row",)),
)


class Numbered(Dataset):
    """Samples with their numbers."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": DATA[i], "row": torch.tensor(i)}


of(
    DatasetSource,
    lambda **o: batch(DatasetSource(Numbered(), torch.float32, CPU, **o)),
    labels=differs(("row",)),
)


def unread(**options: Any) -> str:
    """What is said of a path that cannot be read."""
    return message(lambda: as_source("text", PAIRS, **options))


of(as_source, None, of=differs("validation", see=unread))


halves = DataSplit(TensorSource({"x": DATA}, CPU), torch.arange(64), "training")


of(
    DataSplit,
    None,
    of=differs(
        "other data", see=lambda **o: vars(DataSplit(halves.source, halves.units, "", **o))["of"]
    ),
)
of(
    whole,
    lambda **o: whole(halves.source, "training", **o).of,
    of=differs("other data"),
)
of(
    DataSplit.batches,
    lambda **o: [index for index, _ in halves.batches(0, 16, **o)],
    rank=differs(1, using={"processes": 2}),
    processes=differs(2),
    start=differs(2),
)


of(
    Suspects,
    lambda **o: str(
        Suspects(Step(plain(), MaximumLikelihood()), {"x": holes}, None, **o).loss_error("lost")
    ),
    data=differs("the validation data"),
)

# What a fit shows ---------------------------------------------------------------------------

done = Progress(4, history=History(epochs=[1], steps=[4], train=[1.0], stopped="epochs"))
done.done = 4
of(
    Progress,
    lambda **o: Progress(4, **o),
    averaged=differs(True),
    history=differs(done.history),
    done=differs(1),
    waited=differs(1),
    weights=differs({}),
)


class Closed(SimpleNamespace):
    """A bar that is taken away."""

    def close(self) -> None:
        """Nothing is left."""


def ended(make: Any) -> Any:
    """What is written at the end of a fit."""

    def see(**options: Any) -> str:
        text = io.StringIO()
        shown = make(text)
        shown.bar = Closed()
        shown.end(**options)
        return text.getvalue()

    return see


of(
    Output,
    lambda **o: isinstance(Output(**o).stream, io.StringIO),
    stream=shows(bool, io.StringIO()),
)
of(Bar.end, ended(lambda text: Bar(None, text)), progress=differs(done))
of(
    Output.end,
    ended(Output),
    progress=(
        differs(done),
        same("nothing is shown without a bar", done, see=ended(lambda text: Output())),
    ),
)
