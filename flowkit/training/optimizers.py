"""Choose the optimiser of a fit and the schedule of its learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.training.warn import warn

DEFAULT_LR = 1e-3
Scheduler = Callable[[Optimizer, int], LRScheduler]
OPTIMIZER = "lambda p: torch.optim.AdamW(p, lr=1e-3)"
SCHEDULER = "lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)"


def choose_optimizer(
    module: nn.Module,
    lr: float,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    *,
    device: torch.device,
    scaled: bool,
    clip: bool,
) -> Optimizer:
    """Make Adam, or the optimiser that a function makes of the parameters.

    Args:
        module: Flow and objective.
        lr: Learning rate of Adam.
        optimizer: The function.
        device: Where the parameters are.
        scaled: Whether losses are scaled, by ``precision="16-mixed"``.
        clip: Whether gradients are clipped.

    Raises:
        ArgumentError: If nothing is trained, or ``fit`` cannot step what the function makes.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ArgumentError("there is nothing to train: no parameter requires a gradient")
    # A fused optimiser undoes the loss scaling itself, too late for clipping.
    if optimizer is None:
        fused = device.type in ("cpu", "cuda") and not scaled
        return torch.optim.Adam(parameters, lr=lr, fused=fused)
    chosen = optimizer(parameters)
    checks.instance("fit", "the result of optimizer", chosen, Optimizer, OPTIMIZER)
    others = _required(chosen) - {"closure"}
    if others:
        raise ArgumentError(
            f"fit steps optimizers without arguments or with a closure, but "
            f"{type(chosen).__name__}.step needs {', '.join(sorted(others))}; remedy: {OPTIMIZER}"
        )
    if scaled and needs_closure(chosen):
        raise ArgumentError(
            f"{type(chosen).__name__} needs a closure, which the loss scaling of "
            "precision='16-mixed' does not allow; remedy: precision='32-true' or 'bf16-mixed'"
        )
    if scaled and clip and getattr(chosen, "_step_supports_amp_scaling", False):
        raise ArgumentError(
            "a fused optimizer cannot clip gradients under precision='16-mixed'; remedy: "
            "fused=False, clip=None, or precision='bf16-mixed'"
        )
    if lr != DEFAULT_LR:
        warn(
            f"lr={lr:g} is that of the default optimizer: the {type(chosen).__name__} given does "
            f"not see it; remedy: lambda p: torch.optim.AdamW(p, lr={lr:g}), or no lr"
        )
    return chosen


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether a step evaluates the loss itself, as that of L-BFGS.

    Example:
        >>> import torch
        >>> from flowkit.training.optimizers import needs_closure
        >>> w = [torch.nn.Parameter(torch.zeros(1))]
        >>> needs_closure(torch.optim.LBFGS(w)), needs_closure(torch.optim.SGD(w, lr=0.1))
        (True, False)
    """
    return "closure" in _required(optimizer)


def _required(stepped: Any) -> set[str]:
    """Names of the arguments without which ``step`` cannot be called."""
    return {
        name
        for name, parameter in inspect.signature(stepped.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def choose_scheduler(
    optimizer: Optimizer, scheduler: str | Scheduler | None, steps: int, patience: int | None
) -> tuple[LRScheduler | None, Any]:
    """The schedule after every step, and the one after every epoch, by its loss; at most one.

    Args:
        optimizer: The optimiser.
        scheduler: ``"cosine"``, ``"plateau"``, ``None``, or a function from optimiser and number
            of steps to a scheduler.
        steps: Number of steps.
        patience: Epochs without improvement until the fit stops.

    Raises:
        ArgumentError: If the function makes no scheduler.
    """
    if scheduler == "plateau":
        return None, ReduceLROnPlateau(
            optimizer, factor=0.1, patience=max(1, (patience or 20) // 2)
        )
    if scheduler == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps), None
    if not callable(scheduler):
        return None, None
    try:
        made = scheduler(optimizer, steps)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"the scheduler could not be made of an optimizer and the number of steps ({error}); "
            f"remedy: {SCHEDULER}, or lambda optimizer, steps: ReduceLROnPlateau(optimizer)"
        ) from error
    checks.instance("fit", "the result of scheduler", made, LRScheduler, SCHEDULER)
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise ArgumentError(
            "fit expected a scheduler of the optimizer that it was given, got one of another; "
            f"remedy: {SCHEDULER}"
        )
    return (None, made) if _required(made) else (made, None)
