"""Smooth flows against spline flows on a torus: the same likelihood, other forces.

The experiment of "Smooth Normalizing Flows" (arXiv 2110.00351) on a torus: four coupling layers
of 40 components, networks of 100 units with SiLU, batches of 1000 of 100,000 points, 8,000 steps
of Adam from 5e-4. The density is ``torus_rings``, the potential of the paper with cosines, whose
forces are known exactly. Splines and smooth mixtures share everything but the scalar map. Each is
trained by likelihood alone, and by likelihood and force matching together.

Run: ``python examples/papers/smooth_flows.py`` (about two hours on one core); ``--small`` takes
seconds. With ``--record FILE`` each result is kept there, and a later run goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import flowkit
from flowkit.toys import TorusRings

TEST_SEED = 1_000_003
#: Weight of the force term beside a nat of likelihood; forces are in 1/rad.
FORCE_WEIGHT = 0.01


@dataclass
class Result:
    """Scores of one flow on test points; errors are standard errors over them."""

    scalar: str
    matched: bool
    seed: int
    nll: float
    nll_error: float
    rmse: float
    seconds: float


def force_error(flow: flowkit.Flow, x: Tensor, exact: Tensor) -> float:
    """Root mean squared error of a component of the force, in 1/rad."""
    with torch.no_grad():
        parts = [
            (flow.score(part) - truth).square().sum()
            for part, truth in zip(x.split(10_000), exact.split(10_000), strict=True)
        ]
    return math.sqrt(float(sum(parts)) / exact.numel())


def train(scalar: str, matched: bool, seed: int, options: argparse.Namespace) -> Result:
    """Train one flow from scratch and score it."""
    toy = TorusRings()
    torch.manual_seed(seed)
    flow = flowkit.smooth_flow(
        2,
        circular=True,
        scalar=scalar,
        components=options.components,
        hidden=(options.hidden, options.hidden),
        seed=seed,
    )
    x = toy.sample(options.rows, torch.Generator().manual_seed(seed))
    objective: flowkit.MaximumLikelihood | flowkit.WeightedSum = flowkit.MaximumLikelihood()
    data = {"x": x}
    if matched:
        data["force"] = toy.score(x)
        objective = flowkit.WeightedSum(
            (1.0, flowkit.MaximumLikelihood()), (FORCE_WEIGHT, flowkit.ForceMatching())
        )
    begun = time.process_time()
    flowkit.fit(
        flow,
        data,
        objective,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=5e-4,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - begun
    test = toy.sample(options.test_rows, torch.Generator().manual_seed(TEST_SEED + seed))
    with torch.no_grad():
        nll = -torch.cat([flow.log_prob(part) for part in test.split(10_000)])
    rmse = force_error(flow, test, toy.score(test))
    error = float(nll.std()) / math.sqrt(len(nll))
    return Result(scalar, matched, seed, float(nll.mean()), error, rmse, seconds)


def read(record: Path | None) -> list[Result]:
    """The results that are known already."""
    if record is None or not record.exists():
        return []
    return [Result(**json.loads(line)) for line in record.read_text().splitlines()]


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """The table, and its ratios."""
    toy = TorusRings()
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    lines = [
        "# Smooth flows and spline flows on a torus",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        f"`torus_rings`, entropy {toy.entropy():.4f} nats. Four coupling layers, "
        f"{options.components} components or bins, networks 2 x {options.hidden}, "
        f"{options.steps:,} steps of Adam from 5e-4 (cosine to zero) with {options.batch_size} of "
        f"{options.rows:,} points, a tenth of them for validation. Scores on "
        f"{options.test_rows:,} other points. Force error: root mean square of a component of "
        "grad log p against the exact one, in 1/rad. Force matching adds "
        f"{FORCE_WEIGHT} times the mean squared force error to the negative log-likelihood.",
        "",
        "| scalar map | training | seed | NLL, nats | above entropy | force error | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        training = "likelihood and forces" if r.matched else "likelihood"
        lines.append(
            f"| {r.scalar} | {training} | {r.seed} | {r.nll:.4f} +- {r.nll_error:.4f} | "
            f"{r.nll - toy.entropy():+.4f} | {r.rmse:.3f} | {r.seconds:.0f} |"
        )
    found = {(r.scalar, r.matched, r.seed): r for r in results}
    lines += [
        "",
        "| seed | NLL, smooth - spline | force error, smooth / spline | with forces / without, "
        "smooth | with forces / without, spline |",
        "|--:|--:|--:|--:|--:|",
    ]
    for seed in options.seeds:
        plain = {s: found[s, False, seed] for s in ("smooth", "spline")}
        matched = {s: found[s, True, seed] for s in ("smooth", "spline")}
        lines.append(
            f"| {seed} | {plain['smooth'].nll - plain['spline'].nll:+.4f} | "
            f"{plain['smooth'].rmse / plain['spline'].rmse:.3f} | "
            f"{matched['smooth'].rmse / plain['smooth'].rmse:.3f} | "
            f"{matched['spline'].rmse / plain['spline'].rmse:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--components", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--test-rows", type=int, default=50_000)
    parser.add_argument("--small", action="store_true", help="seconds instead of two hours")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for smooth_flows.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.seeds, options.steps, options.rows, options.test_rows = [0], 20, 4000, 2000
        options.batch_size, options.components, options.hidden = 200, 6, 16
    torch.set_num_threads(1)
    results = read(options.record)
    known = {(r.scalar, r.matched, r.seed) for r in results}
    for seed in options.seeds:
        for scalar in ("smooth", "spline"):
            for matched in (False, True):
                if (scalar, matched, seed) in known:
                    continue
                results.append(train(scalar, matched, seed, options))
                print(results[-1], flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps(asdict(results[-1])) + "\n")
    results.sort(key=lambda r: (r.seed, r.scalar, r.matched))
    given = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(options).items()
        if name not in ("output", "record") and value != parser.get_default(name)
    }
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    shown = " ".join(f"{name} {value}" for name, value in words.items())
    text = report(results, options, f"python examples/papers/smooth_flows.py {shown}".strip())
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "smooth_flows.md").write_text(text)
    return results


if __name__ == "__main__":
    main()
