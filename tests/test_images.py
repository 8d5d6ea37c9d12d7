"""Layers that change the shape of an event, image flows made of them, and images."""

import gzip
import struct

import pytest
import torch
from torch.nn import functional as F

from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    Flow,
    SlicedScoreMatching,
    conv_flow,
    dense_flow,
    fit,
    glow_flow,
)
from flowkit.bases import StandardNormal
from flowkit.conditioners import ConvNet
from flowkit.data import dequantize
from flowkit.datasets import digits, fashion_mnist
from flowkit.datasets.images import DEBIAN_FOLDER
from flowkit.errors import (
    ArgumentError,
    DataError,
    MissingDependencyError,
    ShapeError,
    StochasticFlowError,
)
from flowkit.scalar import SmoothLeakyReLU
from flowkit.stochastic import Dequantize
from flowkit.stochastic.paths import sample_paths
from flowkit.transforms import (
    ActNorm,
    Compose,
    Conv2d,
    Coupling,
    Elementwise,
    FactorOut,
    Reshape,
    Squeeze,
    Transform,
)


def test_squeeze_is_pixel_unshuffle():
    x = torch.randn(2, 5, 3, 4, 6)
    assert torch.equal(Squeeze((3, 4, 6))(x)[0], F.pixel_unshuffle(x, 2))
    y = torch.randn(2, 1, 6, 9)
    assert torch.equal(Squeeze((1, 6, 9), factor=3)(y)[0], F.pixel_unshuffle(y, 3))


def test_shapes_pass_through_a_stack():
    t = Compose(
        Conv2d(1),
        Squeeze((1, 4, 6)),
        Elementwise(4, SmoothLeakyReLU(), event_ndim=3),
        Reshape((4, 2, 3)),
    )
    assert (t.event_shape, t.noise_shape) == ((1, 4, 6), (24,))
    assert (t.inv.event_shape, t.inv.noise_shape) == ((24,), (1, 4, 6))
    assert (t.event_ndim, t.noise_ndim) == (3, 1)
    assert t.codomain.event_dim == 1
    assert Compose(t.inv, t).event_shape == (24,)
    assert [tuple(s.shape) for s in t.states(torch.zeros(7, 1, 4, 6))] == [
        (7, 1, 4, 6), (7, 1, 4, 6), (7, 4, 2, 3), (7, 4, 2, 3), (7, 24)
    ]  # fmt: skip
    with pytest.raises(ShapeError, match=r"expected z \(\.\.\., 24\), got \(1, 4, 6\)"):
        t.inverse(torch.zeros(1, 4, 6))
    with pytest.raises(ShapeError, match="cannot follow layers with events \\(4, 2, 3\\)"):
        Compose(Squeeze((1, 4, 6)), Conv2d(1))
    with pytest.raises(ShapeError, match="cannot follow layers with events \\(24,\\)"):
        Compose(Reshape((1, 4, 6)), Conv2d(1))


def test_a_flow_of_another_shape_than_its_noise():
    flow = Flow(Squeeze((1, 4, 6)), StandardNormal((4, 2, 3)))
    x = torch.randn(5, 1, 4, 6)
    assert flow.event_shape == (1, 4, 6)
    assert flow.to_noise(x).shape == (5, 4, 2, 3)
    assert torch.equal(flow.to_data(flow.to_noise(x)), x)
    assert flow.sample(3).shape == flow.score(x[:3]).shape == (3, 1, 4, 6)
    assert flow.log_normalizer() == 0
    assert flow.support.event_dim == 3
    bounded = conv_flow((1, 4, 4), lower=0, upper=1, kernel=3)
    inside = torch.full((1, 4, 4), 0.5)
    assert bounded.support.check(inside)
    assert not bounded.support.check(inside + 1)
    assert bounded.score(inside).isfinite().all()
    assert bounded.score(torch.stack([inside, inside + 1]))[1].isnan().all()
    torch.testing.assert_close(flow.log_prob(x), StandardNormal((1, 4, 6)).log_prob(x))
    assert sample_paths(flow, 3, lambda x: x.square().sum((-3, -2, -1))).x.shape == (3, 1, 4, 6)
    assert flow.distribution().sample((2,)).shape == (2, 1, 4, 6)
    with pytest.raises(
        ShapeError, match=r"Flow expected z \(\.\.\., 4, 2, 3\), got \(5, 1, 4, 6\)"
    ):
        flow.to_data(x)
    with pytest.raises(ShapeError, match="maps to events"):
        Flow(Squeeze((1, 4, 6)), StandardNormal((1, 4, 6)))


