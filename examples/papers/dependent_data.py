"""Flows trained on dependent rows, with and without their dependence.

"Training Normalizing Flows from Dependent Data" (Kirchler, Lippert, Kloft 2023, arXiv 2209.14933)
gives the noise of a flow a covariance across rows. Here are its five synthetic densities with
blocks of very uneven sizes, one plus a Pareto number with tail index 0.5, at most 1,000 rows, and
a correlation of each block between 0.5 and 0.99. The same flow is trained on 2,000 such rows as if
they were independent; with the true correlations; with a correlation a block, learned with the
flow; and with a correlation a block, set in turns. All see all rows at every step, and none is
standardised, for one large block would be taken for the scale of all. The test is
the mean negative log-density of 5,000 independent rows at the end of training, which no choice has
seen; its floor is the entropy. The crescent is trained once more with twice as many steps.
Optimiser, rate, start and interval of the turns were chosen on seeds 0, 1 and 4 of the crescent.

Then the spread of the three estimators of the objective, and what an exact one costs without a
flow.

Run: ``python examples/papers/dependent_data.py`` (a quarter of an hour on one core); ``--small``
takes seconds. With ``--record FILE`` each result is kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import flowkit
from flowkit import DependentLikelihood, Flow, MaximumLikelihood, coupling_flow
from flowkit.bases import StandardNormal
from flowkit.dependence import EquicorrelatedBlocks, Kinship, RowCovariance, UpdateCovariance
from flowkit.scalar import RationalQuadraticSpline
from flowkit.transforms import Permutation

METHODS = ("independent", "true", "learned", "in turns")
TEST_ROWS = 5000


def _crescent(u: Tensor) -> Tensor:
    return torch.stack([u[:, 0], u[:, 0].square() / 2 - 1 + math.exp(-1) * u[:, 1]], 1)


def _sine(u: Tensor) -> Tensor:
    return torch.stack([u[:, 0], (5 * u[:, 0]).sin() + math.exp(-1) * u[:, 1]], 1)


def _absolute(u: Tensor) -> Tensor:
    return torch.stack([u[:, 0], u[:, 0].abs() - 1 + math.exp(-1.5) * u[:, 1]], 1)


def _sign(u: Tensor) -> Tensor:
    return torch.stack([u[:, 0], u[:, 0].sign() + u[:, 0] + math.exp(-1.5) * u[:, 1]], 1)


def _cubed_cross(u: Tensor) -> Tensor:
    return torch.stack([0.2 * u[:, 0] ** 3 + u[:, 1], u[:, 0]], 1)


# The map from noise to data, the log of its volume, and the bound of the splines.
DENSITIES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "crescent": (_crescent, -1.0, 8.0),
    "sine": (_sine, -1.0, 4.5),
    "absolute": (_absolute, -1.5, 4.5),
    "sign": (_sign, -1.5, 5.0),
    "cubed cross": (_cubed_cross, 0.0, 16.0),
}


@dataclass
class Result:
    """The test score of one fit."""

    density: str
    steps: int
    seed: int
    method: str
    nll: float
    error: float
    blocks: int
    largest: int
    seconds: float


def floor(density: str) -> float:
    """Entropy of a density, in nats."""
    return math.log(2 * math.pi * math.e) + DENSITIES[density][1]


def draw_blocks(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The block of each row, and the correlation of each block."""
    rng = np.random.default_rng(seed)
    sizes: list[int] = []
    while sum(sizes) < rows:
        sizes.append(min(1 + round(min(rng.pareto(0.5), 1e6)), 1000))
    sizes[-1] -= sum(sizes) - rows
    return np.repeat(np.arange(len(sizes)), sizes), rng.uniform(0.5, 0.99, len(sizes))


def truth(blocks: np.ndarray, rho: np.ndarray) -> EquicorrelatedBlocks:
    """The covariance with a correlation a block."""
    structure = EquicorrelatedBlocks(blocks, rho=0.5, per_block=True, learn=False)
    share = (torch.from_numpy(rho) - structure.lower) / (1 - 1e-4 - structure.lower)
    structure.raw.data.copy_(torch.logit(share))
    return structure


