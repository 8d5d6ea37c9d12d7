"""What the start of a conditioner promises."""

import pytest
import torch

from flowkit.conditioners import MLP, MaskedMLP, ResidualMLP

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


@pytest.mark.parametrize("kind", [MLP, ResidualMLP, MaskedMLP])
def test_the_last_layer_starts_at_zero(kind):
    assert not kind(4, 6)(torch.randn(9, 4)).any()
