"""What all recipes ask of their arguments."""

from __future__ import annotations

from typing import Any

from flowkit.conditioners import ACTIVATIONS
from flowkit.errors import RecipeError
from flowkit.recipes.registry import choose


def check_sizes(name: str, **sizes: Any) -> None:
    """Whole numbers that are large enough, or an error that names the recipe and the argument."""
    for what, value in sizes.items():
        least = 0 if what in ("context", "seed", "waves") else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise RecipeError(
                f"{name} needs {what} to be a whole number >= {least}, got {value!r}"
            )


def check_flags(name: str, **flags: Any) -> None:
    """True or False, or an error that names the recipe and the argument."""
    for what, value in flags.items():
        if not isinstance(value, bool):
            raise RecipeError(f"{name} needs {what} to be True or False, got {value!r}")


def check_network(name: str, hidden: Any, activation: Any) -> None:
    """A known activation and widths of hidden layers, or an error."""
    choose("activation", activation, ACTIVATIONS)
    widths = hidden if isinstance(hidden, tuple) else ()
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise RecipeError(
            f"{name} needs hidden to be the widths of the hidden layers, at least one and each a "
            f"whole number >= 1, got {hidden!r}; remedy: for example hidden=(64, 64)"
        )
