"""Kernelised flows on little data, and on much.

"Kernelised Normalising Flows" (English, Kirchler, Lippert 2024, arXiv 2307.14839) puts kernel
expansions in the place of the networks of coupling layers. Here they are compared with affine
coupling flows of perceptrons with as many and with ten times the parameters, a normal density with
a shrunk covariance, a mixture of normals and a kernel density estimate, on 300 and 500 training
rows of five tables. Of the training rows a fifth chooses the epoch, the learning rate (of three,
for every flow), the number of components and the bandwidth; what is left of the table is the test.
And with all rows of two larger tables, kernelised flows (of splines for MAGIC; for the patches
affine, with a spline of each feature between) against a spline coupling flow of perceptrons with
at least five times the parameters.

Columns are standardised by the training rows, which all densities share. Categories are left out,
and columns with ties (more than a tenth of the values repeat, or one has more than a hundredth of
the rows) get uniform noise as wide as the median step between their values. Log-likelihoods are in
nats a row, of the standardised columns.

Run: ``python examples/papers/kernelised_flows.py`` (two hours on one core); ``--small`` takes
seconds. With ``--record FILE`` each result is kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from sklearn.covariance import OAS
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor

import flowkit
from flowkit import Flow, coupling_flow, datasets, kernelised_flow
from flowkit.scalar import RationalQuadraticSpline

MODELS = ("kernelised", "MLP, equal", "MLP, ten times", "normal", "mixture", "KDE")
RATES = (1e-3, 3e-3, 1e-2)
LAYERS = 4
# Tables, and columns that are left out: categories.
TABLES = {
    "breast cancer": (datasets.breast_cancer, ()),
    "wine": (datasets.wine, ()),
    "diabetes": (datasets.diabetes, (1,)),
    "digits, 8 components": (datasets.digits, ()),
    "MAGIC": (datasets.magic, ()),
}
FULL = {"MAGIC": datasets.magic, "patches": datasets.photograph_patches}


@dataclass
class Result:
    """The score of one density."""

    table: str
    rows: int
    seed: int
    model: str
    log_prob: float
    error: float
    parameters: int
    choice: str
    seconds: float


def load(name: str, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, standardised by the first two."""
    make, dropped = TABLES[name]
    parts = make(seed=0, dtype=torch.float64)
    table = torch.cat([parts.train, parts.validation, parts.test])
    table = table[:, [i for i in range(table.shape[1]) if i not in dropped]]
    rng = np.random.default_rng(seed)
    table = table[torch.from_numpy(rng.permutation(len(table)))]
    for column in table.T:
        values, counts = column.unique(return_counts=True)
        tied = (counts > 1).double().mean() > 0.1 or counts.max() > 0.01 * len(column)
        if tied and len(values) > 1:
            step = float(values.diff().median())
            column += step * (torch.from_numpy(rng.random(len(column))) - 0.5)
    size = min(rows, int(0.8 * len(table)))
    train, test = table[:size], table[size:]
    if name.startswith("digits"):
        centre = train.mean(0)
        axes = torch.linalg.svd(train - centre, full_matrices=False)[2][:8]
        train, test = ((part - centre) @ axes.mT for part in (train, test))
    mean, scale = train.mean(0), train.std(0)
    train, test = ((part - mean) / scale for part in (train, test))
    held = size // 5
    return train[held:], train[:held], test


def width_for(features: int, target: int) -> int:
    """Width of two hidden layers at which a flow of perceptrons has about so many parameters."""
    sizes = {}
    for width in range(2, 600):
        sizes[width] = abs(_count(perceptrons(features, width)) - target)
        if sizes[width] > min(sizes.values()):
            break
    return min(sizes, key=sizes.__getitem__)


def _count(flow: Flow) -> int:
    return sum(p.numel() for p in flow.parameters())


def perceptrons(features: int, width: int) -> Flow:
    """The flow to compare with: the same layers, with networks."""
    return coupling_flow(features, layers=LAYERS, scalar="affine", hidden=(width, width))


def fit(
    make: Callable[[], Flow],
    train: Tensor,
    held: Tensor,
    seed: int,
    options: argparse.Namespace,
) -> tuple[Flow, str]:
    """The best of three learning rates, by the rows held out."""
    best, kept, chosen = float("inf"), None, ""
    for rate in RATES[: 1 if options.small else None]:
        torch.manual_seed(seed)
        flow = make()
        history = flowkit.fit(
            flow,
            train.float(),
            validation=held.float(),
            epochs=options.epochs,
            batch_size=100,
            lr=rate,
            patience=30,
            compile=False,
            seed=seed,
            progress=False,
        )
        if history.best is not None and history.best < best:
            best, kept, chosen = history.best, flow, f"lr {rate:g}, epoch {history.best_epoch}"
    assert kept is not None
    return kept, chosen


