"""Stochastic layers beside the bare cost of their energies.

``PYTHONPATH=tests python -m benchmarks.chains`` writes ``docs/results/chains.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import flowkit
from flowkit import stochastic_flow
from flowkit.energies import Energy
from flowkit.numerics.layout import features_first, features_last
from flowkit.toys import DoubleWell, GaussianMixture

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "chains.md"
ROWS, LAYERS, STEPS = 50_000, 40, 5


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of CPU time in ms over interleaved rounds, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - begun))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def measure(name: str, energy: Energy, rounds: int) -> list[str]:
    """One row of the table."""
    flow = stochastic_flow(
        2, energy=energy, blocks=LAYERS, scalar=None, steps=STEPS, step_size=0.3
    )
    energies = [layer.energy for layer in flow.transform.transforms]
    x = energy.sample(ROWS, torch.Generator().manual_seed(0))
    outermost = features_last(features_first(x))

    def bare(x: Tensor) -> None:
        for u in energies:
            for _ in range(STEPS + 1):
                u(x)

    def noise() -> None:
        for _ in range(LAYERS * STEPS):
            torch.empty_like(x).normal_()
            torch.empty_like(x[:, 0]).uniform_()

    with torch.no_grad():
        found = timed(
            {
                "flow": lambda: flow.transform(x),
                "rows": lambda: bare(x),
                "columns": lambda: bare(outermost),
                "noise": noise,
            },
            rounds,
        )
    return [
        name,
        *(f"{found[key]:.0f}" for key in ("flow", "rows", "columns", "noise")),
        f"{found['flow'] / found['rows']:.2f}",
        f"{found['flow'] / found['columns']:.2f}",
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = [
        "target", "flow, ms", "energies of rows, ms", "energies, features outermost, ms",
        "random numbers, ms", "flow / rows", "flow / features outermost",
    ]  # fmt: skip
    targets: dict[str, Energy] = {
        "double well": DoubleWell(),
        "mixture of 8 normals": GaussianMixture.ring(components=8),
        "mixture of 40 normals": GaussianMixture.ring(components=40),
    }
    rows = []
    for name, energy in targets.items():
        rows.append(measure(name, energy, options.rounds))
        print(" | ".join(rows[-1]), flush=True)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *["--:"] * 6], *rows)]
    command = " ".join(["python -m benchmarks.chains", *sys.argv[1:]])
    options.output.write_text(
        "# Stochastic layers and the cost of their energies\n\n"
        f"`PYTHONPATH=tests {command}`: flowkit {flowkit.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, CPU time, medians "
        f"of {options.rounds} interleaved rounds.\n\n"
        f"`forward` of {LAYERS} Metropolis layers of {STEPS} steps on {ROWS:,} samples of the "
        f"target in two dimensions, float32, beside its {LAYERS * (STEPS + 1)} evaluations of the "
        "interpolated energy alone, on samples as rows in memory, as a user has them, and with "
        f"features outermost, as layers keep them. Random numbers: the {LAYERS * STEPS} draws of "
        "two normal and one uniform number a row that the algorithm needs, alone.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
