"""Kernelised flows on little data, and on much.

"Kernelised Normalising Flows" (English, Kirchler, Lippert 2024, arXiv 2307.14839) puts kernel
expansions in the place of the networks of coupling layers. Here they are compared on 100, 300 and
500 training rows of five tables with affine coupling flows of perceptrons with as many and with
ten times the parameters, with ``coupling_flow``'s default splines, and with densities that are no
flows. All flows are trained by ``fit`` with its defaults. Normal, mixture and kernel density are
those of ``tables.py``. What is left of the table is the test. And with all rows of two larger
tables, kernelised flows (of splines for MAGIC; for the patches affine, with a spline of each
feature between) against a spline coupling flow of perceptrons with at least five times the
parameters.

Columns are standardised by the training rows, which all densities share. Categories are left out,
and columns with ties (more than a tenth of the values repeat, or one has more than a hundredth of
the rows) get uniform noise as wide as the median step between their values. Log-likelihoods are in
nats per row, of the standardised columns.

Run: ``python examples/papers/kernelised_flows.py --record FILE --output docs/results`` (two hours
on one core); ``--small`` takes seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
import scipy.stats
import tables
import torch
from harness import Records, Study, table
from torch import Tensor

import flowkit
from flowkit import Flow, coupling_flow, datasets, kernelised_flow
from flowkit.scalar import RationalQuadraticSpline

FLOWS = ("kernelised", "MLP, equal", "MLP, ten times", "coupling_flow")
OTHERS = {"normal": tables.gaussian, "mixture": tables.mixture, "KDE": tables.kernels}
MODELS = (*FLOWS, *OTHERS)
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
    lead: float | None = None  # of the normal density, paired over test rows
    lead_error: float | None = None


def load(name: str, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test rows, standardised by the first."""
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
    return (train - mean) / scale, (test - mean) / scale


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
    """The flow to compare with: as many layers, with networks."""
    return coupling_flow(features, layers=8, scalar="affine", hidden=(width, width))


def make(model: str, features: int, seed: int) -> Flow:
    """A flow of this name."""
    torch.manual_seed(seed)
    if model == "coupling_flow":
        return coupling_flow(features)
    if model == "kernelised":
        return kernelised_flow(features)
    count = _count(kernelised_flow(features))
    return perceptrons(features, width_for(features, (1 if "equal" in model else 10) * count))


