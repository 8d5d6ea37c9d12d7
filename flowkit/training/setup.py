"""Decide everything before the first step of a fit: data, start, optimiser, compilation."""

from __future__ import annotations

import copy
import json
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flowkit import checks
from flowkit.checks import is_plain
from flowkit.config import describe
from flowkit.data.batches import DataSplit, split
from flowkit.data.convert import Expected, as_source, check_finite
from flowkit.errors import ArgumentError, DataError, DescriptionError, OutsideError
from flowkit.numerics.compiling import can_compile, seconds_to_compile, worth_compiling
from flowkit.numerics.noise import drawing_from
from flowkit.training.arguments import DEFAULT_EMA, Options
from flowkit.training.history import Progress
from flowkit.training.length import STEPS_WITHOUT_DATA, length, samples_per_step
from flowkit.training.optimizers import (
    WarmupStableDecay,
    choose_optimizer,
    choose_scheduler,
    required_arguments,
)
from flowkit.training.output import Output
from flowkit.training.processes import Processes
from flowkit.training.randomness import Randomness, seed_of
from flowkit.training.step import Step
from flowkit.training.suitability import check_keys, periods, repeats
from flowkit.training.warn import warn
from flowkit.training.weights import MovingAverage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_START_SAMPLES = 100_000
# Steps in which the rate falls after a plateau: a share of those to the best one, and the fewest.
_ANNEALED, _FEWEST_ANNEALED = 0.4, 100


