"""Score matching and likelihood on three toys whose entropy and score are known.

The toy experiment of "Training Energy-Based Normalizing Flow with Score-Matching Objectives"
(Chao et al. 2023, arXiv 2305.15267): ten times a dense linear layer, an affine coupling and an
ActNorm, and a last linear layer; networks of three hidden layers of 64 units with Swish. The same
flow is trained by likelihood, stochastic likelihood, and sliced, denoising and finite-difference
score matching, each with the same fresh samples of sine, swirl and checkerboard. Scored by the
negative log-likelihood above the entropy, and by the Fisher divergence from the exact score.

Run: ``python examples/papers/score_matching.py`` (about twenty minutes on one core); ``--small``
takes seconds. With ``--record FILE`` each result is kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import flowkit
from flowkit import (
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    MaximumLikelihood,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
)
from flowkit.bases import StandardNormal
from flowkit.conditioners import MLP
from flowkit.objectives import Objective
from flowkit.scalar import Affine
from flowkit.toys import TOYS
from flowkit.transforms import ActNorm, Compose, Coupling, DenseLinear, Transform

TEST_SEED = 1_000_003
OBJECTIVES: dict[str, Objective] = {
    "likelihood": MaximumLikelihood(),
    "stochastic likelihood": StochasticMaximumLikelihood(),
    "sliced": SlicedScoreMatching(),
    "denoising": DenoisingScoreMatching(noise=0.1),
    "finite-difference": FiniteDifferenceScoreMatching(radius=0.1),
}
#: How far above the entropy a result may end, in nats.
BOUNDS = {"likelihood": 0.10, "stochastic likelihood": 0.10}
BOUND = 0.25


@dataclass
class Result:
    """Scores of one training; errors are standard errors over test points."""

    toy: str
    objective: str
    seed: int
    excess: float
    excess_error: float
    fisher: float
    fisher_error: float
    seconds: float


def build(seed: int) -> Flow:
    """The flow of the paper."""
    torch.manual_seed(seed)
    net = functools.partial(MLP, hidden=(64, 64, 64), activation="silu")
    layers: list[Transform] = []
    for i in range(10):
        mask = [i % 2 == 0, i % 2 == 1]
        layers += [DenseLinear(2), Coupling(mask, Affine(), conditioner=net), ActNorm(2)]
    return Flow(Compose(*layers, DenseLinear(2)), StandardNormal(2))


def train(name: str, objective: str, seed: int, options: argparse.Namespace) -> Result:
    """Train one flow on fresh samples, and score it."""
    toy = TOYS[name]()
    flow = build(seed)
    begun = time.process_time()
    flowkit.fit(
        flow,
        toy.sample(options.steps * options.batch_size, torch.Generator().manual_seed(seed)),
        OBJECTIVES[objective],
        validation=None,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=2e-3,
        ema=0.999,
        compile=False,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - begun
    x = toy.sample(options.test_rows, torch.Generator().manual_seed(TEST_SEED + seed))
    with torch.no_grad():
        nll = -torch.cat([flow.log_prob(part) for part in x.split(10_000)])
        score = torch.cat([flow.score(part).detach() for part in x.split(10_000)])
    squares = 0.5 * (score - toy.score(x).detach()).square().sum(-1)
    root = math.sqrt(len(x))
    return Result(
        name,
        objective,
        seed,
        float(nll.mean()) - toy.entropy(),
        float(nll.std()) / root,
        float(squares.mean()),
        float(squares.std()) / root,
        seconds,
    )


def report(results: list[Result], options: argparse.Namespace, command: str) -> str:
    """One line a training."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    lines = [
        "# Score matching on toys",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        "Ten times a dense linear layer, an affine coupling (networks 3 x 64) and an ActNorm, and "
        f"a linear layer. {options.steps:,} steps of Adam from 2e-3 (cosine to zero), fresh "
        f"batches of {options.batch_size}, moving average of 0.999. Scores on "
        f"{options.test_rows:,} other points: negative log-likelihood above the entropy, nats, "
        "and half the mean squared error of the score. Bounds: 0.10 above the entropy for "
        "likelihoods, 0.25 for score matching.",
        "",
        "| toy | objective | seed | above entropy, nats | | Fisher divergence | seconds |",
        "|---|---|--:|--:|---|--:|--:|",
    ]
    for r in results:
        reached = "reached" if r.excess <= BOUNDS.get(r.objective, BOUND) else "**not reached**"
        lines.append(
            f"| {r.toy} | {r.objective} | {r.seed} | {r.excess:+.4f} +- {r.excess_error:.4f} | "
            f"{reached} | {r.fisher:.3f} +- {r.fisher_error:.3f} | {r.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--test-rows", type=int, default=50_000)
    parser.add_argument("--small", action="store_true", help="seconds instead of twenty minutes")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for score_matching.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.steps, options.batch_size, options.test_rows = 5, 64, 500
    torch.set_num_threads(1)
    results: list[Result] = []
    if options.record and options.record.exists():
        results = [Result(**json.loads(line)) for line in options.record.read_text().splitlines()]
    known = {(r.toy, r.objective, r.seed) for r in results}
    for seed in options.seeds:
        for toy in ("sine", "swirl", "checkerboard"):
            for objective in OBJECTIVES:
                if (toy, objective, seed) in known:
                    continue
                results.append(train(toy, objective, seed, options))
                print(results[-1], flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps(asdict(results[-1])) + "\n")
    given = {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(options).items()
        if name not in ("output", "record") and value != parser.get_default(name)
    }
    words = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    shown = " ".join(k if v is True else f"{k} {v}" for k, v in words.items())
    text = report(results, options, f"python examples/papers/score_matching.py {shown}".strip())
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "score_matching.md").write_text(text)
    return results


if __name__ == "__main__":
    main()
