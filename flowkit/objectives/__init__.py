"""Objectives: what to minimise."""

from flowkit.objectives.base import Batch, Loss, Objective, WeightedSum
from flowkit.objectives.likelihood import MaximumLikelihood
from flowkit.objectives.reverse_kl import ReverseKL

__all__ = ["Batch", "Loss", "MaximumLikelihood", "Objective", "ReverseKL", "WeightedSum"]
