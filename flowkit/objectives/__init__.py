"""Objectives: what to minimise."""

from flowkit.objectives.base import Batch, Loss, Objective, WeightedSum
from flowkit.objectives.dependent import DependentLikelihood
from flowkit.objectives.divergence import ReverseKL
from flowkit.objectives.force import ForceMatching
from flowkit.objectives.likelihood import MaximumLikelihood
from flowkit.objectives.path import PathKL
from flowkit.objectives.penalties import KernelNorm
from flowkit.objectives.preprocessing import AfterPreprocessing
from flowkit.objectives.score import ScoreMatching, StochasticMaximumLikelihood

__all__ = [
    "AfterPreprocessing",
    "Batch",
    "DependentLikelihood",
    "ForceMatching",
    "KernelNorm",
    "Loss",
    "MaximumLikelihood",
    "Objective",
    "PathKL",
    "ReverseKL",
    "ScoreMatching",
    "StochasticMaximumLikelihood",
    "WeightedSum",
]
