"""fit: minimise an objective over data, on Lightning Fabric."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowkit.conditioners import StandardizeContext
from flowkit.data.convert import as_rows, check_finite
from flowkit.data.groups import part_of, split_parts
from flowkit.data.sources import Part, Rows
from flowkit.errors import DataError, OutsideError
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.objectives import MaximumLikelihood, Objective
from flowkit.training.checkpoint import prepare_path
from flowkit.training.history import History
from flowkit.training.inspection import ties, turns
from flowkit.training.keys import check_keys
from flowkit.training.loop import Callback, Run, Step
from flowkit.training.optimizers import DEFAULT_LR, Scheduler
from flowkit.training.output import output
from flowkit.training.randomness import Randomness
from flowkit.training.state import StateBefore

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_START_ROWS = 100_000


def fit(
    flow: Flow,
    data: Any = None,
    objective: Objective | None = None,
    *,
    validation: Any = 0.1,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 256,
    lr: float = DEFAULT_LR,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    scheduler: str | Scheduler | None = "cosine",
    clip: float | None = 10.0,
    patience: int | None = 20,
    ema: float | None = None,
    compile: bool | str = "auto",
    fabric: Fabric | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> History:
    """Train a flow in place and return what happened.

    The first fit of a flow starts it from the data (``flow.initialize``). With validation the
    weights of the best epoch are restored at the end, and the flow goes back to the device that it
    came from, also after an error or Ctrl-C; without validation those of the last finished epoch.
    A fit that ends before any leaves the flow as it was. The global random state is neither read
    nor changed, so that fits in threads with the same seed agree.

    Args:
        flow: The flow; trained in place.
        data: Events ``(rows, *event)`` as an array, frame, list or tensor; a dict of such with the
            keys ``x``, ``context``, ``weight``, ``group`` and whatever the objective reads; a
            map-style Dataset; a ``np.memmap`` or the path of an ``.npy`` file, both read batch by
            batch, and not to be written to meanwhile. ``None`` for objectives that need no data.
            Contexts are ``(rows, C)``, or of any shape that the embedding of the flow reads;
            integers and booleans are numbers, unless that embedding takes them as they are. Names
            that nothing knows are an error, as is a context that the flow does not read. Other
            names that this objective does not read, digits that the dtype of the flow loses,
            values that repeat (integers, rounded numbers) and circular columns of many turns are
            one warning each. Weights are scaled to mean one over the training rows and over the
            validation rows; a Dataset with weights is read once for it.
            Rows with the same number as ``group`` stay together: whole groups are held out, and
            a step sees as many whole groups as have about ``batch_size`` rows. Its weights are
            scaled for that, so objectives should heed them.
        objective: What to minimise; maximum likelihood by default.
        validation: Fraction of the rows held out, or separate validation data, or ``None``. A
            validation loss that is not finite is an error, as one of training is.
        epochs: Maximum number of epochs, 100 by default. The last incomplete batch of an epoch is
            left out; rows are shuffled anew for each.
        steps: Number of optimiser steps, in place of ``epochs``.
        batch_size: Rows per step, over all processes together; not read without data.
        lr: Learning rate of the default optimiser, Adam.
        optimizer: Callable from parameters to an optimiser, instead of Adam. One whose step needs
            a closure, such as ``torch.optim.LBFGS``, evaluates the loss of a batch several times a
            step, with the same noise: it needs large batches, and a line search.
        scheduler: ``"cosine"`` (to zero over the whole fit), ``"plateau"`` (tenfold down after
            ``patience // 2`` epochs without improvement), ``None``, or a callable from optimiser
            and total number of steps to a scheduler that is stepped every step, or, if it wants a
            metric as ``ReduceLROnPlateau`` does, every epoch with the validation loss, or without
            validation with the training loss.
        clip: Maximum norm of the gradient, above 0; ``None`` for no limit.
        patience: Epochs without a better validation loss before stopping; ``None`` for no limit.
        ema: Decay of an exponential moving average of the weights, which is then what is validated
            and restored; ``history.train`` is the loss of the weights themselves. It begins with
            the weights after the first step, and keeps ``min(ema, (1 + n) / (10 + n))`` of itself
            at step ``n + 1``. Buffers and parameters that are not trained are not averaged.
        compile: Whether to compile the step with ``torch.compile``: ``True``, ``False``, or
            ``"auto"``, which compiles long fits by maximum likelihood in one process, where it
            pays (:func:`flowkit.numerics.compiling.worth_compiling`: tens of thousands of steps). Without
            a C++ compiler the fit warns once and goes on uncompiled.
        fabric: A ``lightning_fabric.Fabric``: devices, precision, strategy. One device by default.
            Mixed precision lowers the inner layers; data stay as they are. ``"64-true"`` leaves
            the flow in float64. Pure half precision is refused.
        checkpoint: File written after every epoch. If it exists, the fit resumes from it, to the
            same bits as if it had not been interrupted; also if a callback had stopped it. A
            finished fit goes on when only ``epochs`` or ``steps`` are more, with the schedule of
            the new length from there on.
        seed: Seed of the split, the shuffling and the objective's own randomness.
        progress: Whether to show a progress bar, or where standard error is neither a terminal nor
            a notebook some lines; why the fit stopped and which epoch was kept is the last.
        callbacks: Called as ``callback(flow, history)`` after every epoch; a true result stops.

    Returns:
        The :class:`History`.

    Raises:
        DataError: If the data cannot be used: empty, one row, text, NaN, constant columns, or
            shapes that do not fit the flow; or if another argument cannot.
        NonFiniteLossError: If the loss, its gradient or a weight becomes NaN or infinite; names
            step, rows and layer. It is raised in all processes; an accelerator is asked every 20
            steps only.
        CheckpointError: If the checkpoint is damaged or belongs to another flow, other data or
            other settings; before the first step if it cannot be written; if the disk is full.
        ProcessError: If an objective or a callback raised in another process only. On accelerators
            an objective that does so leaves the others waiting: let it raise in all.

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
    _check_objects(flow, objective, optimizer, scheduler, fabric)
    _check_precision(flow, fabric)
    callbacks = _check_callbacks(callbacks)
    if epochs is not None and steps is not None:
        raise DataError(
            f"fit expected epochs or steps, got epochs={epochs!r} and steps={steps!r}; remedy: "
            "leave one of them out"
        )
    epochs = _whole("epochs", 100 if epochs is None else epochs)
    steps = None if steps is None else _whole("steps", steps)
    batch_size = _whole("batch_size", batch_size)
    patience = None if patience is None else _whole("patience", patience)
    seed, lr = _whole("seed", seed, least=0), _positive("lr", lr)
    clip = None if clip is None else _positive("clip", clip)
    if ema is not None and (not isinstance(ema, Real) or not 0 < float(ema) < 1):
        raise DataError(f"fit expected ema strictly between 0 and 1, or None; got {ema!r}")
    ema = None if ema is None else float(ema)
    if compile not in (True, False, "auto"):
        raise DataError(f"fit expected compile to be True, False or 'auto', got {compile!r}")
    path = None if checkpoint is None else _checkpoint_path(checkpoint)
    if fabric.world_size > 1 and not fabric._launched:
        fabric.launch()
    step = Step(flow, objective)
    random = Randomness(seed, fabric.device, fabric.global_rank)
    before, run = StateBefore(step), None
    try:
        with torch.inference_mode(False), torch.enable_grad(), _on_device(step, fabric):
            # The same in all processes; Datasets and layers that start from data may draw.
            with drawing_from(random.generator):
                train, held = _parts(flow, data, objective, validation, seed, fabric.device)
                _start_from_data(flow, objective, train, random.generator)
            shown = output(progress and fabric.is_global_zero)
            with closing(Run(step, fabric, train, held, random, shown)) as run:
                run.plan(epochs, steps, batch_size)
                run.prepare(lr, optimizer, scheduler, clip, patience, ema, compile)
                run.resume(path)
                return run.loop(callbacks)
    except BaseException:
        if run is None or run.salvaged is None:
            before.restore()
        raise


def _checkpoint_path(checkpoint: Any) -> Path:
    if not isinstance(checkpoint, (str, os.PathLike)) or os.path.isdir(checkpoint):
        raise DataError(
            f"fit expected checkpoint as the path of a file, not of a folder, got {checkpoint!r}; "
            "remedy: for example checkpoint='fit.ckpt'"
        )
    return prepare_path(checkpoint)


def _whole(name: str, value: Any, least: int = 1) -> int:
    integral = isinstance(value, Integral) and not isinstance(value, bool)
    if not integral or not least <= value < 2**63:
        raise DataError(f"fit expected {name} to be a whole number >= {least}, got {value!r}")
    return int(value)


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise DataError(f"fit expected {name} to be a number > 0, got {value!r}")
    return float(value)


def _check_objects(flow: Any, objective: Any, optimizer: Any, scheduler: Any, fabric: Any) -> None:
    """Make sure that every part is what its name says."""
    from lightning_fabric import Fabric

    if not isinstance(flow, Flow):
        raise DataError(
            f"fit expected a Flow, got {_named(flow)}; remedy: a recipe such as "
            "coupling_flow(2), or Flow(transform, base)"
        )
    if not isinstance(objective, Objective):
        raise DataError(
            f"fit expected an Objective, got {_named(objective)}; remedy: an instance such as "
            "MaximumLikelihood(), or a subclass of Objective for a loss of your own"
        )
    for part, name in ((flow, "flow"), (objective, "objective")):
        if any(tensor.is_inference() for tensor in part.state_dict(keep_vars=True).values()):
            raise DataError(
                f"fit cannot train what was made in torch.inference_mode(), as this {name}; "
                f"remedy: make it outside, or under torch.no_grad()"
            )
    if optimizer is not None and (
        not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer)
    ):
        raise DataError(
            "fit expected optimizer as a callable from parameters to an optimizer, got "
            f"{_named(optimizer)}; remedy: lambda p: torch.optim.AdamW(p, lr=1e-3)"
        )
    if scheduler not in (None, "cosine", "plateau") and not callable(scheduler):
        raise DataError(
            f"fit knows the schedulers 'cosine', 'plateau', None and callables; got {scheduler!r}"
        )
    if not isinstance(fabric, Fabric):
        raise DataError(
            f"fit expected fabric as a lightning_fabric.Fabric, got {_named(fabric)}; remedy: for "
            "example Fabric(accelerator='cpu', devices=1)"
        )


