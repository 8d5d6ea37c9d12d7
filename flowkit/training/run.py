"""The loop of a fit: steps, validation, stopping, restoring, and checkpoints of all of it."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowkit.compiling import can_compile, worth_compiling
from flowkit.errors import CheckpointError, DataError, NonFiniteLossError, ProcessError
from flowkit.flow import Flow
from flowkit.objectives import Loss, Objective
from flowkit.training.average import MovingAverage
from flowkit.training.checkpoint import read_checkpoint, write_checkpoint
from flowkit.training.diagnose import non_finite_error
from flowkit.training.history import History
from flowkit.training.keys import Watched, nothing_read
from flowkit.training.optimizers import (
    Scheduler,
    choose_optimizer,
    choose_scheduler,
    needs_closure,
)
from flowkit.training.randomness import Randomness, seed_of
from flowkit.training.rows import Part

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EPOCH_WITHOUT_DATA = 100
_STEPS_UNCHECKED = 20

Callback = Callable[[Flow, History], Any]
Batches = Generator[tuple[Tensor | None, dict[str, Tensor]], None, None]


class Sealed:
    """A batch that Fabric hands on as it is; its mixed precision would round the data.

    Args:
        tensors: The rows.
        generator: Source of randomness; ``None`` for a compiled step, which cannot take one.
        progress: Which part of the fit is done; a tensor for a compiled step, which would be
            compiled anew for another number.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        progress: float | Tensor,
    ) -> None:
        self.tensors, self.generator, self.progress = tensors, generator, progress


class Step(nn.Module):
    """Flow and objective as one module, so that DDP and compile see a single forward."""

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow = flow
        self.objective = objective

    def forward(self, batch: Sealed) -> Loss:
        """Return the loss of a batch."""
        loss = self.objective(
            self.flow, batch.tensors, generator=batch.generator, progress=batch.progress
        )
        if not isinstance(loss, Loss) or not isinstance(loss.value, Tensor) or loss.value.ndim:
            raise DataError(
                f"expected {type(self.objective).__name__} to return a Loss(value, terms) whose "
                f"value is a scalar tensor, got {type(loss).__name__}; remedy: return "
                "Loss(values.mean(), {})"
            )
        return loss


