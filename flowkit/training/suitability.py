"""Check whether data suit a flow and an objective: their names, and values that may be amiss."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from flowkit.data.inspection import Inspection, evenly_spaced, first_names, repeated_values
from flowkit.data.sources import Source
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives import Objective
from flowkit.training.step import Step
from flowkit.transforms import CircularShift, Compose, Rescale

_PERIODS, _PERIODS_AWAY = 3, 5
_OWN = ("x", "context", "weight", "group")
# What one objective reads, and data for several of them hold.
_OF_ONE = {"force": "ForceMatching", "row": "DependentLikelihood"}


def check_keys(batch: Mapping[str, Tensor], step: Step, what: str) -> str:
    """Refuse unknown and missing names, and warn of those that are known but not read here.

    Args:
        batch: One sample of the data.
        step: Flow and objective.
        what: Which data these are, for messages.

    Returns:
        A warning; empty if everything is read.

    Raises:
        DataError: If the context of a conditional flow or ``x`` is missing; if the objective
            states what it reads, and a name is neither among that nor ``x``, ``context``,
            ``weight`` or ``group``; if the flow does not read the context.
    """
    flow, objective = step.flow, step.objective
    if flow.needs_context and "context" not in batch:
        raise DataError(
            f"this flow is conditional: data expected a dict with x and context (samples, "
            f"{flow.context_size or '*'}), got {sorted(batch)}"
        )
    if objective.needs_data and "x" not in batch:
        raise DataError(f"data expected a dict with the key x, got {sorted(batch)}")
    reads, label = objective.reads, type(objective).__name__
    if reads is None:
        return ""
    known = [*_OWN, *sorted(reads - {*_OWN})]
    unknown = [name for name in batch if name not in {*known, *_OF_ONE}]
    if unknown:
        raise DataError(
            f"{what} hold {_listed(unknown)}, which nothing reads: fit reads {_listed(_OWN)}, and "
            f"{label} reads {_listed(sorted(reads)) or 'nothing'}; remedy: "
            f"{_nearest(unknown[0], known) or 'leave it out'}"
        )
    if "context" in batch and not flow.needs_context:
        raise DataError(
            f"{what} have a context, which this unconditional flow would ignore; remedy: leave it "
            "out, or build a flow that reads it, for example "
            f"coupling_flow(features, context={batch['context'].shape[-1]})"
        )
    for name in batch:
        if name in {*_OF_ONE} - reads:
            return (
                f"{what} have {name!r}, which {label} does not read; remedy: {_OF_ONE[name]}, or "
                "leave it out"
            )
    if "weight" in batch and not ("weight" in reads and {"x", "context"} & reads & {*batch}):
        return (
            f"{what} have weights, which {label} does not read here; remedy: leave 'weight' out, "
            "or an objective that weighs its samples, such as MaximumLikelihood"
        )
    if "x" in batch and "x" not in reads and bool(flow.initialized):
        return (
            f"{what} have x, which {label} does not read: only a flow that is new starts from it; "
            "remedy: leave 'x' out"
        )
    return ""


def _listed(names: Collection[Any]) -> str:
    return ", ".join(map(repr, names))


def _nearest(name: Any, known: Iterable[str]) -> str:
    """Suggest a known name that is close, if there is one."""
    given, others = str(name).lower(), [key for key in known if key != name]
    near = [key for key in others if key == given or (len(key) > 2 and key in given)]
    near = near or difflib.get_close_matches(given, others, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else ""


class Watched(dict[str, Tensor]):
    """Record which names of a batch are read.

    Example:
        >>> from flowkit.training.suitability import Watched
        >>> seen = set()
        >>> batch = Watched({"x": 1, "weights": 2}, seen)
        >>> batch["x"], batch.get("weight"), sorted(seen)
        (1, None, ['weight', 'x'])
    """

    def __init__(self, tensors: Mapping[str, Tensor], seen: set[str]) -> None:
        super().__init__(tensors)
        self.seen = seen

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        self.seen.update(super().__iter__())
        return super().__iter__()

    # Every other way to read goes through one of the two above.
    __contains__, get = Mapping.__contains__, Mapping.get  # type: ignore[assignment]
    keys, values, items = Mapping.keys, Mapping.values, Mapping.items  # type: ignore[assignment]


class Reading:
    """Record which names an objective reads before the first record, if it does not state them.

    Args:
        objective: The objective.
        weighted: Whether the data have weights, and not the groups alone.
        off: Whether not to look: a compiled step cannot be watched.

    Example:
        >>> from flowkit.objectives import Loss, Objective
        >>> class Own(Objective):
        ...     def forward(self, flow, batch):
        ...         return Loss(-flow.log_prob(batch["x"]).mean(), {})
        >>> reading = Reading(Own(), weighted=False, off=False)
        >>> batch = reading.watched({"x": 1, "years": 2})
        >>> batch["x"], reading.close()
        (1, "nothing has read 'years' of the data so far; remedy: leave it out, \
or read it in the objective")
    """

    def __init__(self, objective: Objective, *, weighted: bool, off: bool) -> None:
        self.off = off or objective.reads is not None
        self.ignored = {"x", "group"} if weighted else {"x", "group", "weight"}
        self.given: dict[str, None] = {}
        self.read: set[str] = set()

    def watched(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch, which notes what is read of it while that is of interest."""
        if self.off:
            return batch
        self.given.update(dict.fromkeys(batch))
        return Watched(batch, self.read)

    def close(self) -> str:
        """Stop looking, and return a warning of names that nothing has read; empty without any.

        Not of ``x``, from which a flow starts, and not of groups, which ``fit`` reads.
        """
        self.off = True
        for name in self.given:
            if name not in self.read | self.ignored:
                near = _nearest(name, {*_OWN, *self.read} - {*self.given})
                remedy = near or "leave it out, or read it in the objective"
                return f"nothing has read {name!r} of the data so far; remedy: {remedy}"
        return ""


