"""Encodings of features: periods, causality to exact zeros, tokens, and their descriptions."""

import functools
import json
import math
import operator
from functools import partial

import pytest
import registry
import torch
from registry import SCALARS

import flowkit.conditioners
import flowkit.kernels
import flowkit.scalar
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
    StandardizeContext,
)
from flowkit.config import build, describe
from flowkit.errors import ArgumentError, DescriptionError, ShapeError
from flowkit.kernels import Kernel, Matern, RationalQuadratic, SquaredExponential
from flowkit.scalar import Affine, PerFeature, ScalarMap
from flowkit.testing.probe import randomize
from flowkit.transforms import Coupling, MaskedAutoregressive

DOUBLE = torch.float64
ENCODINGS = {
    "none": None,
    "clip": ClipEncoding(bound=0.5),
    "no clip": ClipEncoding(bound=None),
    "asinh": AsinhEncoding(),
    "circular": CircularEncoding(period=1.5),
    "partly circular": CircularEncoding([True, False, False, True, False, True], period=1.5),
    "fourier": FourierEncoding(3, max_frequency=5.0, seed=0),
}
FREE = {
    "mlp": partial(MLP, hidden=(8, 6)),
    "residual": partial(ResidualMLP, hidden=(8, 8)),
    "convolutional": partial(ConvNet, hidden=(4, 4)),
    "kernel": partial(KernelConditioner, points=5),
    "random features": partial(RandomFourierConditioner, n_frequencies=5, seed=0),
    "grouped": partial(GroupedConditioner, conditioning=(2, 4), transformed=(1, 1)),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def stirred(net):
    return randomize(net, 0.4, torch.Generator().manual_seed(1)).double()


def inputs(name, features=6):
    """Samples for a network, and the dimension of the features."""
    return (
        (normal(5, features, 3, 3), -3) if name == "convolutional" else (normal(5, features), -1)
    )


# ---- what networks read ----


@pytest.mark.parametrize("encoding", ["circular", "partly circular"])
@pytest.mark.parametrize("name", [*FREE, "masked"])
def test_networks_are_periodic_in_circular_features_and_in_no_others(name, encoding):
    make = partial(MaskedMLP, 6, 2) if name == "masked" else partial(FREE[name], 6, 4)
    net = stirred(make(encoding=ENCODINGS[encoding]))
    x, dim = inputs(name)
    circular = ENCODINGS[encoding].circular
    for i in range(6):
        step = torch.zeros(6, dtype=DOUBLE)
        step[i] = 1.5 * (-1) ** i
        moved = x + (step[:, None, None] if dim == -3 else step)
        periodic = circular is True or circular[i]
        change = (net(moved) - net(x)).abs().max()
        # Nothing reads the last feature of a masked network.
        if periodic or (name == "masked" and i == 5):
            assert change < 1e-12
        else:
            assert change > 1e-4


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e != "none"])
@pytest.mark.parametrize("name", FREE)
def test_an_encoding_is_what_the_network_reads(name, encoding):
    """A network without a clip that is handed the columns gives the same."""
    x, dim = inputs(name)
    encoding = ENCODINGS[encoding]
    if name == "grouped":
        net = stirred(FREE[name](6, 4, encoding=encoding, context=1))
        assert [n.encoding for n in net.nets] == [encoding.take(range(n)) for n in (2, 6)]
        return
    net = stirred(FREE[name](6, 4, encoding=encoding))
    columns = encoding.encode(x.movedim(dim, -1), net.encoding_constants).movedim(-1, dim)
    plain = FREE[name](columns.shape[dim], 4, encoding=ClipEncoding(bound=None)).double()
    weights = {k: v for k, v in net.state_dict().items() if k != "encoding_constants"}
    plain.load_state_dict(weights)
    torch.testing.assert_close(net(x), plain(columns), rtol=0, atol=0)


def test_columns_are_the_formulas():
    x = normal(7, 2)
    table = {
        "clip": (ClipEncoding(bound=2.0), x / (1 + x.abs() / 2 * torch.tanh(x.abs()))),
        "asinh": (AsinhEncoding(), (x + (x.square() + 1).sqrt()).log()),
    }
    for encoding, expected in table.values():
        torch.testing.assert_close(encoding.encode(x, None), expected)
    angle = 2 * math.pi * x[:, :1] / 3
    encoding = CircularEncoding([True, False], period=3.0, bound=None)
    expected = torch.cat([angle.sin(), angle.cos(), x[:, 1:]], -1)
    torch.testing.assert_close(encoding.encode(x, encoding.constants(2, causal=False)), expected)
    encoding = FourierEncoding(4, max_frequency=9.0, seed=1, bound=None)
    frequencies = encoding.constants(2, causal=False).double()
    angles = (x @ frequencies.mT).reshape(7, 2, 4)
    expected = torch.cat([x.unsqueeze(-1), angles.sin(), angles.cos()], -1).flatten(1)
    torch.testing.assert_close(encoding.encode(x, frequencies), expected)


