"""With the same parameters nflows and flowkit give the same numbers: 1e-6 relative in float64."""

import ast
import copy
import math
import pickle
import subprocess
import sys
from functools import partial

import nflows.distributions as nd
import nflows.flows as nfl
import nflows.transforms as nt
import pytest
import torch
from nflows.nn import nets
from nflows.transforms.splines import rational_quadratic
from torch import nn
from torch.nn import functional as F

from flowkit import Flow, save
from flowkit.bases import StandardNormal
from flowkit.conditioners import MLP, MaskedMLP, ResidualMLP
from flowkit.errors import ArgumentError, ConversionError
from flowkit.interop.nflows import from_nflows, to_nflows
from flowkit.interop.nflows.features import OnFeatures
from flowkit.interop.nflows.nets import HeldMADE, HeldNet
from flowkit.interop.nflows.scalars import (
    Shift,
    SigmoidAffine,
    SoftplusAffine,
    SoftplusIntervalSpline,
    SoftplusSpline,
)
from flowkit.scalar import (
    Affine,
    IntervalSpline,
    LogisticMixture,
    RationalQuadraticSpline,
)
from flowkit.stochastic import MALA
from flowkit.testing import check_transform
from flowkit.toys import DoubleWell
from flowkit.transforms import (
    ActNorm,
    Compose,
    Conv1x1,
    Coupling,
    Elementwise,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    TriangularLinear,
)

pytestmark = [
    # nflows 0.14 was written for torch 1.x and calls functions that torch 2 deprecates.
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.qr is deprecated:UserWarning"),
]

D, C, ROWS = 4, 3, 64
MASK = [1, 0, 1, 0]


