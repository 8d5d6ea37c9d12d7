"""The arguments of a fit, checked before anything is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.mixture import FlowMixture
from flowkit.objectives import Objective
from flowkit.training.history import History

DEFAULT_LR = 2e-3
OPTIMIZER = "lambda p: torch.optim.AdamW(p, lr=1e-3)"
DEFAULT_EMA = 0.99
SCHEDULER = "lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)"

Callback = Callable[[Flow, History], Any]
Optimize = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Callable[[Optimizer, int], LRScheduler]


@dataclass
class Options:
    """The options of :func:`flowkit.fit`, by the same names, checked.

    Raises:
        ArgumentError: If an option is of the wrong kind or out of its range.
    """

    epochs: int | None
    steps: int | None
    batch_size: int | None
    lr: float
    optimizer: Optimize | None
    scheduler: str | Schedule | None
    clip: float | None
    patience: int | None
    ema: float | str | None
    compile: bool | str
    checkpoint: Any
    seed: int
    callbacks: Iterable[Callback]

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "patience", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if value is not None or name == "seed":
                value = checks.integer("fit", name, value, least=least, most=2**63 - 1)
                setattr(self, name, value)
        if None not in (self.epochs, self.steps):
            raise ArgumentError(
                f"fit expected epochs or steps, got epochs={self.epochs} and steps={self.steps}; "
                "remedy: leave one of them out"
            )
        self.lr = checks.number("fit", "lr", self.lr, above=0)
        for name, below in (("clip", None), ("ema", 1)):
            value = getattr(self, name)
            if value is not None and (name, value) != ("ema", "auto"):
                setattr(self, name, checks.number("fit", name, value, above=0, below=below))
        make = self.optimizer
        if make is not None and (isinstance(make, Optimizer) or not callable(make)):
            raise self._fail("optimizer", "a function from parameters to an optimizer", OPTIMIZER)
        if self.scheduler not in (None, "cosine", "plateau") and not callable(self.scheduler):
            raise self._fail("scheduler", "'cosine', 'plateau', None or a function", SCHEDULER)
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise self._fail("compile", "True, False or 'auto'")
        listed = tuple(self.callbacks) if isinstance(self.callbacks, Iterable) else (None,)
        if not all(map(callable, listed)):
            raise self._fail("callbacks", "a sequence of functions", "callbacks=[function]")
        self.callbacks = listed
        if (path := self.checkpoint) is not None:
            if not isinstance(path, (str, os.PathLike)) or os.path.isdir(path):
                remedy = "checkpoint='fit.ckpt'"
                raise self._fail("checkpoint", "the path of a file, not of a folder", remedy)
            self.checkpoint = Path(path)

    def _fail(self, name: str, expected: str, remedy: str = "") -> ArgumentError:
        return checks.fail("fit", name, expected, getattr(self, name), remedy)


def check_parts(flow: Any, objective: Any, fabric: Any) -> None:
    """Check that flow, objective and Fabric can be trained, and with which precision.

    Raises:
        ArgumentError: If one of them cannot.
    """
    from lightning_fabric import Fabric

    recipe = "a recipe such as coupling_flow(2), or Flow(transform, base)"
    own = "an instance such as MaximumLikelihood(), or a subclass of Objective for your own loss"
    if isinstance(flow, FlowMixture):
        recipe = "fit its flows one by one, then FlowMixture(flows, weights)"
    checks.instance("fit", "flow", flow, Flow, recipe)
    checks.instance("fit", "objective", objective, Objective, own)
    checks.instance("fit", "fabric", fabric, Fabric, "Fabric(accelerator='cpu', devices=1)")
    for part, name in ((flow, "flow"), (objective, "objective")):
        if any(tensor.is_inference() for tensor in part.state_dict(keep_vars=True).values()):
            raise ArgumentError(
                f"fit cannot train what was made in torch.inference_mode(), as this {name}; "
                f"remedy: make it outside, or under torch.no_grad()"
            )
    # Two or three digits are too few for data, log-densities and weights.
    precision = fabric.strategy.precision.precision
    if precision in ("16-true", "bf16-true") or flow.dtype in (torch.float16, torch.bfloat16):
        raise ArgumentError(
            "fit expected to train in float32 or float64, got a flow in "
            f"{flow.dtype} and a Fabric with precision={precision!r}: two or three digits are too "
            "few for data and log-densities; remedy: flow.float(), and precision='bf16-mixed' or "
            "'32-true'"
        )
