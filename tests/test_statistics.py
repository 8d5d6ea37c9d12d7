"""Estimates from weights against normal theory, and chains against their targets."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flowkit import Flow, coupling_flow, fit, stochastic_flow
from flowkit.bases import StandardNormal
from flowkit.errors import (
    ArgumentError,
    DataError,
    NonFiniteEnergyError,
    ShapeError,
    StochasticFlowError,
)
from flowkit.statistics import (
    effective_sample_size,
    free_energy_profile,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)
from flowkit.stochastic import independence_chain, neutra_chain
from flowkit.toys import DoubleWell, GaussianMixture
from flowkit.transforms import Compose, Permutation

SHIFT = 1.0


def draws(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_weights(n, seed, log_z=2.0):
    """From a standard normal to one around ``SHIFT``: log w = log Z + s x - s^2 / 2."""
    x = draws(n, seed)
    return x, log_z + SHIFT * x - 0.5 * SHIFT**2


def test_log_partition_and_its_standard_error():
    x, log_w = log_weights(10_000, 0)
    value, error = log_partition(log_w)
    assert abs(value - 2.0) < 5 * error
    # Var(w) / (E w)^2 = exp(s^2) - 1.
    assert abs(error - math.sqrt((math.e - 1) / 10_000)) < 0.15 * error
    found = torch.stack([log_partition(log_weights(1000, s)[1]).value for s in range(300)])
    assert abs(found.std() / math.sqrt((math.e - 1) / 1000) - 1) < 0.15
    # Large exponents and weights of zero.
    value, error = log_partition(torch.tensor([1e4, 1e4, -math.inf, -math.inf]))
    assert abs(value - (1e4 - math.log(2))) < 1e-9
    assert abs(error - math.sqrt(1 / 3)) < 1e-9


def test_effective_sample_size_of_normals():
    x, log_w = log_weights(200_000, 0)
    # (E w)^2 / E w^2 = exp(-s^2).
    assert abs(effective_sample_size(log_w) / 200_000 - math.exp(-1)) < 0.02
    assert effective_sample_size(torch.zeros(7)) == pytest.approx(7)


def test_reweighted_means_and_their_errors():
    found, errors = [], []
    for seed in range(300):
        x, log_w = log_weights(1000, seed)
        mean, error = reweighted_mean(torch.stack([x, x * x], -1), log_w)
        found.append(mean)
        errors.append(error)
    found, errors = torch.stack(found), torch.stack(errors)
    exact = torch.tensor([SHIFT, 1 + SHIFT**2], dtype=torch.float64)
    standard = found.std(0) / 300**0.5
    # The ratio has a bias of order 1/n.
    assert ((found.mean(0) - exact).abs() < 5 * standard + 0.01).all()
    assert ((errors.mean(0) / found.std(0) - 1).abs() < 0.15).all()
    value = reweighted_mean(torch.tensor([math.inf, 1.0]), torch.tensor([-math.inf, 0.0])).value
    assert value == 1.0


def test_bennett_lies_at_the_truth_with_the_error_that_it_states():
    found, errors = [], []
    for seed in range(200):
        _, ahead = log_weights(500, seed)
        x = SHIFT + draws(1500, 1000 + seed)
        back = 2.0 + SHIFT * x - 0.5 * SHIFT**2
        value, error = log_partition(ahead, back)
        found.append(value)
        errors.append(error)
    found, errors = torch.stack(found), torch.stack(errors)
    assert abs(found.mean() - 2.0) < 5 * found.std() / 200**0.5
    assert abs(errors.mean() / found.std() - 1) < 0.15
    # Better than either direction alone.
    assert found.std() < math.sqrt((math.e - 1) / 500)


def test_bennett_solves_its_equation():
    _, ahead = log_weights(50, 0, -700.0)
    _, back = log_weights(20, 1, -700.0)
    value, _ = log_partition(ahead, back)
    offset = math.log(50 / 20)
    left = torch.sigmoid(ahead - value - offset).sum()
    assert abs(left - torch.sigmoid(value + offset - back).sum()) < 1e-9


def test_free_energy_profiles_of_a_normal():
    found, errors = [], []
    for seed in range(200):
        x, log_w = log_weights(2000, seed)
        profile = free_energy_profile(x, log_w, bins=6, limits=(-2.0, 4.0))
        found.append(profile.free_energy)
        errors.append(profile.error)
    found, errors = torch.stack(found), torch.stack(errors)
    edges = profile.edges.numpy()
    exact = -np.log(np.diff(stats.norm(SHIFT).cdf(edges)))
    middle = slice(1, 5)  # where every run has many samples
    bias = (found.mean(0) - torch.as_tensor(exact))[middle]
    assert (bias.abs() < 5 * found.std(0)[middle] / 200**0.5 + 0.02).all()
    assert ((errors.mean(0) / found.std(0) - 1)[middle].abs() < 0.25).all()
    empty = free_energy_profile(torch.tensor([0.1, 0.9]), bins=3, limits=(0.0, 1.0))
    assert empty.free_energy[1] == math.inf
    assert empty.error[1] == math.inf
    assert empty.centers.tolist() == pytest.approx([1 / 6, 0.5, 5 / 6])


@pytest.mark.parametrize("k", [0.1, 0.4, 0.7, 1.0])
def test_k_hat_is_the_shape_of_a_pareto_tail(k):
    # Weights of a Pareto distribution, whose tail has the shape k.
    found = []
    for seed in range(20):
        uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(seed))
        found.append(pareto_smooth(-k * uniform.double().log()).k_hat)
    # The standard error of a fit is about (1 + k) / sqrt(tail) with 425 in the tail; the prior
    # pulls towards 1/2 by 10 of them.
    error = (1 + k) / math.sqrt(425 * 20)
    assert abs(np.mean(found) - k) < 5 * error + 10 / 435 * abs(0.5 - k) + 0.02


def test_smoothed_weights_keep_order_and_bulk():
    generator = torch.Generator().manual_seed(0)
    log_w = -0.8 * torch.rand(5000, generator=generator).double().log()
    smoothed = pareto_smooth(log_w)
    changed = smoothed.log_weight != log_w
    assert 0.8 * 3 * math.sqrt(5000) < changed.sum() <= math.ceil(3 * math.sqrt(5000))
    assert smoothed.log_weight.max() <= log_w.max()
    assert torch.equal(torch.argsort(smoothed.log_weight), torch.argsort(log_w))
    # Smoothing lowers the spread of estimates of a heavy tail.
    raw, smooth = [], []
    for seed in range(100):
        uniform = torch.rand(2000, generator=torch.Generator().manual_seed(seed)).double()
        w = -0.65 * uniform.log()
        raw.append(log_partition(w).value)
        smooth.append(log_partition(pareto_smooth(w).log_weight).value)
    assert torch.stack(smooth).std() < torch.stack(raw).std()
    assert pareto_smooth(torch.zeros(100)).k_hat == -math.inf


def test_weights_that_cannot_be_used():
    for call, error, words in (
        (lambda: log_partition(torch.tensor([0.0, math.nan])), DataError, "nan at index 1"),
        (lambda: log_partition(torch.tensor([math.inf, 0.0])), DataError, "inf at index 0"),
        (lambda: log_partition(torch.tensor([-math.inf])), DataError, "all weights are zero"),
        (lambda: log_partition(torch.zeros(2, 3)), DataError, r"\(n,\).*flatten"),
        (lambda: log_partition([0.0]), DataError, "expected log weights"),
        (lambda: reweighted_mean(torch.zeros(3), torch.zeros(2)), ShapeError, "one per weight"),
        (lambda: free_energy_profile(torch.zeros(3), torch.zeros(2)), ShapeError, "expected"),
        (
            lambda: free_energy_profile(torch.arange(3.0), bins=0),
            ArgumentError,
            "bins as an integer >= 1",
        ),
        (
            lambda: free_energy_profile(torch.arange(3.0), limits=(1.0, 0.0)),
            ArgumentError,
            "in order",
        ),
        (lambda: pareto_smooth(torch.zeros(10)), DataError, "at least 25"),
    ):
        with pytest.raises(error, match=words):
            call()


def blocks(values, size):
    """Means of blocks, whose spread gives the error of a chain's mean."""
    return values.unflatten(0, (-1, size)).mean(1)


