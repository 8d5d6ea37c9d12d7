"""Decide everything before the first step of a fit: data, start, optimiser, compilation."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flowkit import checks
from flowkit.conditioners import StandardizeContext
from flowkit.config import describe
from flowkit.data import intake
from flowkit.data.batches import DataSplit
from flowkit.data.convert import Expected, check_finite
from flowkit.errors import ArgumentError, DataError, DescriptionError, OutsideError
from flowkit.flow import Flow
from flowkit.numerics.compiling import can_compile, seconds_to_compile, worth_compiling
from flowkit.objectives import Objective
from flowkit.training.arguments import Options
from flowkit.training.average import MovingAverage
from flowkit.training.checkpoint import described, plain_settings
from flowkit.training.keys import check_keys
from flowkit.training.optimizers import choose_optimizer, choose_scheduler, needs_closure
from flowkit.training.output import Output
from flowkit.training.processes import Processes, release
from flowkit.training.randomness import Randomness
from flowkit.training.step import Step
from flowkit.training.suitability import periods, repeats
from flowkit.training.warn import warn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_START_SAMPLES = 100_000
_EPOCHS = 100
_EPOCH_WITHOUT_DATA = 100


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first step of a fit.

    Attributes:
        step: Flow and objective.
        model: The step as Fabric and the compiler run it.
        optimizer: The optimiser as Fabric runs it.
        by_closure: Whether the optimiser evaluates the loss itself.
        scheduler: What sets the learning rate after every step.
        plateau: What sets it after every epoch, by a loss.
        average: The moving average of the weights.
        train: Training samples; ``None`` if the objective needs none.
        held: Validation samples.
        fabric: Devices, precision, strategy.
        processes: The processes.
        random: Their random numbers.
        options: The options of the fit.
        batch_size: Samples per step, no more than there are.
        per_epoch: Steps per epoch.
        total: Steps of the fit.
        settings: What must agree for a checkpoint to be continued.
    """

    step: Step
    model: Any
    optimizer: Any
    by_closure: bool
    scheduler: LRScheduler | None
    plateau: Any
    average: MovingAverage | None
    train: DataSplit | None
    held: DataSplit | None
    fabric: Fabric
    processes: Processes
    random: Randomness
    options: Options
    batch_size: int
    per_epoch: int
    total: int
    settings: dict[str, Any]

    @property
    def limit(self) -> str:
        """The reason for which a complete fit stops."""
        return "epochs" if self.options.steps is None else "steps"

    def out_of_patience(self, waited: int) -> bool:
        """Whether so many epochs without a better one end the fit."""
        return self.options.patience is not None and waited >= self.options.patience

    @property
    def judged(self) -> Any:
        """The module that is validated and whose weights are left in the end."""
        return self.step if self.average is None else self.average.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that a fit that ends here would leave."""
        return {name: value.detach().clone() for name, value in self.judged.state_dict().items()}

    @property
    def stateful(self) -> dict[str, Any]:
        """What has a state, besides the step and the optimiser."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        parts = {
            "scheduler": self.scheduler,
            "plateau": self.plateau,
            "average": None if self.average is None else self.average.module,
            "scaler": scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}


def read_data(
    flow: Flow,
    objective: Objective,
    data: Any,
    validation: Any,
    seed: int,
    device: torch.device,
) -> tuple[DataSplit | None, DataSplit | None]:
    """Read training and validation samples; ``None`` where there are none.

    Raises:
        ArgumentError: If a fraction is not in [0, 1).
        DataError: If the data cannot be used.
    """
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
    own = flow.embedding is not None and not isinstance(flow.embedding, StandardizeContext)
    expected = Expected(
        flow.dtype or torch.get_default_dtype(),
        device,
        flow.event_shape,
        context=flow.context_size if flow.needs_context else 0,
        reads_labels=(lambda context: _reads(flow.embedding, context)) if own else None,
    )
    given = intake.read(data, expected)
    unread = check_keys(given.first, flow, objective, "the data")
    lost = given.inspection.lost
    if not fraction:
        held = intake.read(validation, expected)
        also = check_keys(held.first, flow, objective, "the validation data")
        unread, lost = unread or also, lost or held.inspection.lost
    repeated = repeats(flow, objective, given.source, given.inspection)
    many = periods(flow, given.source, given.inspection)
    for text in filter(None, (unread, lost, repeated, many)):
        warn(text)
    return intake.split(given, held, seed)


