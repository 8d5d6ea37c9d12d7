"""Value at risk and expected shortfall of twenty stocks, against held-out years.

Daily log returns from 1990 to 2022; densities are fitted to the years before a date, and their
extreme losses compared with those of the years from it on: of every stock, and of the portfolio
that holds the same of each (the mean of the returns). Fitted are a multivariate normal, a
multivariate Student-t (maximum likelihood, by EM), the same spline flow on a normal base, and
tail-adaptive flows: a Student-t base (mTAF), and a last map that makes the tails (TTF). Value at
risk and shortfall come from samples of each density, in per cent per day.

Run: ``python examples/papers/stock_returns.py`` (half an hour on one core); ``--small`` takes
seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from harness import Records, Study, table
from scipy import optimize, special, stats

import flowkit
from flowkit.datasets import stock_returns
from flowkit.recipes import tail_adaptive_flow
from flowkit.statistics import expected_shortfall, tail_indices

MODELS = ("normal", "t", "spline", "mtaf", "mtaf-fixed", "ttf")
LEVELS = (0.99, 0.999)
ROWS_AT_ONCE = 50_000


@dataclass
class Result:
    """Scores of one density; errors are means over the stocks of absolute differences."""

    model: str
    date: str
    seed: int
    log_prob: float
    risk_errors: list[float]
    shortfall_errors: list[float]
    portfolio_risks: list[float]
    portfolio_shortfalls: list[float]
    seconds: float


def losses(x: np.ndarray) -> np.ndarray:
    """Value at risk and expected shortfall, (level, 2, stocks and the portfolio)."""
    columns = [*x.T, x.mean(-1)]
    return np.array(
        [
            [
                [np.quantile(-c, level) for c in columns],
                [expected_shortfall(c, level, tail="left") for c in columns],
            ]
            for level in LEVELS
        ]
    )


def fit_t(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Location, shape matrix and degrees of freedom of a multivariate t, by EM."""
    features = x.shape[1]
    place, shape, df = x.mean(0), np.cov(x.T), 5.0
    for _ in range(200):
        distance = np.einsum("ij,jk,ik->i", x - place, np.linalg.inv(shape), x - place)
        weight = (df + features) / (df + distance)
        place = (weight[:, None] * x).sum(0) / weight.sum()
        shape = (weight[:, None] * (x - place)).T @ (x - place) / len(x)
        distance = np.einsum("ij,jk,ik->i", x - place, np.linalg.inv(shape), x - place)

        def loss(log_df: float, distance: np.ndarray = distance) -> float:
            df = np.exp(log_df)
            constant = special.gammaln((df + features) / 2) - special.gammaln(df / 2)
            kernel = np.log1p(distance / df).mean()
            return -(constant - features / 2 * log_df - (df + features) / 2 * kernel)

        df = float(np.exp(optimize.minimize_scalar(loss, bounds=(0, 5), method="bounded").x))
    return place, shape, df