class Plan:
    """All that is decided before the first step of a fit.

    Args:
        step: Flow and objective.
        fabric: Devices, precision, strategy.
        options: The options of the fit.
        train: Training samples; ``None`` if the objective needs none.
        held: Validation samples.
        output: What shows the fit.
        start: How a flow that has not seen data starts from them.

    Attributes:
        model: The step as Fabric and the compiler run it.
        optimizer: The optimiser as Fabric runs it.
        by_closure: Whether the optimiser evaluates the loss itself.
        scheduler: What sets the learning rate.
        by_loss: Whether it does so at every record, by a loss, and not after every step.
        decay: Decay of the moving average of the weights; ``None`` without one.
        average: The moving average of the weights.
        processes: The processes.
        random: Their random numbers.
        batch_size: Samples per step, no more than there are.
        per_epoch: Steps per pass through the data.
        interval: Steps from record to record.
        total: Steps of the fit, at most.
        usual: Steps that it is likely to take.
        settings: What must agree for a checkpoint to be continued.
    """

    def __init__(
        self,
        step: Step,
        fabric: Fabric,
        options: Options,
        *,
        train: DataSplit | None,
        held: DataSplit | None,
        output: Output,
        start: str | None = None,
    ) -> None:
        self.step, self.fabric, self.options = step, fabric, options
        self.processes, seed = Processes(fabric), options.seed
        generator = torch.Generator(fabric.device).manual_seed(seed_of(seed))
        # The same in all processes; layers that start from data may draw.
        with drawing_from(generator):
            start_from_data(step, train, generator, start)
        self.train, self.held = train, held
        self.batch_size, self.per_epoch = options.batch_size or 256, STEPS_WITHOUT_DATA
        if train is not None:
            self.batch_size = min(options.batch_size or samples_per_step(len(train)), len(train))
            self.per_epoch = train.steps(self.batch_size)
            if self.batch_size < fabric.world_size:
                raise ArgumentError(
                    f"a batch of {self.batch_size} samples cannot be shared by "
                    f"{fabric.world_size} processes; remedy: a larger batch_size"
                )
        samples = None if held is None else len(held)
        self.interval, self.total, self.usual = length(
            options, self.per_epoch, self.batch_size, samples
        )
        chosen = choose_optimizer(step, options, fabric)
        compiled = self._compiles()
        if compiled:
            seconds = f"{seconds_to_compile(_layers(step)):.0f} s"
            output.say(
                f"compiles the training step, which takes about {seconds} before the first one"
            )
        self.by_closure = "closure" in required_arguments(chosen)
        self.decay: Any = options.ema
        if options.ema == "auto":
            self.decay = None if self.by_closure else DEFAULT_EMA
        self.settings = self._settings(chosen)
        rank = fabric.global_rank
        self.random = Randomness(seed, rank, generator, step, chosen, compiled=compiled)
        self.scheduler: Any = choose_scheduler(chosen, options, self.total)
        self.by_loss = self.scheduler is not None and bool(required_arguments(self.scheduler))
        if self.scheduler is not None and not self.by_loss:
            # A hook: steps that the loss scaling of 16-mixed leaves out are not counted.
            chosen.register_step_post_hook(lambda *_, by_step=self.scheduler.step: by_step())
        self.average = None if self.decay is None else MovingAverage(step, self.decay)
        # Last: from here on the processes share gradients.
        model: Any = torch.compile(step) if compiled else step
        self.model, self.optimizer = fabric.setup(model, chosen)

    def reason_to_stop(self, progress: Progress) -> str:
        """Why a fit with this progress ends; empty if it goes on."""
        patience, annealed = self.options.patience, progress.history.annealed is not None
        if progress.done >= progress.total:
            return "patience" if annealed else "steps" if self.options.epochs is None else "epochs"
        falls = isinstance(self.scheduler, WarmupStableDecay)
        if patience is not None and progress.waited >= patience and not falls:
            return "patience"
        return ""

    def anneals(self, progress: Progress) -> bool:
        """Whether validation has stopped improving while the rate was constant."""
        patience = self.options.patience
        return (
            isinstance(self.scheduler, WarmupStableDecay)
            and patience is not None
            and progress.waited >= patience
            and progress.history.annealed is None
            and progress.done < self.scheduler.begin
        )

    def anneal(self, progress: Progress) -> None:
        """Go back to the best weights, and let the rate fall to zero from there."""
        history, best = progress.history, progress.weights
        length = max(_FEWEST_ANNEALED, round(_ANNEALED * (history.best_step or 0)))
        length = min(length, progress.total - progress.done)
        for module in {self.step, self.judged}:
            module.load_state_dict(best)
        self.scheduler.anneal(length)
        history.annealed, progress.waited = progress.done, 0
        progress.total = progress.done + length

    @property
    def judged(self) -> Any:
        """The module that is validated and whose weights are left in the end."""
        return self.step if self.average is None else self.average.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that a fit that ends here would leave."""
        return {name: value.detach().clone() for name, value in self.judged.state_dict().items()}

    @property
    def stateful(self) -> dict[str, Any]:
        """Everything that has a state, by its name in a checkpoint."""
        parts = {
            "step": self.step,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": None if self.average is None else self.average.module,
            "scaler": getattr(self.fabric.strategy.precision, "scaler", None),
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _compiles(self) -> bool:
        """Whether to compile the step, where it is possible."""
        step, flow, compile = self.step, self.step.flow, self.options.compile
        if compile == "auto":
            # Compiled programs keep their states, which a reversible stack does not.
            saving = any(getattr(module, "reversible", False) for module in flow.modules())
            parameters = sum(p.numel() for p in flow.parameters())
            compile = (
                step.objective.compiles
                and not flow.stochastic
                and not saving
                and self.fabric.world_size == 1
                and worth_compiling(_layers(step), parameters, self.batch_size, self.usual)
            )
        return bool(compile) and can_compile(self.fabric.device)

    def describe(self, started: str) -> str:
        """What was chosen, in one line; the start, if it was."""
        parts = ["no data"] if self.train is None else [f"{len(self.train):,} training samples"]
        if self.held is not None:
            parts.append(f"{len(self.held):,} to validate on every {self.interval} steps")
        trained = sum(p.numel() for p in self.step.parameters() if p.requires_grad)
        parts += [f"{trained:,} parameters", f"batches of {self.batch_size}"]
        group = self.optimizer.param_groups[0]
        rate = group.get("initial_lr", group["lr"])
        parts.append(f"{type(self.optimizer.optimizer).__name__} at {float(rate):g}")
        if self.decay is not None:
            parts.append(f"weights averaged with decay {self.decay:g}")
        parts.append(f"at most {self.total:,} steps")
        if started:
            parts.append(f"start {started!r}")
        return ", ".join(parts)

    def _settings(self, chosen: Optimizer) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued; it reads all samples."""
        flow, options, scheduler = self.step.flow, self.options, self.options.scheduler
        if options.checkpoint is None:
            return {}
        try:
            made = json.dumps(describe(flow))
        except DescriptionError:
            made = ""
        # The first setting that differs is the one that is named.
        return {
            "weights": shapes(self.step.state_dict()),
            "flow": f"{made}\n{flow.summary()}",
            "dtype": str(flow.dtype),
            "objective": ", ".join(map(_described, self.step.objective.modules())),
            "seed": options.seed,
            "optimizer": type(chosen).__name__,
            "lr": options.lr if options.optimizer is None else None,
            "clip": options.clip,
            "ema": self.decay,
            "scheduler": scheduler if isinstance(scheduler, str) else scheduler is not None,
            "precision": self.fabric.strategy.precision.precision,
            "rows": 0 if self.train is None else len(self.train),
            "batch_size": self.batch_size,
            "total_steps": self.total,
            "data": "" if self.train is None else self.train.fingerprint(),
            "validation": "" if self.held is None else self.held.fingerprint(),
            "optimizer_groups": [
                {key: value for key, value in group.items() if is_plain(value)}
                for group in chosen.param_groups
            ],
        }


