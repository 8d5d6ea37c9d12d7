"""Flows trained on dependent observations, with and without their dependence.

"Training Normalizing Flows from Dependent Data" (Kirchler, Lippert, Kloft 2023, arXiv 2209.14933)
gives the noise of a flow a covariance across observations. Here are its five synthetic densities
with blocks of very uneven sizes, one plus a Pareto number with tail index 0.5, at most 1,000, and
a correlation of each block between 0.5 and 0.99. The same flow is trained on 2,000 such
observations as if they were independent; with the true correlations; with one correlation per
block, learned with the flow; and with one per block, updated alternately with the flow. All
trainings use all data at every step, and none is standardised, for one large block would determine
the scale. The test is the mean negative log-density of 5,000 independent samples at the end of
training, which no choice has used; its floor is the entropy. The crescent is trained once more
with twice as many steps. Each method has the learning rate and the weight decay whose mean score
on four other samples of the crescent is best.

Then the standard deviation of the three estimators of the objective, and the cost of an exact one
without a flow.

Run: ``python examples/papers/dependent_data.py`` (half an hour on one core); ``--small``
takes seconds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from harness import Records, Study, mean_and_error, spread, table
from torch import Tensor

import flowkit
from flowkit import DependentLikelihood, Flow, MaximumLikelihood, coupling_flow
from flowkit.bases import StandardNormal
from flowkit.dependence import EquicorrelatedBlocks, Kinship, RowCovariance, UpdateCovariance
from flowkit.scalar import RationalQuadraticSpline
from flowkit.transforms import Permutation

METHODS = ("independent", "true", "learned", "alternately")
TEST_ROWS = 5000
#: Learning rates and weight decays, and the samples of the crescent on which they are chosen.
GRID = tuple((rate, decay) for rate in (1e-2, 3e-3) for decay in (0.0, 0.01, 0.1))
CHOICE_SEEDS = (100, 101, 102, 103)


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
    rate: float
    decay: float
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
    """The covariance with one correlation per block."""
    structure = EquicorrelatedBlocks(blocks, rho=0.5, per_block=True, learn=False)
    place = (torch.from_numpy(rho) - structure.lower) / (1 - 1e-4 - structure.lower)
    structure.raw.data.copy_(torch.logit(place))
    return structure


def score(
    density: str,
    steps: int,
    seed: int,
    method: str,
    rows: int,
    *,
    rate: float,
    decay: float,
) -> Result:
    """Train one flow, and score independent samples."""
    blocks, rho = draw_blocks(rows, seed)
    make, _, bound = DENSITIES[density]
    generator = torch.Generator().manual_seed(seed)
    structure = truth(blocks, rho)
    x = make(structure.sample(2, generator).detach())
    test = make(torch.randn(TEST_ROWS, 2, generator=generator))
    torch.manual_seed(seed)
    scalar = RationalQuadraticSpline(bins=16, bound=bound)
    flow = coupling_flow(
        2, layers=3, scalar=scalar, hidden=(64, 64), linear="permutation", start=None
    )
    objective: flowkit.objectives.Objective = MaximumLikelihood()
    data, callbacks = {"x": x}, []
    if method != "independent":
        if method == "learned":
            structure = EquicorrelatedBlocks(blocks, rho=0.5, per_block=True)
        elif method == "alternately":
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
        optimizer=lambda p: torch.optim.Adamax(p, lr=rate, weight_decay=decay),
        scheduler="cosine",
        ema=None,
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
        rate,
        decay,
        *mean_and_error(values),
        int(blocks.max()) + 1,
        int(np.bincount(blocks).max()),
        time.process_time() - begun,
    )


def deviations(options: argparse.Namespace) -> list[tuple[str, float, float, float]]:
    """Standard deviations of estimates of the objective from 256 observations."""
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


def page(
    study: Study,
    results: list[Result],
    estimators: list[tuple[str, float, float, float]],
    cost: list[tuple[str, float]],
) -> list[str]:
    """Means over seeds, and one row per fit."""
    return [
        *study.heading(
            "Dependent observations",
            f"{study.options.rows:,} observations in blocks, steps of all of them with Adamax "
            "and a cosine to zero; three spline couplings of 16 bins, networks of two layers of "
            "64. Learned correlations start at 0.5; alternately updated ones every 30 steps. Mean "
            f"negative log-density of {TEST_ROWS:,} independent samples at the end, in nats, mean "
            "over seeds +- its standard error over seeds; the least in bold.",
        ),
        *_means([r for r in results if r.seed not in CHOICE_SEEDS]),
        "## Choice of learning rate and weight decay",
        "",
        "The same score on other samples of the crescent, seeds "
        f"{CHOICE_SEEDS[0]} to {CHOICE_SEEDS[-1]}; each method has its best pair above.",
        "",
        *_choices([r for r in results if r.seed in CHOICE_SEEDS]),
        "## Standard deviation of the estimators",
        "",
        "Standard deviation of the objective per observation, estimated from about 256 of 4,000, "
        "with the identity as the flow and the true correlations. The exact objective by chunks "
        "has none.",
        "",
        *table(
            ("observations", "objective", "by pairs", "by whole blocks"),
            ((name, *(f"{v:.3f}" for v in values)) for name, *values in estimators),
        ),
        "## Cost",
        "",
        "A value with the gradients of noise and correlations, without a flow; the least of ten.",
        "",
        *table(("objective", "ms"), ((name, f"{value:.1f}") for name, value in cost)),
        "## Every fit",
        "",
        *_fits([r for r in results if r.seed not in CHOICE_SEEDS]),
    ]


def best(results: list[Result], method: str) -> dict[str, float]:
    """The learning rate and weight decay with the best mean on the samples for choices."""
    scores: dict[tuple[float, float], list[float]] = {}
    for r in results:
        if r.method == method and r.seed in CHOICE_SEEDS:
            scores.setdefault((r.rate, r.decay), []).append(r.nll)
    rate, decay = min(scores, key=lambda pair: statistics.mean(scores[pair]))
    return {"rate": rate, "decay": decay}


def _choices(results: list[Result]) -> list[str]:
    rows = []
    for rate, decay in dict.fromkeys((r.rate, r.decay) for r in results):
        part = [r for r in results if (r.rate, r.decay) == (rate, decay)]
        cells = [spread([r.nll for r in part if r.method == method]) for method in METHODS]
        rows.append((f"{rate:g}", f"{decay:g}", *cells))
    return table(("rate", "decay", *METHODS), rows, left=0)


def _means(results: list[Result]) -> list[str]:
    rows = []
    for density, steps in dict.fromkeys((r.density, r.steps) for r in results):
        part = [r for r in results if (r.density, r.steps) == (density, steps)]
        values = [[r.nll for r in part if r.method == method] for method in METHODS]
        cells = [spread(v) for v in values]
        best = int(np.argmin([statistics.mean(v) for v in values]))
        cells[best] = f"**{cells[best]}**"
        seeds = len({r.seed for r in part})
        rows.append((density, steps, f"{floor(density):.4f}", seeds, *cells))
    return table(("density", "steps", "entropy", "seeds", *METHODS), rows)


def _fits(results: list[Result]) -> list[str]:
    fits: dict[tuple[object, ...], dict[str, Result]] = {}
    for r in results:
        key = (r.density, r.steps, r.seed, r.blocks, r.largest)
        fits.setdefault(key, {})[r.method] = r
    return table(
        ("density", "steps", "seed", "blocks", "largest", *METHODS),
        (
            (*key, *(f"{by[m].nll:.3f} +- {by[m].error:.3f}" for m in METHODS))
            for key, by in fits.items()
        ),
    )


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"densities": ["crescent"], "seeds": [0], "rows": 200, "steps": 12},
        densities=tuple(DENSITIES),
        seeds=[0, 1, 2, 3, 4],
        rows=2000,
        steps=300,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    pairs, seeds = (GRID[:1], CHOICE_SEEDS[:1]) if options.small else (GRID, CHOICE_SEEDS)
    for (rate, decay), method, seed in itertools.product(pairs, METHODS, seeds):
        key = {"density": "crescent", "steps": options.steps, "seed": seed, "method": method}
        if records.lack(**key, rate=rate, decay=decay):
            records.add(score(*key.values(), options.rows, rate=rate, decay=decay))
    chosen = {method: best(records.results, method) for method in METHODS}
    settings = [(density, options.steps) for density in options.densities]
    if "crescent" in options.densities:
        settings.append(("crescent", 2 * options.steps))
    for density, steps in settings:
        for seed in options.seeds:
            for method in METHODS:
                if records.lack(density=density, steps=steps, seed=seed, method=method):
                    key = (density, steps, seed, method, options.rows)
                    records.add(score(*key, **chosen[method]))
    study.write(page(study, records.results, deviations(options), costs(options)))
    return records.results


if __name__ == "__main__":
    main()
