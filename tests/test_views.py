"""The torch.distributions view refuses, expands and computes as torch's own distributions do."""

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    ExpTransform,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)

from flowkit import Flow, coupling_flow, elementwise_flow
from flowkit.bases import DiagonalNormal, NormalMixture, StandardNormal
from flowkit.distribution import estimate_kl
from flowkit.errors import ArgumentError, NotInvertibleError, ShapeError, StochasticFlowError
from flowkit.scalar import Affine
from flowkit.stochastic import Dequantize
from flowkit.transforms import Compose, Coupling, Elementwise, LULinear, Standardize

D = torch.float64


def gaussian(seed=0):
    """A linear flow, and the normal distribution that it is."""
    torch.manual_seed(seed)
    flow = Flow(LULinear(2), StandardNormal(2)).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.4 * torch.randn_like(p))
    inverse = torch.linalg.inv(flow.transform.weight_matrix())
    return flow, MultivariateNormal(-inverse @ flow.transform.bias, inverse @ inverse.T)


def shifted():
    """A scalar flow that is a normal of mean 3 c and standard deviation 2, given a context c."""

    class Three(nn.Module):
        def forward(self, x, context=None):
            log_scale = torch.full_like(context, -math.log(2))
            return torch.cat([-1.5 * context, log_scale], -1)

    layer = Elementwise(
        1, Affine(max_log_scale=None), context=1, conditioner=lambda *_, **__: Three()
    )
    return Flow(layer, StandardNormal(1))


# Events and batches


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,), (4, 3), (2, 3), (1, 2, 1)], ids=str)
def test_an_event_of_another_size_is_an_error_as_for_the_flow(shape):
    flow, _ = gaussian()
    for call in (flow.log_prob, flow.distribution().log_prob):
        with pytest.raises(ShapeError, match=r"\(\.\.\., 2\)"):
            call(torch.zeros(shape, dtype=D))


SHAPES = [(), (1,), (4,), (5,), (1, 4), (5, 1), (5, 4), (4, 4), (2, 5, 4), (0,), (0, 4), (3, 1, 4)]


@pytest.mark.parametrize("own", [(), (1,), (4,), (5, 4), (5, 1)], ids=str)
@pytest.mark.parametrize("conditional", [False, True])
def test_expand_takes_and_refuses_the_shapes_that_a_normal_does(own, conditional):
    loc = torch.zeros(own)
    normal = Independent(Normal(loc.unsqueeze(-1), torch.ones(1)), 1)
    flow = shifted() if conditional else elementwise_flow(1)
    view = flow.distribution(loc.unsqueeze(-1)) if conditional else flow.distribution().expand(own)
    for shape in SHAPES:
        try:
            expected = normal.expand(torch.Size(shape))
        except (RuntimeError, ValueError):
            with pytest.raises(ShapeError, match="cannot be expanded.*remedy"):
                view.expand(shape)
            continue
        found = view.expand(shape)
        assert found.batch_shape == expected.batch_shape
        assert found.sample((3,)).shape == expected.sample((3,)).shape
        x = torch.zeros(1)
        # torch's Independent cannot sum over an event of an empty batch.
        assert found.log_prob(x).shape == expected.base_dist.log_prob(x).shape[:-1]
        assert found.mean.shape == expected.mean.shape
        assert found.entropy(8).shape == expected.base_dist.entropy().shape[:-1]


@pytest.mark.parametrize("shape", [(-1,), 3, (2.0,), "4", None], ids=repr)
def test_expand_refuses_what_is_no_shape(shape):
    with pytest.raises(ShapeError, match="cannot be expanded"):
        elementwise_flow(1).distribution().expand(shape)


def test_a_value_broadcasts_its_batch_and_no_more():
    flow, normal = gaussian()
    view, normal = flow.distribution().expand((5, 4)), normal.expand((5, 4))
    for batch in ((), (4,), (1, 4), (5, 1), (3, 5, 4), (3, 1, 1)):
        x = torch.randn(*batch, 2, dtype=D)
        torch.testing.assert_close(view.log_prob(x), normal.log_prob(x))
    for batch in ((5,), (3, 4), (2, 5, 3)):
        x = torch.zeros(*batch, 2, dtype=D)
        # The one with torch's argument checks, the other without.
        with pytest.raises((ValueError, RuntimeError)):
            normal.log_prob(x)
        with pytest.raises(ShapeError, match="does not broadcast with the batch"):
            view.log_prob(x)


def test_an_image_as_context_gives_its_batch():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flow = Flow(Coupling([0, 1], Affine(), context=2), StandardNormal(2), embedding=net)
    images = torch.randn(3, 1, 5, 5)
    view = flow.distribution(images)
    assert view.batch_shape == (3,)
    x = view.expand((4, 3)).sample((6,))
    assert x.shape == (6, 4, 3, 2)
    torch.testing.assert_close(view.log_prob(x), flow.log_prob(x, images))
    assert flow.distribution(images[:1]).expand((3,)).sample().shape == (3, 2)


