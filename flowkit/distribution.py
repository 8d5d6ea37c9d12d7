"""A flow seen as a ``torch.distributions.Distribution``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from flowkit.flow import Flow


class FlowDistribution(Distribution):
    """A flow at a given context, with the interface of ``torch.distributions``.

    The batch shape is the batch of the context, or empty; ``expand`` repeats it.

    Args:
        flow: The flow.
        context: ``(*b, C)`` or ``None``.
        batch_shape: An expanded batch; the context's by default.

    Example:
        >>> import torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import LULinear
        >>> d = Flow(LULinear(2), StandardNormal(2)).distribution().expand((3,))
        >>> d.sample((5,)).shape, d.log_prob(torch.zeros(2)).shape
        (torch.Size([5, 3, 2]), torch.Size([3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(
        self, flow: Flow, context: Tensor | None = None, batch_shape: tuple[int, ...] | None = None
    ) -> None:
        own = () if context is None else tuple(context.shape[:-1])
        batch = own if batch_shape is None else tuple(batch_shape)
        self.flow = flow
        self.context = None if context is None else context.expand(*batch, context.shape[-1])
        super().__init__(torch.Size(batch), torch.Size(flow.event_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Where the density lives."""
        return self.flow.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same distribution with a larger batch."""
        return type(self)(self.flow, self.context, tuple(batch_shape))

    def _size(self, sample_shape: Any) -> tuple[int, ...]:
        # A context brings its batch along; without one the batch is part of the sample.
        return (*sample_shape, *(self.batch_shape if self.context is None else ()))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)`` with gradients."""
        return self.flow.rsample(self._size(sample_shape), self.context)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)``."""
        return self.flow.sample(self._size(sample_shape), self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, broadcast against the batch."""
        event = self.event_shape
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(event)], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *event), self.context)


def flow_distribution(flow: Flow, context: Tensor | None = None) -> FlowDistribution:
    """Return the ``torch.distributions`` view of a flow."""
    return FlowDistribution(flow, context)