def test_frequencies_are_log_uniform_in_length_and_uniform_in_direction():
    n = 20_000
    encoding = FourierEncoding(n, max_frequency=40.0, seed=0)
    frequencies = encoding.constants(2, causal=False).double()
    lengths = frequencies.norm(dim=-1).log() / math.log(40)
    # The standard error of a mean of uniform numbers, and of their squares.
    assert lengths.min() >= -1e-6
    assert lengths.max() <= 1 + 1e-6
    assert (lengths.mean() - 1 / 2).abs() < 4 / math.sqrt(12 * 2 * n)
    assert (lengths.square().mean() - 1 / 3).abs() < 4 * math.sqrt(4 / 45 / (2 * n))
    angles = torch.atan2(*frequencies.unbind(-1))
    for harmonic in (1, 2, 3):
        assert (harmonic * angles).cos().mean().abs() < 4 / math.sqrt(2 * 2 * n)
    causal = FourierEncoding(5, seed=0).constants(3, causal=True).reshape(3, 5, 3)
    assert torch.equal(causal.abs().amax(1) > 0, torch.ones(3, 3).tril() > 0)


def test_frequencies_without_a_seed_follow_the_random_state_of_torch():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(MLP(2, 2, encoding=FourierEncoding(3)).encoding_constants)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("make", [partial(MLP, 20, 1), partial(MaskedMLP, 21, 1)])
def test_the_first_layer_starts_with_variance_two_shared_by_the_columns_weights(make):
    net = make(hidden=(4000,), encoding=FourierEncoding(5, seed=0))
    features = net.in_features
    weight = net.layers[0].weight.detach().unflatten(-1, (features, 11))
    weight = weight[-100:] if isinstance(net, MaskedMLP) else weight
    read = weight[:, :20]
    # One for a feature and one twelfth for its sines and its cosines each: 7 / 6 altogether.
    own, waves = read[..., 0].square().mean(), read[..., 1:].square().mean()
    # A uniform number's square has the deviation 0.9 of its mean.
    count = read[..., 0].numel()
    assert own.item() == pytest.approx(2 * 6 / 7 / 20, rel=4 * 0.9 / math.sqrt(count))
    assert waves.item() == pytest.approx(own.item() / 60, rel=4 * 0.9 * 1.1 / math.sqrt(count))


# ---- causality ----


def jacobian_of(net, x, context):
    """How much every parameter depends on every feature, at the most."""

    def summed(x):
        return net(x, context).movedim(0, -1).sum(-1)

    return torch.autograd.functional.jacobian(summed, x).abs().amax((1, 2))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("block", [1, 2, 3, 6])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_tokens_are_causal_to_exact_zeros(encoding, block, context):
    net = MaskedMLP(6, 2, block=block, hidden=(13, 12), context=context, encoding=encoding)
    net = stirred(net)
    x, c = normal(4, 6), normal(4, context) if context else None
    depends = jacobian_of(net, x, c)
    token = torch.arange(6) // block
    before = token.unsqueeze(0) < token.unsqueeze(-1)
    assert torch.equal(depends > 0, before)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_tokens_are_unrolled_as_a_full_pass_per_token_does(encoding, block):
    net = stirred(MaskedMLP(6, 3, block=block, hidden=(13, 12), encoding=encoding))
    z, sizes = normal(6, 5).requires_grad_(), []

    def solve(z, params):
        assert params.shape == (*z.shape, 3)
        sizes.append(len(z))
        return z + params[..., 0] * params[..., 1].sin() + params[..., 2]

    fast = net.unroll(solve, z)
    assert sizes == [block] * (6 // block)
    slow = AutoregressiveConditioner.unroll(net, solve, z)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), z)[0] for x in (fast, slow)))
    with torch.no_grad():
        torch.testing.assert_close(net.unroll(solve, z), slow)


