"""Where flows have density: declared support, finite log-densities and samples are one thing."""

import copy
import functools
import math
import pickle

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from registry import CASES
from scipy import stats
from torch.distributions import biject_to, constraints

import flowkit
from flowkit import (
    Flow,
    autoregressive_flow,
    box_flow,
    coupling_flow,
    dense_flow,
    elementwise_flow,
    fit,
    glow_flow,
    kernelised_flow,
    smooth_flow,
    tail_adaptive_flow,
)
from flowkit.bases import Logistic, ProductBase, StandardNormal, StudentT, Uniform
from flowkit.conditioners import MLP, MaskedMLP
from flowkit.errors import ArgumentError, DataError, FlowkitError, OutsideError, ShapeError
from flowkit.estimators import FlowDensity
from flowkit.numerics.rounding import next_inside
from flowkit.scalar import Affine, IntervalSpline, LogisticMixture, RationalQuadraticSpline
from flowkit.transforms import (
    ActNorm,
    CircularShift,
    Compose,
    Coupling,
    Elementwise,
    FactorOut,
    Log,
    Logit,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    Rescale,
    Reshape,
    Squeeze,
    Standardize,
    Transform,
    Unconstrain,
    Whiten,
)

DTYPES = [torch.float32, torch.float64]
SMALL = {"hidden": (6,)}

RECIPE_FLOWS = {
    "coupling": lambda: coupling_flow(2, layers=2, **SMALL),
    "coupling-ends": lambda: coupling_flow(
        3, layers=2, lower=(0.1, None, -1.0), upper=(None, 5.0, 0.7), **SMALL
    ),
    "autoregressive": lambda: autoregressive_flow(2, layers=2, **SMALL),
    "autoregressive-ends": lambda: autoregressive_flow(
        2, layers=2, lower=0.1, upper=0.7, **SMALL
    ),
    "elementwise": lambda: elementwise_flow(2),
    "elementwise-ends": lambda: elementwise_flow(2, upper=3.0, base="student_t"),
    "kernelised": lambda: kernelised_flow(2, layers=2, points=5),
    "kernelised-ends": lambda: kernelised_flow(2, layers=2, points=5, lower=(None, -2.0)),
    "box": lambda: box_flow(2, lower=[0.1, -3.0], upper=[0.7, 5.0], **SMALL),
    "tail_adaptive": lambda: tail_adaptive_flow(2, tails=[2.0, None], layers=2, **SMALL),
    "tail_adaptive-ends": lambda: tail_adaptive_flow(
        2, tails=[2.0, None], layers=2, lower=(0, None), **SMALL
    ),
    "tail_adaptive-ttf": lambda: tail_adaptive_flow(
        2, tails=[2.0, 3.0], variant="ttf", layers=1, **SMALL
    ),
    "smooth": lambda: smooth_flow(
        3, circular=[True, False, False], lower=[0, 0, None], upper=[1, 4, None], layers=2,
        components=3, **SMALL,
    ),
    "smooth-half-lines": lambda: smooth_flow(
        3, lower=[0, 0, None], upper=[math.inf, 4, 5.0], layers=2, components=3, **SMALL
    ),
    "dense": lambda: dense_flow(2, lower=0.0, upper=1.0),
    "glow": lambda: glow_flow((1, 4, 4), lower=0.0, upper=17.0, hidden=(4,)),
}  # fmt: skip


def roughened(flow, size=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_((size * torch.randn(p.shape, generator=generator)).to(p))
    return flow


def standardize(features, seed=0):
    layer = Standardize(features)
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(20, features)) * np.exp(rng.normal(size=features)) + 3
    layer.initialize(torch.from_numpy(rows).float())
    return layer


