"""Transform: the one contract of every map between data and noise.

Shape checks live here, once: subclasses are wrapped when they are defined, so their own methods
see only inputs of the right shape, and a context that already has the batch shape of ``x``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.config import register
from flowkit.errors import NotInvertibleError, ShapeError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.shapes import check_event, open_shape
from flowkit.transforms.region import Region, is_whole_line, map_ends, region_of


class Transform(nn.Module):
    r"""A map from data ``x`` to noise ``z`` with the logarithm of its volume change.

    A subclass defines ``forward(x, context)``, which returns :math:`z` and
    :math:`\log |\det \partial z / \partial x|`, and where it can ``inverse(z, context)``. It sets
    :attr:`event_shape` (by ``super().__init__``) and the flags below. Both directions are called
    with a ``generator``, too; a layer that draws nothing may leave this argument out.

    Shapes:
        ``x`` is ``(*batch, *event)`` with any number of batch dimensions, the log-determinant
        exactly ``(*batch,)``. ``z`` is ``(*batch, *noise)``, where ``noise_shape`` is the event's
        own shape unless the layer says otherwise, as those that reshape images do. Context
        ``(*b, C)`` broadcasts against the batch. dtype and device follow ``x``.

    Attributes:
        event_shape: Shape of one event ``x``; ``None`` stands for any size.
        noise_shape: Shape of its ``z``, with as many numbers.
        context_size: Number of context features read; 0 where context is ignored.
        needs_context: Whether context is read. If not, it is accepted and ignored.
        constant_log_det: Promises that the log-determinant does not depend on ``x``; ``False``
            means "not known".
        stochastic: The log-determinant slot holds a log path-probability ratio
            :math:`\log \tilde q(z \to x) - \log q(x \to z)`, drawn from ``generator``.
        accepts_integers: Whether ``x`` may be of an integer dtype.
        rearranges: Whether ``z`` is no more than the numbers of ``x`` in other places, or in
            another shape.
        elementwise: Whether each number of ``z`` is a monotone function of the number of ``x`` in
            its place, given the context.
        extends: Whether the map goes on outside of :attr:`domain`, so that no ``x`` is refused.
        keeps_intervals: Whether rounding in ``inverse`` never leads out of a closed interval.

    Example:
        >>> import math, torch
        >>> from flowkit.transforms import Transform
        >>> class Double(Transform):
        ...     constant_log_det = True
        ...
        ...     def forward(self, x, context=None):
        ...         return 2 * x, x.new_full(x.shape[:-1], 3 * math.log(2))
        >>> z, log_det = Double(event_shape=(3,))(torch.ones(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> Double(event_shape=(3,))(torch.ones(5, 4))
        Traceback (most recent call last):
        ...
        flowkit.errors.ShapeError: Double(features=3) expected x (..., 3), got (5, 4)
    """

    needs_context: bool = False
    constant_log_det: bool = False
    stochastic: bool = False
    accepts_integers: bool = False
    rearranges: bool = False
    elementwise: bool = False
    extends: bool = False
    keeps_intervals: bool = False

    def __init__(
        self,
        event_shape: int | Sequence[int | None],
        *,
        context: int = 0,
        noise_shape: int | Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.event_shape = open_shape(name, "event_shape", event_shape)
        given = self.event_shape if noise_shape is None else noise_shape
        self.noise_shape = open_shape(name, "noise_shape", given)
        self.context_size = checks.integer(name, "context", context, least=0)
        if context:
            self.needs_context = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_directions(cls)

    @property
    def event_ndim(self) -> int:
        """Number of trailing dimensions that make one event."""
        return len(self.event_shape)

    @property
    def noise_ndim(self) -> int:
        """Number of trailing dimensions of one ``z``."""
        return len(self.noise_shape)

    @property
    def domain(self) -> constraints.Constraint:
        """Where ``x`` lives; the whole space unless a subclass says otherwise."""
        return constraints.independent(constraints.real, self.event_ndim)

    @property
    def codomain(self) -> constraints.Constraint:
        """Where ``z`` lives; the whole space unless a subclass says otherwise."""
        return constraints.independent(constraints.real, self.noise_ndim)

    @property
    def restricts(self) -> bool:
        """Whether ``x`` may lie where there is no density, so that the log-det is ``-inf``."""
        return not self.extends and not is_whole_line(self.domain)

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box of ``z`` to the box of the ``x`` that are mapped into it.

        The support of a flow is that of its base, carried through the layers. A layer that acts
        on every number by itself sets :attr:`elementwise` and is done.

        Args:
            region: The box.
            context: ``(*b, C)``; without one, ends that depend on it are not known.
            inverse: From noise to data; else a box of ``x`` to that of their ``z``.

        Returns:
            The box; ``None`` where it is none, or depends on other numbers or the context.
        """
        if self.rearranges:
            move = self.inverse if inverse else self
            return Region(move(region.lower)[0], move(region.upper)[0])
        stay = [self._keeps(end) for end in region]
        if self.elementwise and (context is not None or not self.needs_context):
            ends = self._map_ends(region, context, inverse=inverse)
            if ends is None:
                return None
            # Exact where an end is left in place.
            return Region(*map(torch.where, stay, region, ends))
        free = is_whole_line(self.domain) and is_whole_line(self.codomain)
        if not free or self.noise_shape != self.event_shape:
            return None
        kept = [bool((at | end.isinf()).all()) for at, end in zip(stay, region, strict=True)]
        return region if all(kept) else None

    def _keeps(self, end: Tensor) -> Tensor:
        """Which numbers of an event the layer leaves in place, whatever its parameters."""
        return torch.zeros_like(end, dtype=torch.bool)

    def _map_ends(self, region: Region, context: Context, *, inverse: bool) -> Region | None:
        """Carry a box by a map that is monotone in every number by itself."""
        if not self.needs_context:
            # What is not read does not lend its batch to the ends.
            context = None
        shape = tuple(region.lower.shape[region.lower.ndim - self.event_ndim :])
        outer = [constraints.real] * 2 if self.extends else [self.domain, self.codomain]
        domain, codomain = (region_of(side, shape, region.lower) for side in outer)
        if domain is None or codomain is None:
            return None

        def apply(ends: Tensor) -> Tensor:
            missing = 0 if context is None else context.ndim - (ends.ndim - len(shape))
            ends = ends.reshape(2, *(1,) * missing, *ends.shape[1:])
            return (self.inverse if inverse else self)(ends, context)[0]

        sides = (codomain, domain) if inverse else (domain, codomain)
        return map_ends(apply, region, *sides, increasing=self.orientation() > 0)

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """Which features of ``x (features,)`` are read modulo a period, given those of ``z``."""
        return after

    @property
    def inv(self) -> Transform:
        """A view with the two directions exchanged; it shares the parameters."""
        return Inverse(self)

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map data to noise: return ``z (*batch, *noise)`` and ``log|det dz/dx| (*batch,)``."""
        raise NotInvertibleError(f"{self.label} does not define forward")

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data: return ``x (*batch, *event)`` and ``log|det dx/dz| (*batch,)``."""
        raise NotInvertibleError(
            f"{self.label} does not define inverse: it can score data, but not sample"
        )

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """Like ``forward``, less the terms of the log-determinant that do not depend on ``x``."""
        z, log_det = self(x, context, generator, _fits=True)
        return z, torch.zeros_like(log_det) if self.constant_log_det else log_det

    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Start from data ``x (*batch, *event)``; called by the first ``fit``, not by forward."""

    @property
    def starts_from_data(self) -> bool:
        """Whether :meth:`initialize` does anything."""
        return type(self).initialize is not Transform.initialize

    def orientation(self) -> Tensor | float:
        """Sign of ``dz/dx`` of a map of single numbers; 1 unless overridden."""
        return 1.0

    @property
    def label(self) -> str:
        """The name used in messages, such as ``Coupling(features=4)``."""
        if len(self.event_shape) == 1:
            return f"{type(self).__name__}(features={self.event_shape[0]})"
        return f"{type(self).__name__}(event_shape={self.event_shape})"

    def _prepare(self, x: Tensor, context: Context, name: str) -> tuple[Tensor, Tensor | None]:
        """Check shapes and bring ``x`` and a context that is read to one batch shape."""
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"{self.label} expected {name} as a torch.Tensor, got {type(x).__name__}; "
                f"remedy: torch.as_tensor({name})"
            )
        shape = self.noise_shape if name == "z" else self.event_shape
        check_event(self.label, name, x, shape)
        if not (x.is_floating_point() or self.accepts_integers):
            raise ShapeError(
                f"{self.label} expected {name} of a floating-point dtype, got {x.dtype}; "
                f"remedy: {name}.float(), or a Dequantize layer for counts"
            )
        if not self.needs_context:
            return x, context
        if not isinstance(context, Tensor):
            got = None if context is None else type(context).__name__
            raise ShapeError(
                f"{self.label} expected context (..., {self.context_size}), got {got}"
            )
        check_event(self.label, "context", context, (self.context_size,))
        return broadcast_context(x, context, len(shape))


def broadcast_context(x: Tensor, context: Tensor, event_ndim: int) -> Mapped:
    """Expand ``x (*batch, *event)`` and ``context (*b, C)`` to one batch shape."""
    batch, event = x.shape[: x.ndim - event_ndim], x.shape[x.ndim - event_ndim :]
    if batch == context.shape[:-1]:
        return x, context
    try:
        both = torch.broadcast_shapes(batch, context.shape[:-1])
    except RuntimeError:
        raise ShapeError(
            f"the batch {tuple(batch)} of the data does not broadcast with the batch "
            f"{tuple(context.shape[:-1])} of the context"
        ) from None
    return x.expand(*both, *event), context.expand(*both, context.shape[-1])


def _checked(method: Callable[..., Mapped], name: str) -> Callable[..., Mapped]:
    """Let a direction see inputs of the right shape, and a generator only if it takes one.

    A container whose layers fit together by construction says so by ``_fits=True``, and nothing is
    checked again.
    """
    draws = "generator" in inspect.signature(method).parameters

    @functools.wraps(method)
    def checked(
        self: Transform,
        value: Any = None,
        context: Context = None,
        generator: Generator = None,
        *,
        _fits: bool = False,
        **named: Any,
    ) -> Mapped:
        value = named.pop(name, value)
        if not _fits:
            value, context = self._prepare(value, context, name)
        if draws:
            named["generator"] = generator
        return method(self, value, context, **named)

    return checked


def _check_directions(cls: type[Transform]) -> None:
    """Let the directions that a class defines check what they are given."""
    for name in ("forward", "inverse", "unnormalized"):
        if name in vars(cls):
            setattr(cls, name, _checked(vars(cls)[name], "z" if name == "inverse" else "x"))


_check_directions(Transform)


@register
class Inverse(Transform):
    """The inverse of a transform, as a transform.

    It does not start from data: what the transform held would start from is not known here.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Permutation
        >>> t = Permutation([2, 0, 1])
        >>> x = torch.randn(4, 3)
        >>> torch.equal(t.inv(t(x)[0])[0], x)
        True
    """

    def __init__(self, transform: Transform) -> None:
        checks.instance("Inverse", "transform", transform, Transform)
        super().__init__(
            transform.noise_shape,
            context=transform.context_size,
            noise_shape=transform.event_shape,
        )
        self.transform = transform
        self.needs_context = transform.needs_context
        self.constant_log_det = transform.constant_log_det
        self.stochastic = transform.stochastic
        self.keeps_intervals = transform.keeps_intervals

    @property
    def domain(self) -> constraints.Constraint:
        """Where the noise of the transform held lives."""
        return self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint:
        """Where the data of the transform held live."""
        return self.transform.domain

    @property
    def inv(self) -> Transform:
        """The transform itself."""
        return self.transform

    @property
    def restricts(self) -> bool:
        """Whether the transform held, or what it maps to, is restricted."""
        return self.transform.restricts or not is_whole_line(self.domain)

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box by the transform held, the other way round."""
        return self.transform.map_region(region, context, inverse=not inverse)

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """Those of the transform held, the other way round."""
        return self.transform.circular_columns(after, inverse=not inverse)

    def orientation(self) -> Tensor | float:
        """That of the transform held."""
        return self.transform.orientation()

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Apply the inverse of the transform held."""
        return self.transform.inverse(x, context, generator, _fits=True)  # type: ignore[call-arg]

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Apply the transform held."""
        return self.transform(z, context, generator, _fits=True)
