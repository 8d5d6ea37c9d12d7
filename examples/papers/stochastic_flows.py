"""Stochastic normalizing flows: free energies of a double well, and the density of a picture.

The first two experiments of "Stochastic Normalizing Flows" (Wu, Köhler, Noé 2020,
arXiv 2002.06707).

``--experiment wells``: two coupling flows, affine and of splines, alone and with Metropolis layers
at the prior, between the blocks and at the target; 300 steps of maximum likelihood from a Markov
chain in the wells, and 300 of its mean with the path divergence from the energy. Each samples the
free energy along the first coordinate 20 times, as it is and reweighted, for ten trainings.

``--experiment picture``: coupling flows of growing depth learn the brightness of a photograph,
alone and with a Metropolis layer after every block.

Run: ``python examples/papers/stochastic_flows.py`` (about an hour on one core); ``--small`` takes
seconds.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from harness import Records, Study, table
from torch import Tensor

import flowkit
from flowkit import MaximumLikelihood, PathKL, WeightedSum, fit
from flowkit.datasets import photograph_colors
from flowkit.energies import Energy
from flowkit.recipes import insert_stochastic_layers
from flowkit.scalar import Affine, RationalQuadraticSpline
from flowkit.stochastic import Metropolis
from flowkit.toys import DoubleWell, Picture

BINS = 30
REACH = 2.5
INSIDE = 2.25
#: Errors in the authors' notebooks, plain and reweighted: mean and spread of ten trainings.
PUBLISHED = {
    ("affine", False): ("1.44 +- 0.53", "1.15 +- 0.41"),
    ("affine", True): ("1.51 +- 0.19", "0.63 +- 0.11"),
    ("spline", False): ("1.31 +- 0.25", "2.24 +- 0.47"),
    ("spline", True): ("0.70 +- 0.21", "0.60 +- 0.16"),
}


@dataclass
class Wells:
    """Errors of one training in kT, on fixed bins and by the procedure of the authors."""

    scalar: str
    chains: bool
    seed: int
    bias: float
    uncertainty: float
    error: float
    bias_reweighted: float
    uncertainty_reweighted: float
    error_reweighted: float
    error_authors: float
    error_reweighted_authors: float
    effective: float
    seconds: float


@dataclass
class Painting:
    """Divergence of one flow from the picture in nats."""

    scalar: str
    chains: bool
    depth: int
    seed: int
    divergence: float
    seconds: float


def markov_chain(energy: Energy, steps: int, step_size: float, seed: int) -> Tensor:
    """A Metropolis chain in the wells, one sample per step."""
    chain = Metropolis(energy, steps=1, step_size=step_size)
    generator = torch.Generator().manual_seed(seed)
    state, rows = energy.sample(1, generator), []
    with torch.no_grad():
        for _ in range(steps):
            state = chain(state, generator=generator)[0]
            rows.append(state[0])
    return torch.stack(rows)


def coupling_blocks(scalar: str, blocks: int, seed: int) -> flowkit.Flow:
    """Blocks of two couplings, with the networks of the paper."""
    torch.manual_seed(seed)
    affine = scalar == "affine"
    return flowkit.coupling_flow(
        2,
        layers=2 * blocks,
        scalar=Affine() if affine else RationalQuadraticSpline(bins=20, bound=3.0),
        hidden=(64, 64) if affine else (64, 64, 64),
        activation="relu",
        linear=None,
        start=None,
        seed=seed,
    )


def train_wells(scalar: str, chains: bool, seed: int, options: argparse.Namespace) -> Wells:
    """Train one flow on the double well, and measure its free energy."""
    begun = time.process_time()
    energy = DoubleWell()
    flow = coupling_blocks(scalar, 3, seed)
    if chains:
        # From the target to the prior, through the places between blocks of two couplings.
        flow = insert_stochastic_layers(
            flow,
            energy,
            layer="metropolis",
            steps=20,
            step_size=0.25,
            positions=(0, 2, 4, 6),
            fractions=(1.0, 0.5, 0.0, 0.0),
        )
    x = markov_chain(energy, options.rows, 1.5, seed)
    mixture = WeightedSum((0.5, MaximumLikelihood()), (0.5, PathKL(energy, samples=128)))
    for objective in (MaximumLikelihood(), mixture):
        fit(
            flow,
            x,
            objective,
            validation=None,
            steps=options.steps,
            batch_size=128,
            lr=5e-3,
            scheduler=None,
            ema=None,
            patience=None,
            compile=False,
            seed=seed,
            progress=False,
        )
    runs, effective = weighted_samples(flow, energy, options, seed)
    errors = [v for weighted in (False, True) for v in fixed_bins(runs, energy, weighted)]
    authors = [moving_bins(runs, energy, weighted) for weighted in (False, True)]
    seconds = time.process_time() - begun
    return Wells(scalar, chains, seed, *errors, *authors, effective, seconds)


def weighted_samples(
    flow: flowkit.Flow, energy: Energy, options: argparse.Namespace, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """First coordinates and weights of mean one for every repeat, and the effective fraction."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    runs, effective = [], []
    for _ in range(options.repeats):
        x, log_weight = flow.sample_with_log_weight(options.samples, energy, generator=generator)
        weights = torch.softmax(log_weight.double(), 0).numpy() * len(x)
        effective.append(len(x) / np.square(weights).sum())
        runs.append((x[:, 0].double().numpy(), weights))
    return runs, float(np.mean(effective))


