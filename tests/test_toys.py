"""Toys against theory: constants, entropies, scores, samplers."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flowkit.config import build, describe
from flowkit.errors import ArgumentError, DataError, NotInvertibleError, ShapeError
from flowkit.toys import (
    TOYS,
    Checkerboard,
    Circles,
    Funnel,
    GaussianMixture,
    HeavyCopula,
    Multimodal10,
    Picture,
    Ring,
    Sine,
    Swirl,
    TorusRings,
    Toy,
    TwoMoons,
    TwoSpirals,
    make_toy,
)
from flowkit.toys.planar import NoisedShape

PLANAR = [name for name, make in TOYS.items() if isinstance(make(), NoisedShape)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=PLANAR)
def planar(request):
    return TOYS[request.param]()


def standard_error(values):
    return float(values.std() / len(values) ** 0.5)


@pytest.mark.parametrize(
    ("toy", "floor"), [(Sine, 4.4796), (Swirl, 4.1394), (Checkerboard, 4.6840)]
)
def test_entropies_of_the_energy_based_toys_are_the_known_ones(toy, floor):
    assert toy().entropy() == pytest.approx(floor, abs=1e-3)


@pytest.mark.parametrize("name", TOYS)
def test_entropy_is_the_mean_of_minus_log_prob(name):
    toy = TOYS[name]().double()
    surprise = -toy.log_prob(toy.sample(8000, seeded(11)))
    assert abs(float(surprise.mean()) - toy.entropy()) < 4 * standard_error(surprise)


def test_density_integrates_to_one(planar):
    (x_low, x_high), (y_low, y_high) = planar.limits
    margin = 4 * max(planar._scale)
    step = min(planar._scale) / 2
    x = torch.arange(x_low - margin, x_high + margin, step, dtype=torch.float64)
    y = torch.arange(y_low - margin, y_high + margin, step, dtype=torch.float64)
    mass = planar.log_prob(torch.cartesian_prod(x, y)).exp().sum() * step**2
    assert float(mass) == pytest.approx(1.0, abs=1e-8)


def test_samples_fill_every_quarter_as_the_density_says(planar):
    # Sampler and density are separate pieces of code: compare shares of points with the mass that
    # is integrated from the density.
    x = planar.double().sample(40_000, seeded(5))
    cut = x.median(0).values + 0.1
    reach = 4 * max(planar._scale)
    cells = torch.arange(96, dtype=torch.float64) + 0.5
    for right in (False, True):
        for up in (False, True):
            sides = []
            for d, above in enumerate((right, up)):
                low, high = planar.limits[d][0] - reach, planar.limits[d][1] + reach
                sides.append((cut[d], high) if above else (low, cut[d]))
            steps = [(high - low) / len(cells) for low, high in sides]
            grid = [low + cells * step for (low, _), step in zip(sides, steps, strict=True)]
            density = planar.log_prob(torch.cartesian_prod(*grid)).exp()
            mass = float(density.sum() * steps[0] * steps[1])
            share = float((((x > cut) == torch.tensor([right, up])).all(-1)).double().mean())
            assert abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / len(x)) + 5e-4


def test_rings_on_the_torus_have_the_density_and_the_score_that_they_say():
    toy = TorusRings()
    # Gauss-Legendre in quarters of the circle, beside the trapezoidal rule of the class.
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))
    angle = torch.cat([(node + k) * math.pi / 4 for k in (-3, -1, 1, 3)])
    weight = weight.repeat(4) * math.pi / 4
    density = toy.log_prob(torch.cartesian_prod(angle, angle)).exp().reshape(1600, 1600)
    assert float(weight @ density @ weight) == pytest.approx(1.0, abs=1e-9)
    x = toy.double().sample(20_000, seeded(2))
    inside = angle.cos() > 0
    mass = float((weight * inside) @ density @ (weight * inside))
    share = float((x.cos() > 0).all(-1).double().mean())
    assert abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / len(x))
    radius = (2 + x.cos().sum(-1)).sqrt().unsqueeze(-1)
    m, a = (torch.tensor(v).double() for v in ([1, 2, 1.5, 2.5], [1, 0.8, 0.6, 0.4]))
    parts = a * torch.exp(-((radius - m) ** 2) / (2 * 0.05**2))
    pull = (parts * (m - radius) / 0.05**2).sum(-1) / parts.sum(-1)
    exact = -(pull / (2 * radius[:, 0])).unsqueeze(-1) * x.sin()
    torch.testing.assert_close(toy.score(x), exact, rtol=1e-9, atol=1e-9)


def test_swirl_density_is_the_integral_along_its_arm():
    toy = Swirl()
    t = torch.linspace(0, 3 * math.pi, 200_001, dtype=torch.float64)
    x = toy.double().sample(5, seeded(2))
    arm = torch.stack([t * t.cos(), -t * t.sin()], -1)
    low = 2.5 / 3 * (arm + torch.tensor([0.5, 1.5]))
    box = 2.5 / 6
    normal = torch.distributions.Normal(0.0, 0.375)
    above, below = normal.cdf(x[:, None] - low), normal.cdf(x[:, None] - low - box)
    factors = ((above - below) / box).prod(-1)
    brute = torch.trapezoid(factors * 2 * t / (3 * math.pi) ** 2, t)
    torch.testing.assert_close(toy.log_prob(x), brute.log(), atol=1e-6, rtol=0)


def test_ring_has_the_bessel_density():
    radius, noise = 2.0, 0.3
    toy = Circles(radii=(radius,), noise=noise)
    x = toy.double().sample(50, seeded(0))
    r = x.norm(dim=-1)
    log_bessel = torch.special.i0e(r * radius / noise**2).log()
    expected = log_bessel - (r - radius) ** 2 / (2 * noise**2) - math.log(2 * math.pi * noise**2)
    torch.testing.assert_close(toy.log_prob(x), expected, atol=1e-10, rtol=0)


def test_eight_gaussians_are_a_mixture():
    toy = GaussianMixture.ring(radius=3.0, scale=0.7).double()
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(8, dtype=torch.float64)),
        torch.distributions.Independent(
            torch.distributions.Normal(
                3 * torch.stack([angles.cos(), angles.sin()], -1),
                torch.full((8, 2), 0.7, dtype=torch.float64),
            ),
            1,
        ),
    )
    x = toy.double().sample(20, seeded(0))
    torch.testing.assert_close(toy.log_prob(x), mixture.log_prob(x))


def test_multimodal_density_is_the_change_of_variables():
    z = 0.5 * torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def to_data(z):
        columns = [z[0]]
        for i in range(1, 10):
            columns.append(torch.tanh(5 * z[i]) * (columns[-1] + 2 * 2**i))
        return torch.stack(columns)

    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(to_data, z)).logabsdet
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    actual = Multimodal10().log_prob(to_data(z))
    torch.testing.assert_close(actual, log_normal - log_det, atol=1e-6, rtol=0)


def test_multimodal_has_512_modes_and_no_mass_beyond_the_walls():
    toy = Multimodal10()
    x = toy.double().sample(20_000, seeded(0))
    assert len(torch.unique(x[:, 1:] > 0, dim=0)) == 512
    beyond = x[:1].clone()
    beyond[0, 9] = 3000.0
    assert toy.log_prob(beyond).item() == -math.inf
    with pytest.raises(DataError, match=r"double\(\).sample"):
        toy.log_prob(toy.float().sample(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slopes_of_the_funnel_are_finite_far_out(dtype):
    funnel = Funnel(3)
    x = torch.tensor([[-1e3, 0.0, 0.0], [-1e3, 1.0, 2.0], [1e3, 1.0, 2.0]], dtype=dtype)
    energy, force = funnel.energy_and_force(x)
    neck = 0.5 * (1e3 / 3) ** 2 - 1e3 + math.log(3) + 1.5 * math.log(2 * math.pi)
    assert energy[0].item() == pytest.approx(neck, rel=1e-6)
    assert energy.isfinite().all()
    assert force.isfinite().all()


def test_energies_without_numbers_have_a_shape():
    for toy in (HeavyCopula(), Funnel()):
        assert toy.to("meta")(torch.empty(4, 2, toy.features, device="meta")).shape == (4, 2)


def test_score_is_the_finite_difference_of_log_prob(planar):
    x = planar.double().sample(20, seeded(4))
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = [(planar.log_prob(x + h) - planar.log_prob(x - h)) / 2e-5 for h in step]
    torch.testing.assert_close(planar.score(x), torch.stack(slopes, -1), atol=1e-5, rtol=1e-5)


def test_log_prob_is_finite_far_away(planar):
    x = torch.tensor([[1e3, -1e3], [0.0, 50.0]], dtype=torch.float64)
    assert planar.log_prob(x).isfinite().all()
    assert planar.score(x).isfinite().all()


@pytest.mark.parametrize("name", TOYS)
def test_samples_follow_the_generator_and_leave_the_global_state_alone(name):
    toy = TOYS[name]()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (toy.sample((3, 3), seeded(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.float32
    assert first.shape == (3, 3, toy.features)
    assert toy.sample(0).shape == (0, toy.features)
    assert toy.sample(generator=seeded(1)).shape == (toy.features,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(0)
    drawn = toy.sample(4)
    torch.manual_seed(0)
    assert torch.equal(drawn, toy.sample(4))
    assert torch.equal(first, toy.double().sample((3, 3), seeded(1)).float())


@pytest.mark.parametrize("name", TOYS)
def test_the_members_of_the_family_agree(name):
    toy = TOYS[name]().double()
    x = toy.sample(50, seeded(3))
    assert isinstance(toy, Toy)
    torch.testing.assert_close(toy.log_prob(x), -toy(x) - toy.log_normalizer())
    assert torch.equal(toy.score(x), toy.force(x))
    energy, force = toy.energy_and_force(x)
    torch.testing.assert_close(energy, toy.energy(x))
    torch.testing.assert_close(force, toy.force(x))
    if name != "multimodal10":  # where points lie within rounding of the walls
        step = 1e-5 * torch.eye(toy.features, dtype=torch.float64)
        slopes = [(toy.log_prob(x + h) - toy.log_prob(x - h)) / 2e-5 for h in step]
        torch.testing.assert_close(toy.score(x), torch.stack(slopes, -1), atol=1e-4, rtol=1e-4)
    again = build(json.loads(json.dumps(describe(toy)))).double()
    assert torch.equal(again.log_prob(x), toy.log_prob(x))
    copy = pickle.loads(pickle.dumps(toy))
    assert torch.equal(copy.sample(5, seeded(1)), toy.sample(5, seeded(1)))


def test_entropies_in_closed_form():
    # One normal, a funnel of normals, and the ring's by quadrature in the radius.
    one = GaussianMixture([[1.0, 2.0, 3.0]], 0.5)
    assert one.entropy() == pytest.approx(float(stats.norm(0, 0.5).entropy()) * 3)
    on_a_line = GaussianMixture([[-9.0], [9.0]], [0.5, 2.0], weights=[1.0, 3.0])
    parts = [p * (stats.norm(0, s).entropy() - math.log(p)) for p, s in ((0.25, 0.5), (0.75, 2))]
    assert on_a_line.entropy() == pytest.approx(sum(parts), abs=1e-4)
    assert Funnel(3, scale=2.0).entropy() == pytest.approx(
        float(stats.norm(0, 2).entropy() + 2 * stats.norm.entropy())
    )
    for radius, width in ((3.0, 0.3), (0.4, 1.0)):
        ring = Ring(radius, width)
        log_z = ring.log_normalizer()

        def surprise(r, radius=radius, width=width, log_z=log_z):
            u = 0.5 * ((r - radius) / width) ** 2
            return 2 * math.pi * r * math.exp(-u - log_z) * (u + log_z)

        exact, _ = integrate.quad(surprise, 0, radius + 12 * width, points=[radius])
        assert ring.entropy() == pytest.approx(exact, abs=1e-9)


def test_a_quantity_without_a_closed_form_is_refused():
    picture = Picture(np.ones((3, 3)))
    with pytest.raises(NotInvertibleError, match="entropy of Picture is not known; remedy"):
        picture.entropy()
    with pytest.raises(NotInvertibleError, match="entropy of GaussianMixture is not known"):
        GaussianMixture([[0.0] * 3, [1.0] * 3]).entropy()


def test_toys_by_name_take_the_number_of_features_where_they_have_a_choice():
    assert make_toy("funnel", 3).event_shape == (3,)
    assert make_toy("ring", 3).event_shape == (2,)
    with pytest.raises(ArgumentError, match="did you mean 'funnel'"):
        make_toy("funel", 3)


def test_log_prob_takes_any_batch_shape(planar):
    x = planar.sample(6, seeded(0))
    batched = planar.log_prob(x.reshape(3, 2, 2))
    assert batched.dtype == torch.float32
    torch.testing.assert_close(batched.reshape(6), planar.log_prob(x))
    assert planar.log_prob(x[0]).shape == ()
    assert planar.log_prob(x[:0]).shape == (0,)


def test_bad_arguments_are_refused_in_words():
    for call, error, words in (
        (lambda: Sine(noise=0), ArgumentError, "Sine expected noise .* >= 0.0001, got 0"),
        (lambda: Circles(noise=-1.0), ArgumentError, "Circles expected noise .* got -1"),
        (lambda: Circles(radii=()), ArgumentError, "radii as one or more numbers > 0"),
        (lambda: Circles(radii=(1e12,)), ArgumentError, "would hold a tensor of .* numbers"),
        (lambda: TwoMoons().sample(-1), ShapeError, "sizes >= 0, got -1"),
        (
            lambda: TwoSpirals().log_prob(torch.zeros(4, 3)),
            ShapeError,
            r"\(..., 2\), got \(4, 3\)",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
