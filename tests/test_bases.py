"""Bases against scipy.stats; samples by Kolmogorov-Smirnov tests on fixed seeds.

A sample is rejected at p < 1e-5, which for a correct sampler happens once in 1e5 seeds (4.4
standard errors of a normal).
"""

import math

import numpy as np
import pytest
import torch
from registry import BASES
from scipy import integrate, stats
from torch.autograd import gradcheck

from flowkit.bases import (
    DiagonalNormal,
    Logistic,
    NormalMixture,
    StandardNormal,
    StudentT,
    Uniform,
)
from flowkit.errors import DataError, NotInvertibleError, ShapeError

P_VALUE = 1e-5


def diagonal():
    base = DiagonalNormal(1)
    with torch.no_grad():
        base.params.copy_(torch.tensor([0.7, 0.4]))
    return base


def diagonal_oracle():
    return stats.norm(0.7, math.exp(0.4 / (1 + 0.04 * math.tanh(0.08))))


def mixture():
    base = NormalMixture(1, components=2)
    with torch.no_grad():
        base.logits.copy_(torch.tensor([0.0, math.log(3.0)]))
        base.means.copy_(torch.tensor([[-2.0], [1.0]]))
        base.log_scales.copy_(torch.tensor([[math.log(0.5)], [0.0]]))
    return base


class MixtureOracle:
    """A quarter of N(-2, 0.5) and three quarters of N(1, 1)."""

    parts = ((0.25, stats.norm(-2, 0.5)), (0.75, stats.norm(1, 1)))

    def cdf(self, z):
        return sum(w * part.cdf(z) for w, part in self.parts)

    def sf(self, z):
        return sum(w * part.sf(z) for w, part in self.parts)

    def logpdf(self, z):
        return np.log(sum(w * part.pdf(z) for w, part in self.parts))

    def logcdf(self, z):
        return np.log(self.cdf(z))

    def logsf(self, z):
        return np.log(self.sf(z))


ORACLES = {
    "StandardNormal": (lambda: StandardNormal(1), stats.norm),
    "DiagonalNormal": (diagonal, diagonal_oracle()),
    "NormalMixture": (mixture, MixtureOracle()),
    "Logistic": (lambda: Logistic(1), stats.logistic),
    "Uniform": (lambda: Uniform(1, lower=-1.0, upper=3.0), stats.uniform(-1, 4)),
    "StudentT": (lambda: StudentT(1, df=2.5), stats.t(2.5)),
}
WITH_CDF = [name for name in ORACLES if name != "StudentT"]