def randomised(module):
    """Move every parameter and statistic away from its start; float64, eval mode."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for m in module.modules():
            if hasattr(m, "running_mean") and m.running_mean is not None:
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2.0)
    return module.double().eval()


def same(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-9)


def inputs(unit):
    x = 2 * torch.randn(ROWS, D, dtype=torch.float64)
    return torch.sigmoid(x) if unit else x


def same_transform(one, other, unit=False, context=None, invertible=True):
    x = inputs(unit)
    for a, b in zip(one(x, context), other(x, context), strict=True):
        same(a, b)
    if invertible:
        z = one(x, context)[0]
        for a, b in zip(one.inverse(z, context), other.inverse(z, context), strict=True):
            same(a, b)


def residual_net(context=None, **kwargs):
    return lambda i, o: nets.ResidualNet(i, o, 8, context_features=context, num_blocks=1, **kwargs)


def spline_coupling(**kwargs):
    options = {"num_bins": 5, "tails": "linear", "tail_bound": 3.0}
    options.update(kwargs)
    net = options.pop("net", residual_net())
    return nt.PiecewiseRationalQuadraticCouplingTransform(MASK, net, **options)


def masked_spline(**kwargs):
    options = {"num_bins": 5, "tails": "linear", "tail_bound": 3.0, "num_blocks": 1}
    options.update(kwargs)
    return nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(D, 9, **options)


def masked_affine(**kwargs):
    return nt.MaskedAffineAutoregressiveTransform(D, 9, **kwargs)


def squashed_spline():
    spline = nt.PiecewiseRationalQuadraticCDF([D], 5)
    return nt.CompositeCDFTransform(nt.Sigmoid(), spline)


def random_householder(count):
    layer = nt.HouseholderSequence(D, count)
    nn.init.normal_(layer.q_vectors)
    return layer


feedforward = {"use_residual_blocks": False}
LAYERS = {
    "composite": lambda: nt.CompositeTransform([nt.LULinear(D), nt.ReversePermutation(D)]),
    "inverse": lambda: nt.InverseTransform(nt.LULinear(D)),
    "identity": lambda: nt.CompositeTransform([nt.IdentityTransform(), nt.LULinear(D)]),
    "permutation": lambda: nt.Permutation(torch.tensor([2, 0, 3, 1])),
    "random permutation": lambda: nt.RandomPermutation(D),
    "reverse permutation": lambda: nt.ReversePermutation(D),
    "lu": lambda: nt.LULinear(D, identity_init=False),
    "svd": lambda: nt.SVDLinear(D, 2, identity_init=False),
    "qr": lambda: nt.QRLinear(D, 3),
    "householder": lambda: random_householder(4),
    "odd householder": lambda: random_householder(3),
    "batch norm": lambda: nt.BatchNorm(D),
    "act norm": lambda: nt.ActNorm(D),
    "affine": lambda: nt.PointwiseAffineTransform(torch.randn(D), torch.rand(D) + 0.5),
    "affine coupling": lambda: nt.AffineCouplingTransform(MASK, residual_net()),
    "additive coupling": lambda: nt.AdditiveCouplingTransform(MASK, residual_net()),
    "batch-normed net": lambda: nt.AffineCouplingTransform(
        MASK, residual_net(use_batch_norm=True, dropout_probability=0.3)
    ),
    "spline coupling": spline_coupling,
    "spline coupling, all moved": lambda: spline_coupling(apply_unconditional_transform=True),
    "maf": masked_affine,
    "feed-forward maf": lambda: masked_affine(**feedforward),
    "random-mask maf": lambda: masked_affine(**feedforward, random_mask=True),
    "batch-normed maf": lambda: masked_affine(use_batch_norm=True),
    "masked spline": masked_spline,
    "feed-forward masked spline": lambda: masked_spline(**feedforward, activation=torch.tanh),
    "elementwise spline": lambda: nt.PiecewiseRationalQuadraticCDF([D], 5, "linear", 3.0),
    "squashed spline": squashed_spline,
}
UNIT_LAYERS = {
    "logit": lambda: nt.CompositeTransform([nt.Logit(), nt.LULinear(D)]),
    "logit with temperature": lambda: nt.CompositeTransform([nt.Logit(0.5), nt.LULinear(D)]),
    "unit spline coupling": lambda: spline_coupling(tails=None),
    "unit spline coupling, all moved": lambda: spline_coupling(
        tails=None, apply_unconditional_transform=True
    ),
    "unit masked spline": lambda: masked_spline(tails=None),
    "unit elementwise spline": lambda: nt.PiecewiseRationalQuadraticCDF([D], 5),
}
CONDITIONAL_LAYERS = {
    "affine coupling": lambda: nt.AffineCouplingTransform(MASK, residual_net(C)),
    "spline coupling": lambda: spline_coupling(net=residual_net(C)),
    "nothing stays": lambda: nt.AffineCouplingTransform([1] * D, residual_net(C)),
    "maf": lambda: masked_affine(context_features=C),
    "feed-forward maf": lambda: masked_affine(context_features=C, **feedforward),
    "masked spline": lambda: masked_spline(context_features=C),
}


@pytest.mark.parametrize("name", LAYERS)
def test_nflows_layers_have_the_same_numbers_in_flowkit(name):
    theirs = randomised(LAYERS[name]())
    ours = from_nflows(theirs)
    same_transform(ours, theirs)


@pytest.mark.parametrize("name", UNIT_LAYERS)
def test_nflows_layers_of_the_unit_interval_keep_their_numbers(name):
    theirs = randomised(UNIT_LAYERS[name]())
    ours = from_nflows(theirs)
    same_transform(ours, theirs, unit=True)


@pytest.mark.parametrize("name", CONDITIONAL_LAYERS)
def test_conditional_nflows_layers_keep_their_numbers(name):
    theirs = randomised(CONDITIONAL_LAYERS[name]())
    context = torch.randn(ROWS, C, dtype=torch.float64)
    ours = from_nflows(theirs)
    same_transform(ours, theirs, context=context)


def test_a_naive_linear_layer_gains_the_inverse_that_nflows_lost():
    theirs = randomised(nt.NaiveLinear(D))
    ours = from_nflows(theirs)
    same_transform(ours, theirs, invertible=False)
    x = inputs(unit=False)
    z, log_det = ours(x)
    back, log_det_back = ours.inverse(z)
    same(back, x)
    same(log_det_back, -log_det)


CONTRACT = {
    "shift": lambda: Coupling([False, True, True], Shift(), conditioner=small_mlp),
    "sigmoid affine": lambda: Coupling(
        [False, True, True], SigmoidAffine(), conditioner=small_mlp
    ),
    "softplus affine": lambda: Coupling(
        [False, True, True], SoftplusAffine(), conditioner=small_mlp
    ),
    "held coupling net": lambda: from_nflows(spline_coupling(num_bins=3)),
    "held conditional net": lambda: from_nflows(spline_coupling(net=residual_net(C), num_bins=3)),
    "held made": lambda: from_nflows(masked_affine()),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_converted_layers_obey_the_contract(name):
    check_transform(
        CONTRACT[name](),
        starts_at_identity=False,
        skip={"R12": "starts where nflows starts", "R16": "may hold a function of nflows"},
        dtypes=(torch.float64,),
        far=(1e2,),
        backend="aot_eager",
    )


@pytest.fixture
def double():
    """nflows draws its noise in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def same_flow(one, other, context=None):
    x = inputs(unit=False)
    same(one.log_prob(x, context), other.log_prob(x, context))


