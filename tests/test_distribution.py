"""A flow is a torch distribution, and a Pyro distribution where Pyro is in use."""

import copy
import math
import pickle
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from torch.distributions import Distribution, Independent, MultivariateNormal, constraints

from flowkit import Flow
from flowkit.bases import DiagonalNormal, NormalMixture, StandardNormal, Uniform
from flowkit.conditioners import MLP
from flowkit.distribution import FlowDistribution
from flowkit.errors import NotInvertibleError, ShapeError
from flowkit.scalar import Affine
from flowkit.transforms import Compose, Coupling, Elementwise, Logit, LULinear

C = 3


def small_mlp(i, o, context=0):
    return MLP(i, o, context=context, hidden=(8,))


def randomised(flow, noise=0.4):
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(noise * torch.randn_like(p))
    return flow.double()


def linear_flow():
    return randomised(Flow(LULinear(2), StandardNormal(2)))


def curved_flow(context=0):
    layers = Compose(
        LULinear(2), Coupling([False, True], Affine(), conditioner=small_mlp, context=context)
    )
    return randomised(Flow(layers, StandardNormal(2)))


def as_normal(flow):
    """The normal distribution that a linear flow is."""
    w, b = flow.transform.weight_matrix(), flow.transform.bias
    inverse = torch.linalg.inv(w)
    return MultivariateNormal(-inverse @ b, inverse @ inverse.T)


# torch.distributions


def test_a_linear_flow_is_a_multivariate_normal():
    flow = linear_flow()
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(flow.distribution().log_prob(x), as_normal(flow).log_prob(x))


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
def test_shapes_are_those_of_torch_distributions(batch):
    flow = curved_flow(C)
    context = torch.randn(*batch, C, dtype=torch.float64)
    d = flow.distribution(context)
    assert isinstance(d, Distribution)
    assert d.batch_shape == batch
    assert d.event_shape == (2,)
    for draw in (d.sample, d.rsample):
        assert draw().shape == (*batch, 2)
        assert draw(torch.Size([7, 3])).shape == (7, 3, *batch, 2)
    x = d.sample((7,))
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x, context))
    assert d.log_prob(x[..., :1, :] if batch else x).shape == (7, *batch)


def test_each_row_is_drawn_from_its_own_context():
    flow = randomised(
        Flow(Elementwise(1, Affine(), context=C, conditioner=small_mlp), StandardNormal(1)),
        noise=1.0,
    )
    context = 3 * torch.randn(4, C, dtype=torch.float64)
    x = flow.distribution(context).sample((20_000,))
    z = flow.to_noise(x, context)
    # Each of the four noises is a standard normal: standard error of a mean 1 / sqrt(20000).
    assert z.mean((0, 2)).abs().max() < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("conditional", [False, True])
def test_expand_repeats_the_distribution(conditional):
    flow = curved_flow(C if conditional else 0)
    context = torch.randn(5, C, dtype=torch.float64) if conditional else None
    small = flow.distribution(context)
    large = small.expand((4, 5))
    assert type(large) is type(small)
    assert large.batch_shape == (4, 5)
    assert large.sample((3,)).shape == (3, 4, 5, 2)
    x = large.sample()
    torch.testing.assert_close(large.log_prob(x), flow.log_prob(x, context))
    assert large.log_prob(x[0, 0]).shape == (4, 5)
    if conditional:
        with pytest.raises(ShapeError, match=r"cannot be expanded to \(4, 6\); remedy"):
            small.expand((4, 6))


def test_expanded_rows_are_independent():
    x = linear_flow().distribution().expand((2,)).sample((10_000,))
    joint = torch.corrcoef(x.flatten(1).T)[:2, 2:]
    assert joint.abs().max() < 4 / math.sqrt(10_000)


def test_rsample_carries_gradients_and_sample_does_not():
    flow = linear_flow()
    d = flow.distribution()
    assert not d.sample((3,)).requires_grad
    # x = W^-1 (z - b), so the derivative of the sum of n samples in b is -n W^-T 1.
    (gradient,) = torch.autograd.grad(d.rsample((10,)).sum(), flow.transform.bias)
    expected = -10 * torch.linalg.inv(flow.transform.weight_matrix()).sum(0)
    torch.testing.assert_close(gradient, expected)


def test_a_mixture_base_has_no_reparameterised_samples():
    d = Flow(LULinear(2), NormalMixture(2)).distribution()
    assert not d.has_rsample
    assert d.sample((3,)).shape == (3, 2)
    with pytest.raises(NotInvertibleError, match="NormalMixture.*remedy: sample"):
        d.rsample()


def test_the_support_is_that_of_the_flow():
    assert Flow(LULinear(2), StandardNormal(2)).distribution().support.event_dim == 1
    box = Flow(Compose(Logit(2), LULinear(2)), StandardNormal(2)).distribution()
    assert isinstance(box.support.base_constraint, constraints.interval)
    assert bool(box.support.check(box.sample((100,))).all())
    uniform = Flow(Elementwise(2), Uniform(2)).distribution()
    assert not bool(uniform.support.check(torch.tensor([0.5, 1.5])))


def test_it_works_inside_torch_s_own_wrappers():
    flow = curved_flow(C)
    context = torch.randn(5, C, dtype=torch.float64)
    d = flow.distribution(context)
    together = Independent(d, 1)
    x = together.sample()
    torch.testing.assert_close(together.log_prob(x), flow.log_prob(x, context).sum())


def test_a_conditional_flow_asks_for_its_context():
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3\).*remedy: pass context="):
        curved_flow(C).distribution()


