"""``flowkit demo``: the pixels of a photograph as a density, against three other estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from flowkit import plotting
from flowkit.cli.console import say
from flowkit.data.tables import write_table
from flowkit.datasets import photograph_colors
from flowkit.datasets.photos import PhotographColors
from flowkit.files import check_writable, replacing
from flowkit.flow import Flow
from flowkit.io import save
from flowkit.recipes import box_flow
from flowkit.statistics.estimates import mean_of
from flowkit.training import History, fit

_FILES = ("corner.png", "history.png", "model.safetensors", "pointillist.png", "samples.csv")
_NAMES = ("red [0-255]", "green [0-255]", "blue [0-255]", "x [pixels]", "y [pixels]")
_TEST, _VALIDATION, _SAMPLES = 10_000, 5_000, 100_000
_BATCH, _COMPONENTS, _OF_MIXTURE = 1024, 50, 100_000
# Bandwidths of the kernel estimate to choose from, as multiples of n^(-1 / (d + 4)).
_BANDWIDTHS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.6)


def demo(folder: Path, *, steps: int, seed: int, small: bool) -> None:
    """Fit a flow to the pixels of ``china.jpg``, compare, sample and draw.

    Args:
        folder: Where files go; made if it is not there.
        steps: Optimiser steps, the same on every machine.
        seed: Seed of the noise, the split, the weights and the samples.
        small: Whether to use a thirtieth of the pixels and of the steps only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        check_writable(folder / name)
    photo, part = photograph_colors("china.jpg"), 30 if small else 1
    points, columns = photo.dequantized(seed=seed), list(photo.columns)
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]
    sizes = [_TEST // part, (_TEST + _VALIDATION) // part, len(points) // part]
    steps = -(-steps // part)
    test, validation, train, _ = points.tensor_split(sizes)
    say(
        f"china.jpg: pixels as points ({', '.join(columns)}), uniform noise of one unit added;\n"
        f"{len(train):,} to train on, {len(validation):,} to validate, {len(test):,} held out"
    )
    say(f"training the flow: {steps:,} steps of {min(_BATCH, len(train)):,} pixels")
    flow, history = train_flow(photo, train, validation, steps, seed)
    save(flow, folder / "model.safetensors", extra={"columns": columns, "dequantized": columns})
    say(f"drawing {_SAMPLES:,} samples")
    generator = torch.Generator().manual_seed(seed)
    samples = torch.cat([flow.sample(_SAMPLES // 10, generator=generator) for _ in range(10)])
    write_table(folder / "samples.csv", (samples.round() + 0.0).numpy(), columns)
    loss = "negative log-likelihood [nats per pixel]"
    for name, figure in {
        "corner": plotting.corner(
            points, samples, names=_NAMES, labels=("pixels", "samples of the flow")
        ),
        "history": plotting.plot_history(history, label=loss, title="training of the flow"),
        "pointillist": plotting.pointillist(photo.image(), samples, title="samples of the flow"),
    }.items():
        with replacing(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=150)
    say("fitting a mixture, a kernel estimate and a Gaussian for comparison")
    with torch.no_grad():
        own = torch.cat([flow.log_prob(block) for block in test.split(2048)]).double()
    say("\nheld-out log-likelihood, nats per pixel; lead of the flow (mean +- standard error)")
    say(f"  {'spline flow (flowkit)':<22} {_mean(own)}   {history.steps[-1]:,} steps")
    leads = {}
    tables = (part.double().numpy() for part in (train, validation, test))
    for name, log_prob in others(*tables, seed=seed):
        other = torch.from_numpy(log_prob)
        leads[name] = float((own - other).mean())
        say(f"  {name:<22} {_mean(other)}   {_mean(own - other)}")
    say(f"\n{verdict(leads)}\n\n{folder}: {', '.join(_FILES)}")


def train_flow(
    photo: PhotographColors, train: torch.Tensor, validation: torch.Tensor, steps: int, seed: int
) -> tuple[Flow, History]:
    """Fit a flow on the box of the pixels, position first; no clock decides anything."""
    upper = [255.5, 255.5, 255.5, photo.width - 0.5, photo.height - 0.5]
    flow = box_flow(5, lower=-0.5, upper=upper, n_frequencies=32, order=[3, 4, 0, 1, 2], seed=seed)
    history = fit(
        flow, train, validation=validation, steps=steps, batch_size=_BATCH, lr=6e-3,
        scheduler="cosine", clip=10.0, patience=None, ema=None, compile=False, seed=seed,
    )  # fmt: skip
    return flow, history


def others(*parts: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Log-densities of test pixels after training and validation: mixture, Gaussian, kernels."""
    train, validation, test = parts
    mixture = GaussianMixture(_COMPONENTS, init_params="k-means++", random_state=seed)
    yield "Gaussian mixture", mixture.fit(train[:_OF_MIXTURE]).score_samples(test)
    yield "Gaussian", GaussianMixture(1).fit(train).score_samples(test)
    whiten = PCA(whiten=True).fit(train)
    white, few, held_out = map(whiten.transform, (train, validation[:1000], test))
    scale = len(white) ** (-1 / (white.shape[1] + 4))
    kernels = [KernelDensity(bandwidth=b * scale, rtol=1e-4).fit(white) for b in _BANDWIDTHS]
    best = max(kernels, key=lambda kernel: kernel.score(few))
    log_det = -0.5 * np.log(whiten.explained_variance_).sum()
    yield "kernel estimate", best.score_samples(held_out) + log_det


def verdict(leads: Mapping[str, float]) -> str:
    """One sentence on the leads of the flow: ahead of all the others, or behind which."""
    behind = [f"the {n} (lead {lead:.3f})" for n, lead in leads.items() if not lead > 0]
    if behind:
        return f"The flow loses on this run: it is behind {' and '.join(behind)}."
    return "The flow is ahead of all the others on the held-out pixels of this run."


def _mean(values: torch.Tensor) -> str:
    return "{:.3f} +- {:.3f}".format(*mean_of(values))