def test_a_layer_of_tokens_is_a_bijection_with_the_determinant_of_its_jacobian():
    masked = partial(MaskedMLP, hidden=(9, 8), block=2)
    layer = stirred(MaskedAutoregressive(6, Affine(), conditioner=masked))
    x = normal(5, 6)
    z, log_det = layer(x)
    torch.testing.assert_close(layer.inverse(z)[0], x)
    full = torch.func.vmap(torch.func.jacrev(lambda x: layer(x)[0]))(x)
    torch.testing.assert_close(torch.linalg.slogdet(full)[1], log_det)
    # Within a token no feature depends on another one.
    assert not full[:, 2, 3].any()
    assert not full[:, 3, 2].any()


# ---- descriptions ----

SUM = Matern(nu=1.5) * SquaredExponential(length_scale=2.0) + RationalQuadratic(alpha=0.5)
CONDITIONERS = {
    **{
        f"{name} {encoding}": partial(make, 6, 4, context=1, encoding=ENCODINGS[encoding])
        for name, make in FREE.items()
        for encoding in ("none", "asinh", "partly circular", "fourier")
    },
    "masked tokens": partial(MaskedMLP, 6, 4, block=2, context=1, hidden=(8,)),
    "masked fourier": partial(MaskedMLP, 6, 4, context=1, encoding=FourierEncoding(2)),
    "kernel sum": partial(KernelConditioner, 6, 4, context=1, points=3, kernel=SUM),
    "kernel of its own": partial(KernelConditioner, 6, 4, context=1, points=3, kernel=Matern(7)),
    "linear term": partial(
        RandomFourierConditioner, 6, 4, context=1, kernel=Matern(nu=0.5), linear_term=True
    ),
}  # fmt: skip
KERNELS = {
    "squared exponential": lambda: SquaredExponential(6, length_scale=[1, 2, 3, 4, 5, 6]),
    "matern": lambda: Matern(6, nu=0.5, learn=False),
    "rational quadratic": lambda: RationalQuadratic(6, alpha=2),
    "sum": lambda: SUM.with_features(6),
    "product": lambda: Matern(6) * SquaredExponential(),
}


def again(part):
    """A part from its description, through JSON."""
    return build(json.loads(json.dumps(describe(part))))


def with_weights_of(copy, part):
    copy.load_state_dict(part.state_dict())
    return copy.double()


@pytest.mark.parametrize("name", CONDITIONERS)
def test_a_conditioner_is_rebuilt_from_its_description_to_the_bit(name):
    net = stirred(CONDITIONERS[name]().float()).float()
    copy = with_weights_of(again(net), net)
    x, _ = inputs(name.split()[0])
    c = normal(5, 1)
    net = net.double()
    assert type(copy) is type(net)
    assert torch.equal(net(x, c), copy(x, c))
    assert describe(copy) == describe(net)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_rebuilt_from_its_description_to_the_bit(name):
    kernel = stirred(KERNELS[name]().float()).float()
    copy = with_weights_of(again(kernel), kernel)
    x, y = normal(4, 6), normal(3, 6, seed=1)
    assert torch.equal(kernel.double()(x, y), copy(x, y))
    frozen = [not p.requires_grad for p in kernel.parameters()]
    assert frozen == [not p.requires_grad for p in copy.parameters()]


MAPS = {**SCALARS, "per feature": PerFeature(tuple(SCALARS.values()))}
MAPS["activation"] = flowkit.scalar.SmoothLeakyReLU(0.2)


@pytest.mark.parametrize("name", MAPS)
def test_a_scalar_map_is_rebuilt_from_its_description_to_the_bit(name):
    scalar = MAPS[name]
    copy = again(scalar)
    assert copy == scalar
    rows = len(scalar.maps) if isinstance(scalar, PerFeature) else 5
    x, params = normal(rows), normal(rows, scalar.param_size)
    for got, expected in zip(copy.forward(x, params), scalar.forward(x, params), strict=True):
        assert torch.equal(got, expected)


def public(module, kind):
    parts = (getattr(module, name) for name in getattr(module, "__all__", vars(module)))
    return {
        p for p in parts
        if isinstance(p, type) and issubclass(p, kind) and not p.__name__.startswith("_")
    }  # fmt: skip


