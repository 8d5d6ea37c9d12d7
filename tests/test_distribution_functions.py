"""Distribution functions and quantiles of scalar flows: outside of the support, in far tails."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from registry import SCALARS
from scipy import stats

from flowkit import (
    Flow,
    autoregressive_flow,
    box_flow,
    coupling_flow,
    elementwise_flow,
    smooth_flow,
    tail_adaptive_flow,
)
from flowkit.bases import (
    DiagonalNormal,
    Logistic,
    NormalMixture,
    ProductBase,
    StandardNormal,
    StudentT,
    Uniform,
)
from flowkit.bases.special import log_normal_survival, log_student_survival
from flowkit.conditioners import MLP
from flowkit.errors import ShapeError
from flowkit.scalar import Affine, SmoothLeakyReLU
from flowkit.transforms import (
    ActNorm,
    Compose,
    Coupling,
    DenseLinear,
    Elementwise,
    Log,
    Logit,
    MaskedAutoregressive,
    OrthogonalLinear,
    Rescale,
    Standardize,
    Unconstrain,
)

DTYPES = [torch.float32, torch.float64]
D = torch.float64
SMALL = {"hidden": (6,)}
BASES = {
    "normal": lambda: StandardNormal(1),
    "diagonal": lambda: DiagonalNormal(1),
    "mixture": lambda: NormalMixture(1, components=3),
    "logistic": lambda: Logistic(1),
    "student": lambda: StudentT(1, df=3.0),
    "uniform": lambda: Uniform(1, lower=-1.0, upper=2.0),
    "product": lambda: ProductBase((StudentT(1, df=5.0), [0])),
}


def standardize():
    layer = Standardize(1)
    layer.initialize(torch.tensor([[2.0], [4.5]]))
    return layer


def decreasing():
    layer = DenseLinear(1)
    with torch.no_grad():
        layer.weight.fill_(-1.7)
    return layer


DOMAINS = {
    "line": lambda: [],
    "log": lambda: [Log(1, lower=0.1)],
    "upper": lambda: [Unconstrain([None], [5.0])],
    "logit": lambda: [Logit(1, lower=-1.0, upper=3.0)],
    "box": lambda: [Rescale([0.1], [0.7])],
    "chart": lambda: [Rescale([0.1], [0.7], circular=[False])],
    "nested": lambda: [Log(1), Log(1)],
    "affine-log": lambda: [standardize(), Log(1)],
    "affine-logit": lambda: [standardize(), ActNorm(1), Logit(1, lower=-1.0, upper=0.7)],
    "decreasing-log": lambda: [decreasing(), Log(1)],
    "log-decreasing": lambda: [Log(1), decreasing()],
    "inverse-of-logit": lambda: [Logit(1).inv, Rescale([0.0], [1.0])],
    "inverse-of-log": lambda: [Log(1), Elementwise(1, Affine()).inv],
}
# Maps of an interval or of a circle need a base that lives there.
LINES = [name for name in SCALARS if "circular" not in name and name not in ("interval", "smooth")]
RECIPES = {
    "coupling": lambda: coupling_flow(1, layers=2, **SMALL),
    "coupling-positive": lambda: coupling_flow(1, layers=2, lower=0.1, **SMALL),
    "autoregressive-below": lambda: autoregressive_flow(1, layers=1, upper=3.0, **SMALL),
    "elementwise-interval": lambda: elementwise_flow(1, lower=0.1, upper=0.7),
    "elementwise-logistic": lambda: elementwise_flow(1, base="logistic", scalar="mixture"),
    "elementwise-mixture": lambda: elementwise_flow(1, base="mixture"),
    "box": lambda: box_flow(1, lower=0.1, upper=0.7, bins=4, **SMALL),
    "smooth": lambda: smooth_flow(1, components=3, layers=1, **SMALL),
    "smooth-interval": lambda: smooth_flow(
        1, lower=0.1, upper=0.7, components=3, layers=1, **SMALL
    ),
    "smooth-positive": lambda: smooth_flow(
        1, lower=0.0, upper=math.inf, components=3, layers=1, **SMALL
    ),
    "tails": lambda: tail_adaptive_flow(1, tails=[3.0], layers=1, **SMALL),
    "tails-positive": lambda: tail_adaptive_flow(1, tails=[3.0], layers=1, lower=0.0, **SMALL),
    "tails-ttf": lambda: tail_adaptive_flow(
        1, tails=[(3.0, 4.0)], variant="ttf", layers=1, **SMALL
    ),
}


def of_parts(domain, scalar, base):
    layers = DOMAINS[domain]()
    inside = domain in ("box", "chart", "inverse-of-logit")
    if scalar is not None:
        layers.append(Elementwise(1, SCALARS[scalar]))
    ends = BASES[base]() if not inside else Uniform(1, lower=-1.0, upper=1.0)
    return Flow(Compose(*layers) if layers else ActNorm(1), ends)


FLOWS = {
    **{f"{d}-{s}-{'uniform' if d in ('box', 'chart', 'inverse-of-logit') else 'normal'}":
       functools.partial(of_parts, d, s, "normal")
       for d in DOMAINS for s in (None, "spline") if (d, s) != ("inverse-of-logit", "spline")},
    **{f"line-{s}-{b}": functools.partial(of_parts, "line", s, b)
       for s in (*LINES, None) for b in ("normal", "student", "uniform")},
    **{f"{d}-spline-{b}": functools.partial(of_parts, d, "spline", b)
       for d in ("line", "log", "decreasing-log", "affine-logit") for b in BASES},
    "interval": lambda: Flow(
        Elementwise(1, SCALARS["interval"]), Uniform(1, lower=-2.0, upper=1.0)
    ),
    "smooth-interval": lambda: Flow(
        Elementwise(1, SCALARS["smooth"]), Uniform(1, lower=-2.0, upper=1.0)
    ),
    "orthogonal": lambda: Flow(Compose(OrthogonalLinear(1), Log(1)), StandardNormal(1)),
    "activation": lambda: Flow(
        Compose(Elementwise(1, SmoothLeakyReLU()), ActNorm(1)), Logistic(1)
    ),
    "autoregressive": lambda: Flow(MaskedAutoregressive(1, SCALARS["mixture"]), StandardNormal(1)),
    **{f"recipe-{name}": make for name, make in RECIPES.items()},
}  # fmt: skip


def roughened(flow, size=0.25):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_((size * torch.randn(p.shape, generator=generator)).to(p))
    return flow.requires_grad_(False)


def rows(values, dtype):
    return torch.as_tensor(np.asarray(values), dtype=dtype).unsqueeze(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FLOWS)
def test_distribution_functions_are_those_of_the_density(name, dtype):
    torch.manual_seed(0)
    flow = roughened(FLOWS[name]()).to(dtype)
    eps = torch.finfo(dtype).eps
    q = torch.linspace(0.001, 0.999, 999, dtype=dtype)
    x = flow.quantile(q)
    cdf, survival = flow.cdf(x), flow.survival(x)
    log_prob = flow.log_prob(x)
    assert bool(log_prob.isfinite().all() & flow.support.check(x).all())

    # The quantile is the inverse, within the rounding of x times the density, and of q.
    place = eps * (1 + x.abs().squeeze(-1)) * (1 + log_prob.exp())
    assert bool(((cdf - q).abs() <= 200 * (eps + place)).all())
    assert bool(((cdf + survival - 1).abs() <= 8 * eps).all())
    inner = slice(20, -20)
    back = flow.quantile(cdf).squeeze(-1)
    scale = 500 * eps * (1 + x.abs().squeeze(-1)) + 200 * eps * (-log_prob).exp()
    assert bool(((back - x.squeeze(-1)).abs() <= scale)[inner].all())

    # It never falls, over the whole support and on both sides of it.
    region = flow.region()
    low, high = float(region.lower), float(region.upper)
    low, high = max(low, -1e6), min(high, 1e6)
    wide = torch.cat([
        rows(np.linspace(low - 1, high + 1, 801), dtype), x,
        rows([-math.inf, -1e6, 1e6, math.inf], dtype),
    ]).sort(0).values  # fmt: skip
    steps = flow.cdf(wide).diff()
    assert bool((steps >= -32 * eps * (1 + flow.cdf(wide[1:]))).all())
    assert bool((flow.survival(wide).diff() <= 64 * eps).all())
    assert flow.cdf(wide[[0, -1]]).tolist() == [0.0, 1.0]
    assert flow.survival(wide[[0, -1]]).tolist() == [1.0, 0.0]

    # Outside of the support: 0 and 1, their logarithms too.
    slack = 64 * eps * (1 + max(abs(low), abs(high)))
    for end, side in ((float(region.lower), -1), (float(region.upper), 1)):
        if math.isinf(end):
            continue
        out = rows([end + side * step for step in (slack, 0.5, 10.0, 1e6, 1e30)], dtype)
        zero, infinite = [0.0] * 5, [-math.inf] * 5
        below = side < 0
        assert flow.log_cdf(out).tolist() == (infinite if below else zero)
        assert flow.log_survival(out).tolist() == (zero if below else infinite)
        assert flow.cdf(out).tolist() == [0.0 if below else 1.0] * 5
        assert flow.survival(out).tolist() == [1.0 if below else 0.0] * 5
    assert flow.cdf(rows([math.nan], dtype)).isnan().all()
    assert flow.log_survival(rows([math.nan], dtype)).isnan().all()

    # Quantiles: the ends at 0 and 1, NaN where there is none.
    outside = torch.tensor([-0.1, 1.5, math.nan, -math.inf, -1e-30], dtype=dtype)
    assert flow.quantile(outside).isnan().all()
    ends = flow.quantile(torch.tensor([0.0, 1.0], dtype=dtype)).flatten()
    assert ends.tolist() == [float(region.lower), float(region.upper)]

    if dtype is D:
        # The integral of the density between the quantiles of 0.05 and 0.95, by Gauss's rule on
        # 900 intervals: knots of splines and the curvature at 0 of some maps leave 1e-6 in all.
        x, cdf = x[49:-49], cdf[49:-49]
        nodes, weights = np.polynomial.legendre.leggauss(8)
        left, width = x[:-1, 0].numpy(), x.diff(dim=0)[:, 0].numpy()
        points = left[:, None] + width[:, None] * (nodes + 1) / 2
        density = flow.log_prob(rows(points.ravel(), D)).exp().reshape(points.shape).numpy()
        mass = (density * weights).sum(-1) * width / 2
        np.testing.assert_allclose(np.cumsum(mass), (cdf[1:] - cdf[0]).numpy(), atol=2e-6)


def test_a_lognormal_waiting_time_survives_until_it_starts():
    times = Flow(Log(1), StandardNormal(1))
    t = torch.tensor([[-5.0], [0.0], [1e-3], [1.0]])
    want = stats.lognorm(s=1)
    for got, exact in ((times.survival(t), want.sf), (times.cdf(t), want.cdf)):
        np.testing.assert_allclose(got, exact(t.squeeze(-1).numpy()), rtol=1e-5)
    assert times.log_survival(t)[:2].tolist() == [0.0, 0.0]
    assert times.log_cdf(t)[:2].tolist() == [-math.inf] * 2


def test_distribution_functions_of_conditional_flows_know_the_ends_of_each_context():
    net = functools.partial(MLP, hidden=(4,))
    flow = Flow(
        Compose(Elementwise(1, Affine(), context=1, conditioner=net), Log(1)), StandardNormal(1)
    )
    flow = roughened(flow, 1.0).double()
    context = torch.tensor([[-1.0], [0.0], [2.0]], dtype=D)
    ends = flow.region(context).lower
    assert len(set(ends.flatten().tolist())) == 3
    assert flow.cdf(ends - 1e-6, context).tolist() == [0.0] * 3
    assert flow.survival(ends - 1e-6, context).tolist() == [1.0] * 3
    assert (flow.cdf(ends + 1.0, context) > 0).all()
    q = torch.tensor([0.0, 0.5, 1.0], dtype=D)
    assert flow.quantile(q, context)[0] == ends[0]
    assert flow.quantile(q, context)[2] == math.inf
    torch.testing.assert_close(flow.cdf(flow.quantile(q, context), context), q)
    with pytest.raises(ShapeError):
        flow.cdf(ends)
    both = Flow(Coupling([True], Affine(), conditioner=net, context=1), StandardNormal(1)).double()
    assert both.quantile(q, context).tolist() == [[-math.inf], [0.0], [math.inf]]


TAILS = {
    "normal": (lambda: StandardNormal(1), stats.norm, lambda z: z + 1 / z),
    "diagonal": (lambda: DiagonalNormal(1), stats.norm, lambda z: z + 1 / z),
    "logistic": (lambda: Logistic(1), stats.logistic, lambda z: 1.0),
    "student": (lambda: StudentT(1, df=3.0), stats.t(3.0), lambda z: 3 / z),
    "product": (lambda: ProductBase((StudentT(1, df=3.0), [0])), stats.t(3.0), lambda z: 3 / z),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TAILS)
def test_gradients_of_tails_are_the_hazard_however_far_out(name, dtype):
    make, exact, far_hazard = TAILS[name]
    base = make().to(dtype)
    values = [-30.0, -7.1, -1.0, 0.0, 0.5, 3.0, 6.9, 7.1, 13.0, 30.0, 1e3, 3e3, 1e4, 1e6]
    for sign in (1.0, -1.0):
        z = rows(sign * np.array(values), dtype).requires_grad_()
        tail = base.log_survival if sign > 0 else base.log_cdf
        value = tail(z)
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), z)
        t = np.array(values)
        want = exact.logsf(t)
        with np.errstate(over="ignore"), warnings.catch_warnings():
            hazard = np.exp(exact.logpdf(t) - want)
        hazard = np.where(t > 2000, [far_hazard(max(v, 1.0)) for v in t], hazard)
        rtol = 2e-5 if dtype is torch.float32 else 1e-6  # of the far hazard, 1 / z^2
        tiny = torch.finfo(dtype).tiny
        np.testing.assert_allclose(-sign * slope.detach()[:, 0], hazard, rtol=rtol, atol=tiny)
        finite = np.isfinite(want)
        np.testing.assert_allclose(value.detach()[finite, 0], want[finite], rtol=rtol, atol=tiny)
        assert bool(curvature.isfinite().all())
    z = torch.tensor([[1e20], [-1e20], [math.inf]], dtype=dtype, requires_grad=True)
    for tail in (base.log_survival, base.log_cdf):
        (slope,) = torch.autograd.grad(tail(z).sum(), z)
        assert not slope.isnan().any()


@pytest.mark.parametrize("make", [lambda: NormalMixture(1, components=3), lambda: Uniform(1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_other_tails_are_the_hazard_too(make, dtype):
    base = make().to(dtype)
    values = [-40.0, -3.0, 0.1, 0.3, 0.9, 5.0, 40.0, 1e3, 1e4, 1e20]
    z = rows(values, dtype).requires_grad_()
    for tail in (base.log_survival, base.log_cdf):
        value = tail(z)
        assert (value <= 0).all()
        (slope,) = torch.autograd.grad(value.sum(), z)
        assert not slope.isnan().any()
        near = value.squeeze(-1) > -1e5
        hazard = (base.log_prob(z) - value.squeeze(-1)).exp()
        sign = -1 if tail == base.log_survival else 1
        torch.testing.assert_close(
            sign * slope.squeeze(-1)[near], hazard[near], rtol=1e-3, atol=1e-12
        )


@pytest.mark.parametrize("value", [100.0, 1e3, 3e3, 1e4, 1e6])
def test_a_censored_outlier_pulls_with_its_distance(value):
    x = torch.tensor([[value]], requires_grad=True)
    (gradient,) = torch.autograd.grad(elementwise_flow(1).log_survival(x).sum(), x)
    assert gradient.item() == pytest.approx(-value - 1 / value, rel=1e-5)


@pytest.mark.parametrize("df", [0.1, 1.0, 3.0, 30.0, 1e3, 1e6])
def test_the_tail_of_student_s_t_is_that_of_scipy(df):
    base = StudentT(1, df=df, learn=False).double()
    df = float(base.df)
    z = np.concatenate([np.linspace(-10, 10, 201), 10 ** np.linspace(1, 100, 20)])
    exact = stats.t(df)
    # scipy loses some digits far out for large df, where tails are below 1e-300.
    want = exact.logsf(z)
    known = np.isfinite(want) & (want > -600)
    got = base.log_survival(rows(z, D))[:, 0].numpy()
    np.testing.assert_allclose(got[known], want[known], rtol=1e-9, atol=1e-13)
    # The inverse of scipy loses all digits below, where ours is that of the tail's power.
    q = np.array([1e-12, 0.01, 0.3, 0.5, 0.9, 1 - 1e-9])
    if df > 0.5:
        np.testing.assert_allclose(
            base.icdf(rows(q, D))[:, 0], exact.ppf(q), rtol=1e-7, atol=1e-12
        )
    above = base.log_survival(base.isf(rows(q, D))).exp()[:, 0]
    torch.testing.assert_close(above, torch.tensor(q))
    cauchy = StudentT(1, df=1.0, learn=False).double()
    far = cauchy.isf(torch.tensor([1e-200], dtype=D)).item()
    assert far == pytest.approx(1e200 / math.pi, rel=1e-6)


def test_tails_have_derivatives_of_second_order_in_place_and_degrees_of_freedom():
    z = torch.tensor([-3.0, -0.2, 0.0, 0.7, 1.4, 1.6, 6.9, 7.2, 20.0], dtype=D, requires_grad=True)
    df = torch.tensor([0.7], dtype=D, requires_grad=True)

    def student(z, df):
        return log_student_survival(z, df, torch.lgamma(
            0.5 * (df + 1)) - torch.lgamma(0.5 * df) - 0.5 * torch.log(math.pi * df))  # fmt: skip

    assert torch.autograd.gradcheck(log_normal_survival, z)
    assert torch.autograd.gradgradcheck(log_normal_survival, z)
    assert torch.autograd.gradcheck(student, (z, df))
    assert torch.autograd.gradgradcheck(student, (z, df), atol=1e-4)
    mapped = torch.func.vmap(torch.func.grad(log_normal_survival))(z.detach())
    (together,) = torch.autograd.grad(log_normal_survival(z).sum(), z)
    torch.testing.assert_close(mapped, together)


def test_distribution_functions_and_quantiles_compile_in_one_graph():
    flow = Flow(Compose(Log(1), ActNorm(1)), StandardNormal(1)).double().requires_grad_(False)
    x = torch.tensor([[-1.0], [0.5], [math.inf]], dtype=D)
    for function, value in ((flow.cdf, x), (flow.log_survival, x)):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(value), function(value))


def test_the_upper_tail_of_a_decreasing_flow_keeps_its_digits():
    flow = Flow(decreasing(), StandardNormal(1))
    q = torch.tensor([1e-30, 1e-12])
    x = flow.quantile(q)
    torch.testing.assert_close(flow.log_cdf(x), q.log(), rtol=1e-5, atol=0)
