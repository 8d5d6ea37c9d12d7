"""What the start of a conditioner promises, and the inverse of autoregressive ones."""

from functools import partial

import pytest
import torch

from flowkit.conditioners import (
    MLP,
    AutoregressiveConditioner,
    CircularEncoding,
    ClipEncoding,
    FourierEncoding,
    MaskedMLP,
    ResidualMLP,
)
from flowkit.testing.probe import randomize

FEATURES, WIDTH = 20, 400


def test_every_masked_unit_starts_with_weights_of_one_size_however_few_inputs_it_reads():
    net = MaskedMLP(FEATURES, 2, hidden=(WIDTH, WIDTH))
    for i, layer in enumerate(net.layers):
        kept = (layer.weight * getattr(net, f"mask_{i}")).detach().square().sum(-1)
        for low_to_high in kept.split(WIDTH // 4):
            # Sums of squares of uniform weights around 2; even a unit that reads one input, with
            # a standard deviation of 1.8, brings the mean over 100 units no farther than this.
            assert abs(low_to_high.mean() - 2) < 4 * 1.8 / 10


@pytest.mark.parametrize("context", [0, 5])
def test_a_context_counts_among_the_inputs(context):
    net = MaskedMLP(FEATURES, 2, context=context, hidden=(WIDTH, WIDTH))
    kept = (net.layers[0].weight * net.mask_0).square().sum(-1)
    if context:
        kept = kept + net.from_context.weight.square().sum(-1)
    assert abs(kept.mean() - 2) < 4 * 1.8 / WIDTH**0.5


def test_a_residual_perceptron_has_the_widths_activation_and_context_that_it_is_given():
    x, context = torch.randn(5, 2), torch.ones(5, 3)
    for width, blocks in ((4, 1), (6, 3)):
        net = ResidualMLP(2, 4, context=3, hidden=(width,) * blocks)
        inner = 2 * blocks * (width + 1) * width
        count = sum(p.numel() for p in net.parameters())
        assert count == (2 + 3 + 1) * width + inner + (width + 1) * 4
    outputs = []
    for activation in ("relu", "tanh", "silu"):
        net = ResidualMLP(2, 4, context=3, hidden=(4,), activation=activation)
        net = randomize(net, 0.5, torch.Generator().manual_seed(0))
        outputs.append(net(x, context))
        assert not torch.equal(net(x, context), net(x, 2 * context))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", [MLP, ResidualMLP, MaskedMLP])
def test_the_last_layer_starts_at_zero(kind):
    assert not kind(4, 6)(torch.randn(9, 4)).any()


NETS = {
    "two a variable": partial(MaskedMLP, hidden=(40, 40)),
    "fewer than variables": partial(MaskedMLP, hidden=(7, 5)),
    "a bottleneck": partial(MaskedMLP, hidden=(30, 3, 30), activation="tanh"),
    "one unit": partial(MaskedMLP, hidden=(1,), encoding=ClipEncoding(bound=None)),
    "waves": partial(
        MaskedMLP, hidden=(9, 12), encoding=FourierEncoding(3, max_frequency=3.0, seed=0)
    ),
    "circular": partial(MaskedMLP, hidden=(9, 12), encoding=CircularEncoding()),
}


def unrolled(net, z, context, unroll):
    def solve(z, params):
        assert params.shape == (*z.shape, 3)
        return z + params[..., 0] * params[..., 1].sin() + params[..., 2]

    return unroll(net, solve, z, context)


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 11, 19])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_unrolling_gives_what_a_full_pass_a_variable_gives(make, features, context, batch):
    generator = torch.Generator().manual_seed(0)
    net = randomize(make(features, 3, context=context), 0.4, generator).double()
    z = torch.randn(features, batch, generator=generator, dtype=torch.float64).requires_grad_()
    c = torch.randn(batch, context, generator=generator, dtype=torch.float64) if context else None
    got = unrolled(net, z, c, type(net).unroll)
    want = unrolled(net, z, c, AutoregressiveConditioner.unroll)
    torch.testing.assert_close(got, want)

    # Unused weights, such as those of masked units, have no gradient or one of zero.
    wanted, weights = [z, *net.parameters()], torch.linspace(-1, 1, features).double()
    gradients = [
        torch.autograd.grad((weights @ x.square()).sum(), wanted, materialize_grads=True)
        for x in (got, want)
    ]
    torch.testing.assert_close(*gradients)


def test_variables_that_no_unit_tells_apart_are_solved_together():
    turns = []

    def solve(z, params):
        turns.append(len(z))
        return z

    MaskedMLP(12, 2, hidden=(4, 4)).unroll(solve, torch.zeros(12, 1))
    # One variable has nothing before it; four units then part the other eleven.
    assert turns == [1, 2, 3, 3, 3]


def test_no_full_pass_is_made_to_unroll(monkeypatch):
    monkeypatch.setattr(MaskedMLP, "forward", lambda *_: pytest.fail("a full pass"))
    for encoding in (None, FourierEncoding(2), CircularEncoding([True, False, True, True, False])):
        MaskedMLP(5, 2, encoding=encoding).unroll(lambda z, params: z, torch.zeros(5, 3))
