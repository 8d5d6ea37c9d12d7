"""Warn of data that do not suit a flow or an objective, though they can be read."""

from __future__ import annotations

import math

import torch

from flowkit.data.inspection import Inspection, evenly_spaced, first_names, repeated_values
from flowkit.data.sources import Source
from flowkit.flow import Flow
from flowkit.training.step import Step
from flowkit.transforms import CircularShift, Compose, Rescale

_PERIODS, _PERIODS_AWAY = 3, 5


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
