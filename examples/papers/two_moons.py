"""Posteriors of the two moons by default fits of conditional flows, and by sbi.

The task of Greenberg et al. 2019 (arXiv 1905.07488) as in sbibm: two parameters, uniform in
[-1, 1]^2; a point of a crescent (angle uniform in a half circle, radius normal with mean 0.1 and
spread 0.01, offset 0.25) is moved by (-|t_1 + t_2|, -t_1 + t_2) / sqrt(2). The posterior has two
moons, and is drawn exactly here: the crescent is drawn again, and the move inverted.

Each method is trained on the same simulations, samples its posterior for ten observations, with
what lies outside the prior drawn anew, and a classifier has to tell these samples from exact ones:
its accuracy by 5-fold cross-validation, the C2ST of Lueckmann et al. 2021 (arXiv 2101.04653) with
their classifier, is 0.5 where it cannot.

* autoregressive_flow, coupling_flow: flowkit's defaults with ``context=2``.
* sbi: NPE of the sbi package with its ``nsf``, its own defaults.

Run: ``python examples/papers/two_moons.py --record FILE --output docs/results``; ``--small`` takes
seconds. Needs ``pip install sbi`` beside flowkit.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import Records, Study, mean_and_error, spread, table
from numpy.typing import NDArray
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import flowkit

Array = NDArray[np.float64]
#: Draws so many samples of the posterior of an observation.
Posterior = Callable[[Array, int], Array]
OBSERVATIONS = 10


def crescent(draw: np.random.Generator, n: int) -> Array:
    """Points of the crescent."""
    angle = draw.uniform(-math.pi / 2, math.pi / 2, n)
    radius = draw.normal(0.1, 0.01, n)
    return np.stack([np.cos(angle) * radius + 0.25, np.sin(angle) * radius], 1)


def simulate(draw: np.random.Generator, theta: Array) -> Array:
    """One observation per row of parameters."""
    along, across = (theta[:, 0] + theta[:, 1]), (theta[:, 1] - theta[:, 0])
    return crescent(draw, len(theta)) + np.stack([-np.abs(along), across], 1) / math.sqrt(2)


def inside(theta: Array) -> Array:
    """The rows in the support of the prior."""
    return theta[(np.abs(theta) <= 1).all(1)]


def exact(draw: np.random.Generator, observed: Array, n: int) -> Array:
    """Samples of the exact posterior: every crescent point has two parameters, equally likely."""
    kept = np.empty((0, 2))
    while len(kept) < n:
        moved = observed - crescent(draw, 4 * n)
        moved = moved[moved[:, 0] <= 0]
        along = -moved[:, 0] * draw.choice([-1.0, 1.0], len(moved))
        theta = np.stack([along - moved[:, 1], along + moved[:, 1]], 1) / math.sqrt(2)
        kept = np.concatenate([kept, inside(theta)])
    return kept[:n]


def recipe(name: str, theta: Array, x: Array, seed: int) -> Posterior:
    """A conditional flow of a recipe, with its defaults and those of ``fit``."""
    flow = getattr(flowkit, name)(2, context=2, seed=seed)
    data = {"x": torch.tensor(theta).float(), "context": torch.tensor(x).float()}
    flowkit.fit(flow, data, progress=False, seed=seed)

    def sample(observed: Array, n: int) -> Array:
        generator = torch.Generator().manual_seed(seed)
        kept, context = np.empty((0, 2)), torch.tensor(observed).float()
        while len(kept) < n:
            with torch.no_grad():
                drawn = flow.sample((2 * n,), context=context, generator=generator)
            kept = np.concatenate([kept, inside(drawn.double().numpy())])
        return kept[:n]

    return sample


def sbi(theta: Array, x: Array, seed: int) -> Posterior:
    """Neural posterior estimation with the spline flow of the sbi package."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(seed)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference = NPE(prior, density_estimator="nsf", show_progress_bars=False)
    inference.append_simulations(torch.tensor(theta).float(), torch.tensor(x).float())
    posterior = inference.build_posterior(inference.train())

    def sample(observed: Array, n: int) -> Array:
        drawn = posterior.sample((n,), x=torch.tensor(observed).float(), show_progress_bars=False)
        return np.asarray(drawn.double().numpy())

    return sample


