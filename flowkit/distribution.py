"""A flow seen as a ``torch.distributions.Distribution``, and as Pyro's where Pyro is imported."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from flowkit.errors import NotInvertibleError, ShapeError

if TYPE_CHECKING:
    from flowkit.flow import Flow


class FlowDistribution(Distribution):
    r"""A flow at a given context, with the interface of ``torch.distributions``.

    :math:`p(x \mid c)` with the batch of the context, or an empty batch without; ``expand`` makes
    it larger. ``sample(shape)`` is ``(*shape, *batch, *event)`` and ``log_prob`` broadcasts its
    value against the batch. ``flow.distribution(context)`` makes one.

    Args:
        flow: The flow; its parameters are shared, so gradients reach them.
        context: ``(*b, C)`` or ``None``.
        batch_shape: A batch to which that of the context is expanded.

    Raises:
        ShapeError: If the flow is conditional and there is no context.
        NotInvertibleError: From ``rsample``, if samples carry no gradient to some parameter
            (``has_rsample`` is then false).

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

    def __init__(
        self, flow: Flow, context: Tensor | None = None, batch_shape: tuple[int, ...] | None = None
    ) -> None:
        if context is None and flow.needs_context:
            raise ShapeError(
                "this flow is conditional, so its distribution needs a context "
                f"(..., {flow.context_size or '*'}); remedy: flow.distribution(context)"
            )
        own = () if context is None else tuple(context.shape[:-1])
        batch = own if batch_shape is None else tuple(batch_shape)
        self.flow = flow
        self.context = None if context is None else context.expand(*batch, context.shape[-1])
        # The flow checks shapes and dtypes itself, and is -inf outside its support.
        super().__init__(torch.Size(batch), torch.Size(flow.event_shape), validate_args=False)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)})"
        )

    @property
    def support(self) -> constraints.Constraint:
        """Where the density lives."""
        return self.flow.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry gradients to every parameter."""
        return self.flow.base.reparameterized and not self.flow.stochastic

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same distribution with a larger batch."""
        return type(self)(self.flow, self.context, tuple(batch_shape))

    def _size(self, sample_shape: Any) -> tuple[int, ...]:
        # A context brings its batch along; without one the batch is part of the sample.
        return (*sample_shape, *(self.batch_shape if self.context is None else ()))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)`` with gradients."""
        if not self.has_rsample:
            raise NotInvertibleError(
                f"samples of a flow with the base {type(self.flow.base).__name__} carry no "
                "gradient to some of its parameters; remedy: sample(), or another base"
            )
        return self.flow.rsample(self._size(sample_shape), self.context)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw ``(*sample_shape, *batch, *event)``, without gradients."""
        return self.flow.sample(self._size(sample_shape), self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, broadcast against the batch."""
        event = self.event_shape
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(event)], self.batch_shape)
        return self.flow.log_prob(value.expand(*batch, *event), self.context)


@functools.cache
def _pyro_class() -> type[FlowDistribution]:
    """The same class with Pyro's methods, made when Pyro is there: flowkit does not import it."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    class PyroFlowDistribution(FlowDistribution, TorchDistributionMixin):  # type: ignore[misc, override]
        """A flow as a Pyro distribution, with ``to_event``, ``mask`` and the rest."""

        def __reduce__(self) -> Any:
            # A class made in a function cannot be found by name; a pickle asks for it anew.
            return flow_distribution, (self.flow, self.context, tuple(self.batch_shape))

    return PyroFlowDistribution


def flow_distribution(
    flow: Flow, context: Tensor | None = None, batch_shape: tuple[int, ...] | None = None
) -> FlowDistribution:
    """Return the ``torch.distributions`` view of a flow, also Pyro's if Pyro is imported.

    In a Pyro model it is a sample site like any other: inside ``pyro.plate`` with one context a
    row, observed, or as a latent variable under NUTS and SVI. ``pyro.module("flow", flow)`` makes
    its parameters known to SVI.

    Args:
        flow: The flow.
        context: ``(*b, C)`` or ``None``.
        batch_shape: A batch to which that of the context is expanded.

    Returns:
        A :class:`FlowDistribution`.

    Raises:
        ShapeError: If the flow is conditional and there is no context.

    Example:
        >>> import pyro, torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import LULinear
        >>> flow = Flow(LULinear(2), StandardNormal(2))
        >>> def model(rows):
        ...     with pyro.plate("rows", len(rows)):
        ...         return pyro.sample("x", flow.distribution(), obs=rows)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3, 2))
        >>> bool(torch.allclose(trace.log_prob_sum(), 3 * flow.log_prob(torch.zeros(2))))
        True
    """
    # Code that has not imported Pyro cannot need Pyro's methods.
    kind = _pyro_class() if "pyro" in sys.modules else FlowDistribution
    return kind(flow, context, batch_shape)
