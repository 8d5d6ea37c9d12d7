"""Networks and kernels that emit parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkit.conditioners import (
    MLP,
    AutoregressiveConditioner,
    CircularFeatures,
    CircularMaskedMLP,
    ConvNet,
    FourierMaskedMLP,
    GroupedConditioner,
    KernelConditioner,
    MaskedMLP,
    RandomFourierConditioner,
    ResidualMLP,
)
from flowkit.conditioners.mlp import Conditioner
from flowkit.kernels import Matern, RationalQuadratic, SquaredExponential

from .harness import differs, falls, number_of_parameters, of, rises
from .parts import C, D, X, network, reads_context, small, stirred

FAR = 20 * X
IMAGE = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(5))
tiny = {"hidden": (8,)}

# Constructors -------------------------------------------------------------------------------

of(MLP, None, **network(partial(MLP, 2, 4), FAR))
of(ResidualMLP, None, **network(partial(ResidualMLP, 2, 4), FAR))
of(MaskedMLP, None, **network(partial(MaskedMLP, 2, 3), FAR))
conv = network(partial(ConvNet, 2, 4), 20 * IMAGE)
of(ConvNet, lambda **o: number_of_parameters(ConvNet(2, 4, **o)), **conv, kernel=rises(5, 7))
of(
    Conditioner,
    lambda **o: vars(Conditioner(2, 4, **o)) and Conditioner(2, 4, **o).extra_repr(),
    context=differs(1, 2),
    hidden=differs((8,), (9,)),
    activation=differs("relu"),
    input_clip=differs(1.0, "asinh", see=lambda **o: Conditioner(2, 4, **o)._clip(FAR)),
)


def fourier(**options: Any) -> FourierMaskedMLP:
    return FourierMaskedMLP(2, 3, **{"hidden": (8, 8), "waves": 4, **options})


of(
    FourierMaskedMLP,
    lambda **o: number_of_parameters(fourier(**o)),
    **{
        **network(partial(FourierMaskedMLP, 2, 3, waves=4), FAR),
        "input_clip": differs(
            0.5, None, see=lambda **o: stirred(FourierMaskedMLP(2, 3, waves=4, **o))(FAR)
        ),
    },
    waves=rises(8, 16),
    highest=rises(80.0, 200.0, see=lambda **o: fourier(**o).directions.norm(dim=-1).max()),
    seed=differs(1, 2, see=lambda **o: fourier(**o).directions),
)


def circular(**options: Any) -> Tensor:
    torch.manual_seed(0)
    net = CircularFeatures(2, 3, **{"circular": (True, False), **options})
    given = torch.ones(6, 1) if options.get("context") else None
    return stirred(net)(FAR, given)


ROUND = {
    "circular": differs((False, True), (False, False), base=(True, False)),
    "period": differs(1.0, 3.0),
    "clip": differs(1.0, 5.0),
}
of(
    CircularFeatures,
    circular,
    context=differs(1),
    **ROUND,
    conditioner=differs(partial(MLP, hidden=(8,)), ResidualMLP),
)


def circular_masked(**options: Any) -> Tensor:
    torch.manual_seed(0)
    net = CircularMaskedMLP(2, 3, **{"circular": (True, False), **options})
    return stirred(net)(FAR, torch.ones(6, 1) if options.get("context") else None)


shared = network(partial(CircularMaskedMLP, 2, 3, circular=(True, False)), FAR)
del shared["input_clip"]
# Of two variables only the first one is read; a clip is of one that is no circle.
clip = differs(1.0, 5.0, using={"circular": (False, True)})
of(CircularMaskedMLP, circular_masked, **shared, **{**ROUND, "clip": clip})
of(
    GroupedConditioner,
    lambda **o: number_of_parameters(GroupedConditioner(2, 4, (1, 1), (1, 1), **o)),
    conditioner=falls(small),
    context=rises(1, 2),
)


def expansion(make: Any, **sizes: Any) -> Any:
    """What a kernel conditioner emits, its parameters moved."""
    return lambda **o: stirred(make(2, 3, **{**sizes, **o}))(X)


def numbers(make: Any, *args: Any) -> Any:
    """How many numbers are learned."""
    return lambda **o: number_of_parameters(make(*args, **o))


KINDS = differs(Matern, RationalQuadratic)
of(
    KernelConditioner,
    numbers(KernelConditioner, 2, 3),
    context=rises(1, 2),
    points=rises(200, 300),
    kernel=differs(Matern, RationalQuadratic, see=expansion(KernelConditioner, points=5)),
    mean=rises(True),
    learn_points=falls(False),
)
of(
    RandomFourierConditioner,
    numbers(RandomFourierConditioner, 2, 3),
    context=rises(1, 2),
    frequencies=rises(300, 400),
    kernel=differs(Matern, see=expansion(RandomFourierConditioner, frequencies=5)),
    mean=rises(True),
    seed=differs(1, 2, see=lambda **o: RandomFourierConditioner(2, 3, **o).omega),
)


def kernel(make: Any) -> dict[str, Any]:
    """Cases that all kernels share; a longer scale makes points more alike."""

    def alike(**options: Any) -> Tensor:
        return make(2, **options)(X[:1], X[1:2])

    return {
        "length_scale": rises(2.0, (3.0, 4.0), base=1.0, see=alike),
        "learn": falls(False, see=numbers(make, 2)),
    }


def alike(make: Any) -> Any:
    return lambda **o: make(2, **o)(X, X)


of(SquaredExponential, None, **kernel(SquaredExponential))
of(Matern, alike(Matern), nu=differs(0.5, 1.5), **kernel(Matern))
of(
    RationalQuadratic,
    alike(RationalQuadratic),
    alpha=differs(0.5, 5.0),
    **kernel(RationalQuadratic),
)

# Context ------------------------------------------------------------------------------------

reads_context(stirred(MLP(2, 3, 1, **tiny)), X, "forward")
reads_context(stirred(ResidualMLP(2, 3, 1, **tiny)), X, "forward")
masked = stirred(MaskedMLP(2, 3, 1, **tiny))
reads_context(masked, X, "forward")
reads_context(stirred(ConvNet(2, 3, 1, **tiny)), IMAGE, "forward")
reads_context(stirred(CircularFeatures(2, 3, 1, circular=(True, False))), X, "forward")
reads_context(stirred(GroupedConditioner(2, 4, (1, 1), (1, 1), small, context=1)), X, "forward")
expanding = partial(KernelConditioner, points=4)
reads_context(GroupedConditioner(2, 4, (1, 1), (1, 1), expanding, context=1), X, "initialize")
for net in (expanding(2, 3, 1), RandomFourierConditioner(2, 3, 1, frequencies=4)):
    reads_context(stirred(net), X, "forward", "initialize")


def solve(z: Tensor, params: Tensor) -> Tensor:
    return z + params.sum(-1)


for kind in (AutoregressiveConditioner, MaskedMLP):
    of(
        kind.unroll,
        lambda kind=kind, **o: kind.unroll(masked, solve, X.mT, **o),
        context=differs(D, base=C),
    )
