"""What ``fit`` costs beyond its bare steps: ``python tests/benchmarks/fit_overhead.py``.

Every epoch of a fit, with validation and the progress bar, is followed by as many bare steps of a
copy of the flow, written out by hand; both in CPU time of one thread. With ``--mapped`` also the
resident memory of a fit from a file of 5 GB. The tables go to ``docs/results/fit_overhead.md``.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import flowkit

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "fit_overhead.md"
BATCH, VALIDATION = 256, 0.1
FLOWS: dict[str, Callable[[], flowkit.Flow]] = {
    "coupling_flow(63, layers=5)": lambda: flowkit.coupling_flow(63, layers=5),
    "coupling_flow(10)": lambda: flowkit.coupling_flow(10),
}


def bare(flow: flowkit.Flow, x: torch.Tensor, clip: float | None) -> Callable[[int], None]:
    """A function that makes a number of steps, as one would write them without ``fit``."""
    parameters = list(flow.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def steps(count: int) -> None:
        flow.train()
        order = torch.randperm(len(x))
        for k in range(count):
            batch = x[order[k * BATCH : (k + 1) * BATCH]]
            loss = -flow.log_prob(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()

    return steps


def overhead(
    make: Callable[[], flowkit.Flow], rows: int, rounds: int, clip: float | None
) -> list[str]:
    """One row of the table: CPU time of the fit, of its bare steps, and their ratio."""
    torch.manual_seed(0)
    flow = make()
    features = flow.event_shape[0]
    x = torch.randn(rows, features) @ torch.randn(features, features).div(features**0.5)
    count = (rows - round(VALIDATION * rows)) // BATCH
    twin = copy.deepcopy(flow)
    twin.initialize(x)
    steps = bare(twin, x, clip)
    steps(20)
    fits, bares = [], []

    def alternate(*_: object) -> None:
        nonlocal begun
        fits.append(time.process_time() - begun)
        begun = time.process_time()
        steps(count)
        bares.append(time.process_time() - begun)
        begun = time.process_time()

    begun = time.process_time()
    flowkit.fit(
        flow,
        x,
        epochs=rounds,
        batch_size=BATCH,
        clip=clip,
        patience=None,
        compile=False,
        validation=VALIDATION,
        progress=True,
        callbacks=[alternate],
    )
    # The first epoch holds what comes before the steps, and what follows the last counts too.
    whole = sum(fits) + time.process_time() - begun
    ratios = [f / b for f, b in zip(fits[1:], bares[1:], strict=True)]
    return [
        str(clip),
        f"{1e3 * statistics.median(bares[1:]) / count:.3f}",
        f"{1e3 * statistics.median(fits[1:]) / count:.3f}",
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"{whole / sum(bares):.3f}",
    ]


MEMORY = """
    import sys, threading, time, torch, flowkit, lightning_fabric
    from torch.nn.utils import clip_grad_norm_

    NAMES = "VmRSS", "RssAnon", "RssFile"
    torch.set_num_threads(1)

    def resident():
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return {name: int(lines[name].split()[0]) * 1.024e-3 for name in NAMES}

    def watch():
        while not done.is_set():
            for name, value in resident().items():
                peak[name] = max(peak.get(name, 0.0), value)
            done.wait(0.01)

    path, steps, fraction, features = sys.argv[1], *map(eval, sys.argv[2:5])
    peak, done = {}, threading.Event()

    def bare():
        # The model's own memory: gradients, state of Adam, activations.
        flow, x = flowkit.coupling_flow(features, layers=5), torch.randn(256, features)
        optimizer = torch.optim.Adam(flow.parameters(), fused=True)
        for _ in range(20):
            optimizer.zero_grad()
            (-flow.log_prob(x).mean()).backward()
            clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()

    bare()
    flow = flowkit.coupling_flow(features, layers=5)
    before = resident()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    begun = time.perf_counter()
    flowkit.fit(flow, path, steps=steps, validation=fraction, compile=False, progress=False)
    seconds = time.perf_counter() - begun
    done.set()
    thread.join()
    grown = [round(peak[name] - before[name]) for name in before]
    print(*grown, round(seconds, 1))
"""


def write_rows(path: Path, rows: int, features: int) -> None:
    """Write normal rows in chunks."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
        np.lib.format.write_array_header_1_0(file, header)
        generator = np.random.default_rng(0)
        chunk = generator.standard_normal((min(rows, 200_000), features), dtype=np.float32)
        for start in range(0, rows, len(chunk)):
            chunk += np.float32(0.001)
            chunk[: rows - start].tofile(file)


def memory(path: Path, steps: int, validation: float | None, features: int) -> list[str]:
    """Megabytes that a fit from a file adds to those of bare steps."""
    code = [sys.executable, "-c", textwrap.dedent(MEMORY), str(path)]
    code += [str(steps), str(validation), str(features)]
    run = subprocess.run(code, check=True, capture_output=True, text=True)
    resident, anonymous, mapped, seconds = run.stdout.split()
    return [str(steps), str(validation), resident, anonymous, mapped, seconds]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = "|---" + "|--:" * (len(head) - 1) + "|"
    first, *others = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([first, rule, *others])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=8, help="epochs of each fit")
    parser.add_argument("--mapped", metavar="FOLDER", help="where a file of 5 GB may lie for now")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ["flow", "clip", "bare step, ms", "fit, ms a step", "ratio", "range", "whole fit"]
    found = [
        [f"`{name}`", *overhead(make, options.rows, options.rounds, clip)]
        for name, make in FLOWS.items()
        for clip in (10.0, None)
    ]
    command = " ".join(["python tests/benchmarks/fit_overhead.py", *sys.argv[1:]])
    text = (
        "# What a fit costs beyond its bare steps\n\n"
        f"`{command}`: flowkit {flowkit.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}, one thread, CPU time.\n\n"
        f"{options.rows:,} rows, batches of {BATCH}, validation on a tenth of the rows after "
        "every epoch, progress bar, not compiled. A bare step takes a batch from a tensor, calls "
        "`-flow.log_prob(batch).mean()`, goes backward, clips the gradient if the fit does, and "
        "makes a fused Adam step. Epochs of the fit alternate with as many bare steps; ratio: "
        "median over the epochs but the first. Whole fit: everything from the call to the return, "
        f"over all {options.rounds} epochs. The bar: at most 1.1.\n\n"
        f"{table(head, found)}\n"
    )
    if options.mapped:
        folder = Path(tempfile.mkdtemp(dir=options.mapped))
        try:
            path, rows, features = folder / "x.npy", 20_000_000, 63
            write_rows(path, rows, features)
            cells = [
                memory(path, steps, part, features) for steps, part in ((200, None), (200, 0.002))
            ]
        finally:
            shutil.rmtree(folder)
        head = ["steps", "validation", "resident, MB", "anonymous, MB", "mapped, MB", "seconds"]
        text += (
            f"\nResident memory of a fit of `coupling_flow(63, layers=5)` from a file of {rows:,} "
            f"rows, {rows * features * 4 / 1e9:.2f} GB, at its peak (sampled every 10 ms), beyond "
            "that of the same process after bare steps of the same flow with the same batch size. "
            f"The bar: at most 300 MB.\n\n{table(head, cells)}\n"
        )
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