def _named(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, str) else f"an object of {type(value).__name__}"


def _check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (None,)
    if not all(callable(callback) for callback in listed):
        raise DataError(
            f"fit expected callbacks as a list of callables, got {_named(callbacks)}; remedy: "
            "callbacks=[function]"
        )
    return listed


def _check_precision(flow: Flow, fabric: Fabric) -> None:
    """Refuse half precision: it keeps two or three digits of data, log-densities and weights."""
    precision = fabric.strategy.precision.precision
    if precision in ("16-true", "bf16-true") or flow.dtype in (torch.float16, torch.bfloat16):
        raise DataError(
            "fit expected to train in float32 or float64, got a flow in "
            f"{flow.dtype} and a Fabric with precision={precision!r}: two or three digits are too "
            "few for data and log-densities; remedy: flow.float(), and precision='bf16-mixed' or "
            "'32-true'"
        )


@contextmanager
def _on_device(step: Step, fabric: Fabric) -> Iterator[None]:
    """Lend flow and objective to Fabric's device, in the dtype to which Fabric will bring them."""
    home = step.flow.initialized.device
    try:
        fabric.strategy.precision.convert_module(step)
        step.to(fabric.device)
        yield
    finally:
        step.to(home)


def _parts(
    flow: Flow,
    data: Any,
    objective: Objective,
    validation: Any,
    seed: int,
    device: torch.device,
) -> tuple[Part | None, Part | None]:
    """Training and validation rows; ``None`` for those that there are not."""
    fraction = validation is None or isinstance(validation, Real)
    if data is None:
        if objective.needs_data:
            raise DataError(f"{type(objective).__name__} needs data, got None")
        if not fraction:
            raise DataError(
                "fit expected validation data beside training data, got them alone; remedy: "
                "validation=None, and a callback that judges the flow"
            )
        return None, None
    rows, unread = _checked_rows(flow, data, objective, device, "the data")
    others, also = rows, ""
    if not fraction:
        others, also = _checked_rows(flow, validation, objective, device, "the validation data")
    warned = (
        unread or also,
        rows.seen.lost or others.seen.lost,
        ties(flow, objective, rows),
        turns(flow, rows),
    )
    for text in filter(None, warned):
        warnings.warn(text, stacklevel=3)
    if fraction:
        return split_parts(rows, float(validation or 0.0), seed)
    if len(rows) < 2:
        raise DataError(f"fit needs at least 2 rows, got {len(rows)}")
    held = part_of(others, "validation")
    held.of = "the validation data"
    return part_of(rows, "training"), held