def score(density: str, steps: int, seed: int, method: str, rows: int) -> Result:
    """Train one flow, and score independent rows."""
    blocks, rho = draw_blocks(rows, seed)
    make, _, bound = DENSITIES[density]
    generator = torch.Generator().manual_seed(seed)
    structure = truth(blocks, rho)
    x = make(structure.sample(2, generator).detach())
    test = make(torch.randn(TEST_ROWS, 2, generator=generator))
    torch.manual_seed(seed)
    scalar = RationalQuadraticSpline(bins=16, bound=bound)
    flow = coupling_flow(
        2, layers=3, scalar=scalar, hidden=(64, 64), linear="permutation", standardize=False
    )
    objective: flowkit.objectives.Objective = MaximumLikelihood()
    data, callbacks = {"x": x}, []
    if method != "independent":
        if method == "learned":
            structure = EquicorrelatedBlocks(blocks, rho=0.5, per_block=True)
        elif method == "in turns":
            structure = EquicorrelatedBlocks(blocks, rho=0.5, per_block=True, learn=False)
            callbacks = [UpdateCovariance(structure, x, every=30)]
        data["row"] = torch.arange(len(x))
        objective = DependentLikelihood(structure)
    begun = time.process_time()
    flowkit.fit(
        flow,
        data,
        objective,
        validation=None,
        epochs=steps,
        batch_size=len(x),
        optimizer=lambda parameters: torch.optim.Adamax(parameters, lr=1e-2),
        compile=False,
        progress=False,
        callbacks=callbacks,
        seed=seed,
    )
    with torch.no_grad():
        values = -flow.log_prob(test)
    return Result(
        density,
        steps,
        seed,
        method,
        float(values.mean()),
        float(values.std()) / math.sqrt(TEST_ROWS),
        int(blocks.max()) + 1,
        int(np.bincount(blocks).max()),
        time.process_time() - begun,
    )


