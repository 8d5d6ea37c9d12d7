"""Three toy densities with known entropies: how near to the floor does maximum likelihood get?

Sine, swirl and checkerboard are the planar toys of "Training Energy-Based Normalizing Flow with
Score-Matching Objectives" (arXiv 2305.15267): a shape plus Gaussian noise of width 0.375. No
density can have a smaller expected negative log-likelihood than their differential entropies of
4.4796, 4.1394 and 4.6840 nats, which are known from numerical integration. A coupling flow with
every default is fitted by ``flowkit.fit`` to fresh samples, each used once, and tested on others.
A result above the floor by a few hundredths says that the flow fits; one below it by more than
its standard error allows would be a bug.

Run: ``python examples/papers/toy_densities.py`` (about ten minutes on one core); ``--small``
takes seconds.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import flowkit
from flowkit.toys import TOYS

#: How far above its floor a toy may end, in nats.
TOLERANCES = {"sine": 0.05, "swirl": 0.10, "checkerboard": 0.10}
TEST_SEED = 1_000_003


@dataclass
class Result:
    """Scores of one toy in nats; errors are standard errors of the mean over test rows."""

    name: str
    floor: float
    loss: float
    loss_error: float
    divergence: float
    divergence_error: float
    seconds: float

    @property
    def excess(self) -> float:
        return self.loss - self.floor

    @property
    def passed(self) -> bool:
        return -3 * self.loss_error <= self.excess <= TOLERANCES[self.name]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def fit_toy(name: str, steps: int, batch_size: int, test_rows: int, seed: int) -> Result:
    """Fit one toy from scratch and score it."""
    toy = TOYS[name]()
    torch.manual_seed(seed)
    flow = flowkit.coupling_flow(features=2)
    begun = time.process_time()
    # One pass over steps * batch_size rows: no sample is ever seen twice.
    flowkit.fit(
        flow,
        toy.sample(steps * batch_size, torch.Generator().manual_seed(seed)),
        validation=None,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - begun
    rows = toy.sample(test_rows, torch.Generator().manual_seed(TEST_SEED + seed))
    with torch.no_grad():
        fitted = torch.cat([flow.log_prob(part) for part in rows.split(8192)]).double()
    loss, loss_error = mean_and_error(-fitted)
    divergence, divergence_error = mean_and_error(toy.log_prob(rows.double()) - fitted)
    return Result(name, toy.entropy(), loss, loss_error, divergence, divergence_error, seconds)


def markdown(results: Sequence[Result]) -> str:
    """The table."""
    lines = [
        "| toy | floor | test NLL | above the floor | allowed | paired KL | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r.name} | {r.floor:.4f} | {r.loss:.4f} ± {r.loss_error:.4f} "
            f"| {r.excess:+.4f} | {TOLERANCES[r.name]:.2f} "
            f"| {r.divergence:.4f} ± {r.divergence_error:.4f} | {r.seconds:.0f} s |"
        )
    return "\n".join(lines)


def describe(args: argparse.Namespace, results: Sequence[Result]) -> str:
    failed = [r.name for r in results if not r.passed]
    verdict = (
        f"Outside the allowed range: {', '.join(failed)}."
        if failed
        else (
            "All are within the allowed distance above their floor, and none is below it by more "
            "than three standard errors."
        )
    )
    return f"""# Toy densities: distance from the entropy floor

{markdown(results)}

All numbers are nats. "Floor" is the differential entropy of the toy, by numerical integration. The
test NLL is the mean over {args.test_rows:,} fresh rows with its standard error. "Paired KL" is the
mean of log p - log q over the same rows, with the toy's exact log-density p: the same distance
with the sampling noise of the entropy taken out. Training is CPU seconds of one thread.
{verdict}

Command: `python examples/papers/toy_densities.py --output docs/results`

`flowkit.coupling_flow(features=2)` with every default, `flowkit.fit` with its default optimiser
(Adam 1e-3, cosine to zero, gradient norm at most 10), {args.steps} steps of {args.batch_size}
fresh rows, seed {args.seed}. flowkit {flowkit.__version__}, torch {version("torch")}, Python
{platform.python_version()}.
"""


def main(argv: Sequence[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toys", nargs="+", default=list(TOLERANCES), choices=list(TOLERANCES))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--test-rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, help="folder for toy_densities.md")
    args = parser.parse_args(argv)
    if args.small:
        args.steps, args.batch_size, args.test_rows = 10, 64, 1000
    torch.set_num_threads(1)
    results = []
    for name in args.toys:
        results.append(fit_toy(name, args.steps, args.batch_size, args.test_rows, args.seed))
        print(results[-1], flush=True)
    print(markdown(results))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "toy_densities.md").write_text(describe(args, results))
    return results


if __name__ == "__main__":
    main()
