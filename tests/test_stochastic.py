"""Stochastic layers and the flows that hold them: weights, balance, reversals, gradients."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from flowkit import (
    Flow,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    WeightedSum,
    coupling_flow,
    fit,
    load,
    save,
    stochastic_flow,
)
from flowkit.bases import DiagonalNormal, StandardNormal
from flowkit.energies import CallableEnergy, Energy, Interpolation, NegativeLogProb
from flowkit.errors import (
    ArgumentError,
    DataError,
    FlowFileError,
    FlowkitError,
    NonFiniteEnergyError,
    StochasticFlowError,
)
from flowkit.recipes import insert_stochastic_layers
from flowkit.statistics import (
    effective_sample_size,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)
from flowkit.stochastic import HMC, MALA, Metropolis, OverdampedLangevin, UnderdampedLangevin
from flowkit.stochastic.paths import (
    AdaptStepSizes,
    adapt_step_sizes,
    sample_paths,
)
from flowkit.toys import DoubleWell, GaussianMixture
from flowkit.transforms import Compose, Coupling
from flowkit.transforms.compose import layers_in_order

LOG_Z = 10.293479707
RIGHT = 0.84430709
WELL = DoubleWell()

# What one annealing layer does; the numbers of the acceptance checks.
LAYERS = {
    "metropolis": partial(Metropolis, steps=5, step_size=0.3),
    "mala": partial(MALA, steps=5, step_size=0.02),
    "hmc": partial(HMC, steps=1, step_size=0.08, leapfrog=8),
    "langevin": partial(OverdampedLangevin, steps=5, step_size=0.01),
    "underdamped": partial(UnderdampedLangevin, steps=10, step_size=0.05, friction=2.0),
}
REVERSIBLE = ("metropolis", "mala", "hmc")
# Largest error of log Z from 50,000 paths through 40 layers, beside five standard errors.
BOUNDS = {"metropolis": 0.03, "mala": 0.03, "hmc": 0.03, "langevin": 0.04}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def annealing(layer, count=40, among=()):
    """Annealed importance sampling from the base to the double well, from noise to data."""
    base, well = StandardNormal(2), DoubleWell()
    start = NegativeLogProb(base)
    chain = [layer(Interpolation(start, well, k / count)) for k in range(1, count + 1)]
    half = count // 2
    return Flow(Compose(*chain[half:][::-1], *among, *chain[:half][::-1]), base).double()


def untrained():
    torch.manual_seed(3)
    flow = coupling_flow(2, layers=2, scalar="affine", hidden=(8,), start=None)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return list(flow.transform.transforms)


@pytest.fixture(scope="module")
def runs():
    """Samples and log weights of every kind of layer, 50,000 paths through 40 layers."""
    return {
        name: annealing(layer).sample_with_log_weight(50_000, WELL, generator=generator())
        for name, layer in LAYERS.items()
    }


@pytest.mark.parametrize("name", LAYERS)
def test_log_z_of_the_double_well(runs, name):
    value, error = log_partition(runs[name][1])
    assert abs(value - LOG_Z) < 5 * error
    if name in BOUNDS:
        assert abs(value - LOG_Z) < BOUNDS[name]


def test_underdamped_weights_of_no_finite_variance_and_of_smaller_steps(runs):
    # At the step of the checks k-hat is above 0.7, a run in several is far off, and standard
    # errors say little: the bound is for the median of three runs.
    flow = annealing(LAYERS["underdamped"])
    found = [runs["underdamped"][1]]
    found += [flow.sample_with_log_weight(50_000, WELL, generator=generator(s))[1] for s in (1, 2)]
    errors = torch.stack([(log_partition(w).value - LOG_Z).abs() for w in found])
    assert errors.median() < 0.6
    assert all(pareto_smooth(w).k_hat > 0.7 for w in found)
    smaller = annealing(partial(UnderdampedLangevin, steps=5, step_size=0.02, friction=2.0))
    _, log_weight = smaller.sample_with_log_weight(50_000, WELL, generator=generator())
    assert pareto_smooth(log_weight).k_hat < 0.5
    value, error = log_partition(log_weight)
    assert abs(value - LOG_Z) < 5 * error
    assert abs(value - LOG_Z) < 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_the_right_well_holds_its_share(runs, name):
    x, log_weight = runs[name]
    share, error = reweighted_mean((x[:, 0] > 0).double(), log_weight)
    assert abs(share - RIGHT) < 5 * error
    if name != "underdamped":  # whose few effective samples cannot say so
        assert abs(share - RIGHT) < 0.015


@pytest.mark.parametrize("name", LAYERS)
def test_log_z_stays_with_untrained_couplings_among_the_layers(name):
    flow = annealing(LAYERS[name], among=untrained())
    _, log_weight = flow.sample_with_log_weight(50_000, WELL, generator=generator(1))
    value, error = log_partition(log_weight)
    assert abs(value - LOG_Z) < 5 * error


@pytest.mark.parametrize("name", REVERSIBLE)
def test_the_target_is_stationary(name):
    # Exact samples stay exact: a Kolmogorov-Smirnov test after 50 steps.
    layer = LAYERS[name](DoubleWell()).double()
    exact = copy.deepcopy(WELL).double()
    x, source = exact.sample(20_000, generator(2)), generator(3)
    for _ in range(50 // layer.steps):
        start = x
        with torch.no_grad():
            x, log_ratio = layer(x, generator=source)
        assert (log_ratio - (WELL(x) - WELL(start))).abs().max() < 1e-12
    first = np.sort(x[:, 0].numpy())
    grid = np.linspace(-6, 6, 200_001)
    density = np.exp(-WELL.profile(grid))
    cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    assert stats.kstest(first, lambda v: np.interp(v, grid, cdf)).pvalue > 1e-3


class Steps(Energy):
    """Four states as intervals of the line, with walls at both ends."""

    levels = torch.tensor([0.0, 1.0, 0.3, 2.0], dtype=torch.float64)

    def energy(self, x, context=None):
        state = x[..., 0].floor()
        level = self.levels[state.clamp(0, 3).long()]
        return torch.where((state < 0) | (state > 3), math.inf, level)


def test_detailed_balance_of_metropolis_from_counts():
    # Transitions i -> j and j -> i are as frequent from the stationary distribution.
    n = 1_000_000
    shares = torch.softmax(-Steps.levels, 0)
    state = torch.multinomial(shares, n, replacement=True, generator=generator(4))
    x = (state + torch.rand(n, generator=generator(5), dtype=torch.float64)).unsqueeze(-1)
    walk = Metropolis(Steps((1,)), steps=1, step_size=1.0).double().walk(x, generator=generator(6))
    after = walk.value[:, 0].floor().long()
    counts = torch.zeros(4, 4).index_put((state, after), torch.ones(n), accumulate=True)
    for i in range(4):
        for j in range(i):
            difference = counts[i, j] - counts[j, i]
            assert abs(difference) < 4 * (counts[i, j] + counts[j, i]).sqrt()
    # The walls have infinite energies: proposals beyond are rejected, and counted.
    assert walk.nonfinite.sum() > 0.05 * n
    assert ((walk.value >= 0) & (walk.value < 4)).all()


def test_overdamped_steps_are_undone_by_their_noise():
    layer = OverdampedLangevin(DoubleWell(), step_size=0.03).double()
    x, noise = torch.randn(2, 100, 2, generator=generator(), dtype=torch.float64)
    y, back = layer.step(x, noise)
    again, forth = layer.step(y, back)
    assert (again - x).abs().max() < 1e-12
    ratio, reverse = (
        0.5 * (a.square() - b.square()).sum(-1) for a, b in ((noise, back), (back, forth))
    )
    assert (ratio + reverse).abs().max() < 1e-12
    # The log-ratio is that of the densities of the two steps.
    size = layer.step_size
    there = stats.norm((x + size * WELL.force(x)).detach().numpy(), (2 * size.item()) ** 0.5)
    here = stats.norm((y + size * WELL.force(y)).detach().numpy(), (2 * size.item()) ** 0.5)
    exact = here.logpdf(x.numpy()).sum(-1) - there.logpdf(y.detach().numpy()).sum(-1)
    assert np.abs(ratio.detach().numpy() - exact).max() < 1e-10


@pytest.mark.parametrize("mass", [1.0, [0.5, 3.0]])
def test_underdamped_steps_are_undone_by_their_noises_and_flipped_velocities(mass):
    layer = UnderdampedLangevin(DoubleWell(), step_size=0.05, friction=2.0, mass=mass).double()
    x, v, first, second = torch.randn(4, 100, 2, generator=generator(), dtype=torch.float64)
    y, w, *back = layer.step(x, v, first, second)
    again, flipped, *forth = layer.step(y, -w, *back)
    assert (again - x).abs().max() < 1e-12
    assert (flipped + v).abs().max() < 1e-12
    assert (forth[0] - first).abs().max() < 1e-12
    assert (forth[1] - second).abs().max() < 1e-12
    # Without the flip it does not come back.
    assert (layer.step(y, w, *back)[0] - x).abs().max() > 0.05


def test_a_deterministic_flow_has_the_weights_of_its_density():
    flow = Flow(Compose(*untrained()), StandardNormal(2)).double()
    x, log_weight = flow.sample_with_log_weight(50, WELL, generator=generator())
    assert torch.allclose(log_weight, -WELL(x) - flow.log_prob(x), atol=1e-10, rtol=0)
    assert torch.allclose(flow.reverse_log_weight(x, WELL), log_weight, atol=1e-10, rtol=0)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.transform(row)[0]))(x)
    log_det = flow.transform(x)[1]
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-10, rtol=0)
    assert (flow.to_data(flow.to_noise(x)) - x).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["metropolis", "langevin"])
def test_paths_of_both_directions_enclose_log_z(runs, name):
    ahead = runs[name][1]
    x = copy.deepcopy(WELL).double().sample(20_000, generator(7))
    with torch.no_grad():
        back = annealing(LAYERS[name]).reverse_log_weight(x, WELL, generator=generator(8))
    below, error_below = ahead.mean(), ahead.std() / len(ahead) ** 0.5
    above, error_above = back.mean(), back.std() / len(back) ** 0.5
    assert below < LOG_Z + 3 * error_below
    assert above > LOG_Z - 3 * error_above
    assert below < above
    value, error = log_partition(ahead, back)
    assert abs(value - LOG_Z) < 0.02
    assert abs(value - LOG_Z) < 5 * error
    # The mean of 1/w over paths back is 1/Z.
    inverse, inverse_error = log_partition(-back)
    assert abs(inverse + LOG_Z) < 5 * inverse_error


def test_more_fractions_give_more_effective_samples(runs):
    few = annealing(LAYERS["metropolis"], 10)
    _, log_weight = few.sample_with_log_weight(50_000, WELL, generator=generator())
    shares = [effective_sample_size(w) / len(w) for w in (log_weight, runs["metropolis"][1])]
    assert shares[0] + 0.1 < shares[1]


@pytest.mark.parametrize("name", ["langevin", "underdamped"])
def test_gradients_of_the_path_divergence_against_central_differences(name):
    torch.manual_seed(0)
    flow = stochastic_flow(
        2, energy="double_well", blocks=2, layer=name, steps=2, hidden=(4,), learn_fractions=True
    ).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    objective = PathKL(WELL, samples=32)

    def loss():
        torch.manual_seed(1)  # the same random numbers each time
        return objective(flow, {}).value

    loss().backward()
    names = [n for n, _ in flow.named_parameters()]
    assert any("log_step_size" in n for n in names)
    assert any("raw_fraction" in n for n in names)
    for parameter in flow.parameters():
        step = 1e-5
        with torch.no_grad():
            flat = parameter.view(-1)
            for i in range(min(3, len(flat))):
                before = flat[i].item()
                flat[i] = before + step
                high = loss()
                flat[i] = before - step
                low = loss()
                flat[i] = before
                difference = (high - low) / (2 * step)
                got = parameter.grad.view(-1)[i]
                assert abs(got - difference) <= 1e-5 * max(1.0, abs(difference))


@pytest.mark.parametrize("name", LAYERS)
def test_the_generator_is_the_only_source_of_randomness(name):
    flow = stochastic_flow(2, energy="double_well", blocks=2, layer=name, steps=3).double()
    state = torch.get_rng_state()
    first = flow.sample_with_log_weight(20, WELL, generator=generator(5))
    again = flow.sample_with_log_weight(20, WELL, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, again, strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator())
    bound = flow.log_prob_bound(x, n=3, generator=generator(6))
    assert bound.dtype == torch.float64
    assert torch.equal(bound, flow.log_prob_bound(x, n=3, generator=generator(6)))


def test_there_is_no_state_on_the_layers():
    flow = stochastic_flow(2, energy="double_well", blocks=2)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    attributes = {n: set(vars(m)) for n, m in flow.named_modules()}
    flow.sample_with_log_weight(10, WELL)
    assert all(torch.equal(before[k], v) for k, v in flow.state_dict().items())
    assert attributes == {n: set(vars(m)) for n, m in flow.named_modules()}


def test_with_gradients_a_layer_makes_the_same_moves():
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator())
    for name in REVERSIBLE:
        layer = LAYERS[name](DoubleWell()).double()
        with torch.no_grad():
            plain = layer.walk(x, generator=generator(1))
        graph = layer.walk(x.clone().requires_grad_(), generator=generator(1))
        for a, b in zip(plain[:4], graph[:4], strict=True):
            assert torch.allclose(a, b, atol=1e-10, rtol=0)


def test_pathwise_gradients_follow_the_moves():
    # With the decisions held, HMC is a smooth map: its gradient against central differences.
    layer = HMC(DoubleWell(), steps=2, step_size=0.05, leapfrog=3).double()
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator()).requires_grad_()

    def value(x):
        walk = layer.walk(x, generator=generator(1))
        return (walk.log_ratio + walk.value.square().sum(-1)).sum()

    (gradient,) = torch.autograd.grad(value(x), x)
    for i in range(5):
        step = torch.zeros_like(x)
        step[i, 0] = 1e-6
        difference = (value(x.detach() + step) - value(x.detach() - step)) / 2e-6
        assert abs(gradient[i, 0] - difference) < 1e-5 * (1 + abs(difference))


class Box(Energy):
    """Normal inside of a box, infinite or NaN outside."""

    def __init__(self, outside):
        super().__init__((2,))
        self.outside = outside

    def energy(self, x, context=None):
        inside = (x.abs() < 1).all(-1)
        return torch.where(inside, 0.5 * x.square().sum(-1), self.outside)


@pytest.mark.parametrize("outside", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize("name", REVERSIBLE)
def test_proposals_without_a_finite_energy_are_rejected_and_counted(name, outside):
    options = {"mala": {"step_size": 0.3}, "hmc": {"step_size": 0.4}, "metropolis": {}}[name]
    kind = {"mala": MALA, "hmc": HMC, "metropolis": Metropolis}[name]
    layer = kind(Box(outside), steps=20, **options)
    x = torch.rand(500, 2, generator=generator()) - 0.5
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            walk = layer.walk(x, generator=generator(1))
        assert (walk.value.abs() < 1).all()
        assert walk.log_ratio.isfinite().all()
        assert walk.nonfinite.sum() > 100
        assert (walk.acceptance <= 1 - walk.nonfinite / 20 + 1e-6).all()


@pytest.mark.parametrize("name", LAYERS)
def test_a_start_without_a_finite_energy_names_its_row(name):
    layer = LAYERS[name](CallableEnergy(lambda x: x.square().sum(-1) / (x[..., 0] != 7), 2))
    x = torch.zeros(5, 2)
    x[3, 0] = 7.0
    with pytest.raises(NonFiniteEnergyError, match=r"in sample 3 \(1 of 5 samples\); remedy"):
        layer(x)
    with pytest.raises(NonFiniteEnergyError, match=r"in sample \(1, 0\)"):
        layer(torch.stack([x[:2], x[[3, 0]]]))


def test_a_langevin_step_to_infinity_gets_a_weight_of_zero():
    # From far out in a quartic well an explicit step overshoots, further every time.
    layer = OverdampedLangevin(WELL, steps=30, step_size=0.1)
    x = torch.tensor([[0.1, 0.0], [40.0, 0.0]])
    with torch.no_grad():
        walk = layer.walk(x, generator=generator())
    assert walk.value.isfinite().all()
    assert walk.log_ratio[0].isfinite()
    assert walk.log_ratio[1] == -math.inf
    assert walk.nonfinite[0] == 0
    assert walk.nonfinite[1] > 0


def test_step_sizes_adapt_to_their_acceptance():
    for name in REVERSIBLE:
        flow = stochastic_flow(
            2, energy="double_well", blocks=2, layer=name, steps=5, step_size=1.0
        )
        reports = adapt_step_sizes(flow, 2000, generator=generator())
        targets = {"metropolis": 0.3, "mala": 0.574, "hmc": 0.651}
        assert len(reports) == 2
        for report in reports:
            assert abs(report.acceptance - targets[name]) < 0.05
        adapt_step_sizes(flow, 2000, generator=generator(), target=0.8)
        paths = sample_paths(flow, 2000, WELL, generator=generator(1))
        assert all(abs(layer.acceptance - 0.8) < 0.05 for layer in paths.layers)
        _, log_weight = flow.sample_with_log_weight(20_000, WELL, generator=generator(2))
        value, error = log_partition(log_weight)
        assert abs(value - LOG_Z) < 5 * error
    with pytest.raises(ArgumentError, match="target as a finite number"):
        adapt_step_sizes(flow, target=1.5)


def test_the_callback_adapts_while_fitting():
    flow = stochastic_flow(2, energy="double_well", blocks=1, steps=2, step_size=5.0, hidden=(8,))
    before = [m.step_size.clone() for m in flow.modules() if isinstance(m, Metropolis)]
    callback = AdaptStepSizes(samples=256, rounds=10)
    fit(flow, None, PathKL(WELL, samples=32), steps=3, progress=False, callbacks=[callback])
    after = [m.step_size for m in flow.modules() if isinstance(m, Metropolis)]
    assert all(a < b for a, b in zip(after, before, strict=True))
    with pytest.raises(ArgumentError, match="every as an integer"):
        AdaptStepSizes(every=0)


def test_sequential_monte_carlo_is_unbiased_and_keeps_its_particles():
    flow = annealing(partial(Metropolis, steps=3), 20)
    estimates = []
    for seed in range(20):
        with torch.no_grad():
            paths = sample_paths(flow, 1000, WELL, generator=generator(seed), resample=0.9)
        assert any(layer.resampled for layer in paths.layers)
        estimates.append(log_partition(paths.log_weight).value)
    # Z is what is unbiased; its standard error comes from the repeats.
    ratios = (torch.stack(estimates) - LOG_Z).exp()
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / 20**0.5
    assert effective_sample_size(paths.log_weight) > 700
    with torch.no_grad():
        plain = sample_paths(flow, 1000, WELL, generator=generator())
    assert not any(layer.resampled for layer in plain.layers)
    assert effective_sample_size(plain.log_weight) < 700
    with pytest.raises(ArgumentError, match="resample as a finite number"):
        sample_paths(flow, 10, WELL, resample=2)
    with pytest.raises(DataError, match="one number of samples"):
        sample_paths(flow, (2, 3), WELL, resample=0.5)


def test_a_report_says_what_happened_in_every_layer():
    flow = stochastic_flow(2, energy="double_well", blocks=2)
    text = str(sample_paths(flow, 100, WELL, generator=generator(), resample=0.99))
    assert text.count("Metropolis(features=2)") == 2
    assert "accepted 0." in text
    assert "not finite 0" in text
    assert "effective 0." in text
    assert "no stochastic layer" in str(sample_paths(coupling_flow(2, layers=1), 3, WELL))


def test_path_divergence_equals_reverse_kl_without_stochastic_layers():
    flow = Flow(Compose(*untrained()), StandardNormal(2)).double()
    values, gradients = [], []
    for objective in (PathKL(WELL, samples=64), ReverseKL(WELL, estimator="reparam", samples=64)):
        flow.zero_grad()
        torch.manual_seed(0)
        value = objective(flow, {}).value
        value.backward()
        values.append(value)
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert torch.allclose(*values, rtol=1e-12)
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)


def test_the_path_likelihood_equals_maximum_likelihood_without_stochastic_layers():
    flow = Flow(Compose(*untrained()), StandardNormal(2)).double()
    x = torch.randn(9, 2, dtype=torch.float64, generator=generator())
    assert torch.allclose(flow.log_prob_bound(x), flow.log_prob(x), rtol=1e-12)


def test_both_objectives_bound_their_divergences():
    # Of a normal from itself: every layer then can only add to the divergence of paths.
    target = NegativeLogProb(StandardNormal(2))
    moved = OverdampedLangevin(GaussianMixture([[2.0, 0.0]]), steps=3, step_size=0.1)
    flow = Flow(Compose(moved), StandardNormal(2))
    torch.manual_seed(0)
    x = torch.randn(4000, 2)
    path = PathKL(target, samples=4000)(flow, {}).value
    likelihood = MaximumLikelihood()(flow, {"x": x}).value
    assert path > 0.05
    assert likelihood > 1 + math.log(2 * math.pi) + 0.02
    mixed = WeightedSum((0.5, MaximumLikelihood()), (0.5, PathKL(target, samples=4000)))
    assert abs(mixed(flow, {"x": x}).value - 0.5 * (path + likelihood)) < 0.1


class Shifted(Energy):
    """A normal in one dimension around a parameter."""

    def __init__(self, mean):
        super().__init__((1,))
        self.mean = torch.nn.Parameter(torch.tensor(mean, dtype=torch.float64))

    def energy(self, x, context=None):
        return 0.5 * (x[..., 0] - self.mean).square()


def test_the_score_of_decisions_makes_the_gradient_unbiased():
    # One Metropolis step under a normal of mean m, weighed for another target. The divergence as
    # a function of m by quadrature over start and proposal, and its derivative by differences.
    def exact(m):
        z, w = np.polynomial.hermite_e.hermegauss(200)
        w = w / w.sum()
        y = z[:, None] + 1.5 * z[None, :]
        u = lambda v: 0.5 * (v - m) ** 2  # noqa: E731
        target = lambda v: 0.1 * v**4  # noqa: E731
        change = u(y) - u(z)[:, None]
        accept = np.minimum(1, np.exp(-change))
        moved, stayed = target(y) - change, target(z)[:, None] + 0 * change
        return (w[:, None] * w[None, :] * (accept * moved + (1 - accept) * stayed)).sum()

    slope = (exact(1 + 1e-3) - exact(1 - 1e-3)) / 2e-3
    energy = Shifted(1.0)
    layer = Metropolis(energy, steps=1, step_size=1.5)
    flow = Flow(Compose(layer), StandardNormal(1)).double()
    quartic = lambda x: 0.1 * x[..., 0] ** 4  # noqa: E731
    torch.manual_seed(0)
    means, errors = {}, {}
    for kind in ("pathwise", "reinforce"):
        objective = PathKL(quartic, samples=20_000, gradient=kind)
        found = torch.stack(
            [torch.autograd.grad(objective(flow, {}).value, energy.mean)[0] for _ in range(40)]
        )
        means[kind], errors[kind] = found.mean(), found.std() / 40**0.5
    # Quadrature of a kink is good to about a hundredth.
    assert abs(means["reinforce"] - slope) < 4 * errors["reinforce"] + 0.01 * abs(slope)
    assert abs(means["pathwise"] - slope) > 10 * errors["pathwise"]


@pytest.mark.parametrize("name", REVERSIBLE)
def test_reinforced_gradients_are_finite(name):
    flow = stochastic_flow(
        2, energy=WELL, blocks=2, layer=name, steps=2, hidden=(4,), learn_fractions=True
    )
    loss = PathKL(WELL, samples=64, gradient="reinforce")(flow, {})
    loss.value.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    assert 0 < loss.terms["acceptance"] < 1


def test_training_raises_the_effective_sample_size():
    flow = stochastic_flow(2, energy="double_well", blocks=2, steps=5, hidden=(32, 32))
    before = effective_sample_size(
        flow.sample_with_log_weight(4000, WELL, generator=generator())[1]
    )
    # The path divergence alone would settle in one well.
    mixture = WeightedSum((0.5, MaximumLikelihood()), (0.5, PathKL(WELL, samples=128)))
    x = WELL.sample(5000, generator(1))
    history = fit(flow, x, mixture, steps=300, batch_size=128, lr=5e-3, progress=False)
    after = effective_sample_size(
        flow.sample_with_log_weight(4000, WELL, generator=generator())[1]
    )
    assert after > 1.3 * before
    assert history.train[-1] < history.train[0]


def test_an_exact_density_is_refused_and_named_as_a_bound():
    flow = stochastic_flow(2, energy="double_well")
    for call in (flow.log_prob, flow.energy, flow.score):
        with pytest.raises(StochasticFlowError, match="log_prob_bound"):
            call(torch.zeros(2))
    x = WELL.sample(2000, generator())
    bounds = [
        flow.log_prob_bound(x, n=n, generator=generator(1)).mean().item() for n in (1, 4, 16)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize("name", LAYERS)
def test_a_stochastic_flow_is_a_file(name, tmp_path):
    flow = stochastic_flow(
        2,
        energy=GaussianMixture.ring(components=3),
        layer=name,
        steps=2,
        scalar="spline",
        learn_fractions=True,
    )
    adapt_step_sizes(flow, 64, rounds=2)
    save(flow, tmp_path / "flow.safetensors")
    again = load(tmp_path / "flow.safetensors")
    for a, b in zip(
        flow.sample_with_log_weight(5, WELL, generator=generator(1)),
        again.sample_with_log_weight(5, WELL, generator=generator(1)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_an_energy_of_the_users_cannot_be_in_a_file(tmp_path):
    flow = stochastic_flow(2, energy=lambda x: x.square().sum(-1))
    with pytest.raises(FlowFileError, match="is not registered"):
        save(flow, tmp_path / "flow.safetensors")


def test_layers_go_between_those_of_a_trained_flow():
    flow = coupling_flow(2, layers=3, scalar="affine", hidden=(8,))
    x = WELL.sample(500, generator())
    fit(flow, x, epochs=2, progress=False)
    longer = insert_stochastic_layers(flow, WELL, steps=5)
    assert longer.initialized
    assert len(longer.transform) == len(flow.transform) + 3
    kinds = [type(t).__name__ for t in longer.transform.transforms]
    assert kinds[0] == "Metropolis"
    assert [t.energy.fraction for t in longer.transform.transforms if t.stochastic] == [
        1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)
    ]  # fmt: skip
    assert {id(p) for p in flow.parameters()} <= {id(p) for p in longer.parameters()}
    value, error = log_partition(
        longer.sample_with_log_weight(20_000, WELL, generator=generator(1))[1]
    )
    assert abs(value - LOG_Z) < 5 * error
    ends = insert_stochastic_layers(
        flow, "double_well", layer="hmc", positions=[0, len(flow.transform)], fractions=[1, 0]
    )
    assert [type(t).__name__ for t in ends.transform.transforms][:: len(flow.transform) + 1] == [
        "HMC", "HMC"
    ]  # fmt: skip


def test_layers_leave_a_new_flow_its_starts():
    flow = coupling_flow(2, layers=1, scalar="affine", hidden=(8,))
    longer = insert_stochastic_layers(flow, WELL, positions=[0, 2])
    assert longer.starts == flow.starts != ()
    for name, layers in flow.transform.starts.items():
        moved = [longer.transform[i] for i in longer.transform.starts[name]]
        assert moved == [flow.transform[i] for i in layers]


def test_recipes_refuse_what_they_cannot_build():
    flow = coupling_flow(2, layers=1)
    for call, words in (
        (lambda: stochastic_flow(2, energy="double_wel"), "did you mean 'double_well'"),
        (lambda: stochastic_flow(2, energy=3.0), "energy as an Energy, a function"),
        (lambda: stochastic_flow(3, energy="ring"), "events"),
        (lambda: stochastic_flow(2, energy=WELL, layer="gibbs"), "layer as one of"),
        (lambda: stochastic_flow(2, energy=WELL, fractions=(0.5,)), "fractions as 4 numbers"),
        (lambda: stochastic_flow(2, energy=WELL, fractions=(None,) * 4), "one number at least"),
        (lambda: stochastic_flow(2, energy=WELL, step_size=-1.0), "step_size"),
        (lambda: stochastic_flow(2, energy=WELL, learn_fractions=1), "True or False"),
        (
            lambda: insert_stochastic_layers(flow, WELL, positions=[99]),
            "positions as different integers from 0 to",
        ),
        (lambda: insert_stochastic_layers(flow.transform, WELL), "flow as a Flow"),
    ):
        with pytest.raises(FlowkitError, match=words):
            call()


def test_constructors_refuse_what_they_cannot_use():
    for call, words in (
        (lambda: Metropolis(lambda x: x.sum(-1)), "energy as an Energy.*CallableEnergy"),
        (lambda: Metropolis(WELL, steps=0), "steps as an integer"),
        (lambda: MALA(DoubleWell(), step_size=[0.1, 0.2, 0.3]), "one for each of 2 feature"),
        (lambda: HMC(WELL, leapfrog=0), "leapfrog as an integer"),
        (lambda: UnderdampedLangevin(WELL, friction=-1.0), "friction as a finite number > 0"),
        (lambda: PathKL(3), "energy as a function"),
        (lambda: PathKL(WELL, gradient="exact"), "gradient as one of"),
        (lambda: PathKL(WELL, samples=1, gradient="reinforce"), "samples as an integer >= 2"),
        (lambda: coupling_flow(2).sample_with_log_weight(3, lambda x: x), "one number per sample"),
        (lambda: coupling_flow(2).sample_with_log_weight(3, 3.0), "energy as a function"),
    ):
        with pytest.raises(FlowkitError, match=words):
            call()


def test_conditional_layers_read_the_context():
    def spring(x, context):
        return 0.5 * (x - context).square().sum(-1) + math.log(2 * math.pi)

    flow = stochastic_flow(2, energy=spring, context=2, blocks=4, scalar=None, steps=10)
    context = torch.tensor([[0.0, 0.0], [1.5, -1.0]])
    x, log_weight = flow.sample_with_log_weight(
        20_000, spring, context=context, generator=generator()
    )
    assert x.shape == (20_000, 2, 2)
    for i in range(2):
        value, error = log_partition(log_weight[:, i])
        assert abs(value) < 5 * error + 1e-6
        mean, mean_error = reweighted_mean(x[:, i], log_weight[:, i])
        assert ((mean - context[i]).abs() < 5 * mean_error).all()


def test_a_learned_base_is_the_base_of_the_energies():
    base = DiagonalNormal(2)
    start = NegativeLogProb(base)
    layer = OverdampedLangevin(Interpolation(start, WELL, 0.5), steps=2)
    flow = Flow(Compose(layer), base)
    assert layer.energy.start.density is flow.base
    PathKL(WELL, samples=16)(flow, {}).value.backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
# Dynamo looks at gradients of what comes out of a part that it left out.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_flows_leave_their_stochastic_layers_out(name):
    flow = stochastic_flow(2, energy="double_well", blocks=2, layer=name, steps=2, hidden=(4,))
    compiled = torch.compile(flow.log_prob_bound, backend="aot_eager")
    x, gradients = torch.randn(6, 2, generator=generator()), []
    for bound in (flow.log_prob_bound, compiled):
        flow.zero_grad()
        torch.manual_seed(0)
        bound(x).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_layers_in_order_reach_into_views():
    inner = Compose(Metropolis(WELL), Coupling([0, 1]))
    outer = Compose(inner.inv, inner)
    labels = [(type(t).__name__, turned) for t, turned in layers_in_order(outer)]
    assert labels == [
        ("Coupling", True), ("Metropolis", True), ("Metropolis", False), ("Coupling", False)
    ]  # fmt: skip


def test_dequantized_counts_have_paths_too():
    from flowkit.stochastic import Dequantize

    flow = Flow(Compose(Dequantize(2)), StandardNormal(2))
    paths = sample_paths(flow, 5, lambda x: 0.0 * x.sum(-1), generator=generator())
    assert paths.acceptance is None
    assert flow.transform[0].walk(torch.zeros(3, 2)).value.shape == (3, 2)


@pytest.mark.parametrize("name", ["mala", "hmc", "langevin", "underdamped"])
def test_gradients_of_a_force_without_one_are_refused_in_every_flow(name):
    given = CallableEnergy(lambda x: 0.25 * (x**4).sum(-1), 2, force=lambda x: -(x**3))
    flow = stochastic_flow(2, energy=given, layer=name, blocks=2, steps=2, hidden=(4,))
    assert flow.sample_with_log_weight(5, given)[1].isfinite().all()
    with pytest.raises(DataError, match="a force that came as a function"):
        PathKL(given, samples=16)(flow, {}).value.backward()
    metropolis = stochastic_flow(2, energy=given, blocks=2, steps=2, hidden=(4,))
    PathKL(given, samples=16)(metropolis, {}).value.backward()


def test_a_threshold_of_nought_accepts_nothing():
    # In bfloat16 one uniform number in some hundreds is nought.
    layer = Metropolis(Box(math.inf), steps=20).bfloat16()
    x = (torch.rand(2000, 2, generator=generator()) - 0.5).bfloat16()
    with torch.no_grad():
        walk = layer.walk(x, generator=generator(1))
    assert (walk.value.abs() < 1).all()


def test_reinforced_gradients_of_a_stiff_energy_are_finite():
    stiff = CallableEnergy(lambda x: (x**-12 + 0.5 * x * x).sum(-1), 1)
    start = CallableEnergy(lambda x: 0.5 * (x - 2).square().sum(-1), 1)
    layer = Metropolis(Interpolation(start, stiff, 0.5, learn=True), steps=3, step_size=0.7)
    x = 1 + 0.2 * torch.rand(4000, 1, generator=generator())
    walk = layer.walk(x, generator=generator(1), choices=True)
    (walk.log_choice + walk.log_ratio).mean().backward()
    assert layer.energy.raw_fraction.grad.isfinite()


@pytest.mark.parametrize("name", LAYERS)
def test_an_energy_may_compute_in_another_dtype(name):
    fine = CallableEnergy(lambda x: 0.5 * x.double().square().sum(-1), 2)
    layer = LAYERS[name](fine)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            x, log_ratio = layer(torch.zeros(4, 2), generator=generator())
        assert x.dtype == log_ratio.dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
def test_inference_mode_samples(name):
    flow = stochastic_flow(2, energy="double_well", layer=name, blocks=1, steps=2)
    with torch.inference_mode():
        x, log_weight = flow.sample_with_log_weight(5, WELL, generator=generator())
    again, _ = flow.sample_with_log_weight(5, WELL, generator=generator())
    assert torch.equal(x, again)
    assert log_weight.isfinite().all()


def test_reverse_weights_broadcast_their_context():
    def spring(x, context):
        return 0.5 * (x - context).square().sum(-1)

    flow = stochastic_flow(2, energy=spring, context=2, blocks=1, steps=2)
    context = torch.randn(3, 2, generator=generator())
    for x, shape in ((torch.zeros(2), (3,)), (torch.zeros(5, 1, 2), (5, 3))):
        assert flow.reverse_log_weight(x, spring, context).shape == shape


def test_numbers_that_would_break_a_flow_are_refused():
    flow = stochastic_flow(2, energy="double_well")
    with pytest.raises(ArgumentError, match="samples as an integer >= 1, got 0"):
        adapt_step_sizes(flow, samples=0)
    with pytest.raises(StochasticFlowError, match="log_normalizer"):
        flow.log_normalizer()
    with pytest.raises(DataError, match="resampling is a decision"):
        sample_paths(flow, 10, WELL, resample=0.5, choices=True)
    plain = coupling_flow(2, layers=2)
    for options, words in (
        ({"positions": 3}, "positions as"),
        ({"positions": [0, 0]}, "positions as"),
        ({"fractions": 0.5}, "fractions as"),
        ({"learn_fractions": "yes"}, "True or False"),
        ({"step_size": "x"}, "step_size as a finite number > 0"),
    ):
        with pytest.raises(FlowkitError, match=words):
            insert_stochastic_layers(plain, WELL, **options)
    places = insert_stochastic_layers(plain, WELL, positions=np.array([0, 2]))
    assert len(places.transform) == len(plain.transform) + 2
    z = torch.zeros(3, 2)
    assert torch.equal(
        flow.to_data(z, generator=generator()), flow.to_data(z, generator=generator())
    )
