"""A mixture of flows is the mixture of their densities, for every method that it shares."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import flowkit
from flowkit import Flow, FlowMixture, coupling_flow, elementwise_flow, fit, stochastic_flow
from flowkit.bases import DiagonalNormal, NormalMixture, StandardNormal, StudentT, Uniform
from flowkit.cli import main
from flowkit.config import build, describe
from flowkit.distribution import estimate_kl
from flowkit.errors import (
    ArgumentError,
    FlowFileError,
    NotInvertibleError,
    ShapeError,
    StochasticFlowError,
)
from flowkit.estimators import FlowDensity
from flowkit.molecules import FlowPotential
from flowkit.toys import DoubleWell
from flowkit.transforms import CircularShift, Log, LULinear, Permutation

D = torch.float64
WEIGHTS, MEANS, SCALES = (0.2, 0.5, 0.3), (-2.0, 0.5, 4.0), (0.5, 1.0, 2.0)


def normal(mean, scale, features=1):
    """A flow that is a normal distribution, with a mean and a scale that are learned."""
    base = DiagonalNormal(features, max_log_scale=None).double()
    with torch.no_grad():
        base.params[:features], base.params[features:] = mean, math.log(scale)
    return Flow(Permutation(range(features)), base)


def uniform(lower, upper, features=1):
    base = Uniform(features, lower=lower, upper=upper)
    return Flow(LULinear(features), base).double()


def normals(weights=WEIGHTS):
    """Three normals, as a mixture of flows and as torch's own."""
    mixture = FlowMixture([normal(*pair) for pair in zip(MEANS, SCALES, strict=True)], weights)
    parts = Normal(torch.tensor(MEANS, dtype=D), torch.tensor(SCALES, dtype=D))
    return mixture, MixtureSameFamily(Categorical(torch.tensor(weights, dtype=D)), parts)


def scipy_log_cdf(x, sign=1):
    """The logarithm of P(X <= x), or of P(X > x) for the sign -1, by the smaller of the two."""
    below, above = (
        np.logaddexp.reduce(
            [
                math.log(w) + stats.norm.logcdf(side * (x - m) / s)
                for w, m, s in zip(WEIGHTS, MEANS, SCALES, strict=True)
            ]
        )
        for side in (sign, -sign)
    )
    return np.log1p(-np.exp(above)) if above < below else below


