"""fit: minimise an objective over data, on Lightning Fabric."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives import Loss, MaximumLikelihood, Objective
from flowkit.training.checkpoint import read_checkpoint, write_checkpoint
from flowkit.training.data import Rows, as_rows, in_batches, split
from flowkit.training.diagnose import non_finite_error
from flowkit.training.history import History

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_START_ROWS = 100_000
_EVALUATION_ROWS = 8192
_EPOCH_WITHOUT_DATA = 100

Callback = Callable[[Flow, History], Any]
Scheduler = Callable[[torch.optim.Optimizer, int], LRScheduler]


class _Step(nn.Module):
    """Flow and objective as one module, so that DDP and compile see a single forward."""

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow = flow
        self.objective = objective

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        return self.objective(self.flow, batch)


def fit(
    flow: Flow,
    data: Any = None,
    objective: Objective | None = None,
    *,
    validation: Any = 0.1,
    epochs: int = 100,
    steps: int | None = None,
    batch_size: int = 256,
    lr: float = 1e-3,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    scheduler: str | Scheduler | None = "cosine",
    clip: float | None = 10.0,
    patience: int | None = 20,
    ema: float | None = None,
    compile: bool = False,
    fabric: Fabric | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> History:
    """Train a flow in place and return what happened.

    The first fit of a flow starts it from the data (``flow.initialize``). With validation the
    weights of the best epoch are restored at the end, also after an error or Ctrl-C. The global
    random state is left as it was.

    Args:
        flow: The flow; trained in place.
        data: Events ``(rows, *event)`` as an array, frame, list or tensor; a dict of such with the
            keys ``x``, ``context``, ``weight`` (scaled to mean one) and whatever the objective
            reads; a Dataset; a
            ``np.memmap`` or the path of an ``.npy`` file, both read batch by batch. ``None`` for
            objectives that need no data.
        objective: What to minimise; maximum likelihood by default.
        validation: Fraction of the rows held out, or separate validation data, or ``None``.
        epochs: Passes over the training rows. The last incomplete batch of a pass is left out;
            rows are shuffled anew for each.
        steps: Optimiser steps instead of epochs.
        batch_size: Rows a step, over all processes together.
        lr: Learning rate of the default optimiser, Adam.
        optimizer: Callable from parameters to an optimiser, instead of Adam.
        scheduler: ``"cosine"`` (to zero over the whole fit), ``"plateau"`` (tenfold down after
            ``patience // 2`` epochs without improvement), ``None``, or a callable from optimiser
            and total number of steps to a scheduler that is stepped every step.
        clip: Largest norm of the gradient; ``None`` for no limit.
        patience: Epochs without a better validation loss before stopping; ``None`` for no limit.
        ema: Decay of an exponential moving average of the weights, which is then what is validated
            and restored; it warms up as ``min(ema, (1 + t) / (10 + t))``.
        compile: Whether to compile the whole step with ``torch.compile``.
        fabric: A ``lightning_fabric.Fabric``: devices, precision, strategy. One device by default.
        checkpoint: File written after every epoch. If it exists, the fit resumes from it, to the
            same bits as if it had not been interrupted.
        seed: Seed of the split, the shuffling and the objective's own randomness.
        progress: Whether to show a progress bar.
        callbacks: Called as ``callback(flow, history)`` after every epoch; a true result stops.

    Returns:
        The :class:`History`.

    Raises:
        DataError: If the data cannot be used: empty, one row, text, NaN, constant columns, or
            shapes that do not fit the flow.
        NonFiniteLossError: If the loss becomes NaN or infinite; names step, rows and layer.
        CheckpointError: If the checkpoint is damaged or belongs to another flow or other settings.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow, fit
        >>> x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
        >>> history = fit(elementwise_flow(1), x, epochs=2, progress=False)
        >>> history.stopped, len(history.train)
        ('epochs', 2)
    """
    from lightning_fabric import Fabric

    objective = MaximumLikelihood() if objective is None else objective
    fabric = Fabric(accelerator="auto", devices=1) if fabric is None else fabric
    _check_numbers(epochs=epochs, batch_size=batch_size, steps=steps, patience=patience)
    if fabric.world_size > 1 and not fabric._launched:
        fabric.launch()
    if not isinstance(lr, (int, float)) or not 0 < lr < float("inf"):
        raise DataError(f"fit expected lr to be a number > 0, got {lr!r}")
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        _seed_generators(fabric.device, seed)
        rows, train, held_rows, held = _prepare_rows(
            flow, data, objective, validation, seed, fabric.device
        )
        flow.to(fabric.device)
        _start_from_data(flow, rows, train)
        run = _Run(flow, objective, fabric, rows, train, held_rows, held, seed)
        run.plan(epochs, steps, batch_size)
        run.prepare(lr, optimizer, scheduler, clip, patience, ema, compile)
        run.resume(checkpoint)
        return run.loop(progress, tuple(callbacks))


def _check_numbers(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
            raise DataError(f"fit expected {name} to be a whole number >= 1, got {value!r}")


def _prepare_rows(
    flow: Flow,
    data: Any,
    objective: Objective,
    validation: Any,
    seed: int,
    device: torch.device,
) -> tuple[Rows | None, Tensor, Rows | None, Tensor]:
    """Training rows and their indices, validation rows and theirs."""
    none = torch.empty(0, dtype=torch.long)
    if data is None:
        if objective.needs_data:
            raise DataError(f"{type(objective).__name__} needs data, got None")
        return None, none, None, none
    dtype = flow.dtype or torch.get_default_dtype()
    rows = as_rows(data, dtype, device, flow.event_shape)
    first = rows.batch(torch.tensor([0]))
    if flow.needs_context and "context" not in first:
        raise DataError(
            f"this flow is conditional: data expected a dict with x and context (rows, "
            f"{flow.context_size}), got {sorted(first)}"
        )
    if objective.needs_data and "x" not in first:
        raise DataError(f"data expected a dict with the key x, got {sorted(first)}")
    if validation is None or isinstance(validation, (int, float)):
        train, held = split(len(rows), float(validation or 0.0), seed)
        return rows, train, rows, held
    if len(rows) < 2:
        raise DataError(f"fit needs at least 2 rows, got {len(rows)}")
    held_rows = as_rows(validation, dtype, device, flow.event_shape)
    return rows, torch.arange(len(rows)), held_rows, torch.arange(len(held_rows))


def _start_from_data(flow: Flow, rows: Rows | None, train: Tensor) -> None:
    """Initialise a flow that has not seen data yet."""
    if bool(flow.initialized) or rows is None:
        return
    sample = rows.batch(train[:_START_ROWS])
    if "x" in sample:
        flow.initialize(sample["x"], sample.get("context"))


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of the device in use, and no others."""
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class _Run:
    """The state of one fit."""

    def __init__(
        self,
        flow: Flow,
        objective: Objective,
        fabric: Fabric,
        rows: Rows | None,
        train: Tensor,
        held_rows: Rows | None,
        held: Tensor,
        seed: int,
    ) -> None:
        self.flow, self.fabric, self.seed = flow, fabric, seed
        self.rows, self.train = rows, train
        self.held_rows, self.held = held_rows, held
        self.step = _Step(flow, objective)
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.waited = 0
        self.epoch = 0
        self.done = 0

    def plan(self, epochs: int, steps: int | None, batch_size: int) -> None:
        """Fix the number of steps and the rows of each."""
        count = len(self.train)
        self.batch_size = min(batch_size, count) if self.rows is not None else batch_size
        if self.rows is not None and self.batch_size < self.fabric.world_size:
            raise DataError(
                f"a batch of {self.batch_size} rows cannot be shared by "
                f"{self.fabric.world_size} processes"
            )
        self.per_epoch = count // self.batch_size if self.rows is not None else _EPOCH_WITHOUT_DATA
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
        compile: bool,
    ) -> None:
        """Build optimiser, scheduler and average, and hand the step to Fabric."""
        parameters = [p for p in self.step.parameters() if p.requires_grad]
        if not parameters:
            raise DataError("there is nothing to train: no parameter requires a gradient")
        if optimizer is None:
            fused = self.fabric.device.type in ("cpu", "cuda")
            chosen: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=lr, fused=fused)
        else:
            chosen = optimizer(parameters)
        self.step.to(self.fabric.device)
        module: Any = torch.compile(self.step) if compile else self.step
        self.wrapped, self.optimizer = self.fabric.setup(module, chosen)
        self.plateau: ReduceLROnPlateau | None = None
        self.scheduler: LRScheduler | None = None
        if scheduler == "plateau":
            wait = max(1, (patience or 20) // 2)
            self.plateau = ReduceLROnPlateau(chosen, factor=0.1, patience=wait)
        elif scheduler == "cosine":
            self.scheduler = CosineAnnealingLR(chosen, T_max=self.total)
        elif callable(scheduler):
            self.scheduler = scheduler(chosen, self.total)
        elif scheduler is not None:
            raise DataError(
                f"fit knows the schedulers 'cosine', 'plateau', None and callables; "
                f"got {scheduler!r}"
            )
        if ema is not None and not 0 < ema < 1:
            raise DataError(f"fit expected ema strictly between 0 and 1, got {ema}")
        self.clip, self.patience = clip, patience
        self.average = None if ema is None else AveragedModel(self.step, multi_avg_fn=_warm(ema))
        self.settings: dict[str, Any] = {
            "weights": [[name, list(p.shape)] for name, p in self.step.state_dict().items()],
            "rows": len(self.train),
            "batch_size": self.batch_size,
            "total_steps": self.total,
            "seed": self.seed,
            "ema": ema,
            "scheduler": scheduler if isinstance(scheduler, str) else scheduler is not None,
        }

    def resume(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Go on from a checkpoint, if there is one."""
        self.path = None if checkpoint is None else Path(checkpoint)
        if self.path is None or not self.path.is_file():
            return
        content = read_checkpoint(self.path, self.settings)
        self.step.load_state_dict(content["step"])
        self.optimizer.load_state_dict(content["optimizer"])
        for name in ("scheduler", "plateau", "average"):
            part = getattr(self, name)
            if part is not None:
                part.load_state_dict(content[name])
        self.best, self.waited = content["best"], content["waited"]
        self.epoch, self.done = content["epoch"], content["done"]
        self.history = History(**content["history"])

    def write(self) -> None:
        """Write a checkpoint, from the first process."""
        if self.path is not None and self.fabric.is_global_zero:
            parts = {name: getattr(self, name) for name in ("scheduler", "plateau", "average")}
            write_checkpoint(
                self.path,
                {
                    "settings": self.settings,
                    "step": self.step.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    **{k: None if v is None else v.state_dict() for k, v in parts.items()},
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
                stop = [callback(self.flow, self.history) for callback in callbacks]
                if any(stop):
                    self.history.stopped = "callback"
                elif self.patience is not None and self.waited >= self.patience:
                    self.history.stopped = "patience"
                elif self.done >= self.total:
                    self.history.stopped = self.limit
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

    def _index(self, epoch: int) -> Tensor:
        """This process's rows of every batch of an epoch, ``(steps, rows)``."""
        generator = torch.Generator().manual_seed(_seed_of(self.seed, epoch))
        order = self.train[torch.randperm(len(self.train), generator=generator)]
        batches = order[: self.per_epoch * self.batch_size].reshape(self.per_epoch, -1)
        world, rank = self.fabric.world_size, self.fabric.global_rank
        share = self.batch_size // world
        return batches[:, rank * share : (rank + 1) * share]

    def _one_epoch(self, bar: Any) -> None:
        begun = time.perf_counter()
        # Seeded anew: an epoch is the same whether or not the fit was resumed before it.
        seed = _seed_of(self.seed, self.epoch, 1 + self.fabric.global_rank)
        _seed_generators(self.fabric.device, seed)
        index = None if self.rows is None else self._index(self.epoch)
        steps = min(self.per_epoch, self.total - self.done)
        total: Tensor | float = 0.0
        terms: dict[str, Any] = {}
        self.step.train()
        for k in range(steps):
            batch = {} if index is None else self.rows.batch(index[k])  # type: ignore[union-attr]
            loss = self._one_step(batch, None if index is None else index[k])
            total = total + loss.value.detach()
            for name, value in loss.terms.items():
                terms[name] = terms.get(name, 0.0) + value
            bar(loss)
        self.epoch += 1
        history = self.history
        history.epochs.append(self.epoch)
        history.steps.append(self.done)
        history.train.append(float(total) / steps)
        for name, value in terms.items():
            history.terms.setdefault(name, []).append(float(value) / steps)
        history.learning_rate.append(self.optimizer.param_groups[0]["lr"])
        if len(self.held):
            self._validate()
        if self.plateau is not None:
            self.plateau.step((history.validation or history.train)[-1])
        history.seconds.append(time.perf_counter() - begun)

    def _one_step(self, batch: dict[str, Tensor], index: Tensor | None) -> Loss:
        loss = self.wrapped(batch)
        if not bool(torch.isfinite(loss.value)):
            raise non_finite_error(self.flow, batch, index, loss.value, self.done + 1)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss.value)
        if self.clip is not None:
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.step)
        self.done += 1
        return loss

    def _validate(self) -> None:
        model = self.step if self.average is None else self.average.module
        model.eval()

        def evaluate(batch: dict[str, Tensor]) -> Tensor:
            # Objectives that differentiate with respect to x switch gradients on for themselves.
            with torch.no_grad():
                return model(batch).value.detach()

        value = float(in_batches(self.held_rows, self.held, _EVALUATION_ROWS, evaluate))  # type: ignore[arg-type]
        history = self.history
        better = history.best is None or value < history.best
        history.validation.append(value)
        self.waited = 0 if better else self.waited + 1
        if better:
            history.best_epoch = self.epoch
            self.best = {k: v.detach().clone() for k, v in model.state_dict().items()}


def _warm(decay: float) -> Callable[..., None]:
    """An exponential moving average that forgets its first steps quickly."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:
        weight = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - weight)

    return update


@contextmanager
def _bar(run: _Run, progress: bool) -> Any:
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
