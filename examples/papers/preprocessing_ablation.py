"""Digits: score matching behind the preprocessing or before it, with and without averaging.

After table 4 of "Training Energy-Based Normalizing Flow with Score-Matching Objectives" (Chao et
al. 2023, arXiv 2305.15267). Two dense layers with a smooth leaky ReLU between learn the 8 x 8
digits of scikit-learn, counts of 0 to 16 with uniform noise, behind a logit. A loss is applied
behind the logit (match after preprocessing) or to the whole flow, and the weights are averaged
over steps (a decay of 0.999) or not. Scored by the exact likelihood of the test digits.

Run: ``python examples/papers/preprocessing_ablation.py`` (about ten minutes on one core);
``--small`` takes seconds.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import torch

import flowkit
from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    MaximumLikelihood,
    SlicedScoreMatching,
    dense_flow,
)
from flowkit.data import dequantize
from flowkit.datasets import digits

LOSSES = {
    "likelihood": MaximumLikelihood(),
    "sliced": SlicedScoreMatching(energy_weight=0.1),
    "denoising": DenoisingScoreMatching(noise=0.2, antithetic=True, energy_weight=0.1),
}


def train(loss: str, after: bool, ema: float | None, seed: int, steps: int) -> float:
    """Bits per dimension of the test digits."""
    parts = digits(seed=seed)
    rows = [dequantize(part, seed=3 * seed + i) for i, part in enumerate(parts[:3])]
    torch.manual_seed(seed)
    flow = dense_flow(64, lower=-0.5, upper=16.5)
    flowkit.fit(
        flow,
        rows[0],
        AfterPreprocessing(LOSSES[loss]) if after else LOSSES[loss],
        validation=rows[1],
        steps=steps,
        batch_size=100,
        lr=1e-3,
        ema=ema,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    with torch.no_grad():
        return float(-flow.log_prob(rows[2]).mean()) / (64 * math.log(2))


def main(arguments: list[str] | None = None) -> dict[tuple[str, bool, bool], list[float]]:
    """Train all, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--output", type=Path, help="folder for preprocessing_ablation.md")
    options = parser.parse_args(arguments)
    if options.small:
        options.seeds, options.steps = [0], 20
    torch.set_num_threads(1)
    results: dict[tuple[str, bool, bool], list[float]] = {}
    for loss in LOSSES:
        for after in (True, False):
            if loss == "denoising" and not after:
                continue
            for averaged in (True, False):
                runs = [
                    train(loss, after, 0.999 if averaged else None, seed, options.steps)
                    for seed in options.seeds
                ]
                results[loss, after, averaged] = runs
                print(loss, after, averaged, runs, flush=True)
    text = report(results, options)
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "preprocessing_ablation.md").write_text(text)
    return results


def report(results: dict[tuple[str, bool, bool], list[float]], options: argparse.Namespace) -> str:
    """One line a loss and place of it."""
    versions = ", ".join(f"{p} {version(p)}" for p in ("flowkit-density", "torch"))
    command = "python examples/papers/preprocessing_ablation.py"
    lines = [
        "# Where score matching is applied",
        "",
        f"`{command}{' --small' if options.small else ''}`: {versions}, Python "
        f"{platform.python_version()}, {platform.machine()}, one thread.",
        "",
        "Test bits per dimension of scikit-learn's digits (1,797 of 8 x 8 pixels, uniform noise), "
        f"mean over the seeds {', '.join(map(str, options.seeds))} of split, start and noise, and "
        f"the largest and smallest. {options.steps:,} steps of 100 rows, Adam from 1e-3 (cosine "
        "to zero), weights of the best epoch by the loss of the validation digits. Score matching "
        "with 0.1 times the mean energy; noise of 0.2 in pairs, in units of the logit. The "
        "whole flow has no denoising: noise leaves the interval of the data, where no score is.",
        "",
        "| loss | applied | averaged weights | last weights |",
        "|---|---|--:|--:|",
    ]
    for loss in LOSSES:
        for after, where in ((True, "behind the logit"), (False, "to the whole flow")):
            if (loss, after, True) not in results:
                lines.append(f"| {loss} | {where} | - | - |")
                continue
            cells = [
                f"{statistics.mean(runs):.3f} ({min(runs):.3f} to {max(runs):.3f})"
                for runs in (results[loss, after, True], results[loss, after, False])
            ]
            lines.append(f"| {loss} | {where} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