def same_samples(ours, theirs):
    torch.manual_seed(1)
    a = ours.sample(50)
    torch.manual_seed(1)
    same(a, theirs.sample(50))


# From flowkit


def small_mlp(i, o, context=0):
    return MLP(i, o, context=context, hidden=(8,))


def small_residual(i, o, context=0):
    return ResidualMLP(i, o, context=context, hidden=(8, 8))


def small_masked(i, o, context=0):
    return MaskedMLP(i, o, context=context, hidden=(9, 7))


MOVED = [True, False, True, False]
FLOWKIT_LAYERS = {
    "compose": lambda: Compose(LULinear(D), Permutation([2, 0, 3, 1]), LULinear(D).inv),
    "lu": lambda: LULinear(D),
    "triangular": lambda: TriangularLinear(D),
    "orthogonal": lambda: OrthogonalLinear(D),
    "act norm": lambda: ActNorm(D),
    "affine": lambda: Elementwise(D, Affine()),
    "elementwise spline": lambda: Elementwise(D, RationalQuadraticSpline(6)),
    "affine coupling": lambda: Coupling(MOVED, Affine(), conditioner=small_mlp),
    "spline coupling": lambda: Coupling(MOVED, conditioner=small_residual),
    "maf": lambda: MaskedAutoregressive(D, Affine(), conditioner=small_masked, order=[2, 0, 3, 1]),
    "masked spline": lambda: MaskedAutoregressive(
        D, None, conditioner=small_masked, order=[2, 0, 3, 1]
    ),
}
CONDITIONAL_FLOWKIT_LAYERS = {
    "affine": lambda: Elementwise(D, Affine(), context=C, conditioner=small_mlp),
    "elementwise spline": lambda: Elementwise(D, None, context=C, conditioner=small_mlp),
    "affine coupling": lambda: Coupling(MOVED, Affine(), conditioner=small_mlp, context=C),
    "spline coupling": lambda: Coupling(MOVED, None, conditioner=small_mlp, context=C),
    "masked spline": lambda: MaskedAutoregressive(D, None, conditioner=small_masked, context=C),
}


def flow_of_nflows(transform, base=None, embedding=None):
    return nfl.Flow(to_nflows(transform), base or nd.StandardNormal([D]), embedding)


@pytest.mark.parametrize("name", FLOWKIT_LAYERS)
def test_flowkit_layers_score_and_sample_in_flows_of_nflows(name, double):
    layer = randomised(FLOWKIT_LAYERS[name]())
    theirs, ours = flow_of_nflows(layer), Flow(layer, StandardNormal(D).double())
    same_flow(theirs, ours)
    same_samples(ours, theirs)
    x, log_prob = theirs.sample_and_log_prob(20)
    same(ours.log_prob(x), log_prob)


@pytest.mark.parametrize("name", CONDITIONAL_FLOWKIT_LAYERS)
def test_conditional_flowkit_layers_read_the_context_of_nflows(name, double):
    layer = randomised(CONDITIONAL_FLOWKIT_LAYERS[name]())
    embedding = nn.Linear(2, C)
    theirs = flow_of_nflows(layer, embedding=embedding)
    ours = Flow(layer, StandardNormal(D), embedding=embedding)
    context = torch.randn(ROWS, 2)
    same_flow(theirs, ours, context)
    assert (theirs.log_prob(inputs(unit=False), context[:1].expand(ROWS, 2)).std() > 0).item()
    # nflows puts the context first, flowkit the samples; one context needs no order.
    torch.manual_seed(1)
    a = theirs.sample(20, context[:1])
    torch.manual_seed(1)
    same(ours.sample(20, context[:1]).transpose(0, 1), a)


def test_flowkit_and_nflows_layers_stand_in_one_stack(double):
    coupling = randomised(Coupling(MOVED, LogisticMixture(3), conditioner=small_mlp))
    lu = randomised(nt.LULinear(D))
    theirs = nfl.Flow(nt.CompositeTransform([to_nflows(coupling), lu]), nd.StandardNormal([D]))
    ours = Flow(Compose(coupling, from_nflows(lu)), StandardNormal(D))
    same_flow(theirs, ours)
    same_samples(ours, theirs)
    same_flow(from_nflows(theirs), ours)


