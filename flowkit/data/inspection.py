"""Inspect columns before a fit: digits that a dtype loses, values that repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SAMPLES_AT_MOST = 2000
_NUMBERS_AT_MOST = 4_000_000
_NO_COLUMNS = ("weight", "group", "row")
_ENOUGH_SAMPLES = 20
# More than drawing with replacement gives one sample.
_AT_ONE_VALUE = 10


@dataclass(frozen=True)
class Inspection:
    """What some of the samples show.

    Attributes:
        lost: A warning of lost digits, or an empty string.
        repeats: The columns of ``x`` whose values repeat.
        columns: Names of the columns of ``x``, if they have any.
    """

    lost: str = ""
    repeats: tuple[int, ...] = ()
    columns: Sequence[str] = ()


def inspect(
    values: Mapping[str, Tensor], dtype: torch.dtype, columns: Mapping[str, Sequence[str]]
) -> Inspection:
    """Inspect some samples of each array, in the dtypes in which they came.

    Args:
        values: The samples.
        dtype: The dtype to which they will be rounded.
        columns: Names of the columns, where there are any.
    """
    repeats = repeated_values(values["x"].double()) if "x" in values else []
    lost = lost_digits(values, dtype, columns)
    return Inspection(lost, tuple(repeats), columns.get("x") or ())


def first_names(places: Sequence[int], names: Sequence[str] | None) -> list[Any]:
    """The first five of some columns, by name where they have names."""
    return [names[i] if names else i for i in places[:5]]


def lost_digits(
    values: Mapping[str, Tensor], dtype: torch.dtype, columns: Mapping[str, Sequence[str]]
) -> str:
    """Warn of columns that vary so little against their size that a dtype rounds that away.

    Args:
        values: Some samples of each array, in the dtypes in which they came.
        dtype: The dtype to which they will be rounded.
        columns: Names of the columns, where there are any.

    Returns:
        A message, or an empty string.

    Example:
        >>> import torch
        >>> seconds = 1.7e9 + torch.arange(9.0, dtype=torch.float64)
        >>> lost_digits({"x": seconds[:, None]}, torch.float32, {}).split(",")[0]
        'x: column(s) [0] vary by less than 1e-04 of their size'
    """
    least = 1e3 * torch.finfo(dtype).eps
    for name, some in values.items():
        exact = dtype == torch.float64 or some.dtype in (dtype, torch.bool)
        if exact or name in _NO_COLUMNS or len(some) < 2:
            continue
        flat = some.double().reshape(len(some), -1)
        spread, size = flat.std(0), flat.abs().amax(0)
        lost = ((spread < least * size) & (spread > 0)).nonzero().flatten().tolist()
        if lost:
            return (
                f"{name}: column(s) {first_names(lost, columns.get(name))} vary by less than "
                f"{least:.0e} of their size, and {dtype} keeps few digits of that; remedy: "
                "subtract an offset, or train in float64 with flow.double()"
            )
    return ""


def evenly_spaced(count: int, size: int) -> Tensor:
    """Numbers of some of ``count`` samples of ``size`` numbers each, evenly spaced.

    Example:
        >>> [len(evenly_spaced(n, size)) for n, size in ((100, 2), (10**9, 2), (10**9, 12288))]
        [100, 2000, 325]
    """
    some = min(count, _SAMPLES_AT_MOST, max(2, _NUMBERS_AT_MOST // max(1, size)))
    return torch.linspace(0, count - 1, some, dtype=torch.float64).round().long()


def repeated_values(x: Tensor) -> list[int]:
    """Columns with values that repeat too often for a density, as after rounding.

    A density has spikes at such values, the narrower the better, and a likelihood no maximum.
    A column has them if it holds integers of which a tenth or more repeats, at most a tenth of its
    values differ, or one value makes up a fifth of them. Samples that are the same in all
    columns, as after drawing with replacement, count once.

    Args:
        x: ``(samples, *event)``.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> repeated_values(x), repeated_values(torch.stack([x[:, 0], x[:, 1].round()], 1))
        ([], [1])
    """
    flat = x.reshape(len(x), -1)
    once = flat.unique(dim=0) if flat.shape[1] > 1 else flat
    repeated = torch.zeros(flat.shape[1], dtype=torch.bool, device=x.device)
    integral = (flat == flat.round()).all(0)
    # There are few combinations of a few integers.
    counted = once if 2 * len(once) > len(flat) else flat
    for some, part, columns in ((once, 0.1, ~integral), (counted, 0.9, integral)):
        count = len(some)
        if count < _ENOUGH_SAMPLES:
            continue
        ordered = some.sort(0).values
        distinct = 1 + (ordered[1:] != ordered[:-1]).sum(0)
        # A value that occurs k times is equal to the one k - 1 places on.
        often = max(_AT_ONE_VALUE, -(-count // 5))
        atom = (ordered[often - 1 :] == ordered[: count - often + 1]).any(0)
        repeated |= columns & ((distinct <= part * count) | atom) & (distinct > 1)
    return repeated.nonzero().flatten().tolist()