@pytest.mark.parametrize("deterministic", [True, False])
def test_independence_chains_have_the_target(deterministic):
    well = DoubleWell()
    if deterministic:
        torch.manual_seed(0)
        flow = coupling_flow(2, layers=4, hidden=(32, 32))
        fit(flow, well.sample(2000, torch.Generator().manual_seed(0)), epochs=30, progress=False)
    else:
        flow = stochastic_flow(2, energy="double_well", blocks=10, scalar=None, steps=5)
    chain = independence_chain(
        flow, well, steps=2000, chains=20, generator=torch.Generator().manual_seed(1)
    )
    assert chain.x.shape == (2000, 20, 2)
    assert 0.2 < chain.acceptance.mean() < 1
    right = (chain.x[..., 0] > 0).double().mean(0)  # one mean a chain
    assert abs(right.mean() - well.probability_right()) < 5 * right.std() / 20**0.5


def test_neutra_chains_have_the_target():
    target = GaussianMixture([[0.0, 0.0]], [0.5])
    torch.manual_seed(0)
    flow = coupling_flow(2, layers=2, scalar="affine", hidden=(8,), start=None)
    state = torch.get_rng_state()
    runs = [
        neutra_chain(
            flow, target, steps=300, chains=2, warmup=100,
            generator=torch.Generator().manual_seed(3),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].x, runs[1].x)
    x = runs[0].x.double()
    assert x.shape == (300, 2, 2)
    assert runs[0].acceptance.min() > 0.6
    means = blocks(x, 50).flatten(0, 1)
    assert (means.mean(0).abs() < 5 * means.std(0) / len(means) ** 0.5).all()
    assert abs(x.std() - 0.5) < 0.08


