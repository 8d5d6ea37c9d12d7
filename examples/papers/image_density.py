"""Five losses on images: Fashion-MNIST, by dense layers and by convolutions.

After table 2 of "Training Energy-Based Normalizing Flow with Score-Matching Objectives" (Chao et
al. 2023, arXiv 2305.15267), whose MNIST cannot be had without a download: the same flow, two dense
layers with a smooth leaky ReLU between, or six 7 x 7 convolutions on three scales, is trained by
likelihood, stochastic likelihood, and sliced, denoising and finite-difference score matching, for
the same number of epochs. Scored by the exact negative log-likelihood of the test images in bits
per dimension, and by seconds.

Pixels with uniform noise, in (0, 256), go through a logit and are standardised; losses are
applied behind that. Needs the Debian package dataset-fashion-mnist.

Run: ``python examples/papers/image_density.py`` (hours on one core); ``--small`` takes a minute,
on the digits of scikit-learn where Fashion-MNIST is missing. With ``--record FILE`` each result is
kept there, and a later run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import flowkit
from flowkit import AfterPreprocessing, Flow, MaximumLikelihood, ScoreMatching
from flowkit import StochasticMaximumLikelihood, energy_based_flow
from flowkit.datasets import dequantize, digits, fashion_mnist
from flowkit.errors import MissingDependencyError
from flowkit.objectives import Objective

LOSSES = ("likelihood", "stochastic likelihood", "sliced", "denoising", "finite-difference")
#: Noise and radius, in standard deviations of a pixel behind the preprocessing.
NOISE = {"dense": 0.3, "conv": 0.3}


@dataclass
class Result:
    """One training: bits per dimension of test images, after each epoch and at the end."""

    architecture: str
    loss: str
    bits: float
    error: float
    step: float
    seconds: list[float]
    curve: list[float]


def objective(loss: str, noise: float) -> Objective:
    """A loss, behind the layers that have nothing to learn."""
    inner: Objective
    if loss == "likelihood":
        inner = MaximumLikelihood()
    elif loss == "stochastic likelihood":
        inner = StochasticMaximumLikelihood()
    elif loss == "sliced":
        inner = ScoreMatching("sliced")
    elif loss == "denoising":
        inner = ScoreMatching("denoising", noise=noise)
    else:
        inner = ScoreMatching("finite-difference", radius=noise)
    return AfterPreprocessing(inner)


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
    torch.manual_seed(options.seed)
    flow = energy_based_flow(tuple(x.shape[1:]), architecture, bounds=(0.0, upper))
    curve: list[float] = []

    def score(flow: Flow, history: flowkit.History) -> bool:
        curve.append(float(bits(flow, test).mean()))
        print(architecture, loss, len(curve), f"{sum(history.seconds):.0f} s", f"{curve[-1]:.4f}")
        return False

    history = flowkit.fit(
        flow,
        x,
        objective(loss, options.noise or NOISE[architecture]),
        validation=None,
        epochs=options.epochs,
        batch_size=100,
        lr=options.lr,
        ema=0.999,
        compile=False,
        seed=options.seed,
        progress=False,
        callbacks=[score],
    )
    final = bits(flow, test)
    error = float(final.std()) / math.sqrt(len(test))
    step = sum(history.seconds) / history.steps[-1]
    return Result(
        architecture, loss, float(final.mean()), error, step, list(history.seconds), curve
    )


def load(options: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    """Training and test images with uniform noise, and their upper end."""
    try:
        x, test, upper = fashion_mnist("train"), fashion_mnist("test"), 256.0
    except MissingDependencyError:
        if not options.small:
            raise
        parts = digits()
        x, test, upper = (p.reshape(-1, 1, 8, 8) for p in parts[:2]), None, 17.0
    if options.small:
        x, test = x[:400, :, 10:18, 10:18], test[:200, :, 10:18, 10:18]
    return dequantize(x, seed=0), dequantize(test, seed=1), upper


if __name__ == "__main__":
    torch.set_num_threads(1)
    p = argparse.ArgumentParser()
    p.add_argument("--architecture", default="dense")
    p.add_argument("--loss", default="denoising")
    p.add_argument("--noise", type=float)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--small", action="store_true")
    o = p.parse_args()
    print(o)
    r = train(o.architecture, o.loss, load(o), o)
    print(r.bits, r.error, r.step)