def test_copies_and_pickles_are_the_same_distribution():
    d = curved_flow(C).distribution(torch.randn(5, C, dtype=torch.float64)).expand((4, 5))
    x = d.sample()
    for other in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert type(other) is type(d)
        assert torch.equal(other.log_prob(x), d.log_prob(x))
    assert repr(d).endswith("FlowDistribution(batch_shape=(4, 5), event_shape=(2,))")


def test_importing_flowkit_imports_neither_pyro_nor_nflows():
    program = """
import sys, torch, flowkit
from flowkit.bases import StandardNormal
from flowkit.distribution import FlowDistribution
from flowkit.transforms import LULinear
assert type(flowkit.Flow(LULinear(2), StandardNormal(2)).distribution()) is FlowDistribution
assert not {"pyro", "nflows"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# Pyro


@pytest.fixture(autouse=True)
def clean_pyro():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def test_with_pyro_a_flow_is_a_pyro_distribution():
    d = linear_flow().distribution()
    assert isinstance(d, FlowDistribution)
    assert isinstance(d, TorchDistributionMixin)
    assert d().shape == (2,)
    assert d.expand_by([3]).to_event(1).event_shape == (3, 2)
    mask = torch.tensor([True, False, True])
    x = torch.zeros(2, dtype=torch.float64)
    expected = d.log_prob(x) * mask
    torch.testing.assert_close(d.expand((3,)).mask(mask).log_prob(x), expected)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_subsampled_plate_scales_the_likelihood(conditional):
    flow = curved_flow(C if conditional else 0)
    x = torch.randn(20, 2, dtype=torch.float64)
    context = torch.randn(20, C, dtype=torch.float64)

    def model():
        pyro.module("flow", flow)
        with pyro.plate("rows", 20, subsample_size=5) as rows:
            d = flow.distribution(context[rows] if conditional else None)
            pyro.sample("x", d, obs=x[rows])

    trace = pyro.poutine.trace(model).get_trace()
    rows = trace.nodes["rows"]["value"]
    by_hand = flow.log_prob(x[rows], context[rows] if conditional else None).sum() * 20 / 5
    torch.testing.assert_close(trace.log_prob_sum(), by_hand)


def test_flows_in_plates_sample_and_predict():
    flow = curved_flow(C)
    context = torch.randn(6, C, dtype=torch.float64)

    def model():
        with pyro.plate("copies", 4, dim=-2), pyro.plate("rows", 6, dim=-1):
            return pyro.sample("x", flow.distribution(context))

    assert model().shape == (4, 6, 2)
    draws = Predictive(model, num_samples=3, parallel=True)()["x"]
    assert draws.shape == (3, 4, 6, 2)


def test_maximum_likelihood_by_svi_reaches_the_normal_of_the_data():
    x = torch.randn(200, 2, dtype=torch.float64) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]).double()
    flow = Flow(LULinear(2), StandardNormal(2)).double()

    def model():
        pyro.module("flow", flow)
        with pyro.plate("rows", 200):
            pyro.sample("x", flow.distribution(), obs=x)

    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(400):
        svi.step()
    fitted = as_normal(flow)
    torch.testing.assert_close(fitted.mean, x.mean(0), rtol=0, atol=1e-2)
    torch.testing.assert_close(
        fitted.covariance_matrix, torch.cov(x.T, correction=0), rtol=2e-2, atol=0
    )


def posterior(prior, y, noise):
    """The normal posterior of a normal prior after y = x + noise."""
    precision = prior.precision_matrix + torch.eye(2, dtype=torch.float64) / noise**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (prior.precision_matrix @ prior.mean + y / noise**2)
    return MultivariateNormal(mean, covariance)


def test_a_flow_as_prior_and_a_flow_as_guide_find_the_exact_posterior():
    prior = linear_flow().requires_grad_(False)
    guide_flow = Flow(LULinear(2), DiagonalNormal(2)).double()
    y = torch.tensor([1.5, -0.5], dtype=torch.float64)

    def model():
        x = pyro.sample("x", prior.distribution())
        pyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=y)

    def guide():
        pyro.module("guide", guide_flow)
        pyro.sample("x", guide_flow.distribution())

    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.99}), elbo)
    for _ in range(500):
        svi.step()
    exact = posterior(as_normal(prior), y, 0.7)
    x = exact.sample((2000,))
    # The divergence of the guide from the posterior, in nats; zero for the same density.
    assert abs((exact.log_prob(x) - guide_flow.log_prob(x)).mean()) < 0.01


def test_guides_without_reparameterised_samples_use_the_score_function():
    guide_flow = Flow(LULinear(2), NormalMixture(2, components=3)).double()

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    def guide():
        pyro.module("guide", guide_flow)
        pyro.sample("x", guide_flow.distribution())

    Trace_ELBO().loss_and_grads(model, guide)
    assert all(p.grad is not None for p in guide_flow.parameters())
    assert guide_flow.base.logits.grad.abs().max() > 0


def test_nuts_recovers_the_posterior_mean_of_a_latent_flow():
    flow = curved_flow().requires_grad_(False)
    y = torch.tensor([0.5, -0.5], dtype=torch.float64)

    def model():
        x = pyro.sample("x", flow.distribution())
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    mcmc = MCMC(NUTS(model), num_samples=250, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"]

    draws = flow.sample(200_000)
    weights = torch.softmax(-0.5 * ((draws - y) ** 2).sum(-1), 0)
    mean = weights @ draws
    spread = torch.sqrt(weights @ (draws - mean) ** 2)
    effective = mcmc.diagnostics()["x"]["n_eff"].clamp(max=250)
    assert effective.min() > 40
    assert ((x.mean(0) - mean).abs() < 4 * spread / effective.sqrt()).all()