def test_a_layer_that_changes_shapes_has_to_say_them():
    class Flat(Transform):
        def forward(self, x, context=None):
            return x.flatten(-3), x.new_zeros(x.shape[:-3])

    flat = Flat((1, None, None), noise_shape=(None,))
    with pytest.raises(ShapeError, match="changes the shape .* remedy: give its first layer"):
        Flow(flat, StandardNormal(4))


def test_factor_out_keeps_the_later_channels():
    inner = Compose(ActNorm(1, event_ndim=3), Reshape((1, 2, 2)))
    inner[0].shift.data.fill_(2.0)
    x = torch.randn(5, 3, 2, 2)
    z, _ = FactorOut((3, 2, 2), inner)(x)
    torch.testing.assert_close(z, torch.cat([x[:, 0].flatten(1) - 2, x[:, 1:].flatten(1)], 1))


@pytest.mark.parametrize(
    "transform", [ActNorm(3, event_ndim=3), ActNorm(2), Squeeze((1, 4, 4)).inv]
)
def test_factor_out_says_what_does_not_fit(transform):
    with pytest.raises(ShapeError, match="FactorOut expected a transform of 1 to 2 channels"):
        FactorOut((3, 2, 2), transform)


def test_factor_out_holds_nothing_stochastic():
    noise = Compose(Reshape((1, 2, 2)), Dequantize(4), Reshape(4, (1, 2, 2)))
    with pytest.raises(StochasticFlowError, match="holds no stochastic layer"):
        FactorOut((3, 2, 2), noise)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Squeeze((4, 4)), "event_shape as a sequence of 3 integer"),
        (lambda: Squeeze((1, 4, 5)), "a divisor of the 4 x 5 pixels, got 2"),
        (lambda: Squeeze((1, 4, 4), factor=0), "factor as an integer >= 1, got 0"),
        (lambda: Reshape((2, 3), (5,)), "a shape of 6 numbers, as many as .*got \\(5,\\)"),
        (lambda: Reshape("ab"), "event_shape as an integer or a sequence"),
    ],
)
def test_wrong_shapes_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_couplings_are_of_vectors_or_images():
    assert isinstance(Coupling([True, False], event_ndim=3).conditioner, ConvNet)
    for wrong in (0, 2, "3"):
        with pytest.raises(ArgumentError, match="event_ndim as 1 .vectors. or 3 .images."):
            Coupling([True, False], event_ndim=wrong)
    with pytest.raises(ArgumentError, match="transform as a Transform, got Linear"):
        FactorOut((4, 2, 2), torch.nn.Linear(2, 2))


def test_an_even_kernel_of_a_conditioner_is_refused():
    with pytest.raises(ValueError, match="an odd integer"):
        ConvNet(2, 3, kernel=2)


def test_channels_move_as_features_of_one_pixel_do():
    """With kernels of one pixel, an image coupling is a vector coupling at every pixel."""
    torch.manual_seed(0)
    image = Coupling([True, False, True], conditioner=_one_pixel, event_ndim=3).double()
    for p in image.parameters():
        torch.nn.init.normal_(p, std=0.3)
    vector = Coupling([True, False, True]).double()
    vector.conditioner.load_state_dict(
        {k: v.reshape(v.shape[:2] if "weight" in k else v.shape)
         for k, v in image.conditioner.state_dict().items()}
    )  # fmt: skip
    x = torch.randn(5, 3, 2, 4, dtype=torch.float64)
    z, log_det = image(x)
    rows, log_dets = vector(x.movedim(1, -1))
    torch.testing.assert_close(z.movedim(1, -1), rows)
    torch.testing.assert_close(log_det, log_dets.sum((-2, -1)))


