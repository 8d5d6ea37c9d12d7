"""Recipes build flows from plain arguments, and a seed governs all that they draw."""

import functools
import itertools

import numpy as np
import pytest
import torch
from registry import RECIPES as SEEDED

import flowkit
from flowkit.conditioners import MLP, ConvNet, MaskedMLP
from flowkit.errors import ArgumentError
from flowkit.estimators import FlowDensity
from flowkit.recipes import RECIPES
from flowkit.recipes.parts import build_for_columns
from flowkit.scalar import Affine, LogisticMixture, PerFeature, RationalQuadraticSpline
from flowkit.toys import DoubleWell
from flowkit.transforms import Coupling, Permutation

VARIANTS = [
    ("coupling_flow", 3, {}),
    ("coupling_flow", 1, {}),
    ("coupling_flow", 1, {"context": 2}),
    ("coupling_flow", 4, {"linear": None, "scalar": "affine", "layers": 3}),
    ("coupling_flow", 3, {"linear": "permutation", "conditioner": "residual"}),
    ("coupling_flow", 3, {"linear": "orthogonal", "base": "student_t"}),
    ("coupling_flow", 2, {"scalar": LogisticMixture(components=3), "layers": 1}),
    ("coupling_flow", 2, {"scalar": "affine", "linear": "dense", "layers": 2}),
    ("coupling_flow", 2, {"scalar": PerFeature((RationalQuadraticSpline(3), Affine()))}),
    ("coupling_flow", 2, {"scalar": "smooth", "layers": 1}),
    ("autoregressive_flow", 3, {}),
    ("autoregressive_flow", 1, {}),
    ("autoregressive_flow", 3, {"context": 2, "linear": None}),
    ("autoregressive_flow", 2, {"scalar": RationalQuadraticSpline(bins=4)}),
    ("autoregressive_flow", 2, {"hidden": (512, 1, 512), "layers": 1}),
    ("elementwise_flow", 3, {"base": "mixture"}),
    ("elementwise_flow", 2, {"context": 3, "layers": 2, "base": "logistic"}),
    ("elementwise_flow", 2, {"start": None}),
    ("coupling_flow", 2, {"start": "gaussian", "context": 1}),
    ("coupling_flow", 2, {"start": "margins"}),
    ("box_flow", 3, {"lower": -9, "upper": [9, 8, 9.5], "layers": 2, "order": [2, 0, 1]}),
    ("box_flow", 1, {"lower": [-9], "upper": [9], "context": 2, "bins": 4}),
    ("box_flow", 2, {"lower": [-9, -8], "upper": 9, "n_frequencies": 3, "max_frequency": 5.0}),
    ("box_flow", 2, {"lower": -9, "upper": 100_000_000, "hidden": (4,), "bins": 2}),
    ("smooth_flow", 2, {"circular": True, "components": 4}),
    ("smooth_flow", 1, {"components": 3, "layers": 1}),
    ("smooth_flow", 2, {"lower": -9, "upper": 10_000_000, "hidden": (4,), "layers": 1}),
    (
        "smooth_flow",
        3,
        {
            "circular": (True, False, False),
            "lower": (-4, -9, None),
            "upper": (4, 9.5, None),
            "structure": "autoregressive",
            "scalar": "spline",
            "context": 2,
            "components": 3,
        },
    ),
    ("kernelised_flow", 3, {"points": 7}),
    ("kernelised_flow", 1, {"points": 7, "context": 2, "layers": 2}),
    ("kernelised_flow", 2, {"kernel": "matern-1/2 + matern-5/2", "scalar": "spline"}),
    ("kernelised_flow", 2, {"linear_term": True, "learn_points": False, "linear": None}),
    ("kernelised_flow", 3, {"n_frequencies": 8, "layers": 2}),
    ("kernelised_flow", 3, {"points": 7, "layers": 2, "elementwise": "spline"}),
    ("tail_adaptive_flow", 3, {"tails": [2.0, None, 3.5], "hidden": (8,)}),
    ("tail_adaptive_flow", 2, {"tails": [2.0, 3.0], "layers": 1, "scalar": "affine"}),
    ("tail_adaptive_flow", 2, {"tails": [float("inf"), None], "layers": 1, "context": 2}),
    ("tail_adaptive_flow", 2, {"tails": 3.0, "layers": 1, "variant": "mtaf-fixed"}),
    ("tail_adaptive_flow", 2, {"tails": [2.0, None], "layers": 1, "variant": "gtaf"}),
    ("tail_adaptive_flow", 1, {"tails": [2], "layers": 1, "variant": "taf"}),
    ("tail_adaptive_flow", 3, {"tails": [2, None, (3, None)], "structure": "coupling"}),
    ("tail_adaptive_flow", 2, {"tails": [(2, None), None], "layers": 1, "variant": "ttf"}),
    ("tail_adaptive_flow", 1, {"tails": [2], "layers": 1, "variant": "ttf-fixed"}),
    ("dense_flow", 3, {}),
    ("dense_flow", (2, 3), {"layers": 3, "negative_slope": 0.5}),
    ("dense_flow", (1, 4, 4), {"lower": -99, "upper": 99}),
    ("conv_flow", (1, 6, 4), {"kernel": 3}),
    ("glow_flow", (1, 8, 4), {"layers": 1, "hidden": (4, 3)}),
    (
        "glow_flow",
        (2, 4, 4),
        {
            "layers": 3,
            "scales": 1,
            "lower": -99,
            "upper": 99,
            "standardize": True,
            "hidden": (4,),
            "activation": "tanh",
        },
    ),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}-{'-'.join(map(str, v[2].values()))}"[:60])
