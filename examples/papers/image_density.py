"""Five losses on images: Fashion-MNIST, by dense layers and by convolutions.

After table 2 of "Training Energy-Based Normalizing Flow with Score-Matching Objectives" (Chao et
al. 2023, arXiv 2305.15267), whose MNIST cannot be had without a download: the same flow, two dense
layers with a smooth leaky ReLU between, or six 7 x 7 convolutions on three scales, is trained by
likelihood, stochastic likelihood, and sliced, denoising and finite-difference score matching.
Scored by the exact negative log-likelihood of the test images in bits per dimension, and by
seconds.

Pixels with uniform noise, in (-0.5, 255.5), go through a logit, and losses are applied behind
that. Needs the Debian package dataset-fashion-mnist.

Run: ``python examples/papers/image_density.py`` (about two hours on one core); ``--small`` takes
seconds, on a few digits of scikit-learn.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass

import torch
from harness import Records, Study, mean_and_error, table
from torch import Tensor

import flowkit
from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    MaximumLikelihood,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    conv_flow,
    dense_flow,
    glow_flow,
)
from flowkit.data import dequantize
from flowkit.datasets import digits, fashion_mnist
from flowkit.objectives import Objective

RECIPES = {"dense": dense_flow, "conv": conv_flow, "glow": glow_flow}
LOSSES = ("likelihood", "stochastic likelihood", "sliced", "denoising", "finite-difference")
#: Passes over the images: about as much time for each loss as likelihood takes.
EPOCHS = {
    "dense": {
        "likelihood": 12,
        "stochastic likelihood": 10,
        "sliced": 12,
        "denoising": 13,
        "finite-difference": 10,
    },
    "conv": {
        "likelihood": 4,
        "stochastic likelihood": 2,
        "sliced": 2,
        "denoising": 4,
        "finite-difference": 2,
    },
}
#: Standard deviation of the noise (in pairs), and radius, in units of the logit; and the weight of
#: the mean energy.
NOISE, RADIUS = 0.2, 1.0
WEIGHT = 0.1
#: Learning rates of Adam.
LIKELIHOOD_RATE, SCORE_RATE = 1e-3, 4e-4
#: How far above the likelihood run's nats per image score matching may end.
BOUND = 1.03


@dataclass
class Result:
    """One training: bits per dimension of test images, after each epoch and at the end."""

    architecture: str
    loss: str
    seed: int
    bits: float
    error: float
    steps: int
    seconds: list[float]
    curve: list[float]


def objective(loss: str) -> Objective:
    """A loss, behind the layers without parameters."""
    inner: Objective
    if loss == "likelihood":
        inner = MaximumLikelihood()
    elif loss == "stochastic likelihood":
        inner = StochasticMaximumLikelihood()
    elif loss == "sliced":
        inner = SlicedScoreMatching(energy_weight=WEIGHT)
    elif loss == "denoising":
        inner = DenoisingScoreMatching(noise=NOISE, antithetic=True, energy_weight=WEIGHT)
    else:
        inner = FiniteDifferenceScoreMatching(radius=RADIUS, energy_weight=WEIGHT)
    return AfterPreprocessing(inner)


def rate(architecture: str, loss: str) -> float:
    """The learning rate; one training learns faster at the higher one."""
    high = "likelihood" in loss or (architecture, loss) == ("conv", "denoising")
    return LIKELIHOOD_RATE if high else SCORE_RATE


@torch.no_grad()
def bits(flow: Flow, x: Tensor) -> Tensor:
    """Bits per dimension of every image."""
    nll = -torch.cat([flow.log_prob(part) for part in x.split(2_000)])
    return nll / (math.prod(flow.event_shape) * math.log(2))


def train(
    architecture: str, loss: str, data: tuple[Tensor, Tensor, float], options: argparse.Namespace
) -> Result:
    """Train one flow, and score it after every epoch."""
    x, test, upper = data
    held = max(1, len(x) // 30)
    torch.manual_seed(options.seed)
    flow = RECIPES[architecture](tuple(x.shape[1:]), lower=-0.5, upper=upper)
    curve: list[float] = []

    spent: list[float] = []
    begun = time.process_time()

    def score(flow: Flow, history: flowkit.History) -> bool:
        nonlocal begun
        spent.append(time.process_time() - begun)
        curve.append(float(bits(flow, x[-held:]).mean()))
        print(
            f"{architecture}, {loss}: epoch {len(curve)}, {sum(spent):.0f} s, "
            f"{curve[-1]:.4f} bits",
            flush=True,
        )
        begun = time.process_time()
        return False

    history = flowkit.fit(
        flow,
        x[:-held],
        objective(loss),
        validation=None,
        epochs=options.epochs or EPOCHS[architecture][loss],
        batch_size=100,
        lr=rate(architecture, loss),
        scheduler="cosine",
        ema=0.999,
        compile=False,
        seed=options.seed,
        progress=False,
        callbacks=[score],
    )
    final = bits(flow, test)
    return Result(
        architecture,
        loss,
        options.seed,
        *mean_and_error(final),
        history.steps[-1],
        spent,
        curve,
    )


def load(options: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    """Training and test images with uniform noise, and their upper end."""
    if options.small:
        parts = digits(seed=0)
        x, test, upper = parts.train, parts.test, 16.5
        x, test = x.reshape(-1, 1, 8, 8)[:300], test.reshape(-1, 1, 8, 8)[:100]
    else:
        x, test, upper = fashion_mnist("train"), fashion_mnist("test"), 255.5
    return dequantize(x, seed=0), dequantize(test, seed=1), upper


def seconds_to(result: Result, level: float) -> str:
    """Seconds of training after which the held-out images first reached a level."""
    total = 0.0
    for spent, reached in zip(result.seconds, result.curve, strict=True):
        total += spent
        if reached <= level:
            return f"{total:.0f}"
    return "-"


def page(study: Study, results: list[Result]) -> list[str]:
    """One row per training."""
    name = "Digits, a try-out" if study.options.small else "Fashion-MNIST"
    likelihoods = {(r.architecture, r.seed): r.bits for r in results if r.loss == "likelihood"}

    def row(r: Result) -> tuple[object, ...]:
        bound = BOUND * likelihoods.get((r.architecture, r.seed), math.nan)
        return (
            r.architecture,
            r.loss,
            "reached" if r.bits <= bound else "**not reached**",
            r.seed,
            len(r.curve),
            f"{r.bits:.3f} +- {r.error:.3f}",
            f"{bound:.3f}",
            f"{sum(r.seconds) / r.steps:.3f}",
            f"{sum(r.seconds):.0f}",
            seconds_to(r, bound),
        )

    return [
        *study.heading(
            "Five losses on images",
            f"{name}: flows of `dense_flow`, `conv_flow` and `glow_flow`, images with uniform "
            f"noise in (-0.5, 0.5), batches of 100, Adam from {LIKELIHOOD_RATE} for likelihoods "
            f"and {SCORE_RATE} for score matching ({LIKELIHOOD_RATE} for denoising with "
            "convolutions; cosine to zero), moving average of 0.999. Losses behind a logit: "
            f"noise {NOISE} in pairs, radius {RADIUS}, and for score matching {WEIGHT} times the "
            "mean energy. Bits per dimension are exact likelihoods of test images, with their "
            "standard error over images; the bound is the likelihood run's plus 3 %, and its time "
            "is that after which the held-out images first reached it, measured after every epoch "
            "with the weights of that step, which are no average. Seconds are those of one core.",
        ),
        *table(
            (
                "layers", "loss", "", "seed", "epochs", "bits / dim", "bound",
                "seconds per step", "seconds", "seconds to bound",
            ),
            map(row, results),
            left=3,
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"epochs": 1},
        architectures=tuple(EPOCHS),
        losses=LOSSES,
        epochs=int,
        seed=0,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    data = load(options)
    for architecture in options.architectures:
        for loss in options.losses:
            if records.lack(architecture=architecture, loss=loss, seed=options.seed):
                records.add(train(architecture, loss, data, options))
    study.write(page(study, records.results))
    return records.results


if __name__ == "__main__":
    main()
