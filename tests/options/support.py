"""Supports: boxes carried through layers and flows, ends of recipes, circles."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkit import (
    Flow,
    autoregressive_flow,
    coupling_flow,
    elementwise_flow,
    kernelised_flow,
    tail_adaptive_flow,
)
from flowkit.bases import Uniform
from flowkit.conditioners import MaskedMLP
from flowkit.interop.nflows.features import OnFeatures
from flowkit.scalar import Affine
from flowkit.support import Support
from flowkit.transforms import (
    CircularShift,
    Compose,
    Coupling,
    DenseLinear,
    Elementwise,
    FactorOut,
    Gaussianize,
    MaskedAutoregressive,
    Permutation,
    Rescale,
    Reshape,
    Squeeze,
    Standardize,
    Transform,
    Unconstrain,
    Whiten,
)
from flowkit.transforms.base import Inverse
from flowkit.transforms.region import Region, map_ends

from .harness import Expectation, also, differs, of, same, shows
from .parts import C, D, X, ignores_context, rows, small, stirred

# Layers -------------------------------------------------------------------------------------


def box(*shape: int) -> Region:
    """A box with other ends for every number."""
    ends = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    return Region(-ends, 2 * ends)


def carries(
    layer: Transform, region: Region, context: Any = (C, D), inverse: Expectation | None = None
) -> None:
    """Cases of ``map_region``; without two contexts, one that does not matter."""
    given = {"context": C} if isinstance(context, tuple) else {}

    def see(**options: Any) -> Any:
        return layer.map_region(region, **{**given, **options})

    first, second = context if given else (None, None)
    also(
        type(layer).map_region,
        see,
        context=differs(second, base=first) if given else same("the layer reads none", C),
        inverse=differs(False) if inverse is None else inverse,
    )


class Raised(Transform):
    """Images that a context raises, every pixel by itself."""

    elementwise = True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return 2 * x + context[..., None, None], x.new_zeros(x.shape[:-3])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return (z - context[..., None, None]) / 2, z.new_zeros(z.shape[:-3])


started = Standardize(1)
started.initialize(5 + 3 * X[:, :1])
shaped = Gaussianize(1)
shaped.initialize(torch.exp(rows(100, 1)))
whitened = Whiten(1)
whitened.initialize(5 + 3 * X[:, :1])
moving = stirred(Elementwise(2, Affine(), context=1, conditioner=small))
masked = partial(MaskedMLP, hidden=(8,))
carries(started, box(1), None)
carries(whitened, box(1), None)
carries(shaped, box(1), None)
carries(stirred(DenseLinear(1)), box(1), None)
carries(moving, box(2))
carries(stirred(MaskedAutoregressive(1, Affine(), conditioner=masked, context=1)), box(1))
carries(stirred(Coupling([True], Affine(), conditioner=small, context=1)), box(1))
carries(Compose(moving, Permutation([1, 0])), box(2))
carries(Inverse(moving), box(2))
carries(OnFeatures(3, [0, 2], moving), box(3))
carries(Permutation([1, 2, 0]), box(3), None)
carries(
    CircularShift(1, lower=-1.0, upper=2.0),
    Region(*torch.tensor([[-1.0], [2.0]])),
    None,
    same("a whole period stays one, either way", False),
)
# Where events change their shape, the box has that of where it comes from.
for layer, shapes in (
    (Reshape((2, 3)), ((6,), (2, 3))),
    (Squeeze((1, 4, 2)), ((4, 2, 1), (1, 4, 2))),
    (FactorOut((2, 1, 2), Raised((1, 1, 2), context=1)), ((4,), (2, 1, 2))),
):

    def carried(layer: Any = layer, shapes: Any = shapes, **options: Any) -> Any:
        known = {"context": C, **options} if layer.needs_context else options
        return layer.map_region(box(*shapes[not options.get("inverse", True)]), **known)

    noise = shapes[0]
    also(
        type(layer).map_region,
        carried,
        context=differs(D, base=C) if layer.needs_context else same("it reads none", C),
        inverse=shows(lambda r, noise=noise: r.lower.shape[-len(noise) :] == noise, False),
    )

ONE = torch.tensor([True, False, False])
turning = CircularShift(3, circular=[True, False, False])
for layer, expected in (
    (Standardize(3), same("every feature stays in its place", True)),
    (turning, same("every feature stays in its place", True)),
    (
        Rescale([-9.0] * 3, [9.0] * 3, circular=[True, False, False]),
        same("every feature stays in its place", True),
    ),
    (Permutation([1, 2, 0]), differs(True)),
    (Inverse(Permutation([1, 2, 0])), differs(True)),
    (Compose(Permutation([1, 2, 0]), turning), differs(True)),
):
    also(type(layer).circular_columns, partial(layer.circular_columns, ONE), inverse=expected)

ignores_context(Rescale([-9.0] * 2, [9.0] * 2), X, "initialize")
ignores_context(Unconstrain([-9.0] * 2, [9.0, None]), X, "initialize")
line = Region(torch.full((2,), -torch.inf), torch.full((2,), torch.inf))
of(
    map_ends,
    lambda **o: map_ends(lambda x: -2 * x, box(2), line, line, **o),
    increasing=differs(False),
)

# Flows --------------------------------------------------------------------------------------

shifted = Flow(stirred(Elementwise(1, Affine(), context=1, conditioner=small)), Uniform(1))
grid = torch.linspace(-3, 3, 600).reshape(100, 6, 1)
of(Flow.region, lambda **o: shifted.region(**o), context=differs(C, D))
of(Flow.in_support, lambda **o: shifted.in_support(grid, **o), context=differs(D, base=C))
of(Support, lambda **o: Support(shifted, **o).lower, context=differs(C, D))


def ends(make: Any, *args: Any, **fixed: Any) -> dict[str, Expectation]:
    """Cases of the ends of the data, which are those of the flow."""

    def see(**options: Any) -> Any:
        flow = make(*args, layers=1, **{**fixed, **options})
        region = flow.region()
        return region.lower, region.upper, flow.sample(50).amin(0), flow.sample(50).amax(0)

    return {
        "lower": differs(0.0, (0.0, None), (None, -1.0), see=see),
        "upper": differs(5.0, (5.0, None), (None, 6.0), see=see),
    }


for make in (coupling_flow, autoregressive_flow, elementwise_flow):
    hidden = {} if make is elementwise_flow else {"hidden": (8,)}
    also(make, None, **ends(make, 2, **hidden))
also(kernelised_flow, None, **ends(kernelised_flow, 2, points=3))
also(tail_adaptive_flow, None, **ends(tail_adaptive_flow, 2, tails=(2.0, None), hidden=(8,)))