def trial_points(flow, count, seed=0):
    """Samples, and samples of which one number is at an end, beside it, or far away."""
    generator = torch.Generator().manual_seed(seed)
    samples, moved = flow.sample(count // 2), flow.sample(count - count // 2)
    rows = moved.flatten(1).clone()
    size, n = rows.shape[1], len(rows)
    region = flow.region()
    column = torch.randint(size, (n,), generator=generator)
    random = torch.rand(n, generator=generator).to(rows)
    if region is None:
        low, high = rows.amin(0)[column], rows.amax(0)[column]
    else:
        low, high = (end.flatten()[column] for end in region)
    low = torch.where(low.isfinite(), low, rows.new_full((), -1e4))
    high = torch.where(high.isfinite(), high, rows.new_full((), 1e4))
    gap = 1e-5 * (1 + torch.maximum(low.abs(), high.abs()))
    choices = torch.stack(
        [
            low, high, torch.nextafter(low, high), torch.nextafter(high, low),
            torch.nextafter(low, -high.abs() - 1e9), torch.nextafter(high, high.abs() + 1e9),
            low - gap * random, high + gap * random, low - 1e3 * random, high + 1e6 * random,
            low + (high - low) * random, -1e9 * random,
        ]
    )  # fmt: skip
    kind = torch.randint(len(choices), (n,), generator=generator)
    rows[torch.arange(n), column] = choices[kind, torch.arange(n)]
    return samples, rows.reshape(moved.shape)


def assert_support_is_where_log_prob_is_finite(flow, count=10_000):
    samples, others = trial_points(flow, count)
    own = flow.log_prob(samples)
    assert bool(own.isfinite().all()), samples[~own.isfinite()][:3]
    assert bool(flow.support.check(samples).all())
    log_prob = flow.log_prob(others)
    assert torch.equal(flow.support.check(others), log_prob.isfinite())
    region = flow.region()
    if region is None or flow._has_circles:
        return
    # A margin of some roundings apart from the ends, the declared box says the same.
    slack = 64 * torch.finfo(others.dtype).eps * (1 + others.abs())
    inside = ((others > region.lower + slack) & (others < region.upper - slack)).flatten(1).all(1)
    outside = ((others < region.lower - slack) | (others > region.upper + slack)).flatten(1).any(1)
    near = others.flatten(1).abs().amax(1) < 1e6
    assert bool(log_prob[inside & near].isfinite().all())
    assert bool((log_prob[outside] == -math.inf).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPE_FLOWS)
def test_support_of_recipes_is_where_log_prob_is_finite(name, dtype):
    torch.manual_seed(1)
    flow = roughened(RECIPE_FLOWS[name]()).to(dtype)
    assert flow.region() is not None
    assert flow.support.known
    assert_support_is_where_log_prob_is_finite(flow)


def composed(seed, mixing):
    """A flow of random layers: maps of each feature, permutations, couplings, domains."""
    rng = np.random.default_rng(seed)
    mlp = functools.partial(MLP, hidden=(4,))
    masked = functools.partial(MaskedMLP, hidden=(4,))
    features = int(rng.integers(2, 4))
    ends = {
        "half": ([0.1] * features, [None] * features),
        "below": ([None] * features, [7.3] * features),
        "interval": ([-3.3] * features, [4.7] * features),
        "one": ([0.0, *[None] * (features - 1)], [None] * features),
    }
    mask = [i % 2 == 0 for i in range(features)]
    maps = (Affine(), RationalQuadraticSpline(4), LogisticMixture(2))
    makers = [
        lambda: standardize(features, seed),
        lambda: ActNorm(features),
        lambda: Permutation(rng.permutation(features).tolist()),
        lambda: Elementwise(features, maps[rng.integers(3)]),
        lambda: Coupling(mask, maps[rng.integers(2)], conditioner=mlp),
        lambda: MaskedAutoregressive(features, maps[rng.integers(2)], conditioner=masked),
        *(lambda kind=kind: Unconstrain(*ends[kind]) for kind in ends),
    ]
    makers += [lambda: LULinear(features)] if mixing else []
    layers = [makers[i]() for i in rng.integers(len(makers), size=rng.integers(2, 6))]
    bases = [
        StandardNormal(features),
        Uniform(features, lower=-0.9, upper=1.3),
        Logistic(features),
        StudentT(features, df=3.0),
        ProductBase(
            (Uniform(1, lower=-2.0, upper=0.7), [0]),
            (StandardNormal(features - 1), range(1, features)),
        ),
    ]
    torch.manual_seed(seed)
    flow = roughened(Flow(Compose(*layers), bases[seed % 5]), 0.2, seed)
    region = flow.region()
    if region is not None:
        scale = 1 + torch.maximum(region.lower.abs(), region.upper.abs())
        if bool((region.upper - region.lower < 1e-5 * scale).any()):
            return composed(seed + 100, mixing)  # float32 has hardly a number there
    return flow


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(50))
def test_support_of_composed_flows_is_where_log_prob_is_finite(seed, dtype):
    flow = composed(seed, mixing=seed % 3 == 0).to(dtype)
    assert_support_is_where_log_prob_is_finite(flow, 10_000 if seed < 5 else 2_000)


def test_a_box_behind_an_affine_layer_is_the_box_in_units_of_the_data():
    scale = Standardize(1)
    scale.initialize(torch.tensor([[8.0], [12.0]]))
    flow = Flow(scale, Uniform(1, lower=-1.0, upper=1.0))
    assert (flow.support.lower, flow.support.upper) == (8.0, 12.0)
    assert flow.support.check(torch.tensor([[11.0], [0.0]])).tolist() == [True, False]


