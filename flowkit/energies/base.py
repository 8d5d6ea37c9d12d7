"""Energy: a density known up to its constant, p(x) = exp(-u(x)) / Z, as a module."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.config import register
from flowkit.energies.checks import gradient_of, one_number_each
from flowkit.errors import DataError, NotInvertibleError, ShapeError
from flowkit.numerics.gradients import leaf, ordinary
from flowkit.numerics.noise import drawing_from
from flowkit.shapes import as_shape, batch_text, last_axis_remedy


class Energy(nn.Module):
    r"""The dimensionless energy of a density :math:`p(x) = e^{-u(x)} / Z`.

    A subclass defines :meth:`energy`, and where it knows better :meth:`force`,
    :meth:`energy_and_force`, :meth:`log_normalizer` and :meth:`sample`. Shapes are checked here,
    once, for all of them.

    Shapes:
        ``energy(x (*batch, *event), context (*b, C)) -> (*batch,)``, ``force`` of the shape of x.

    Units:
        Energies are in units of kT, forces in kT over the unit of x. A potential in another unit
        is divided by its kT once, where it enters: by :func:`from_callable`.

    Attributes:
        event_shape: Shape of one event.
        context_size: Number of context features read; 0 where context is ignored.
        options: The arguments of the constructor where all are plain values, which is what lets a
            flow file describe the energy; ``None`` otherwise.

    Example:
        >>> import torch
        >>> from flowkit.energies import Energy
        >>> class Spring(Energy):
        ...     def energy(self, x, context=None):
        ...         return 1.5 * x.square().sum(-1)
        >>> Spring((2,)).force(torch.ones(4, 2))[0].detach()
        tensor([-3., -3.])
        >>> Spring((2,))(torch.ones(4, 3))
        Traceback (most recent call last):
        ...
        flowkit.errors.ShapeError: Spring expected x (..., 2), got (4, 3)
    """

    options: dict[str, Any] | None = None

    def __init__(self, event_shape: tuple[int, ...], context: int = 0) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.context_size = context

    @property
    def _name(self) -> str:
        """What messages call the energy."""
        return f"the energy {type(self).__name__}"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "energy" in cls.__dict__:
            cls.energy = _checked(cls.__dict__["energy"])  # type: ignore[method-assign]

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy ``(*batch,)`` in units of kT, up to a constant."""
        raise NotImplementedError(f"{type(self).__name__} does not define energy")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The same as :meth:`energy`, so that an energy can stand where a function is asked."""
        return self.energy(x, context)

    def force(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The force :math:`-\nabla u(x)`, of the shape of ``x``."""
        return self.energy_and_force(x, context)[1]

    def energy_and_force(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energy and force in one pass; both carry gradients where these are enabled."""
        create_graph = torch.is_grad_enabled()
        # Also in inference mode, whose tensors autograd cannot keep.
        with torch.inference_mode(False), torch.enable_grad():
            context = ordinary(context)
            if not (create_graph and x.requires_grad):
                x = leaf(x)
            energy = self.energy(x, context)
            gradient = gradient_of(energy, x, create_graph=create_graph, name=self._name)
        return (energy if create_graph else energy.detach()), -gradient

    def log_normalizer(self) -> Tensor | float:
        r"""The exact :math:`\log \int e^{-u(x)} dx`, where it is known."""
        raise NotInvertibleError(f"the normalizing constant of {type(self).__name__} is not known")

    def sample(
        self, shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact samples ``(*shape, *event)``, where there is a way to draw them."""
        raise NotInvertibleError(
            f"{type(self).__name__} has no exact sampler; remedy: a flow with stochastic layers, "
            "or flowkit.stochastic.flow_mcmc"
        )


def _checked(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def checked(self: Energy, x: Tensor, context: Tensor | None = None) -> Tensor:
        ndim, event = len(self.event_shape), self.event_shape
        if not isinstance(x, Tensor) or x.ndim < ndim or tuple(x.shape[x.ndim - ndim :]) != event:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"{type(self).__name__} expected x {batch_text(event)}, got {got}"
                + last_axis_remedy("x", x, event)
            )
        if self.context_size and (
            not isinstance(context, Tensor) or context.shape[-1:] != (self.context_size,)
        ):
            given = tuple(context.shape) if isinstance(context, Tensor) else context
            raise ShapeError(
                f"{type(self).__name__} expected context (..., {self.context_size}), got {given}"
                + last_axis_remedy("context", context, (self.context_size,))
            )
        return one_number_each(method(self, x, context), x, ndim, name=self._name)

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
    """A force as it is; its own gradient is an error instead of a nought."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, force: Tensor) -> Tensor:
        return force.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        raise DataError(
            "a gradient was asked of a force that came as a function, which has none; remedy: "
            "torch.no_grad() for sampling, Metropolis layers for training, or an energy that "
            "torch can differentiate twice"
        )


class _FromCallable(Energy):
    """What :func:`from_callable` returns."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        event_shape: tuple[int, ...],
        force: Callable[..., Tensor] | None,
        context: int,
        kT: float,
    ) -> None:
        super().__init__(event_shape, context)
        self.function = function
        self.given_force = force
        self.kT = kT

    @property
    def _name(self) -> str:
        return "the energy"

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The function's value over kT."""
        args = (x, context) if self.context_size else (x,)
        if self.given_force is None:
            return self._value(*args) / self.kT
        with torch.no_grad():
            energy = self._value(*args) / self.kT
            force = self.given_force(*args) if x.requires_grad else None
        if force is None:
            return energy
        if not isinstance(force, Tensor) or force.shape != x.shape:
            got = tuple(force.shape) if isinstance(force, Tensor) else type(force).__name__
            raise DataError(f"the force expected the shape of x, {tuple(x.shape)}, got {got}")
        if force.device != x.device or torch.promote_types(force.dtype, x.dtype) != force.dtype:
            raise DataError(
                f"the force expected {x.dtype} on {x.device}, as x has it, got {force.dtype} on "
                f"{force.device}; remedy: .to(x)"
            )
        return _GivenForce.apply(x, energy, force / self.kT)

    def _value(self, x: Tensor, *context: Tensor | None) -> Tensor:
        return one_number_each(self.function(x, *context), x, len(self.event_shape))