def test_context_that_only_the_base_reads_is_handed_on(double):
    layer = randomised(LULinear(D))
    theirs = flow_of_nflows(layer, nd.ConditionalDiagonalNormal([D], nn.Linear(C, 2 * D)))
    assert from_nflows(theirs).context_size == C
    same_flow(from_nflows(theirs), theirs, torch.randn(ROWS, C))


def test_training_in_nflows_trains_the_flowkit_layer():
    layer = randomised(Coupling(MOVED, Affine(), conditioner=small_mlp))
    theirs = flow_of_nflows(layer)
    assert [p is q for p, q in zip(theirs.parameters(), layer.parameters(), strict=True)]
    x = 3 + inputs(unit=False)
    before = -theirs.log_prob(x).mean()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = -theirs.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    assert loss < before
    assert -Flow(layer, StandardNormal(D).double()).log_prob(x).mean() < before


def test_images_go_through_flows_of_nflows(double):
    layer = randomised(Conv1x1(3))
    theirs = nfl.Flow(to_nflows(layer), nd.StandardNormal([3, 4, 4]))
    x = torch.randn(5, 3, 4, 4)
    same(theirs.log_prob(x), Flow(layer, StandardNormal((3, 4, 4))).log_prob(x))
    assert theirs.sample(2).shape == (2, 3, 4, 4)


def test_wrapped_layers_are_copied_and_come_back():
    layer = randomised(Coupling(MOVED, LogisticMixture(3), conditioner=small_mlp))
    theirs = flow_of_nflows(layer)
    copied = pickle.loads(pickle.dumps(theirs))
    same_flow(copied, theirs)
    back = from_nflows(theirs).transform
    assert str(back) == str(layer)
    assert back is not layer


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (nt.LULinear(D), "to_nflows expected transform as a Transform, got LULinear"),
        (Flow(LULinear(D), StandardNormal(D)), "to_nflows.flow.transform"),
        (MALA(DoubleWell(), step_size=0.1), "without stochastic layers"),
    ],
)
def test_what_cannot_be_wrapped_is_named(transform, match):
    with pytest.raises(ArgumentError, match=match):
        to_nflows(transform)


# The spline itself


LEAST = 1e-3  # nflows' least width and height


def their_numbers(ours, raw):
    """The raw widths, heights and slopes that nflows turns into the same knots."""
    widths, heights, slopes = ours.knots(raw)
    slopes = slopes - ours.min_slope
    if isinstance(ours, RationalQuadraticSpline):
        slopes = slopes[..., 1:-1]  # those at both ends are one
    return (widths - LEAST).log(), (heights - LEAST).log(), torch.log(torch.expm1(slopes))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", [RationalQuadraticSpline, SoftplusSpline])
def test_the_spline_is_nflows_spline(kind, inverse):
    raw = torch.randn(500, 3 * 8 - 1, dtype=torch.float64)
    x = torch.linspace(-4, 4, 500, dtype=torch.float64)
    ours = kind(bins=8, bound=3.0, min_size=8 * LEAST)
    theirs = rational_quadratic.unconstrained_rational_quadratic_spline(
        x, *their_numbers(ours, raw), inverse=inverse, tail_bound=3.0
    )
    for a, b in zip((ours.inverse if inverse else ours.forward)(x, raw), theirs, strict=True):
        same(a, b)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", [IntervalSpline, SoftplusIntervalSpline])
def test_the_interval_spline_is_nflows_spline(kind, inverse):
    raw = torch.randn(500, 3 * 8 + 1, dtype=torch.float64)
    x = torch.rand(500, dtype=torch.float64)
    ours = kind(bins=8, min_size=8 * LEAST)
    theirs = rational_quadratic.rational_quadratic_spline(
        x, *their_numbers(ours, raw), inverse=inverse
    )
    for a, b in zip((ours.inverse if inverse else ours.forward)(x, raw), theirs, strict=True):
        same(a, b)


@pytest.mark.parametrize("kind", [SoftplusSpline, SoftplusIntervalSpline])
def test_the_spline_of_nflows_has_softmax_sizes_and_softplus_slopes(kind):
    spline = kind(bins=4, min_size=4 * LEAST)
    raw = 10 * torch.randn(50, spline.param_size, dtype=torch.float64)
    widths, heights, slopes = spline.knots(raw)
    for got, logits in ((widths, raw[:, :4]), (heights, raw[:, 4:8])):
        same(got, LEAST + (1 - 4 * LEAST) * torch.softmax(logits, -1))
    offset = math.log(math.expm1(1 - 1e-3))
    free = slopes if kind is SoftplusIntervalSpline else slopes[..., 1:-1]
    same(free, 1e-3 + torch.nn.functional.softplus(raw[:, 8:] + offset))


