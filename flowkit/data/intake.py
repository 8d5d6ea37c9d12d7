"""Read training and validation data for a model, of which only what concerns the data is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkit.data import batches
from flowkit.data.batches import DataSplit
from flowkit.data.convert import Expected, as_source
from flowkit.data.inspection import Inspection
from flowkit.data.sources import Source
from flowkit.errors import DataError


@dataclass(frozen=True)
class Intake:
    """Data that were read.

    Attributes:
        source: The samples.
        first: The first of them, as a batch.
        inspection: What some of them show.
    """

    source: Source
    first: dict[str, Tensor]
    inspection: Inspection


def read(data: Any, expected: Expected) -> Intake:
    """Convert data to what a model expects.

    Args:
        data: As in :func:`flowkit.data.convert.as_source`.
        expected: What the model expects.

    Raises:
        DataError: If the data cannot be used.
    """

    def convert(*labels: str) -> Intake:
        source, inspection = as_source(data, expected, labels)
        return Intake(source, source.batch(torch.tensor([0])), inspection)

    if expected.reads_labels is None:
        return convert()
    found = convert("context")
    context = found.first.get("context")
    if context is None or context.is_floating_point() or expected.reads_labels(context):
        return found
    return convert()


def split(
    data: Intake, validation: float | Intake, seed: int
) -> tuple[DataSplit, DataSplit | None]:
    """Training and validation samples.

    Args:
        data: The data.
        validation: The fraction that is held out, or separate validation data.
        seed: Seed of the split.

    Raises:
        DataError: If there are too few samples or groups.
    """
    if not isinstance(validation, Intake):
        return batches.split(data.source, validation, seed)
    if len(data.source) < 2:
        raise DataError(f"fit needs at least 2 samples, got {len(data.source)}")
    held = batches.whole(validation.source, "validation", "the validation data")
    return batches.whole(data.source, "training"), held
