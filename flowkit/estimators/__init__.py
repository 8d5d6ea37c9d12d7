"""scikit-learn estimators, for pipelines, grid searches and cross-validation."""

from flowkit.estimators.density import FlowDensity

__all__ = ["FlowDensity"]
