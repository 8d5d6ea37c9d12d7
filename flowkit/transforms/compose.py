"""One transform after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.config import register
from flowkit.errors import NotInvertibleError, ShapeError
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Inverse, Transform
from flowkit.transforms.container import Container, apply_all
from flowkit.transforms.region import Region, of_numbers
from flowkit.transforms.reversible import run_reversibly


@register
class Compose(Container):
    r"""Apply transforms in turn, from data to noise: :math:`z = t_n(\dots t_1(x))`.

    Log-determinants add up; with stochastic layers the same sum is the log path-probability ratio.

    With ``reversible=True`` only the input and the last state are remembered for the backward
    pass, which finds the states between layers again by undoing one layer at a time: the memory
    of the activations is that of one layer, however many there are. Results are the same and
    gradients are the same to rounding, which in single precision adds up over the inverses; a
    step takes about half as long again. It pays where layers are as cheap to undo as to apply,
    such as couplings and linear layers; a :class:`MaskedAutoregressive` is undone feature by
    feature, and a root-found map by a search. The attribute can be set at any time, and is no part
    of the weights: a loaded flow remembers everything again. The plain pass, with all its memory,
    runs under ``torch.compile`` and ``torch.func``, and once more for gradients with
    ``create_graph=True``. A layer must give the same numbers each time it runs: active dropout
    raises, and a layer that draws in another way must not be here. A Compose held by another is
    one layer of it.

    Args:
        transforms: At least one transform; each takes the events that the one before it gives, and
            all share one context size.
        reversible: Whether the backward pass computes the states between layers anew.
        starts: Ways to start from data, the usual one first: a name, and the numbers of the layers
            that :meth:`initialize` starts. A layer that is in some of them only is left as it is
            in the others; one that is in none always starts. ``fit`` tries each, and goes on with
            the one that validates best.

    Raises:
        ArgumentError: If a number in ``starts`` is not that of a layer that starts from data.
        ShapeError: If there is none, or they do not fit together.
        NotInvertibleError: If it shall be reversible, and a layer is stochastic, lacks one
            direction, or holds an active dropout when it runs.

    References:
        Gomez et al. 2017, The reversible residual network, arXiv 1707.04585, for activations
        computed anew from those of the next layer.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Compose, LULinear, Permutation
        >>> t = Compose(Permutation([1, 0]), LULinear(2))
        >>> [tuple(state.shape) for state in t.states(torch.zeros(7, 2))]
        [(7, 2), (7, 2), (7, 2)]
    """

    _reversible = False

    def __init__(
        self,
        *transforms: Transform,
        reversible: bool = False,
        starts: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if not transforms:
            raise checks.fail("Compose", "transforms", "one Transform or more", ())
        for t in transforms:
            checks.instance("Compose", "transforms", t, Transform, "Compose(*layers)")
        super().__init__(transforms, *_joined_shapes(transforms))
        self.transforms = nn.ModuleList(transforms)
        self.keeps_intervals = all(t.keeps_intervals for t in transforms)
        self.accepts_integers = transforms[0].accepts_integers
        self.reversible = checks.flag("Compose", "reversible", reversible)
        named = {} if starts is None else starts
        remedy = "starts={'gaussian': [0, 1]}, names and numbers of layers"
        if not isinstance(named, Mapping):
            raise checks.fail("Compose", "starts", "a dict of lists", starts, remedy)
        self.starts: dict[str, list[int]] = {}
        for name, layers in named.items():
            place, most = f"starts[{name!r}]", len(transforms) - 1
            given = checks.integers("Compose", place, layers, remedy=remedy)
            self.starts[name] = list(given)
            for i in given:
                checks.integer("Compose", place, i, least=0, most=most)
                if not transforms[i].starts_from_data:
                    expected = "layers that start from data"
                    raise checks.fail("Compose", place, expected, transforms[i].label)

    @property
    def reversible(self) -> bool:
        """Whether the backward pass computes the states between layers anew; may be set."""
        return self._reversible

    @reversible.setter
    def reversible(self, value: bool) -> None:
        if value:
            for t in self.transforms:
                missing = None if _has_inverse(t) else "does not define both directions"  # type: ignore[arg-type]
                if fault := "is stochastic" if t.stochastic else missing:
                    raise NotInvertibleError(
                        f"{t.label} {fault} and cannot be undone, so this Compose cannot be "
                        "reversible; remedy: define inverse, or reversible=False"
                    )
        self._reversible = bool(value)

    def __len__(self) -> int:
        return len(self.transforms)

    def __getitem__(self, index: int) -> Transform:
        return self.transforms[index]  # type: ignore[return-value]

    @property
    def domain(self) -> constraints.Constraint:
        """The domain of the first transform that does more than to rearrange numbers."""
        first = next((i for i in range(len(self)) if not self[i].rearranges), len(self) - 1)
        domain = self[first].domain
        if first:
            domain = of_numbers(domain)
            # Bounds that differ between numbers have no place in an event of another shape.
            bounds = (getattr(domain, name, 0.0) for name in ("lower_bound", "upper_bound"))
            differ = any(isinstance(bound, Tensor) and bound.ndim for bound in bounds)
            if differ or isinstance(domain, type(constraints.cat([]))):
                domain = constraints.real
            domain = constraints.independent(domain, self.event_ndim)
        return domain

    @property
    def codomain(self) -> constraints.Constraint:
        """The codomain of the last transform."""
        return self[len(self) - 1].codomain

    def map_region(
        self, region: Region, context: Context = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box through all transforms."""
        carried: Region | None = region
        for t in reversed(self.transforms) if inverse else self.transforms:
            if carried is None:
                return None
            carried = t.map_region(carried, context, inverse=inverse)  # type: ignore[operator]
        return carried

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """Those that any transform reads so."""
        for t in self.transforms if inverse else reversed(self.transforms):
            after = t.circular_columns(after, inverse=inverse)  # type: ignore[operator]
        return after

    def orientation(self) -> Tensor | float:
        """The product of the signs."""
        sign: Tensor | float = 1.0
        for t in self.transforms:
            sign = sign * t.orientation()  # type: ignore[operator]
        return sign

    def _run(
        self, direction: str, value: Tensor, context: Context, generator: Generator
    ) -> Mapped:
        layers: Any = list(self.transforms)[:: -1 if direction == "inverse" else 1]
        if self._reversible and not torch.compiler.is_compiling():
            return run_reversibly(layers, direction, value, context)
        return apply_all(layers, direction, value, context, generator)

    def states(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> list[Tensor]:
        """Return ``x`` and the value after each transform, in order."""
        states = [x]
        for t in self.transforms:
            states.append(t(states[-1], context, generator)[0])
        return states

    @property
    def starts_from_data(self) -> bool:
        """Whether any transform starts from data."""
        return any(t.starts_from_data for t in self.transforms)

    def initialize(self, x: Tensor, context: Context = None, start: str | None = None) -> None:
        """Start each transform from the data as they reach it, as far as any starts from data.

        Args:
            x: The data.
            context: Their context.
            start: A name of :attr:`starts`; the first one by default.
        """
        left = {i for layers in self.starts.values() for i in layers}
        if self.starts:
            name = next(iter(self.starts)) if start is None else start
            left -= {*checks.choice("initialize", "start", name, self.starts)}
        elif start is not None:
            raise checks.fail("initialize", "start", "None, for there is one start alone", start)
        starting = [
            i for i, t in enumerate(self.transforms) if t.starts_from_data and i not in left
        ]
        for i, t in enumerate(self.transforms[: max(starting, default=-1) + 1]):
            if i in starting:
                t.initialize(x, context)  # type: ignore[operator]
            if i < starting[-1]:
                with torch.no_grad():
                    x = t(x, context)[0]


def _joined_shapes(
    transforms: Sequence[Transform],
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """The shapes of x and z: a layer that keeps the shape says what its neighbours leave open."""
    event_shape = None
    shape = transforms[0].event_shape
    for t in transforms:
        fits = len(shape) == t.event_ndim and all(
            a is None or b is None or a == b for a, b in zip(shape, t.event_shape, strict=True)
        )
        if not fits:
            raise ShapeError(f"{t.label} cannot follow layers with events {shape}")
        shape = tuple(b if a is None else a for a, b in zip(shape, t.event_shape, strict=True))
        if t.noise_shape != t.event_shape:
            event_shape = shape if event_shape is None else event_shape
            shape = t.noise_shape
    return shape if event_shape is None else event_shape, shape


def _has_inverse(transform: Transform) -> bool:
    """Whether all layers override both directions, and so can be undone in either."""
    kinds = {type(layer) for layer, _ in layers_in_order(transform)}
    return all(
        kind.forward is not Transform.forward and kind.inverse is not Transform.inverse
        for kind in kinds
    )


def layers_in_order(
    transform: Transform, *, inverse: bool = False
) -> Iterator[tuple[Transform, bool]]:
    """Iterate over all layers in the order of application, each with whether it is inverted.

    Example:
        >>> from flowkit.transforms import Compose, Log, Permutation
        >>> from flowkit.transforms.compose import layers_in_order
        >>> stack = Compose(Log(2), Compose(Permutation([1, 0]), Log(2).inv))
        >>> [(t.label, inverted) for t, inverted in layers_in_order(stack, inverse=True)]
        [('Log(features=2)', False), ('Permutation(features=2)', True), ('Log(features=2)', True)]
    """
    if isinstance(transform, Compose):
        order = list(transform.transforms)
        for layer in reversed(order) if inverse else order:
            yield from layers_in_order(layer, inverse=inverse)  # type: ignore[arg-type]
    elif isinstance(transform, Inverse):
        yield from layers_in_order(transform.transform, inverse=not inverse)
    else:
        yield transform, inverse
