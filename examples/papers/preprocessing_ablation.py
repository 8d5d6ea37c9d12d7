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

import math
import statistics
from dataclasses import dataclass

import torch
from harness import Records, Study, table

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


@dataclass
class Result:
    """Bits per dimension of the test digits."""

    loss: str
    after: bool
    averaged: bool
    seed: int
    bits: float


def train(loss: str, after: bool, averaged: bool, seed: int, steps: int) -> Result:
    """Train one flow, and score it."""
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
        scheduler="cosine",
        ema=0.999 if averaged else None,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    with torch.no_grad():
        bits = float(-flow.log_prob(rows[2]).mean()) / (64 * math.log(2))
    return Result(loss, after, averaged, seed, bits)


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train and score all."""
    study = Study(
        __file__, __doc__, small={"seeds": [0], "steps": 20}, seeds=[0, 1, 2], steps=3000
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    for loss in LOSSES:
        for after in (True, False):
            if loss == "denoising" and not after:
                continue
            for averaged in (True, False):
                for seed in options.seeds:
                    if records.lack(loss=loss, after=after, averaged=averaged, seed=seed):
                        records.add(train(loss, after, averaged, seed, options.steps))
    study.write(page(study, records.results))
    return records.results


def page(study: Study, results: list[Result]) -> list[str]:
    """One row per loss and place of it."""
    options = study.options

    def cell(loss: str, after: bool, averaged: bool) -> str:
        key = (loss, after, averaged)
        bits = [r.bits for r in results if (r.loss, r.after, r.averaged) == key]
        return f"{statistics.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})" if bits else "-"

    return [
        *study.heading(
            "Where score matching is applied",
            "Test bits per dimension of scikit-learn's digits (1,797 of 8 x 8 pixels, uniform "
            f"noise), mean over the seeds {', '.join(map(str, options.seeds))} of split, start "
            f"and noise, and the largest and smallest. {options.steps:,} steps of 100 samples, "
            "Adam from 1e-3 (cosine to zero), weights of the best epoch by the loss of the "
            "validation digits. Score matching with 0.1 times the mean energy; noise of 0.2 in "
            "pairs, in units of the logit. The whole flow has no denoising: noise leaves the "
            "interval of the data, where no score is.",
        ),
        *table(
            ("loss", "applied", "averaged weights", "last weights"),
            (
                (loss, where, cell(loss, after, True), cell(loss, after, False))
                for loss in LOSSES
                for after, where in ((True, "behind the logit"), (False, "to the whole flow"))
            ),
            left=2,
        ),
    ]


if __name__ == "__main__":
    main()
