"""Choose a density for a table: candidates are compared on held-out samples, and averaged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flowkit.estimators.candidates import (
    Candidate,
    Fitted,
    Samples,
    Setting,
    candidates,
    check_inside,
    for_outliers,
)
from flowkit.estimators.splits import splits
from flowkit.estimators.stacking import stack
from flowkit.flow import Flow
from flowkit.mixture import FlowMixture
from flowkit.training import History
from flowkit.training.output import output

#: Splits, by the number of samples up to which there are so many; one beyond.
_SPLITS = ((500, 3), (2_000, 2))


@dataclass(repr=False)
class Comparison:
    """How candidates compare on samples that were held out to choose among them.

    The scores chose the weights: as an estimate of what new samples will score they are too high.

    Attributes:
        names: Names of the candidates.
        scores: Mean log-density of the held-out samples, in nats.
        errors: Standard error of the difference to the best one.
        weights: Weights in the mixture that was chosen; 0 for those left out.
        splits: Number of splits.
        samples: Number of held-out samples, in all splits together.
    """

    names: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    splits: int = 0
    samples: int = 0

    def __repr__(self) -> str:
        best = max(self.scores, default=0.0)
        lines = [
            f"Comparison on {self.samples:,} held-out samples, {self.splits} split(s)",
            f"  {'candidate':<20} {'log-density':>11} {'behind':>16} {'weight':>7}",
        ]
        order = sorted(range(len(self.names)), key=lambda k: -self.scores[k])
        for k in order:
            behind = f"{best - self.scores[k]:.3f} +- {self.errors[k]:.3f}"
            lines.append(
                f"  {self.names[k]:<20} {self.scores[k]:>11.3f} {behind:>16} "
                f"{self.weights[k]:>7.3f}"
            )
        return "\n".join(lines)


@dataclass
class Choice:
    """What was chosen.

    Attributes:
        flow: The density.
        comparison: How the candidates compared.
        history: Of the heaviest flow that was trained; empty if none is in the mixture.
    """

    flow: FlowMixture
    comparison: Comparison
    history: History


def choose(
    samples: Samples,
    rows: np.ndarray,
    groups: np.ndarray | None,
    setting: Setting,
    validation: float,
    *,
    verbose: bool = False,
) -> Choice:
    """Fit all candidates to parts of the samples, and mix those that the other parts prefer.

    One part in n + 1 of the mixture, for n samples, is a Student-t density: a sample far from all
    others, where a flow may be wrong by thousands of nats, then costs about as many as it is
    unusual, and all others 1 / n.

    Args:
        samples: All samples.
        rows: The same, ``(samples, columns)``, as they tell copies from each other.
        groups: Samples of the same group are held out together; ``None`` for no groups, where
            equal rows are.
        setting: What the fits need.
        validation: Fraction held out in each split.
        verbose: Whether to show how the candidates compare.

    Raises:
        OutsideError: If samples are outside the ends.
    """
    check_inside(samples, setting)
    kinds = [*candidates(*samples.x.shape), for_outliers(samples.x.shape[1])]
    fitted: list[list[Fitted]] = [[] for _ in kinds]
    tables, weights = [], []
    wanted = next((number for most, number in _SPLITS if len(samples.x) <= most), 1)
    parts = splits("FlowDensity", rows, groups, setting.seed, validation, wanted)
    for train_index, held_index in parts:
        train, held = samples.at(train_index), samples.at(held_index)
        columns = []
        for kind, made in zip(kinds, fitted, strict=True):
            made.append(kind.fit(train, held, setting, made[0] if made else None))
            columns.append(held.log_density(made[-1].flow))
        tables.append(np.stack(columns, 1))
        weights.append(np.ones(len(held.x)) if held.weight is None else held.weight.numpy())
    table, weight = np.concatenate(tables), np.concatenate(weights)
    share = 1 / (1 + _effective(samples))
    chosen = np.append((1 - share) * stack(table[:, :-1], weight), share)
    comparison = _compare(kinds, table, weight, chosen, len(parts))
    output(shows=verbose).say(str(comparison))
    trained = [k for k in np.argsort(-chosen) if chosen[k] > 0 and fitted[k][0].history]
    history = fitted[trained[0]][0].history if trained else None
    flow = _mix(kinds, fitted, chosen, samples, setting)
    return Choice(flow, comparison, history or History())


def _effective(samples: Samples) -> float:
    """The number of samples of equal weight that tell as much."""
    if samples.weight is None:
        return float(len(samples.x))
    w = samples.weight.double()
    return float(w.sum() ** 2 / (w * w).sum())


def _mix(
    kinds: list[Candidate],
    fitted: list[list[Fitted]],
    chosen: np.ndarray,
    samples: Samples,
    setting: Setting,
) -> FlowMixture:
    """The mixture of what was chosen."""
    flows: list[Flow] = []
    shares: list[float] = []
    for kind, made, share in zip(kinds, fitted, chosen, strict=True):
        if share > 0:
            each = [kind.fit(samples, samples, setting, made[0])] if kind.refits else made
            flows += [one.flow for one in each]
            shares += [share / len(each)] * len(each)
    return FlowMixture(flows, weights=shares)


def _compare(
    kinds: list[Candidate], table: np.ndarray, weight: np.ndarray, chosen: np.ndarray, splits: int
) -> Comparison:
    v = weight / weight.sum()
    scores = v @ table
    behind = table[:, [int(scores.argmax())]] - table
    with np.errstate(invalid="ignore"):
        spread = np.sqrt((v * v) @ (behind - v @ behind) ** 2)
    return Comparison(
        [kind.name for kind in kinds], scores.tolist(), np.nan_to_num(spread).tolist(),
        chosen.tolist(), splits, len(table),
    )  # fmt: skip
