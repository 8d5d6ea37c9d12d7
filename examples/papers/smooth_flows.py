"""Smooth flows against spline flows on a torus: the same likelihood, other forces.

The experiment of "Smooth Normalizing Flows" (arXiv 2110.00351) on a torus: four coupling layers
of 40 components, networks of 100 units with SiLU, batches of 1000 of 100,000 points, 8,000 steps
of Adam from 5e-4. The density is ``torus_rings``, the potential of the paper with cosines, whose
forces are known exactly. Splines and smooth mixtures share everything but the scalar map. Each is
trained by likelihood alone, and by likelihood and force matching together.

Run: ``python examples/papers/smooth_flows.py`` (about two hours on one core); ``--small`` takes
seconds.
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
from flowkit.toys import TorusRings

TEST_SEED = 1_000_003
#: Weight of the force term beside a nat of likelihood; forces are in 1/rad.
FORCE_WEIGHT = 0.01


@dataclass
class Result:
    """Scores of one flow on test points; errors are standard errors over them."""

    scalar: str
    matched: bool
    seed: int
    nll: float
    nll_error: float
    rmse: float
    seconds: float


def force_error(flow: flowkit.Flow, x: Tensor, exact: Tensor) -> float:
    """Root mean squared error of a component of the force, in 1/rad."""
    with torch.no_grad():
        parts = [
            (flow.score(part) - truth).square().sum()
            for part, truth in zip(x.split(10_000), exact.split(10_000), strict=True)
        ]
    return math.sqrt(float(sum(parts)) / exact.numel())


def train(scalar: str, matched: bool, seed: int, options: argparse.Namespace) -> Result:
    """Train one flow from scratch and score it."""
    toy = TorusRings()
    torch.manual_seed(seed)
    flow = flowkit.smooth_flow(
        2,
        circular=True,
        scalar=scalar,
        components=options.components,
        hidden=(options.hidden, options.hidden),
        seed=seed,
    )
    x = toy.sample(options.rows, torch.Generator().manual_seed(seed))
    objective: flowkit.MaximumLikelihood | flowkit.WeightedSum = flowkit.MaximumLikelihood()
    data = {"x": x}
    if matched:
        data["force"] = toy.score(x)
        objective = flowkit.WeightedSum(
            (1.0, flowkit.MaximumLikelihood()), (FORCE_WEIGHT, flowkit.ForceMatching())
        )
    begun = time.process_time()
    flowkit.fit(
        flow,
        data,
        objective,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=5e-4,
        scheduler="cosine",
        ema=None,
        patience=None,
        compile=False,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - begun
    test = toy.sample(options.test_rows, torch.Generator().manual_seed(TEST_SEED + seed))
    with torch.no_grad():
        nll = -torch.cat([flow.log_prob(part) for part in test.split(10_000)])
    rmse = force_error(flow, test, toy.score(test))
    return Result(scalar, matched, seed, *mean_and_error(nll), rmse, seconds)


def page(study: Study, results: list[Result]) -> list[str]:
    """The table, and its ratios."""
    toy, options = TorusRings(), study.options
    found = {(r.scalar, r.matched, r.seed): r for r in results}

    def ratios(seed: int) -> tuple[object, ...]:
        plain = [found[s, False, seed] for s in ("smooth", "spline")]
        matched = [found[s, True, seed] for s in ("smooth", "spline")]
        return (
            seed,
            f"{plain[0].nll - plain[1].nll:+.4f}",
            f"{plain[0].rmse / plain[1].rmse:.3f}",
            *(f"{m.rmse / p.rmse:.3f}" for m, p in zip(matched, plain, strict=True)),
        )

    return [
        *study.heading(
            "Smooth flows and spline flows on a torus",
            f"`TorusRings`, entropy {toy.entropy():.4f} nats. Four coupling layers, "
            f"{options.components} components or bins, networks 2 x {options.hidden}, "
            f"{options.steps:,} steps of Adam from 5e-4 (cosine to zero) with "
            f"{options.batch_size} of {options.rows:,} points, a tenth of them for validation. "
            f"Scores on {options.test_rows:,} other points. Force error: root mean square of a "
            "component of grad log p against the exact one, in 1/rad. Force matching adds "
            f"{FORCE_WEIGHT} times the mean squared force error to the negative log-likelihood.",
        ),
        *table(
            (
                "scalar map", "training", "seed", "NLL, nats", "above entropy", "force error",
                "seconds",
            ),
            (
                (
                    r.scalar,
                    "likelihood and forces" if r.matched else "likelihood",
                    r.seed,
                    f"{r.nll:.4f} +- {r.nll_error:.4f}",
                    f"{r.nll - toy.entropy():+.4f}",
                    f"{r.rmse:.3f}",
                    f"{r.seconds:.0f}",
                )
                for r in results
            ),
            left=2,
        ),
        *table(
            (
                "seed", "NLL, smooth - spline", "force error, smooth / spline",
                "with forces / without, smooth", "with forces / without, spline",
            ),
            map(ratios, options.seeds),
            left=0,
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> list[Result]:
    """Train and score all."""
    small = {"seeds": [0], "steps": 20, "rows": 4000, "test_rows": 2000, "batch_size": 200}
    study = Study(
        __file__,
        __doc__,
        small={**small, "components": 6, "hidden": 16},
        seeds=[0, 1, 2],
        steps=8000,
        rows=100_000,
        batch_size=1000,
        components=40,
        hidden=100,
        test_rows=50_000,
    )
    options = study.parse(arguments)
    records = Records(options.record, Result)
    for seed in options.seeds:
        for scalar in ("smooth", "spline"):
            for matched in (False, True):
                if records.lack(scalar=scalar, matched=matched, seed=seed):
                    records.add(train(scalar, matched, seed, options))
    results = sorted(records, key=lambda r: (r.seed, r.scalar, r.matched))
    study.write(page(study, results))
    return results


if __name__ == "__main__":
    main()
