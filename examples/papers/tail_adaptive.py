"""Tail-adaptive flows on light and heavy margins under a normal copula.

The synthetic benchmark of "Marginal Tail-Adaptive Normalizing Flows" (Laszkiewicz, Lederer,
Fischer 2022, arXiv 2206.10311): eight features, of which one or four have the tails of Student-t
distributions with two or three degrees of freedom; once also fifty, of which ten are heavy. Flows
that differ in their base and in which margins depend on which are fitted to the same samples: a
normal base (vanilla), one Student-t for all features (TAF), one each (gTAF), light and heavy
groups with learned (mTAF) or fixed degrees of freedom, and a normal base with a last map that
makes the tails ("Flexible Tails for Normalizing Flows", Hickling, Prangle, arXiv 2406.16971) of
learned (TTF) or fixed shape. The tail indices are estimated from other samples. Scored by the
negative log-likelihood above the exact one, and by tails of generated samples: the area between
log-log plots and the expected shortfall at 95 %, mean over heavy margins. Other samples of the
true density ("truth") show how small these can be.

Run: ``python examples/papers/tail_adaptive.py`` (hours on one core); ``--small`` takes seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import torch
from harness import Records, Study, table

import flowkit
from flowkit.recipes import tail_adaptive_flow
from flowkit.statistics import expected_shortfall, tail_area, tail_indices
from flowkit.toys import HeavyCopula

FLOWS = ("vanilla", "taf", "gtaf", "mtaf", "mtaf-fixed", "ttf", "ttf-fixed", "truth")
# The large problem: features, heavy ones, degrees of freedom; units, and training rows, by size.
LARGE = (50, 10, 2.0)
UNITS = {8: 30, 50: 200}
MORE_ROWS = {50: 50_000}


@dataclass
class Result:
    """Scores of one flow."""

    flow: str
    features: int
    heavy: int
    df: float
    seed: int
    excess: float
    excess_error: float
    area: float
    shortfall: float
    right: float
    seconds: float


def train(name: str, toy: HeavyCopula, seed: int, options: argparse.Namespace) -> Result:
    """Fit one flow, and score it and its samples."""
    size = options.rows if options.small else MORE_ROWS.get(toy.features, options.rows)
    rows, held, test = (
        toy.sample(n, torch.Generator().manual_seed(10 * seed + i))
        for i, n in enumerate((size, options.held, options.test))
    )
    begun = time.process_time()
    if name == "truth":
        gaps = torch.zeros(len(test))
        drawn = toy.sample(len(test), torch.Generator().manual_seed(10 * seed + 3))
    else:
        flow = fit(name, rows, held, seed, options)
        with torch.no_grad():
            gaps = -flow.log_prob(test) + toy.log_prob(test)
        drawn = flow.sample(len(test), generator=torch.Generator().manual_seed(seed))
    seconds = time.process_time() - begun
    margins = range(toy.features - toy.heavy, toy.features)
    found = tail_indices(drawn[: options.held], resamples=60)
    right = [(t < math.inf) == (k is not None) for t, k in zip(found, toy.tails, strict=True)]
    return Result(
        name,
        toy.features,
        toy.heavy,
        toy.df,
        seed,
        float(gaps.mean()),
        float(gaps.std()) / math.sqrt(len(test)),
        statistics.mean(tail_area(drawn[:10_000, i], test[:10_000, i]) for i in margins),
        statistics.mean(
            abs(expected_shortfall(drawn[:, i]) - expected_shortfall(test[:, i])) for i in margins
        ),
        statistics.mean(right),
        seconds,
    )


def fit(
    name: str, rows: torch.Tensor, held: torch.Tensor, seed: int, options: argparse.Namespace
) -> flowkit.Flow:
    """Fit one flow, with tails found in the held-out rows."""
    features = rows.shape[-1]
    torch.manual_seed(seed)
    flow = tail_adaptive_flow(
        features,
        tails=[None] * features
        if name == "vanilla"
        else tail_indices(held, resamples=60, seed=seed),
        variant="mtaf" if name == "vanilla" else name,
        layers=5,
        hidden=(UNITS[features],),
    )
    flowkit.fit(
        flow,
        rows,
        validation=held,
        steps=options.steps,
        batch_size=512,
        lr=1e-3,
        scheduler="cosine",
        ema=None,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    return flow


def page(study: Study, results: list[Result]) -> list[str]:
    """One row per flow and setting, and one per training."""
    options = study.options
    order = {name: i for i, name in enumerate(FLOWS)}
    results = sorted(results, key=lambda r: (r.features, r.heavy, r.df, order[r.flow], r.seed))
    return [
        *study.heading(
            "Tail-adaptive flows on a copula",
            f"Five autoregressive spline layers with networks of {UNITS[8]} units and "
            f"{options.rows:,} training samples (eight features), {UNITS[50]} units and "
            f"{MORE_ROWS[50]:,} samples (fifty); {options.steps:,} steps of 512 samples, Adam "
            "from 1e-3 (cosine to zero), weights of the best epoch. On "
            f"{options.test:,} test samples: mean of -log p above the exact one, nats; on as many "
            "generated ones, means over the heavy margins of the area between log-log plots "
            "(10,000 samples) and of the error of the expected shortfall at 95 %; and the "
            f"proportion of all margins whose generated tail ({options.held:,} samples) is "
            "classified rightly as light or heavy.",
        ),
        "## Means over seeds",
        "",
        "Standard errors of the first column come from the test samples. The last but one column "
        "is the mean difference from the vanilla flow in its standard errors.",
        "",
        *_means(results),
        "## Every training",
        "",
        *table(
            (
                "flow", "D", "heavy", "df", "seed", "above exact, nats", "area",
                "shortfall error", "right tails", "seconds",
            ),
            (
                (
                    r.flow,
                    r.features,
                    r.heavy,
                    f"{r.df:g}",
                    r.seed,
                    f"{r.excess:.4f} +- {r.excess_error:.4f}",
                    f"{r.area:.2f}",
                    f"{r.shortfall:.3f}",
                    f"{r.right:.2f}",
                    f"{r.seconds:.0f}",
                )
                for r in results
            ),
        ),
    ]  # fmt: skip


def _means(results: list[Result]) -> list[str]:
    groups: dict[tuple[int, int, float], dict[str, list[Result]]] = {}
    for r in results:
        groups.setdefault((r.features, r.heavy, r.df), {}).setdefault(r.flow, []).append(r)
    rows = []
    for (features, heavy, df), flows in groups.items():
        vanilla = _excess(flows.get("vanilla", []))
        for name, runs in flows.items():
            mean, error = _excess(runs)
            gap = (vanilla[0] - mean) / max(math.hypot(vanilla[1], error), 1e-12)
            known = name not in ("vanilla", "truth") and "vanilla" in flows
            rows.append(
                (
                    name,
                    features,
                    heavy,
                    f"{df:g}",
                    f"{mean:.4f} +- {error:.4f}",
                    f"{statistics.mean(r.area for r in runs):.2f}",
                    f"{statistics.mean(r.shortfall for r in runs):.3f}",
                    f"{statistics.mean(r.right for r in runs):.2f}",
                    f"{gap:.1f}" if known else "",
                    len(runs),
                )
            )
    header = (
        "flow", "D", "heavy", "df", "above exact, nats", "area", "shortfall error", "right tails",
        "below vanilla, standard errors", "seeds",
    )  # fmt: skip
    return table(header, rows)


def _excess(runs: list[Result]) -> tuple[float, float]:
    """Mean over seeds, and its standard error by the test rows."""
    if not runs:
        return math.nan, math.nan
    error = math.sqrt(sum(r.excess_error**2 for r in runs)) / len(runs)
    return statistics.mean(r.excess for r in runs), error


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit and score all."""
    small = {"seeds": [0], "heavy": [4], "df": [2.0], "steps": 4}
    study = Study(
        __file__,
        __doc__,
        small={**small, "rows": 600, "held": 300, "test": 400},
        seeds=[0, 1, 2],
        heavy=[1, 4],
        df=[2.0, 3.0],
        steps=2000,
        rows=15_000,
        held=10_000,
        test=75_000,
        large=False,  # also fifty features
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    settings = [
        (seed, (8, heavy, df))
        for seed in options.seeds
        for heavy in options.heavy
        for df in options.df
    ]
    if options.large:
        settings.append((options.seeds[0], LARGE))
    for seed, (features, heavy, df) in settings:
        toy = HeavyCopula(features, heavy=heavy, df=df, seed=seed)
        for name in FLOWS:
            if records.lack(flow=name, features=features, heavy=heavy, df=df, seed=seed):
                records.add(train(name, toy, seed, options))
    study.write(page(study, records.results))
    return records.results


if __name__ == "__main__":
    main()