def fixed_bins(
    runs: list[tuple[np.ndarray, np.ndarray]], energy: DoubleWell, weighted: bool
) -> tuple[float, ...]:
    """Bias, uncertainty and error of the free energy, as root mean squares over fixed bins."""
    edges = np.linspace(-REACH, REACH, BINS + 1)
    used = np.abs(0.5 * (edges[1:] + edges[:-1])) < INSIDE
    found = []
    for first, weights in runs:
        mass, _ = np.histogram(first, bins=edges, weights=weights if weighted else None)
        # An empty bin counts as half a sample: its error is large, but it is not left out.
        mass = np.where(mass > 0, mass, 0.5)
        found.append(-np.log(mass / len(first) / np.diff(edges)))
    fine = np.linspace(edges[:-1], edges[1:], 101)
    exact = -np.log(np.trapezoid(np.exp(-energy.profile(fine)), fine, axis=0) / np.diff(edges))
    profile = np.stack(found)
    bias = np.sqrt(np.mean((profile.mean(0) - exact)[used] ** 2))
    uncertainty = np.sqrt(np.mean(profile.var(0)[used]))
    return float(bias), float(uncertainty), float(math.hypot(bias, uncertainty))


def moving_bins(
    runs: list[tuple[np.ndarray, np.ndarray]], energy: DoubleWell, weighted: bool
) -> float:
    """The error as the authors computed it: their bins reach over the samples of each repeat.

    Profiles are aligned by their means, and their average by its minimum; the bias is the modulus
    of the mean difference, the uncertainty the mean standard deviation, both over the bins that no
    repeat left empty.
    """
    found = []
    for first, weights in runs:
        mass, edges = np.histogram(first, bins=BINS, weights=weights if weighted else None)
        with np.errstate(divide="ignore"):
            profile = -np.log(mass)
        found.append(profile - profile[np.isfinite(profile)].mean())
    centres = 0.5 * (edges[1:] + edges[:-1])
    mean = np.mean(found, axis=0)
    used = (np.abs(centres) < INSIDE) & np.isfinite(mean)
    exact = energy.profile(centres)
    difference = (exact - exact.min()) - (mean - mean.min())
    bias = abs(difference[used].mean())
    uncertainty = np.std(np.stack(found)[:, used], axis=0).mean()
    return float(math.hypot(bias, uncertainty))


def exact_samples(energy: DoubleWell, options: argparse.Namespace) -> tuple[float, float]:
    """The errors of independent exact samples, on fixed and on moving bins."""
    generator = torch.Generator().manual_seed(1)
    runs = []
    for _ in range(options.repeats):
        first = energy.sample(options.samples, generator)[:, 0].double().numpy()
        runs.append((first, np.ones_like(first)))
    return fixed_bins(runs, energy, False)[2], moving_bins(runs, energy, False)