# Distribution functions


def test_cdf_and_icdf_of_a_scalar_flow():
    view = elementwise_flow(1).distribution()
    assert view.cdf(torch.zeros(1)).item() == pytest.approx(0.5, abs=1e-6)
    assert view.icdf(torch.full((1,), 0.5)).item() == pytest.approx(0.0, abs=1e-6)


def test_cdf_and_icdf_given_contexts_are_those_of_the_normals():
    context = torch.tensor([[0.0], [1.0], [-2.0]])
    view = shifted().distribution(context)
    normal = Normal(3 * context[:, 0], 2.0)
    x = torch.tensor([[-1.0], [0.5]])[:, None]
    torch.testing.assert_close(view.cdf(x), normal.cdf(x[..., 0]))
    q = torch.tensor([[0.1], [0.9]])
    torch.testing.assert_close(view.icdf(q), normal.icdf(q).unsqueeze(-1))
    torch.testing.assert_close(view.cdf(view.icdf(q)), q.expand(2, 3))


def test_vectors_have_no_distribution_function():
    view = gaussian()[0].distribution()
    with pytest.raises(ShapeError, match="scalar events"):
        view.cdf(torch.zeros(2, dtype=D))
    with pytest.raises(ShapeError, match="scalar events"):
        view.icdf(torch.zeros((), dtype=D))


# Entropy, divergences and moments


def test_entropy_is_that_of_the_normal_within_its_standard_error():
    flow, normal = gaussian()
    value, error = flow.entropy(20_000)
    # The entropy's terms are half a chi-square of two degrees of freedom: variance 1.
    assert error.item() == pytest.approx(1 / math.sqrt(20_000), rel=0.05)
    assert abs(value - normal.entropy()) < 4 * error
    assert abs(flow.distribution().entropy() - normal.entropy()) < 4 / math.sqrt(4096)
    torch.manual_seed(3)
    a = flow.distribution().entropy(64)
    torch.manual_seed(3)
    assert flow.distribution().perplexity().shape == ()
    assert torch.equal(a, flow.distribution().entropy(64, _seeded_global(3)))


def _seeded_global(seed):
    torch.manual_seed(seed)


def test_the_gradient_of_the_entropy_is_that_of_the_normal():
    flow, _ = gaussian()
    # H = const - log|det W|, the same for every sample.
    (found,) = torch.autograd.grad(flow.entropy(8).value, flow.transform.lower_upper)
    log_det = torch.linalg.slogdet(flow.transform.weight_matrix())[1]
    (expected,) = torch.autograd.grad(-log_det, flow.transform.lower_upper)
    torch.testing.assert_close(found, expected)


def test_an_entropy_without_reparameterised_samples_carries_no_wrong_gradient():
    flow = Flow(LULinear(2), NormalMixture(2))
    value, error = flow.entropy(16)
    assert not value.requires_grad
    assert not error.requires_grad
    assert not flow.distribution().entropy(16).requires_grad
    assert not flow.distribution().mean.requires_grad


def test_entropies_of_a_batch_of_contexts():
    flow = shifted()
    context = torch.zeros(3, 1)
    value, error = flow.entropy(4000, context)
    assert value.shape == error.shape == (3,)
    exact = Normal(0.0, 2.0).entropy()
    assert ((value - exact).abs() < 4 * error).all()
    assert flow.distribution(context).expand((2, 3)).entropy(8).shape == (2, 3)


def test_mean_and_variance_are_those_of_the_normal():
    flow, normal = gaussian()
    view = flow.distribution().expand((3,))
    standard_error = normal.stddev / 100
    assert ((view.mean - normal.mean).abs() < 4 * standard_error).all()
    # A variance of n normal numbers has the relative standard error sqrt(2 / n).
    assert ((view.variance / normal.variance - 1).abs() < 4 * math.sqrt(2e-4)).all()
    torch.testing.assert_close(view.stddev, view.variance.sqrt())


def test_moments_are_one_number_and_leave_the_global_state_alone():
    view = gaussian()[0].distribution()
    before = torch.get_rng_state()
    assert torch.equal(view.mean, view.mean)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_carries_the_gradient_of_a_shift():
    flow = Flow(LULinear(2), StandardNormal(2)).double()
    (found,) = torch.autograd.grad(flow.distribution().mean.sum(), flow.transform.bias)
    torch.testing.assert_close(found, -torch.ones(2, dtype=D))