def from_callable(
    function: Callable[..., Tensor],
    event_shape: int | tuple[int, ...],
    *,
    force: Callable[..., Tensor] | None = None,
    context: int = 0,
    kT: float = 1.0,
) -> Energy:
    r"""Make an :class:`Energy` of a potential: :math:`u(x) = U(x) / kT`.

    The one place where a potential is divided by kT: energies and forces are dimensionless
    everywhere else.

    Args:
        function: ``U(x (*batch, *event)) -> (*batch,)``, or ``U(x, context)``, in any unit.
        event_shape: Shape of one event; a number for vectors.
        force: ``F(x) = -dU/dx`` of the shape of x, for potentials that torch cannot differentiate.
            The energy then has first derivatives only, and gradients of its forces raise.
        context: Number of context features that ``function`` reads.
        kT: Temperature times Boltzmann's constant, in the unit of ``function`` and ``force``.

    Raises:
        ShapeError: If the event shape is not one of numbers >= 0.
        DataError: If ``function`` or ``force`` is no function, or ``kT`` not a finite number
            above 0; later, if they return something else than one number or force a row.

    Example:
        >>> import torch
        >>> from flowkit.energies import from_callable
        >>> spring = from_callable(lambda x: 5 * x.square().sum(-1), 3, kT=2.494)  # in kJ/mol
        >>> round(spring(torch.ones(3)).item(), 3)
        6.014
    """
    for name, value in (("function", function), ("force", force)):
        if not callable(value) and not (name == "force" and value is None):
            raise DataError(
                f"from_callable expected {name} as a function of x, got {value!r}; remedy: for "
                "example lambda x: 0.5 * x.square().sum(-1)"
            )
    number = isinstance(kT, Real) and not isinstance(kT, bool)
    if not number or not 0 < float(kT) < math.inf:
        raise DataError(
            f"from_callable expected kT as a finite number > 0, got {kT!r}; remedy: for example "
            "2.494 for kJ/mol at 300 K"
        )
    return _FromCallable(function, as_shape(event_shape), force, context, float(kT))


@register
class NegativeLogProb(Energy):
    r"""The energy of a normalised density, :math:`u(x) = -\log p(x)`: of a base or a flow, say.

    Args:
        density: Anything with ``log_prob(x)``, ``log_prob(x, context)`` if it reads one, and an
            ``event_shape``: a flow, a base, a distribution of torch. A module is held as one.
        context: Number of context features to pass on.

    Example:
        >>> import torch
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.energies import NegativeLogProb
        >>> NegativeLogProb(StandardNormal(2)).force(torch.ones(2)).detach()
        tensor([-1., -1.])
    """

    def __init__(self, density: Any, context: int = 0) -> None:
        if not hasattr(density, "log_prob") or not hasattr(density, "event_shape"):
            raise DataError(
                "NegativeLogProb expected a density with log_prob and event_shape, got "
                f"{type(density).__name__}; remedy: a base, a flow, or from_callable(function, "
                "event_shape)"
            )
        super().__init__(tuple(density.event_shape), context)
        self.density = density

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Minus the log-density."""
        if self.context_size:
            return -self.density.log_prob(x, context)
        return -self.density.log_prob(x)

    def log_normalizer(self) -> float:
        """Zero."""
        return 0.0

    def sample(
        self, shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw from the density."""
        if isinstance(self.density, torch.distributions.Distribution):
            with drawing_from(generator):
                return self.density.sample(as_shape(shape))
        return self.density.sample(as_shape(shape), generator=generator)


def as_energy(energy: Any, event_shape: tuple[int, ...], context: int = 0) -> Energy:
    """An energy as it is, and a function made into one."""
    if isinstance(energy, Energy):
        if energy.event_shape != tuple(event_shape):
            raise ShapeError(
                f"the energy {type(energy).__name__} has events {energy.event_shape}, expected "
                f"{tuple(event_shape)}"
            )
        if energy.context_size not in (0, context):
            raise ShapeError(
                f"the energy {type(energy).__name__} reads a context of {energy.context_size} "
                f"features, expected none or {context}"
            )
        return energy
    return from_callable(energy, event_shape, context=context)
