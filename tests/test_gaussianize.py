"""Marginal splines, their tails, and whitening: the start of a flow at a fitted distribution."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import flowkit
from flowkit import Flow, autoregressive_flow, coupling_flow, elementwise_flow, kernelised_flow
from flowkit.bases import StandardNormal
from flowkit.transforms import Compose, Gaussianize, ShortenGaps, Standardize, Whiten
from flowkit.transforms.margins import tail

FAMILIES = {
    "normal": scipy.stats.norm(),
    "lognormal": scipy.stats.lognorm(1.0),
    "gamma": scipy.stats.gamma(2),
    "exponential": scipy.stats.expon(),
    "Weibull": scipy.stats.weibull_min(1.5),
    "generalised Pareto": scipy.stats.genpareto(0.2),
    "Student-t": scipy.stats.t(3),
    "beta": scipy.stats.beta(2, 3),
    "uniform": scipy.stats.uniform(),
}


def started(layer, x):
    layer.initialize(torch.as_tensor(x))
    return layer


def flow_of(*layers):
    return Flow(Compose(*layers), StandardNormal(layers[0].event_shape))


def copula(features):
    return flow_of(Standardize(features), Gaussianize(features), Whiten(features))


def initialized(flow, x):
    flow = flow.to(x.dtype)
    flow.initialize(x)
    return flow


def normals(n, features, seed=0, dtype=torch.float32):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian_score(x, y):
    """Mean log-density of ``y`` under the normal with the moments of ``x``."""
    x, y = x.double().numpy(), y.double().numpy()
    fitted = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T), allow_singular=True)
    return fitted.logpdf(y).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_untrained_margin_is_within_a_fiftieth_of_a_nat_of_the_truth(family):
    truth, gaps = FAMILIES[family], []
    for seed in range(5):
        x, y = (
            torch.tensor(truth.rvs((n, 1), random_state=s), dtype=torch.float32)
            for n, s in ((10_000, seed), (100_000, 100 + seed))
        )
        flow = initialized(flow_of(Standardize(1), Gaussianize(1)), x)
        # Single precision may round a sample to the end of the support.
        exact = truth.logpdf(y.double().numpy())
        gaps.append(exact[np.isfinite(exact)].mean() - flow.log_prob(y).double().mean().item())
    # The largest standard error of these means is 0.001.
    assert -0.005 < np.mean(gaps) < 0.02


def test_tails_are_those_of_the_data():
    x = np.random.default_rng(0).standard_normal((20_000, 8))
    heavy = np.random.default_rng(1).standard_t(3, (20_000, 8))
    assert not started(Gaussianize(8), x).tails.any()
    # Splines are not chosen by chance.
    counts = started(Gaussianize(60), normals(1000, 60)).count
    assert (counts == 2).float().mean() > 0.9
    shapes = started(Gaussianize(8), heavy).tails
    assert (shapes > 0).float().mean() > 0.7
    # 2 / 3 is the exact one.
    assert 0.3 < shapes[shapes > 0].mean() < 1.2


@pytest.mark.parametrize("shape", [0.1, 2 / 3, 2.0])
def test_a_power_law_tail_has_its_index(shape):
    t = torch.tensor([1e6, 1e12], dtype=torch.float64)
    at = torch.full_like(t, 2.5)
    u, _ = tail(t, at, torch.full_like(t, shape))
    survival = torch.special.log_ndtr(-u) + u.log()
    slope = (survival[1] - survival[0]) / math.log(1e6)
    torch.testing.assert_close(slope.item(), -2 / shape, atol=1e-3, rtol=1e-3)


def fitted():
    x = normals(3000, 4, dtype=torch.float64)
    columns = [x[:, 0].exp(), x[:, 1].sinh() * x[:, 1].cosh() ** 2, x[:, 2] + 40 * (x[:, 3] > 0)]
    return started(Gaussianize(3).double(), torch.stack(columns, -1))


def test_log_determinants_are_those_of_autograd_also_at_knots_and_in_tails():
    layer = fitted()
    assert (layer.count > 4).all()
    assert (layer.tails > 0).any()
    ends = layer.knots_x[:, [0, -1]].T
    far = ends * torch.tensor([[1.0], [3.0]]) - torch.tensor([[7.0], [-7.0]])
    middle = torch.tensor([[2.0, 0.3, 20.0], [0.7, -0.3, 0.5]])
    x = torch.cat([layer.knots_x.T[1:6], ends, far, middle]).requires_grad_()
    z, log_det = layer(x)
    slope = torch.autograd.grad(z.sum(), x, create_graph=True)[0]
    torch.testing.assert_close(slope.log().sum(-1), log_det)
    off_knots = x[-4:].detach().requires_grad_()
    assert torch.autograd.gradcheck(layer, (off_knots,))
    assert torch.autograd.gradgradcheck(layer, (off_knots,))
    back, inverse_det = layer.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_det, -log_det)


def test_the_map_is_once_continuously_differentiable():
    layer = fitted()
    for k in range(int(layer.count.min())):
        knots = layer.knots_x[:, k]
        sides = [knots - 1e-9, knots, knots + 1e-9]
        slopes = [layer(side)[1] for side in sides]
        for one in slopes[::2]:
            torch.testing.assert_close(one, slopes[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_numbers_far_outside_overflow_nowhere(sign):
    layer = fitted().float()
    x = sign * torch.tensor([[1e4], [1e15], [1e30]]).expand(3, 3).clone().requires_grad_()
    z, log_det = layer(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert (sign * z.diff(dim=0) > 0).all()
    (gradient,) = torch.autograd.grad(log_det.sum(), x)
    assert gradient.isfinite().all()
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=1e-3, atol=0)
    assert layer.inverse(sign * torch.full((1, 3), 50.0))[0].isfinite().all()


def test_a_gap_between_two_clusters_holds_next_to_no_mass():
    def draw(n, seed):
        side = normals(n, 1, seed + 1).sign()
        return normals(n, 1, seed, torch.float64) + 500 * side

    flow = initialized(flow_of(Standardize(1), Gaussianize(1)), draw(10_000, 0))
    y = draw(50_000, 10)
    exact = scipy.stats.norm.logpdf(y.abs().numpy() - 500).mean() - math.log(2)
    assert exact - flow.log_prob(y).mean().item() < 0.018
    middle = flow.cdf(torch.tensor([[-490.0], [490.0]], dtype=torch.float64))
    assert middle.diff() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_gaps_leave_clusters_as_they_are_up_to_one_scale(dtype):
    generator = torch.Generator().manual_seed(0)
    normal, n = torch.randn(3000, 1, generator=generator, dtype=torch.float64), 1000
    x = (normal + torch.tensor([-400.0, 0.0, 900.0]).repeat_interleave(n).unsqueeze(1)).to(dtype)
    layer = started(ShortenGaps(1), x)
    z, log_det = layer(x)
    assert abs(float(z.double().mean())) < 1e-4
    assert abs(float(z.double().std(correction=0)) - 1) < 1e-4
    # One slope in all clusters, but not between them.
    slope = float(log_det[0].exp())
    torch.testing.assert_close(log_det, log_det[:1].expand_as(log_det), atol=1e-4, rtol=0)
    clusters, images = x.double().split(n), z.double().split(n)
    for a, b in zip(clusters, images, strict=True):
        moved = b - slope * a
        assert float(moved.max() - moved.min()) < 1e-3 * slope
    for k in (0, 1):
        low, high = clusters[k].sort(0).values[-30:], clusters[k + 1].sort(0).values[:30]
        span = max(float(low[-1] - low[0]), float(high[-1] - high[0]))
        gap = float(images[k + 1].min() - images[k].max())
        assert gap == pytest.approx(3 * slope * span, rel=1e-3)
        middle = torch.tensor([[float(low[-1] + high[0]) / 2]], dtype=dtype)
        assert layer(middle)[1] < log_det[0] - 3
    torch.testing.assert_close(layer.inverse(z)[0], x, atol=1e-3, rtol=1e-5)


def test_data_without_wide_gaps_are_left_as_they_are():
    rng = np.random.default_rng(0)
    rounded, outliers = rng.normal(size=2000).round(1), rng.normal(size=2000)
    outliers[:3] += 1e6
    columns = rng.standard_cauchy(2000), rng.exponential(size=2000), rounded, outliers
    x = torch.tensor(np.stack(columns, 1))
    layer = started(ShortenGaps(4), x)
    assert not layer.count.any()
    assert torch.equal(layer(x)[0], x)
    few = started(ShortenGaps(1), torch.tensor([[0.0], [1.0], [900.0]]))
    assert not few.count.any()


def test_a_flow_that_starts_at_far_clusters_sees_them_near():
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    x[:500] += 1000
    for start in ("gaussian", "latent"):
        flow = flowkit.coupling_flow(2, start=start, seed=0)
        initialized(flow, x)
        seen = flow.transform[1](flow.transform[0](x)[0])[0]
        assert seen[:500].std(0).min() > 0.1


def test_nearly_collinear_columns_are_left_to_the_covariance():
    def draw(n, seed):
        x = normals(n, 5, seed, torch.float64)
        return (x[:, :1] + 1e-4 * x[:, 1:]).float()

    x, y = draw(1000, 0), draw(20_000, 1)
    flow = initialized(copula(4), x)
    assert not flow.transform[1].count.any()
    assert abs(flow.log_prob(y).double().mean().item() - gaussian_score(x, y)) < 0.1


def test_a_skewed_feature_beside_collinear_ones_keeps_its_map():
    x = normals(2000, 4)
    flat = torch.special.ndtr(x[:, 0])
    x = torch.stack([flat, flat + 1e-4 * x[:, 1], x[:, 2].exp(), x[:, 3].exp()], -1)
    flow = initialized(copula(4), x)
    assert (flow.transform[1].count > 2).tolist() == [False, False, True, True]


def test_three_clusters_of_very_different_distance_are_resolved():
    centres, shares = torch.tensor([-500.0, 0.0, 5e4]).double(), torch.tensor([0.1, 0.6, 0.3])

    def draw(n, seed):
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(shares, n, replacement=True, generator=generator)
        return normals(n, 1, seed + 1, torch.float64) + centres[which].unsqueeze(-1)

    flow = initialized(flow_of(Standardize(1), Gaussianize(1)), draw(1000, 0))
    y = draw(50_000, 10)
    exact = (torch.distributions.Normal(centres, 1.0).log_prob(y) + shares.log()).logsumexp(-1)
    assert exact.mean() - flow.log_prob(y).mean() < 0.1


def test_a_frequent_value_neither_prevents_nor_earns_a_spline():
    x, y = (normals(n, 1, seed).clamp_max(1.2) for n, seed in ((3000, 0), (30_000, 1)))
    flow = initialized(copula(1), x)
    assert flow.transform[1].count > 2
    gaussian = torch.distributions.Normal(x.mean(), x.std())
    free = (y < 1.2).flatten()
    gain = flow.log_prob(y) - gaussian.log_prob(y).squeeze(-1)
    assert gain[free].mean() > 0.01
    assert gain[~free].mean().abs() < 0.2
    # A value off the rest, which a spline would cut off from it.
    alone = torch.where(normals(3000, 1) < -1, 0.0, (3 * torch.rand(3000, 1)).exp())
    assert started(Gaussianize(1), alone).count == 2


@pytest.mark.parametrize("n", [100, 300])
def test_correlated_normals_get_their_gaussian(n):
    mixing = normals(6, 6, 7)
    x, y = normals(n, 6) @ mixing, normals(20_000, 6, 1) @ mixing
    flow = initialized(copula(6), x)
    assert flow.log_prob(y).mean().item() > gaussian_score(x, y) - 0.1


def test_a_gaussian_copula_is_recovered():
    def draw(n, seed):
        x = normals(n, 2, seed)
        x = torch.stack([x[:, 0], 0.8 * x[:, 0] + 0.6 * x[:, 1]], -1)
        return x, torch.stack([x[:, 0].exp(), torch.special.ndtr(x[:, 1])], -1)

    flow = initialized(copula(2), draw(10_000, 0)[1])
    z, y = draw(50_000, 1)
    latent = scipy.stats.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]]).logpdf(z)
    slopes = -z[:, 0] + 0.5 * z[:, 1] ** 2 + 0.5 * math.log(2 * math.pi)
    exact = (torch.tensor(latent) + slopes).mean().item()
    assert abs(exact - flow.log_prob(y).mean().item()) < 0.02


def test_copies_of_samples_are_no_evidence():
    x = normals(60, 1).exp()
    copies = x.repeat_interleave(50, 0)
    alone, often = (initialized(flow_of(Standardize(1), Gaussianize(1)), v) for v in (x, copies))
    assert often.transform[1].count <= 6
    y = normals(20_000, 1, 1).exp()
    assert often.log_prob(y).mean() > alone.log_prob(y).mean() - 0.2


@pytest.mark.parametrize("values", ["few", "counts", "zeros", "capped"])
def test_ties_spoil_nothing(values):
    x = normals(3000, 1)
    x = {
        "few": (x > 0).float() + (x > 1),
        "counts": (30 * x).round(),
        "zeros": x.clamp_min(0),
        "capped": x.clamp_max(1.2),
    }[values]
    layer = started(Gaussianize(1), x)
    z, log_det = layer(x)
    assert z.isfinite().all()
    # The slope at knots is at most 1e5 in units of the features.
    assert (log_det < math.log(1e5 / x.std()) + 5).all()
    assert initialized(copula(1), x).sample(1000).isfinite().all()
    if values == "few":
        assert layer.count == 2


def test_few_samples_leave_the_fitted_gaussian():
    x = normals(45, 2).exp()
    layer = started(Gaussianize(2), x)
    torch.testing.assert_close(layer(x)[0], (x - x.mean(0)) / x.std(0, unbiased=False))


def test_large_offsets_lose_nothing_behind_standardize():
    x, y = (1e6 + normals(2000, 1, seed, torch.float64) for seed in (0, 1))
    flow = initialized(copula(1), x.float())
    exact = scipy.stats.norm.logpdf((y - 1e6).numpy()).mean()
    assert abs(flow.log_prob(y.float()).mean().item() - exact) < 0.02


def test_whitening_is_the_exact_covariance_where_samples_allow_it():
    x = normals(5000, 3, dtype=torch.float64) @ normals(3, 3, 1, torch.float64)
    layer = started(Whiten(3).double(), x)
    z = layer(x)[0]
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(3).double(), atol=2e-3, rtol=0)


def test_whitening_of_few_samples_in_many_dimensions_is_diagonal_or_shrunk():
    x, y = normals(60, 40), normals(5000, 40, 1)
    flow = initialized(flow_of(Whiten(40)), x)
    # The exact one would be below -100.
    assert flow.log_prob(y).mean().item() > StandardNormal(40).log_prob(y).mean().item() - 2


def test_whitening_given_a_context_is_linear_regression():
    context = normals(4000, 2, 3, torch.float64)
    slopes = torch.tensor([[2.0, -1.0], [0.5, 3.0], [0.0, 0.0]], dtype=torch.float64)
    noise = normals(4000, 3, 4, torch.float64) @ normals(3, 3, 5, torch.float64)
    x = 5 + context @ slopes.T + noise
    layer = Whiten(3, context=2).double()
    layer.initialize(x, context)
    design = np.column_stack([np.ones(4000), context.numpy()])
    exact = np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    torch.testing.assert_close(layer.coefficients, torch.tensor(exact[1:].T))
    torch.testing.assert_close(layer.mean, torch.tensor(exact[0]))
    z, log_det = layer(x, context)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(3).double(), atol=2e-2, rtol=0)
    back, inverse_det = layer.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_det, -log_det)
    torch.testing.assert_close(layer.unnormalized(x, context)[0], z)


def test_a_context_of_noise_is_not_regressed_on():
    x, context = normals(60, 1, 1), normals(60, 40, 2)
    y, other = normals(5000, 1, 3), normals(5000, 40, 4)
    flow = flow_of(Whiten(1, context=40))
    flow.initialize(x, context)
    score = flow.log_prob(y, other).mean().item()
    assert score > StandardNormal(1).log_prob(y).mean().item() - 0.1


STARTS = {
    "copula": (Standardize, Gaussianize, Whiten),
    "gaussian": (Standardize, Whiten),
    "margins": (Standardize, Gaussianize),
    "standardize": (Standardize,),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("recipe", [coupling_flow, autoregressive_flow, kernelised_flow])
def test_untrained_recipes_have_the_density_of_their_start(recipe, start):
    x = (normals(500, 3) @ normals(3, 3, 1)).exp()
    flow = initialized(recipe(3, layers=2, start=start), x)
    alone = initialized(flow_of(*(kind(3) for kind in STARTS[start])), x)
    torch.testing.assert_close(flow.log_prob(x), alone.log_prob(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("start", ["margins", "standardize"])
def test_an_untrained_elementwise_flow_has_independent_margins(start):
    x = (normals(500, 2) @ normals(2, 2, 1)).exp()
    flow = initialized(elementwise_flow(2, start=start), x)
    alone = initialized(flow_of(*(kind(2) for kind in STARTS[start])), x)
    torch.testing.assert_close(flow.log_prob(x), alone.log_prob(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("recipe", [coupling_flow, autoregressive_flow])
@pytest.mark.parametrize("features", [1, 3])
def test_untrained_conditional_flows_are_a_linear_regression(recipe, features):
    def draw(n, seed):
        context = 1e3 + 5 * normals(n, 2, seed)
        noise = normals(n, features, seed + 1) @ normals(features, features, 11)
        return 2 + 0.3 * context @ normals(2, features, 12) + noise, context

    (x, context), (y, other) = draw(2000, 0), draw(20_000, 5)
    flow = recipe(features, context=2, layers=2, start="gaussian")
    flow.initialize(x, context)
    mixing = normals(features, features, 11).double()
    residuals = y.double() - 2 - 0.3 * other.double() @ normals(2, features, 12).double()
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(features).double(), mixing.T @ mixing
    ).log_prob(residuals)
    assert abs((exact - flow.log_prob(y, other)).mean().item()) < 0.03


def test_what_is_linear_in_the_context_stays_linear():
    def draw(n, seed):
        context = 3 * normals(n, 1, seed).sign() + 0.3 * normals(n, 1, seed + 1)
        return context + 0.1 * normals(n, 1, seed + 2), context

    flow = coupling_flow(1, context=1, layers=1)
    flow.initialize(*draw(2000, 0))
    y, context = draw(20_000, 5)
    exact = torch.distributions.Normal(context, 0.1).log_prob(y).mean()
    assert abs((flow.log_prob(y, context).mean() - exact).item()) < 0.02


def test_positive_data_have_positive_samples_from_any_start():
    x = normals(2000, 2).abs()
    flow = initialized(coupling_flow(2, lower=0, layers=2), x)
    sample = flow.sample(10_000)
    assert sample.isfinite().all()
    assert (sample > 0).all()
    assert flow.support.lower.tolist() == [0, 0]
    assert flow.log_prob(-x).max() == -math.inf


def test_a_started_flow_is_stored_to_the_bit(tmp_path):
    x = normals(2000, 2).exp()
    flow = coupling_flow(2, context=1, layers=1)
    flow.initialize(x, normals(2000, 1, 1))
    flowkit.save(flow, tmp_path / "flow.safetensors")
    again = flowkit.load(tmp_path / "flow.safetensors")
    assert (again.transform[2].count > 2).all()
    assert torch.equal(again.log_prob(x, x[:, :1]), flow.log_prob(x, x[:, :1]))
