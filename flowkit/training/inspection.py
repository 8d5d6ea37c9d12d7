"""Columns of data, looked at before a fit: digits that a dtype loses, values that repeat."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkit.flow import Flow
from flowkit.objectives import Objective
from flowkit.transforms import CircularShift, Compose, Rescale

if TYPE_CHECKING:
    from flowkit.data.sources import Rows

_ROWS_AT_MOST = 2000
_NUMBERS_AT_MOST = 4_000_000
_NO_COLUMNS = ("weight", "group", "row")
_ENOUGH_ROWS = 20
_TURNS, _TURNS_AWAY = 3, 5
# More than drawing with replacement gives one row.
_AT_ONE_VALUE = 10


@dataclass(frozen=True)
class Inspection:
    """What some rows tell.

    Attributes:
        lost: Which digits are lost, in words.
        repeats: The columns of ``x`` whose values repeat.
        columns: Names of the columns of ``x``, if they have any.
    """

    lost: str = ""
    repeats: tuple[int, ...] = ()
    columns: Sequence[str] = ()


NOTHING = Inspection()


def inspect(
    values: Mapping[str, Tensor], dtype: torch.dtype, columns: Mapping[str, Sequence[str]]
) -> Inspection:
    """Look at some rows of each array, in the dtypes that they came in.

    Args:
        values: The rows.
        dtype: What they will be rounded to.
        columns: Names of the columns, where there are any.
    """
    repeats = repeated_values(values["x"].double()) if "x" in values else []
    lost = lost_digits(values, dtype, columns)
    return Inspection(lost, tuple(repeats), columns.get("x") or ())


def _named(places: Sequence[int], names: Sequence[str] | None) -> list[Any]:
    return [names[i] if names else i for i in places[:5]]


def ties(flow: Flow, objective: Objective, rows: Rows) -> str:
    """Say which columns repeat values under an objective that diverges there.

    Not where a layer of the flow, or the objective, adds noise to them.
    """
    noisy = any(getattr(layer, "accepts_integers", False) for layer in flow.transform.modules())
    if noisy or not objective.diverges_at_ties or not rows.seen.repeats:
        return ""
    x = rows.batch(some_rows(len(rows), math.prod(flow.event_shape)))
    generator = torch.Generator(rows.device).manual_seed(0)
    again = repeated_values(objective.start(x, generator=generator)["x"])
    repeats = [column for column in rows.seen.repeats if column in again]
    if not repeats:
        return ""
    return (
        f"x: column(s) {_named(repeats, rows.seen.columns)} repeat values, as rounded numbers, "
        "counts or categories do: no density has them, and the likelihood grows without bound as "
        "the flow learns spikes; remedy: noise over the width of the rounding, by the layer "
        "flowkit.stochastic.Dequantize, by FlowDensity(dequantize=width) or by "
        "flowkit.data.dequantize; a column of a few values is better a context"
    )


def lost_digits(
    values: Mapping[str, Tensor], dtype: torch.dtype, columns: Mapping[str, Sequence[str]]
) -> str:
    """Say which columns vary so little against their size that the dtype rounds that away.

    Args:
        values: Some rows of each array, in the dtypes that they came in.
        dtype: What they will be rounded to.
        columns: Names of the columns, where there are any.

    Returns:
        A message, or nothing.

    Example:
        >>> import torch
        >>> seconds = 1.7e9 + torch.arange(9.0, dtype=torch.float64)
        >>> lost_digits({"x": seconds[:, None]}, torch.float32, {}).split(",")[0]
        'x: column(s) [0] vary by less than 1e-04 of their size'
    """
    least = 1e3 * torch.finfo(dtype).eps
    for name, rows in values.items():
        if name in _NO_COLUMNS or rows.dtype in (dtype, torch.bool) or len(rows) < 2:
            continue
        if dtype == torch.float64:
            continue
        flat = rows.double().reshape(len(rows), -1)
        spread, size = flat.std(0), flat.abs().amax(0)
        lost = ((spread < least * size) & (spread > 0)).nonzero().flatten().tolist()
        if lost:
            named = _named(lost, columns.get(name))
            return (
                f"{name}: column(s) {named} vary by less than {least:.0e} of their size, and "
                f"{dtype} keeps few digits of that; remedy: subtract an offset, or train in "
                "float64 with flow.double()"
            )
    return ""


def turns(flow: Flow, rows: Rows) -> str:
    """Say which circular columns span many turns, or lie many turns away.

    They are more likely in another unit.

    Circles are those of the first layer, which reads the data modulo a turn.
    """
    layer = flow.transform
    while isinstance(layer, Compose):
        layer = layer[0]
    if not isinstance(layer, (Rescale, CircularShift)):
        return ""
    ends = torch.tensor([layer.lower, layer.upper], dtype=torch.float64)
    ends = ends.reshape(2, -1).expand(2, len(layer.circular))
    x = rows.column("x", some_rows(len(rows), len(layer.circular)))
    if x is None:
        return ""
    low, high, turn = x.amin(0), x.amax(0), ends[1] - ends[0]
    span = (high - low) / turn
    away = torch.maximum(high - ends[1], ends[0] - low) / turn
    circular = torch.tensor(layer.circular)
    for found, most, what in (
        (span, _TURNS, "span many turns"),
        (away, _TURNS_AWAY, "lie many turns away"),
    ):
        many = (circular & (found > most)).nonzero().flatten().tolist()
        if many:
            lower, upper = ends[:, many[0]].tolist()
            return (
                f"x: circular column(s) {_named(many, rows.seen.columns)} {what} (the first "
                f"{float(found[many[0]]):.0f} turns of [{lower:g}, {upper:g}]), and {layer.label} "
                "reads them modulo a turn; remedy: bounds of one turn in the unit of the data, as "
                "bounds=[(0, 360)] for degrees, or values of one turn"
            )
    return ""


def some_rows(rows: int, size: int) -> Tensor:
    """Numbers of some rows of ``size`` numbers each, evenly spaced, to look at before a fit.

    Example:
        >>> len(some_rows(100, 2)), len(some_rows(10**9, 2)), len(some_rows(10**9, 3 * 64**2))
        (100, 2000, 325)
    """
    count = min(rows, _ROWS_AT_MOST, max(2, _NUMBERS_AT_MOST // max(1, size)))
    return torch.linspace(0, rows - 1, count, dtype=torch.float64).round().long()


def repeated_values(x: Tensor) -> list[int]:
    """Columns with values that repeat too often for a density, as after rounding.

    A density has spikes at such values, the narrower the better, and a likelihood no maximum.
    A column has them if it holds integers of which a tenth or more repeats, at most a tenth of its
    values differ, or one value is met in a fifth of the rows. Rows that are the same in all
    columns, as after drawing with replacement, count once.

    Args:
        x: ``(rows, *event)``.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> repeated_values(x), repeated_values(torch.stack([x[:, 0], x[:, 1].round()], 1))
        ([], [1])
    """
    flat = x.reshape(len(x), -1)
    once = flat.unique(dim=0) if flat.shape[1] > 1 else flat
    found = torch.zeros(flat.shape[1], dtype=torch.bool, device=x.device)
    whole = (flat == flat.round()).all(0)
    # There are few combinations of a few integers.
    counted = once if 2 * len(once) > len(flat) else flat
    for rows, part, columns in ((once, 0.1, ~whole), (counted, 0.9, whole)):
        count = len(rows)
        if count < _ENOUGH_ROWS:
            continue
        ordered = rows.sort(0).values
        distinct = 1 + (ordered[1:] != ordered[:-1]).sum(0)
        # A value that is met k times is equal to the one k - 1 places on.
        often = max(_AT_ONE_VALUE, -(-count // 5))
        atom = (ordered[often - 1 :] == ordered[: count - often + 1]).any(0)
        found |= columns & ((distinct <= part * count) | atom) & (distinct > 1)
    return found.nonzero().flatten().tolist()
