"""Tail-adaptive flows on light and heavy margins under a normal copula.

The synthetic benchmark of "Marginal Tail-Adaptive Normalizing Flows" (Laszkiewicz, Lederer,
Fischer 2022, arXiv 2206.10311): eight features, of which one or four have the tails of Student-t
distributions with two or three degrees of freedom. Five flows that differ in their base and in
what may reach what are fitted to the same samples: a normal base (vanilla), one Student-t for all
features (TAF), one each (gTAF), and light and heavy groups with learned (mTAF) or fixed degrees
of freedom. The tail indices are estimated from other samples. Scored by the negative
log-likelihood above the exact entropy, and by tails of generated samples: the area between log-log
plots and the expected shortfall at 95 %, mean over heavy margins.

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
from flowkit.datasets import HeavyCopula
from flowkit.recipes import tail_adaptive_flow
from flowkit.statistics import expected_shortfall, tail_area, tail_verdict

FLOWS = ("vanilla", "taf", "gtaf", "mtaf", "mtaf-fixed")


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
    rows, held, test = (
        toy.sample(n, seed=10 * seed + i)
        for i, n in enumerate((options.rows, options.held, options.test))
    )
    found = [tail_verdict(column, resamples=60, seed=seed).index for column in held.T]
    torch.manual_seed(seed)
    flow = tail_adaptive_flow(
        [None] * toy.features if name == "vanilla" else found,
        variant="mtaf" if name == "vanilla" else name,
        layers=5,
        hidden=(30,),
    )
    begun = time.process_time()
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
    seconds = time.process_time() - begun
    with torch.no_grad():
        gaps = -flow.log_prob(test) + toy.log_prob(test)
    drawn = flow.sample(len(test), generator=torch.Generator().manual_seed(seed))
    margins = range(toy.features - toy.heavy, toy.features)
    verdicts = [tail_verdict(c[: options.held], resamples=60).heavy for c in drawn.T]
    right = [v == (t is not None) for v, t in zip(verdicts, toy.tails, strict=True)]
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


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """One line a flow."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    lines = [
        "# Tail-adaptive flows on a copula",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        f"Five autoregressive spline layers with networks of 30 units, {options.rows:,} training "
        f"rows, {options.steps:,} steps of 512 rows, Adam from 1e-3 (cosine to zero), weights of "
        f"the best epoch. On {options.test:,} test rows: mean of -log p above the exact one, "
        "nats; on as many generated ones, means over the heavy margins of the area between "
        "log-log plots (10,000 rows) and of the error of the expected shortfall at 95 %; and the "
        "share of all margins whose generated tail is found to be what it is.",
        "",
        "| D | heavy | df | flow | seed | above exact, nats | area | shortfall error | right "
        "tails | seconds |",
        "|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in sorted(results, key=lambda r: (r.features, r.heavy, r.df, FLOWS.index(r.flow))):
        lines.append(
            f"| {r.features} | {r.heavy} | {r.df:g} | {r.flow} | {r.seed} | {r.excess:.4f} +- "
            f"{r.excess_error:.4f} | {r.area:.2f} | {r.shortfall:.3f} | {r.right:.2f} | "
            f"{r.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Fit all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--heavy", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--df", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=15_000)
    parser.add_argument("--held", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=75_000)
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
    known = {(r.flow, r.heavy, r.df, r.seed) for r in results}
    for seed in options.seeds:
        for heavy in options.heavy:
            for df in options.df:
                toy = HeavyCopula(8, heavy, df, seed)
                for name in FLOWS:
                    if (name, heavy, df, seed) in known:
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