def test_ends_go_through_permutations_monotone_maps_and_reshapes():
    order = Compose(Permutation([2, 0, 1]), Unconstrain([0.0, None, -1.0], [None, 2.0, 1.0]))
    support = Flow(order, StandardNormal(3)).support
    # z_i = x_{p_i}: the first end is that of feature 2.
    assert support.lower.tolist() == [-math.inf, -1.0, 0.0]
    assert support.upper.tolist() == [2.0, 1.0, math.inf]
    image = Compose(Squeeze((1, 2, 2)), Reshape((4, 1, 1)), Unconstrain([0.0] * 4, [1.0, 2, 3, 4]))
    support = Flow(image, StandardNormal(4)).support
    assert support.upper.tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    part = FactorOut((2, 1, 1), Compose(Reshape((1, 1, 1)), Log(1), Reshape(1, (1, 1, 1))))
    support = Flow(part, StandardNormal(2)).support
    assert support.lower.flatten().tolist() == [0.0, -math.inf]
    nested = Compose(Log(1), Log(1))
    assert Flow(nested, StandardNormal(1)).support.lower.tolist() == [1.0]
    mirrored = Compose(LULinear(1), Log(1, lower=3.0))
    assert Flow(mirrored, StandardNormal(1)).support.lower.tolist() == [3.0]
    for layer, inverse in (
        (Log(1).inv, math.log),
        (Logit(1, lower=0.0, upper=4.0).inv, lambda u: math.log(u / (4 - u))),
    ):
        support = Flow(layer, Uniform(1, lower=1.0, upper=3.0)).support
        want = torch.tensor([inverse(1.0), inverse(3.0)])
        torch.testing.assert_close(torch.cat([support.lower, support.upper]), want)


def test_a_decreasing_layer_exchanges_the_ends():
    flow = Flow(
        Compose(Whiten(1), flowkit.transforms.DenseLinear(1)), Uniform(1, lower=1.0, upper=3.0)
    )
    with torch.no_grad():
        flow.transform[1].weight.fill_(-2.0)
    assert (flow.support.lower.item(), flow.support.upper.item()) == (-1.5, -0.5)


def test_where_ends_are_mixed_there_is_no_box_and_check_is_still_right():
    square = roughened(Flow(LULinear(2), Uniform(2, lower=-1.0, upper=1.0)), 0.5).double()
    assert square.region() is None
    assert square.support.lower is None
    assert "no box" in repr(square.support)
    x = 3 * torch.randn(1000, 2, dtype=torch.float64)
    z = x @ square.transform.weight_matrix().T + square.transform.bias
    assert torch.equal(square.support.check(x), (z.abs() <= 1).all(-1))
    # Mixed before there are ends, nothing is lost.
    assert Flow(Compose(Logit(2), LULinear(2)), StandardNormal(2)).support.known
    assert Flow(Compose(LULinear(2), Elementwise(2)), StandardNormal(2)).support.known


def test_supports_of_every_shape_are_bijective_with_the_line():
    skewed = roughened(Flow(LULinear(2), Uniform(2, lower=-1.0, upper=1.0)), 0.5)
    moved = Coupling([True, False], Affine(), conditioner=functools.partial(MLP, hidden=(4,)))
    for flow in (
        skewed,
        roughened(Flow(moved, Uniform(2))),
        coupling_flow(3, layers=1, lower=(0.0, None, -1), upper=(None, 5.0, 1.0), **SMALL),
        box_flow(2, lower=0.0, upper=1.0, **SMALL),
        coupling_flow(2, layers=1, **SMALL),
    ):
        flow = flow.double().requires_grad_(False)
        bijection = biject_to(flow.support)
        u = torch.randn(50, *flow.event_shape, dtype=torch.float64)
        x = bijection(u)
        assert bool(flow.support.check(x).all())
        torch.testing.assert_close(bijection.inv(x), u)
        jacobian = torch.func.vmap(torch.func.jacrev(bijection))(u)
        want = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(bijection.log_abs_det_jacobian(u, x), want)


def test_a_support_that_depends_on_the_context_asks_for_it():
    layers = Compose(
        Elementwise(1, Affine(), context=1, conditioner=functools.partial(MLP, hidden=(4,)))
    )
    flow = roughened(Flow(layers, Uniform(1, lower=0.0, upper=1.0)), 1.0)
    with pytest.raises(ShapeError, match=r"depends on its context; remedy"):
        flow.support.check(torch.zeros(1, 1))
    context = torch.tensor([[0.0], [2.0]])
    lower = flow.region(context).lower
    assert lower.shape == (2, 1)
    assert flow.in_support(lower + 1e-3, context).all()
    assert not flow.in_support(lower - 1e-3, context).any()
    view = flow.distribution(context).support
    assert torch.equal(view.lower, lower)
    assert view.check(lower + 1e-3).all()
    assert not view.check(lower - 1e-3).any()
    # Ends that no context moves are known without one, and so is what is inside.
    bounded = coupling_flow(2, context=1, layers=2, lower=0.0, **SMALL)
    assert bounded.support.check(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).tolist() == [True, False]


class Raised(Transform):
    """Images in units of two, raised by a context, every pixel by itself."""

    elementwise = True

    def forward(self, x, context=None):
        return 2 * x + context[..., None, None], x.new_zeros(x.shape[:-3])

    def inverse(self, z, context=None):
        return (z - context[..., None, None]) / 2, z.new_zeros(z.shape[:-3])