def roughened(flow, size=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return flow


def conditional(seed, features=2):
    torch.manual_seed(seed)
    return roughened(coupling_flow(features, context=2, layers=2, hidden=(8,)).double(), seed=seed)


X = torch.linspace(-6, 12, 37, dtype=D).unsqueeze(-1)
Q = torch.tensor([1e-300, 1e-12, 0.01, 0.2, 0.5, 0.77, 0.999, 1 - 1e-12], dtype=D)


# The density


def test_the_log_density_is_that_of_the_mixture_of_normals():
    mixture, exact = normals()
    expected = exact.log_prob(X.squeeze(-1))
    torch.testing.assert_close(mixture.log_prob(X).detach(), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mixture.energy(X), -mixture.log_prob(X))
    assert mixture.log_normalizer() == 0


def test_densities_are_averaged_and_not_their_logarithms():
    flows = [normal(0.0, 1.0), normal(0.0, 1e-3)]
    x = torch.tensor([[1.0]], dtype=D)
    # The narrow flow has a log-density of -5e5 there, half of which an average would take.
    expected = stats.norm.logpdf(1.0) - math.log(2)
    assert FlowMixture(flows).log_prob(x).item() == pytest.approx(expected, rel=1e-14)


def test_the_score_is_the_gradient_of_the_exact_log_density_and_has_a_gradient():
    mixture, exact = normals()
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(exact.log_prob(x.squeeze(-1)).sum(), x, create_graph=True)
    score = mixture.score(x)
    torch.testing.assert_close(score, expected, rtol=1e-11, atol=1e-12)
    (second,) = torch.autograd.grad(score.sum(), x)
    torch.testing.assert_close(second, torch.autograd.grad(expected.sum(), x)[0])
    with torch.inference_mode():
        assert torch.equal(mixture.score(X), score.detach())


def test_gradients_of_first_and_second_order_are_those_of_finite_differences():
    mixture, _ = normals()
    x = X[::6].clone().requires_grad_()
    parameters = tuple(mixture.parameters())

    def value(x, *numbers):
        names = [name for name, _ in mixture.named_parameters()]
        return torch.func.functional_call(mixture, dict(zip(names, numbers, strict=True)), (x,))

    assert torch.autograd.gradcheck(value, (x, *parameters))
    assert torch.autograd.gradgradcheck(value, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_far_tail_of_which_the_other_flow_has_nothing_is_that_of_the_wide_flow(dtype):
    mixture = FlowMixture([normal(0.0, 1.0), Flow(LULinear(1), StudentT(1, df=3.0)).double()])
    mixture = mixture.to(dtype)
    x = torch.tensor([[1e8], [-1e25], [1e30]], dtype=dtype).requires_grad_()
    expected = stats.t(3).logpdf(x.detach().double().numpy()) - math.log(2)
    value = mixture.log_prob(x)
    np.testing.assert_allclose(value.detach().squeeze().numpy(), expected[:, 0], rtol=2e-6)
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, (-4 / x).detach(), rtol=1e-5, atol=0)


def test_the_integral_is_one_also_in_two_dimensions():
    torch.manual_seed(0)
    flows = [roughened(coupling_flow(2, layers=2, hidden=(8,)).double(), seed=i) for i in (1, 2)]
    mixture = FlowMixture([*flows, normal(1.0, 0.7, features=2)], weights=[1, 2, 3])
    line = torch.linspace(-14, 14, 801, dtype=D)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        density = mixture.log_prob(grid).exp()
    assert density.sum().item() * (28 / 800) ** 2 == pytest.approx(1, abs=1e-4)
    single, _ = normals()
    whole = integrate.quad(
        lambda x: single.log_prob(torch.tensor([x], dtype=D)).exp().item(), -20, 30, points=MEANS
    )
    assert whole[0] == pytest.approx(1, abs=1e-9)


def test_a_flow_of_weight_zero_adds_nothing_to_values_and_gradients():
    alone, unused = normal(0.0, 1.0), normal(50.0, 1.0)
    mixture = FlowMixture([alone, unused], weights=[1, 0])
    assert mixture.log_weights.tolist() == [0, -math.inf]
    assert torch.equal(mixture.log_prob(X), alone.log_prob(X))
    torch.testing.assert_close(mixture.score(X), alone.score(X))
    torch.testing.assert_close(mixture.log_cdf(X), alone.log_cdf(X))
    torch.testing.assert_close(mixture.quantile(Q), alone.quantile(Q))
    assert mixture.sample(1000).max() < 10
    loss = mixture.log_prob(X).sum() + mixture.quantile(Q).sum() + mixture.log_survival(X).sum()
    loss.backward()
    for parameter in alone.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    for parameter in unused.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_what_a_flow_of_weight_zero_makes_of_x_does_not_matter():
    class Broken(Flow):
        def forward(self, x, context=None):
            return super().forward(x, context) * torch.nan

    broken = Broken(LULinear(1), StandardNormal(1)).double()
    mixture = FlowMixture([normal(0.0, 1.0), broken], weights=[1, 0])
    assert torch.equal(mixture.log_prob(X), normal(0.0, 1.0).log_prob(X))


def test_weights_are_scaled_to_one_and_equal_by_default():
    flows = [normal(0.0, 1.0), normal(1.0, 1.0)]
    assert FlowMixture(flows).weights.tolist() == [0.5, 0.5]
    for weights in ([3, 1], (3e300, 1e300), np.array([0.3, 0.1]), torch.tensor([3.0, 1.0])):
        given = FlowMixture(flows, weights).weights
        torch.testing.assert_close(given, torch.tensor([0.75, 0.25], dtype=D))
    # Rounded to float32, 1/3 and 2/3 may not sum to one, but the density integrates to one.
    mixture = FlowMixture(flows, [1, 2]).float().double()
    assert mixture.log_weights.exp().sum().item() == pytest.approx(1, abs=1e-15)


def test_values_that_are_missing_stay_in_their_row():
    mixture, _ = normals()
    x = torch.tensor([[0.0], [math.nan], [math.inf]], dtype=D)
    value = mixture.log_prob(x)
    assert value[0].isfinite()
    assert value[1].isnan()
    assert value[2] == -math.inf


# Samples


def test_samples_come_from_the_flows_in_proportion_to_their_weights():
    weights = (0.15, 0.0, 0.55, 0.3)
    flows = [normal(100.0 * i, 1.0) for i in range(4)]
    n, generator = 40_000, torch.Generator().manual_seed(0)
    x = FlowMixture(flows, weights).sample(n, generator=generator)
    assert x.shape == (n, 1)
    which = (x / 100).round().long().squeeze(-1)
    found = torch.bincount(which, minlength=4) / n
    for share, weight in zip(found.tolist(), weights, strict=True):
        assert abs(share - weight) <= 4 * math.sqrt(weight * (1 - weight) / n)
    # No order: neighbours are independent.
    pairs = (which[1:] == which[:-1]).double().mean().item()
    same = sum(w * w for w in weights)
    assert abs(pairs - same) < 4 * math.sqrt(same * (1 - same) / n)


def test_samples_follow_the_distribution_function():
    mixture, _ = normals()
    x = mixture.sample((50, 40), generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, 40, 1)
    assert x.is_contiguous()
    u = mixture.cdf(x).detach().flatten().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_a_generator_decides_the_samples_alone():
    mixture, _ = normals()
    state = torch.get_rng_state()
    first, second, other = (
        mixture.sample(20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ArgumentError, match="generator as a Generator, got 3"):
        mixture.sample(2, generator=3)


@pytest.mark.parametrize("shape", [(), 0, 3, (2, 0), (2, 3)])
def test_samples_have_the_shape_of_those_of_a_flow(shape):
    mixture, _ = normals()
    x, log_prob = mixture.sample_and_log_prob(shape)
    assert x.shape == normal(0.0, 1.0).sample(shape).shape
    assert log_prob.shape == x.shape[:-1]
    assert torch.equal(log_prob, mixture.log_prob(x).detach())
    assert not x.requires_grad


def test_reparameterised_samples_carry_the_gradient_of_the_mean():
    mixture, _ = normals()
    assert mixture.reparameterized
    n = 20_000
    x, log_prob = mixture.rsample_and_log_prob(n, generator=torch.Generator().manual_seed(0))
    assert log_prob.requires_grad
    x.mean().backward()
    for flow, weight in zip(mixture.flows, WEIGHTS, strict=True):
        # The share of samples from this flow: the mean moves by the weight.
        slope = flow.base.params.grad[0].item()
        assert abs(slope - weight) < 4 * math.sqrt(weight * (1 - weight) / n)
    other = FlowMixture([mixture, Flow(LULinear(1), NormalMixture(1)).double()])
    assert not other.reparameterized
    assert not other.distribution().has_rsample


def test_the_entropy_of_flows_far_apart_is_theirs_and_that_of_the_weights():
    mixture = FlowMixture([normal(-1e3, 1.0), normal(1e3, 3.0)], [0.25, 0.75])
    value, error = mixture.entropy(20_000, generator=torch.Generator().manual_seed(0))
    each = 0.5 * math.log(2 * math.pi * math.e)
    exact = 0.25 * (each - math.log(0.25)) + 0.75 * (each + math.log(3) - math.log(0.75))
    assert abs(value.item() - exact) < 4 * error.item()
    assert error < 0.02


# Distribution functions


def test_distribution_functions_are_weighted_sums_and_keep_their_digits_far_out():
    mixture, exact = normals()
    x = torch.cat([X, torch.tensor([[-60.0], [150.0]], dtype=D)])
    torch.testing.assert_close(mixture.cdf(X).detach(), exact.cdf(X.squeeze(-1)))
    for method, sign in ((mixture.log_cdf, 1), (mixture.log_survival, -1)):
        expected = [scipy_log_cdf(value, sign=sign) for value in x.squeeze(-1).tolist()]
        np.testing.assert_allclose(method(x).detach().numpy(), expected, rtol=1e-11)
    assert bool((mixture.log_cdf(x) <= 0).all() & (mixture.log_survival(x) <= 0).all())


def test_quantiles_invert_the_distribution_function_into_both_tails():
    mixture, _ = normals()
    x = mixture.quantile(Q).detach()
    assert x.shape == (*Q.shape, 1)
    log_cdf, log_survival = mixture.log_cdf(x).detach(), mixture.log_survival(x).detach()
    torch.testing.assert_close(log_cdf, Q.log(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(log_survival, torch.log1p(-Q), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize(
    ("means", "scales", "weights"),
    [
        ((-500.0, 500.0), (1.0, 1.0), (0.5, 0.5)),
        ((0.0, 0.0), (1e-6, 1e6), (0.9, 0.1)),
        ((3.0, 3.0), (2.0, 2.0), (0.5, 0.5)),
        ((-1.28155, 0.0), (1.0, 1.0), (1e-6, 1.0)),
    ],
)
def test_quantiles_are_found_whatever_the_flows_are_like(means, scales, weights, dtype):
    pairs = list(zip(means, scales, strict=True))
    mixture = FlowMixture([normal(*pair) for pair in pairs], weights).to(dtype)
    q = torch.linspace(0.001, 0.999, 333, dtype=dtype)
    x = mixture.quantile(q).detach().double().squeeze(-1).numpy()
    total = sum(weights)
    exact = sum(
        w / total * stats.norm(*pair).cdf(x) for w, pair in zip(weights, pairs, strict=True)
    )
    # As exact as a rounded x can be.
    spacing = np.abs(x) * torch.finfo(dtype).eps
    density = sum(
        w / total * stats.norm(*pair).pdf(x) for w, pair in zip(weights, pairs, strict=True)
    )
    tolerance = 8 * density * spacing + 30 * torch.finfo(dtype).eps
    assert (np.abs(exact - q.double().numpy()) < tolerance).all()


def test_quantiles_at_the_ends_and_beyond():
    q = torch.tensor([0.0, 1.0, -0.1, 1.1, math.nan], dtype=D)
    mixture, _ = normals()
    expected = torch.tensor([[-math.inf], [math.inf], [math.nan], [math.nan], [math.nan]], dtype=D)
    torch.testing.assert_close(mixture.quantile(q).detach(), expected, equal_nan=True)
    boxes = FlowMixture([uniform(0.0, 1.0), uniform(2.0, 3.0), uniform(-9.0, 9.0)], [1, 3, 0])
    torch.testing.assert_close(
        boxes.quantile(q[:2]).detach(), torch.tensor([[0.0], [3.0]], dtype=D)
    )
    inner = boxes.quantile(torch.tensor([0.125, 0.75], dtype=D)).detach().flatten()
    torch.testing.assert_close(inner, torch.tensor([0.5, 2 + 2 / 3], dtype=D))


def test_derivatives_of_quantiles_are_those_of_finite_differences():
    mixture, _ = normals()
    q = torch.tensor([0.05, 0.3, 0.9], dtype=D, requires_grad=True)
    names = [name for name, _ in mixture.named_parameters()]

    class Quantile(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixture = mixture

        def forward(self, q):
            return self.mixture.quantile(q)

    def value(q, *numbers):
        given = {f"mixture.{k}": v for k, v in zip(names, numbers, strict=True)}
        return torch.func.functional_call(Quantile(), given, (q,))

    assert torch.autograd.gradcheck(value, (q, *mixture.parameters()))
    assert torch.autograd.gradgradcheck(value, (q, *mixture.parameters()))


def test_vectors_and_circles_have_no_distribution_function():
    with pytest.raises(ShapeError, match=r"scalar events; this flow has \(2,\)"):
        FlowMixture([normal(0.0, 1.0, features=2)]).cdf(torch.zeros(1, 2, dtype=D))
    circle = Flow(CircularShift(1, lower=-1.0, upper=1.0), Uniform(1, lower=-1.0, upper=1.0))
    with pytest.raises(NotInvertibleError, match="periodic"):
        FlowMixture([circle]).cdf(torch.zeros(1, 1))


# Supports


def test_the_density_is_zero_only_where_no_flow_has_any():
    mixture = FlowMixture([uniform(0.0, 1.0), uniform(0.5, 3.0)], [0.25, 0.75])
    x = torch.tensor([[-1.0], [0.25], [0.75], [2.0], [4.0]], dtype=D).requires_grad_()
    value = mixture.log_prob(x)
    expected = torch.tensor([0.0, 0.25, 0.25 + 0.75 / 2.5, 0.75 / 2.5, 0.0], dtype=D)
    torch.testing.assert_close(value.exp().detach(), expected)
    assert mixture.in_support(x).tolist() == [False, True, True, True, False]
    assert torch.equal(mixture.support.check(x), value.isfinite())
    (slope,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
    assert torch.equal(slope, torch.zeros_like(slope))
    assert torch.autograd.grad(slope.sum(), x)[0].isfinite().all()
    assert mixture.score(x).isnan().flatten().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("side", [-0.5, 0.5])
def test_gradients_where_one_flow_is_beyond_its_ends_are_those_of_the_other(side):
    line, positive = normal(0.0, 1.0), elementwise_flow(1, lower=0).double()
    roughened(positive)
    mixture = FlowMixture([line, positive])
    x = torch.tensor([[side]], dtype=D, requires_grad=True)
    value = mixture.log_prob(x) + mixture.log_cdf(x) + mixture.log_survival(x)
    slopes = torch.autograd.grad(value.sum(), [x, *mixture.parameters()], create_graph=True)
    assert all(slope.isfinite().all() for slope in slopes)
    (second,) = torch.autograd.grad(slopes[0].sum(), x)
    assert second.isfinite().all()
    if side < 0:
        torch.testing.assert_close(mixture.score(x), line.score(x))


def test_the_ends_are_those_of_a_box_that_holds_all_others():
    def ends(mixture):
        region = mixture.region()
        return None if region is None else (region.lower.tolist(), region.upper.tolist())

    boxes = [flowkit.box_flow(2, lower=[0, 0], upper=[1, high], hidden=(4,)) for high in (1, 2)]
    assert ends(FlowMixture(boxes)) == ([0, 0], [1, 2])
    assert ends(FlowMixture(boxes, [1, 0])) == ([0, 0], [1, 1])
    crossed = flowkit.box_flow(2, lower=[0, 0], upper=[2, 1], hidden=(4,))
    assert ends(FlowMixture([*boxes, crossed])) is None
    whole = coupling_flow(2, layers=1, hidden=(4,))
    assert ends(FlowMixture([*boxes, whole, crossed])) == ([-math.inf] * 2, [math.inf] * 2)


def test_intervals_that_overlap_are_one_and_others_are_not():
    first, second, third = uniform(0.0, 1.0), uniform(0.5, 3.0), uniform(4.0, 5.0)
    joined = FlowMixture([second, first]).support
    assert (joined.lower.item(), joined.upper.item()) == (0, 3)
    assert FlowMixture([first, second, third]).support.lower is None
    ignored = FlowMixture([first, second, third], [1, 1, 0]).support
    assert (ignored.lower.item(), ignored.upper.item()) == (0, 3)
    assert not ignored.check(torch.tensor([4.5], dtype=D))
    chain = FlowMixture([uniform(0.0, 5.0), uniform(1.0, 2.0), uniform(3.0, 6.0)]).support
    assert (chain.lower.item(), chain.upper.item()) == (0, 6)
    with pytest.raises(NotInvertibleError, match="the support of this mixture is no box"):
        torch.distributions.biject_to(FlowMixture([first, third]).support)
    bijection = torch.distributions.biject_to(joined)
    x = bijection(torch.linspace(-9, 9, 5, dtype=D).unsqueeze(-1))
    assert bool(((x >= 0) & (x <= 3)).all())


# Contexts


def test_a_conditional_mixture_is_the_mixture_at_every_context():
    flows = [conditional(0), conditional(1)]
    mixture = FlowMixture(flows, [1, 3])
    assert (mixture.needs_context, mixture.context_size, mixture.event_shape) == (True, 2, (2,))
    x, c = torch.randn(5, 1, 2, dtype=D), torch.randn(4, 2, dtype=D)
    each = [flow.log_prob(x, c) for flow in flows]
    expected = (0.25 * each[0].exp() + 0.75 * each[1].exp()).log()
    torch.testing.assert_close(mixture.log_prob(x, c), expected)
    assert mixture.score(x, c).shape == (5, 4, 2)
    assert mixture.log_normalizer(c).tolist() == [0] * 4
    drawn, log_prob = mixture.sample_and_log_prob((3,), c)
    assert drawn.shape == (3, 4, 2)
    torch.testing.assert_close(log_prob, mixture.log_prob(drawn, c).detach())


def test_samples_given_contexts_are_those_of_each_context():
    flows = [Flow(Permutation([0]), DiagonalNormal(1, context=1)) for _ in range(2)]
    for flow, slope in zip(flows, (1000.0, -1000.0), strict=True):
        with torch.no_grad():
            flow.base.from_context.weight[0] = slope
    c, n = torch.tensor([[1.0], [2.0], [3.0]]), 4000
    x = FlowMixture(flows, [0.7, 0.3]).sample(n, c, torch.Generator().manual_seed(0))
    assert x.shape == (n, 3, 1)
    torch.testing.assert_close(x.abs(), (1000 * c).expand_as(x), atol=6.0, rtol=0)
    share = (x > 0).double().mean(0).flatten()
    assert ((share - 0.7).abs() < 4 * math.sqrt(0.21 / n)).all()


def test_an_embedding_may_take_labels():
    flows = []
    for seed in (0, 1):
        part = conditional(seed)
        flows.append(Flow(part.transform, part.base, embedding=nn.Embedding(5, 2).double()))
    mixture = FlowMixture(flows)
    labels = torch.tensor([[0, 1, 4]])
    x = mixture.sample((6,), labels)
    assert x.shape == (6, 1, 3, 2)
    assert mixture.log_prob(x, labels).shape == (6, 1, 3)
    assert mixture.score(x[0, 0], labels).shape == (1, 3, 2)


def test_quantiles_given_contexts_invert_the_distribution_function():
    torch.manual_seed(0)
    flows = [
        roughened(elementwise_flow(1, context=1, hidden=(4,)).double(), seed=i) for i in (1, 2)
    ]
    mixture = FlowMixture(flows)
    c = torch.tensor([[-1.0], [2.0]], dtype=D)
    x = mixture.quantile(Q[2:-1].unsqueeze(-1), c)
    assert x.shape == (5, 2, 1)
    torch.testing.assert_close(mixture.cdf(x, c).detach(), Q[2:-1].unsqueeze(-1).expand(5, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.log_prob(torch.zeros(3, 2, dtype=D)),
        lambda f: f.sample(3),
        lambda f: f.log_prob(torch.zeros(3, 2, dtype=D), torch.zeros(3, 1, dtype=D)),
        lambda f: f.log_prob(torch.zeros(3, 2, dtype=D), torch.zeros(4, 2, dtype=D)),
        lambda f: f.log_prob(torch.zeros(3, 3, dtype=D), torch.zeros(2, dtype=D)),
        lambda f: f.log_prob(torch.zeros(3, 2), torch.zeros(2, dtype=D)),
        lambda f: f.log_prob([0.0, 0.0], torch.zeros(2, dtype=D)),
        lambda f: f.score(torch.zeros(3, 3, dtype=D), torch.zeros(2, dtype=D)),
        lambda f: f.sample(-1, torch.zeros(2, dtype=D)),
        lambda f: f.cdf(torch.zeros(1, 2, dtype=D), torch.zeros(2, dtype=D)),
    ],
)
def test_wrong_input_is_the_same_error_as_of_a_flow(call):
    flow = conditional(0)
    errors = []
    for density in (flow, FlowMixture([flow, conditional(1)])):
        with pytest.raises(ShapeError) as caught:
            call(density)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


UNLIKE = {
    "events": (lambda: [normal(0.0, 1.0), normal(0.0, 1.0, 2)], r"one shape, got \(1,\) and \(2"),
    "contexts": (lambda: [conditional(0), normal(0.0, 1.0, 2)], "context size.*got 2 and 0"),
    "dtypes": (lambda: [normal(0.0, 1.0), normal(0.0, 1.0).float()], "dtype, got torch.float64"),
    "devices": (lambda: [normal(0.0, 1.0), normal(0.0, 1.0).to("meta")], "device, got cpu and me"),
}


@pytest.mark.parametrize(("flows", "message"), UNLIKE.values(), ids=UNLIKE.keys())
def test_flows_that_are_not_alike_are_refused(flows, message):
    with pytest.raises(ShapeError, match=f"FlowMixture expected flows with .*{message}.*remedy"):
        FlowMixture(flows())


@pytest.mark.parametrize(
    ("flows", "weights", "message"),
    [
        ([], None, r"flows as a sequence of one flow or more, got \[\]; remedy"),
        (normal(0.0, 1.0), None, "flows as a sequence of one flow or more, got Flow"),
        ([StandardNormal(1)], None, "flow as a Flow or a FlowMixture, got StandardNormal"),
        ([normal(0.0, 1.0)], [0.5, 0.5], r"weights as .*1 feature.*, got \[0.5, 0.5\]"),
        ([normal(0.0, 1.0)] * 2, [1, -1], "weights as a finite number >= 0"),
        ([normal(0.0, 1.0)] * 2, [1, math.nan], "weights as a finite number >= 0"),
        ([normal(0.0, 1.0)] * 2, [0, 0], "weights as numbers >= 0 of which one is positive"),
    ],
)
def test_bad_arguments_are_named(flows, weights, message):
    with pytest.raises(ArgumentError, match=f"FlowMixture expected {message}"):
        FlowMixture(flows, weights)


def test_a_stochastic_flow_has_no_density_to_mix():
    flow = stochastic_flow(2, energy=DoubleWell(), blocks=1, steps=1, hidden=(4,))
    with pytest.raises(StochasticFlowError, match="exact density.*remedy"):
        FlowMixture([flow])


# A module like any other


def test_copies_and_pickles_give_the_same_numbers():
    mixture, _ = normals()
    for other in (copy.deepcopy(mixture), pickle.loads(pickle.dumps(mixture))):
        assert torch.equal(other.log_prob(X), mixture.log_prob(X))
        assert other.flows[0] is not mixture.flows[0]


def test_casts_reach_flows_and_weights():
    mixture, exact = normals()
    single = copy.deepcopy(mixture).float()
    assert single.dtype == single.weights.dtype == torch.float32
    value = single.log_prob(X.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact.log_prob(X.squeeze(-1)), atol=1e-5, rtol=1e-5)
    assert single.sample(3).dtype == torch.float32
    assert single.double().log_prob(X).dtype == D


def test_vmap_over_samples_and_over_stacked_parameters_is_the_batch():
    mixture, _ = normals()
    torch.testing.assert_close(torch.func.vmap(mixture.log_prob)(X), mixture.log_prob(X))
    grads = torch.func.vmap(torch.func.grad(lambda x: mixture.log_prob(x)))(X)
    torch.testing.assert_close(grads, mixture.score(X))
    others = [copy.deepcopy(mixture), roughened(copy.deepcopy(mixture))]
    stacked, buffers = torch.func.stack_module_state(others)

    def value(parameters, buffers):
        return torch.func.functional_call(mixture, (parameters, buffers), (X,))

    both = torch.func.vmap(value)(stacked, buffers)
    torch.testing.assert_close(both, torch.stack([m.log_prob(X) for m in others]))


def test_a_mixture_may_be_mixed():
    mixture, _ = normals()
    nested = FlowMixture([mixture, normal(7.0, 0.1)], [0.9, 0.1])
    flat = FlowMixture([*mixture.flows, nested.flows[1]], [0.9 * w for w in WEIGHTS] + [0.1])
    for method in ("log_prob", "score", "log_cdf", "log_survival"):
        torch.testing.assert_close(getattr(nested, method)(X), getattr(flat, method)(X))
    torch.testing.assert_close(nested.quantile(Q), flat.quantile(Q))
    assert nested.sample(4).shape == (4, 1)


def test_a_mixture_of_one_flow_is_that_flow():
    flow = roughened(elementwise_flow(1, lower=0).double())
    mixture = FlowMixture([flow])
    x = flow.sample(50)
    for method in ("log_prob", "score", "cdf", "survival"):
        torch.testing.assert_close(getattr(mixture, method)(x), getattr(flow, method)(x))
    torch.testing.assert_close(mixture.quantile(Q[2:]), flow.quantile(Q[2:]))


def test_the_summary_names_weights_and_layers_and_counts_every_parameter():
    mixture, _ = normals()
    lines = mixture.summary().splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("weight")] == [
        ["weight", f"{w:g}"] for w in WEIGHTS
    ]
    assert lines[-1].split()[-1] == str(sum(p.numel() for p in mixture.parameters()))
    assert "DiagonalNormal" in mixture.summary()
    assert repr(mixture).startswith("FlowMixture: events (1,), no context, float64, 6 parameters")
    assert "<table>" in mixture._repr_html_()
    assert "weight ?" in repr(copy.deepcopy(mixture).to("meta"))


def test_it_has_started_from_data_when_all_flows_have():
    flows = [elementwise_flow(1), elementwise_flow(1)]
    mixture = FlowMixture(flows)
    flows[0].initialize(torch.randn(20, 1))
    assert not mixture.initialized
    flows[1].initialize(torch.randn(20, 1))
    assert mixture.initialized


# As a distribution, in files, estimators and other users of flows


def test_the_view_is_the_mixture_of_torch():
    mixture, exact = normals()
    view = mixture.distribution()
    x = X.squeeze(-1)
    torch.testing.assert_close(view.log_prob(X).detach(), exact.log_prob(x))
    torch.testing.assert_close(view.cdf(X).detach(), exact.cdf(x))
    torch.testing.assert_close(view.icdf(Q), mixture.quantile(Q))
    deviation = exact.stddev.item()
    assert abs(view.mean.item() - exact.mean.item()) < 4 * deviation / 100
    assert view.expand((3,)).rsample((2,)).shape == (2, 3, 1)
    flows = [conditional(0), conditional(1)]
    c = torch.randn(4, 2, dtype=D)
    assert FlowMixture(flows).distribution(c).sample((5,)).shape == (5, 4, 2)


def test_the_divergence_from_a_normal_to_a_mixture_of_it_is_that_of_its_weight():
    far = FlowMixture([normal(0.0, 1.0, 2), normal(1e4, 1.0, 2)], [0.25, 0.75])
    p = MultivariateNormal(torch.zeros(2, dtype=D), torch.eye(2, dtype=D))
    torch.manual_seed(0)
    value, _ = estimate_kl(p, far.distribution(), 100)
    assert value.item() == pytest.approx(-math.log(0.25), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_file_gives_back_the_same_bits(tmp_path, dtype):
    torch.manual_seed(0)
    flows = [coupling_flow(2, layers=1, hidden=(4,)), Flow(LULinear(2), StandardNormal(2))]
    mixture = FlowMixture([*flows, coupling_flow(2, layers=1, hidden=(4,))], [1, 0, 5000])
    mixture = roughened(mixture.to(dtype)).eval()
    flowkit.save(mixture, tmp_path / "m", extra={"columns": ["a", "b"]})
    again = flowkit.load(tmp_path / "m")
    assert type(again) is FlowMixture
    assert again.dtype == dtype
    state, other = mixture.state_dict(), again.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    x = torch.randn(9, 2, dtype=dtype)
    assert torch.equal(again.log_prob(x), mixture.log_prob(x))
    assert flowkit.io.read_extra(tmp_path / "m") == {"columns": ["a", "b"]}


def test_a_flow_that_is_mixed_twice_is_stored_as_one(tmp_path):
    flow = normal(0.0, 1.0)
    flowkit.save(FlowMixture([flow, flow], [1, 2]), tmp_path / "m")
    again = flowkit.load(tmp_path / "m")
    assert again.flows[0] is again.flows[1]


def test_a_description_builds_the_same_mixture():
    mixture = FlowMixture([elementwise_flow(1), normals()[0].float()], torch.tensor([1.0, 3.0]))
    described = describe(mixture)
    again = build(described)
    assert describe(again) == described
    assert torch.equal(again.weights, mixture.weights)


def test_weights_that_no_mixture_has_are_refused(tmp_path):
    mixture, _ = normals()
    mixture.weights[0] = -0.5
    with pytest.raises(FlowFileError, match="weights holds -0.5, expected numbers >= 0"):
        flowkit.save(mixture, tmp_path / "m")


def test_fit_says_to_fit_the_flows_one_by_one():
    mixture, _ = normals()
    with pytest.raises(ArgumentError, match="(?s)as a Flow, got FlowMixture.*remedy: fit its f"):
        fit(mixture, torch.randn(100, 1), epochs=1, progress=False)


def test_an_estimator_takes_a_mixture_and_writes_it_to_a_file(tmp_path):
    mixture = FlowMixture([normal(0.0, 1.0, 2), normal(3.0, 1.0, 2)]).float()
    model = FlowDensity.from_flow(mixture)
    x = np.random.default_rng(0).normal(size=(20, 2))
    expected = mixture.log_prob(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(model.score_samples(x), expected)
    assert model.sample(5, random_state=0).shape == (5, 2)
    rounded = FlowDensity.from_flow(mixture, width=[1.0, 0.0])
    assert np.isfinite(rounded.score_samples(x.round())).all()
    with pytest.raises(ArgumentError, match="a Flow or a FlowMixture, got None"):
        FlowDensity.from_flow(None)


def test_the_command_line_reads_a_mixture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mixture = FlowMixture([normal(0.0, 1.0, 2), normal(3.0, 1.0, 2)], [0.4, 0.6]).float()
    flowkit.save(mixture, "m.safetensors", extra={"columns": ["a", "b"]})
    assert main(["describe", "m.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "weight 0.4" in shown
    assert "columns   a, b" in shown
    assert main(["sample", "m.safetensors", "-n", "50", "-o", "x.npy"]) == 0
    assert main(["score", "m.safetensors", "x.npy", "-o", "s.npy"]) == 0
    x = torch.tensor(np.load("x.npy"))
    scores = np.load("s.npy")[:, 0]
    np.testing.assert_allclose(scores, mixture.log_prob(x).detach().numpy(), rtol=1e-5)


def test_a_potential_of_a_mixture_is_minus_its_log_density():
    mixture = FlowMixture([normal(-1.0, 0.5), normal(1.0, 0.5)])
    potential = FlowPotential(mixture, kT=2.0)
    torch.testing.assert_close(potential.energy(X), -2 * mixture.log_prob(X))
    torch.testing.assert_close(potential.force(X), 2 * mixture.score(X))


def test_half_lines_are_mixed_with_the_line():
    mixture = FlowMixture([Flow(Log(1), StandardNormal(1)).double(), normal(0.0, 1.0)], [0.5, 0.5])
    x = torch.tensor([[-1.0], [2.0]], dtype=D)
    lognormal = stats.lognorm(1).pdf(x.squeeze(-1).numpy())
    expected = 0.5 * lognormal + 0.5 * stats.norm.pdf(x.squeeze(-1).numpy())
    np.testing.assert_allclose(mixture.log_prob(x).exp().detach().numpy(), expected, rtol=1e-12)
    assert mixture.support.lower.item() == -math.inf
