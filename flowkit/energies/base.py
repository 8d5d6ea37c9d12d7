"""Energy: a density known up to its constant, p(x) = exp(-u(x)) / Z, as a module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.energies.checks import one_number_each
from flowkit.errors import DataError, NotInvertibleError, ShapeError
from flowkit.numerics.gradients import value_and_gradient
from flowkit.numerics.noise import drawing_from
from flowkit.numerics.types import Context, Generator
from flowkit.shapes import as_shape, batch_text, last_axis_remedy


class Energy(nn.Module):
    r"""The dimensionless energy of a density :math:`p(x) = e^{-u(x)} / Z`.

    A subclass defines :meth:`energy`, and where it knows better :meth:`energy_and_force`,
    :meth:`log_normalizer` and :meth:`sample`. Shapes are checked here, once, for all of them.

    Shapes:
        ``energy(x (*batch, *event), context (*b, C)) -> (*batch,)``, ``force`` of the shape of x.

    Units:
        Energies are in units of kT, forces in kT over the unit of x. A potential in another unit
        is divided by its kT once, where it enters: by :class:`CallableEnergy`.

    Args:
        event_shape: Shape of one event; an integer for vectors.
        context: Number of context features read; 0 where context is ignored.

    Attributes:
        event_shape: Shape of one event.
        context_size: Number of context features.

    Example:
        >>> import torch
        >>> from flowkit.energies import Energy
        >>> class Spring(Energy):
        ...     def energy(self, x, context=None):
        ...         return 1.5 * x.square().sum(-1)
        >>> Spring(2).force(torch.ones(4, 2))[0].detach()
        tensor([-3., -3.])
        >>> Spring(2)(torch.ones(4, 3))
        Traceback (most recent call last):
        ...
        flowkit.errors.ShapeError: Spring expected x (..., 2), got (4, 3)
    """

    def __init__(self, event_shape: int | tuple[int, ...], *, context: int = 0) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        self.context_size = checks.integer(type(self).__name__, "context", context, least=0)

    @property
    def _name(self) -> str:
        """The name of the energy in messages."""
        return f"the energy {type(self).__name__}"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "energy" in cls.__dict__:
            cls.energy = _checked(cls.__dict__["energy"])  # type: ignore[method-assign]

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """Return the energy ``(*batch,)`` in units of kT, up to a constant."""
        raise NotImplementedError(f"{type(self).__name__} does not define energy")

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Return :meth:`energy`, so that an energy can stand where a function is expected."""
        return self.energy(x, context)

    def force(self, x: Tensor, context: Context = None) -> Tensor:
        r"""Return the force :math:`-\nabla u(x)`, of the shape of ``x``."""
        return self.energy_and_force(x, context)[1]

    def energy_and_force(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Return energy and force from one pass; both carry gradients where these are enabled."""
        energy, gradient = value_and_gradient(self.energy, x, context, name=self._name)
        return energy, -gradient

    def log_normalizer(self) -> Tensor | float:
        r"""Return the exact :math:`\log \int e^{-u(x)} dx`, where it is known."""
        raise NotInvertibleError(f"the normalizing constant of {type(self).__name__} is not known")

    def sample(self, shape: int | tuple[int, ...] = (), generator: Generator = None) -> Tensor:
        """Draw exact samples ``(*shape, *event)``, where there is a way to."""
        raise NotInvertibleError(
            f"{type(self).__name__} has no exact sampler; remedy: a flow with stochastic layers, "
            "or flowkit.stochastic.independence_chain"
        )


def _checked(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def checked(self: Energy, x: Tensor, context: Context = None) -> Tensor:
        reads: list[tuple[str, Any, tuple[int, ...]]] = [("x", x, self.event_shape)]
        if self.context_size:
            reads.append(("context", context, (self.context_size,)))
        for name, value, event in reads:
            if (
                not isinstance(value, Tensor)
                or tuple(value.shape[value.ndim - len(event) :]) != event
            ):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(
                    f"{type(self).__name__} expected {name} {batch_text(event)}, got {got}"
                    + last_axis_remedy(name, value, event)
                )
        return one_number_each(method(self, x, context), x, len(self.event_shape), self._name)

    return checked


class _GivenForce(torch.autograd.Function):
    """An energy whose gradient is minus a force that came with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: Tensor, force: Tensor) -> Tensor:
        ctx.save_for_backward(x, force)
        return energy.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, force = ctx.saved_tensors
        tail = (1,) * (force.ndim - gradient.ndim)
        found = -force * gradient.reshape(*gradient.shape, *tail)
        return (_NoFurther.apply(x, found) if torch.is_grad_enabled() else found), None, None


