"""scikit-learn faces of flowkit: estimators for pipelines, grid searches and cross-validation."""

from flowkit.estimators.density import FlowDensity

__all__ = ["FlowDensity"]