METHODS: dict[str, Callable[[Array, Array, int], Posterior]] = {
    "autoregressive_flow": lambda *data: recipe("autoregressive_flow", *data),
    "coupling_flow": lambda *data: recipe("coupling_flow", *data),
    "sbi": sbi,
}


def c2st(first: Array, second: Array) -> float:
    """Accuracy of a classifier that tells two sets of samples apart."""
    both = (np.concatenate([first, second]) - first.mean(0)) / first.std(0)
    label = np.repeat([0, 1], [len(first), len(second)])
    network = MLPClassifier((20, 20), max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(network, both, label, cv=folds).mean())


@dataclass
class Accuracy:
    """How well one posterior is told from the exact one."""

    method: str
    seed: int
    observation: int
    c2st: float
    seconds: float


def measure(method: str, seed: int, simulations: int, samples: int) -> list[Accuracy]:
    """Train one method on one set of simulations, and score it for all observations."""
    draw = np.random.default_rng([19, seed])
    theta = draw.uniform(-1, 1, (simulations, 2))
    x = simulate(draw, theta)
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = METHODS[method](theta, x, seed)
    seconds = time.process_time() - begun
    # The same observations for all seeds.
    draw = np.random.default_rng(0)
    observed = simulate(draw, draw.uniform(-1, 1, (OBSERVATIONS, 2)))
    return [
        Accuracy(method, seed, k, c2st(exact(draw, o, samples), posterior(o, samples)), seconds)
        for k, o in enumerate(observed)
    ]


def main(arguments: list[str] | None = None) -> list[Accuracy]:
    """Measure all."""
    study = Study(
        __file__,
        __doc__,
        small={
            "methods": ["coupling_flow"], "seeds": [0], "simulations": 100, "samples": 100,
        },
        packages=("flowkit-density", "torch", "sbi", "scikit-learn"),
        methods=tuple(METHODS),
        seeds=[0, 1, 2],
        simulations=2_000,
        samples=5_000,
    )  # fmt: skip
    options: Any = study.parse(arguments)
    logging.disable(logging.WARNING)
    records = Records(options.record, Accuracy)
    for seed in options.seeds:
        for method in options.methods:
            if records.lack(method=method, seed=seed):
                records.add(*measure(method, seed, options.simulations, options.samples))
    lines = study.heading(
        "Posteriors of the two moons",
        f"Accuracy of a classifier that tells {options.samples:,} samples of a posterior from as "
        f"many exact ones, 0.5 where it cannot; {options.simulations:,} simulations, mean of "
        f"{OBSERVATIONS} observations and seeds {', '.join(map(str, options.seeds))} +- standard "
        "error over both; the difference to sbi is paired.",
    )
    lines += table(("method", "C2ST", "less sbi", "CPU seconds"), _rows(options, records))
    study.write(lines)
    return list(records)


def _rows(options: Any, records: Records) -> list[tuple[str, ...]]:
    rows = []
    found = {
        m: {
            (r.seed, r.observation): r
            for r in records
            if r.method == m and r.seed in options.seeds
        }
        for m in options.methods
    }
    for method, cells in found.items():
        less = "-"
        if "sbi" in found and method != "sbi":
            less = spread([r.c2st - found["sbi"][key].c2st for key, r in cells.items()])
        mean = spread([r.c2st for r in cells.values()])
        seconds, _ = mean_and_error([r.seconds for r in cells.values()])
        rows.append((method, mean, less, f"{seconds:.0f}"))
    return rows


if __name__ == "__main__":
    main()
