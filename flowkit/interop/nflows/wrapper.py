"""Flowkit's transforms for flows of nflows."""

from __future__ import annotations

from nflows.transforms import Transform as NflowsTransform
from torch import Tensor

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.numerics.types import Mapped
from flowkit.transforms import Transform


class WrappedTransform(NflowsTransform):
    """A flowkit transform behind the interface of nflows."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Mapped:
        """Map data to noise, with the log-determinant."""
        return self.transform(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> Mapped:
        """Map noise to data, with the log-determinant."""
        return self.transform.inverse(inputs, context)


def to_nflows(transform: Transform) -> NflowsTransform:
    """Wrap a flowkit transform for ``nflows.flows.Flow`` and ``CompositeTransform``.

    Both hold the same parameters, so that training one trains the other. Context is handed on.

    Args:
        transform: A transform without stochastic layers.

    Raises:
        ArgumentError: If it is none, or stochastic.

    Example:
        >>> import torch
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from flowkit.transforms import LULinear
        >>> theirs = Flow(to_nflows(LULinear(2)), StandardNormal([2]))
        >>> theirs.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    remedy = "to_nflows(flow.transform), and a distribution of nflows"
    if checks.instance("to_nflows", "transform", transform, Transform, remedy).stochastic:
        raise ArgumentError(
            "to_nflows expected a transform without stochastic layers, whose log-determinants "
            "nflows would take for those of a density; remedy: leave these layers out"
        )
    return WrappedTransform(transform)
