"""What all recipes ask of their arguments."""

from __future__ import annotations

import math
from typing import Any

from flowkit.conditioners.mlp import ACTIVATIONS
from flowkit.errors import ArgumentError
from flowkit.recipes.registry import choose


def check_sizes(name: str, **sizes: Any) -> None:
    """Whole numbers that are large enough, or an error that names the recipe and the argument."""
    for what, value in sizes.items():
        least = 0 if what in ("context", "seed", "waves") else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(
                f"{name} needs {what} to be a whole number >= {least}, got {value!r}"
            )


def check_flags(name: str, **flags: Any) -> None:
    """True or False, or an error that names the recipe and the argument."""
    for what, value in flags.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name} needs {what} to be True or False, got {value!r}")


def check_ends(
    name: str, lower: Any, upper: Any, features: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Lower and upper ends, one for each feature, infinite where there is none; or an error.

    A number counts for all features, ``None`` for an open side.
    """
    ends = []
    for what, given, none in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
        listed = given if isinstance(given, tuple) else (given,) * features
        numbers = [none if end is None else end for end in listed]
        if len(numbers) != features or any(
            not isinstance(end, (int, float)) or isinstance(end, bool) or math.isnan(end)
            for end in numbers
        ):
            raise ArgumentError(
                f"{name} needs {what} to be a number, or one for each of {features} feature(s), "
                f"None or infinite where that side is open; got {given!r}"
            )
        ends.append(tuple(map(float, numbers)))
    for i, (low, high) in enumerate(zip(*ends, strict=True)):
        if not low < high or low == math.inf or high == -math.inf:
            raise ArgumentError(
                f"{name} needs lower < upper, got {low} and {high} for feature {i}"
            )
    return ends[0], ends[1]


def check_network(name: str, hidden: Any, activation: Any) -> None:
    """A known activation and widths of hidden layers, or an error."""
    choose("activation", activation, ACTIVATIONS)
    widths = hidden if isinstance(hidden, tuple) else ()
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise ArgumentError(
            f"{name} needs hidden to be the widths of the hidden layers, at least one and each a "
            f"whole number >= 1, got {hidden!r}; remedy: for example hidden=(64, 64)"
        )
