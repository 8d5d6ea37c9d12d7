"""Speed of two checkouts, interleaved: ``python tests/benchmarks/versions.py OLD NEW``.

Each checkout runs in a process of its own; the two take the same cell alternately, so that a busy
machine slows both. OLD against OLD gives the spread that no change causes. Prints the ratio of
medians per cell and repeat, the median over cells, and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORKER = """
import json, sys, time
import torch
torch.set_num_threads(1)
import flowkit
from flowkit import *

def points(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))

def flows():
    torch.manual_seed(0)
    made = {
        "coupling-8": coupling_flow(features=8),
        "coupling-63": coupling_flow(features=63, layers=4),
        "coupling-affine-8": coupling_flow(features=8, scalar="affine"),
        "coupling-mixture-4": coupling_flow(features=4, layers=2, scalar="mixture"),
        "autoregressive-8": autoregressive_flow(features=8),
        "autoregressive-affine-32": autoregressive_flow(features=32, scalar="affine"),
        "elementwise-8": elementwise_flow(features=8),
        "kernelised-6": kernelised_flow(features=6),
    }
    return {name: flow.eval() for name, flow in made.items()}

FLOWS = flows()

def density(flow, x):
    with torch.no_grad():
        flow.log_prob(x)

def step(flow, x):
    flow.zero_grad(set_to_none=True)
    (-flow.log_prob(x).mean()).backward()

def draw(flow, x):
    with torch.no_grad():
        flow.sample(len(x))

CELLS = {}
for name, flow in FLOWS.items():
    for n in (64, 1024):
        x = points(n, flow.event_shape[0])
        for kind in (density, step, draw):
            CELLS[f"{name}/{kind.__name__}/{n}"] = (kind, flow, x)

def small():
    torch.manual_seed(0)
    return coupling_flow(features=4, layers=4, hidden=(32, 32))

def fitted(_, x):
    fit(small(), x, epochs=2, batch_size=256, progress=False)

CELLS["fit/2-epochs/4096"] = (fitted, None, points(4096, 4))
CELLS["build/coupling-8"] = (lambda *_: coupling_flow(features=8), None, None)

print(json.dumps(list(CELLS)), flush=True)
for line in sys.stdin:
    name, count = json.loads(line)
    run, flow, x = CELLS[name]
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        run(flow, x)
        times.append(time.perf_counter() - begin)
    print(json.dumps(times), flush=True)
"""


class Worker:
    """A process that runs the cells of one checkout."""

    def __init__(self, checkout: str) -> None:
        path = {"PYTHONPATH": str(Path(checkout).resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **path},
        )  # fmt: skip
        self.cells = self.answer()

    def answer(self) -> list:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, cell: str, count: int) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([cell, count]) + "\n")
        self.process.stdin.flush()
        return self.answer()


def ratio(old: Worker, new: Worker, cell: str, seconds: float) -> float:
    """Median time of ``new`` over that of ``old``, taken alternately for some seconds."""
    old.run(cell, 2), new.run(cell, 2)
    once = statistics.median(old.run(cell, 3))
    rounds = max(5, min(200, int(seconds / once)))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        pair = ((old, 0), (new, 1)) if i % 2 == 0 else ((new, 1), (old, 0))
        for worker, place in pair:
            times[place].extend(worker.run(cell, 1))
    return statistics.median(times[1]) / statistics.median(times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per cell and checkout")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    options = parser.parse_args()
    old, new = Worker(options.old), Worker(options.new)
    cells = [cell for cell in old.cells if cell in new.cells and options.only in cell]
    medians = {}
    for cell in cells:
        ratios = [ratio(old, new, cell, options.seconds) for _ in range(options.repeats)]
        medians[cell] = statistics.median(ratios)
        print(f"{cell:40} {' '.join(f'{r:.3f}' for r in ratios)}  {medians[cell]:.3f}", flush=True)
    worst = max(medians, key=lambda cell: medians[cell])
    print(f"median of {len(cells)} cells {statistics.median(medians.values()):.3f}")
    print(f"largest {medians[worst]:.3f} ({worst})")


if __name__ == "__main__":
    main()
