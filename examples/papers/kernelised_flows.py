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
nats per row, of the standardised columns.

Run: ``python examples/papers/kernelised_flows.py`` (two hours on one core); ``--small`` takes
seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from harness import Records, Study, table
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
    return coupling_flow(
        features, layers=LAYERS, scalar="affine", hidden=(width, width), start="standardize"
    )


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
            scheduler="cosine",
            ema=None,
            patience=30,
            compile=False,
            seed=seed,
            progress=False,
        )
        if history.best is not None and history.best < best:
            epoch = (history.best_step or 0) * len(history.steps) // history.steps[-1]
            best, kept, chosen = history.best, flow, f"lr {rate:g}, epoch {epoch}"
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
            f"{LAYERS} affine coupling layers with LU layers between; kernelised ones with 150 "
            f"points and Matérn 3/2; batches of 100, at most {options.epochs} epochs, patience "
            f"30, the best of the learning rates {', '.join(f'{r:g}' for r in RATES)} by a fifth "
            "of the rows, which flows are not trained on; the other densities are fitted to all "
            "of them in the end.",
        ),
        *_means(few, settings),
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
    return f"{r.log_prob:.3f} +- {r.error:.3f}", f"{r.parameters:,}"


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
            ordered = scipy.stats.rankdata([-part[m, seed] for m in MODELS])
            for model, rank in zip(MODELS, ordered, strict=True):
                ranks[model].append(float(rank))
    means = [f"{statistics.mean(ranks[m]):.2f}" for m in MODELS]
    rows.append(("mean rank", "", "", *means))
    return table(("table", "training rows", "seeds", *MODELS), rows)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"seeds": [0], "sizes": [60], "epochs": 1, "steps": 2},
        packages=("flowkit-density", "torch", "scikit-learn"),
        seeds=[0, 1, 2, 3, 4],
        sizes=[300, 500],
        epochs=300,
        steps=3000,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    for seed in options.seeds:
        for name in ["wine"] if options.small else TABLES:
            # A small table has one size.
            for rows in sorted({_rows(name, size) for size in options.sizes}):
                for model in MODELS:
                    if records.lack(table=name, rows=rows, seed=seed, model=model):
                        records.add(score(model, name, rows, seed, options))
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