def test_chains_that_cannot_run():
    flow = Flow(Compose(Permutation([1, 0])), StandardNormal(2))
    walled = stochastic_flow(2, energy="double_well")
    for call, error, words in (
        (
            lambda: independence_chain(flow, DoubleWell(), steps=0),
            ArgumentError,
            "steps as an integer",
        ),
        (
            lambda: independence_chain(flow, DoubleWell(), steps=5, warmup=-1),
            ArgumentError,
            "warmup",
        ),
        (
            lambda: independence_chain(flow, DoubleWell(), steps=5, context=torch.zeros(4, 2)),
            ArgumentError,
            "one context",
        ),
        (lambda: neutra_chain(flow, DoubleWell(), steps=3), ArgumentError, "steps as .* >= 4"),
        (lambda: neutra_chain(flow, 3, steps=5), ArgumentError, "energy as a function"),
        (
            lambda: neutra_chain(walled, DoubleWell(), steps=5),
            StochasticFlowError,
            "deterministic flow",
        ),
        (
            lambda: independence_chain(flow, lambda x: x[..., 0] + math.inf, steps=5),
            NonFiniteEnergyError,
            "none in 8 proposals",
        ),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_few_weights_that_are_everything_have_no_good_tail():
    log_w = torch.full((2000,), -800.0)
    log_w[7] = 0.0
    assert pareto_smooth(log_w).k_hat == math.inf
    assert torch.equal(pareto_smooth(log_w).log_weight, log_w.double())


def test_paths_back_that_cannot_be_made_add_nothing_to_bennetts_ratio():
    _, ahead = log_weights(500, 0)
    x = SHIFT + draws(500, 1)
    back = 2.0 + SHIFT * x - 0.5 * SHIFT**2
    value, error = log_partition(ahead, torch.cat([back, torch.tensor([math.inf])]))
    assert abs(value - 2.0) < 5 * error
    with pytest.raises(DataError, match="expected log weights"):
        log_partition(ahead, torch.tensor([0.0, -math.inf]))


def test_one_sample_has_no_error():
    assert log_partition(torch.zeros(1)).error == math.inf
    assert reweighted_mean(torch.ones(1, 2), torch.zeros(1)).error.tolist() == [math.inf] * 2