# Whole flows


FLOWS = {
    "maf": lambda: nfl.MaskedAutoregressiveFlow(
        D, 9, 2, 1, use_residual_blocks=False, batch_norm_between_layers=True
    ),
    "realnvp": lambda: nfl.SimpleRealNVP(D, 8, 3, 1, batch_norm_between_layers=True),
    "nice": lambda: nfl.SimpleRealNVP(D, 8, 3, 1, use_volume_preserving=True),
    "spline": lambda: nfl.Flow(
        nt.CompositeTransform([nt.LULinear(D), spline_coupling(), masked_spline()]),
        nd.StandardNormal([D]),
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_score_and_sample_alike(name, double):
    theirs = randomised(FLOWS[name]())
    ours = from_nflows(theirs)
    same_flow(ours, theirs)
    same_samples(ours, theirs)


@pytest.mark.parametrize(
    "encoder", [None, nn.Linear(C, 2 * D), nn.Sequential(nn.Linear(C, 7), nn.Linear(7, 2 * D))]
)
def test_conditional_flows_with_an_embedding_score_and_sample_alike(encoder, double):
    embedded = 2 * D if encoder is None else C
    theirs = randomised(
        nfl.Flow(
            nt.CompositeTransform([spline_coupling(net=residual_net(embedded)), nt.LULinear(D)]),
            nd.ConditionalDiagonalNormal([D], copy.deepcopy(encoder)),
            nets.MLP([2], [embedded], [6], activation=torch.tanh),
        )
    )
    ours = from_nflows(theirs)
    assert isinstance(ours.embedding, MLP)
    context = torch.randn(ROWS, 2)
    same_flow(ours, theirs, context)
    # nflows puts the context first, flowkit the samples; one context needs no order.
    torch.manual_seed(1)
    a = theirs.sample(20, context[:1])
    torch.manual_seed(1)
    same(ours.sample(20, context[:1]).transpose(0, 1), a)


def test_a_diagonal_normal_has_the_same_density(double):
    theirs = randomised(nfl.Flow(nt.LULinear(D), nd.DiagonalNormal([D])))
    same_flow(from_nflows(theirs), theirs)


def test_converted_flows_take_any_batch_shape():
    theirs = randomised(nfl.SimpleRealNVP(D, 8, 2, 1))
    ours = from_nflows(theirs)
    x = inputs(unit=False)
    rows = theirs.log_prob(x)
    same(ours.log_prob(x.reshape(4, 16, D)), rows.reshape(4, 16))
    same(ours.log_prob(x[0]), rows[0])
    assert ours.log_prob(x[:0]).shape == (0,)


def test_one_step_of_training_is_the_same_step_on_both_sides():
    """For layers with the same raw parameters; LU layers hold their diagonals differently."""
    layers = nt.CompositeTransform([spline_coupling(), masked_spline()])
    theirs = randomised(nfl.Flow(layers, nd.StandardNormal([D])))
    ours = from_nflows(theirs)
    x = inputs(unit=False)
    for flow in (theirs, ours):
        optimizer = torch.optim.SGD(flow.parameters(), lr=1e-2)
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
    same_flow(ours, theirs)


def test_nothing_is_shared_with_the_source():
    theirs = randomised(nfl.SimpleRealNVP(D, 8, 2, 1))
    ours = from_nflows(theirs)
    x = inputs(unit=False)
    before = theirs.log_prob(x)
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert torch.equal(theirs.log_prob(x), before)


def test_converted_flows_can_be_pickled():
    ours = from_nflows(randomised(FLOWS["spline"]()))
    same_flow(pickle.loads(pickle.dumps(ours)), ours)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nt.PiecewiseRationalQuadraticCDF([D], 5, "linear", 3.0),
        lambda: nt.CompositeTransform([nt.LULinear(D), nt.ReversePermutation(D), nt.ActNorm(D)]),
    ],
)
def test_converted_flows_without_networks_of_nflows_are_saved(layer, tmp_path):
    ours = from_nflows(randomised(nfl.Flow(layer(), nd.StandardNormal([D]))))
    save(ours, tmp_path / "flow.safetensors")
    program = (
        "import flowkit, sys, torch\n"
        "flow, x = flowkit.load(sys.argv[1]), torch.ones(3, 4, dtype=torch.float64)\n"
        "print(flow.log_prob(x).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "flow.safetensors"],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ours.log_prob(torch.ones(3, D, dtype=torch.float64))
    same(torch.tensor(ast.literal_eval(done.stdout)), expected)


def test_training_mode_and_dtype_are_those_of_the_source():
    theirs = nfl.SimpleRealNVP(D, 8, 2, 1)
    assert from_nflows(theirs).training
    assert from_nflows(theirs).dtype == torch.float32
    theirs = theirs.double().eval()
    assert not from_nflows(theirs).training
    assert from_nflows(theirs).log_prob(inputs(unit=False)).dtype == torch.float64


def test_a_trained_flow_does_not_start_again_from_data():
    norm = nt.ActNorm(D)
    flow = nfl.Flow(norm, nd.StandardNormal([D]))
    assert not from_nflows(flow).initialized
    flow.log_prob(torch.randn(10, D))
    assert norm.initialized
    assert from_nflows(flow).initialized


# Which networks become flowkit's own


def test_a_feed_forward_made_becomes_a_masked_mlp_that_unrolls_in_one_pass():
    # Nine hidden units share three degrees equally, so sorting them gives MaskedMLP's masks.
    ours = from_nflows(masked_affine(**feedforward))
    assert isinstance(ours.conditioner, MaskedMLP)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {**feedforward, "random_mask": True},
        {**feedforward, "context_features": C},
        {**feedforward, "dropout_probability": 0.1},
        {**feedforward, "use_batch_norm": True},
        {**feedforward, "activation": lambda h: F.relu(h) ** 2},
    ],
)
def test_other_mades_are_held_as_they_are(kwargs):
    assert isinstance(from_nflows(masked_affine(**kwargs)).conditioner, HeldMADE)