def _checked_rows(
    flow: Flow, data: Any, objective: Objective, device: torch.device, what: str
) -> tuple[Rows, str]:
    """Rows that fit the flow and the objective, and what to warn of."""
    own = flow.embedding is not None and not isinstance(flow.embedding, StandardizeContext)
    size = flow.context_size if flow.needs_context else 0
    dtype = flow.dtype or torch.get_default_dtype()

    def read(labels: tuple[str, ...]) -> Rows:
        return as_rows(data, dtype, device, flow.event_shape, context=size, labels=labels)

    rows = read(("context",) if own else ())
    first = rows.batch(torch.tensor([0]))
    if flow.needs_context and "context" not in first:
        raise DataError(
            f"this flow is conditional: data expected a dict with x and context (rows, "
            f"{flow.context_size or '*'}), got {sorted(first)}"
        )
    if objective.needs_data and "x" not in first:
        raise DataError(f"data expected a dict with the key x, got {sorted(first)}")
    unread = check_keys(first, flow, objective, what)
    if own and "context" in first and not _takes(flow.embedding, first["context"]):
        rows = read(())
    return rows, unread


def _takes(embedding: nn.Module | None, context: Tensor) -> bool:
    """Whether an embedding reads contexts of this dtype: labels, or else numbers."""
    if context.is_floating_point():
        return True
    try:
        with torch.no_grad():
            copy.deepcopy(embedding).eval()(context)  # type: ignore[union-attr]
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def _start_from_data(
    flow: Flow, objective: Objective, train: Part | None, generator: torch.Generator
) -> None:
    """Initialise a flow that has not seen data yet."""
    if bool(flow.initialized):
        return
    index = None if train is None else train.representatives(_START_ROWS)
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
