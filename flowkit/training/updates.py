"""Steps of the optimiser, with gradients that are clipped and losses that are finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flowkit.errors import NonFiniteLossError
from flowkit.objectives import Loss
from flowkit.training.history import Progress
from flowkit.training.nonfinite import Suspects
from flowkit.training.setup import Plan
from flowkit.training.step import StepInput
from flowkit.training.suitability import Reading

_STEPS_UNCHECKED = 20

# Samples, with their numbers in the data if there are any.
Numbered = tuple[Tensor | None, dict[str, Tensor]]


class Updates:
    """Steps of a fit; each changes the weights.

    Reading a loss waits for an accelerator, so that there a bad one is found some steps late: its
    step and data are named exactly, parameters and layers as they are when it is found.

    Args:
        plan: The fit.
        progress: What is done of it.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.reading = Reading(
            plan.step.objective,
            weighted=plan.train is not None and plan.train.weighted,
            off=plan.random.compiled or progress.done > 0,
        )
        self.waits = True
        self.unchecked: list[tuple[int, Tensor, Tensor | None]] = []
        self.norms: list[tuple[int, Tensor]] = []
        # Loss scaling leaves out steps that are not finite, and goes on with another scale.
        self.scaled = getattr(plan.fabric.strategy.precision, "scaler", None) is not None

    def due(self) -> bool:
        """Whether to wait for the device in the next step, and check what is not checked yet."""
        on_cpu = self.plan.fabric.device.type == "cpu"
        return on_cpu or len(self.unchecked) + 1 >= _STEPS_UNCHECKED

    def step(self, batches: Iterator[Numbered]) -> Loss:
        """Do one step on the next batch, given with the numbers of its samples.

        Raises:
            NonFiniteLossError: If the loss or its gradient is not finite.
        """
        plan, progress, random = self.plan, self.progress, self.plan.random
        self.waits = self.due()
        with self._together(), random.of_reading(plan.train):
            index, batch = next(batches)
        losses: list[Loss] = []

        def evaluate() -> Tensor:
            """Loss and gradients at the present weights."""
            part = progress.done / progress.total
            given = StepInput(self.reading.watched(batch), random.generator, part)
            if random.compiled:
                given = StepInput(batch, None, torch.tensor(part, dtype=torch.float64))
            if plan.by_closure:
                random.begin_step(len(progress.history.steps), progress.done)
            with self._together():
                with random.of_step():
                    loss = plan.model(given)
                value = loss.value.detach()
                self.unchecked.append((progress.done + 1, value, index))
                if self.waits:
                    self.check()
            losses.append(loss)
            plan.optimizer.zero_grad(set_to_none=True)
            plan.fabric.backward(loss.value)
            self.clip(Suspects(plan.step, batch, index))
            return plan.processes.mean(value) if plan.by_closure else value

        if not plan.by_closure:
            evaluate()
        with random.of_optimizer():
            plan.optimizer.step(*([evaluate] if plan.by_closure else []))
        if plan.average is not None:
            plan.average.update(progress.done)
        progress.done += 1
        return losses[0]

    def finish(self) -> None:
        """Check what is not checked yet, in all processes."""
        if self.unchecked:
            with self.plan.processes.together(self.progress.done):
                self.check()

    def _together(self) -> AbstractContextManager[None]:
        together = self.plan.processes.together
        return together(self.progress.done) if self.waits else nullcontext()

    def check(self) -> None:
        """Raise if a loss or a norm since the last check is not finite."""
        plan = self.plan
        values = torch.stack([value for _, value, _ in self.unchecked]).tolist()
        for value, (number, _, index) in zip(values, self.unchecked, strict=True):
            if not math.isfinite(value):
                batch = {} if index is None else plan.train.batch(index)  # type: ignore[union-attr]
                with plan.random.anywhere():
                    head = f"the loss became {value} at step {number}"
                    raise Suspects(plan.step, batch, index).loss_error(head)
        self.unchecked.clear()
        for number, norm in self.norms:
            if not bool(norm.isfinite()):
                raise NonFiniteLossError(
                    f"the gradient became NaN or infinite at step {number}, while the loss was "
                    "finite; no weight was changed by it; remedy: a lower lr, or the same fit on "
                    "the CPU, where the parameter, layer and samples at fault are named"
                )
        self.norms.clear()

    def clip(self, suspects: Suspects) -> None:
        """Clip the gradients, and do not let the weights see those that are not finite."""
        plan, number, clip = self.plan, self.progress.done + 1, self.plan.options.clip
        if self.scaled and clip is None:
            return
        try:
            norm = plan.fabric.clip_gradients(
                plan.model,
                plan.optimizer,
                max_norm=math.inf if clip is None else clip,
                error_if_nonfinite=self.waits and not self.scaled,
            )
        except RuntimeError as refused:
            if "non-finite" not in str(refused):
                raise
            # Still as they were: they are clipped after they are checked.
            with plan.random.anywhere():
                error = suspects.gradient_error(number)
            if error is None and clip is not None:
                error = NonFiniteLossError(
                    f"the gradient at step {number} is too large for a norm by which to clip it; "
                    "no weight was changed by it; remedy: look for outliers, bring the data to a "
                    "common scale, or clip=None"
                )
            # Without a limit it may be that the sum of squares alone overflows.
            if error is not None:
                raise error from None
            return
        if norm is not None and not self.waits and not self.scaled:
            # Nothing waits for an accelerator: the next check finds it.
            finite = norm.isfinite()
            for gradient in (p.grad for p in plan.step.parameters() if p.grad is not None):
                gradient.copy_(torch.where(finite, gradient, 0.0))
            self.norms.append((number, norm))
