"""A Flow is a density: change of variables, samples, energies, scores, distribution functions."""

import copy
import math
import pickle

import pandas as pd
import pytest
import torch
from scipy import stats

from flowkit import Flow, autoregressive_flow, coupling_flow, elementwise_flow
from flowkit.bases import Base, Logistic, NormalMixture, StandardNormal, Uniform
from flowkit.errors import ArgumentError, NotInvertibleError, ShapeError, StochasticFlowError
from flowkit.scalar import RationalQuadraticSpline
from flowkit.stochastic import Dequantize
from flowkit.toys import Sine
from flowkit.transforms import (
    Compose,
    DenseLinear,
    Elementwise,
    Log,
    Logit,
    LULinear,
    Standardize,
    Transform,
)


def roughened(module, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


@pytest.fixture
def conditional():
    return roughened(coupling_flow(3, context=2, layers=2, hidden=(16,)).double())


def linear_flow(features=3):
    return roughened(Flow(LULinear(features), StandardNormal(features)).double())


def test_a_linear_flow_is_the_normal_distribution_of_scipy():
    flow = linear_flow()
    w = flow.transform.weight_matrix().detach()
    b = flow.transform.bias.detach()
    precision = w.T @ w
    covariance = torch.linalg.inv(precision)
    mean = -torch.linalg.solve(w, b)
    x = torch.randn(20, 3, dtype=torch.float64)
    exact = stats.multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(x.numpy())
    torch.testing.assert_close(flow.log_prob(x).detach(), torch.tensor(exact), atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.score(x).detach(), -(x - mean) @ precision, atol=1e-10, rtol=0)


def test_forward_is_log_prob(conditional):
    x, c = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(conditional(x, c), conditional.log_prob(x, c))


def test_sample_shape_is_samples_then_contexts_then_event(conditional):
    context = torch.randn(4, 5, 2, dtype=torch.float64)
    assert conditional.sample((7, 6), context).shape == (7, 6, 4, 5, 3)
    assert conditional.sample(7, context[0, 0]).shape == (7, 3)
    assert conditional.sample((), context).shape == (4, 5, 3)
    assert conditional.sample(0, context).shape == (0, 4, 5, 3)


def test_log_prob_broadcasts_data_against_contexts(conditional):
    x = torch.randn(5, 3, dtype=torch.float64)
    c = torch.randn(4, 1, 2, dtype=torch.float64)
    table = conditional.log_prob(x, c)
    assert table.shape == (4, 5)
    one_by_one = torch.stack([torch.stack([conditional.log_prob(a, b[0]) for a in x]) for b in c])
    torch.testing.assert_close(table, one_by_one)


def test_sample_and_log_prob_agrees_with_log_prob(conditional):
    context = torch.randn(4, 2, dtype=torch.float64)
    x, log_prob = conditional.sample_and_log_prob(6, context)
    torch.testing.assert_close(log_prob, conditional.log_prob(x, context), atol=1e-9, rtol=0)


def test_to_noise_and_to_data_are_inverse(conditional):
    x, c = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(conditional.to_data(conditional.to_noise(x, c), c), x)


def test_samples_carry_gradients_only_where_asked(conditional):
    context = torch.randn(2, dtype=torch.float64)
    assert not conditional.sample(3, context).requires_grad
    assert conditional.rsample(3, context).requires_grad


def test_a_generator_makes_samples_reproducible_and_leaves_the_global_one_alone(conditional):
    context = torch.randn(2, dtype=torch.float64)
    before = torch.get_rng_state()
    first = conditional.sample(5, context, generator=torch.Generator().manual_seed(3))
    again = conditional.sample(5, context, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_energy_is_minus_log_prob_up_to_the_normalizer():
    flow = Flow(
        Compose(Standardize(2), DenseLinear(2), Elementwise(2), LULinear(2)), StandardNormal(2)
    ).double()
    flow.initialize(3 + 2 * torch.randn(100, 2, dtype=torch.float64))
    roughened(flow)
    x = torch.randn(50, 2, dtype=torch.float64)
    sums = flow.log_prob(x) + flow.energy(x)
    torch.testing.assert_close(sums, sums[:1].expand(50))
    torch.testing.assert_close(-flow.log_normalizer(), sums[0])


def test_the_normalizer_is_found_on_a_bounded_domain_too():
    flow = roughened(Flow(Compose(Log(1), LULinear(1)), StandardNormal(1)).double())
    x = torch.rand(5, 1, dtype=torch.float64)
    torch.testing.assert_close(
        (flow.log_prob(x) + flow.energy(x)), -flow.log_normalizer().expand(5)
    )


def test_the_score_can_be_differentiated_again(conditional):
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: conditional.score(v, c), x)
    with torch.no_grad():
        assert not conditional.score(x, c).requires_grad


@pytest.mark.parametrize("base", [StandardNormal, Logistic, NormalMixture])
def test_distribution_functions_match_the_integral_of_the_density(base):
    flow = roughened(Flow(Compose(Elementwise(1), DenseLinear(1)), base(1)).double(), 0.2)
    grid = torch.linspace(-40, 40, 40001, dtype=torch.float64).unsqueeze(-1)
    density = flow.log_prob(grid).exp()
    integral = torch.cumulative_trapezoid(density, grid.squeeze(-1))
    torch.testing.assert_close(flow.cdf(grid[1:]), integral, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.survival(grid[1:]), 1 - integral, atol=1e-5, rtol=0)


def test_distribution_functions_know_a_map_that_decreases():
    flow = Flow(DenseLinear(1), StandardNormal(1)).double()
    with torch.no_grad():
        flow.transform.weight.fill_(-2.0)
    x = torch.tensor([[-1.0], [0.3]], dtype=torch.float64)
    torch.testing.assert_close(
        flow.cdf(x).detach(), torch.tensor(stats.norm(scale=0.5).cdf(x.squeeze(-1).numpy()))
    )
    q = torch.tensor([0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(flow.cdf(flow.quantile(q)), q)


def test_quantiles_invert_the_distribution_function_given_context():
    flow = roughened(elementwise_flow(1, context=2, hidden=(8,)).double())
    context = torch.randn(5, 2, dtype=torch.float64)
    q = torch.full((5,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(flow.cdf(flow.quantile(q, context), context), q)


def test_log_survival_keeps_its_digits_far_out():
    flow = Flow(LULinear(1), StandardNormal(1)).double()
    x = torch.tensor([[30.0]], dtype=torch.float64)
    torch.testing.assert_close(
        flow.log_survival(x).detach(), torch.tensor([stats.norm.logsf(30.0)]), rtol=1e-10, atol=0
    )


def test_distribution_functions_need_a_scalar_event():
    with pytest.raises(ShapeError, match="scalar events"):
        linear_flow().cdf(torch.zeros(1, 3, dtype=torch.float64))


def test_a_base_without_distribution_function_says_so():
    class Half(Base):
        def log_prob(self, z, context=None):
            return -z.exp().sum(-1)

    flow = Flow(LULinear(1), Half((1,))).double()
    with pytest.raises(NotInvertibleError, match="Half has no distribution function"):
        flow.cdf(torch.zeros(1, 1, dtype=torch.float64))


def test_support_is_the_domain_of_the_transform_or_of_the_base():
    assert Flow(Logit(2, lower=0.0, upper=3.0), StandardNormal(2)).support.check(
        torch.tensor([1.0, 2.0])
    )
    assert not Flow(Logit(2, lower=0.0, upper=3.0), StandardNormal(2)).support.check(
        torch.tensor([1.0, 4.0])
    )
    assert not Flow(LULinear(1), Uniform(1)).support.check(torch.tensor([2.0]))
    assert Flow(LULinear(1), StandardNormal(1)).support.check(torch.tensor([1e6]))


def test_a_stochastic_flow_has_no_exact_density():
    flow = Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1))
    counts = torch.tensor([[0], [3]])
    for method in (flow.log_prob, flow.energy, flow.sample_and_log_prob):
        with pytest.raises(StochasticFlowError, match="log_prob_bound"):
            method(*([] if method == flow.sample_and_log_prob else [counts]))
    assert flow.sample(4).shape == (4, 1)


def test_the_bound_rises_to_the_probability_of_the_count():
    flow = Flow(Compose(Dequantize(1), Logit(1, lower=-0.5, upper=3.5)), Logistic(1))
    counts = torch.arange(4).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    # The logit of a uniform is logistic: every count has probability 1/4, and no path is better.
    bound = flow.log_prob_bound(counts, n=10, generator=generator)
    torch.testing.assert_close(bound, torch.full((4,), math.log(0.25)), atol=1e-5, rtol=0)
    curved = Flow(Compose(Dequantize(1), Logit(1, lower=-0.5, upper=3.5)), StandardNormal(1))
    cdf = stats.norm.cdf([-math.inf, *(math.log(k / (4 - k)) for k in (1, 2, 3)), math.inf])
    exact = torch.tensor(cdf[1:] - cdf[:-1]).log().float()
    rounds = torch.stack([curved.log_prob_bound(counts, n=1) for _ in range(400)])
    many = curved.log_prob_bound(counts, n=200_000, generator=generator)
    assert (rounds.mean(0) < exact + 4 * rounds.std(0) / 20).all()
    torch.testing.assert_close(many, exact, atol=0.02, rtol=0)


def test_without_stochastic_layers_the_bound_is_the_density():
    flow, x = linear_flow(), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob_bound(x, n=3), flow.log_prob(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.log_prob(torch.zeros(5, 4)), r"expected x \(\.\.\., 3\), got \(5, 4\)"),
        (lambda f: f.log_prob(torch.zeros(())), r"expected x \(\.\.\., 3\), got \(\)"),
        (lambda f: f.log_prob([[1.0]]), r"torch.as_tensor\(x, dtype=torch.float32\)"),
        (lambda f: f.log_prob(pd.DataFrame([[1.0]])), r"torch.as_tensor\(x.to_numpy\(\), dtype="),
        (lambda f: f.log_prob(torch.zeros(5, 3).double()), r"remedy: x.to\(torch.float32\)"),
        (lambda f: f.log_prob(torch.zeros(5, 3)), r"expected context \(\.\.\., 2\), got None"),
        (
            lambda f: f.log_prob(torch.zeros(5, 3), torch.zeros(5, 7)),
            r"expected context \(\.\.\., 2\), got \(5, 7\)",
        ),
        (
            lambda f: f.log_prob(torch.zeros(5, 3), torch.zeros(4, 2)),
            r"batch \(5,\) of the data does not broadcast with the batch \(4,\)",
        ),
        (lambda f: f.sample(3), r"expected context \(\.\.\., 2\), got None"),
        (lambda f: f.sample(-3, torch.zeros(2)), "an integer or sizes >= 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call(coupling_flow(3, context=2, layers=1))


@pytest.mark.parametrize("part", [coupling_flow(2, layers=1), Sine()])
def test_a_seed_is_no_generator(part):
    with pytest.raises(
        ArgumentError, match=r"generator as a Generator, got 1; remedy: torch\.Gen"
    ):
        part.sample(3, generator=1)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda f: f.log_prob(torch.zeros(5), torch.zeros(5, 1)), "x"),
        (lambda f: f.log_prob(torch.zeros(5, 1), torch.zeros(5).long()), "context"),
        (lambda f: f.sample(3, torch.zeros(5)), "context"),
        (lambda f: f.distribution(torch.zeros(5, 1)).log_prob(torch.zeros(5)), "value"),
        (lambda f: f.transform(torch.zeros(5), torch.zeros(5, 1)), "x"),
    ],
)
def test_a_missing_axis_of_length_one_has_a_remedy(call, name):
    with pytest.raises(ShapeError, match=rf"got \(5,\); remedy: {name}\.unsqueeze\(-1\)"):
        call(autoregressive_flow(1, context=1, layers=1))


def test_transform_and_base_must_fit():
    with pytest.raises(ShapeError, match="maps to events"):
        Flow(LULinear(2), StandardNormal(3))


def test_a_transform_without_inverse_scores_but_does_not_sample():
    class Half(Transform):
        def forward(self, x, context=None):
            return 0.5 * x, x.new_full(x.shape[:-1], -math.log(2))

    flow = Flow(Half((1,)), StandardNormal(1))
    assert flow.log_prob(torch.zeros(2, 1)).shape == (2,)
    with pytest.raises(NotInvertibleError, match="cannot|not sample"):
        flow.sample(2)


def test_a_row_of_nan_stays_in_its_row():
    flow = autoregressive_flow(2, layers=1)
    x = torch.zeros(3, 2)
    x[1, 0] = math.nan
    assert flow.log_prob(x).isnan().tolist() == [False, True, False]


def test_summary_counts_every_parameter():
    flow = coupling_flow(4, layers=2)
    total = sum(p.numel() for p in flow.parameters())
    assert f"{total:,}" in flow.summary().splitlines()[-1]


def test_a_second_start_from_data_is_up_to_the_user():
    flow = elementwise_flow(1)
    assert not flow.initialized
    flow.initialize(torch.tensor([[1.0], [3.0]]))
    assert flow.initialized
    assert flow.transform[0].mean.item() == 2.0


def test_autocast_reaches_the_conditioners_and_nothing_else():
    x = torch.randn(64, 4)
    without = roughened(Flow(Compose(Standardize(4), LULinear(4)), StandardNormal(4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = without.log_prob(x)
    assert torch.equal(rough, without.log_prob(x))
    for recipe in (coupling_flow, autoregressive_flow):
        flow = roughened(recipe(4, layers=2, hidden=(32,)), 0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, z = flow.log_prob(x), flow.to_noise(x)
            back = flow.to_data(z)
        assert rough.dtype == z.dtype == back.dtype == torch.float32
        # bfloat16 keeps 8 bits of the parameters: densities are good to a few percent.
        torch.testing.assert_close(rough.mean(), flow.log_prob(x).mean(), rtol=0.02, atol=0)


def test_what_a_flow_returns_is_contiguous():
    flow = coupling_flow(3, layers=2, hidden=(8,))
    x = torch.randn(5, 3)
    for result in (flow.sample(5), flow.rsample(5), flow.to_noise(x), flow.to_data(x)):
        assert result.is_contiguous()


# Raised inside torch's own compiler.
@pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning")
def test_a_compiled_flow_gives_the_same_numbers_and_copies_uncompiled():
    flow = coupling_flow(3, context=1, layers=1, scalar="affine", hidden=(8,), linear=None)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, context = torch.randn(50, 3), torch.randn(50, 1)
    with torch.no_grad():
        log_prob, z = flow.log_prob(x, context), flow.to_noise(x, context)
    twin = copy.deepcopy(flow)
    flow.compile()
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x, context), log_prob)
        torch.testing.assert_close(flow.to_data(z, context), x, atol=1e-4, rtol=1e-4)
    torch.manual_seed(0)
    drawn = flow.sample(4, context)
    torch.manual_seed(0)
    torch.testing.assert_close(twin.sample(4, context), drawn, atol=1e-4, rtol=1e-4)
    generator = torch.Generator().manual_seed(0)
    assert flow.sample(4, context, generator=generator).shape == (4, 50, 3)
    again = pickle.loads(pickle.dumps(flow))
    torch.testing.assert_close(again.log_prob(x, context), log_prob)
    assert copy.deepcopy(flow)._compiled_inverse is None


@pytest.mark.filterwarnings("ignore:.*_prims_common.check:FutureWarning")
def test_a_compiled_autoregressive_flow_solves_all_layers_with_one_program():
    torch.compiler.reset()
    flow = autoregressive_flow(
        3, layers=2, scalar=RationalQuadraticSpline(bins=2), hidden=(8,), start="standardize"
    )
    with torch.no_grad():
        roughened(flow)
        z = torch.randn(20, 3)
        want = flow.to_data(z)
        flow.compile()
        counts = torch._dynamo.utils.counters["stats"]
        counts.clear()
        torch.testing.assert_close(flow.to_data(z), want, atol=1e-5, rtol=1e-5)
    assert counts["unique_graphs"] == 1
    assert copy.deepcopy(flow).transform[-1]._compiled_solve is None


def test_without_a_compiler_a_flow_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    flow = coupling_flow(2, layers=1)
    with pytest.warns(UserWarning, match="needs a C\\+\\+ compiler"):
        flow.compile()
    assert flow.log_prob(torch.zeros(3, 2)).shape == (3,)


def test_samples_and_their_log_prob_carry_gradients_only_by_rsample(conditional):
    context = torch.randn(3, 2).double()
    drawn = conditional.rsample_and_log_prob(5, context, torch.Generator().manual_seed(0))
    plain = conditional.sample_and_log_prob(5, context, torch.Generator().manual_seed(0))
    for with_graph, without in zip(drawn, plain, strict=True):
        assert with_graph.requires_grad
        assert not without.requires_grad
        assert torch.equal(with_graph, without)


def test_the_repr_names_event_context_and_layers_and_repeats_none():
    flow = coupling_flow(3, layers=4, context=2, hidden=(8,))
    text = repr(flow)
    assert text.splitlines()[0].startswith("Flow: events (3,), context 2, float32")
    assert "4 x [Permutation(features=3)" in text
    assert text.count("Coupling") == 1
    assert len(text) < 400
    page = flow._repr_html_()
    assert page.count("<tr>") == len(flow.summary().splitlines())
    assert f"{sum(p.numel() for p in flow.parameters()):,}" in page
