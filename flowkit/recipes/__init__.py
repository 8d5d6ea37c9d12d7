"""Named flows: one function a flow, with the field's names and defaults that fit without tuning.

A call of a recipe is plain JSON. The registry here is what files, the command line and the
estimators use to build a flow by name; a user's own recipe joins it with :func:`recipe`.
"""

from flowkit.recipes.energy_based import energy_based_flow
from flowkit.recipes.flows import autoregressive_flow, box_flow, coupling_flow, elementwise_flow
from flowkit.recipes.kernelised import kernelised_flow
from flowkit.recipes.registry import RECIPES, build, recipe
from flowkit.recipes.smooth import smooth_flow
from flowkit.recipes.stochastic import insert_stochastic_layers, stochastic_flow
from flowkit.recipes.tail_adaptive import tail_adaptive_flow

__all__ = [
    "RECIPES",
    "autoregressive_flow",
    "box_flow",
    "build",
    "coupling_flow",
    "elementwise_flow",
    "energy_based_flow",
    "insert_stochastic_layers",
    "kernelised_flow",
    "recipe",
    "smooth_flow",
    "stochastic_flow",
    "tail_adaptive_flow",
]