def _reads(embedding: nn.Module | None, context: Tensor) -> bool:
    """Whether an embedding reads contexts of this dtype."""
    try:
        with torch.no_grad():
            copy.deepcopy(embedding).eval()(context)  # type: ignore[union-attr]
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def start_from_data(
    flow: Flow, objective: Objective, train: DataSplit | None, generator: torch.Generator
) -> None:
    """Initialise a flow that has not seen data yet."""
    if bool(flow.initialized):
        return
    index = None if train is None else train.representatives(_START_SAMPLES)
    sample = {} if train is None or index is None else train.batch(index)
    for name, value in sample.items():
        check_finite(value, name, numbers=index)
    given = sample.get("x")
    if "x" in sample:
        sample = objective.start(sample, generator=generator)
    # Also without data: a later fit must not start a trained flow anew.
    try:
        flow.initialize(sample.get("x"), sample.get("context"))
    except OutsideError as error:
        if index is not None:
            error = error.renumbered(index.tolist())
        if given is not None and not torch.equal(given, sample["x"]):
            error = OutsideError(
                f"{error.text}; these values include the noise that the fit adds to the data, as "
                "dequantisation does: half a cell on each side",
                error.rows,
            )
        raise error from None


def make_plan(
    step: Step,
    fabric: Fabric,
    options: Options,
    train: DataSplit | None,
    held: DataSplit | None,
    generator: torch.Generator,
    output: Output,
) -> Plan:
    """Build optimiser, schedule and average, and hand the step to Fabric."""
    batch_size, per_epoch = options.batch_size, _EPOCH_WITHOUT_DATA
    if train is not None:
        batch_size = min(batch_size, len(train))
        per_epoch = train.steps(batch_size)
        if batch_size < fabric.world_size:
            raise ArgumentError(
                f"a batch of {batch_size} samples cannot be shared by {fabric.world_size} "
                "processes; remedy: a larger batch_size"
            )
    total = options.steps or (options.epochs or _EPOCHS) * per_epoch
    chosen = choose_optimizer(
        step,
        options.lr,
        options.optimizer,
        device=fabric.device,
        scaled=fabric.strategy.precision.precision == "16-mixed",
        clip=options.clip is not None,
    )
    compiled = _compiles(step, options.compile, fabric, batch_size, total)
    if compiled:
        output.say(
            f"compiles the training step, which takes about "
            f"{seconds_to_compile(_layers(step)):.0f} s before the first one"
        )
    settings = {
        **_settings(step, fabric, options, chosen),
        "rows": 0 if train is None else len(train),
        "batch_size": batch_size,
        "total_steps": total,
    }
    if options.checkpoint is not None:
        # Only here, for it reads all samples.
        settings["data"] = "" if train is None else train.fingerprint()
        settings["validation"] = "" if held is None else held.fingerprint()
    random = Randomness(options.seed, fabric.global_rank, generator, step, chosen, compiled)
    model, optimizer = fabric.setup(torch.compile(step) if compiled else step, chosen)  # type: ignore[arg-type]
    settings["optimizer_groups"] = [plain_settings(group) for group in chosen.param_groups]
    try:
        scheduler, plateau = choose_scheduler(chosen, options.scheduler, total, options.patience)
    except BaseException:
        release(model)
        raise
    if scheduler is not None:
        # A hook: steps that the loss scaling of 16-mixed leaves out are not counted.
        by_step = scheduler.step
        chosen.register_step_post_hook(lambda *_: by_step())
    average = None if options.ema is None else MovingAverage(step, options.ema)
    return Plan(
        step=step, model=model, optimizer=optimizer, by_closure=needs_closure(chosen),
        scheduler=scheduler, plateau=plateau, average=average, train=train, held=held,
        fabric=fabric, processes=Processes(fabric), random=random, options=options,
        batch_size=batch_size, per_epoch=per_epoch, total=total, settings=settings,
    )  # fmt: skip


def _layers(step: Step) -> int:
    return sum(hasattr(module, "scalar") for module in step.flow.modules())


def _compiles(step: Step, compile: bool | str, fabric: Fabric, size: int, total: int) -> bool:
    """Whether to compile the step, where it is possible."""
    flow = step.flow
    if compile == "auto":
        # Compiled programs keep their states, which a reversible stack does not.
        saving = any(getattr(module, "reversible", False) for module in flow.modules())
        parameters = sum(p.numel() for p in flow.parameters())
        compile = (
            step.objective.compiles
            and not flow.stochastic
            and not saving
            and fabric.world_size == 1
            and worth_compiling(_layers(step), parameters, size, total)
        )
    return bool(compile) and can_compile(fabric.device)


def _settings(step: Step, fabric: Fabric, options: Options, chosen: Optimizer) -> dict[str, Any]:
    flow, scheduler = step.flow, options.scheduler
    try:
        made = json.dumps(describe(flow))
    except DescriptionError:
        made = ""
    return {
        "weights": [[name, list(p.shape)] for name, p in step.state_dict().items()],
        "flow": f"{made}\n{flow.summary()}",
        "dtype": str(flow.dtype),
        "objective": described(step.objective),
        "seed": options.seed,
        "optimizer": type(chosen).__name__,
        "lr": options.lr if options.optimizer is None else None,
        "clip": options.clip,
        "ema": options.ema,
        "scheduler": scheduler if isinstance(scheduler, str) else scheduler is not None,
        "precision": fabric.strategy.precision.precision,
    }