class _NoFurther(torch.autograd.Function):
    """A force as it is; its own gradient is an error instead of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, force: Tensor) -> Tensor:
        return force.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        raise DataError(
            "a force that came as a function has no gradient of its own; remedy: "
            "torch.no_grad() for sampling, Metropolis layers for training, or an energy that "
            "torch can differentiate twice"
        )


def with_force(
    x: Tensor, energy: Callable[[], Tensor], force: Callable[[], Tensor], *, scale: float = 1.0
) -> Tensor:
    """Attach a force to an energy that torch cannot differentiate.

    Args:
        x: Where both are computed, ``(*batch, *event)``.
        energy: Computes the energy ``(*batch,)``.
        force: Computes the force, of the shape of ``x``; called where ``x`` needs a gradient.
        scale: What both are divided by.

    Raises:
        DataError: If the force is no tensor of the shape, precision and device of ``x``.
    """
    with torch.no_grad():
        value = energy() / scale
        pull: Any = force() if x.requires_grad else None
    if pull is None:
        return value
    pull = one_number_each(pull, x, 0, "the force")
    return _GivenForce.apply(x, value, pull / scale)


@register
class CallableEnergy(Energy):
    r"""The energy of a potential, given as a function: :math:`u(x) = U(x) / kT`.

    The one place where a potential is divided by kT: energies and forces are dimensionless
    everywhere else. An energy of a function with the decorator :func:`flowkit.register` can be
    described and saved.

    Args:
        function: ``U(x (*batch, *event)) -> (*batch,)``, or ``U(x, context)``, in any unit.
        event_shape: Shape of one event; an integer for vectors.
        force: ``F(x) = -dU/dx`` of the shape of x, for potentials that torch cannot differentiate.
            The energy then has first derivatives only, and gradients of its forces raise.
        context: Number of context features that ``function`` reads.
        kT: Temperature times Boltzmann's constant, in the unit of ``function`` and ``force``.

    Raises:
        ShapeError: If the event shape is not one of integers >= 0.
        ArgumentError: If ``function`` or ``force`` is no function, or ``kT`` not a finite number
            above 0.
        DataError: From a call, if they return something else than one number or force per sample.

    Example:
        >>> import torch
        >>> from flowkit.energies import CallableEnergy
        >>> spring = CallableEnergy(lambda x: 5 * x.square().sum(-1), 3, kT=2.494)  # in kJ/mol
        >>> round(spring(torch.ones(3)).item(), 3)
        6.014
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        event_shape: int | tuple[int, ...],
        *,
        force: Callable[..., Tensor] | None = None,
        context: int = 0,
        kT: float = 1.0,
    ) -> None:
        super().__init__(event_shape, context=context)
        owner, remedy = "CallableEnergy", "for example lambda x: 0.5 * x.square().sum(-1)"
        self.function = checks.function(owner, "function", function, remedy)
        self.given_force = force if force is None else checks.function(owner, "force", force)
        remedy = "for example 2.494 for kJ/mol at 300 K"
        self.kT = checks.number(owner, "kT", kT, above=0, remedy=remedy)

    @property
    def _name(self) -> str:
        return "the energy"

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """Return the value of the function over kT."""
        args = (x, context) if self.context_size else (x,)
        force, ndim = self.given_force, len(self.event_shape)

        def value() -> Tensor:
            return one_number_each(self.function(*args), x, ndim)

        if force is None:
            return value() / self.kT
        return with_force(x, value, lambda: force(*args), scale=self.kT)


@register
class NegativeLogProb(Energy):
    r"""The energy of a normalized density, :math:`u(x) = -\log p(x)`: of a base or a flow, say.

    Args:
        density: Anything with ``log_prob(x)``, ``log_prob(x, context)`` if it reads one, and an
            ``event_shape``: a flow, a base, a distribution of torch. A module becomes a part.
        context: Number of context features to pass on.

    Raises:
        ArgumentError: If the density lacks ``log_prob`` or ``event_shape``.

    Example:
        >>> import torch
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.energies import NegativeLogProb
        >>> NegativeLogProb(StandardNormal(2)).force(torch.ones(2)).detach()
        tensor([-1., -1.])
    """

    def __init__(self, density: Any, *, context: int = 0) -> None:
        if not hasattr(density, "log_prob") or not hasattr(density, "event_shape"):
            remedy = "a base, a flow, or CallableEnergy(function, event_shape)"
            expected = "a density with log_prob and event_shape"
            raise checks.fail("NegativeLogProb", "density", expected, density, remedy)
        super().__init__(tuple(density.event_shape), context=context)
        self.density = density

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """Return minus the log-density."""
        return -self.density.log_prob(*((x, context) if self.context_size else (x,)))

    def log_normalizer(self) -> float:
        """Return zero."""
        return 0.0

    def sample(self, shape: int | tuple[int, ...] = (), generator: Generator = None) -> Tensor:
        """Draw from the density."""
        shape = as_shape(shape)
        if isinstance(self.density, torch.distributions.Distribution):
            with drawing_from(generator):
                return self.density.sample(shape)
        return self.density.sample(shape, generator=generator)


def as_energy(energy: Any, event_shape: tuple[int, ...], *, context: int = 0) -> Energy:
    """Return an energy as it is, and a function as an energy.

    Raises:
        ShapeError: If the energy has other events, or reads another number of context features.
    """
    if not isinstance(energy, Energy):
        return CallableEnergy(energy, event_shape, context=context)
    name, shape, size = type(energy).__name__, tuple(event_shape), energy.context_size
    if energy.event_shape != shape:
        raise ShapeError(f"the energy {name} has events {energy.event_shape}, expected {shape}")
    if size not in (0, context):
        raise ShapeError(
            f"the energy {name} reads a context of {size} features, expected none or {context}"
        )
    return energy