def test_no_public_part_is_missing_here():
    shown = {type(make()) for make in CONDITIONERS.values()}
    shown |= {type(make()) for make, _ in registry.CONDITIONERS.values()}
    bases = {Conditioner, AutoregressiveConditioner, StandardizeContext}
    assert public(flowkit.conditioners, torch.nn.Module) - bases == shown
    assert public(flowkit.kernels, Kernel) - {Kernel} < {type(m()) for m in KERNELS.values()}
    assert public(flowkit.scalar, ScalarMap) - {ScalarMap} == {type(m) for m in MAPS.values()}
    embed = StandardizeContext(2)
    embed.initialize(normal(9, 2))
    copy = again(embed)
    copy.load_state_dict(embed.state_dict())
    assert torch.equal(copy(normal(3, 2)), embed(normal(3, 2)))


def test_layers_with_factories_are_rebuilt_from_their_description():
    factories = [
        partial(MLP, hidden=(8,), encoding=FourierEncoding(3)),
        partial(KernelConditioner, points=4, kernel=SUM, encoding=CircularEncoding()),
        partial(
            GroupedConditioner, conditioning=(1, 1), transformed=(1, 1),
            conditioner=partial(MLP, hidden=(4,)), encoding=CircularEncoding([True, False]),
        ),
    ]  # fmt: skip
    x = normal(5, 4).float()
    for factory in factories:
        layer = stirred(Coupling([0, 1, 0, 1], Affine(), conditioner=factory)).float()
        copy = again(layer)
        copy.load_state_dict(layer.state_dict())
        assert torch.equal(copy(x)[0], layer(x)[0])


# ---- kernels that wait for their features ----


def test_every_conditioner_gets_a_kernel_of_its_own():
    waiting = Matern(nu=1.5) + RationalQuadratic()
    assert not list(waiting.parameters())
    nets = [KernelConditioner(n, 1, points=3, kernel=waiting) for n in (2, 3, 3)]
    assert [net.kernel.features for net in nets] == [2, 3, 3]
    mine = [set(map(id, net.kernel.parameters())) for net in nets]
    assert not functools.reduce(operator.and_, mine)
    assert waiting.features is None
    with pytest.raises(ShapeError, match="expected a number of features first"):
        Matern()(torch.zeros(1, 1), torch.zeros(1, 1))
    assert (Matern() * Matern(4)).parts[0].features == 4


# ---- arguments ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CircularEncoding([0, 2]), "circular as a sequence of booleans"),
        (lambda: CircularEncoding(period=0), "period as a finite number > 0, got 0"),
        (lambda: MLP(3, 1, encoding=CircularEncoding([True])), "a sequence of 3 boolean"),
        (lambda: FourierEncoding(0), "n_frequencies as an integer >= 1, got 0"),
        (lambda: FourierEncoding(max_frequency=0.5), "max_frequency as a finite number >= 1"),
        (lambda: ClipEncoding(bound=-1.0), "bound as a finite number > 0"),
        (lambda: MLP(40_000, 1, encoding=FourierEncoding()), "FourierEncoding would hold"),
        (lambda: MLP(2, 2, encoding=AsinhEncoding), "encoding as an Encoding"),
        (lambda: MLP(2, 2, hidden=(100_000, 100_000)), "MLP would hold a tensor of 100000 x 1"),
        (lambda: MLP(0, 2), "nothing to read"),
        (lambda: MLP(2.5, 2), "in_features as an integer >= 0, got 2.5"),
        (lambda: MLP(2, 2, hidden=()), "hidden as one width or more"),
        (lambda: MLP(2, 2, activation="sulu"), "did you mean 'silu'"),
        (lambda: MLP(2, 2, activation="Relu6"), "did you mean 'relu'"),
        (lambda: ResidualMLP(2, 2, hidden=(3, 4)), "one width for all blocks"),
        (lambda: MaskedMLP(6, 2, block=4), "block as a divisor of the 6 features"),
        (lambda: MaskedMLP(10**6, 10**6), "MaskedMLP would hold a tensor"),
        (lambda: ConvNet(2, 2, kernel=4), "kernel as an odd integer"),
        (lambda: KernelConditioner(2, 2, points=2**30), "would hold a tensor"),
        (lambda: StandardizeContext(-1), "features as an integer >= 1"),
        (lambda: Affine(max_log_scale=0), "max_log_scale as a finite number > 0"),
        (lambda: PerFeature(()), "maps as one ScalarMap per feature"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_kernel_that_was_exchanged_cannot_be_described():
    net = KernelConditioner(2, 2, points=3, kernel=Matern(2))
    net.kernel = SquaredExponential(2)
    with pytest.raises(DescriptionError):
        describe(net)
