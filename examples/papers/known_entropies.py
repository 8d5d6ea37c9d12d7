"""Default fits to three densities in 8 to 12 dimensions whose log-density is known.

* ``mixture``: eight normals in 8 dimensions with random weights, means of scale 2 and correlated
  covariances.
* ``bananas``: a chain of 12 features, each a parabola of the one before it plus noise:
  x_1 ~ N(0, 1), x_{i+1} ~ N(x_i^2 / 2 - 1 / 2, 0.5) with x_i^2 clipped at 9.
* ``rings``: five independent rings in the plane, of radius 2 and width 0.2: 10 features.

10,000 samples to fit, 10,000 others to score. The gap is the mean of the true log-density less
that of the fit, in nats per sample: an estimate of the Kullback-Leibler divergence, whose standard
error is over the samples that score. Methods and their settings are those of ``tables.py``;
samples are standardised for all.

Run: ``python examples/papers/known_entropies.py --record FILE --output docs/results``; ``--small``
takes seconds. Needs ``pip install flowkit-density[bench,test] nflows``.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tables
import torch
from harness import Records, Study, table
from numpy.typing import NDArray
from scipy.special import i0e, logsumexp
from scipy.stats import norm

Array = NDArray[np.float64]

PACKAGES = ("flowkit-density", "torch", "zuko", "nflows", "scikit-learn")
#: Draws samples, and computes their log-densities.
Density = tuple[Callable[[np.random.Generator, int], Array], Callable[[Array], Array]]


def mixture() -> Density:
    """Eight correlated normals in 8 dimensions."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(8, 5.0))
    means = 2 * rng.normal(size=(8, 8))
    factors = np.linalg.qr(rng.normal(size=(8, 8, 8)))[0] * rng.uniform(0.2, 1.5, (8, 1, 8))

    def sample(draw: np.random.Generator, n: int) -> Array:
        which = draw.choice(8, size=n, p=weights)
        return means[which] + np.einsum("nij,nj->ni", factors[which], draw.normal(size=(n, 8)))

    def log_density(x: Array) -> Array:
        terms = []
        for weight, mean, factor in zip(weights, means, factors, strict=True):
            u = np.linalg.solve(factor, (x - mean).T).T
            log_det = np.linalg.slogdet(factor)[1]
            terms.append(math.log(weight) + norm.logpdf(u).sum(1) - log_det)
        return np.asarray(logsumexp(terms, 0))

    return sample, log_density


def bananas() -> Density:
    """A chain of parabolas in 12 dimensions."""

    def centre(x: Array) -> Array:
        return np.minimum(x * x, 9) / 2 - 0.5

    def sample(draw: np.random.Generator, n: int) -> Array:
        x = draw.normal(size=(n, 12))
        for i in range(1, 12):
            x[:, i] = centre(x[:, i - 1]) + 0.5 * x[:, i]
        return x

    def log_density(x: Array) -> Array:
        following = norm.logpdf(x[:, 1:], centre(x[:, :-1]), 0.5).sum(1)
        return np.asarray(norm.logpdf(x[:, 0]) + following)

    return sample, log_density


def rings(radius: float = 2.0, width: float = 0.2) -> Density:
    """Five rings: points of a circle plus normal noise."""

    def sample(draw: np.random.Generator, n: int) -> Array:
        angle = draw.uniform(0, 2 * math.pi, size=(n, 5))
        circle = radius * np.stack([np.cos(angle), np.sin(angle)], -1)
        return (circle + width * draw.normal(size=circle.shape)).reshape(n, 10)

    def log_density(x: Array) -> Array:
        r = np.hypot(x[:, ::2], x[:, 1::2])
        scaled = r * radius / width**2
        # The mean over angles of a normal around each point of the circle.
        terms = -0.5 * ((r - radius) / width) ** 2 + np.log(i0e(scaled))
        return np.asarray((terms - math.log(2 * math.pi * width**2)).sum(1))

    return sample, log_density


DENSITIES: dict[str, Callable[[], Density]] = {
    "mixture": mixture,
    "bananas": bananas,
    "rings": rings,
}


@dataclass
class Gap:
    """How far one fit is from the truth."""

    density: str
    method: str
    seed: int
    gap: float
    error: float
    seconds: float


def measure(name: str, method: str, seed: int, samples: int) -> Gap:
    """Fit one method to one density."""
    sample, log_density = DENSITIES[name]()
    draw = np.random.default_rng([seed, len(name)])
    train, test = sample(draw, samples), sample(draw, 10_000)
    truth = log_density(test)
    mean, scale = train.mean(0), train.std(0)
    torch.manual_seed(seed)
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tables.METHODS[method]((train - mean) / scale, (test - mean) / scale, seed)
    seconds = time.process_time() - begun
    gaps = truth - (found - np.log(scale).sum())
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    return Gap(name, method, seed, float(gaps.mean()), error, seconds)


def main(arguments: list[str] | None = None) -> list[Gap]:
    """Measure all."""
    study = Study(
        __file__,
        __doc__,
        small={
            "densities": ["rings"], "methods": ["Gaussian", "mixture"], "seeds": [0],
            "samples": 500,
        },
        packages=PACKAGES,
        densities=tuple(DENSITIES),
        methods=tuple(tables.METHODS),
        seeds=[0, 1],
        samples=10_000,
    )  # fmt: skip
    options: Any = study.parse(arguments)
    records = Records(options.record, Gap)
    for seed in options.seeds:
        for name in options.densities:
            for method in options.methods:
                if records.lack(density=name, method=method, seed=seed):
                    records.add(measure(name, method, seed, options.samples))
    lines = study.heading(
        "Densities with known entropy",
        f"Gaps to the truth in nats per sample, {options.samples:,} samples, mean of seeds "
        f"{', '.join(map(str, options.seeds))} ± standard error over test samples; the least in "
        "bold. CPU seconds behind each.",
    )
    lines += table(("density", *options.methods), _rows(options, records))
    study.write(lines)
    return list(records)


def _rows(options: Any, records: Records) -> list[tuple[str, ...]]:
    rows = []
    for name in options.densities:
        found = {
            m: [
                r
                for r in records
                if (r.density, r.method) == (name, m) and r.seed in options.seeds
            ]
            for m in options.methods
        }
        gaps = {m: float(np.mean([r.gap for r in part])) for m, part in found.items()}
        cells = []
        for m, part in found.items():
            error = math.sqrt(sum(r.error**2 for r in part)) / len(part)
            text = f"{gaps[m]:.3f} ± {error:.3f}"
            seconds = float(np.mean([r.seconds for r in part]))
            best = gaps[m] == min(gaps.values())
            cells.append(f"**{text}** ({seconds:.0f} s)" if best else f"{text} ({seconds:.0f} s)")
        rows.append((name, *cells))
    return rows


if __name__ == "__main__":
    main()