@pytest.mark.parametrize("name", ORACLES)
def test_log_prob_is_that_of_scipy(name):
    make, oracle = ORACLES[name]
    z = torch.linspace(-0.99, 2.99, 41, dtype=torch.float64).unsqueeze(-1)
    got = make().double().log_prob(z).detach()
    np.testing.assert_allclose(got, oracle.logpdf(z.squeeze(-1).numpy()), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", WITH_CDF)
def test_distribution_functions_are_those_of_scipy(name):
    make, oracle = ORACLES[name]
    base = make().double()
    z = torch.linspace(-0.99, 2.99, 41, dtype=torch.float64).unsqueeze(-1)
    for got, want in (
        (base.log_cdf(z), oracle.logcdf(z.numpy())),
        (base.log_survival(z), oracle.logsf(z.numpy())),
        (base.cdf(z), oracle.cdf(z.numpy())),
    ):
        assert got.shape == z.shape
        np.testing.assert_allclose(got.detach(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_CDF)
def test_quantiles_invert_the_distribution_function(name):
    base = ORACLES[name][0]().double()
    q = torch.tensor([1e-6, 0.01, 0.25, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(base.cdf(base.icdf(q)), q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["StandardNormal", "DiagonalNormal", "NormalMixture", "Logistic"])
def test_tails_keep_their_digits_far_out(name):
    base = ORACLES[name][0]()
    z = torch.tensor([[30.0]])
    below, above = base.log_cdf(-z).item(), base.log_survival(z).item()
    assert math.isfinite(below)
    assert math.isfinite(above)
    assert max(below, above) < -20


@pytest.mark.parametrize("name", ORACLES)
def test_samples_follow_the_distribution(name):
    make, oracle = ORACLES[name]
    draws = make().sample((20_000,), generator=torch.Generator().manual_seed(7)).detach()
    assert stats.kstest(draws.squeeze(-1).numpy(), oracle.cdf).pvalue > P_VALUE


@pytest.mark.parametrize("name", BASES)
def test_a_generator_reproduces_and_leaves_the_global_state_alone(name):
    base = BASES[name]()
    context = torch.randn(4, base.context_size) if base.context_size else None
    state = torch.get_rng_state()
    first = base.sample((3,), context, torch.Generator().manual_seed(1))
    again = base.sample((3,), context, torch.Generator().manual_seed(1))
    other = base.sample((3,), context, torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BASES)
def test_shapes_and_dtypes(name):
    base = BASES[name]().double()
    size = base.context_size
    for shape in [(), (0,), (5,), (2, 3)]:
        context = torch.randn(4, size).double() if size else None
        z = base.sample(shape, context)
        batch = (*shape, *((4,) if size else ()))
        assert z.shape == (*batch, *base.event_shape)
        assert z.dtype == torch.float64
        log_prob = base.log_prob(z, context)
        assert log_prob.shape == batch
        assert log_prob.dtype == torch.float64
        assert bool(torch.isfinite(log_prob).all())


class LogProb(torch.nn.Module):
    """Makes log_prob the forward of a module, for functional_call."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, z, context):
        return self.base.log_prob(z, context)


@pytest.mark.parametrize("name", sorted(set(BASES) - {"StandardNormal-image"}))
def test_log_prob_is_differentiable_in_z_and_parameters(name):
    module = LogProb(BASES[name]().double())
    z = torch.tensor([[0.3, -0.8], [1.2, 0.1]], dtype=torch.float64, requires_grad=True)
    size = module.base.context_size
    context = torch.randn(2, size).double() if size else None
    names = [key for key, _ in module.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]

    def log_prob(z, *values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, parameters, (z, context))

    assert gradcheck(log_prob, (z, *values))


@pytest.mark.parametrize("name", BASES)
def test_state_survives_a_file(name):
    base, fresh = BASES[name](), BASES[name]()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.5)
    fresh.load_state_dict(base.state_dict())
    z = torch.rand(3, *base.event_shape)
    context = torch.randn(3, base.context_size) if base.context_size else None
    assert torch.equal(base.log_prob(z, context), fresh.log_prob(z, context))


@pytest.mark.parametrize(
    "make", [lambda: DiagonalNormal(2), lambda: StudentT(2), lambda: DiagonalNormal(2, context=1)]
)
def test_samples_carry_gradients_to_the_parameters(make):
    base = make()
    context = torch.ones(1, 1) if base.context_size else None
    base.sample((8,), context).square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in base.parameters())


def test_the_gradient_of_student_samples_is_that_of_the_variance():
    # Var = df / (df - 2), so d Var / d df = -2 / (df - 2)^2 = -1 / 32 at df = 10. A
    # thousand blocks of draws give the standard error; 5 of them.
    base = StudentT(1, df=10.0).double()
    z = base.sample((1000, 100), generator=torch.Generator().manual_seed(0))
    block_means = z.square().mean((1, 2))
    eye = torch.eye(1000, dtype=torch.float64)
    (slopes,) = torch.autograd.grad(block_means, base.raw_df, eye, is_grads_batched=True)
    slopes = slopes / torch.sigmoid(base.raw_df.detach())
    assert abs(slopes.mean().item() + 1 / 32) < 5 * slopes.std().item() / math.sqrt(1000)


@pytest.mark.parametrize("df", [0.5, 1.0, 3.0, 200.0])
def test_student_t_integrates_to_one_and_never_overflows(df):
    base = StudentT(1, df=df, learn=False).double()

    def density(z):
        return base.log_prob(torch.tensor([z], dtype=torch.float64)).exp().item()

    mass = 2 * integrate.quad(density, 0, np.inf, limit=200)[0]
    assert mass == pytest.approx(1.0, abs=1e-5)
    z = torch.tensor([[1e300], [-1e300], [0.0]], dtype=torch.float64, requires_grad=True)
    log_prob = base.log_prob(z)
    log_prob.sum().backward()
    assert bool(torch.isfinite(log_prob).all() & torch.isfinite(z.grad).all())


def test_the_context_moves_a_diagonal_normal_as_its_affine_map_says():
    base = DiagonalNormal(1, context=2).double()
    with torch.no_grad():
        base.from_context.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
        base.from_context.bias.copy_(torch.tensor([3.0, 0.0]))
    context = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    oracle = stats.norm(6.0, math.exp(0.5 / (1 + 0.05 * math.tanh(0.1))))
    got = base.log_prob(torch.tensor([[5.0]], dtype=torch.float64), context)
    assert got.item() == pytest.approx(oracle.logpdf(5.0), rel=1e-12)


def test_uniform_has_no_density_outside_and_no_nan_gradient():
    base = Uniform(2, lower=0.0, upper=2.0)
    z = torch.tensor([[1.0, 1.0], [1.0, 3.0]], requires_grad=True)
    log_prob = base.log_prob(z)
    assert log_prob.tolist() == [pytest.approx(-2 * math.log(2)), -math.inf]
    log_prob[0].backward()
    assert bool((z.grad == 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Uniform(1, lower=1.0, upper=1.0),
            "Uniform expected upper as a finite number > 1, got 1.0",
        ),
        (
            lambda: NormalMixture(1, components=0),
            "NormalMixture expected components as an integer >= 1",
        ),
        (lambda: StudentT(2, df=[1.0, -1.0]), "StudentT expected df as a finite number > 0"),
        (lambda: StudentT(3, df=[1.0, 2.0]), "one for each of 3 feature"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_base_cannot_do_is_said():
    with pytest.raises(NotInvertibleError, match="NormalMixture has no distribution function"):
        NormalMixture(2).log_cdf(torch.zeros(1, 2))
    with pytest.raises(NotInvertibleError, match="NormalMixture has no quantile function"):
        NormalMixture(2).icdf(torch.full((1, 2), 0.5))


def test_student_t_keeps_its_digits_for_many_degrees_of_freedom():
    z = torch.linspace(-4, 4, 9).unsqueeze(-1)
    for df in (1.0, 39.0, 41.0, 1e3, 1e6, 1e8):
        exact = stats.t(df).logpdf(z.squeeze(-1).double().numpy())
        got = StudentT(1, df=df).log_prob(z).detach().double().numpy()
        np.testing.assert_allclose(got, exact, atol=2e-5)
        double = StudentT(1, df=df, learn=False).double()
        exact = stats.t(double.df.item()).logpdf(z.squeeze(-1).double().numpy())
        np.testing.assert_allclose(double.log_prob(z.double()).numpy(), exact, atol=1e-7)


def test_quantiles_of_a_mixture_reach_into_both_tails_and_carry_gradients():
    base = NormalMixture(1, components=3).double()
    q = torch.tensor([[0.0], [1e-12], [0.3], [0.7], [1 - 1e-9], [1.0]], dtype=torch.float64)
    z = base.icdf(q)
    assert z[0].item() == -math.inf
    assert z[-1].item() == math.inf
    torch.testing.assert_close(base.log_cdf(z[1:4]).exp(), q[1:4], rtol=1e-9, atol=0)
    torch.testing.assert_close(base.log_survival(z[4:5]).exp(), 1 - q[4:5], rtol=1e-9, atol=0)
    inner = q[2:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(base.icdf, inner)
    (slope,) = torch.autograd.grad(base.icdf(inner).sum(), inner)
    torch.testing.assert_close(slope, base.log_prob(z[2:4]).unsqueeze(-1).neg().exp())


def test_uniform_density_of_nan_is_nan():
    value = Uniform(2).log_prob(torch.tensor([[0.5, math.nan], [0.5, 0.5], [2.0, math.inf]]))
    assert value[0].isnan()
    assert value[1:].tolist() == [0.0, -math.inf]


def full_mixture(*, float64=True):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, 4, 4))
    weights, means = np.array([0.2, 0.5, 0.3]), 2 * rng.normal(size=(3, 4))
    covariances = factors @ factors.swapaxes(1, 2) + 0.1 * np.eye(4)
    base = NormalMixture(4, components=3, covariance="full")
    base = base.double() if float64 else base
    base.assign(*map(torch.from_numpy, (weights, means, covariances)))
    return base, weights, means, covariances


def test_a_mixture_of_full_covariances_is_that_of_scipy():
    base, weights, means, covariances = full_mixture()
    x = np.random.default_rng(1).normal(scale=3, size=(50, 4))
    terms = [
        np.log(w) + stats.multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    found = base.log_prob(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, np.logaddexp.reduce(terms), rtol=1e-10)


def test_samples_of_full_covariances_have_their_moments():
    base, weights, means, covariances = full_mixture()
    n = 200_000
    x = base.sample((n,), generator=torch.Generator().manual_seed(0)).detach().numpy()
    mean = weights @ means
    centred = means - mean
    within = np.einsum("k,kij->ij", weights, covariances)
    covariance = within + np.einsum("k,ki,kj->ij", weights, centred, centred)
    error = np.sqrt(np.diag(covariance) / n)
    assert (np.abs(x.mean(0) - mean) < 5 * error).all()
    # The error of a covariance, at most that of products whose fourth moments are normal ones.
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) * 3 / n)
    assert (np.abs(np.cov(x.T) - covariance) < 5 * spread).all()


def test_assigned_to_a_diagonal_mixture_the_variances_count():
    _, *parts = full_mixture()
    base = NormalMixture(4, components=3).double()
    base.assign(*map(torch.from_numpy, parts))
    variances = torch.from_numpy(parts[2]).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(2 * base.log_scales, variances.log())


def test_what_cannot_be_assigned_is_refused():
    base, *parts = full_mixture()
    weights, means, covariances = map(torch.from_numpy, parts)
    with pytest.raises(ShapeError, match=r"means of shape \(3, 4\), got \(3, 3\)"):
        base.assign(weights, means[:, :3], covariances)
    covariances[1] = -covariances[1]
    with pytest.raises(DataError, match=r"component\(s\) \[1\]"):
        base.assign(weights, means, covariances)