def _one_pixel(a, b, context=0):
    return ConvNet(a, b, context=context, hidden=(128, 128), kernel=1)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [(dense_flow, {}), (conv_flow, {"kernel": 3}), (glow_flow, {"hidden": (16,)})],
)
def test_flows_of_images_learn_digits_in_their_own_units(recipe, options):
    counts = digits(seed=0).train[:600].reshape(-1, 1, 8, 8)
    x = dequantize(counts, seed=0)
    torch.manual_seed(1)
    flow = recipe((1, 8, 8), lower=-0.5, upper=16.5, **options)
    flow.initialize(x)
    before = flow.log_prob(x).mean()
    objective = AfterPreprocessing(DenoisingScoreMatching(noise=0.5))
    fit(
        flow, x, objective, validation=None, steps=100, batch_size=50, lr=1e-3, ema=None,
        scheduler="cosine", progress=False,
    )  # fmt: skip
    after = flow.log_prob(x)
    assert after.mean() > before + 5
    assert flow.sample(20).min() > -0.51
    assert flow.sample(20).max() < 16.51
    exact = flow.double()
    normalizer = (exact.log_prob(x[:9].double()) + exact.energy(x[:9].double())).neg()
    torch.testing.assert_close(normalizer, exact.log_normalizer().expand(9))


def test_a_multi_scale_flow_trains_the_same_reversibly():
    gradients = []
    for reversible in (False, True):
        torch.manual_seed(0)
        flow = glow_flow((1, 4, 4), scales=2, layers=2, hidden=(8,)).double()
        for p in flow.parameters():
            p.data += 0.1 * torch.randn_like(p)
        flow.transform.reversible = reversible
        flow.log_prob(torch.randn(5, 1, 4, 4, dtype=torch.float64)).sum().backward()
        gradients.append([p.grad for p in flow.parameters()])
    torch.testing.assert_close(*gradients)


def test_preprocessing_ends_where_learning_begins():
    flow = conv_flow((1, 4, 4), lower=0, upper=1, kernel=3).double()
    for p in flow.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = {"x": torch.rand(5, 1, 4, 4, dtype=torch.float64)}
    exact = SlicedScoreMatching(slices=None)
    assert (
        AfterPreprocessing(exact)(flow, x).value
        == AfterPreprocessing(exact, layers=3)(flow, x).value
    )
    with pytest.raises(DataError, match="begins with layers without parameters"):
        AfterPreprocessing(exact)(dense_flow(3, standardize=False), {"x": torch.ones(2, 3)})


def _idx(folder, pixels):
    raw = struct.pack(">4i", 0x803, *pixels.shape) + pixels.numpy().tobytes()
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(raw))
    return path


def test_fashion_mnist_reads_a_folder(tmp_path):
    pixels = torch.arange(2 * 28 * 28).remainder(256).to(torch.uint8).reshape(2, 28, 28)
    path = _idx(tmp_path, pixels)
    assert torch.equal(fashion_mnist("test", tmp_path), pixels.unsqueeze(1))
    with pytest.raises(MissingDependencyError, match="apt install dataset-fashion-mnist"):
        fashion_mnist("train", tmp_path)
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(DataError, match="expected images in the IDX format"):
        fashion_mnist("test", tmp_path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot read"):
        fashion_mnist("test", tmp_path)


@pytest.mark.skipif(not DEBIAN_FOLDER.exists(), reason="needs dataset-fashion-mnist")
def test_fashion_mnist_of_debian():
    assert fashion_mnist("train").shape == (60_000, 1, 28, 28)
    assert fashion_mnist("test").double().mean() / 255 == pytest.approx(0.2868, abs=1e-3)