def test_networks_of_ones_own_are_held_and_may_read_context():
    class Net(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.linear = nn.Linear(i + C, o)

        def forward(self, x, context):
            return torch.tanh(self.linear(torch.cat([x, context], -1)))

    theirs = randomised(nt.AffineCouplingTransform(MASK, Net))
    ours = from_nflows(theirs, context=C)
    assert isinstance(ours.conditioner, HeldNet)
    same_transform(ours, theirs, context=torch.randn(ROWS, C, dtype=torch.float64))


# What cannot be converted says so


class Odd(nt.LULinear):
    """A user's layer that computes something else."""

    def logabsdet(self):
        return 2 * super().logabsdet()


class Named(nt.LULinear):
    """A user's layer that only sets defaults."""

    def __init__(self):
        super().__init__(D)


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (nt.Tanh(), "Tanh has no counterpart.*remedy"),
        (nt.SqueezeTransform(), "SqueezeTransform has no counterpart"),
        (Odd(D), "Odd has no counterpart"),
        (nt.CompositeTransform([nt.LULinear(D), nt.LeakyReLU()]), "LeakyReLU has no counterpart"),
        (nt.BatchNorm(D), "BatchNorm in training mode.*eval"),
        (nt.Permutation(torch.arange(D), dim=2), "dim=2.*flatten"),
        (nt.Sigmoid(), "Sigmoid does not tell its number of features.*features="),
        (nt.PiecewiseRationalQuadraticCDF([2, 2], 5), "vectors.*flatten"),
        (nt.PointwiseAffineTransform(torch.zeros(2, 2)), "vectors.*flatten"),
        (masked_spline(min_bin_width=1e-2), "min_bin_width=0.01.*equal ones"),
        (
            nt.AffineCouplingTransform([1, 0], lambda i, o: nets.ConvResidualNet(i, o, 4)),
            "convolutional network",
        ),
        (nd.StandardNormal([D]), "expected an nflows Flow or Transform, got StandardNormal"),
        (nfl.Flow(nt.LULinear(D), nd.MADEMoG(D, 8, 2)), "MADEMoG has no counterpart"),
        (nfl.Flow(nt.ActNorm(2), nd.StandardNormal([2, 3, 3])), r"shape \(2, 3, 3\)"),
        (
            nfl.Flow(nt.LULinear(D), nd.ConditionalDiagonalNormal([D], nn.Sequential())),
            "how many context features.*context=",
        ),
    ],
)
def test_what_flowkit_has_not_is_named_with_its_remedy(layer, match):
    with pytest.raises(ConversionError, match=match):
        from_nflows(layer)


def test_a_subclass_that_only_sets_defaults_is_converted():
    theirs = randomised(Named())
    same_transform(from_nflows(theirs), theirs)


