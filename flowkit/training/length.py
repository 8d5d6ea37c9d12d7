"""How long a fit is: steps from record to record, steps in all, samples per step."""

from __future__ import annotations

import math
from typing import NamedTuple

from flowkit.training.arguments import Options

# Steps of an "epoch" of a fit without data.
STEPS_WITHOUT_DATA = 100
# Without a number of epochs or steps: where validation ends the fit, and where it does not.
_MOST_STEPS, _EPOCHS, _FEWEST_STEPS = 20_000, 100, 2_000
# Steps from record to record, and the share of validation in the cost at most.
_INTERVAL, _VALIDATION_SHARE = 25, 0.1
# A fit that validation ends takes about so many steps.
_USUAL_STEPS = 3_000


class Length(NamedTuple):
    """Numbers of steps.

    Attributes:
        interval: Steps from record to record.
        total: Steps at most.
        usual: Steps that are likely.
    """

    interval: int
    total: int
    usual: int


def length(options: Options, per_epoch: int, batch_size: int, held: int | None) -> Length:
    """Choose the length of a fit.

    Args:
        options: The options of the fit.
        per_epoch: Steps per pass through the data.
        batch_size: Samples per step.
        held: Number of validation samples; ``None`` without validation.
    """
    if options.epochs is not None:
        return Length(per_epoch, options.epochs * per_epoch, options.epochs * per_epoch)
    # A sample takes a third of the time to validate on that it takes to train on.
    validation = (held or 0) / 3 / batch_size
    interval = max(_INTERVAL, math.ceil(validation / _VALIDATION_SHARE))
    if options.steps is not None:
        return Length(interval, options.steps, options.steps)
    if held is not None and options.scheduler == "plateau" and options.patience is not None:
        return Length(interval, _MOST_STEPS, _USUAL_STEPS)
    total = min(max(_EPOCHS * per_epoch, _FEWEST_STEPS), _MOST_STEPS)
    return Length(interval, total, total)


def samples_per_step(samples: int) -> int:
    """A power of two near a twelfth of all samples, between 64 and 1,024.

    Example:
        >>> [samples_per_step(n) for n in (100, 3_000, 50_000)]
        [64, 256, 1024]
    """
    return int(min(max(2 ** round(math.log2(max(samples, 1) / 12)), 64), 1024))
