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

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.objectives import Objective
from flowkit.training.checkpoint import prepare_path
from flowkit.training.history import History
from flowkit.training.optimizers import OPTIMIZER, SCHEDULER, Scheduler

Callback = Callable[[Flow, History], Any]
_EPOCHS = 100


@dataclass(frozen=True)
class Options:
    """The options of :func:`flowkit.fit`, by the same names."""

    epochs: int
    steps: int | None
    batch_size: int
    lr: float
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None
    scheduler: str | Scheduler | None
    clip: float | None
    patience: int | None
    ema: float | None
    compile: bool | str
    checkpoint: Path | None
    seed: int
    callbacks: tuple[Callback, ...]


def check_options(
    epochs: Any,
    steps: Any,
    batch_size: Any,
    lr: Any,
    optimizer: Any,
    scheduler: Any,
    clip: Any,
    patience: Any,
    ema: Any,
    compile: Any,
    checkpoint: Any,
    seed: Any,
    callbacks: Any,
) -> Options:
    """Check the options of a fit; the folder of a checkpoint is made.

    Raises:
        ArgumentError: If an option is of the wrong kind or out of its range.
        CheckpointError: If a checkpoint cannot be written.
    """

    def integer(name: str, value: Any, least: int = 1) -> int:
        return checks.integer("fit", name, value, least=least, most=2**63 - 1)

    if epochs is not None and steps is not None:
        raise ArgumentError(
            f"fit expected epochs or steps, got epochs={epochs!r} and steps={steps!r}; remedy: "
            "leave one of them out"
        )
    if optimizer is not None and (not callable(optimizer) or isinstance(optimizer, Optimizer)):
        expected = "a function from parameters to an optimizer"
        raise checks.fail("fit", "optimizer", expected, optimizer, OPTIMIZER)
    if scheduler not in (None, "cosine", "plateau") and not callable(scheduler):
        expected = "'cosine', 'plateau', None or a function"
        raise checks.fail("fit", "scheduler", expected, scheduler, SCHEDULER)
    if not isinstance(compile, bool) and compile != "auto":
        raise checks.fail("fit", "compile", "True, False or 'auto'", compile)
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(callable(callback) for callback in listed):
        expected = "a sequence of functions"
        raise checks.fail("fit", "callbacks", expected, callbacks, "callbacks=[function]")
    return Options(
        epochs=integer("epochs", _EPOCHS if epochs is None else epochs),
        steps=None if steps is None else integer("steps", steps),
        batch_size=integer("batch_size", batch_size),
        lr=checks.number("fit", "lr", lr, above=0),
        optimizer=optimizer,
        scheduler=scheduler,
        clip=None if clip is None else checks.number("fit", "clip", clip, above=0),
        patience=None if patience is None else integer("patience", patience),
        ema=None if ema is None else checks.number("fit", "ema", ema, above=0, below=1),
        compile=compile,
        checkpoint=None if checkpoint is None else _path(checkpoint),
        seed=integer("seed", seed, least=0),
        callbacks=listed,
    )


def _path(checkpoint: Any) -> Path:
    if not isinstance(checkpoint, (str, os.PathLike)) or os.path.isdir(checkpoint):
        expected = "the path of a file, not of a folder"
        raise checks.fail("fit", "checkpoint", expected, checkpoint, "checkpoint='fit.ckpt'")
    return prepare_path(checkpoint)


def check_parts(flow: Any, objective: Any, fabric: Any) -> None:
    """Check that flow, objective and Fabric can be trained, and with which precision.

    Raises:
        ArgumentError: If one of them cannot.
    """
    from lightning_fabric import Fabric

    recipe = "a recipe such as coupling_flow(2), or Flow(transform, base)"
    own = "an instance such as MaximumLikelihood(), or a subclass of Objective for your own loss"
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