def score(table: str, rows: int, seed: int, options: argparse.Namespace) -> list[Result]:
    """Fit all densities to few rows, and score them on the rest."""
    train, test = load(table, rows, seed)
    normal = tables.gaussian(train.numpy(), test.numpy(), seed)
    results = []
    for model in MODELS:
        begun = time.process_time()
        parameters, chosen = 0, ""
        if model in FLOWS:
            flow = make(model, train.shape[1], seed)
            history = flowkit.fit(
                flow, train.float(), steps=options.fit_steps, seed=seed, progress=False
            )
            parameters = _count(flow)
            chosen = f"start {history.started}, step {history.best_step}"
            with torch.no_grad():
                values = flow.log_prob(test.float()).double().numpy()
        else:
            values = OTHERS[model](train.numpy(), test.numpy(), seed)
        lead = None if model == "normal" else values - normal
        error = len(values) ** -0.5
        results.append(
            Result(
                table,
                len(train),
                seed,
                model,
                float(values.mean()),
                float(values.std() * error),
                parameters,
                chosen,
                time.process_time() - begun,
                None if lead is None else float(lead.mean()),
                None if lead is None else float(lead.std() * error),
            )
        )
    return results


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
        flow = coupling_flow(features, layers=8, hidden=(128, 128), start="standardize")
        rate = 1e-3
    size = 500 if options.small else None
    flowkit.fit(
        flow,
        parts.train[:size],
        validation=parts.validation[:size],
        steps=options.steps,
        batch_size=256,
        lr=rate,
        scheduler="cosine",
        ema=None,
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


def page(study: Study, results: list[Result]) -> list[str]:
    """Means over seeds, ranks, and one row per fit."""
    options = study.options
    few = [r for r in results if not r.table.startswith("all of")]
    settings = sorted(
        {(r.table, r.rows) for r in few}, key=lambda s: (list(TABLES).index(s[0]), s)
    )
    few.sort(key=lambda r: (settings.index((r.table, r.rows)), r.seed))
    return [
        *study.heading(
            "Kernelised flows",
            "Mean log-likelihood of the test rows in nats, of the standardised columns, mean over "
            "seeds; the best in bold. Ranks are means over tables, sizes and seeds. Flows: "
            "eight affine coupling layers with LU layers between, kernelised ones with 150 points "
            "and Matérn 3/2, and `coupling_flow` with its default splines; trained by `fit` with "
            "its defaults, which hold out a tenth of the rows. Normal: maximum likelihood or "
            "Ledoit-Wolf, the better by five-fold cross-validation; mixture and KDE: components "
            "and bandwidth by a fifth held out, fitted again to all rows.",
        ),
        *_means(few, settings),
        *_leads(few, settings),
        "## All rows",
        "",
        f"{options.steps:,} steps of 256 rows, Adam with a cosine to zero, weights of the best "
        "epoch. Kernelised: eight layers at the rate 3e-3 with the points that a fifth of the "
        "parameters allows, 50 with splines (MAGIC) or 170 with affine maps, and a spline of "
        "every feature by itself before each (patches); perceptrons: the coupling flow of the "
        "package at its rate, 1e-3. One seed.",
        "",
        *table(
            ("table", "flow", "log-likelihood", "parameters", "seconds"),
            (
                (r.table.removeprefix("all of "), r.model, *_score(r), f"{r.seconds:.0f}")
                for r in results
                if r.table.startswith("all of")
            ),
            left=2,
        ),
        "## Every fit",
        "",
        *table(
            (
                "table", "density", "chosen", "training rows", "seed", "log-likelihood",
                "parameters",
            ),
            ((r.table, r.model, r.choice, r.rows, r.seed, *_score(r)) for r in few),
            left=3,
        ),
    ]  # fmt: skip


def _score(r: Result) -> tuple[str, str]:
    return f"{r.log_prob:.3f} +- {r.error:.3f}", f"{r.parameters:,}" if r.parameters else ""


def _means(few: list[Result], settings: list[tuple[str, int]]) -> list[str]:
    """Means over seeds of every table and size, and mean ranks."""
    ranks: dict[str, list[float]] = {name: [] for name in MODELS}
    rows: list[tuple[object, ...]] = []
    for name, size in settings:
        part = {(r.model, r.seed): r.log_prob for r in few if (r.table, r.rows) == (name, size)}
        seeds = sorted({seed for _, seed in part})
        means = [statistics.mean(part[m, seed] for seed in seeds) for m in MODELS]
        cells = [f"**{v:.3f}**" if v == max(means) else f"{v:.3f}" for v in means]
        rows.append((name, size, len(seeds), *cells))
        for seed in seeds:
            # Flows that kept the same start differ by rounding.
            ordered = scipy.stats.rankdata([-round(part[m, seed], 4) for m in MODELS])
            for model, rank in zip(MODELS, ordered, strict=True):
                ranks[model].append(float(rank))
    means = [f"{statistics.mean(ranks[m]):.2f}" for m in MODELS]
    rows.append(("mean rank", "", "", *means))
    return table(("table", "training rows", "seeds", *MODELS), rows)


def _leads(few: list[Result], settings: list[tuple[str, int]]) -> list[str]:
    """What the default flows gain over a normal density, paired."""
    rows: list[tuple[object, ...]] = []
    for name, size in settings:
        cells = []
        for model in ("kernelised", "coupling_flow"):
            part = [r for r in few if (r.table, r.rows, r.model) == (name, size, model)]
            lead = statistics.mean(r.lead for r in part)
            # Splits share rows, so that errors are not divided by the root of their number.
            error = statistics.mean(r.lead_error for r in part)
            least = min(part, key=lambda r: r.lead)
            cells += [f"{lead:+.3f} ± {error:.3f}", f"{least.lead:+.3f} ± {least.lead_error:.3f}"]
        rows.append((name, size, *cells))
    return [
        "Lead over the normal density in nats, paired over test rows: the mean over seeds, with "
        "the mean of their standard errors; and the lowest of any seed.",
        "",
        *table(
            ("table", "training rows", "kernelised", "lowest", "coupling_flow", "lowest"), rows
        ),
    ]


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"seeds": [0], "sizes": [60], "fit_steps": 2, "steps": 2},
        packages=("flowkit-density", "torch", "scikit-learn"),
        seeds=[0, 1, 2, 3, 4],
        sizes=[100, 300, 500],
        fit_steps=int,  # what fit chooses
        steps=3000,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    for seed in options.seeds:
        for name in ["wine"] if options.small else TABLES:
            # A small table has one size.
            for rows in sorted({_rows(name, size) for size in options.sizes}):
                if records.lack(table=name, rows=rows, seed=seed):
                    for result in score(name, rows, seed, options):
                        records.add(result)
    for name in ["MAGIC"] if options.small else FULL:
        for model in ("kernelised", "MLP"):
            if records.lack(table=f"all of {name}", model=model):
                records.add(full(model, name, options))
    study.write(page(study, records.results))
    return records.results


def _rows(table: str, size: int) -> int:
    """Training rows of this size, as far as the table has them."""
    parts = TABLES[table][0](seed=0)
    return min(size, int(0.8 * sum(len(part) for part in parts[:3])))


if __name__ == "__main__":
    main()
