"""Value at risk and expected shortfall of twenty stocks, against held-out years.

Daily log returns from 1990 to 2022; densities are fitted to the years before a date, and their
extreme losses compared with those of the years from it on: of every stock, and of the portfolio
that holds the same of each (the mean of the returns). Fitted are a multivariate normal, a
multivariate Student-t (maximum likelihood, by EM), the same spline flow on a normal base, and
tail-adaptive flows: a Student-t base (mTAF), and a last map that makes the tails (TTF). Value at
risk and shortfall come from samples of each density, in per cent a day.

Run: ``python examples/papers/stock_returns.py`` (half an hour on one core); ``--small`` takes
seconds. With ``--record FILE`` each result is kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
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
    risk_errors: tuple[float, float]
    shortfall_errors: tuple[float, float]
    portfolio_risks: tuple[float, float]
    portfolio_shortfalls: tuple[float, float]
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
        tuple(errors[:, 0]),
        tuple(errors[:, 1]),
        tuple(found[:, 0, -1]),
        tuple(found[:, 1, -1]),
        seconds,
    )


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """One line a density and date, means over seeds, and one a fit."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch", "scipy"))
    lines = [
        "# Losses of twenty stocks",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        "Daily log returns in per cent, 1990 to 2022. Fitted to the days before a date; value at "
        "risk (VaR) and expected shortfall (ES) of the days from it on against those of "
        f"{options.draws:,} samples. Errors are means over the stocks of absolute differences; of "
        "the portfolio that holds the same of each the figures themselves. Flows: five "
        "autoregressive spline layers with networks of 64 and 64 units, Adam from 1e-3, at most "
        f"{options.epochs} epochs of batches of 256, stopped by a random tenth of the days; "
        "normal and t see all of them.",
    ]
    dates = sorted({r.date for r in results})
    for date in dates:
        part = [r for r in results if r.date == date]
        after = stock_returns().split(date)[1].double().numpy()
        true = losses(after)[..., -1]
        lines += [
            "",
            f"## From {date} on: {len(after):,} days",
            "",
            "| density | log p a day, nats | VaR 99 % error | 99.9 % | ES 99 % error | 99.9 % | "
            "portfolio VaR 99 % | 99.9 % | portfolio ES 99 % | 99.9 % | seeds | seconds |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            "| held out | | | | | | "
            + " | ".join(f"{v:.2f}" for v in (*true[:, 0], *true[:, 1]))
            + " | | |",
        ]
        for name in MODELS:
            runs = [r for r in part if r.model == name]
            if runs:
                numbers = np.mean(
                    [
                        (
                            *r.risk_errors,
                            *r.shortfall_errors,
                            *r.portfolio_risks,
                            *r.portfolio_shortfalls,
                        )
                        for r in runs
                    ],
                    0,
                )
                lines.append(
                    f"| {name} | {statistics.mean(r.log_prob for r in runs):.3f} | "
                    + " | ".join(f"{v:.2f}" for v in numbers)
                    + f" | {len(runs)} | {statistics.mean(r.seconds for r in runs):.0f} |"
                )
    lines += [
        "",
        "## Every fit",
        "",
        "| from | density | seed | log p a day, nats | VaR error 99 % | 99.9 % | ES error 99 % | "
        "99.9 % |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in sorted(results, key=lambda r: (r.date, MODELS.index(r.model), r.seed)):
        numbers = (*r.risk_errors, *r.shortfall_errors)
        lines.append(
            f"| {r.date} | {r.model} | {r.seed} | {r.log_prob:.3f} | "
            + " | ".join(f"{v:.3f}" for v in numbers)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dates", nargs="+", default=["2006-01-01", "2010-01-01", "2014-01-01"])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=200_000)
    parser.add_argument("--small", action="store_true", help="seconds instead of half an hour")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for stock_returns.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.seeds, options.dates, options.epochs, options.draws = [0], ["2010-01-01"], 1, 500
    torch.set_num_threads(1)
    results: list[Result] = []
    if options.record and options.record.exists():
        for line in options.record.read_text().splitlines():
            fields = json.loads(line)
            results.append(
                Result(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
            )
    known = {(r.model, r.date, r.seed) for r in results}
    for seed in options.seeds:
        for date in options.dates:
            for name in MODELS:
                if (name, date, seed) in known:
                    continue
                results.append(train(name, date, seed, options))
                print(results[-1], flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps(asdict(results[-1])) + "\n")
    given = {
        f"--{name}": value
        for name, value in vars(options).items()
        if name not in ("output", "record") and value != parser.get_default(name)
    }
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    shown = " ".join(f"{k} {v}" for k, v in words.items())
    shown = "--small" if options.small else shown
    text = report(results, options, f"python examples/papers/stock_returns.py {shown}".strip())
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "stock_returns.md").write_text(text)
    return results


if __name__ == "__main__":
    main()
