"""flowkit: fit, sample and score probability densities with normalizing flows.

The packages within, such as :mod:`flowkit.plotting`, are imported when first used as attributes.
"""

import importlib
from types import ModuleType

from flowkit.config import register
from flowkit.flow import Flow
from flowkit.io import load, save
from flowkit.mixture import FlowMixture
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
from flowkit.training import History as History
from flowkit.training import fit

__version__ = "0.2.0"

__all__ = [
    "AfterPreprocessing",
    "DenoisingScoreMatching",
    "DependentLikelihood",
    "FiniteDifferenceScoreMatching",
    "Flow",
    "FlowMixture",
    "ForceMatching",
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
    "dense_flow",
    "elementwise_flow",
    "fit",
    "glow_flow",
    "kernelised_flow",
    "load",
    "register",
    "save",
    "smooth_flow",
    "stochastic_flow",
    "tail_adaptive_flow",
]

_PACKAGES = frozenset(
    {
        "bases", "conditioners", "data", "datasets", "dependence", "energies", "estimators",
        "interop", "kernels", "molecules", "objectives", "plotting", "recipes", "scalar",
        "statistics", "stochastic", "testing", "toys", "training", "transforms",
    }
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    """Import a package of flowkit when it is first used as an attribute."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
