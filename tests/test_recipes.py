"""Recipes build flows by name; files hold a recipe and its weights, and nothing that runs."""

import dataclasses
import json
import os
import time
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import flowkit
from flowkit.bases import Logistic, StandardNormal, Uniform
from flowkit.content import seal
from flowkit.errors import ArgumentError, DataError, FlowFileError
from flowkit.estimators import FlowDensity
from flowkit.recipes import RECIPES, build, recipe
from flowkit.scalar import Affine, LogisticMixture, PerFeature, RationalQuadraticSpline
from flowkit.transforms import Coupling, LULinear, Rescale

VARIANTS = [
    ("coupling_flow", {"features": 3}),
    ("coupling_flow", {"features": 1}),
    ("coupling_flow", {"features": 1, "context": 2}),
    ("coupling_flow", {"features": 4, "linear": None, "scalar": "affine", "layers": 3}),
    ("coupling_flow", {"features": 3, "linear": "permutation", "conditioner": "residual"}),
    ("coupling_flow", {"features": 3, "linear": "orthogonal", "base": "student_t"}),
    ("coupling_flow", {"features": 2, "scalar": LogisticMixture(components=3), "layers": 1}),
    ("autoregressive_flow", {"features": 3}),
    ("autoregressive_flow", {"features": 1}),
    ("autoregressive_flow", {"features": 3, "context": 2, "linear": None}),
    ("autoregressive_flow", {"features": 2, "scalar": RationalQuadraticSpline(bins=4)}),
    (
        "coupling_flow",
        {"features": 2, "scalar": PerFeature((RationalQuadraticSpline(3), Affine())), "layers": 1},
    ),
    ("coupling_flow", {"features": 2, "scalar": "smooth", "layers": 1}),
    ("elementwise_flow", {"features": 3, "base": "mixture"}),
    ("elementwise_flow", {"features": 2, "context": 3, "layers": 2, "base": "logistic"}),
    ("elementwise_flow", {"features": 2, "standardize": False}),
    ("box_flow", {"lower": [-9, -9, -9], "upper": [9, 8, 9.5], "layers": 2, "order": [2, 0, 1]}),
    ("box_flow", {"lower": [-9], "upper": [9], "context": 2, "bins": 4}),
    ("box_flow", {"lower": [-9, -8], "upper": [9, 9], "waves": 3, "highest": 5.0}),
    ("box_flow", {"lower": -9, "upper": 100_000_000, "features": 2, "hidden": (4,), "bins": 2}),
    ("smooth_flow", {"features": 2, "circular": True, "components": 4}),
    ("smooth_flow", {"features": 1, "components": 3, "layers": 1}),
    ("smooth_flow", {"features": 2, "bounds": (-9, 10_000_000), "hidden": (4,), "layers": 1}),
    (
        "smooth_flow",
        {
            "features": 3,
            "circular": (True, False, False),
            "bounds": ((-4, 4), (-9, 9.5), None),
            "structure": "autoregressive",
            "scalar": "spline",
            "context": 2,
            "components": 3,
        },
    ),
    ("elementwise_flow", {"features": 1, "hidden": (512, 512)}),
    ("autoregressive_flow", {"features": 2, "hidden": (512, 1, 512), "layers": 1}),
    ("energy_based_flow", {"event_shape": 3}),
    ("kernelised_flow", {"features": 3, "points": 7}),
    ("kernelised_flow", {"features": 1, "points": 7, "context": 2, "layers": 2}),
    ("kernelised_flow", {"features": 2, "kernel": "matern-1/2 + matern-5/2", "scalar": "spline"}),
    ("kernelised_flow", {"features": 2, "mean": True, "learn_points": False, "linear": None}),
    ("kernelised_flow", {"features": 3, "frequencies": 8, "layers": 2}),
    ("kernelised_flow", {"features": 3, "points": 7, "layers": 2, "elementwise": "spline"}),
    ("tail_adaptive_flow", {"tails": [2.0, None, 3.5], "hidden": (8,)}),
    ("tail_adaptive_flow", {"tails": [2.0, 3.0], "layers": 1, "scalar": "affine", "context": 2}),
    ("tail_adaptive_flow", {"tails": [float("inf"), None], "layers": 1, "hidden": (8,)}),
    ("tail_adaptive_flow", {"tails": [2.0, None], "layers": 1, "variant": "mtaf-fixed"}),
    ("tail_adaptive_flow", {"tails": [2.0, None], "layers": 1, "variant": "gtaf"}),
    ("tail_adaptive_flow", {"tails": [2], "layers": 1, "variant": "taf"}),
    ("tail_adaptive_flow", {"tails": [2, None, (3, None)], "layers": 2, "kind": "coupling"}),
    ("tail_adaptive_flow", {"tails": [(2, None), None], "layers": 1, "variant": "ttf"}),
    ("tail_adaptive_flow", {"tails": [2], "layers": 1, "variant": "ttf-fixed"}),
    ("energy_based_flow", {"event_shape": (2, 3), "layers": 3, "negative_slope": 0.5}),
    ("energy_based_flow", {"event_shape": [3], "architecture": "coupling", "layers": 2}),
    ("energy_based_flow", {"event_shape": (1, 4, 4), "bounds": (-99, 99)}),
    ("energy_based_flow", {"event_shape": (1, 6, 4), "architecture": "conv", "kernel": 3}),
    (
        "energy_based_flow",
        {"event_shape": (1, 8, 4), "architecture": "glow", "layers": 1, "hidden": (4, 3)},
    ),
    (
        "energy_based_flow",
        {
            "event_shape": (2, 4, 4),
            "architecture": "glow",
            "layers": 3,
            "scales": 1,
            "bounds": (-99, 99),
            "standardize": True,
            "hidden": (4,),
            "activation": "tanh",
        },
    ),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}-{'-'.join(map(str, v[1].values()))}"[:60])
