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
from flowkit.training.keys import Reading
from flowkit.training.nonfinite import non_finite_error, non_finite_gradient
from flowkit.training.setup import Plan
from flowkit.training.step import StepInput

_STEPS_UNCHECKED = 20

Batches = Iterator[tuple[Tensor | None, dict[str, Tensor]]]


class Updates:
    """Steps of a fit; each changes the weights.

    Reading a loss waits for an accelerator, so that there a bad one is found some steps late: its
    step and data are named exactly, parameters and layers as they are when it is found.

    Args:
        plan: The fit.
        progress: What is done of it.
        reading: Which names of the data are read.
    """

    def __init__(self, plan: Plan, progress: Progress, reading: Reading) -> None:
        self.plan, self.progress, self.reading = plan, progress, reading
        self.unchecked: list[tuple[int, Tensor, Tensor | None]] = []
        self.norms: list[tuple[int, Tensor]] = []
        # Loss scaling leaves out steps that are not finite, and goes on with another scale.
        self.scaled = getattr(plan.fabric.strategy.precision, "scaler", None) is not None

    def step(self, batches: Batches) -> Loss:
        """Do one step on the next batch.

        Raises:
            NonFiniteLossError: If the loss or its gradient is not finite.
        """
        plan, progress, random = self.plan, self.progress, self.plan.random
        now = plan.fabric.device.type == "cpu" or len(self.unchecked) + 1 >= _STEPS_UNCHECKED
        with self._together(now), random.of_reading(plan.train):
            index, batch = next(batches)
        losses: list[Loss] = []

        def evaluate() -> Tensor:
            """Loss and gradients at the present weights."""
            if plan.by_closure:
                random.begin_step(progress.epoch, progress.done)
            with self._together(now):
                with random.of_step():
                    loss = plan.model(self._input(batch))
                self.unchecked.append((progress.done + 1, loss.value.detach(), index))
                if now:
                    self.check()
            losses.append(loss)
            plan.optimizer.zero_grad(set_to_none=True)
            plan.fabric.backward(loss.value)
            self.clip(now, batch, index)
            value = loss.value.detach()
            return plan.processes.mean(value) if plan.by_closure else value

        if not plan.by_closure:
            evaluate()
        with random.of_optimizer():
            plan.optimizer.step(*([evaluate] if plan.by_closure else []))
        if plan.average is not None:
            plan.average.update(plan.step, progress.done)
        progress.done += 1
        return losses[0]

    def finish(self) -> None:
        """Check what is not checked yet, in all processes."""
        if self.unchecked:
            with self._together(True):
                self.check()

    def _together(self, now: bool) -> AbstractContextManager[None]:
        return self.plan.processes.together(self.progress.done) if now else nullcontext()

    def _input(self, batch: dict[str, Tensor]) -> StepInput:
        part = self.progress.done / self.progress.total
        if self.plan.random.compiled:
            return StepInput(batch, None, torch.tensor(part, dtype=torch.float64))
        return StepInput(self.reading.watched(batch), self.plan.random.generator, part)

    def check(self) -> None:
        """Raise if a loss or a norm since the last check is not finite."""
        values = torch.stack([value for _, value, _ in self.unchecked]).tolist()
        bad = [k for k, value in enumerate(values) if not math.isfinite(value)]
        if bad:
            step, value, index = self.unchecked[bad[0]]
            batch = {} if index is None else self.plan.train.batch(index)  # type: ignore[union-attr]
            flow, objective = self.plan.step.flow, self.plan.step.objective
            head = f"the loss became {value} at step {step}"
            with self.plan.random.anywhere():
                raise non_finite_error(flow, objective, batch, index, head)
        self.unchecked.clear()
        for step, norm in self.norms:
            if not bool(norm.isfinite()):
                raise NonFiniteLossError(
                    f"the gradient became NaN or infinite at step {step}, while the loss was "
                    "finite; no weight was changed by it; remedy: a lower lr, or the same fit on "
                    "the CPU, where the parameter, layer and samples at fault are named"
                )
        self.norms.clear()

    def clip(self, now: bool, batch: dict[str, Tensor], index: Tensor | None) -> None:
        """Clip the gradients, and do not let the weights see those that are not finite."""
        plan, strict = self.plan, now and not self.scaled
        norm: Tensor | None
        gradients = [p.grad for p in plan.step.parameters() if p.grad is not None]
        try:
            if plan.options.clip is None:
                norm = torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=strict)
            else:
                norm = plan.fabric.clip_gradients(
                    plan.model,
                    plan.optimizer,
                    max_norm=plan.options.clip,
                    error_if_nonfinite=strict,
                )
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            # Still as they were: they are clipped after they are checked.
            self._raise_of_gradient(batch, index)
            return
        if not now and not self.scaled and norm is not None:
            # Nothing waits for an accelerator: the next check finds it.
            finite = norm.isfinite()
            for gradient in gradients:
                gradient.copy_(torch.where(finite, gradient, 0.0))
            self.norms.append((self.progress.done + 1, norm))

    def _raise_of_gradient(self, batch: dict[str, Tensor], index: Tensor | None) -> None:
        """Raise, unless a sum of squares alone overflows and nothing is to be clipped."""
        number = self.progress.done + 1
        with self.plan.random.anywhere():
            error = non_finite_gradient(self.plan.step, batch, index, number)
        if error is not None:
            raise error
        if self.plan.options.clip is not None:
            raise NonFiniteLossError(
                f"the gradient at step {number} is too large for a norm by which to clip it; no "
                "weight was changed by it; remedy: look for outliers, bring the data to a common "
                "scale, or clip=None"
            )
