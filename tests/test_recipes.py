"""Recipes build flows by name; files hold a recipe and its weights, and nothing that runs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowkit
from flowkit.bases import StandardNormal
from flowkit.errors import FlowFileError, RecipeError
from flowkit.recipes import RECIPES, build, recipe
from flowkit.scalar import Affine, LogisticMixture, RationalQuadraticSpline
from flowkit.transforms import LULinear

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
    ("elementwise_flow", {"features": 3, "base": "mixture"}),
    ("elementwise_flow", {"features": 2, "context": 3, "layers": 2, "base": "logistic"}),
    ("elementwise_flow", {"features": 2, "standardize": False}),
    ("box_flow", {"lower": [-9, -9, -9], "upper": [9, 8, 9.5], "layers": 2, "order": [2, 0, 1]}),
    ("box_flow", {"lower": [-9], "upper": [9], "context": 2, "bins": 4}),
    ("box_flow", {"lower": [-9, -8], "upper": [9, 9], "waves": 3, "highest": 5.0}),
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
    ],
)
def test_wrong_recipes_are_named(name, arguments, message):
    with pytest.raises(RecipeError, match=message):
        build(name, **arguments)


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
        save_file(tensors or load_file(path), path, metadata={"flowkit": json.dumps(header)})

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

    def test_weights_of_another_flow(self, path):
        other = flowkit.coupling_flow(3, layers=1, hidden=(8,))
        self.rewrite(path, tensors=dict(other.state_dict()))
        with pytest.raises(FlowFileError, match="do not fit its recipe coupling_flow: .* should"):
            flowkit.load(path)

    def test_a_newer_format(self, path):
        self.rewrite(path, lambda d: d.update(format=99))
        with pytest.raises(FlowFileError, match="upgrade"):
            flowkit.load(path)
