"""Networks and kernels that emit parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowkit.conditioners import (
    MLP,
    AsinhEncoding,
    AutoregressiveConditioner,
    CircularEncoding,
    ClipEncoding,
    Conditioner,
    ConvNet,
    FourierEncoding,
    GroupedConditioner,
    KernelConditioner,
    MaskedMLP,
    RandomFourierConditioner,
    ResidualMLP,
)
from flowkit.conditioners.encodings import Encoding
from flowkit.kernels import Kernel, Matern, RationalQuadratic, SquaredExponential

from .harness import differs, falls, number_of_parameters, of, rises
from .parts import C, D, X, network, reads_context, small, stirred

FAR = 20 * X
IMAGE = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(5))
tiny = {"hidden": (8,)}

# Constructors -------------------------------------------------------------------------------

of(MLP, None, **network(partial(MLP, 2, 4), FAR))
of(
    MaskedMLP,
    None,
    **network(partial(MaskedMLP, 2, 3), FAR),
    block=differs(2, see=lambda **o: stirred(MaskedMLP(2, 3, **o))(FAR)),
)
conv = network(partial(ConvNet, 2, 4), 20 * IMAGE)
of(ConvNet, lambda **o: number_of_parameters(ConvNet(2, 4, **o)), **conv, kernel=rises(5, 7))
of(
    Conditioner,
    lambda **o: Conditioner(2, 4, **o).columns,
    context=rises(1, 2),
    encoding=differs(AsinhEncoding(), see=lambda **o: Conditioner(2, 4, **o)._read(FAR, None)),
)
of(
    AutoregressiveConditioner,
    lambda **o: AutoregressiveConditioner(2, 4, **o).columns,
    block=differs(2, see=lambda **o: unrolled_tokens(**o)),
    context=rises(1, 2),
    encoding=differs(
        AsinhEncoding(), see=lambda **o: AutoregressiveConditioner(2, 4, **o)._read(FAR, None)
    ),
)


def unrolled_tokens(**options: Any) -> list[int]:
    """How many features are solved at once."""

    class Nothing(AutoregressiveConditioner):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return x.unsqueeze(-1).expand(*x.shape, 4)

    sizes: list[int] = []

    def solve(z: Tensor, params: Tensor) -> Tensor:
        sizes.append(len(z))
        return z

    Nothing(2, 4, **options).unroll(solve, X.mT)
    return sizes


def encoded(make: Any, *args: Any) -> Any:
    """What a network with an encoding reads of its features."""
    return lambda **o: MLP(2, 4, encoding=make(*args, **o))._read(FAR, None)


of(ClipEncoding, encoded(ClipEncoding), bound=differs(0.5, None))
of(
    CircularEncoding,
    encoded(CircularEncoding),
    circular=differs(False, (True, False)),
    period=differs(1.0, 3.0),
    bound=differs(1.0, None, see=encoded(CircularEncoding, (True, False))),
)
of(
    FourierEncoding,
    encoded(FourierEncoding),
    n_frequencies=rises(40, 50, see=lambda **o: FourierEncoding(**o).sizes(2)[0]),
    max_frequency=rises(
        80.0, 200.0, see=lambda **o: FourierEncoding(**o, seed=0).constants(2, causal=False).max()
    ),
    seed=differs(1, 2, base=0),
    bound=differs(0.5, None, using={"seed": 0}),
)
of(
    FourierEncoding.constants,
    lambda **o: FourierEncoding(3, seed=0).constants(2, **o),
    causal=differs(True, base=False),
)
for kind in (Encoding, CircularEncoding):
    of(kind.constants, None, causal="a column reads one feature in any case")
GROUPS = {"conditioning": (1, 1), "transformed": (1, 1)}
of(
    GroupedConditioner,
    lambda **o: number_of_parameters(GroupedConditioner(2, 4, **{**GROUPS, **o})),
    conditioning=rises((2, 0), base=(0, 2)),
    transformed=rises((0, 4), base=(4, 0), using={"conditioner": MLP, "conditioning": (0, 2)}),
    context=rises(1, 2),
    conditioner=falls(small),
    encoding=rises(FourierEncoding(2), using={"conditioner": MLP}),
)


def expansion(make: Any, **sizes: Any) -> Any:
    """What a kernel conditioner emits, its parameters moved."""
    return lambda **o: stirred(make(2, 3, **{**sizes, **o}))(X)


def numbers(make: Any, *args: Any) -> Any:
    """How many numbers are learned."""
    return lambda **o: number_of_parameters(make(*args, **o))


of(
    KernelConditioner,
    numbers(KernelConditioner, 2, 3),
    context=rises(1, 2),
    points=rises(200, 300),
    kernel=differs(Matern(), RationalQuadratic(), see=expansion(KernelConditioner, points=5)),
    linear_term=rises(True),
    learn_points=falls(False),
    encoding=rises(CircularEncoding(), FourierEncoding(2)),
)
of(
    RandomFourierConditioner,
    numbers(RandomFourierConditioner, 2, 3),
    context=rises(1, 2),
    n_frequencies=rises(300, 400),
    kernel=differs(Matern(), see=expansion(RandomFourierConditioner, n_frequencies=5)),
    linear_term=rises(True),
    encoding=rises(CircularEncoding(), FourierEncoding(2)),
    seed=differs(1, 2, base=0, see=lambda **o: RandomFourierConditioner(2, 3, **o).frequencies),
)


def kernel(make: Any) -> dict[str, Any]:
    """Cases that all kernels share; a longer scale makes points more alike."""

    def alike(**options: Any) -> Tensor:
        return make(2, **options)(X[:1], X[1:2])

    return {
        "length_scale": rises(2.0, (3.0, 4.0), base=1.0, see=alike),
        "learn": falls(False, see=numbers(make, 2)),
        "features": rises(1, 2, see=numbers(make)),
    }


of(Kernel, lambda **o: Kernel(**o).features, features=differs(1, 2))


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

reads_context(stirred(MLP(2, 3, context=1, **tiny)), X, "forward")
reads_context(stirred(ResidualMLP(2, 3, context=1, **tiny)), X, "forward")
masked = stirred(MaskedMLP(2, 3, context=1, **tiny))
reads_context(masked, X, "forward")
reads_context(stirred(ConvNet(2, 3, context=1, **tiny)), IMAGE, "forward")
circular = MLP(2, 3, context=1, encoding=CircularEncoding((True, False)))
reads_context(stirred(circular), X, "forward")
grouped = partial(GroupedConditioner, 2, 4, **GROUPS, context=1)
reads_context(stirred(grouped(conditioner=small)), X, "forward")
expanding = partial(KernelConditioner, points=4)
reads_context(grouped(conditioner=expanding), X, "initialize")
for net in (
    expanding(2, 3, context=1),
    RandomFourierConditioner(2, 3, context=1, n_frequencies=4),
):
    reads_context(stirred(net), X, "forward", "initialize")


def solve(z: Tensor, params: Tensor) -> Tensor:
    return z + params.sum(-1)


for kind in (AutoregressiveConditioner, MaskedMLP):
    of(
        kind.unroll,
        lambda kind=kind, **o: kind.unroll(masked, solve, X.mT, **o),
        context=differs(D, base=C),
    )