def score(model: str, table: str, rows: int, seed: int, options: argparse.Namespace) -> Result:
    """Fit one density to few rows, and score it on the rest."""
    train, held, test = load(table, rows, seed)
    features = train.shape[1]
    begun = time.process_time()
    parameters, chosen = 0, ""
    if model in MODELS[:3]:
        count = _count(kernelised_flow(features, layers=LAYERS))

        def make() -> Flow:
            if model == "kernelised":
                return kernelised_flow(features, layers=LAYERS)
            factor = 1 if model == "MLP, equal" else 10
            return perceptrons(features, width_for(features, factor * count))

        flow, chosen = fit(make, train, held, seed, options)
        parameters = _count(flow)
        with torch.no_grad():
            values = flow.log_prob(test.float()).double().numpy()
    else:
        both = torch.cat([train, held]).numpy()
        if model == "normal":
            law = OAS().fit(both)
            normal = scipy.stats.multivariate_normal(law.location_, law.covariance_)
            values = normal.logpdf(test.numpy())
            parameters = features * (features + 3) // 2
        else:
            candidates = (
                [GaussianMixture(k, reg_covar=1e-3, random_state=seed) for k in range(1, 9)]
                if model == "mixture"
                else [KernelDensity(bandwidth=b) for b in np.geomspace(0.05, 2, 20)]
            )
            at_held = [c.fit(train.numpy()).score_samples(held.numpy()).mean() for c in candidates]
            best = candidates[int(np.argmax(at_held))]
            values = best.fit(both).score_samples(test.numpy())
            if model == "mixture":
                k = best.n_components
                parameters, chosen = k * (features + 1) * (features + 2) // 2 - 1, f"{k} normals"
            else:
                chosen = f"bandwidth {best.bandwidth:.2f}"
    return Result(
        table,
        len(train) + len(held),
        seed,
        model,
        float(values.mean()),
        float(values.std() / np.sqrt(len(values))),
        parameters,
        chosen,
        time.process_time() - begun,
    )