def repeats(step: Step, source: Source, seen: Inspection) -> str:
    """Warn of columns that repeat values under an objective that diverges there.

    Not where a layer of the flow, or the objective, adds noise to them.
    """
    flow, objective = step.flow, step.objective
    noisy = any(getattr(layer, "accepts_integers", False) for layer in flow.transform.modules())
    if noisy or not objective.diverges_at_ties or not seen.repeats:
        return ""
    some = source.batch(evenly_spaced(len(source), math.prod(flow.event_shape)))
    generator = torch.Generator(source.device).manual_seed(0)
    again = repeated_values(objective.start(some, generator=generator)["x"])
    repeated = [column for column in seen.repeats if column in again]
    if not repeated:
        return ""
    return (
        f"x: column(s) {first_names(repeated, seen.columns)} repeat values, as rounded numbers, "
        "counts or categories do: no density has them, and the likelihood grows without bound as "
        "the flow learns spikes; remedy: noise over the width of the rounding, by the layer "
        "flowkit.stochastic.Dequantize, by FlowDensity(dequantize=width) or by "
        "flowkit.data.dequantize; a column of a few values is better a context"
    )


def periods(flow: Flow, source: Source, seen: Inspection) -> str:
    """Warn of circular columns that span many periods, or lie many periods away.

    They are more likely in another unit. Circular columns are those of the first layer, which
    reads the data modulo a period.
    """
    layer = flow.transform
    while isinstance(layer, Compose):
        layer = layer[0]
    if not isinstance(layer, (Rescale, CircularShift)):
        return ""
    ends = torch.tensor([layer.lower, layer.upper], dtype=torch.float64)
    ends = ends.reshape(2, -1).expand(2, len(layer.circular))
    x = source.column("x", evenly_spaced(len(source), len(layer.circular)))
    if x is None:
        return ""
    low, high, period = x.amin(0), x.amax(0), ends[1] - ends[0]
    span = (high - low) / period
    away = torch.maximum(high - ends[1], ends[0] - low) / period
    circular = torch.tensor(layer.circular)
    for counts, most, what in (
        (span, _PERIODS, "span many periods"),
        (away, _PERIODS_AWAY, "lie many periods away"),
    ):
        many = (circular & (counts > most)).nonzero().flatten().tolist()
        if many:
            lower, upper = ends[:, many[0]].tolist()
            return (
                f"x: circular column(s) {first_names(many, seen.columns)} {what} (the first "
                f"{float(counts[many[0]]):.0f} periods of [{lower:g}, {upper:g}]), and "
                f"{layer.label} reads them modulo a period; remedy: bounds of one period in the "
                "unit of the data, as lower=0, upper=360 for degrees, or values of one period"
            )
    return ""
