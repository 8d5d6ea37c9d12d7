"""flowkit: fit, sample and score probability densities with normalizing flows."""

from flowkit.config import register
from flowkit.flow import Flow
from flowkit.io import load, save
from flowkit.objectives import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    DependentLikelihood,
    FiniteDifferenceScoreMatching,
    ForceMatching,
    KernelNorm,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    WeightedSum,
)
from flowkit.recipes import (
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
from flowkit.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "AfterPreprocessing",
    "DenoisingScoreMatching",
    "DependentLikelihood",
    "FiniteDifferenceScoreMatching",
    "Flow",
    "ForceMatching",
    "History",
    "KernelNorm",
    "MaximumLikelihood",
    "PathKL",
    "ReverseKL",
    "SlicedScoreMatching",
    "StochasticMaximumLikelihood",
    "WeightedSum",
    "autoregressive_flow",
    "box_flow",
    "conv_flow",
    "coupling_flow",
    "elementwise_flow",
    "dense_flow",
    "glow_flow",
    "fit",
    "kernelised_flow",
    "load",
    "register",
    "save",
    "smooth_flow",
    "stochastic_flow",
    "tail_adaptive_flow",
]