# What is not read is refused, and nothing is left out


def residual(i, o):
    return nets.ResidualNet(i, o, hidden_features=8)


OTHERS = {
    "an affine map": lambda features: nt.PointwiseAffineTransform(1.0, 2.0),
    "a matrix": lambda features: randomised(nt.LULinear(features)),
    "a stack": lambda features: nt.CompositeTransform(
        [nt.ReversePermutation(features), randomised(nt.ActNorm(features))]
    ),
    "a spline": lambda features: randomised(
        nt.PiecewiseRationalQuadraticCDF([features], tails="linear", tail_bound=2.0)
    ),
}


@pytest.mark.parametrize("kind", [nt.AdditiveCouplingTransform, nt.AffineCouplingTransform])
@pytest.mark.parametrize("other", OTHERS)
def test_what_a_coupling_does_to_the_features_it_conditions_on_is_kept(kind, other):
    theirs = randomised(kind(MASK, residual, unconditional_transform=OTHERS[other]))
    ours = from_nflows(theirs)
    x = torch.randn(ROWS, D, dtype=torch.float64)
    (z, log_det), (expected, expected_log_det) = ours(x), theirs(x)
    same(z, expected)
    same(log_det, expected_log_det)
    same(ours.inverse(z)[0], x)


def test_a_transform_of_some_features_keeps_the_contract():
    layer = OnFeatures(
        3, [2, 0], Coupling([False, True], Affine(), conditioner=small_mlp, context=1)
    )
    skip = {"R8": "a coupling is compiled elsewhere", "R16": "its network is of this file"}
    check_transform(layer, skip=skip)
    z, _ = layer(torch.ones(3), torch.ones(1))
    assert z[1] == 1


def test_a_transform_of_some_features_carries_their_ends():
    flow = Flow(
        OnFeatures(3, [2, 0], Logit(2, lower=[0.0, 1.0], upper=[5.0, 7.0])), StandardNormal(3)
    )
    x = torch.tensor([[3.0, -9.0, 2.0], [0.5, 0.0, 2.0], [3.0, 0.0, 6.0]])
    assert flow.support.lower.tolist() == [1.0, -math.inf, 0.0]
    assert flow.support.upper.tolist() == [7.0, math.inf, 5.0]
    assert flow.support.check(x).tolist() == [True, False, False]
    mixed = Flow(Compose(OnFeatures(3, [1], Logit(1)), LULinear(3)), StandardNormal(3))
    assert mixed.support.upper.tolist() == [math.inf, 1.0, math.inf]


def test_the_case_of_an_additive_coupling_that_scales_what_it_reads():
    theirs = nt.AdditiveCouplingTransform(
        torch.tensor([1, 0, 1]),
        residual,
        unconditional_transform=lambda features: nt.PointwiseAffineTransform(1.0, 2.0),
    ).eval()
    z, log_det = from_nflows(theirs)(torch.ones(1, 3))
    assert z[0, 1].item() == pytest.approx(3.0)
    assert log_det.item() == pytest.approx(math.log(2))


def test_a_hook_that_changes_numbers_is_refused():
    theirs = randomised(nt.LULinear(D))
    theirs.register_forward_hook(lambda module, args, out: (2 * out[0], out[1]))
    with pytest.raises(ConversionError, match="LULinear computes other numbers.*hook.*remedy"):
        from_nflows(theirs)


def test_an_attribute_that_was_changed_after_training_is_refused_where_it_is_not_read():
    theirs = randomised(nt.AffineCouplingTransform(MASK, residual))
    # A method of this object alone, as a patch of a published model would set it.
    theirs._scale_and_shift = lambda p: (torch.ones_like(p[:, :2]) * 3.0, p[:, :2])
    with pytest.raises(ConversionError, match="AffineCouplingTransform computes other numbers"):
        from_nflows(theirs)
    stack = nt.CompositeTransform([nt.ReversePermutation(D), theirs])
    with pytest.raises(ConversionError, match="AffineCouplingTransform computes other numbers"):
        from_nflows(stack)


def test_a_layer_that_cannot_be_called_says_that_it_was_not_checked():
    theirs = randomised(nt.AffineCouplingTransform(MASK, lambda i, o: nn.Linear(i, o)))
    with pytest.raises(ConversionError, match="could not be checked.*TypeError.*remedy"):
        from_nflows(theirs)


