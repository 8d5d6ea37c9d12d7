"""Conditioners: what they may read, and the loop that inverts autoregressive ones."""

import pytest
import torch
from torch.func import jacrev

from flowkit.conditioners import (
    ACTIVATIONS,
    MLP,
    AutoregressiveConditioner,
    MaskedMLP,
    ResidualMLP,
    StandardizeContext,
)


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module.double()


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("hidden", [(4,), (16, 9), (3, 3, 3)])
def test_parameters_read_only_the_variables_before(features, context, hidden):
    net = randomised(MaskedMLP(features, 2, context=context, hidden=hidden))
    c = torch.randn(context).double() if context else None
    jacobian = jacrev(lambda x: net(x, c))(torch.randn(features).double())
    on_or_above = torch.ones(features, features).triu().bool()
    assert jacobian.shape == (features, 2, features)
    assert bool((jacobian.movedim(1, 0)[:, on_or_above] == 0).all())


def test_wide_hidden_layers_read_every_variable_before():
    net = randomised(MaskedMLP(5, 1, hidden=(32, 32)))
    jacobian = jacrev(net)(torch.randn(5).double()).squeeze(1)
    below = torch.ones(5, 5).tril(-1).bool()
    assert bool((jacobian[below] != 0).all())


@pytest.mark.parametrize("features", [1, 4])
def test_every_parameter_of_a_masked_network_reads_the_context(features):
    net = randomised(MaskedMLP(features, 2, context=1, hidden=(16, 16)))
    x = torch.randn(features).double()
    jacobian = jacrev(lambda c: net(x, c))(torch.randn(1).double())
    assert bool((jacobian != 0).all())


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 3, 6])
@pytest.mark.parametrize("hidden", [(5,), (13, 7)])
def test_unrolling_by_slices_equals_one_pass_a_variable(features, context, hidden):
    net = randomised(MaskedMLP(features, 3, context=context, hidden=hidden))
    z = torch.randn(4, features).double()
    c = torch.randn(4, context).double() if context else None

    def solve(i, params):
        return z[..., i] * params[..., 0].exp() + params[..., 1] - params[..., 2].tanh()

    fast = net.unroll(solve, z, c)
    slow = AutoregressiveConditioner.unroll(net, solve, z, c)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    # What unroll has built is a fixed point of the forward pass.
    params = net(fast, c)
    again = torch.stack([solve(i, params[..., i, :]) for i in range(features)], -1)
    torch.testing.assert_close(again, fast, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("net", [MLP, ResidualMLP])
def test_a_new_network_emits_zeros_and_clips_what_it_reads(net):
    new = net(2, 3, context=1, hidden=(8, 8))
    assert bool((new(torch.randn(5, 2), torch.randn(5, 1)) == 0).all())
    moved = randomised(net(2, 3, hidden=(8, 8), input_clip=10.0))
    far = moved(torch.tensor([[1e9, -1e9]]).double())
    clip = moved(torch.tensor([[1e12, -1e12]]).double())
    torch.testing.assert_close(far, clip, rtol=1e-6, atol=1e-6)


def test_a_new_masked_network_emits_zeros():
    assert bool((MaskedMLP(3, 2, context=1)(torch.randn(5, 3), torch.randn(5, 1)) == 0).all())


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_runs(activation):
    net = randomised(MLP(2, 1, hidden=(4,), activation=activation))
    assert bool(torch.isfinite(net(torch.randn(3, 2).double())).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, 2), "MLP has nothing to read"),
        (lambda: MLP(2, 2, hidden=()), "MLP needs hidden widths >= 1"),
        (lambda: MLP(2, 2, activation="relux"), "unknown activation 'relux': choose from elu,"),
        (lambda: ResidualMLP(2, 2, hidden=(4, 8)), "ResidualMLP needs one width for all blocks"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_standardised_context_has_mean_zero_and_variance_one():
    embed = StandardizeContext(3)
    rows = torch.randn(200, 3) * torch.tensor([0.1, 5.0, 0.0]) + torch.tensor([1990.0, 0.0, 7.0])
    embed.initialize(rows)
    out = embed.double()(rows.double())
    torch.testing.assert_close(out.mean(0), torch.zeros(3).double(), rtol=0, atol=2e-3)
    assert out.std(0, unbiased=False).tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-4)