def shapes(state: dict[str, Tensor]) -> list[Any]:
    """Names and shapes of weights."""
    return [[name, list(value.shape)] for name, value in state.items()]


def _described(part: nn.Module) -> str:
    """The class and the plain settings of an objective or a part of it.

    Of classes from elsewhere the name alone: what their attributes mean is not known here.
    """
    name, settings = type(part).__qualname__, dict[str, Any]()
    if type(part).__module__.startswith("flowkit."):
        settings = {k: v for k, v in vars(part).items() if k[0] != "_" and k != "training"}
    shown = [f"{key}={value!r}" for key, value in settings.items() if is_plain(value)]
    return f"{name}({', '.join(shown)})" if shown else name


def read_data(
    step: Step, data: Any, validation: Any, *, seed: int, device: torch.device
) -> tuple[DataSplit | None, DataSplit | None]:
    """Read training and validation samples; ``None`` where there are none.

    Datasets may draw, from a generator of the seed.

    Raises:
        ArgumentError: If a fraction is not in [0, 1).
        DataError: If the data cannot be used.
    """
    with drawing_from(torch.Generator(device).manual_seed(seed_of(seed))):
        return _read_data(step, data, validation, seed, device)


def _read_data(
    step: Step, data: Any, validation: Any, seed: int, device: torch.device
) -> tuple[DataSplit | None, DataSplit | None]:
    flow, objective = step.flow, step.objective
    fraction = validation is None or isinstance(validation, Real)
    if fraction:
        held: Any = checks.number("fit", "validation", validation or 0.0, least=0, below=1)
    if data is None:
        if objective.needs_data:
            raise DataError(f"{type(objective).__name__} needs data, got None")
        if not fraction:
            raise DataError(
                "fit expected validation data beside training data, got them alone; remedy: "
                "validation=None, and a callback that judges the flow"
            )
        return None, None

    def reads_labels(context: Tensor) -> bool:
        """Whether the embedding reads contexts of this dtype."""
        try:
            with torch.no_grad():
                copy.deepcopy(flow.embedding).eval()(context)  # type: ignore[union-attr]
        except (RuntimeError, TypeError, NotImplementedError):
            return False
        return True

    expected = Expected(
        flow.dtype or torch.get_default_dtype(),
        device,
        flow.event_shape,
        context=flow.context_size if flow.needs_context else 0,
        reads_labels=reads_labels if flow.context_size is None else None,
    )
    source, seen = as_source(data, expected)
    first = torch.tensor([0])
    unread = check_keys(source.batch(first), step, "the data")
    lost = seen.lost
    if not fraction:
        held, seen_held = as_source(validation, expected, "validation")
        also = check_keys(held.batch(first), step, "the validation data")
        unread, lost = unread or also, lost or seen_held.lost
    repeated, many = repeats(step, source, seen), periods(flow, source, seen)
    for text in filter(None, (unread, lost, repeated, many)):
        warn(text)
    return split(source, held, seed)


def start_from_data(
    step: Step, train: DataSplit | None, generator: torch.Generator, start: str | None = None
) -> None:
    """Initialise a flow that has not seen data yet, in the way of this name."""
    flow = step.flow
    if bool(flow.initialized):
        return
    if train is None:
        # A later fit must not start a trained flow anew.
        flow.initialize(None)
        return
    initialize(step, train, generator, start)


def initialize(
    step: Step, train: DataSplit, generator: torch.Generator, start: str | None
) -> None:
    """Initialise a flow from samples."""
    flow, objective = step.flow, step.objective
    index = train.representatives(_START_SAMPLES)
    given = train.batch(index)
    for name, value in given.items():
        check_finite(value, name, numbers=index)
    sample = objective.start({**given}, generator=generator) if "x" in given else given
    try:
        flow.initialize(sample.get("x"), sample.get("context"), start)
    except OutsideError as error:
        error = error.renumbered(index.tolist())
        if not torch.equal(given["x"], sample["x"]):
            error = OutsideError(
                f"{error.text}; these values include the noise that the fit adds to the data, as "
                "dequantisation does: half a cell on each side",
                error.rows,
            )
        raise error from None


def _layers(step: Step) -> int:
    return sum(hasattr(module, "scalar") for module in step.flow.modules())
