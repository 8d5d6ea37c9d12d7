"""Recipes: one function per named flow, with defaults that fit without tuning.

The first argument is the number of features (or the shape of an event); all others are options,
given by name. A ``seed`` governs everything that is drawn, permutations and initial weights.
"""

from flowkit.recipes.box import box_flow
from flowkit.recipes.flows import autoregressive_flow, coupling_flow, elementwise_flow
from flowkit.recipes.images import conv_flow, dense_flow, glow_flow
from flowkit.recipes.kernelised import kernelised_flow
from flowkit.recipes.parts import RECIPES as RECIPES
from flowkit.recipes.smooth import smooth_flow
from flowkit.recipes.stochastic import insert_stochastic_layers, stochastic_flow
from flowkit.recipes.tail_adaptive import tail_adaptive_flow

__all__ = [
    "autoregressive_flow",
    "box_flow",
    "conv_flow",
    "coupling_flow",
    "dense_flow",
    "elementwise_flow",
    "glow_flow",
    "insert_stochastic_layers",
    "kernelised_flow",
    "smooth_flow",
    "stochastic_flow",
    "tail_adaptive_flow",
]