def train(name: str, date: str, seed: int, options: argparse.Namespace) -> Result:
    """Fit one density, and score it."""
    before, after = (part.double().numpy() for part in stock_returns().split(date))
    if options.small:
        before, after = before[-600:], after[:300]
    begun = time.process_time()
    if name in ("normal", "t"):
        place, shape, df = (
            (before.mean(0), np.cov(before.T), np.inf) if name == "normal" else fit_t(before)
        )
        law = stats.multivariate_t(place, shape, df=df, seed=seed)
        score, drawn = law.logpdf(after).mean(), law.rvs(options.draws)
    else:
        rows = torch.from_numpy(before).float()
        tails = [None] * rows.shape[1] if name == "spline" else tail_indices(rows, seed=seed)
        torch.manual_seed(seed)
        flow = tail_adaptive_flow(
            len(tails), tails=tails, variant="mtaf" if name == "spline" else name
        )
        flowkit.fit(
            flow,
            rows,
            validation=0.1,
            epochs=options.epochs,
            batch_size=256,
            lr=1e-3,
            scheduler="cosine",
            ema=None,
            patience=10,
            compile=False,
            seed=seed,
            progress=False,
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            score = flow.log_prob(torch.from_numpy(after).float()).double().mean()
            parts = [
                flow.sample(n, generator=generator)
                for n in np.diff([*range(0, options.draws, ROWS_AT_ONCE), options.draws]).tolist()
            ]
        drawn = torch.cat(parts).double().numpy()
    seconds = time.process_time() - begun
    found, true = losses(drawn), losses(after)
    errors = np.abs(found - true)[..., :-1].mean(-1)
    return Result(
        name,
        date,
        seed,
        float(score),
        errors[:, 0].tolist(),
        errors[:, 1].tolist(),
        found[:, 0, -1].tolist(),
        found[:, 1, -1].tolist(),
        seconds,
    )


def page(study: Study, results: list[Result]) -> list[str]:
    """One row per density and date, means over seeds, and one per fit."""
    lines = study.heading(
        "Losses of twenty stocks",
        "Daily log returns in per cent, 1990 to 2022. Fitted to the days before a date; value at "
        "risk (VaR) and expected shortfall (ES) of the days from it on against those of "
        f"{study.options.draws:,} samples. Errors are means over the stocks of absolute "
        "differences; of the portfolio that holds the same of each the figures themselves. "
        "Flows: five autoregressive spline layers with networks of 64 and 64 units, Adam from "
        f"1e-3, at most {study.options.epochs} epochs of batches of 256, stopped by a random "
        "tenth of the days; normal and t use all of them.",
    )
    for date in sorted({r.date for r in results}):
        after = stock_returns().split(date)[1].double().numpy()
        lines += [f"## From {date} on: {len(after):,} days", ""]
        lines += _means([r for r in results if r.date == date], losses(after)[..., -1])
    lines += ["## Every fit", ""]
    lines += table(
        (
            "from", "density", "seed", "log p per day, nats", "VaR error 99 %", "99.9 %",
            "ES error 99 %", "99.9 %",
        ),
        (
            (
                r.date,
                r.model,
                r.seed,
                *(f"{v:.3f}" for v in (r.log_prob, *r.risk_errors, *r.shortfall_errors)),
            )
            for r in sorted(results, key=lambda r: (r.date, MODELS.index(r.model), r.seed))
        ),
        left=2,
    )  # fmt: skip
    return lines


def _means(results: list[Result], true: np.ndarray) -> list[str]:
    """Means over seeds of one date, below the figures of the days that were held out."""
    held = (f"{v:.2f}" for v in (*true[:, 0], *true[:, 1]))
    rows: list[tuple[object, ...]] = [("held out", *5 * [""], *held, "", "")]
    for name in MODELS:
        runs = [r for r in results if r.model == name]
        if runs:
            figures = np.mean(
                [
                    r.risk_errors + r.shortfall_errors + r.portfolio_risks + r.portfolio_shortfalls
                    for r in runs
                ],
                0,
            )
            log_prob = statistics.mean(r.log_prob for r in runs)
            seconds = statistics.mean(r.seconds for r in runs)
            cells = (f"{v:.2f}" for v in figures)
            rows.append((name, f"{log_prob:.3f}", *cells, len(runs), f"{seconds:.0f}"))
    header = (
        "density", "log p per day, nats", "VaR 99 % error", "99.9 %", "ES 99 % error", "99.9 %",
        "portfolio VaR 99 %", "99.9 %", "portfolio ES 99 %", "99.9 %", "seeds", "seconds",
    )  # fmt: skip
    return table(header, rows)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"seeds": [0], "dates": ["2010-01-01"], "epochs": 1, "draws": 500},
        packages=("flowkit-density", "torch", "scipy"),
        seeds=[0, 1, 2],
        dates=["2006-01-01", "2010-01-01", "2014-01-01"],
        epochs=60,
        draws=200_000,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    for seed in options.seeds:
        for date in options.dates:
            for model in MODELS:
                if records.lack(model=model, date=date, seed=seed):
                    records.add(train(model, date, seed, options))
    study.write(page(study, records.results))
    return records.results


if __name__ == "__main__":
    main()