def spreads(options: argparse.Namespace) -> list[tuple[str, float, float, float]]:
    """Standard deviation of an estimate of the objective from 256 rows, by the estimator."""
    rows, size, draws = (400, 32, 20) if options.small else (4000, 256, 400)
    flow = Flow(Permutation([0, 1]), StandardNormal(2))
    found = []
    families = np.repeat(np.arange(rows // 4), 4)
    uneven, rho = draw_blocks(rows, 0)
    for name, structure, blocks in (
        (
            "families of 4, correlation 0.9",
            EquicorrelatedBlocks(families, rho=0.9, learn=False),
            families,
        ),
        ("the uneven blocks of above", truth(uneven, rho), uneven),
    ):
        x = structure.sample(2, torch.Generator().manual_seed(0)).detach()
        rng = np.random.default_rng(0)
        count = blocks.max() + 1
        share = max(1, round(size * count / rows))
        values: dict[str, list[float]] = {"pairs": [], "blocks": []}
        with torch.no_grad():
            for _ in range(draws):
                any_rows = torch.from_numpy(rng.choice(rows, size, replace=False))
                chosen = rng.choice(count, share, replace=False)
                whole = torch.from_numpy(np.flatnonzero(np.isin(blocks, chosen)))
                for mode, here in (("pairs", any_rows), ("blocks", whole)):
                    loss = DependentLikelihood(structure, mode=mode)
                    value = loss(flow, {"x": x[here], "row": here}).value
                    values[mode].append(value.item())
            exact = DependentLikelihood(structure)(flow, {"x": x, "row": torch.arange(rows)})
        pairs, wholes = (statistics.stdev(values[mode]) for mode in ("pairs", "blocks"))
        found.append((name, exact.value.item(), pairs, wholes))
    return found


def costs(options: argparse.Namespace) -> list[tuple[str, float]]:
    """Milliseconds of a value with all its gradients, the least of ten."""
    many, mice, wide = (1000, 50, 2000) if options.small else (100_000, 1940, 200_000)
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    markers = torch.randn(mice, 2 * mice, generator=generator, dtype=torch.float64)
    markers = markers / markers.norm(dim=1, keepdim=True)
    begun = time.perf_counter()
    kinship = Kinship(markers @ markers.mT)
    once = 1e3 * (time.perf_counter() - begun)
    cases: list[tuple[str, RowCovariance, int]] = [
        (
            f"equicorrelated blocks, n = {many:,}, p = 2",
            EquicorrelatedBlocks(rng.integers(0, many // 5, many)),
            2,
        ),
        (f"kinship, n = {mice:,}, p = 6", kinship, 6),
        (
            f"low rank, k = 40, n = {wide:,}, p = 2",
            Kinship(factor=torch.randn(wide, 40, generator=generator)),
            2,
        ),
    ]
    found = [(f"kinship, n = {mice:,}: eigendecomposition, once", once)]
    for name, structure, columns in cases:
        u = torch.randn(structure.rows, columns, generator=generator).requires_grad_()
        best = math.inf
        for _ in range(10):
            begun = time.perf_counter()
            structure.log_prob(u).backward()
            best = min(best, 1e3 * (time.perf_counter() - begun))
        found.append((name, best))
    return found


def report(
    results: list[Result],
    spread: list[tuple[str, float, float, float]],
    cost: list[tuple[str, float]],
    options: argparse.Namespace,
    command: str,
) -> str:
    """Means over seeds, and one line a fit."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    lines = [
        "# Dependent rows",
        "",
        f"`{command}`: {versions}, Python {platform.python_version()}, {platform.machine()}, one "
        "thread.",
        "",
        f"{options.rows:,} rows in blocks, steps of all rows with Adamax, 1e-2 "
        "with a cosine to zero; three spline couplings of 16 bins, networks of two layers of 64. "
        "Learned correlations start at 0.5; in turns they are set every 30 steps. Mean "
        f"negative log-density of {TEST_ROWS:,} independent rows at the end, in nats, mean over "
        "seeds +- its standard error over seeds; the least in bold.",
        "",
        "| density | steps | entropy | seeds | " + " | ".join(METHODS) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(METHODS),
    ]
    for density, steps in dict.fromkeys((r.density, r.steps) for r in results):
        part = [r for r in results if (r.density, r.steps) == (density, steps)]
        seeds = sorted({r.seed for r in part})
        cells, means = [], []
        for method in METHODS:
            values = [r.nll for r in part if r.method == method]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
            means.append(statistics.mean(values))
            cells.append(f"{means[-1]:.3f} +- {error:.3f}")
        best = int(np.argmin(means))
        cells[best] = f"**{cells[best]}**"
        lines.append(
            f"| {density} | {steps} | {floor(density):.4f} | {len(seeds)} | "
            + " | ".join(cells)
            + " |"
        )
    lines += [
        "",
        "## Spread of the estimators",
        "",
        "Standard deviation of the objective a row, estimated from about 256 of 4,000 rows, with "
        "the identity as the flow and the true correlations. The exact objective by chunks has "
        "none.",
        "",
        "| rows | objective | by pairs | by whole blocks |",
        "|---|--:|--:|--:|",
    ]
    lines += [f"| {n} | {e:.3f} | {p:.3f} | {b:.3f} |" for n, e, p, b in spread]
    lines += [
        "",
        "## Cost",
        "",
        "A value with the gradients of noise and strength, without a flow; the least of ten.",
        "",
        "| objective | ms |",
        "|---|--:|",
    ]
    lines += [f"| {name} | {value:.1f} |" for name, value in cost]
    lines += [
        "",
        "## Every fit",
        "",
        "| density | steps | seed | blocks | largest | " + " | ".join(METHODS) + " |",
        "|---|--:|--:|--:|--:|" + "--:|" * len(METHODS),
    ]
    for key in dict.fromkeys((r.density, r.steps, r.seed) for r in results):
        part = [r for r in results if (r.density, r.steps, r.seed) == key]
        by = {r.method: f"{r.nll:.3f} +- {r.error:.3f}" for r in part}
        lines.append(
            f"| {' | '.join(map(str, key))} | {part[0].blocks} | {part[0].largest} | "
            + " | ".join(by[m] for m in METHODS)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train all, print and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--densities", nargs="+", default=list(DENSITIES), choices=DENSITIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--record", type=Path, help="file of results, one a line")
    parser.add_argument("--output", type=Path, help="folder for dependent_data.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.densities, options.seeds = ["crescent"], [0]
        options.rows, options.steps = 200, 12
    torch.set_num_threads(1)
    results: list[Result] = []
    if options.record and options.record.exists():
        results = [Result(**json.loads(line)) for line in options.record.read_text().splitlines()]
    known = {(r.density, r.steps, r.seed, r.method) for r in results}
    settings = [(density, options.steps) for density in options.densities]
    if "crescent" in options.densities:
        settings.append(("crescent", 2 * options.steps))
    for density, steps in settings:
        for seed in options.seeds:
            for method in METHODS:
                if (density, steps, seed, method) in known:
                    continue
                results.append(score(density, steps, seed, method, options.rows))
                print(results[-1], flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(json.dumps(asdict(results[-1])) + "\n")
    shown = "--small" if options.small else ""
    command = f"python examples/papers/dependent_data.py {shown}".strip()
    text = report(results, spreads(options), costs(options), options, command)
    print(text)
    if options.output:
        (options.output / "dependent_data.md").write_text(text)
    return results


if __name__ == "__main__":
    main()