class Run:
    """The state of one fit.

    Args:
        step: Flow and objective, on the device.
        fabric: Devices, precision, strategy.
        train: Training rows; ``None`` if the objective needs none.
        held: Validation rows, or ``None``.
        random: Its random numbers.
    """

    def __init__(
        self,
        step: Step,
        fabric: Fabric,
        train: Part | None,
        held: Part | None,
        random: Randomness,
    ) -> None:
        self.step, self.fabric, self.random = step, fabric, random
        self.train, self.held = train, held
        self.wrapped: Any = None
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.waited = 0
        self.epoch = 0
        self.done = 0
        self.unchecked: list[tuple[int, Tensor, Tensor | None]] = []
        self.given: dict[str, None] = {}
        self.read: set[str] = set()

    def close(self) -> None:
        """Stop sharing gradients: what is left of a fit must not answer to the next one's steps.

        A wrapper may outlive the fit, in one process and not in another, for example in the
        traceback of an error.
        """
        for module in () if self.wrapped is None else self.wrapped.modules():
            if isinstance(module, DistributedDataParallel):
                # These own the hooks on the parameters.
                del module.reducer, module.logger
        self.wrapped = None

    def plan(self, epochs: int, steps: int | None, batch_size: int) -> None:
        """Fix the number of steps and the rows of each."""
        self.batch_size, self.per_epoch = batch_size, _EPOCH_WITHOUT_DATA
        if self.train is not None:
            self.batch_size = min(batch_size, len(self.train))
            self.per_epoch = self.train.steps(self.batch_size)
            if self.batch_size < self.fabric.world_size:
                raise DataError(
                    f"a batch of {self.batch_size} rows cannot be shared by "
                    f"{self.fabric.world_size} processes; remedy: a larger batch_size"
                )
        self.total = steps if steps is not None else epochs * self.per_epoch
        self.limit = "steps" if steps is not None else "epochs"

    def prepare(
        self,
        lr: float,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None,
        scheduler: str | Scheduler | None,
        clip: float | None,
        patience: int | None,
        ema: float | None,
        compile: bool | str,
    ) -> None:
        """Build optimiser, scheduler and average, and hand the step to Fabric."""
        self.clip, self.patience = clip, patience
        chosen = choose_optimizer(
            self.step,
            lr,
            optimizer,
            device=self.fabric.device,
            scaled=self.fabric.strategy.precision.precision == "16-mixed",
            clip=clip is not None,
        )
        self.by_closure = needs_closure(chosen)
        compiled = self._choose_compile(compile)
        module: Any = torch.compile(self.step) if compiled else self.step
        self.random.watch(self.step, chosen, compiled)
        self.wrapped, self.optimizer = self.fabric.setup(module, chosen)
        self.scheduler, self.plateau = choose_scheduler(chosen, scheduler, self.total, patience)
        if self.scheduler is not None:
            # A hook: steps that the loss scaling of 16-mixed leaves out are not counted.
            by_step = self.scheduler.step
            chosen.register_step_post_hook(lambda *_: by_step())
        self.average = None if ema is None else MovingAverage(self.step, ema)
        flow = self.step.flow
        recipe = json.dumps(flow.recipe, default=lambda value: type(value).__name__)
        self.settings: dict[str, Any] = {
            "weights": [[name, list(p.shape)] for name, p in self.step.state_dict().items()],
            "flow": f"{recipe}\n{flow.summary()}",
            "objective": type(self.step.objective).__name__,
            "rows": 0 if self.train is None else len(self.train),
            "batch_size": self.batch_size,
            "total_steps": self.total,
            "seed": self.random.seed,
            "optimizer": type(chosen).__name__,
            "lr": lr if optimizer is None else None,
            "clip": clip,
            "ema": ema,
            "scheduler": scheduler if isinstance(scheduler, str) else scheduler is not None,
            "precision": self.fabric.strategy.precision.precision,
            "data": "" if self.train is None else self.train.fingerprint(),
        }

    def _choose_compile(self, compile: bool | str) -> bool:
        if compile == "auto":
            flow = self.step.flow
            # Compiled programs keep their states, which a reversible stack does not.
            saving = any(getattr(module, "reversible", False) for module in flow.modules())
            layers = sum(hasattr(module, "scalar") for module in flow.modules())
            parameters = sum(p.numel() for p in flow.parameters())
            compile = (
                self.step.objective.compiles
                and not flow.stochastic
                and not saving
                and self.fabric.world_size == 1
                and worth_compiling(layers, parameters, self.batch_size, self.total)
            )
        return bool(compile) and can_compile(self.fabric.device)

    def resume(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Go on from a checkpoint, if there is one."""
        self.path = None if checkpoint is None else Path(checkpoint)
        if self.path is None or not self.path.exists():
            return
        content = read_checkpoint(self.path, self.settings)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            for name, part in self._parts().items():
                part.load_state_dict(content[name])
            self.best, self.waited = content["best"], content["waited"]
            self.epoch, self.done = content["epoch"], content["done"]
            self.history = History(**content["history"])
            self.step.load_state_dict(content["step"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"the state in {self.path} does not fit this fit ({error}); remedy: continue with "
                "the settings that wrote it, or choose another path"
            ) from None
        if self.history.stopped == "callback":
            self.history.stopped = self.limit if self.done >= self.total else ""

    def _parts(self) -> dict[str, Any]:
        """What has a state, besides the step and the optimiser."""
        parts = {name: getattr(self, name) for name in ("scheduler", "plateau", "average")}
        parts["scaler"] = getattr(self.fabric.strategy.precision, "scaler", None)
        return {name: part for name, part in parts.items() if part is not None}

    def write(self) -> None:
        """Write a checkpoint, from the first process."""
        if self.path is not None and self.fabric.is_global_zero:
            write_checkpoint(
                self.path,
                {
                    "settings": self.settings,
                    "step": self.step.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    **{name: part.state_dict() for name, part in self._parts().items()},
                    "best": self.best,
                    "waited": self.waited,
                    "epoch": self.epoch,
                    "done": self.done,
                    "history": asdict(self.history),
                },
            )

    def loop(self, progress: bool, callbacks: tuple[Callback, ...]) -> History:
        """Run epochs until something says stop."""
        with self._restoring(), _bar(self, progress) as bar:
            while not self.history.stopped:
                self._one_epoch(bar)
                with self._together(), self.random.of_callbacks():
                    stop = [bool(callback(self.step.flow, self.history)) for callback in callbacks]
                if self._in_any_process(any(stop)):
                    self.history.stopped = "callback"
                elif self.patience is not None and self.waited >= self.patience:
                    self.history.stopped = "patience"
                elif self.done >= self.total:
                    self.history.stopped = self.limit
                with self._together():
                    self.write()
        return self.history

    @contextmanager
    def _restoring(self) -> Any:
        """Whatever ends the fit, leave the best weights, in evaluation mode."""
        try:
            yield
        finally:
            weights = self.best
            if weights is None and self.average is not None:
                weights = self.average.module.state_dict()
            if weights is not None:
                self.step.load_state_dict(weights)
            self.step.eval()

    def _in_any_process(self, flag: bool) -> bool:
        """Whether a flag is set anywhere, so that all processes take the same way."""
        return bool(self._shared(torch.tensor(float(flag))) > 0)

    def _shared(self, values: Tensor) -> Tensor:
        """Mean over the processes, which is the same number in all of them."""
        if self.fabric.world_size == 1:
            return values
        shared = self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="mean")
        return torch.as_tensor(shared)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raise in every process what one raises here: the others would wait for it in vain."""
        if self.fabric.world_size == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        flags = torch.tensor([error is not None, isinstance(error, NonFiniteLossError)])
        failed, not_finite = (self._shared(flags.float()) > 0).tolist()
        if error is not None:
            raise error
        if failed:
            what = "the loss became NaN or infinite" if not_finite else "the fit failed"
            raise (NonFiniteLossError if not_finite else ProcessError)(
                f"{what} in another process, after {self.done} steps; remedy: see the message of "
                "that process"
            )

    def _batches(self) -> Batches:
        """This process's rows of every batch of an epoch, with their numbers."""
        if self.train is None:
            yield from repeat((None, {}))
        else:
            share = self.batch_size // self.fabric.world_size
            seed = seed_of(self.random.seed, self.epoch)
            yield from self.train.batches(seed, self.batch_size, self.fabric.global_rank, share)

    def _one_epoch(self, bar: Any) -> None:
        begun = time.perf_counter()
        self.random.begin_epoch(self.epoch)
        batches = self._batches()
        steps = min(self.per_epoch, self.total - self.done)
        sums: dict[str, Any] = {}
        self.step.train()
        # Closed also on Ctrl-C: no thread goes on reading.
        with closing(batches):
            for _ in range(steps):
                loss = self._one_step(batches)
                for name, value in (("", loss.value.detach()), *loss.terms.items()):
                    sums[name] = sums.get(name, 0.0) + value
                bar(loss)
        if self.unchecked:
            with self._together():
                self._check()
        self.epoch += 1
        like = sums[""]
        total = torch.stack([torch.as_tensor(v).detach().to(like) for v in sums.values()])
        means = (self._shared(total) / steps).tolist()
        history = self.history
        history.epochs.append(self.epoch)
        history.steps.append(self.done)
        history.train.append(means[0])
        for name, mean in zip(list(sums)[1:], means[1:], strict=True):
            history.terms.setdefault(name, []).append(mean)
        history.learning_rate.append(self.optimizer.param_groups[0]["lr"])
        if self.held is not None:
            self._validate(self.held)
        if self.epoch == 1:
            self._warn_of_unread()
        if self.plateau is not None:
            self.plateau.step((history.validation or history.train)[-1])
        history.seconds.append(time.perf_counter() - begun)

    def _one_step(self, batches: Batches) -> Loss:
        # Reading a loss waits for an accelerator, so that there a bad one is found late: its step
        # and data are named exactly, parameters and layers as they are when it is found.
        check = self.fabric.device.type == "cpu" or len(self.unchecked) + 1 >= _STEPS_UNCHECKED
        together = self._together if check else nullcontext
        with together(), self.random.of_reading(self.train):
            index, batch = next(batches)
        losses: list[Loss] = []

        def evaluate() -> Tensor:
            """Loss and gradients at the present weights."""
            if self.by_closure:
                self.random.begin_step(self.epoch, self.done)
            with together():
                with self.random.of_step():
                    loss = self.wrapped(self._sealed(batch))
                self.unchecked.append((self.done + 1, loss.value.detach(), index))
                if check:
                    self._check()
            losses.append(loss)
            self.optimizer.zero_grad(set_to_none=True)
            self.fabric.backward(loss.value)
            if self.clip is not None:
                self.fabric.clip_gradients(
                    self.wrapped, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
                )
            return self._shared(loss.value.detach()) if self.by_closure else loss.value.detach()

        if self.by_closure:
            with self.random.of_optimizer():
                self.optimizer.step(evaluate)
        else:
            evaluate()
            with self.random.of_optimizer():
                self.optimizer.step()
        if self.average is not None:
            self.average.update(self.step, self.done)
        self.done += 1
        return losses[0]

    def _watched(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, which in the first epoch notes what an objective that does not say reads."""
        if self.epoch > 1 or self.random.compiled or self.step.objective.reads is not None:
            return batch
        self.given.update(dict.fromkeys(batch))
        return Watched(batch, self.read)

    def _warn_of_unread(self) -> None:
        weighted = self.train is not None and self.train.weighted
        if text := nothing_read(list(self.given), self.read, weighted):
            warnings.warn(text, stacklevel=5)

    def _sealed(self, batch: dict[str, Tensor]) -> Sealed:
        progress = self.done / self.total
        if self.random.compiled:
            return Sealed(batch, None, torch.tensor(progress, dtype=torch.float64))
        return Sealed(self._watched(batch), self.random.generator, progress)

    def _check(self) -> None:
        """Raise if a loss since the last check is not finite."""
        values = torch.stack([value for _, value, _ in self.unchecked]).tolist()
        bad = [k for k, value in enumerate(values) if not math.isfinite(value)]
        if bad:
            step, value, index = self.unchecked[bad[0]]
            batch = {} if index is None else self.train.batch(index)  # type: ignore[union-attr]
            head = f"the loss became {value} at step {step}"
            raise non_finite_error(self.step.flow, self.step.objective, batch, index, head)
        self.unchecked.clear()

    def _validate(self, held: Part) -> None:
        self.random.begin_validation(self.epoch)
        model: Any = self.step if self.average is None else self.average.module
        model.eval()
        losses: list[float] = []

        def evaluate(batch: dict[str, Tensor]) -> Tensor:
            # Objectives that differentiate with respect to x switch gradients on for themselves.
            with torch.no_grad(), self.fabric.autocast(), self.random.of_evaluation():
                sealed = Sealed(self._watched(batch), self.random.generator, 1.0)
                value = model(sealed).value.detach()
            losses.append(float(value))
            return value

        with self._together(), self.random.of_reading(held):
            here = held.mean(evaluate)
        value = float(self._shared(here))
        if not math.isfinite(value):
            bad = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
            numbers = next(islice(held.runs(), bad[0] if bad else 0, None))
            head = f"the validation loss became {value} after epoch {self.epoch}"
            rows = held.batch(numbers)
            raise non_finite_error(model.flow, model.objective, rows, numbers, head, held.of)
        history = self.history
        better = value < (math.inf if history.best is None else history.best)
        history.validation.append(value)
        self.waited = 0 if better else self.waited + 1
        if better:
            history.best_epoch = self.epoch
            self.best = {k: v.detach().clone() for k, v in model.state_dict().items()}


@contextmanager
def _bar(run: Run, progress: bool) -> Any:
    """One progress bar over all steps; the loss is read only when it is redrawn."""
    from tqdm.auto import tqdm

    hidden = not progress or not run.fabric.is_global_zero
    with tqdm(total=run.total, initial=run.done, disable=hidden, unit="step") as bar:

        def update(loss: Loss) -> None:
            if bar.update(1):
                shown: Mapping[str, str] = {"loss": f"{float(loss.value.detach()):.4g}"}
                if run.history.validation:
                    shown = {**shown, "validation": f"{run.history.validation[-1]:.4g}"}
                bar.set_postfix(shown, refresh=False)

        yield update