def test_channels_that_leave_have_the_ends_of_the_base_for_every_context():
    flow = Flow(FactorOut((2, 1, 2), Raised((1, 1, 2), context=1)), Uniform(4))
    region = flow.region(torch.tensor([[0.0], [3.0]]))
    inner, rest = torch.tensor([0.0, -1.5]), torch.zeros(2)
    for ends, width in ((region.lower, 0.0), (region.upper, 0.5)):
        assert ends.shape == (2, 2, 1, 2)
        torch.testing.assert_close(ends[:, 0, 0], (inner + width)[:, None].expand(2, 2))
        torch.testing.assert_close(ends[:, 1, 0], (rest + 2 * width)[:, None].expand(2, 2))


def test_a_context_that_a_layer_does_not_read_leaves_its_box_alone():
    scale, box = Standardize(1), Flow(Standardize(1), Uniform(1)).region()
    assert scale.map_region(box, torch.zeros(5, 1)).lower.shape == (1,)


@pytest.mark.parametrize("make", [
    lambda: box_flow(1, lower=0.1, upper=0.7, **SMALL),
    lambda: coupling_flow(1, lower=0.1, upper=0.7, layers=1),
    lambda: smooth_flow(1, lower=0.1, upper=0.7, layers=1, components=3, **SMALL),
])  # fmt: skip
def test_ends_are_exact_in_the_dtype_of_the_flow(make):
    for dtype in DTYPES:
        flow = make().to(dtype)
        low, high = torch.tensor(0.1, dtype=dtype), torch.tensor(0.7, dtype=dtype)
        assert (flow.support.lower.item(), flow.support.upper.item()) == (low, high)
        closed = isinstance(flow.transform[0], Rescale)
        ends = torch.stack([low, high]).unsqueeze(-1)
        assert flow.support.check(ends).tolist() == [closed] * 2
        assert flow.log_prob(ends).isfinite().tolist() == [closed] * 2
        beyond = torch.nextafter(ends, torch.tensor([[-1.0], [2.0]], dtype=dtype))
        assert not flow.support.check(beyond).any()


