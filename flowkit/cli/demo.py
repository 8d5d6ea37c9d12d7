"""``flowkit demo``: the pixels of a photograph as a density, against three other estimates.

The flow trains in this process; Gaussian, mixture and kernel estimate run beside it in a second
one. All four are scored on the same held-out pixels, in nats a pixel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flowkit.cli.beside import beside
from flowkit.cli.console import say
from flowkit.data.tables import write_table
from flowkit.files import check_writable, replacing

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

    from flowkit.datasets import PhotographColours
    from flowkit.flow import Flow
    from flowkit.training import History

_BATCH = 256
_RATE = 2e-3
_FILES = ["corner.png", "history.png", "model.safetensors", "pointillist.png", "samples.csv"]
_HELD_OUT = 10_000
_SAMPLES = 100_000
_COMPONENTS = 50
# The bandwidths to choose from, as shares of n^(-1 / (d + 4)).
_BANDWIDTHS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.6)


def demo(folder: Path, *, seconds: float, steps: int | None, seed: int, small: bool) -> None:
    """Fit a flow to the pixels of ``china.jpg``, compare, sample and draw.

    Args:
        folder: Where files go; made if it is not there.
        seconds: Longest time of training.
        steps: Optimiser steps instead, however long they take.
        seed: Seed of the noise, the split, the weights and the samples.
        small: Whether to use a thirtieth of the pixels only.
    """
    from flowkit.datasets import photograph_colours
    from flowkit.io import save

    begun = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        check_writable(folder / name)
    say("reading china.jpg")
    photo = photograph_colours("china.jpg")
    share = 30 if small else 1
    points = _shuffled(photo.dequantized(seed=seed), seed)[: len(photo.points) // share]
    test, validation, train = points.tensor_split([_HELD_OUT // share, 2 * _HELD_OUT // share])
    say(
        f"china.jpg: {len(points):,} pixels as points ({', '.join(photo.columns)}), uniform noise "
        f"of one unit added;\n{len(train):,} to train on, {len(validation):,} to validate, "
        f"{len(test):,} held out to compare on"
    )
    table = [part.double().numpy() for part in (train, validation, test)]
    with beside(_others, table[0], table[1], table[2], seed) as others:
        say("training the flow; mixture and kernel estimate run beside it in a second process")
        flow, history = _train(photo, train, validation, seconds, steps, seed)
        say("scoring the held-out pixels")
        scores = {"spline flow (flowkit)": _score(flow, test)}
        columns = list(photo.columns)
        save(
            flow, folder / "model.safetensors", extra={"columns": columns, "dequantized": columns}
        )
        say(f"drawing {_SAMPLES:,} samples")
        generator = torch.Generator().manual_seed(seed)
        samples = torch.cat([flow.sample(_SAMPLES // 10, generator=generator) for _ in range(10)])
        write_table(folder / "samples.csv", (samples.round() + 0.0).numpy(), columns)
        say("drawing the pictures")
        _draw(folder, photo, points, samples, history)
        say("waiting for the mixture and the kernel estimate, which run beside the flow")
        notes, found = others()
    _report({**scores, **found}, notes, history)
    say(f"\n{folder}: {', '.join(_FILES)}")
    say(f"total time {time.perf_counter() - begun:.0f} s")


def _shuffled(points: Tensor, seed: int) -> Tensor:
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]


def _train(
    photo: PhotographColours,
    train: Tensor,
    validation: Tensor,
    seconds: float,
    steps: int | None,
    seed: int,
) -> tuple[Flow, History]:
    """A flow on the box of the pixels: position first, then each colour given what came before."""
    from flowkit.recipes import box_flow
    from flowkit.training import fit

    torch.manual_seed(seed)
    upper = [255.5, 255.5, 255.5, photo.width - 0.5, photo.height - 0.5]
    flow = box_flow([-0.5] * 5, upper, waves=32, order=[3, 4, 0, 1, 2])
    limit = math.inf if steps is not None else seconds
    steps = steps or max(50, int(seconds / _seconds_a_step(flow, train)))
    clock = _Clock(limit)
    history = fit(
        flow, train, validation=validation, steps=steps, batch_size=_BATCH, lr=_RATE,
        scheduler=clock.schedule, patience=None, seed=seed, callbacks=[clock.over],
    )  # fmt: skip
    return flow, history


def _seconds_a_step(flow: Flow, train: Tensor) -> float:
    """Time of one step while nothing else runs, measured on gradients that are thrown away."""
    times = []
    for batch in train[: 24 * _BATCH].split(_BATCH):
        begun = time.perf_counter()
        (-flow.log_prob(batch).mean()).backward()
        times.append(time.perf_counter() - begun)
    flow.zero_grad(set_to_none=True)
    # The faster ones, as a busy machine may get idle: the clock ends what this makes too long. The
    # optimiser adds about a sixth.
    return 1.15 * float(np.quantile(times, 0.25))


class _Clock:
    """A cosine schedule to zero at the last step or at the time limit, whichever comes first.

    Args:
        limit: Seconds from the first call of ``schedule``.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.begun = time.perf_counter()

    def _share(self) -> float:
        return (time.perf_counter() - self.begun) / self.limit

    def schedule(self, optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
        """The scheduler for ``fit``."""
        from torch.optim.lr_scheduler import LambdaLR

        self.begun = time.perf_counter()

        def factor(step: int) -> float:
            done = min(1.0, max(step / total, self._share()))
            return 0.5 * (1 + math.cos(math.pi * done))

        return LambdaLR(optimizer, factor)

    def over(self, flow: Flow, history: History) -> bool:
        """The callback for ``fit`` that stops at the limit."""
        return self._share() >= 1


def _score(flow: Flow, rows: Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([flow.log_prob(block) for block in rows.split(2048)]).double().numpy()


def _others(
    train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Log-densities of the test rows under a mixture, a kernel estimate and a Gaussian."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        mean, covariance = train.mean(0), np.cov(train.T)
        whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
        jacobian = float(np.log(np.abs(np.linalg.det(whiten))))
        white = [
            torch.from_numpy((part - mean) @ whiten).float() for part in (train, validation, test)
        ]
        normal = -0.5 * (white[2].double() ** 2).sum(-1).numpy()
        gaussian = normal - 0.5 * test.shape[1] * math.log(2 * math.pi) + jacobian

        few = white[1][:1000]
        spread = len(train) ** (-1 / (train.shape[1] + 4))
        trials = [
            (float(_kernel_log_density(white[0], few, factor * spread).mean()), factor * spread)
            for factor in _BANDWIDTHS
        ]
        bandwidth = max(trials)[1]
        kernel = _kernel_log_density(white[0], white[2], bandwidth) + jacobian

        mixture = GaussianMixture(_COMPONENTS, init_params="k-means++", random_state=seed)
        mixture.fit(train)
        mixed = mixture.score_samples(test)
    notes = {
        "Gaussian mixture": f"{_COMPONENTS} components, full covariances, {mixture.n_iter_} steps",
        "kernel estimate": f"whitened, bandwidth {bandwidth:.3f} chosen on {len(few):,} "
        "validation pixels",
        "Gaussian": "full covariance",
    }
    return notes, {"Gaussian mixture": mixed, "kernel estimate": kernel, "Gaussian": gaussian}


def _kernel_log_density(centres: Tensor, rows: Tensor, bandwidth: float) -> np.ndarray:
    r"""Gaussian kernel estimate, exactly: :math:`\log \frac1n \sum_i N(x; c_i, h^2 I)`."""
    n, d = centres.shape
    scaled = centres / bandwidth
    # -|x - c|^2 / 2 = x.c - |c|^2 / 2 - |x|^2 / 2: one product, blocks small enough for the cache.
    left = torch.cat([scaled, -0.5 * (scaled**2).sum(-1, keepdim=True)], -1)
    out = []
    for row in (rows / bandwidth).split(64):
        right = torch.cat([row, torch.ones_like(row[:, :1])], -1)
        parts = [torch.logsumexp(right @ block.T, -1) for block in left.split(4096)]
        total = torch.logsumexp(torch.stack(parts), 0)
        out.append(total - 0.5 * (row**2).sum(-1))
    constant = math.log(n) + 0.5 * d * math.log(2 * math.pi) + d * math.log(bandwidth)
    return torch.cat(out).double().numpy() - constant


def _report(scores: dict[str, np.ndarray], notes: dict[str, str], history: History) -> None:
    """The table: mean, standard error, and the flow's lead with its own standard error."""
    flow = next(iter(scores.values()))
    seconds = sum(history.seconds)
    notes = {next(iter(scores)): f"{history.steps[-1]:,} steps, {seconds:.0f} s", **notes}
    say(
        f"\nheld-out log-likelihood, nats a pixel (mean of {len(flow):,} pixels +- standard error)"
    )
    for name, values in scores.items():
        lead = flow - values
        ahead = "" if values is flow else f"flow ahead by {_mean(lead)}"
        say(f"  {name:<22} {_mean(values):>16}   {ahead:<32} {notes[name]}")


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} +- {values.std(ddof=1) / len(values) ** 0.5:.3f}"


def _draw(
    folder: Path, photo: PhotographColours, points: Tensor, samples: Tensor, history: History
) -> None:
    """The three figures."""
    from flowkit import plotting

    names = ["red [0-255]", "green [0-255]", "blue [0-255]", "x [pixels]", "y [pixels]"]
    figures: dict[str, Callable[[], Any]] = {
        "corner": lambda: plotting.corner(
            points, samples, names=names, labels=("pixels", "samples of the flow")
        ),
        "history": lambda: plotting.history(
            history, label="negative log-likelihood [nats a pixel]", title="training of the flow"
        ),
        "pointillist": lambda: plotting.pointillist(
            photo.image(), samples, title="samples of the flow"
        ),
    }
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as file:
            figure().savefig(file, format="png", dpi=150)
