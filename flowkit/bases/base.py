"""Base: the contract of base distributions, and the loop-free pieces that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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
    #: Of the dtype and on the device of samples.
    like: Tensor

    def __init__(self, event_shape: int | Sequence[int], *, context: int = 0) -> None:
        super().__init__()
        name = type(self).__name__
        self.event_shape = checks.event_shape(name, event_shape)
        self.context_size = checks.integer(name, "context", context, least=0)
        self.register_buffer("like", torch.zeros(()), persistent=False)

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
        return self._each("log_cdf", z, context)

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of one minus the distribution function, of the shape of ``z``."""
        return self._each("log_survival", z, context)

    def cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Distribution function of every feature, of the shape of ``z``."""
        return self.log_cdf(z, context).exp()

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of every feature, of the shape of ``q``."""
        return self._each("icdf", q, context)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """The ``z`` that are exceeded with probability ``q``, exact also where ``q`` is tiny."""
        return self.icdf(1 - q, context)

    def _each(self, name: str, value: Tensor, context: Context) -> Tensor:
        """A function of every feature by itself that the subclass does not define by its name."""
        kind = "quantile" if name == "icdf" else "distribution"
        raise NotInvertibleError(f"{type(self).__name__} has no {kind} function")

    def _draw_shape(self, shape: tuple[int, ...], context: Context) -> tuple[int, ...]:
        """Sample shape, then the batch of the context, then the event."""
        batch = () if context is None else tuple(context.shape[:-1])
        return (*as_shape(shape), *batch, *self.event_shape)

    def _draw(
        self, draw: Callable[..., Tensor], size: tuple[int, ...], generator: Generator
    ) -> Tensor:
        """Call ``torch.randn`` or ``torch.rand`` for the dtype and the device of the base."""
        like = self.like
        return draw(size, generator=generator, dtype=like.dtype, device=like.device)


class Symmetric(Base):
    """Independent features, each distributed symmetrically about its centre: z = centre + scale u.

    A subclass defines the logarithm of the survival function of u, its quantiles and how to draw
    it, all about zero, and where centre and scale are not 0 and 1 the two steps between u and z.
    """

    _log_survival: Callable[[Tensor], Tensor]
    _quantile: Callable[[Tensor], Tensor]
    _noise: Callable[[tuple[int, ...], Generator], Tensor]

    def _standardize(self, z: Tensor, context: Context) -> Tensor:
        return z

    def _restore(self, u: Tensor, context: Context) -> Tensor:
        return u

    def sample(
        self, shape: tuple[int, ...] = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw ``(*shape, *context_batch, *event)``."""
        return self._restore(self._noise(self._draw_shape(shape, context), generator), context)

    def log_cdf(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of the distribution function of every feature, of the shape of ``z``."""
        return self._log_survival(-self._standardize(z, context))

    def log_survival(self, z: Tensor, context: Context = None) -> Tensor:
        """Logarithm of one minus the distribution function, of the shape of ``z``."""
        return self._log_survival(self._standardize(z, context))

    def icdf(self, q: Tensor, context: Context = None) -> Tensor:
        """Quantiles of every feature, of the shape of ``q``."""
        return self._restore(self._quantile(q), context)

    def isf(self, q: Tensor, context: Context = None) -> Tensor:
        """The ``z`` that are exceeded with probability ``q``, exact also where ``q`` is tiny."""
        return self._restore(-self._quantile(q), context)
