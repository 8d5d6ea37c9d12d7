"""Choose the optimiser of a fit and the schedule of its learning rate."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.training.arguments import DEFAULT_LR, OPTIMIZER, SCHEDULER, Options
from flowkit.training.warn import warn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def choose_optimizer(step: nn.Module, options: Options, fabric: Fabric) -> Optimizer:
    """Make Adam, or the optimiser that a function makes of the parameters.

    Args:
        step: Flow and objective.
        options: The options of the fit.
        fabric: Devices and precision.

    Raises:
        ArgumentError: If nothing is trained, or ``fit`` cannot step what the function makes.
    """
    lr, parameters = options.lr, [p for p in step.parameters() if p.requires_grad]
    if not parameters:
        raise ArgumentError("there is nothing to train: no parameter requires a gradient")
    scaled = fabric.strategy.precision.precision == "16-mixed"
    # A fused optimiser undoes the loss scaling itself, too late for clipping.
    if options.optimizer is None:
        fused = fabric.device.type in ("cpu", "cuda") and not scaled
        return torch.optim.Adam(parameters, lr=lr, fused=fused)
    chosen = options.optimizer(parameters)
    checks.instance("fit", "the result of optimizer", chosen, Optimizer, OPTIMIZER)
    name = type(chosen).__name__
    needed = required_arguments(chosen)
    if others := needed - {"closure"}:
        raise ArgumentError(
            f"fit steps optimizers without arguments or with a closure, but {name}.step needs "
            f"{', '.join(sorted(others))}; remedy: {OPTIMIZER}"
        )
    if scaled and needed:
        raise ArgumentError(
            f"{name} needs a closure, which the loss scaling of "
            "precision='16-mixed' does not allow; remedy: precision='32-true' or 'bf16-mixed'"
        )
    fused = getattr(chosen, "_step_supports_amp_scaling", False)
    if scaled and fused and options.clip is not None:
        raise ArgumentError(
            "a fused optimizer cannot clip gradients under precision='16-mixed'; remedy: "
            "fused=False, clip=None, or precision='bf16-mixed'"
        )
    if lr != DEFAULT_LR:
        warn(
            f"lr={lr:g} is that of the default optimizer: the {name} given does not see it; "
            f"remedy: lambda p: torch.optim.AdamW(p, lr={lr:g}), or no lr"
        )
    return chosen


def required_arguments(stepped: Any) -> set[str]:
    """Names of the arguments that ``step`` of an optimiser or a schedule cannot do without.

    Example:
        >>> import torch
        >>> from flowkit.training.optimizers import required_arguments
        >>> w = [torch.nn.Parameter(torch.zeros(1))]
        >>> required_arguments(torch.optim.LBFGS(w)), required_arguments(torch.optim.SGD(w, lr=1))
        ({'closure'}, set())
    """
    return {
        name
        for name, parameter in inspect.signature(stepped.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def choose_scheduler(optimizer: Optimizer, options: Options, steps: int) -> LRScheduler | None:
    """Make the schedule of the learning rate, which is stepped by steps or by losses of epochs.

    Args:
        optimizer: The optimiser.
        options: The options of the fit.
        steps: Number of steps.

    Raises:
        ArgumentError: If the function makes no scheduler.
    """
    scheduler, patience = options.scheduler, options.patience
    if scheduler == "plateau":
        epochs = max(1, (patience or 20) // 2)
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=epochs)
    if scheduler == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if not callable(scheduler):
        return None
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
    return made
