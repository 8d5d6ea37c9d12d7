"""Density estimation in the manner of scikit-learn."""

from __future__ import annotations

import contextlib
import io
from typing import Any
from unittest import mock

import numpy as np
import torch

from flowkit.estimators import FlowDensity
from flowkit.estimators.rounded import DequantizedLikelihood

from .harness import differs, draws, falls, of, rises, same, shows
from .parts import message, plain, quietly, rows

TABLE = rows(64, 2).double().exp().numpy()
ROUNDED = np.round(2 * TABLE)
QUICK: dict[str, Any] = {
    "recipe": "coupling_flow",
    "options": {"layers": 1, "hidden": (8,), "start": "standardize"},
    "epochs": 4,
    "batch_size": 16,
    "lr": 3e-2,
    "random_state": 0,
}

CHOICES = {"layers": 2}, {"layers": 2, "hidden": (8,)}, {"start": None}


def fitted(x: Any = TABLE, fit: Any = None, **options: Any) -> FlowDensity:
    """A quick fit."""
    return FlowDensity(**{**QUICK, **options}).fit(x, **(fit or {}))


def scored(**options: Any) -> Any:
    """Log-densities after a quick fit."""
    return fitted(**options).score_samples(TABLE[:5])


def losses(**options: Any) -> Any:
    """The record of a quick fit."""
    history = fitted(**options).history_
    return history.train, history.validation


def steps(**options: Any) -> float:
    return float(fitted(**options).history_.steps[-1])


def records(**options: Any) -> float:
    return float(len(fitted(**options).history_.train))


def gain(**options: Any) -> float:
    """How much the loss fell."""
    first, *_, last = fitted(**{"epochs": 4, **options}).history_.train
    return first - last


def written(**options: Any) -> bool:
    """Whether a fit writes to the terminal."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        fitted(**options)
    return bool(text.getvalue())


def compiled(**options: Any) -> Any:
    """Log-densities, and how often the step was compiled; the compiler itself is left out."""
    with (
        mock.patch("flowkit.training.setup.can_compile", return_value=True),
        mock.patch("torch.compile", side_effect=lambda module: module) as compiler,
    ):
        return scored(**options), compiler.call_count


of(
    FlowDensity,
    scored,
    recipe=differs(
        "autoregressive_flow",
        "elementwise_flow",
        using={"options": None, "epochs": 1, "validation": None},
    ),
    options=differs(*CHOICES, using={"epochs": 2, "validation": None}),
    epochs=rises(3, 4, base=2, see=records),
    steps=rises(6, 7, base=5, using={"epochs": None}, see=steps),
    batch_size=falls(20, 30, base=8, see=steps),
    lr=rises(1e-2, 1e-1, base=1e-4, see=gain),
    validation=differs(0.3, 0.5, see=losses),
    patience=rises(2, 4, base=1, using={"epochs": 99, "lr": 0.5, "validation": 0.5}, see=steps),
    dequantize=differs(1.0, (1.0, 0.0), see=quietly(lambda **o: losses(x=ROUNDED, **o))),
    random_state=differs(1, 2, base=0),
    verbose=(same("it shows in what is written", True), shows(bool, True, see=written)),
    # The only one at hand is the CPU; what another name says shows that it is read.
    device=differs("nowhere", see=lambda **o: message(lambda: fitted(**o))),
    compile=(
        same("a short fit does not pay", False, "auto", base=False, see=compiled),
        shows(lambda seen: seen[1] == 1, True, base=False, see=compiled),
    ),
)
weights = np.linspace(0.1, 3.0, len(TABLE))
model = fitted()
of(
    FlowDensity.fit,
    lambda **o: scored(fit=o),
    y=same("taken for pipelines, not read", np.ones(len(TABLE))),
    sample_weight=differs(weights, weights[::-1].copy()),
    groups=differs(np.arange(64) // 4, np.arange(64) % 4),
)
of(
    FlowDensity.score,
    lambda **o: model.score(TABLE, **o),
    y=same("taken for pipelines, not read", np.ones(len(TABLE))),
)
of(
    FlowDensity.sample,
    lambda **o: model.sample(**o),
    n_samples=rises(
        2, 3, base=1, using={"random_state": 0}, see=lambda **o: float(len(model.sample(**o)))
    ),
    random_state=differs(1, 2, base=0),
)

wide = DequantizedLikelihood(torch.ones(2))
batch = {"x": torch.from_numpy(ROUNDED).float()}
of(
    DequantizedLikelihood.forward,
    lambda **o: wide(plain(), batch, **o).value,
    generator=draws(),
    progress=same("there is no schedule", 0.3),
)
of(DequantizedLikelihood.start, lambda **o: wide.start(batch, **o), generator=draws())
of(
    FlowDensity.from_flow,
    lambda **o: FlowDensity.from_flow(plain(), **o).sample(3, random_state=0),
    width=differs(1.0, (1.0, 0.0)),
)