def flow(request):
    name, arguments = request.param
    torch.manual_seed(0)
    made = RECIPES[name](**arguments)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


def draw(flow):
    x = torch.randn(5, *flow.event_shape)
    context = torch.randn(5, flow.context_size) if flow.needs_context else None
    return x, context


def test_every_recipe_scores_and_samples(flow):
    x, context = draw(flow)
    assert flow.log_prob(x, context).shape == (5,)
    assert flow.sample((), context).shape == ((5,) if context is not None else ()) + x.shape[1:]


def test_a_file_gives_the_same_bits_back(flow, tmp_path):
    flowkit.save(flow, tmp_path / "flow.safetensors")
    again = flowkit.load(tmp_path / "flow.safetensors")
    x, context = draw(flow)
    assert torch.equal(flow.log_prob(x, context), again.log_prob(x, context))
    assert again.recipe == flow.recipe
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]


def test_weights_that_share_memory_are_saved(tmp_path):
    flow = flowkit.coupling_flow(2, layers=2, linear="lu")
    first, second = [part for part in flow.modules() if isinstance(part, LULinear)][:2]
    second.bias = first.bias
    second.lower_upper.data = first.lower_upper.data[:]
    flowkit.save(flow, tmp_path / "f")
    x = torch.randn(5, 2)
    assert torch.equal(flowkit.load(tmp_path / "f").log_prob(x), flow.log_prob(x))


def test_a_recipe_is_json(flow):
    again = build(flow.recipe["name"], **json.loads(json.dumps(flow.recipe["arguments"])))
    assert str(again) == str(flow)


def test_dtype_and_data_start_are_saved(tmp_path):
    flow = flowkit.elementwise_flow(2).double()
    flow.initialize(5 + torch.randn(10, 2, dtype=torch.float64))
    flowkit.save(flow, tmp_path / "f")
    again = flowkit.load(tmp_path / "f")
    assert again.dtype == torch.float64
    assert bool(again.initialized)
    assert torch.equal(again.transform[0].mean, flow.transform[0].mean)


