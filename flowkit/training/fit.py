"""fit: minimise an objective over data, on Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from flowkit import checks
from flowkit.flow import Flow
from flowkit.objectives import MaximumLikelihood, Objective
from flowkit.training.arguments import (
    DEFAULT_LR,
    Callback,
    Optimize,
    Options,
    Schedule,
    check_parts,
)
from flowkit.training.checkpoint import load_state, prepare_path, resume, store
from flowkit.training.history import History
from flowkit.training.loop import run
from flowkit.training.output import output
from flowkit.training.processes import released
from flowkit.training.setup import Plan, read_data
from flowkit.training.start import choose_start
from flowkit.training.step import Step
from flowkit.training.weights import StateBefore

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    flow: Flow,
    data: Any = None,
    objective: Objective | None = None,
    *,
    validation: Any = 0.1,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = DEFAULT_LR,
    optimizer: Optimize | None = None,
    scheduler: str | Schedule | None = "plateau",
    clip: float | None = 10.0,
    patience: int | None = 16,
    ema: float | str | None = "auto",
    compile: bool | str = "auto",
    fabric: Fabric | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> History:
    """Train a flow in place, and return the history of its losses.

    The first fit of a flow starts it from the data (``flow.initialize``). The rate rises over the
    first 50 steps and stays; when validation has stopped improving, the fit goes back to the best
    weights, lowers the rate to zero from there, and ends. With validation the best weights are
    restored at the end, those of the start among them; without validation those of the last
    record. Where ``fit`` chose the start itself (``flow.starts``), trained weights are kept by
    maximum likelihood only if they are better on held-out samples by two standard errors of the
    paired difference, of at most five nats per sample; a start that is kept is fitted again to all
    samples, those of a held-out fraction included. The flow goes back to the device that it came
    from, also after an error or Ctrl-C. A fit that ends before any record leaves the flow as it
    was. The global random state is neither read nor changed, so that fits in threads with the same
    seed agree.

    Args:
        flow: The flow; trained in place.
        data: Events ``(samples, *event)`` as an array, frame, list or tensor; a dict of such with
            the keys ``x``, ``context``, ``weight``, ``group`` and whatever the objective reads; a
            map-style Dataset; a ``np.memmap`` or the path of an ``.npy`` file, both read batch by
            batch, and not to be written to meanwhile. ``None`` for objectives that need no data.
            Contexts are ``(samples, C)``, or of any shape that the embedding of the flow
            reads; integers and booleans are numbers, unless that embedding takes them as they are.
            Unknown names are an error, as is a context that the flow does not read. There is one
            warning each of other names that this objective does not read, digits that the dtype
            of the flow loses, values that repeat (integers, rounded numbers) and circular columns
            of many periods. Weights are scaled to mean one over the training samples and over the
            validation samples; a Dataset with weights is read once for it.
            Samples with the same ``group`` stay together: whole groups are held out, and a step
            takes as many whole groups as have about ``batch_size`` samples. Its weights are
            scaled for that, so objectives should use them.
        objective: What to minimise; maximum likelihood by default.
        validation: Fraction of the samples held out, or separate validation data, or ``None``. A
            validation loss that is not finite is an error, as one of training is.
        epochs: Maximum number of passes through the data. The last incomplete batch of each is
            left out; samples are shuffled anew for each. Without data an epoch is 100 steps.
            Validated and recorded is after every epoch, and without this argument every 25 steps,
            or less often where that would take more than a tenth of the time.
        steps: Maximum number of optimiser steps, in place of ``epochs``. Without either at most
            20,000 where a plateau of validation ends the fit; else 100 epochs, but at least 2,000
            steps and at most 20,000.
        batch_size: Samples per step, over all processes together; by default a power of two near
            a twelfth of the training samples, between 64 and 1,024. Not read without data.
        lr: Learning rate of the default optimiser, Adam.
        optimizer: Callable from parameters to an optimiser, instead of Adam. Starts are tried on
            copies of the flow, for whose parameters it is called too; if it does not take those
            that it is given, they are compared untrained. One whose step needs a closure, such as
            ``torch.optim.LBFGS``, evaluates the loss of a batch several times per step, with the
            same noise: it needs large batches, and a line search.
        scheduler: ``"plateau"`` (as above: up over 50 steps, constant, and down to zero along a
            line, over 0.4 times the steps to the best weights but at least 100 after a plateau of
            validation, else over the last two sevenths of the fit), ``"cosine"`` (to zero over the
            whole fit), ``None``, or a callable from optimiser and total number of steps to a
            scheduler that is stepped every step, or, if it wants a metric as ``ReduceLROnPlateau``
            does, at every record with the validation loss, or without validation with the training
            loss.
        clip: Maximum norm of the gradient, above 0; ``None`` for no limit.
        patience: Validations without a better loss before the rate falls, or with another schedule
            before the fit stops; ``None`` for no limit. The start counts as one, by which to beat.
        ema: Decay of an exponential moving average of the weights, which is then what is validated
            and restored; ``history.train`` is the loss of the weights themselves. It begins with
            the weights after the first step, and keeps ``min(ema, (1 + n) / (10 + n))`` of itself
            at step ``n + 1``. Buffers and parameters that are not trained are not averaged.
            ``None`` for none; ``"auto"`` is 0.99, but none where the optimiser needs a closure,
            whose few long steps an average would undo.
        compile: Whether to compile the step with ``torch.compile``: ``True``, ``False``, or
            ``"auto"``, which compiles long fits by maximum likelihood in one process, where it
            pays (:func:`flowkit.numerics.compiling.worth_compiling`: tens of thousands of steps).
            Without a C++ compiler the fit warns once and goes on uncompiled.
        fabric: A ``lightning_fabric.Fabric``: devices, precision, strategy. One device by default.
            Mixed precision lowers the inner layers; data stay as they are. ``"64-true"`` leaves
            the flow in float64. Pure half precision is refused.
        checkpoint: File written at every record, but not while starts are tried. If it exists,
            the fit resumes from it, to the same bits as if it had not been interrupted; also if a
            callback had stopped it. A finished fit goes on when only ``epochs`` or ``steps`` are
            more, with the schedule of the new length from there on.
        seed: Seed of the split, the shuffling and the objective's own randomness.
        progress: Whether to show a progress bar, or where standard error is neither a terminal nor
            a notebook some lines; the first says what was chosen, the last why the fit stopped and
            which weights it leaves.
        callbacks: Called as ``callback(flow, history)`` at every record; a true result stops.

    Returns:
        The :class:`History`.

    Raises:
        ArgumentError: If an argument other than the data is of the wrong kind or out of range.
        DataError: If the data cannot be used: empty, one sample, text, NaN, constant columns, or
            shapes that do not fit the flow.
        NonFiniteLossError: If the loss, its gradient or a weight becomes NaN or infinite; names
            step, samples and layer. It is raised in all processes; an accelerator is asked every
            20 steps only.
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
    check_parts(flow, objective, fabric)
    options = Options(
        epochs, steps, batch_size, lr, optimizer, scheduler, clip, patience, ema, compile,
        checkpoint, seed, callbacks,
    )  # fmt: skip
    shows = checks.flag("fit", "progress", progress)
    if options.checkpoint is not None:
        prepare_path(options.checkpoint)
    if fabric.world_size > 1 and not fabric._launched:
        fabric.launch()
    step, shown = Step(flow, objective), output(shows=shows and fabric.is_global_zero)
    before, made = StateBefore(step), None
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), _on_device(step, fabric):
            train, held = read_data(
                step, data, validation, seed=options.seed, device=fabric.device
            )
            start, tried = choose_start(step, fabric, options, train, held, shown)
            plan = Plan(step, fabric, options, train=train, held=held, start=start, output=shown)
            with released(plan.model):
                made = resume(plan, shown)
                # The same numbers as from the beginning, which callbacks are to see.
                if tried and not (options.callbacks or plan.random.compiled):
                    load_state(plan, made, tried)
                    if made.history.stopped:  # after which no record would write it
                        store(plan, made)
                made.history.started = made.history.started or start or ""
                made.history.plan = plan.describe(made.history.started)
                shown.say(made.history.plan)
                return run(plan, made, shown)
    except BaseException:
        if made is None or made.weights is None or not made.history.seconds:
            before.restore()
        raise


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
