"""Steps of score matching beside steps of maximum likelihood, for growing dense layers.

``PYTHONPATH=tests python -m benchmarks.determinants`` writes ``docs/results/determinants.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
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
from flowkit.objectives import Objective
from flowkit.transforms import Activation, Compose, DenseLinear

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "determinants.md"
ROWS = 100
OBJECTIVES: dict[str, Objective] = {
    "likelihood": MaximumLikelihood(),
    "stochastic likelihood": StochasticMaximumLikelihood(),
    "sliced": SlicedScoreMatching(),
    "denoising": DenoisingScoreMatching(),
    "finite-difference": FiniteDifferenceScoreMatching(),
}


def measure(features: int, rounds: int) -> dict[str, float]:
    """Median CPU time of a step in ms: loss, gradients, and Adam; interleaved rounds."""
    torch.manual_seed(0)
    flow = Flow(
        Compose(DenseLinear(features), Activation(), DenseLinear(features)),
        StandardNormal(features),
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-5)
    batch = {"x": torch.randn(ROWS, features)}
    times: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    for _ in range(rounds + 1):
        for name, objective in OBJECTIVES.items():
            begun = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            objective(flow, batch).value.backward()
            optimizer.step()
            times[name].append(1e3 * (time.process_time() - begun))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--features", type=int, nargs="+", default=[32, 64, 128, 256, 512, 784, 1536, 3072]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ["D", *(f"{name}, ms" for name in OBJECTIVES), "likelihood / denoising",
            "likelihood / finite-difference"]  # fmt: skip
    rows, gains = [], {}
    for features in options.features:
        found = measure(features, options.rounds if features < 2000 else min(3, options.rounds))
        gains[features] = found["likelihood"] / found["denoising"]
        rows.append(
            [
                f"{features:,}",
                *(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in found.values()),
                f"{gains[features]:.2f}",
                f"{found['likelihood'] / found['finite-difference']:.2f}",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    below = [d for d, gain in gains.items() if gain < 1]
    crossover = (
        f"Up to D = {max(below)} denoising is no faster than likelihood."
        if below
        else "Denoising is faster at every size measured."
    )
    lines = [f"| {' | '.join(row)} |" for row in (head, ["--:"] * len(head), *rows)]
    command = " ".join(["python -m benchmarks.determinants", *sys.argv[1:]])
    options.output.write_text(
        "# Steps without determinants\n\n"
        f"`PYTHONPATH=tests {command}`: flowkit {flowkit.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, CPU time, medians "
        f"of {options.rounds} interleaved rounds (3 above D = 2,000).\n\n"
        f"A step, loss with gradients and Adam, of two dense layers with an activation between, "
        f"batches of {ROWS}, float32. {crossover}\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
