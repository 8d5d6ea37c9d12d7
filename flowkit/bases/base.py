"""Base: the contract of base distributions, and the loop-free pieces that they share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.errors import NotInvertibleError
from flowkit.numerics.types import Context, Generator
from flowkit.shapes import as_shape


class Base(nn.Module):
    r"""Base class of base distributions, modules with ``log_prob`` and ``sample``.

    A subclass defines ``log_prob`` and ``sample``. Where every feature is independent it may
    define the per-feature functions ``log_cdf``, ``log_survival``, ``icdf`` and ``isf``; they act
    element by element and keep the shape of the event. Probabilities outside [0, 1] have the
    quantile NaN.

    Shapes:
        ``log_prob(z (*batch, *event), context (*batch, C)) -> (*batch,)``;
        ``sample(shape, context (*b, C)) -> (*shape, *b, *event)``, differentiable where the
        distribution can be reparameterised.

    Attributes:
        event_shape: Shape of one event.
        context_size: Number of context features read; 0 where context is ignored.
        reparameterized: Whether samples carry gradients to every parameter.
    """

    reparameterized: bool = True

    def __init__(self, event_shape: int | Sequence[int], *, context: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        self.event_shape = checks.event_shape(name, event_shape)
        self.context_size = checks.integer(name, "context", context, least=0)

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive; the whole space unless a subclass says otherwise."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        """Return the log-density ``(*batch,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_prob")

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw ``(*shape, *context_batch, *event)``."""
        raise NotInvertibleError(f"{type(self).__name__} does not define sample")

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the distribution function of every feature, of the shape of ``z``."""
        raise NotInvertibleError(f"{type(self).__name__} has no distribution function")

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of one minus the distribution function, of the shape of ``z``."""
        raise NotInvertibleError(f"{type(self).__name__} has no distribution function")

    def cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Distribution function of every feature, of the shape of ``z``."""
        return self.log_cdf(z, context).exp()

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of every feature, of the shape of ``q``."""
        raise NotInvertibleError(f"{type(self).__name__} has no quantile function")

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """The ``z`` that are exceeded with probability ``q``, exact also where ``q`` is tiny."""
        return self.icdf(1 - q, context)

    def _draw_shape(self, shape: tuple[int, ...], context: Context) -> tuple[int, ...]:
        """Sample shape, then the batch of the context, then the event."""
        batch = () if context is None else tuple(context.shape[:-1])
        return (*as_shape(shape), *batch, *self.event_shape)