def flow(request):
    name, shape, arguments = request.param
    torch.manual_seed(0)
    made = RECIPES[name](shape, **arguments)
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
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]


# Seeds ----------------------------------------------------------------------------------------


def seeded(name, seed):
    shape, options = SEEDED[name]
    return RECIPES[name](shape, **options, seed=seed)


def test_every_recipe_but_those_that_draw_nothing_has_a_seed():
    assert set(SEEDED) == set(RECIPES) - {"conv_flow", "dense_flow"}
    before = torch.get_rng_state()
    flowkit.dense_flow(3)
    flowkit.conv_flow((1, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_governs_all_that_a_recipe_draws(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    flow = seeded(name, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again, other = seeded(name, 1), seeded(name, 2)
    assert str(again) == str(flow)
    for a, b in zip(flow.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    values = zip(flow.state_dict().values(), other.state_dict().values(), strict=True)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in values)


@pytest.mark.parametrize("linear", ["permutation", "lu"])
@pytest.mark.parametrize("features", [2, 3, 4, 7])
def test_two_layers_transform_every_feature(features, linear):
    make = functools.partial(flowkit.coupling_flow, features, scalar="affine", linear=linear)
    for seed in range(20):
        flow = make(layers=6, hidden=(4,), start=None, seed=seed)
        present = list(range(features))
        transformed = []
        for layer in flow.transform:
            if isinstance(layer, Permutation):
                present = [present[j] for j in layer.order.tolist()]
            elif isinstance(layer, Coupling):
                transformed.append({present[j] for j in layer.transformed_index.tolist()})
        pairs = zip(transformed[::2], transformed[1::2], strict=True)
        assert [first | second for first, second in pairs] == [set(range(features))] * 3
        if features == 2:
            assert all(a != b for a, b in itertools.pairwise(transformed))


@pytest.mark.parametrize("name", SEEDED)
def test_without_a_seed_a_recipe_draws_from_torch(name):
    flows = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        flows.append(seeded(name, None).state_dict().values())
    first, same, other = flows
    assert all(map(torch.equal, first, same))
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True)
    )


# Arguments ------------------------------------------------------------------------------------


def test_numbers_and_arrays_of_numpy_and_torch_are_plain_arguments(tmp_path):
    flow = flowkit.coupling_flow(
        np.int64(2), layers=torch.tensor(1), hidden=np.array([8, 4]), seed=0,
        scalar=RationalQuadraticSpline(bins=np.int64(4)),
    )  # fmt: skip
    plain = flowkit.coupling_flow(
        2, layers=1, hidden=(8, 4), scalar=RationalQuadraticSpline(bins=4), seed=0
    )
    assert str(flow) == str(plain)
    x = torch.randn(3, 2)
    assert torch.equal(flow.log_prob(x), plain.log_prob(x))
    box = flowkit.box_flow(2, lower=np.zeros(2), upper=torch.ones(2), hidden=[8], order=range(2))
    for made in (flow, box):
        flowkit.save(made, tmp_path / "f")
        assert str(flowkit.load(tmp_path / "f")) == str(made)


def test_a_box_takes_one_end_for_all_features():
    support = flowkit.box_flow(2, lower=0, upper=[1, 2], hidden=(8,)).support
    assert (support.lower.tolist(), support.upper.tolist()) == ([0, 0], [1, 2])


def test_a_box_flow_serves_the_estimator():
    X = np.random.default_rng(0).random((100, 2))
    options = {"lower": 0, "upper": 1, "hidden": (8,)}
    model = FlowDensity("box_flow", options, epochs=1, random_state=0).fit(X)
    assert np.isneginf(model.score_samples(X + 2)).all()
    assert np.isfinite(model.score_samples(X)).all()


@pytest.mark.parametrize(
    ("name", "shape", "options", "factory"),
    [
        ("coupling_flow", 3, {}, MLP),
        ("autoregressive_flow", 3, {}, MaskedMLP),
        ("elementwise_flow", 3, {"context": 1}, MLP),
        ("box_flow", 3, {"lower": 0, "upper": 1, "n_frequencies": 2}, MaskedMLP),
        ("smooth_flow", 3, {"circular": True}, MLP),
        ("smooth_flow", 3, {"structure": "autoregressive"}, MaskedMLP),
        ("stochastic_flow", 2, {"energy": DoubleWell()}, MLP),
        ("tail_adaptive_flow", 3, {"tails": 3.0}, MaskedMLP),
        ("tail_adaptive_flow", 3, {"tails": 3.0, "structure": "coupling"}, MLP),
        ("glow_flow", (1, 4, 4), {}, ConvNet),
    ],
)
def test_every_recipe_of_networks_takes_a_factory_of_them(name, shape, options, factory, tmp_path):
    made = RECIPES[name](
        shape, **options, conditioner=functools.partial(factory, hidden=(7,)), seed=0
    )
    named = RECIPES[name](shape, **options, hidden=(7,), seed=0)
    assert any(7 in p.shape for p in made.parameters())
    assert made.state_dict().keys() == named.state_dict().keys()
    for option, value in (("hidden", (8,)), ("activation", "tanh")):
        with pytest.raises(ArgumentError, match=rf"{option} with a named conditioner alone"):
            RECIPES[name](shape, **options, conditioner=factory, **{option: value})


WRONG = [
    ("coupling_flow", 0, {}, "features as an integer >= 1, got 0"),
    ("coupling_flow", 2.5, {}, "an integer >= 1, got 2.5"),
    ("coupling_flow", 10**12, {}, "features as an integer >= 1 and <= 1"),
    ("coupling_flow", 2, {"layers": 10**12}, "layers as an integer >= 1 and <= 65536"),
    ("coupling_flow", 2, {"context": 10**12}, "context"),
    ("coupling_flow", 2, {"hidden": (10**12,)}, "hidden"),
    ("coupling_flow", 2, {"scalar": "spine"}, "did you mean 'spline'"),
    ("coupling_flow", 2, {"linear": "qr"}, "linear as one of .* got 'qr'"),
    ("coupling_flow", 1, {"linear": "qr"}, "linear as one of .* got 'qr'"),
    ("coupling_flow", 2, {"linear": ["lu"]}, "linear as one of .* got \\['lu'\\]"),
    ("coupling_flow", 2, {"base": "norml"}, "did you mean 'normal'"),
    ("coupling_flow", 2, {"base": None}, "base as one of .* got None"),
    ("coupling_flow", 2, {"conditioner": "cnn"}, "conditioner as one of .* got 'cnn'"),
    ("coupling_flow", 2, {"conditioner": 5}, "conditioner as one of .* got 5"),
    ("coupling_flow", 2, {"hidden": 64}, "got 64; remedy"),
    ("coupling_flow", 1, {"hidden": ()}, "hidden as one width or more, got \\(\\)"),
    ("coupling_flow", 2, {"activation": "swish"}, "activation as one of .* got 'swish'"),
    ("coupling_flow", 2, {"conditioner": "residual", "hidden": (8, 9)}, "ResidualMLP"),
    ("coupling_flow", 2, {"seed": -1}, "seed as an integer >= 0, got -1"),
    ("coupling_flow", 2, {"start": "copola"}, "start as one of .* did you mean 'copula'"),
    ("elementwise_flow", 2, {"start": "copula"}, "start as one of .* got 'copula'"),
    ("elementwise_flow", 2, {"context": -1}, "context as an integer >= 0"),
    ("elementwise_flow", 1, {"hidden": (8, 0.5)}, "got \\(8, 0.5\\)"),
    ("elementwise_flow", 1, {"hidden": (8,)}, "without context has no networks, got hidden"),
    ("elementwise_flow", 1, {"conditioner": "residual"}, "has no networks, got conditioner"),
    ("box_flow", 1, {"lower": 1, "upper": 0}, "expected lower < upper, got 1"),
    ("box_flow", 2, {"lower": [0, 0], "upper": [1]}, "one for each of 2 feature"),
    ("box_flow", 1, {"lower": 0, "upper": "one"}, "upper as a number"),
    ("box_flow", 1, {"lower": None, "upper": 1}, "as finite numbers, .*remedy: another recipe"),
    ("box_flow", 2, {"lower": 0, "upper": 1, "order": [0, 0]}, "permutation of .* 0 to 1"),
    ("box_flow", 1, {"lower": 0, "upper": 1, "n_frequencies": 0}, "n_frequencies as an integer"),
    ("box_flow", 1, {"lower": 0, "upper": 1, "max_frequency": 9.0}, "beside n_frequencies"),
    ("kernelised_flow", 2, {"points": 0}, "points as an integer >= 1"),
    ("kernelised_flow", 1, {}, "remedy: elementwise_flow"),
    ("kernelised_flow", 2, {"kernel": "matern"}, "kernel as one of"),
    ("kernelised_flow", 2, {"linear_term": 1}, "linear_term as True or False"),
    ("kernelised_flow", 2, {"n_frequencies": 0}, "n_frequencies as an integer"),
    ("kernelised_flow", 2, {"n_frequencies": 4, "points": 5}, "has no points, got points=5"),
    ("kernelised_flow", 2, {"n_frequencies": 4, "learn_points": True}, "has no points"),
    ("kernelised_flow", 4, {"n_frequencies": 8, "kernel": "rational-quadratic"}, "spectral den"),
    ("tail_adaptive_flow", 2, {"tails": []}, "a tail index > 0 for each of 2"),
    ("tail_adaptive_flow", 1, {"tails": -1.0}, "a tail index > 0"),
    ("tail_adaptive_flow", 1, {"tails": [2.0], "variant": "mtaff"}, "did you mean 'mtaf'"),
    ("tail_adaptive_flow", 1, {"tails": [(2.0, 0)]}, "or a pair, left and right"),
    ("tail_adaptive_flow", 1, {"tails": [(2.0,)]}, "or a pair"),
    ("tail_adaptive_flow", 1, {"tails": 2.0, "structure": "coupling"}, "remedy: structure='auto"),
    ("tail_adaptive_flow", 1, {"tails": 2.0, "structure": "masked"}, "structure as one of"),
    ("tail_adaptive_flow", 1, {"tails": 2.0, "scalar": "cubic"}, "scalar as one of .* got 'cub"),
    ("dense_flow", (), {}, "event_shape as .* integers, all >= 1, got \\(\\)"),
    ("dense_flow", (1, 0), {}, "event_shape as .* all >= 1"),
    ("dense_flow", 3, {"lower": 1, "upper": 1}, "expected lower < upper, got 1.0 and 1.0"),
    ("dense_flow", 3, {"lower": 1}, "both lower and upper, or neither"),
    ("dense_flow", 3, {"standardize": 1}, "True or False, got 1"),
    ("dense_flow", 3, {"negative_slope": 2.0}, "negative_slope as a finite number > 0 and < 1"),
    ("conv_flow", 3, {}, "an image \\(channels, height, width\\), got .*; remedy: dense_flow"),
    (
        "conv_flow",
        (1, 6, 4),
        {"scales": 3},
        "scales as an integer .*<= 2, got 3; .* halved 1 times",
    ),
    ("conv_flow", (1, 4, 4), {"kernel": 2}, "kernel as odd .* got 2"),
    ("glow_flow", (1, 3, 3), {}, "images that can be halved"),
    ("stochastic_flow", 2, {"energy": 3.0}, "energy as an Energy, a function of x"),
    ("stochastic_flow", 2, {"energy": "double_well", "scalar": None, "hidden": (8,)}, "no networ"),
]


@pytest.mark.parametrize(("name", "shape", "options", "message"), WRONG)
def test_wrong_arguments_are_named(name, shape, options, message):
    with pytest.raises(ArgumentError, match=message):
        RECIPES[name](shape, **options)


@pytest.mark.parametrize(
    ("name", "columns", "options", "message"),
    [
        ("couplng_flow", 2, {}, "recipe as one of .* did you mean 'coupling_flow'"),
        (None, 2, {}, "recipe as one of"),
        ("coupling_flow", 2, {"layer": 3}, "did you mean 'layers'"),
        ("coupling_flow", 2, {"features": 3}, "takes features from the table, got features=3"),
        ("box_flow", 2, {"lower": 0}, "box_flow expected the option\\(s\\) upper, got none"),
        ("glow_flow", 2, {}, "expected event_shape as an image"),
    ],
)
def test_wrong_recipes_of_tables_are_named(name, columns, options, message):
    with pytest.raises(ArgumentError, match=message):
        build_for_columns(name, columns, **options)


def test_a_users_recipe_joins_the_registry():
    def small_flow(features: int) -> flowkit.Flow:
        return flowkit.elementwise_flow(features)

    RECIPES["small_flow"] = small_flow
    try:
        assert build_for_columns("small_flow", 2).event_shape == (2,)
        assert FlowDensity("small_flow", epochs=1).fit(np.random.rand(50, 2)).n_features_in_ == 2
    finally:
        del RECIPES["small_flow"]
