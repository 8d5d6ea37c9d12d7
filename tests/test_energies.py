"""Energies: constants by quadrature, samples by their moments, forces by autodiff."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flowkit.bases import StandardNormal
from flowkit.energies import (
    CallableEnergy,
    ConditionalEnergy,
    Energy,
    Interpolation,
    NegativeLogProb,
)
from flowkit.energies.base import as_energy
from flowkit.errors import ArgumentError, DataError, NotInvertibleError, ShapeError
from flowkit.stochastic import HMC, MALA, Metropolis
from flowkit.toys import DoubleWell, Funnel, GaussianMixture, Picture, Ring

HEIGHTS = np.array([[1.0, 2.0, 0.5], [0.2, 4.0, 1.0], [3.0, 0.1, 2.0], [1.0, 1.0, 5.0]])
PLANE = {
    "double well": DoubleWell(),
    "tilted well": DoubleWell(a=1.5, b=-2.0, c=0.3),
    "mixture": GaussianMixture([[0.0, 1.0], [2.0, -1.0]], [0.5, 1.2], weights=[1.0, 3.0]),
    "funnel": Funnel(2, scale=1.0),
    "ring": Ring(radius=2.0, width=0.4),
    "narrow ring": Ring(radius=0.5, width=1.0),
    "picture": Picture(HEIGHTS, stiffness=40.0),
}


def grid(reach, points=1601):
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), (line[1] - line[0]).item() ** 2


@pytest.mark.parametrize("name", PLANE)
def test_log_normalizers_against_quadrature(name):
    energy = PLANE[name].double()
    x, area = grid(12.0 if name == "funnel" else 8.0)
    mass = torch.exp(-energy(x)).sum() * area
    # The funnel's neck and the picture's kinks limit the rule, not the constant.
    tolerance = {"funnel": 2e-2, "picture": 1e-4}.get(name, 1e-6)
    assert abs(mass.log().item() - float(energy.log_normalizer())) < tolerance


@pytest.mark.parametrize("name", PLANE)
def test_samples_follow_the_energy(name):
    # Means of functions over samples against quadrature, within five standard errors.
    energy = PLANE[name].double()
    samples = energy.sample(200_000, torch.Generator().manual_seed(0))
    assert samples.shape == (200_000, 2)
    x, _ = grid(12.0 if name == "funnel" else 8.0)
    weight = torch.softmax(-energy(x), 0)
    for function in (
        lambda v: v[..., 0], lambda v: v[..., 1], lambda v: v.prod(-1).tanh(),
        lambda v: v[..., 0].square().clamp(max=9), lambda v: (v[..., 1] > 0.3).double(),
    ):  # fmt: skip
        got = function(samples)
        exact = (weight * function(x)).sum()
        slack = {"funnel": 5e-3}.get(name, 1e-3)
        assert abs(got.mean() - exact) < 5 * got.std() / len(got) ** 0.5 + slack


@pytest.mark.parametrize("name", PLANE)
def test_forces_against_central_differences(name):
    energy = PLANE[name].double()
    x = energy.sample(20, torch.Generator().manual_seed(1))
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-6
        difference = -(energy(x + step) - energy(x - step)) / 2e-6
        assert torch.allclose(energy.force(x)[:, i], difference, rtol=1e-4, atol=1e-4)


def test_the_published_constants_of_the_double_well():
    well = DoubleWell(a=-0.5, b=-6.0, c=1.0)
    assert abs(well.log_normalizer() - 10.293479707) < 1e-9
    assert abs(DoubleWell(1).log_normalizer() - 9.374541174) < 1e-9
    right = well.probability_right()
    assert abs(right - 0.84430709) < 1e-8
    assert abs(math.log(right / (1 - right)) - 1.690631) < 1e-6
    line = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    lowest = well(torch.stack([line, 0 * line], -1)).min()
    assert abs(lowest + 9.87117) < 1e-5
    x = np.linspace(-2, 2, 9)
    mass = integrate.quad(lambda v: math.exp(-well.profile(np.array(v))), -8, 8, points=[-2, 2])
    assert abs(mass[0] - 1) < 1e-9
    assert well.profile(x).shape == (9,)


@pytest.mark.parametrize(("a", "b", "c"), [(-50.0, 0.0, 1e-6), (-1e4, 0.0, 1.0), (3.0, -0.5, 2.0)])
def test_the_quadrature_finds_every_well(a, b, c):
    well = DoubleWell(1, a=a, b=b, c=c)
    roots = np.roots([4 * c, 0, 2 * b, a])
    centre = float(roots[np.argmin(np.abs(roots.imag))].real)
    lowest = float(well(torch.tensor([centre], dtype=torch.float64)))
    width = 1 / math.sqrt(12 * c * centre**2 + 2 * b) if 12 * c * centre**2 + 2 * b > 0 else 1.0

    def density(v):
        return math.exp(lowest - (a * v + b * v * v + c * v**4))

    mass, _ = integrate.quad(
        density, centre - 40 * width - 3, centre + 40 * width + 3, points=[centre], limit=500
    )
    assert abs(well.log_normalizer() - (math.log(mass) - lowest)) < 1e-6 * abs(lowest) + 1e-6


def test_the_funnel_is_a_product_of_normals():
    energy = Funnel(4, scale=3.0).double()
    x = energy.sample(50, torch.Generator().manual_seed(0))
    first = stats.norm(0, 3).logpdf(x[:, 0])
    rest = stats.norm(0, np.exp(0.5 * x[:, :1].numpy())).logpdf(x[:, 1:]).sum(-1)
    assert np.abs(energy(x).numpy() + first + rest).max() < 1e-10


def test_a_picture_reads_its_pixels():
    picture = Picture(HEIGHTS).double()
    across, up = picture.half_sizes
    assert (across, up) == (pytest.approx(2 / 3), 1.0)
    corners = torch.tensor(
        [[-across, up], [across, up], [-across, -up], [across, -up]], dtype=torch.float64
    )
    expected = torch.tensor(HEIGHTS[[0, 0, -1, -1], [0, -1, 0, -1]])
    assert torch.allclose((-picture(corners)).exp(), expected)
    # Two pixels are a bilinear step apart, and the spring pulls outside.
    beyond = picture(torch.tensor([across + 0.1, up], dtype=torch.float64))
    assert abs(beyond - (0.5 * 1e4 * 0.01 - math.log(0.5))) < 1e-9
    assert picture(torch.tensor([math.nan, 0.0], dtype=torch.float64)).isnan()


def test_interpolation_between_energies():
    start, end = NegativeLogProb(StandardNormal(2)), DoubleWell()
    x = torch.randn(5, 2)
    for fraction in (0.0, 0.3, 1.0):
        between = Interpolation(start, end, fraction)
        assert torch.allclose(between(x), (1 - fraction) * start(x) + fraction * end(x))
    learned = Interpolation(start, end, 0.3, learn=True)
    assert abs(learned.fraction - 0.3) < 1e-6
    learned(x).sum().backward()
    assert learned.raw_fraction.grad is not None
    # At an end the other energy may be infinite.
    wall = CallableEnergy(lambda x: x.new_full(x.shape[:-1], math.inf), 2)
    assert Interpolation(start, wall, 0.0)(x).isfinite().all()


def test_an_energy_from_a_function_with_a_unit():
    spring = CallableEnergy(lambda x: 5.0 * x.square().sum(-1), 3, kT=2.5)
    x = torch.randn(4, 3)
    assert torch.allclose(spring(x), 2.0 * x.square().sum(-1))
    assert torch.allclose(spring.force(x), -4.0 * x)


def test_an_energy_with_a_force_of_its_own():
    def outside(x):
        return torch.as_tensor(5.0 * np.square(x.detach().numpy()).sum(-1))

    given = CallableEnergy(outside, 3, force=lambda x: -10.0 * x, kT=2.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    energy, force = given.energy_and_force(x)
    assert torch.allclose(energy, 2.0 * x.square().sum(-1))
    assert torch.allclose(force, -4.0 * x)
    leaf = x.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(given(leaf).sum(), leaf)[0], 4.0 * x)
    with pytest.raises(DataError, match="no gradient of its own; remedy"):
        given.force(leaf).sum().backward()
    with torch.no_grad():
        assert torch.allclose(given(x), energy)


@pytest.mark.parametrize("kind", [MALA, HMC, Metropolis])
def test_chains_fill_in_what_is_missing(kind):
    # A normal of three coordinates, the middle one known: mean and covariance of the others.
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.5, 0.4, 0.7]]).double()
    covariance = mixing @ mixing.mT
    precision = torch.linalg.inv(covariance)
    joint = CallableEnergy(lambda x: 0.5 * (x @ precision * x).sum(-1), 3)
    rest = ConditionalEnergy(joint, [True, False, True])
    known = torch.full((20_000, 1), 1.5, dtype=torch.float64)
    step = {MALA: 0.2, HMC: 0.3, Metropolis: 0.7}[kind]
    layer = kind(rest, steps=60, step_size=step).double()
    start = torch.zeros(20_000, 2, dtype=torch.float64)
    with torch.no_grad():
        x, _ = layer(start, known, generator=torch.Generator().manual_seed(0))
    free, middle = [0, 2], [1]
    gain = covariance[free][:, middle] / covariance[1, 1]
    mean = 1.5 * gain[:, 0]
    spread = covariance[free][:, free] - gain @ covariance[middle][:, free]
    error = spread.diagonal().sqrt() / 20_000**0.5
    assert ((x.mean(0) - mean).abs() < 5 * error).all()
    assert (torch.cov(x.mT) - spread).abs().max() < 5 * spread.diagonal().max() * (
        2 / 20_000
    ) ** 0.5
    whole = rest.join(x[:2], known[:2])
    assert torch.equal(whole[:, 1:2], known[:2])
    assert torch.equal(whole[:, [0, 2]], x[:2])


def test_energies_say_what_they_expect():
    for call, error, words in (
        (
            lambda: DoubleWell()(torch.zeros(3)),
            ShapeError,
            r"expected x \(\.\.\., 2\), got \(3,\)",
        ),
        (
            lambda: CallableEnergy(lambda x: x, 2)(torch.zeros(4, 2)),
            DataError,
            "one number per sample",
        ),
        (lambda: CallableEnergy(3, 2), ArgumentError, "function as a function"),
        (lambda: CallableEnergy(torch.sum, 2, force=3), ArgumentError, "force as a function"),
        (lambda: CallableEnergy(torch.sum, -2), ShapeError, "sizes >= 0"),
        (lambda: NegativeLogProb(3), ArgumentError, "a density with log_prob"),
        (lambda: GaussianMixture([[1.0], [1.0, 2.0]]), ArgumentError, "means"),
        (lambda: CallableEnergy(torch.sum, 2, kT=0.0), ArgumentError, "kT as a finite number > 0"),
        (
            lambda: CallableEnergy(lambda x: x.sum(-1).detach(), 2).force(torch.zeros(2)),
            DataError,
            "carries no gradient",
        ),
        (
            lambda: CallableEnergy(lambda x: x.sum(-1), 2, force=lambda x: x[..., 0]).force(
                torch.zeros(3, 2)
            ),
            DataError,
            "the force returned .* one number per coordinate",
        ),
        (lambda: DoubleWell(c=-1.0), ArgumentError, "c as a finite number > 0"),
        (lambda: DoubleWell(0), ArgumentError, "features as an integer >= 1"),
        (lambda: Funnel(1), ArgumentError, "features as an integer >= 2"),
        (lambda: GaussianMixture([1.0, 2.0]), ArgumentError, "means"),
        (lambda: GaussianMixture([[1.0]], [0.0]), ArgumentError, "scales as a finite number > 0"),
        (lambda: Picture(np.ones((2, 2, 3))), ArgumentError, r"heights as \(rows, columns\)"),
        (lambda: Picture(np.zeros((2, 2))), ArgumentError, "some background"),
        (lambda: Picture(np.ones((2, 2)), stiffness=-1), ArgumentError, "stiffness"),
        (lambda: Interpolation(DoubleWell(), Ring(), 1.5), ArgumentError, ">= 0 and <= 1"),
        (lambda: Interpolation(DoubleWell(), Ring(), 1, learn=True), ArgumentError, "> 0 and < 1"),
        (lambda: Interpolation(DoubleWell(), Funnel(3), 0.5), ShapeError, "same events"),
        (lambda: Interpolation(DoubleWell(), torch.sum, 0.5), ArgumentError, "end as an Energy"),
        (lambda: as_energy(DoubleWell(), (3,)), ShapeError, "expected"),
        (lambda: ConditionalEnergy(DoubleWell(), [True]), ArgumentError, r"2 boolean\(s\)"),
        (
            lambda: ConditionalEnergy(DoubleWell(), [True, True]),
            ArgumentError,
            "some coordinates free",
        ),
        (
            lambda: CallableEnergy(lambda x, c: x[..., 0], 2, context=1)(torch.zeros(2)),
            ShapeError,
            "expected context",
        ),
        (lambda: Energy((2,)).log_normalizer(), NotInvertibleError, "is not known"),
        (lambda: Energy((2,)).sample(3), NotInvertibleError, "no exact sampler"),
    ):
        with pytest.raises(error, match=words):
            call()