def brightness(name: str = "flower.jpg") -> np.ndarray:
    """A photograph as heights: its blurred brightness with some background, (rows, columns)."""
    from scipy.ndimage import gaussian_filter

    grey = photograph_colors(name).image().mean(-1) / 255
    background = sum(gaussian_filter(1 - grey, sigma) for sigma in (10, 20, 50))
    return np.asarray(gaussian_filter(grey, 5) + 0.01 * background)


def train_picture(
    scalar: str, chains: bool, depth: int, seed: int, options: argparse.Namespace
) -> Painting:
    """Train one flow on points of the picture, and compare histograms."""
    begun = time.process_time()
    picture = Picture(brightness())
    flow = coupling_blocks(scalar, depth, seed)
    if chains:
        flow = insert_stochastic_layers(
            flow,
            picture,
            layer="metropolis",
            steps=10,
            step_size=0.1,
            positions=range(0, 2 * depth, 2),
        )
    x = picture.sample(options.points, torch.Generator().manual_seed(seed))
    fit(
        flow,
        x,
        validation=None,
        steps=options.picture_steps,
        batch_size=250,
        lr=1e-3,
        scheduler=None,
        ema=None,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    counts = 0
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    for _ in range(10):
        samples = flow.sample(options.samples // 2, generator=generator).double().numpy()
        counts = counts + np.histogram2d(*samples.T, bins=50, range=frame(picture))[0]
    divergence = divergence_from(picture, counts, 5 * options.samples)
    return Painting(scalar, chains, depth, seed, divergence, time.process_time() - begun)


def frame(picture: Picture) -> list[tuple[float, float]]:
    """The ends of the picture in both coordinates."""
    return [(-half, half) for half in picture.half_sizes]


def divergence_from(picture: Picture, counts: np.ndarray, total: int) -> float:
    """KL of the histogram of samples from the picture's own on 50 x 50 bins, in nats.

    Half a count is added to every bin; samples beside the picture are missing from all.
    """
    grids = [np.linspace(a, b, 50 * 20 + 1) for a, b in frame(picture)]
    middles = [torch.as_tensor(0.5 * (g[1:] + g[:-1])) for g in grids]
    points = torch.stack(torch.meshgrid(*middles, indexing="ij"), -1)
    density = torch.exp(-picture.double().energy(points)).numpy()
    truth = density.reshape(50, 20, 50, 20).sum((1, 3))
    truth /= truth.sum()
    found = (counts + 0.5) / (total + 0.5 * counts.size)
    return float((truth * np.log(truth / found)).sum())


def table_of_wells(results: list[Wells], options: argparse.Namespace) -> list[str]:
    """Mean and standard deviation over trainings, beside the published errors."""
    exact = exact_samples(DoubleWell(), options)
    lines = [
        "## The double well",
        "",
        "u = -x1/2 - 6 x1^2 + x1^4 + x2^2/2. Three blocks of two couplings; affine: networks "
        "2 x 64; splines: 20 bins on [-3, 3], networks 3 x 64; ReLU. With chains: 20 Metropolis "
        "steps of 0.25 at the prior, between the blocks (fractions 0 and 1/2) and at the target. "
        f"{options.steps} steps of Adam at 5e-3 by likelihood and {options.steps} by the mean of "
        f"likelihood and path divergence, batches of 128; data: {options.rows:,} steps of a "
        "Metropolis chain of 1.5. The free energy along x1 is the negative log-density of a "
        f"histogram of {BINS} bins on [-{REACH}, {REACH}]; errors are over bins with "
        f"|x1| < {INSIDE}, against the exact profile, of {options.repeats} times "
        f"{options.samples:,} samples: bias, of their mean; uncertainty, their standard "
        "deviation; error, the root of the sum of squares; in kT, as root mean squares over "
        "bins. Empty bins count as half a sample. The authors' procedure lets the bins reach over "
        "the samples of every repeat, so that they move; aligns profiles by their means, averages "
        "differences before it takes their modulus, and leaves bins out that are empty once. Mean "
        f"and standard deviation of {len(options.seeds)} trainings.",
        "",
        f"Exact independent samples of the same number have an error of {exact[0]:.2f} on fixed "
        f"bins, and of {exact[1]:.2f} by the authors' procedure: the barrier holds about one "
        "sample in 100,000 per bin.",
        "",
    ]
    rows = []
    for scalar in ("affine", "spline"):
        for chains in (False, True):
            part = [r for r in results if (r.scalar, r.chains) == (scalar, chains)]

            def cell(name: str, part: list[Wells] = part) -> str:
                values = [getattr(r, name) for r in part]
                return f"{np.mean(values):.2f} +- {np.std(values):.2f}"

            measured = (
                "error", "bias_reweighted", "uncertainty_reweighted", "error_reweighted",
                "error_authors", "error_reweighted_authors",
            )  # fmt: skip
            rows.append(
                (
                    f"{scalar} coupling" + (" + Metropolis" if chains else ""),
                    *map(cell, measured),
                    f"{100 * np.mean([r.effective for r in part]):.0f} %",
                    *PUBLISHED[scalar, chains],
                    f"{np.mean([r.seconds for r in part]):.0f}",
                )
            )
    header = (
        "flow", "error", "reweighted: bias", "uncertainty", "**error**",
        "authors' procedure: error", "**error, reweighted**", "effective samples",
        "published: error", "**error, reweighted**", "seconds",
    )  # fmt: skip
    return lines + table(header, rows)


def table_of_pictures(results: list[Painting], options: argparse.Namespace) -> list[str]:
    """One row per depth."""
    found = {(r.scalar, r.depth, r.seed, r.chains): r for r in results}
    pairs = [(key[:3], found[(*key[:3], False)], found[key]) for key in sorted(found) if key[3]]
    return [
        "## The picture",
        "",
        "The brightness of scikit-learn's flower, blurred over 5 pixels, plus 0.01 times the sum "
        "of its blurred darkness over 10, 20 and 50. Blocks of two couplings as above; with "
        "chains: 10 Metropolis steps of 0.1 after every block, fractions i/n. "
        f"{options.picture_steps:,} steps of Adam at 1e-3 by likelihood, batches of 250 of "
        f"{options.points:,} points. Divergence of the density of {5 * options.samples:,} "
        "samples from that of the picture, on 50 x 50 bins, in nats.",
        "",
        *table(
            (
                "scalar map", "blocks", "seed", "couplings alone", "with Metropolis",
                "seconds, alone", "seconds, with",
            ),
            (
                (
                    *setting,
                    f"{a.divergence:.4f}",
                    f"{b.divergence:.4f}",
                    f"{a.seconds:.0f}",
                    f"{b.seconds:.0f}",
                )
                for setting, a, b in pairs
            ),
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> tuple[list[Wells], list[Painting]]:
    """Train all, and write the tables."""
    small = {"seeds": [0], "steps": 5, "rows": 500, "repeats": 3, "samples": 2000}
    study = Study(
        __file__,
        __doc__,
        small={**small, "depths": [1], "picture_steps": 5, "points": 2000},
        experiment={"choices": ("both", "wells", "picture"), "default": "both"},
        seeds=list(range(10)),
        steps=300,
        rows=10_000,
        repeats=20,
        samples=100_000,
        depths=[1, 2, 3, 4, 6, 8],
        picture_seeds=[0],
        picture_steps=2000,
        points=50_000,
    )
    options = study.parse(arguments)
    records = Records(options.record, Wells, Painting)
    settings = [(scalar, chains) for scalar in ("affine", "spline") for chains in (False, True)]
    for seed in options.seeds if options.experiment != "picture" else ():
        for scalar, chains in settings:
            if records.lack(scalar=scalar, chains=chains, seed=seed, depth=None):
                records.add(train_wells(scalar, chains, seed, options))
    for seed in options.picture_seeds if options.experiment != "wells" else ():
        for depth in options.depths:
            for scalar, chains in settings:
                if records.lack(scalar=scalar, chains=chains, depth=depth, seed=seed):
                    records.add(train_picture(scalar, chains, depth, seed, options))
    wells, paintings = records.of(Wells), records.of(Painting)
    study.write(
        [
            *study.heading("Stochastic flows: free energies and pictures"),
            *(table_of_wells(wells, options) if wells else []),
            *(table_of_pictures(paintings, options) if paintings else []),
        ]
    )
    return wells, paintings


if __name__ == "__main__":
    main()