def test_recipes_with_the_same_seed_are_equal_up_to_weights():
    a, b = flowkit.coupling_flow(5, seed=1), flowkit.coupling_flow(5, seed=1)
    assert torch.equal(a.transform[1].order, b.transform[1].order)
    assert not torch.equal(
        flowkit.coupling_flow(5, seed=2).transform[1].order, a.transform[1].order
    )


def test_building_a_flow_leaves_numpy_alone_and_needs_no_seed():
    before = torch.get_rng_state()
    flowkit.coupling_flow(2, scalar=Affine(), layers=1, standardize=False)
    assert not torch.equal(torch.get_rng_state(), before)  # networks draw from torch, as ever


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("couplng_flow", {"features": 2}, "did you mean 'coupling_flow'"),
        ("zzz", {}, "choose from"),
        ("coupling_flow", {}, "needs the argument\\(s\\) features"),
        (
            "coupling_flow",
            {"features": 2, "layer": 3},
            "no argument 'layer'; did you mean 'layers'",
        ),
        ("coupling_flow", {"features": 0}, "features to be a whole number >= 1, got 0"),
        ("coupling_flow", {"features": 2.5}, "whole number >= 1, got 2.5"),
        ("coupling_flow", {"features": 2, "scalar": "spine"}, "did you mean 'spline'"),
        ("coupling_flow", {"features": 2, "linear": "qr"}, "unknown linear layer 'qr'"),
        ("coupling_flow", {"features": 2, "base": "norml"}, "did you mean 'normal'"),
        ("coupling_flow", {"features": 2, "conditioner": "cnn"}, "unknown conditioner 'cnn'"),
        ("elementwise_flow", {"features": 2, "context": -1}, "context to be a whole number >= 0"),
        ("coupling_flow", {"features": 2, "scalar": {"scalar": "os"}}, "unknown scalar map 'os'"),
        (
            "coupling_flow",
            {"features": 2, "scalar": {"scalar": "Affine", "options": {"max": 1}}},
            "Affine has no option 'max'",
        ),
        (
            "coupling_flow",
            {
                "features": 2,
                "scalar": {"scalar": "RationalQuadraticSpline", "options": {"bins": 0}},
            },
            "RationalQuadraticSpline cannot be built with",
        ),
        ("coupling_flow", {"features": 2, "hidden": 64}, "whole number >= 1, got 64; remedy"),
        ("coupling_flow", {"features": 1, "hidden": ()}, "hidden to be the widths .* got \\(\\)"),
        ("elementwise_flow", {"features": 1, "hidden": (8, 0.5)}, "got \\(8, 0.5\\)"),
        ("coupling_flow", {"features": 2, "activation": "swish"}, "unknown activation 'swish'"),
        (
            "coupling_flow",
            {"features": 2, "conditioner": "residual", "hidden": (8, 9)},
            "coupling_flow cannot be built: ResidualMLP needs one width",
        ),
        ("coupling_flow", {"features": 2, "conditioner": 5}, "coupling_flow cannot be built"),
        ("coupling_flow", {"features": 2, "linear": ["lu"]}, "unknown linear layer \\('lu',\\)"),
        ("coupling_flow", {"features": 1, "linear": "qr"}, "unknown linear layer 'qr'"),
        ("coupling_flow", {"features": 2, "base": None}, "unknown base None"),
        (
            "coupling_flow",
            {"features": 2, "seed": None},
            "seed to be a whole number >= 0, got None",
        ),
        ("coupling_flow", {"features": 2, "standardize": "no"}, "True or False, got 'no'"),
        ("box_flow", {"lower": [1], "upper": [0]}, "cannot be built: Box needs finite lower <"),
        ("box_flow", {"lower": [0, 0], "upper": [1]}, "it got 1 for 2 feature"),
        ("box_flow", {"lower": 0, "upper": 1}, "cannot know for how many features; remedy"),
        ("box_flow", {"lower": 0, "upper": "one", "features": 1}, "box_flow cannot be built"),
        ("box_flow", {"lower": [0, 0], "upper": [1, 1], "order": [0, 0]}, "permutation of 0..1"),
        ("box_flow", {"lower": [0], "upper": [1], "waves": -1}, "waves to be a whole number >= 0"),
        ("kernelised_flow", {"features": 2, "points": 0}, "points to be a whole number >= 1"),
        ("kernelised_flow", {"features": 1}, "remedy: elementwise_flow"),
        ("kernelised_flow", {"features": 2, "kernel": "matern"}, "unknown kernel 'matern'"),
        ("kernelised_flow", {"features": 2, "mean": 1}, "mean to be True or False"),
        ("kernelised_flow", {"features": 2, "frequencies": 0}, "frequencies to be a whole"),
        (
            "kernelised_flow",
            {"features": 4, "frequencies": 8, "kernel": "rational-quadratic"},
            "with a spectral density",
        ),
        ("tail_adaptive_flow", {"tails": []}, "one tail index > 0 a feature"),
        ("tail_adaptive_flow", {"tails": 2.0}, "one tail index > 0 a feature"),
        ("tail_adaptive_flow", {"tails": [-1.0]}, "one tail index > 0 a feature"),
        ("tail_adaptive_flow", {"tails": [2.0], "variant": "mtaff"}, "did you mean 'mtaf'"),
        ("tail_adaptive_flow", {"tails": [(2.0, 0)]}, "a pair of them for its left and right"),
        ("tail_adaptive_flow", {"tails": [(2.0,)]}, "a pair of them"),
        (
            "tail_adaptive_flow",
            {"tails": [2.0], "kind": "coupling"},
            "remedy: kind='autoregressive'",
        ),
        ("tail_adaptive_flow", {"tails": [2.0], "kind": "masked"}, "unknown kind 'masked'"),
        ("tail_adaptive_flow", {"tails": [2.0], "scalar": "cubic"}, "unknown scalar map 'cubic'"),
        ("energy_based_flow", {"event_shape": ()}, "event_shape to be sizes >= 1, got \\(\\)"),
        ("energy_based_flow", {"event_shape": (1, 0)}, "event_shape to be sizes >= 1"),
        ("energy_based_flow", {"event_shape": 3, "architecture": "dens"}, "did you mean 'dense'"),
        ("energy_based_flow", {"event_shape": 3, "architecture": "conv"}, "remedy: 'dense' or"),
        (
            "energy_based_flow",
            {"event_shape": 3, "scales": 2},
            "reads no scales; that is for 'conv' and 'glow'",
        ),
        ("energy_based_flow", {"event_shape": 3, "hidden": (8,)}, "reads no hidden"),
        ("energy_based_flow", {"event_shape": 3, "bounds": (1, 1)}, "lower < upper, or None"),
        ("energy_based_flow", {"event_shape": 3, "standardize": 1}, "True or False, got 1"),
        ("energy_based_flow", {"event_shape": 3, "negative_slope": 2.0}, "expected alpha in"),
        ("energy_based_flow", {"event_shape": 1, "architecture": "coupling"}, "2 numbers or more"),
        (
            "energy_based_flow",
            {"event_shape": (1, 6, 4), "architecture": "conv", "scales": 3},
            "needs scales <= 2 for 6 x 4 pixels, which can be halved 1 times; got 3",
        ),
        (
            "energy_based_flow",
            {"event_shape": (1, 3, 3), "architecture": "glow"},
            "needs images that can be halved, got 3 x 3 pixels",
        ),
        (
            "energy_based_flow",
            {"event_shape": (1, 4, 4), "architecture": "conv", "kernel": 2},
            "cannot be built: Conv2d expected an odd kernel",
        ),
    ],
)
def test_wrong_recipes_are_named(name, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        build(name, **arguments)


def test_a_direct_call_raises_the_same_errors():
    with pytest.raises(ArgumentError, match="no argument 'layer'; did you mean 'layers'"):
        flowkit.coupling_flow(2, layer=3)
    with pytest.raises(ArgumentError, match="box_flow needs the argument\\(s\\) upper"):
        flowkit.box_flow(0)
    with pytest.raises(ArgumentError, match="multiple values for argument 'features'"):
        flowkit.coupling_flow(2, features=2)


def test_numbers_and_arrays_of_numpy_and_torch_are_plain_arguments(tmp_path):
    flow = flowkit.coupling_flow(
        np.int64(2), layers=torch.tensor(1), hidden=np.array([8, 4]),
        scalar=RationalQuadraticSpline(bins=np.int64(4)),
    )  # fmt: skip
    arguments = flow.recipe["arguments"]
    assert (arguments["features"], arguments["layers"], arguments["hidden"]) == (2, 1, [8, 4])
    assert arguments["scalar"]["options"]["bins"] == 4
    box = flowkit.box_flow(np.zeros(2), torch.ones(2), hidden=[8], order=range(2))
    for made in (flow, box):
        json.dumps(made.recipe)
        flowkit.save(made, tmp_path / "f")
        assert str(flowkit.load(tmp_path / "f")) == str(made)


def test_a_box_takes_one_end_for_all_features():
    one = flowkit.box_flow(0, [1, 2], layers=1)
    assert (one.transform[0].lower, one.transform[0].upper) == ((0, 0), (1, 2))
    assert flowkit.box_flow(0, 1, features=3).event_shape == (3,)


def test_a_box_flow_serves_the_estimator():
    X = np.random.default_rng(0).random((100, 2))
    options = {"lower": 0, "upper": 1, "hidden": (8,)}
    model = FlowDensity("box_flow", options, epochs=1, random_state=0).fit(X)
    assert np.isneginf(model.score_samples(X + 2)).all()
    assert np.isfinite(model.score_samples(X)).all()


def test_a_users_recipe_joins_the_registry(tmp_path):
    @recipe
    def lu_flow(features: int) -> flowkit.Flow:
        return flowkit.Flow(LULinear(features), StandardNormal(features))

    try:
        flowkit.save(lu_flow(2), tmp_path / "f")
        assert flowkit.load(tmp_path / "f").event_shape == (2,)
    finally:
        del RECIPES["lu_flow"]


def test_a_flow_without_recipe_cannot_be_described(tmp_path):
    flow = flowkit.Flow(LULinear(2), StandardNormal(2))
    with pytest.raises(FlowFileError, match="not built by a recipe"):
        flowkit.save(flow, tmp_path / "f")
    custom = flowkit.coupling_flow(2, conditioner=flowkit.conditioners.MLP)
    with pytest.raises(FlowFileError, match="not built by a recipe"):
        flowkit.save(custom, tmp_path / "f")


def test_a_scalar_map_of_a_user_is_not_taken_for_ours(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Theirs(Affine):
        pass

    Theirs.__name__ = "Affine"
    flow = flowkit.coupling_flow(2, layers=1, scalar=Theirs())
    assert flow.recipe is None
    with pytest.raises(FlowFileError, match="not built by a recipe"):
        flowkit.save(flow, tmp_path / "f")


def swap_layer(at, layer):
    def change(flow):
        flow.transform.transforms[at] = layer

    return change


CHANGES = {
    "base": (lambda f: setattr(f, "base", Logistic(3)), "flow.base is .*Logistic, expected .*Sta"),
    "bound": (
        lambda f: setattr(f.transform[1], "scalar", RationalQuadraticSpline(bins=4, bound=9)),
        "flow.transform.* has scalar=.*bound=9.*, expected .*bound=5",
    ),
    "mask": (
        lambda f: setattr(f.transform[1], "moved_index", torch.tensor([0, 2])),
        "moved_index holds other numbers",
    ),
    "layer": (lambda f: swap_layer(1, LULinear(3))(f), "is .*LULinear, expected .*Coupling"),
    "shape": (
        lambda f: setattr(f.transform[0], "mean", torch.zeros(1)),
        "mean has shape \\(1,\\), expected \\(3,\\)",
    ),
    "embedding": (lambda f: setattr(f, "embedding", torch.nn.Identity()), "expected nothing"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_flow_changed_after_its_recipe_is_not_saved(change, message, tmp_path):
    flow = flowkit.coupling_flow(
        3, layers=1, hidden=(8,), linear=None, scalar=RationalQuadraticSpline(bins=4)
    )
    change(flow)
    with pytest.raises(FlowFileError, match=f"{message}.*remedy"):
        flowkit.save(flow, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_another_box_or_mask_of_the_same_shape_is_not_saved(tmp_path):
    box = flowkit.box_flow([0], [1], hidden=(8,))
    swap_layer(0, Rescale([0], [2]))(box)
    with pytest.raises(FlowFileError, match="upper=\\(2.0,\\), expected \\(1.0,\\)"):
        flowkit.save(box, tmp_path / "f")
    flow = flowkit.box_flow([0], [1], hidden=(8,))
    flow.base = Uniform(1, lower=-2.0, upper=2.0)
    with pytest.raises(FlowFileError, match="flow.base has lower=-2.0, expected -1.0"):
        flowkit.save(flow, tmp_path / "f")
    flow = flowkit.coupling_flow(3, layers=1, linear=None, scalar="affine")
    swap_layer(1, Coupling([True, False, True], Affine()))(flow)
    with pytest.raises(FlowFileError, match="fixed_index holds other numbers"):
        flowkit.save(flow, tmp_path / "f")


def test_saving_leaves_the_random_state_alone(tmp_path):
    flow = flowkit.coupling_flow(2, layers=1)
    before = torch.get_rng_state()
    flowkit.save(flow, tmp_path / "f")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_keeps_its_mode_and_a_new_one_honours_the_umask(tmp_path):
    path, flow = tmp_path / "f", flowkit.elementwise_flow(1)
    before = os.umask(0o027)
    try:
        flowkit.save(flow, path)
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        flowkit.save(flow, path)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_named(device, tmp_path):
    flowkit.save(flowkit.elementwise_flow(1), tmp_path / "f")
    with pytest.raises(DataError, match=f"on device '{device}' .*remedy: device='cpu'"):
        flowkit.load(tmp_path / "f", device=device)


PLACE = "0" * 64


def write_sealed(path, tensors, header):
    """A flow file of any content whose digest is right, as somebody hostile would make it."""
    if '"digest"' not in header:
        header = header.replace("{", f'{{"digest": "{PLACE}", ', 1)
    path.write_bytes(seal(safetensors.torch.save(tensors, {"flowkit": header})))


class TestDamagedFiles:
    @pytest.fixture
    def path(self, tmp_path):
        flowkit.save(flowkit.coupling_flow(2, layers=1, hidden=(8,)), tmp_path / "f")
        return tmp_path / "f"

    def rewrite(self, path, change=lambda d: None, tensors=None):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["flowkit"])
        change(header)
        write_sealed(path, tensors or load_file(path), json.dumps(header))

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no flow file"):
            flowkit.load(tmp_path / "none")

    def test_a_truncated_file(self, path):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(FlowFileError, match="truncated"):
            flowkit.load(path)

    @pytest.mark.parametrize(
        "content", [b"", b"text, not tensors", b"\x80\x04pickle", b"\xff" * 64]
    )
    def test_another_kind_of_file(self, path, content):
        path.write_bytes(content)
        with pytest.raises(FlowFileError, match="not a safetensors file"):
            flowkit.load(path)

    def test_weights_without_recipe(self, path):
        save_file({"a": torch.zeros(2)}, path)
        with pytest.raises(FlowFileError, match="without a flowkit recipe"):
            flowkit.load(path)

    def test_a_header_that_is_not_json(self, path):
        save_file(load_file(path), path, metadata={"flowkit": "{not json"})
        with pytest.raises(FlowFileError, match="damaged"):
            flowkit.load(path)

    def test_an_unknown_recipe(self, path):
        self.rewrite(path, lambda d: d.update(name="os.system"))
        with pytest.raises(FlowFileError, match="unknown recipe 'os.system'"):
            flowkit.load(path)

    def test_an_argument_of_the_wrong_kind(self, path):
        self.rewrite(path, lambda d: d["arguments"].update(hidden="wide"))
        with pytest.raises(FlowFileError, match="cannot be built"):
            flowkit.load(path)

    def test_a_recipe_that_asks_for_too_much(self, path):
        self.rewrite(path, lambda d: d["arguments"].update(features=10**12))
        with pytest.raises(FlowFileError, match="damaged or hostile"):
            flowkit.load(path)
        self.rewrite(path, lambda d: d["arguments"].update(features=2, hidden=[200, 200]))
        with pytest.raises(FlowFileError, match="do not fit its recipe"):
            flowkit.load(path)

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            (
                "autoregressive_flow",
                {"features": 15_000, "hidden": [15_000]},
                "more weights than it holds",
            ),
            ("elementwise_flow", {"features": 15_000, "layers": 15_000}, "more weights"),
            ("coupling_flow", {"features": 15_000, "linear": None, "layers": 15_000}, "more w"),
            (
                "box_flow",
                {
                    "lower": [0] * 100,
                    "upper": [1] * 100,
                    "hidden": [1],
                    "bins": 2,
                    "waves": 15_000,
                },
                "15000 waves of 100 features",
            ),
            (
                "box_flow",
                {"lower": 0, "upper": 1, "features": 15_000, "waves": 9},
                "9 waves of 15000 features",
            ),
        ],
    )
    def test_sizes_that_multiply_are_refused_in_little_time_and_memory(
        self, tmp_path, name, arguments, message
    ):
        path = tmp_path / "f"
        header = json.dumps({"format": 1, "name": name, "arguments": arguments})
        write_sealed(path, {"a": torch.zeros(15_000)}, header)
        begun = time.perf_counter()
        tracemalloc.start()
        try:
            with pytest.raises(FlowFileError, match=f"{message}.*damaged or hostile"):
                flowkit.load(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100e6
        assert time.perf_counter() - begun < 20

    @pytest.mark.parametrize("read", [flowkit.load, flowkit.io.read_extra])
    def test_a_header_nested_beyond_reason(self, path, read):
        save_file(load_file(path), path, metadata={"flowkit": "[" * 100_000})
        with pytest.raises(FlowFileError, match="nested too deeply"):
            read(path)

    def test_an_argument_nested_beyond_reason(self, path):
        header = '{"format": 1, "name": "coupling_flow", "arguments": {"features": %s}}'
        deep = "[" * 900 + "]" * 900
        write_sealed(path, load_file(path), header % deep)
        with pytest.raises(FlowFileError, match="nested too deeply|cannot be built"):
            flowkit.load(path)

    def test_weights_of_another_flow(self, path):
        other = flowkit.coupling_flow(3, layers=1, hidden=(8,))
        self.rewrite(path, tensors=dict(other.state_dict()))
        with pytest.raises(FlowFileError, match="do not fit its recipe coupling_flow: .* should"):
            flowkit.load(path)

    def test_a_newer_format(self, path):
        self.rewrite(path, lambda d: d.update(format=99))
        with pytest.raises(FlowFileError, match="upgrade"):
            flowkit.load(path)
