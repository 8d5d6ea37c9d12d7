"""Recipes by name, for the command line and the estimators."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.box import box_flow
from flowkit.recipes.dense import dense_flow
from flowkit.recipes.flows import autoregressive_flow, coupling_flow, elementwise_flow
from flowkit.recipes.images import conv_flow, glow_flow
from flowkit.recipes.kernelised import kernelised_flow
from flowkit.recipes.smooth import smooth_flow
from flowkit.recipes.stochastic import stochastic_flow
from flowkit.recipes.tail_adaptive import tail_adaptive_flow

#: Every recipe by its name; a function of one's own may be added.
RECIPES: dict[str, Callable[..., Flow]] = {
    function.__name__: function
    for function in (
        autoregressive_flow,
        box_flow,
        conv_flow,
        coupling_flow,
        dense_flow,
        elementwise_flow,
        glow_flow,
        kernelised_flow,
        smooth_flow,
        stochastic_flow,
        tail_adaptive_flow,
    )
}


def build_for_columns(name: str, columns: int, **options: Any) -> Flow:
    """Build the flow of a table by the name of its recipe.

    Args:
        name: A key of ``RECIPES``.
        columns: Number of columns of the table, the recipe's first argument.
        **options: The recipe's other arguments.

    Raises:
        ArgumentError: If the name or an option is unknown, an option is missing or out of its
            range.

    Example:
        >>> from flowkit.recipes.registry import build_for_columns
        >>> build_for_columns("coupling_flow", 3, layers=2).event_shape
        (3,)
        >>> build_for_columns("coupling_fow", 3)
        Traceback (most recent call last):
        ...
        flowkit.errors.ArgumentError: flowkit expected recipe as one of 'autoregressive_flow', \
'box_flow', 'conv_flow', 'coupling_flow', 'dense_flow', 'elementwise_flow', 'glow_flow', \
'kernelised_flow', 'smooth_flow', 'stochastic_flow', 'tail_adaptive_flow', got 'coupling_fow'; \
remedy: did you mean 'coupling_flow'?
    """
    recipe = checks.choice("flowkit", "recipe", name, RECIPES)
    first, *known = inspect.signature(recipe).parameters.values()
    if first.name in options:
        raise ArgumentError(
            f"{name} takes {first.name} from the table, got {first.name}="
            f"{options[first.name]!r}; remedy: leave it out of the options"
        )
    for option in options:
        checks.choice(name, "an option", option, [parameter.name for parameter in known])
    missing = [p.name for p in known if p.default is p.empty and p.name not in options]
    if missing:
        raise ArgumentError(f"{name} expected the option(s) {', '.join(missing)}, got none")
    return recipe(columns, **options)