def test_the_normalizer_of_a_bounded_flow_is_on_the_device_of_the_flow():
    flow = box_flow(1, lower=0.0, upper=1.0, hidden=(8,))
    assert flow.log_normalizer().item() == pytest.approx(-math.log(2), abs=1e-6)
    assert flow.to("meta").log_normalizer().device.type == "meta"
    deep = Flow(Compose(standardize(1), Log(1)), StandardNormal(1))
    x = torch.tensor([[9.0], [20.0]])
    torch.testing.assert_close(-deep.energy(x) - deep.log_normalizer(), deep.log_prob(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPE_FLOWS)
def test_the_density_of_an_infinite_number_is_zero_and_that_of_nan_is_nan(name, dtype):
    torch.manual_seed(2)
    flow = roughened(RECIPE_FLOWS[name]()).to(dtype)
    x = flow.sample(4)
    rows = x.flatten(1).clone()
    for column in range(min(rows.shape[1], 3)):
        bad = rows.clone()
        bad[0, column], bad[1, column], bad[2, column] = math.inf, -math.inf, math.nan
        bad = bad.reshape(x.shape).requires_grad_()
        log_prob = flow.log_prob(bad)
        circle = name == "smooth" and column == 0
        assert log_prob[2].isnan()
        assert log_prob[3].isfinite()
        if circle:
            assert log_prob[:2].isnan().all()
            continue
        assert log_prob[:2].tolist() == [-math.inf] * 2
        assert flow.energy(bad)[:2].tolist() == [math.inf] * 2
        (gradient,) = torch.autograd.grad(log_prob[[0, 1, 3]].sum(), bad)
        assert bool(gradient[[0, 1, 3]].isfinite().all())
    both = rows.clone()
    both[:, 0], both[:, -1] = math.inf, math.nan
    assert flow.log_prob(both.reshape(x.shape)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_layer_of_the_registry_makes_nan_of_an_infinite_number(dtype):
    checked = 0
    for case in CASES:
        transform = case.build()
        base = case.options.get("base")
        if (
            transform.stochastic
            or len(transform.event_shape) != 1
            or None in transform.noise_shape
        ):
            continue
        if transform.noise_shape != transform.event_shape or len(transform.noise_shape) != 1:
            continue
        size = transform.event_shape[0]
        flow = Flow(copy.deepcopy(transform), base or StandardNormal(size))
        flow = roughened(copy.deepcopy(flow), 0.3).to(dtype)
        context = None
        if flow.needs_context:
            context = torch.zeros(flow.context_size, dtype=dtype)
        x = torch.full((3, size), 0.5, dtype=dtype)
        x[0, 0], x[1, -1], x[2, 0] = math.inf, -math.inf, math.nan
        log_prob = flow.log_prob(x, context)
        circular = flow._has_circles
        assert log_prob[2].isnan(), case.id
        assert circular or log_prob[:2].tolist() == [-math.inf] * 2, case.id
        checked += 1
    assert checked > 100


def test_the_mask_of_infinite_numbers_costs_a_handful_of_operators():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    flow, x = coupling_flow(3, layers=4, **SMALL), torch.zeros(5, 3)
    with torch.no_grad(), Count() as bare:
        z, log_det = flow.transform(x)
        flow.base.log_prob(z) + log_det
    with torch.no_grad(), Count() as whole:
        flow.log_prob(x)
    assert whole.calls - bare.calls <= 10
    assert whole.calls < 1.05 * bare.calls


def test_own_samples_of_a_squashed_policy_are_inside():
    flow = Flow(Logit(1, lower=-1.0, upper=1.0), StandardNormal(1))
    x = flow.to_data(torch.tensor([[-20.0], [5.0], [20.0]]))
    assert bool((x.abs() < 1).all())
    assert flow.log_prob(x).isfinite().all()
    assert x[0].item() == np.nextafter(np.float32(-1), np.float32(0))
    # To where the dtype can place x, both log-densities are the same.
    double = copy.deepcopy(flow).double()
    z = torch.linspace(-30, 30, 61, dtype=torch.float64).unsqueeze(-1)
    x, log_det = double.transform.inverse(z)
    told = double.base.log_prob(z) - log_det
    near = z.squeeze(-1).abs() < 15
    torch.testing.assert_close(double.log_prob(x)[near], told[near], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "transform",
    [
        lambda: Logit(1, lower=-1.0, upper=1.0), lambda: Logit(1, lower=0.1, upper=0.7),
        lambda: Logit(1, lower=1e6, upper=1e6 + 1),
        lambda: Log(1), lambda: Log(1, lower=3.3), lambda: Unconstrain([None], [0.7]),
        lambda: Unconstrain([None], [0.0]), lambda: Compose(Log(1), Log(1)),
        lambda: Compose(Rescale([0.1], [0.7]), Logit(1, lower=-1.0, upper=1.0)),
        lambda: Compose(standardize(1), Logit(1, lower=-1.0, upper=2.0)),
        lambda: Compose(standardize(1), Log(1), Elementwise(1)),
        lambda: Compose(Log(1), Logit(1, lower=-1.0, upper=1.0)),
    ],
)  # fmt: skip
def test_noise_from_anywhere_gives_data_with_density(transform, dtype):
    class Wide(StandardNormal):
        def sample(self, shape=(), context=None, generator=None):
            return torch.linspace(-200, 200, 401, dtype=dtype).unsqueeze(-1)

    flow = Flow(transform(), Wide(1)).to(dtype)
    x, log_prob = flow.sample_and_log_prob(401)
    assert x.isfinite().all()
    assert log_prob.isfinite().all()
    assert flow.log_prob(x).isfinite().all()
    assert flow.support.check(x).all()
    assert flow.log_prob(flow.to_data(flow.base.sample())).isfinite().all()


def test_noise_without_density_is_not_moved_to_where_there_is_some():
    flow = Flow(Compose(standardize(1), Rescale([-1.0], [1.0])), Uniform(1, lower=-1.0, upper=1.0))
    z = torch.tensor([[-1.5], [0.5], [3.0]])
    want = flow.transform.inverse(z)[0]
    torch.testing.assert_close(flow.to_data(z), want, rtol=0, atol=0)


def test_clamped_samples_keep_their_derivatives():
    z = torch.tensor([[-9.0, -3.0, 0.0, 3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    layer = Unconstrain([0.0, None, -1.0, 0.0, 1.0], [None, 2.0, 1.0, 3.0, None])
    assert torch.autograd.gradcheck(lambda z: layer.inverse(z), z)
    assert torch.autograd.gradgradcheck(lambda z: layer.inverse(z), z)
    single = Logit(1, lower=-1.0, upper=1.0)
    z = torch.tensor([[20.0]], requires_grad=True)
    x, log_det = single.inverse(z)
    (slope,) = torch.autograd.grad(x.sum(), z)
    assert slope.item() == pytest.approx(log_det.exp().item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16], ids=str)
def test_the_next_number_inside_is_that_of_the_dtype(dtype):
    for end, other in ((-1.0, 1.0), (1.0, -1.0), (0.1, 0.7), (0.7, 0.1), (2.0, 1.0), (-3.3, -9.0)):
        t, to = torch.tensor(end).to(dtype), torch.tensor(other).to(dtype)
        t = torch.tensor(end, dtype=torch.float64).to(dtype)
        if dtype is torch.float16:
            want = float(np.nextafter(np.float16(end), np.float16(other)))
        else:
            want = torch.nextafter(t, to).item()
        assert next_inside(end, other, dtype) == want
    tiny = torch.finfo(dtype).smallest_normal
    assert (next_inside(0.0, 1.0, dtype), next_inside(0.0, -1.0, dtype)) == (tiny, -tiny)
    assert next_inside(math.inf, 0.0, dtype) == math.inf


def test_a_uniform_base_draws_between_its_ends():
    base = Uniform(1, lower=0.1, upper=0.7)
    generator = torch.Generator().manual_seed(0)
    x = base.sample((1_000_000,), generator=generator)
    low, high = torch.tensor(0.1), torch.tensor(0.7)
    assert bool((x > low).all() & (x < high).all())
    wide = Uniform(1, lower=1e6, upper=1e6 + 0.25).sample((10_000,), generator=generator)
    assert bool((wide > 1e6).all() & (wide < 1e6 + 0.25).all())
    # The uniform through the logistic quantile function is a logistic: no infinite sample.
    assert Flow(Logit(1).inv, Uniform(1)).sample(1_000_000, generator=generator).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_u_shaped_data_in_single_precision_give_samples_with_density(dtype):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.beta(0.05, 0.05, size=(3000, 1))).clamp(1e-6, 1 - 1e-6).to(dtype)
    flow = coupling_flow(1, layers=1, lower=0.0, upper=1.0, scalar="affine", **SMALL).to(dtype)
    flow.initialize(x)
    samples = flow.sample(20_000)
    assert flow.log_prob(samples).isfinite().all()


def test_pyro_s_nuts_finds_its_start_on_bounded_flows():
    scale = Standardize(1)
    scale.initialize(torch.tensor([[8.0], [12.0]]))
    uniform = Flow(scale, Uniform(1, lower=-1.0, upper=1.0))
    skewed = roughened(Flow(LULinear(2), Uniform(2, lower=8.0, upper=12.0)), 0.3)
    for flow in (uniform, skewed):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        flow = flow.double().requires_grad_(False)

        def model(flow=flow):
            pyro.sample("x", flow.distribution())

        mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=50, disable_progbar=True)
        mcmc.run()
        x = mcmc.get_samples()["x"]
        assert flow.support.check(x).all()
        assert x.std(0).min() > 0.3


def test_supports_are_pickled_and_copied_with_their_flow():
    support = box_flow(1, lower=0.1, upper=0.7, **SMALL).support
    x = torch.tensor([[0.5], [0.9]])
    for other in (pickle.loads(pickle.dumps(support)), copy.deepcopy(support)):
        assert other.check(x).tolist() == [True, False]
        assert isinstance(other, constraints.Constraint)


# ---- half-lines, intervals and lines by feature ----


def test_unconstrain_is_the_log_normal_and_the_logit_normal_of_scipy():
    flow = Flow(Unconstrain([1.0, None, 0.0, None], [None, 2.0, 1.0, None]), StandardNormal(4))
    x = torch.tensor([[3.0, -1.5, 0.3, 0.7]])
    logit = math.log(0.3 / 0.7)
    want = (
        stats.lognorm(s=1).logpdf(2.0)
        + stats.lognorm(s=1).logpdf(3.5)
        + stats.norm.logpdf(logit) - math.log(0.3 * 0.7)
        + stats.norm.logpdf(0.7)
    )  # fmt: skip
    assert flow.double().log_prob(x.double()).item() == pytest.approx(want, rel=1e-7)


def test_log_and_logit_take_an_end_for_each_feature():
    x = torch.tensor([[1.5, 4.0]])
    pairs = (
        (Log(2, lower=[1.0, 3.0]), [Log(1, lower=1.0), Log(1, lower=3.0)]),
        (
            Logit(2, lower=[1.0, 3.0], upper=[2.0, 9.0]),
            [Logit(1, lower=1.0, upper=2.0), Logit(1, lower=3.0, upper=9.0)],
        ),
    )
    for both, alone in pairs:
        z, log_det = both(x)
        parts = [t(x[:, i : i + 1]) for i, t in enumerate(alone)]
        torch.testing.assert_close(z, torch.cat([p[0] for p in parts], -1))
        torch.testing.assert_close(log_det, sum(p[1] for p in parts))
    with pytest.raises(ValueError, match="Log expected lower as a finite number"):
        Log(2, lower=[1.0])
    with pytest.raises(ValueError, match="Logit expected lower as a finite number"):
        Logit(2, lower=[0.0, 0.0, 0.0], upper=1.0)
    with pytest.raises(ValueError, match="Unconstrain expected lower < upper"):
        Unconstrain([1.0], [1.0])
    with pytest.raises(ValueError, match="Unconstrain expected upper as"):
        Unconstrain([1.0], [2.0, 3.0])


def test_samples_of_a_positive_column_are_positive():
    torch.manual_seed(0)
    x = torch.rand(1000, 1).log().neg()
    flow = coupling_flow(1, layers=2, lower=0.0, **SMALL)
    history = fit(flow, x, epochs=10, lr=1e-2, progress=False)
    assert not (flow.sample(20_000) <= 0).any()
    # The entropy of an exponential is 1; of 100 validation rows the mean has a deviation of 0.1.
    assert history.best < 1 + 5 * 0.1


BOUNDED = {
    "coupling_flow": lambda **ends: coupling_flow(2, layers=1, **SMALL, **ends),
    "autoregressive_flow": lambda **ends: autoregressive_flow(2, layers=1, **SMALL, **ends),
    "elementwise_flow": lambda **ends: elementwise_flow(2, **ends),
    "kernelised_flow": lambda **ends: kernelised_flow(2, layers=1, points=3, **ends),
    "tail_adaptive_flow": lambda **ends: tail_adaptive_flow(
        2, tails=[None, 3.0], layers=1, **SMALL, **ends
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_recipes_take_ends_and_files_keep_them_exactly(name, tmp_path):
    make = BOUNDED[name]
    flow = roughened(make(lower=(0.1, None), upper=(math.inf, 1 / 3)), 0.1)
    samples = flow.sample(1000)
    assert bool((samples[:, 0] > 0.1).all() & (samples[:, 1] < 1 / 3).all())
    flowkit.save(flow, tmp_path / "flow.st")
    again = flowkit.load(tmp_path / "flow.st")
    assert torch.equal(again.log_prob(samples), flow.log_prob(samples))
    support = again.double().support
    assert support.lower.tolist() == [0.1, -math.inf]
    assert support.upper.tolist() == [math.inf, 1 / 3]
    assert make(lower=0.0).support.lower.tolist() == [0.0, 0.0]
    assert make(lower=None, upper=math.inf).support.upper.tolist() == [math.inf] * 2
    for ends in ({"lower": (1.0,)}, {"upper": "a"}, {"upper": math.nan}, {"lower": True}):
        with pytest.raises(ArgumentError, match=r"(lower|upper) as a number, or one for each"):
            make(**ends)
    with pytest.raises(
        ArgumentError, match="expected lower < upper, got 2.0 and 1.0 for feature 0"
    ):
        make(lower=2.0, upper=1.0)


def test_smooth_flows_take_half_lines(tmp_path):
    flow = smooth_flow(
        4, circular=[True, False, False, False], lower=[0, 0.0, None, 0.1],
        upper=[1, math.inf, 5.0, 0.7], components=3, layers=1, **SMALL,
    )  # fmt: skip
    assert flow.support.lower.tolist() == pytest.approx([0.0, 0.0, -math.inf, 0.1])
    flowkit.save(flow, tmp_path / "flow.st")
    x = flow.sample(100)
    assert torch.equal(flowkit.load(tmp_path / "flow.st").log_prob(x), flow.log_prob(x))
    positive = smooth_flow(2, lower=0.0, upper=math.inf, layers=1, **SMALL)
    assert positive.support.lower.tolist() == [0, 0]
    with pytest.raises(ArgumentError, match="both ends finite .* for periodic variable 0"):
        smooth_flow(1, circular=True, lower=0.0, upper=math.inf)
    with pytest.raises(ArgumentError, match="expected lower < upper"):
        smooth_flow(1, lower=1.0, upper=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: box_flow(2, lower=0.0, upper=1.0, **SMALL),
            r"Rescale.*column 1 holds 0.5 to 1.5 .*between 0 and 1",
        ),
        (
            lambda: coupling_flow(2, lower=0.0, upper=1.0, layers=1),
            r"Unconstrain.*strictly between 0 and 1",
        ),
        (
            lambda: smooth_flow(2, lower=0.0, upper=1.0, layers=1, **SMALL),
            r"Rescale.*between 0 and 1",
        ),
    ],
)
def test_rows_outside_are_named_with_columns_ends_and_remedy(make, message):
    x = torch.full((100, 2), 0.5) + 0.1 * torch.rand(100, 2)
    x[0], x[17, 1], x[60, 1] = 0.5, 1.5, 1.2
    for start in (
        lambda flow: flow.initialize(x),
        lambda flow: fit(flow, x, progress=False, validation=None),
    ):
        with pytest.raises(OutsideError, match=message) as caught:
            start(make())
        assert isinstance(caught.value, DataError)
        text = str(caught.value)
        assert "2 of 100 rows: row(s) [17, 60]" in text
        assert "remedy: wider bounds" in text
        assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_rows_outside_have_their_numbers_in_the_data():
    x = torch.rand(200, 1) * 0.9 + 0.05
    x[150:] -= 2.0
    with pytest.raises(FlowkitError) as caught:
        fit(box_flow(1, lower=0.0, upper=1.0, **SMALL), x, progress=False, seed=3)
    assert min(caught.value.rows) >= 150


def test_circles_and_shifts_declare_one_turn():
    shift = CircularShift(2, lower=0.0, upper=2.0, circular=[True, False])
    base = ProductBase((Uniform(1, lower=0.0, upper=2.0), [0]), (StandardNormal(1), [1]))
    flow = Flow(Compose(Permutation([1, 0]), shift), base)
    assert flow.support.lower.tolist() == [-math.inf, 0.0]
    assert flow.support.upper.tolist() == [math.inf, 2.0]
    x = torch.tensor([[0.0, 5.0], [math.inf, 1.0], [0.0, math.inf]])
    assert flow.support.check(x).tolist() == [True, False, False]
    assert flow.log_prob(x)[1] == -math.inf
    assert flow.log_prob(x)[2].isnan()
    # Of an arc there is no box on the other side of a rotation.
    arc = Flow(CircularShift(1, lower=0.0, upper=2.0), Uniform(1, lower=0.5, upper=1.0))
    assert arc.region() is None


def test_splines_leave_ends_in_place_that_they_do_not_reach():
    mlp = functools.partial(MLP, hidden=(4,))
    for scalar, ends, known in (
        (RationalQuadraticSpline(4, bound=2.0), (-3.0, 2.0), True),
        (RationalQuadraticSpline(4, bound=2.0), (-3.0, 1.0), False),
        (IntervalSpline(4, lower=-1.0, upper=1.0), (-1.0, 1.0), True),
        (Affine(), (-1.0, 1.0), False),
    ):
        flow = Flow(
            Coupling([True, False], scalar, conditioner=mlp),
            Uniform(2, lower=ends[0], upper=ends[1]),
        )
        assert (flow.region() is not None) == known
        if known:
            assert flow.support.upper.tolist() == [ends[1]] * 2


def half_lines(n, seed=0):
    """Samples with a third column: above 0, anywhere, and from -1 to 1; many close to the ends."""
    rng = np.random.default_rng(seed)
    columns = rng.exponential(size=n), rng.normal(size=n), 2 * rng.beta(0.5, 0.5, n) - 1
    x = torch.from_numpy(np.stack(columns, 1)).float()
    return x[(x[:, 0] > 0) & (x[:, 2].abs() < 1)]


ENDS = {"lower": [0, None, -1], "upper": [None, None, 1]}

FITTED_ENDS = {
    "elementwise": (lambda: elementwise_flow(1, lower=0, seed=0), lambda x: x[:, :1]),
    "elementwise-above": (lambda: elementwise_flow(1, upper=0, seed=0), lambda x: -x[:, :1]),
    "coupling": (lambda: coupling_flow(3, layers=2, seed=0, **ENDS, **SMALL), lambda x: x),
    "autoregressive": (
        lambda: autoregressive_flow(3, layers=2, seed=0, **ENDS, **SMALL), lambda x: x,
    ),
    "kernelised": (
        lambda: kernelised_flow(2, layers=2, points=5, lower=0, upper=[None, 2], seed=0),
        lambda x: torch.stack([x[:, 0], x[:, 2] + 1], 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FITTED_ENDS)
def test_fitted_flows_obey_their_ends_and_are_saved_with_them(name, tmp_path):
    build, pick = FITTED_ENDS[name]
    flow, data = build(), pick(half_lines(1500))
    fit(flow, data, steps=60, progress=False)
    lower, upper = flow.support.lower, flow.support.upper
    samples = flow.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert bool(((samples > lower) & (samples < upper)).all())
    with torch.no_grad():
        assert bool(flow.log_prob(samples).isfinite().all())
    assert_support_is_where_log_prob_is_finite(flow)
    flowkit.save(flow, tmp_path / "flow.safetensors")
    again = flowkit.load(tmp_path / "flow.safetensors")
    assert torch.equal(again.support.lower, lower)
    assert torch.equal(again.support.upper, upper)
    assert torch.equal(again.log_prob(samples[:100]), flow.log_prob(samples[:100]))
    drawn = again.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, samples)
    # A number at an end has no place on the line.
    end = torch.where(lower.isfinite(), lower, torch.where(upper.isfinite(), upper, data[0]))
    fresh = build()
    with pytest.raises(OutsideError, match="strictly between"):
        fit(fresh, torch.cat([data, end.unsqueeze(0)]), steps=2, progress=False, validation=None)


def test_averaged_densities_obey_the_ends_of_their_columns_and_are_saved(tmp_path):
    data = half_lines(400).double().numpy()
    model = FlowDensity(options=ENDS, steps=30, random_state=0).fit(data)
    samples = model.sample(20_000, random_state=0)
    lower, upper = np.array([0, -np.inf, -1]), np.array([np.inf, np.inf, 1])
    assert ((samples > lower) & (samples < upper)).all()
    outside = samples[:6].copy()
    outside[[0, 1, 2], [0, 2, 2]] = -1e-9, 1.0, -1.5
    assert np.isneginf(model.score_samples(outside)).tolist() == [True] * 3 + [False] * 3
    model.save(tmp_path / "model.safetensors")
    again = FlowDensity.load(tmp_path / "model.safetensors")
    assert np.array_equal(again.score_samples(samples), model.score_samples(samples))
    assert np.array_equal(again.sample(9, random_state=0), model.sample(9, random_state=0))