def test_a_probe_changes_nothing_in_its_source():
    theirs = nt.CompositeTransform(
        [nt.ActNorm(D), nt.AffineCouplingTransform(MASK, residual)]
    ).train()
    before = copy.deepcopy(theirs.state_dict())
    state = torch.get_rng_state()
    from_nflows(theirs)
    assert theirs.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("bound", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_converted_spline_is_exact_at_its_bounds(bound, dtype):
    theirs = nt.PiecewiseRationalQuadraticCDF([1], num_bins=8, tails="linear", tail_bound=bound)
    randomised(theirs).to(dtype)
    ours = from_nflows(theirs)
    end, far = torch.tensor(bound, dtype=dtype), torch.tensor(math.inf, dtype=dtype)
    x = torch.stack([end, torch.nextafter(end, far), -end, torch.nextafter(-end, -far)])
    x = x.unsqueeze(-1)
    for direction in (ours, ours.inverse):
        z, log_det = direction(x)
        assert torch.equal(z, x)
        # The slope at the ends and beyond is one.
        assert (log_det.abs() <= 4 * torch.finfo(dtype).eps).all()
    inner = torch.stack([torch.nextafter(end, -far), torch.nextafter(-end, far)]).unsqueeze(-1)
    z, log_det = ours(inner)
    assert ((z - inner).abs() <= 4 * torch.finfo(dtype).eps * bound).all()


def every_nflows_transform():
    """One of each public transform of nflows, made for vectors of D numbers where it can be."""
    networks = {"features": D, "hidden_features": 8, "num_blocks": 1}
    special = {
        "CompositeCDFTransform": lambda: nt.CompositeCDFTransform(
            nt.Sigmoid(), nt.PiecewiseRationalQuadraticCDF([D])
        ),
        "CompositeTransform": lambda: nt.CompositeTransform([nt.ReversePermutation(D)]),
        "HouseholderSequence": lambda: nt.HouseholderSequence(D, 2),
        "InverseTransform": lambda: nt.InverseTransform(nt.LULinear(D)),
        "MultiscaleCompositeTransform": lambda: nt.MultiscaleCompositeTransform(2),
        "OneByOneConvolution": lambda: nt.OneByOneConvolution(D),
        "Permutation": lambda: nt.Permutation(torch.tensor([2, 0, 1, 3])),
        "QRLinear": lambda: nt.QRLinear(D, 2),
        "SVDLinear": lambda: nt.SVDLinear(D, 2),
    }
    for name in sorted(vars(nt)):
        kind = getattr(nt, name)
        if not isinstance(kind, type) or not issubclass(kind, nt.Transform):
            continue
        if kind is nt.Transform:
            continue
        if name in special:
            make = special[name]
        elif name.startswith("Masked"):
            bins = {} if "Affine" in name else {"num_bins": 4}
            tails = {"tails": "linear"} if "Quadratic" in name else {}
            make = partial(kind, **networks, **bins, **tails)
        elif name.endswith("CouplingTransform"):
            make = partial(kind, MASK, residual)
        elif name.startswith("Piecewise"):
            make = partial(kind, [D])
        elif name in ("ActNorm", "BatchNorm", "LULinear", "NaiveLinear") or "Perm" in name:
            make = partial(kind, D)
        else:
            make = kind
        yield pytest.param(name, make, id=name)


REFUSED = {
    "GatedLinearUnit",
    "LeakyReLU",
    "LogTanh",
    "MultiscaleCompositeTransform",
    "OneByOneConvolution",
    "SqueezeTransform",
    "Tanh",
    *(
        f"{prefix}Piecewise{kind}{suffix}"
        for kind in ("Linear", "Quadratic", "Cubic")
        for prefix, suffix in (
            ("", "CDF"),
            ("", "CouplingTransform"),
            ("Masked", "AutoregressiveTransform"),
        )
    ),
}


@pytest.mark.filterwarnings("ignore:Use PointwiseAffineTransform:DeprecationWarning")
@pytest.mark.parametrize(("name", "make"), list(every_nflows_transform()))
def test_every_transform_of_nflows_is_converted_or_refused(name, make):
    theirs = randomised(make())
    if name in REFUSED:
        with pytest.raises(ConversionError, match="remedy"):
            from_nflows(theirs, features=D)
        return
    ours = from_nflows(theirs, features=D)
    # Inside of the unit interval, which is the domain of some.
    x = 0.1 + 0.8 * torch.rand(ROWS, D, dtype=torch.float64)
    for found, expected in zip(ours(x), theirs(x), strict=True):
        same(found, expected)
