"""The loop of a fit: steps, validation, stopping, restoring, and checkpoints of all of it."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowkit.config import describe
from flowkit.data.sources import Part
from flowkit.errors import (
    CheckpointError,
    DataError,
    DescriptionError,
    NonFiniteLossError,
    ProcessError,
)
from flowkit.flow import Flow
from flowkit.numerics.compiling import can_compile, seconds_to_compile, worth_compiling
from flowkit.objectives import Loss, Objective
from flowkit.training.average import MovingAverage
from flowkit.training.checkpoint import (
    described,
    plain_settings,
    read_checkpoint,
    same_shapes,
    write_checkpoint,
)
from flowkit.training.gradients import non_finite_gradient, non_finite_weights
from flowkit.training.history import History
from flowkit.training.keys import Watched, nothing_read
from flowkit.training.nonfinite import non_finite_error
from flowkit.training.optimizers import (
    Scheduler,
    choose_optimizer,
    choose_scheduler,
    needs_closure,
)
from flowkit.training.output import Silent
from flowkit.training.randomness import Randomness, seed_of

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
        output: What shows it.

    Attributes:
        best: Weights of the best validated epoch.
        kept: Weights of the last finished epoch, where nothing is validated.
    """

    def __init__(
        self,
        step: Step,
        fabric: Fabric,
        train: Part | None,
        held: Part | None,
        random: Randomness,
        output: Silent,
    ) -> None:
        self.step, self.fabric, self.random, self.output = step, fabric, random, output
        self.train, self.held = train, held
        self.wrapped: Any = None
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.kept: dict[str, Tensor] | None = None
        self.waited = 0
        self.epoch = 0
        self.done = 0
        self.unchecked: list[tuple[int, Tensor, Tensor | None]] = []
        self.norms: list[tuple[int, Tensor]] = []
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
        groups = [plain_settings(group) for group in chosen.param_groups]
        self.scheduler, self.plateau = choose_scheduler(chosen, scheduler, self.total, patience)
        if self.scheduler is not None:
            # A hook: steps that the loss scaling of 16-mixed leaves out are not counted.
            by_step = self.scheduler.step
            chosen.register_step_post_hook(lambda *_: by_step())
        self.average = None if ema is None else MovingAverage(self.step, ema)
        flow = self.step.flow
        self.settings: dict[str, Any] = {
            "weights": [[name, list(p.shape)] for name, p in self.step.state_dict().items()],
            "flow": f"{_made(flow)}\n{flow.summary()}",
            "dtype": str(flow.dtype),
            "objective": described(self.step.objective),
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
            "optimizer_groups": groups,
        }

    def _choose_compile(self, compile: bool | str) -> bool:
        flow = self.step.flow
        layers = sum(hasattr(module, "scalar") for module in flow.modules())
        if compile == "auto":
            # Compiled programs keep their states, which a reversible stack does not.
            saving = any(getattr(module, "reversible", False) for module in flow.modules())
            parameters = sum(p.numel() for p in flow.parameters())
            compile = (
                self.step.objective.compiles
                and not flow.stochastic
                and not saving
                and self.fabric.world_size == 1
                and worth_compiling(layers, parameters, self.batch_size, self.total)
            )
        if not compile or not can_compile(self.fabric.device):
            return False
        self.output.say(
            f"compiles the training step, which takes about {seconds_to_compile(layers):.0f} s "
            "before the first one"
        )
        return True

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is one."""
        self.path = path
        if path is None:
            return
        # Only here, for they read all rows.
        self.settings["data"] = "" if self.train is None else self.train.fingerprint()
        self.settings["validation"] = "" if self.held is None else self.held.fingerprint()
        if not path.exists():
            return
        content = read_checkpoint(path, self.settings)
        if content["settings"]["total_steps"] != self.total:
            self._plan_anew(content)
        try:
            self._load(content)
        except Exception as error:
            raise CheckpointError(
                f"the state in {path} does not fit this fit ({error}); remedy: continue with "
                "the settings that wrote it, or choose another path"
            ) from None
        if self.held is None and self.epoch:
            self.kept = self._copied()
        self.output.say(f"goes on from {path}, after epoch {self.epoch} (step {self.done})")
        if self.done > self.total:
            warnings.warn(
                f"the checkpoint {path} is of a fit that has done {self.done} steps already, more "
                f"than the {self.total} that are asked for now, so nothing is left to do and the "
                "flow gets its weights; remedy: more epochs, or another path to start over",
                stacklevel=3,
            )
        stopped = self.history.stopped
        if self.done >= self.total:
            self.history.stopped = stopped if stopped == "patience" else self.limit
        elif stopped != "patience" or not self._out_of_patience():
            self.history.stopped = ""

    def _load(self, content: dict[str, Any]) -> None:
        model = self.step if self.average is None else self.average.module
        best = content["best"]
        if best is not None and not same_shapes(best, model):
            raise ValueError("its best weights are of another flow")
        self.step.load_state_dict(content["step"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name, part in self._parts().items():
            if content[name].keys() != part.state_dict().keys():
                raise ValueError(f"its {name} is another one")
            part.load_state_dict(content[name])
        self.best, self.waited = best, content["waited"]
        self.epoch, self.done = content["epoch"], content["done"]
        self.history = History(**content["history"])

    def _plan_anew(self, content: dict[str, Any]) -> None:
        """Put the schedule over the present length in the place of the stored one.

        From here on the rate at step t is that of a fit of the present length; the steps that are
        done had that of the length that was asked for then.
        """
        if self.scheduler is None or content["done"] >= self.total:
            return
        try:
            steps = int(content["scheduler"].get("last_epoch", content["done"]))
            groups = content["optimizer"]["param_groups"]
            # Torch warns of schedules that step before the optimizer, which has done so elsewhere.
            self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
            for _ in range(steps):
                self.scheduler.step()
            content["scheduler"] = self.scheduler.state_dict()
            for stored, planned in zip(groups, self.optimizer.param_groups, strict=True):
                stored.update({k: v for k, v in planned.items() if k != "params"})
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the schedule in {self.path} cannot be planned over another number of steps "
                f"({error}); remedy: the {content['settings']['total_steps']} steps that wrote "
                "it, or another path"
            ) from None

    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def _copied(self) -> dict[str, Tensor]:
        """A copy of the weights that a fit that ends here would leave."""
        model = self.step if self.average is None else self.average.module
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

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

    def loop(self, callbacks: tuple[Callback, ...]) -> History:
        """Run epochs until something says stop."""
        with self._restoring():
            self.output.begin(self)
            while not self.history.stopped:
                self._one_epoch()
                with self._together(), self.random.anywhere():
                    stop = [bool(callback(self.step.flow, self.history)) for callback in callbacks]
                if self._in_any_process(any(stop)):
                    self.history.stopped = "callback"
                elif self._out_of_patience():
                    self.history.stopped = "patience"
                elif self.done >= self.total:
                    self.history.stopped = self.limit
                if self.held is None:
                    self.kept = self._copied()
                self.output.epoch(self)
                with self._together():
                    self.write()
        self.output.end(self)
        return self.history

    @contextmanager
    def _restoring(self) -> Any:
        """Whatever ends the fit, leave the best weights, in evaluation mode.

        After an error or an interrupt that are those of the best validated epoch, or without
        validation of the last finished one; before that, whoever called has the older ones.
        """
        try:
            yield
        except BaseException:
            self.output.end()
            if self.salvaged is not None:
                self.step.load_state_dict(self.salvaged)
            raise
        else:
            weights = self.best
            if weights is None and self.average is not None:
                weights = self.average.module.state_dict()
            if weights is not None:
                self.step.load_state_dict(weights)
        finally:
            self.step.eval()
            # Gradients of the last step would be added to those of the user's own steps.
            self.step.zero_grad()

    @property
    def salvaged(self) -> dict[str, Tensor] | None:
        """What is left if the fit fails now; ``None`` before an epoch is finished."""
        return self.kept if self.held is None else self.best

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

    def _one_epoch(self) -> None:
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
                self.output.step(self, loss)
        if self.unchecked:
            with self._together():
                self._check()
        error = non_finite_weights(self.step, self.done)
        if error is not None:
            raise error
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
            self._clip(check, batch, index)
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

    def _clip(self, check: bool, batch: dict[str, Tensor], index: Tensor | None) -> None:
        """Clip the gradients, and keep those that are not finite from the weights."""
        # Loss scaling leaves out steps that are not finite, and goes on with another scale.
        scaled = getattr(self.fabric.strategy.precision, "scaler", None) is not None
        gradients = [p.grad for p in self.step.parameters() if p.grad is not None]
        norm: Tensor | None = None
        try:
            if self.clip is None:
                norm = torch.nn.utils.get_total_norm(
                    gradients, error_if_nonfinite=check and not scaled
                )
            else:
                norm = self.fabric.clip_gradients(
                    self.wrapped,
                    self.optimizer,
                    max_norm=self.clip,
                    error_if_nonfinite=check and not scaled,
                )
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            # Still as they were: they are clipped after they are checked.
            self._raise_of_gradient(batch, index)
            return
        if not check and not scaled and norm is not None:
            # Nobody waits for an accelerator: the next check finds it.
            finite = norm.isfinite()
            for gradient in gradients:
                gradient.copy_(torch.where(finite, gradient, 0.0))
            self.norms.append((self.done + 1, norm))

    def _raise_of_gradient(self, batch: dict[str, Tensor], index: Tensor | None) -> None:
        """Raise, unless a sum of squares alone overflows and nothing is to be clipped."""
        with self.random.anywhere():
            error = non_finite_gradient(self.step, batch, index, self.done + 1)
        if error is not None:
            raise error
        if self.clip is not None:
            raise NonFiniteLossError(
                f"the gradient at step {self.done + 1} is too large for a norm by which to clip "
                "it; no weight was changed by it; remedy: look for outliers, bring the data to a "
                "common scale, or clip=None"
            )

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
            with self.random.anywhere():
                raise non_finite_error(self.step.flow, self.step.objective, batch, index, head)
        self.unchecked.clear()
        for step, norm in self.norms:
            if not bool(norm.isfinite()):
                raise NonFiniteLossError(
                    f"the gradient became NaN or infinite at step {step}, while the loss was "
                    "finite; no weight was changed by it; remedy: a lower lr, or the same fit on "
                    "the CPU, where the parameter, layer and rows at fault are named"
                )
        self.norms.clear()

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
            with self.random.anywhere():
                raise non_finite_error(model.flow, model.objective, rows, numbers, head, held.of)
        history = self.history
        better = value < (math.inf if history.best is None else history.best)
        history.validation.append(value)
        self.waited = 0 if better else self.waited + 1
        if better:
            history.best_epoch = self.epoch
            self.best = {k: v.detach().clone() for k, v in model.state_dict().items()}


def _made(flow: Flow) -> str:
    """How a flow is made, as far as a description can tell."""
    try:
        return json.dumps(describe(flow))
    except DescriptionError:
        return ""
