"""Objectives: what to minimise."""

from flowkit.objectives.base import Loss as Loss
from flowkit.objectives.base import Objective, WeightedSum
from flowkit.objectives.dependent import DependentLikelihood
from flowkit.objectives.divergence import PathKL, ReverseKL
from flowkit.objectives.force import ForceMatching
from flowkit.objectives.likelihood import MaximumLikelihood, StochasticMaximumLikelihood
from flowkit.objectives.penalties import KernelNorm
from flowkit.objectives.preprocessing import AfterPreprocessing
from flowkit.objectives.score import (
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    SlicedScoreMatching,
)

__all__ = [
    "AfterPreprocessing",
    "DenoisingScoreMatching",
    "DependentLikelihood",
    "FiniteDifferenceScoreMatching",
    "ForceMatching",
    "KernelNorm",
    "MaximumLikelihood",
    "Objective",
    "PathKL",
    "ReverseKL",
    "SlicedScoreMatching",
    "StochasticMaximumLikelihood",
    "WeightedSum",
]
