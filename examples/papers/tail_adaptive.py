"""Tail-adaptive flows on light and heavy margins under a normal copula.

The synthetic benchmark of "Marginal Tail-Adaptive Normalizing Flows" (Laszkiewicz, Lederer,
Fischer 2022, arXiv 2206.10311): eight features, of which one or four have the tails of Student-t
distributions with two or three degrees of freedom; once also fifty, of which ten are heavy. Flows
that differ in their base and in what may reach what are fitted to the same samples: a normal base
(vanilla), one Student-t for all features (TAF), one each (gTAF), light and heavy groups with
learned (mTAF) or fixed degrees of freedom, and a normal base with a last map that makes the tails
("Flexible Tails for Normalizing Flows", Hickling, Prangle, arXiv 2406.16971) of learned (TTF) or
fixed shape. The tail indices are estimated from other samples. Scored by the negative
log-likelihood above the exact one, and by tails of generated samples: the area between log-log
plots and the expected shortfall at 95 %, mean over heavy margins. Other samples of the true
density ("truth") show how small these can be.

Run: ``python examples/papers/tail_adaptive.py`` (hours on one core); ``--small`` takes seconds.
With ``--record FILE`` each result is kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

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
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    return flow


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """One line a flow and setting, and one a training."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    order = {name: i for i, name in enumerate(FLOWS)}
    results = sorted(results, key=lambda r: (r.features, r.heavy, r.df, order[r.flow], r.seed))
    lines = [
        "# Tail-adaptive flows on a copula",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        f"Five autoregressive spline layers with networks of {UNITS[8]} units and "
        f"{options.rows:,} training rows (eight features), "
        f"{UNITS[50]} units and {MORE_ROWS[50]:,} rows (fifty); "
        f"{options.steps:,} steps of 512 rows, Adam from 1e-3 (cosine to zero), weights of the "
        f"best epoch. On {options.test:,} test rows: mean of -log p above the exact one, nats; on "
        "as many generated ones, means over the heavy margins of the area between log-log plots "
        "(10,000 rows) and of the error of the expected shortfall at 95 %; and the share of all "
        f"margins whose generated tail ({options.held:,} rows) is found to be what it is.",
        "",
        "## Means over seeds",
        "",
        "Standard errors of the first column come from the test rows. The last but one column is "
        "the mean difference from the vanilla flow in its standard errors.",
        "",
        "| D | heavy | df | flow | above exact, nats | area | shortfall error | right tails | "
        "below vanilla, standard errors | seeds |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[int, int, float], dict[str, list[Result]]] = {}
    for r in results:
        groups.setdefault((r.features, r.heavy, r.df), {}).setdefault(r.flow, []).append(r)
    for (features, heavy, df), flows in groups.items():
        vanilla = _excess(flows.get("vanilla", []))
        for name, runs in flows.items():
            mean, error = _excess(runs)
            gap = (vanilla[0] - mean) / max(math.hypot(vanilla[1], error), 1e-12)
            known = name not in ("vanilla", "truth") and "vanilla" in flows
            area, shortfall, right = (
                statistics.mean(getattr(r, key) for r in runs)
                for key in ("area", "shortfall", "right")
            )
            lines.append(
                f"| {features} | {heavy} | {df:g} | {name} | {mean:.4f} +- {error:.4f} | "
                f"{area:.2f} | {shortfall:.3f} | {right:.2f} | "
                f"{f'{gap:.1f}' if known else ''} | {len(runs)} |"
            )
    lines += [
        "",
        "## Every training",
        "",
        "| D | heavy | df | flow | seed | above exact, nats | area | shortfall error | right "
        "tails | seconds |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        lines.append(
            f"| {r.features} | {r.heavy} | {r.df:g} | {r.flow} | {r.seed} | {r.excess:.4f} +- "
            f"{r.excess_error:.4f} | {r.area:.2f} | {r.shortfall:.3f} | {r.right:.2f} | "
            f"{r.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _excess(runs: list[Result]) -> tuple[float, float]:
    """Mean over seeds, and its standard error by the test rows."""
    if not runs:
        return math.nan, math.nan
    error = math.sqrt(sum(r.excess_error**2 for r in runs)) / len(runs)
    return statistics.mean(r.excess for r in runs), error


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--heavy", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--df", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--held", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=75_000)
    parser.add_argument("--large", action="store_true", help="also fifty features")
    parser.add_argument("--small", action="store_true", help="seconds instead of hours")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for tail_adaptive.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.seeds, options.heavy, options.df = [0], [4], [2.0]
        options.steps, options.rows, options.held, options.test = 4, 600, 300, 400
    torch.set_num_threads(1)
    results: list[Result] = []
    if options.record and options.record.exists():
        results = [Result(**json.loads(line)) for line in options.record.read_text().splitlines()]
    known = {(r.flow, r.features, r.heavy, r.df, r.seed) for r in results}
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
            if (name, features, heavy, df, seed) in known:
                continue
            results.append(train(name, toy, seed, options))
            print(results[-1], flush=True)
            if options.record:
                with options.record.open("a") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
    given = {
        f"--{name}": value
        for name, value in vars(options).items()
        if name not in ("output", "record") and value != parser.get_default(name)
    }
    if options.small:
        given = {"--small": True}
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    shown = " ".join(k if v is True else f"{k} {v}" for k, v in words.items())
    text = report(results, options, f"python examples/papers/tail_adaptive.py {shown}".strip())
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "tail_adaptive.md").write_text(text)
    return results


if __name__ == "__main__":
    main()