def full(model: str, table: str, options: argparse.Namespace) -> Result:
    """Fit a flow to all training rows."""
    parts = FULL[table](seed=0).standardized()
    features = parts.train.shape[1]
    begun = time.process_time()
    torch.manual_seed(0)
    if model == "kernelised":
        options_of = {
            "MAGIC": {"points": 50, "scalar": RationalQuadraticSpline(bins=8)},
            "patches": {"points": 170, "elementwise": "spline"},
        }
        flow = kernelised_flow(features, layers=8, **options_of[table])
        rate = 3e-3
    else:
        flow = coupling_flow(features, layers=8)
        rate = 1e-3
    size = 500 if options.small else None
    flowkit.fit(
        flow,
        parts.train[:size],
        validation=parts.validation[:size],
        steps=options.steps,
        batch_size=256,
        lr=rate,
        patience=None,
        compile=False,
        progress=False,
    )
    with torch.no_grad():
        values = torch.cat([flow.log_prob(part) for part in parts.test[:size].split(2000)])
    return Result(
        f"all of {table}",
        len(parts.train[:size]),
        0,
        model,
        float(values.mean()),
        float(values.std()) / len(values) ** 0.5,
        _count(flow),
        f"lr {rate:g}",
        time.process_time() - begun,
    )


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """Means over seeds, ranks, and one line a fit."""
    names = ("flowkit-density", "torch", "scikit-learn")
    versions = ", ".join(f"{p} {version(p)}" for p in names)
    few = [r for r in results if not r.table.startswith("all of")]
    lines = [
        "# Kernelised flows",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        "Mean log-likelihood of the test rows in nats, of the standardised columns, mean over "
        "seeds; the best in bold. Ranks are means over tables, sizes and seeds. Flows: "
        f"{LAYERS} affine coupling layers with LU layers between; kernelised ones with 150 "
        f"points and Matérn 3/2; batches of 100, at most {options.epochs} epochs, patience 30, "
        f"the best of the learning rates {', '.join(f'{r:g}' for r in RATES)} "
        "by a fifth of the rows, which flows are not trained on; the other densities are fitted "
        "to all of them in the end.",
        "",
        "| table | training rows | seeds | " + " | ".join(MODELS) + " |",
        "|---|--:|--:|" + "--:|" * len(MODELS),
    ]
    settings = sorted(
        {(r.table, r.rows) for r in few}, key=lambda s: (list(TABLES).index(s[0]), s)
    )
    ranks: dict[str, list[float]] = {name: [] for name in MODELS}
    for table, rows in settings:
        part = [r for r in few if (r.table, r.rows) == (table, rows)]
        means = {m: statistics.mean(r.log_prob for r in part if r.model == m) for m in MODELS}
        best = max(means.values())
        seeds = sorted({r.seed for r in part})
        lines.append(
            f"| {table} | {rows} | {len(seeds)} | "
            + " | ".join(
                f"**{means[m]:.3f}**" if means[m] == best else f"{means[m]:.3f}" for m in MODELS
            )
            + " |"
        )
        for seed in seeds:
            scores = [
                next(r.log_prob for r in part if (r.model, r.seed) == (m, seed)) for m in MODELS
            ]
            for name, rank in zip(MODELS, scipy.stats.rankdata([-s for s in scores]), strict=True):
                ranks[name].append(float(rank))
    lines.append(
        "| mean rank | | | "
        + " | ".join(f"{statistics.mean(ranks[m]):.2f}" for m in MODELS)
        + " |"
    )
    lines += [
        "",
        "## All rows",
        "",
        f"{options.steps:,} steps of 256 rows, Adam with a cosine to zero, weights of the best "
        "epoch. Kernelised: eight layers at the rate 3e-3 with the points that a fifth of the "
        "parameters allows, 50 with splines (MAGIC) or 170 with affine maps, and a spline of "
        "every feature by itself before each (patches); "
        "perceptrons: the coupling flow of the package at its rate, 1e-3. One seed.",
        "",
        "| table | flow | log-likelihood | parameters | seconds |",
        "|---|---|--:|--:|--:|",
    ]
    lines += [
        f"| {r.table.removeprefix('all of ')} | {r.model} | {r.log_prob:.3f} +- {r.error:.3f} | "
        f"{r.parameters:,} | {r.seconds:.0f} |"
        for r in results
        if r.table.startswith("all of")
    ]
    lines += [
        "",
        "## Every fit",
        "",
        "| table | training rows | seed | density | log-likelihood | parameters | chosen |",
        "|---|--:|--:|---|--:|--:|---|",
    ]
    lines += [
        f"| {r.table} | {r.rows} | {r.seed} | {r.model} | {r.log_prob:.3f} +- {r.error:.3f} | "
        f"{r.parameters:,} | {r.choice} |"
        for r in sorted(few, key=lambda r: (settings.index((r.table, r.rows)), r.seed))
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=[300, 500])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--small", action="store_true", help="seconds instead of hours")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for kernelised_flows.md")
    options = parser.parse_args(arguments)
    tables, whole = list(TABLES), list(FULL)
    if options.small:
        options.seeds, options.sizes, options.epochs, options.steps = [0], [60], 1, 2
        tables, whole = ["wine"], ["MAGIC"]
    torch.set_num_threads(1)
    results: list[Result] = []
    if options.record and options.record.exists():
        results = [Result(**json.loads(line)) for line in options.record.read_text().splitlines()]
    known = {(r.table, r.rows, r.seed, r.model) for r in results}

    def keep(result: Result) -> None:
        results.append(result)
        print(result, flush=True)
        if options.record:
            with options.record.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")

    for seed in options.seeds:
        for table in tables:
            # A small table has one size.
            for rows in sorted({_rows(table, size) for size in options.sizes}):
                for model in MODELS:
                    if (table, rows, seed, model) not in known:
                        keep(score(model, table, rows, seed, options))
    for table in whole:
        for model in ("kernelised", "MLP"):
            if not any((r.table, r.model) == (f"all of {table}", model) for r in results):
                keep(full(model, table, options))
    given = {
        f"--{name}": value
        for name, value in vars(options).items()
        if name not in ("output", "record") and value != parser.get_default(name)
    }
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    shown = " ".join(f"{k} {v}" for k, v in words.items())
    shown = "--small" if options.small else shown
    text = report(results, options, f"python examples/papers/kernelised_flows.py {shown}".strip())
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "kernelised_flows.md").write_text(text)
    return results


def _rows(table: str, size: int) -> int:
    """Training rows of this size, as far as the table has them."""
    parts = TABLES[table][0](seed=0)
    return min(size, int(0.8 * sum(len(part) for part in parts[:3])))


if __name__ == "__main__":
    main()
