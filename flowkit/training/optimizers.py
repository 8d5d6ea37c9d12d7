"""Choose the optimiser of a fit and the schedule of its learning rate."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.training.arguments import DEFAULT_LR, OPTIMIZER, SCHEDULER, Options
from flowkit.training.warn import warn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Steps over which the rate rises, and share of the steps over which it falls.
_WARMUP, _DECAY = 50, 2 / 7


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


class WarmupStableDecay(LRScheduler):
    """A rate that rises over the first steps, stays, and falls to zero along a line.

    It falls over the last two sevenths of the fit, or from where :meth:`anneal` is called.

    Args:
        optimizer: The optimiser.
        steps: Number of steps of the fit.

    Attributes:
        begin: Step from which the rate falls.
        length: Number of steps over which it falls.

    References:
        Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4, for the three phases.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = WarmupStableDecay(optimizer, 70)
        >>> [round(schedule.factor(t), 2) for t in (0, 6, 7, 50, 60, 70)]
        [0.12, 0.88, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self.warmup = min(_WARMUP, steps // 10)
        self.length = max(1, round(steps * _DECAY))
        self.begin = steps - self.length
        super().__init__(optimizer)

    def anneal(self, length: int) -> None:
        """Fall to zero over so many steps, from now on."""
        self.begin, self.length = self.last_epoch, length

    def factor(self, step: int) -> float:
        """Share of the rate after so many steps."""
        rising = (step + 1) / (self.warmup + 1) if step < self.warmup else 1.0
        return min(rising, max(0.0, 1 - max(0, step - self.begin) / self.length))

    def get_lr(self) -> list[Any]:
        """The rate of every group of parameters."""
        return [rate * self.factor(self.last_epoch) for rate in self.base_lrs]


def choose_scheduler(optimizer: Optimizer, options: Options, steps: int) -> LRScheduler | None:
    """Make the schedule of the learning rate, which is stepped by steps, or by losses.

    Args:
        optimizer: The optimiser.
        options: The options of the fit.
        steps: Number of steps.

    Raises:
        ArgumentError: If the function makes no scheduler.
    """
    scheduler = options.scheduler
    if scheduler == "plateau":
        return WarmupStableDecay(optimizer, steps)
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