@pytest.mark.parametrize("first", ["flow", "normal"])
@pytest.mark.parametrize("second", ["flow", "normal"])
def test_divergences_are_those_of_the_normals(first, second):
    if first == second == "normal":
        return
    pair = [gaussian(0), gaussian(1)]
    exact = kl_divergence(pair[0][1], pair[1][1])
    p, q = (
        flow.distribution() if kind == "flow" else normal
        for kind, (flow, normal) in zip((first, second), pair, strict=True)
    )
    value, error = estimate_kl(p, q, 20_000)
    assert abs(value - exact) < 4 * error
    assert error < 0.1 * exact
    assert abs(kl_divergence(p, q) - exact) < 8 * error * math.sqrt(20_000 / 4096)


def test_divergences_of_unlike_events_and_one_sample_are_refused():
    view = gaussian()[0].distribution()
    with pytest.raises(ShapeError, match=r"same events, got \(2,\) and \(\); remedy"):
        kl_divergence(view, Normal(0.0, 1.0))
    for call in (lambda: view.entropy(1), lambda: estimate_kl(view, view, 1.5)):
        with pytest.raises(ArgumentError, match="n as an integer >= 2"):
            call()


def test_what_does_not_exist_says_so():
    view = gaussian()[0].distribution()
    with pytest.raises(NotInvertibleError, match="no mode; remedy"):
        _ = view.mode
    with pytest.raises(NotInvertibleError, match="no enumeration of its support"):
        view.enumerate_support()
    counts = Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1)).distribution()
    with pytest.raises(StochasticFlowError):
        counts.entropy()


# Inside torch's and Pyro's own


def test_a_mixture_of_flows_is_the_mixture_of_the_normals():
    context, weights = torch.tensor([[0.0], [1.0], [-2.0]]), torch.tensor([0.2, 0.5, 0.3])
    ours = MixtureSameFamily(Categorical(weights), shifted().distribution(context))
    theirs = MixtureSameFamily(Categorical(weights), Normal(3 * context[:, 0], 2.0))
    x = torch.linspace(-9, 9, 7).unsqueeze(-1)
    torch.testing.assert_close(ours.cdf(x), theirs.cdf(x[:, 0]))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x[:, 0]))
    assert ours.sample((6,)).shape == (6, 1)
    torch.testing.assert_close(ours.mean[0], theirs.mean, rtol=0, atol=4 * 2 / 100)
    torch.testing.assert_close(ours.variance[0], theirs.variance, rtol=0.1, atol=0)


def test_a_transformed_flow_is_the_transformed_normal():
    flow, normal = gaussian()
    transforms = [AffineTransform(torch.zeros(2, dtype=D), 0.5, event_dim=1), ExpTransform()]
    ours = TransformedDistribution(flow.distribution(), transforms)
    theirs = TransformedDistribution(normal, transforms)
    y = theirs.sample((5,))
    torch.testing.assert_close(ours.log_prob(y), theirs.log_prob(y))
    assert ours.expand((4,)).sample((3,)).shape == (3, 4, 2)
    assert ours.support.event_dim == theirs.support.event_dim


def test_an_independent_batch_sums_entropies_and_keeps_moments():
    context = torch.zeros(3, 1)
    view = Independent(shifted().distribution(context), 1)
    exact = 3 * Normal(0.0, 2.0).entropy()
    assert abs(view.entropy() - exact) < 4 * math.sqrt(3 * 0.5 / 4096)
    assert view.mean.shape == (3, 1)
    assert view.expand((2,)).sample().shape == (2, 3, 1)


def test_a_copied_and_pickled_view_is_the_same():
    images = torch.randn(3, 1, 5, 5)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flow = Flow(Coupling([0, 1], Affine(), context=2), StandardNormal(2), embedding=net)
    view = flow.distribution(images).expand((4, 3))
    x = view.sample()
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert isinstance(other, Distribution)
        assert other.batch_shape == (4, 3)
        torch.testing.assert_close(other.log_prob(x), view.log_prob(x))


def test_a_guide_whose_divergence_is_estimated_reaches_the_prior():
    guide_flow = Flow(LULinear(2), DiagonalNormal(2)).double()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    prior = gaussian()[1]
    target = pyro.distributions.MultivariateNormal(
        prior.loc.detach(), prior.covariance_matrix.detach()
    )

    def model():
        pyro.sample("x", target)

    def guide():
        pyro.module("guide", guide_flow)
        pyro.sample("x", guide_flow.distribution())

    svi = SVI(
        model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.98}), TraceMeanField_ELBO()
    )
    for _ in range(200):
        svi.step()
    value, error = estimate_kl(guide_flow.distribution(), target)
    assert value < 0.01 + 4 * error


def test_a_plate_expands_a_view_with_contexts():
    flow = shifted()
    context = torch.tensor([[0.0], [1.0], [-2.0]])
    with pyro.plate("copies", 4, dim=-2), pyro.plate("rows", 3, dim=-1):
        assert pyro.sample("x", flow.distribution(context)).shape == (4, 3, 1)
        assert pyro.sample("y", coupling_flow(2).distribution()).shape == (4, 3, 2)
