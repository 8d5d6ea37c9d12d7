"""Smooth mixtures: the checks of their method, on the maps and on flows made of them."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from flowkit import smooth_flow
from flowkit.bases import DiagonalNormal, ProductBase, StandardNormal, Uniform
from flowkit.errors import (
    ArgumentError,
    ConvergenceError,
    DataError,
    NotInvertibleError,
    ShapeError,
)
from flowkit.numerics import bins, roots
from flowkit.numerics.bins import find_root_in_bins
from flowkit.numerics.roots import find_root_by_newton
from flowkit.scalar import (
    Affine,
    CircularSmoothMixture,
    CircularSpline,
    PerFeature,
    RationalQuadraticSpline,
    RealSmoothMixture,
    SmoothMixture,
)
from flowkit.scalar import smooth as smooth_module
from flowkit.scalar.smooth import least_shape, smooth_step
from flowkit.transforms import CircularShift, Compose, Coupling, Rescale

MAPS = [SmoothMixture, RealSmoothMixture, CircularSmoothMixture]
DOUBLE = torch.float64


def params_of(f, *shape, scale=1.0, dtype=DOUBLE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, f.param_size, generator=generator, dtype=dtype)


def derivatives(f, x, order):
    """Values of the first derivatives of ``f`` at ``x``, elementwise."""
    x = x.clone().requires_grad_()
    value, found = f(x), []
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        found.append(value.detach())
    return found


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_step_is_symmetric_and_reaches_its_ends(exponent):
    u = torch.linspace(-0.5, 1.5, 401, dtype=DOUBLE)
    shape = torch.tensor(1.3 * least_shape(exponent), dtype=DOUBLE)
    step, _ = smooth_step(u, shape, exponent)
    mirrored, _ = smooth_step(1 - u, shape, exponent)
    assert float((step + mirrored - 1).abs().max()) < 1e-15
    assert float(step[u <= 0].max()) < 1e-300
    assert bool((step[u >= 1] == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_derivatives_of_the_step_vanish_at_its_ends_and_are_finite_everywhere(dtype):
    shape = torch.ones((), dtype=dtype)
    near = torch.tensor([1e-3, 1 - 1e-3], dtype=dtype)
    for value in derivatives(lambda u: smooth_step(u, shape, 1.0)[0], near, 4):
        assert float(value.abs().max()) < (1e-25 if dtype == torch.float32 else 1e-100)
    tiny = 1e-300 if dtype == DOUBLE else 1e-38
    everywhere = torch.tensor([-1.0, 0.0, tiny, 0.5, 1.0, 2.0], dtype=dtype)
    for part in (0, 1):
        for value in derivatives(lambda u: smooth_step(u, shape, 1.0)[part], everywhere, 3):  # noqa: B023
            assert bool(value.isfinite().all())


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_bump_has_one_maximum_from_the_least_shape_on(exponent):
    half = torch.tensor([0.5], dtype=DOUBLE)
    for factor, sign in ((1 + 1e-6, -1), (0.98, 1)):
        shape = torch.tensor(factor * least_shape(exponent), dtype=DOUBLE)
        third = derivatives(lambda u: smooth_step(u, shape, exponent)[0], half, 3)[2]  # noqa: B023
        assert float(third.sign()) == sign


def test_the_least_shapes_are_the_exact_constants():
    assert least_shape(1.0) == pytest.approx(math.sqrt(3) / 2, rel=1e-15)
    assert least_shape(2.0) == pytest.approx(math.sqrt(12 / 32) / 2, rel=1e-15)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
@pytest.mark.parametrize("kind", MAPS)
def test_log_slopes_are_those_of_autodiff(kind, exponent):
    f = kind(components=5, exponent=exponent)
    params = params_of(f, 1000, scale=2.0)
    x = f.lower + (f.upper - f.lower) * torch.linspace(-0.3, 1.3, 1000, dtype=DOUBLE)
    _, log_slope = f.forward(x, params)
    (slope,) = derivatives(lambda x: f.forward(x, params)[0], x, 1)
    assert float((log_slope - slope.log()).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", MAPS)
def test_ends_stay_and_slopes_keep_their_floor(kind):
    f = kind(components=5, min_density=0.01)
    params = params_of(f, 1000, scale=3.0)
    ends = torch.tensor([f.lower, f.upper], dtype=DOUBLE).unsqueeze(-1).expand(2, 1000)
    moved, _ = f.forward(ends, params)
    # Around the circle, the rounding of a turn counts as often as the narrowest bump is steep.
    bound = 5e-14 if kind is CircularSmoothMixture else 1e-14
    assert float((moved - ends).abs().max()) < bound * (f.upper - f.lower)
    x = f.lower + (f.upper - f.lower) * torch.rand(50, 1000, dtype=DOUBLE)
    _, log_slope = f.forward(x, params)
    raw = params.movedim(-1, 0).unflatten(0, (5, -1))
    floor = 0.01 + 0.99 * torch.sigmoid(raw[3])
    least = (torch.softmax(raw[0], 0) * floor).sum(0)
    assert bool((log_slope >= least.log() - 1e-12).all())


@pytest.mark.parametrize("kind", MAPS)
def test_zero_parameters_are_near_the_identity(kind):
    f = kind()
    x = torch.linspace(f.lower, f.upper, 201, dtype=DOUBLE)
    moved, _ = f.forward(x, torch.zeros(f.param_size, dtype=DOUBLE))
    assert float((moved - x).abs().max()) < 0.1 * (f.upper - f.lower)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_derivatives_agree_across_the_seam_of_the_circle(exponent):
    f = CircularSmoothMixture(components=6, exponent=exponent)
    params = params_of(f, 200, scale=2.0)
    low, high = (torch.full((200,), end, dtype=DOUBLE) for end in (0.0, 1.0))
    for part in (0, 1):  # the map up to third order, and its log-slope
        at = [derivatives(lambda x: f.forward(x, params)[part], x, 3) for x in (low, high)]  # noqa: B023
        for a, b in zip(*at, strict=True):
            assert float(((a - b).abs() / (1 + a.abs())).max()) < 1e-9


def test_the_circle_goes_around_once_a_turn():
    f = CircularSmoothMixture(components=6, lower=-2.0, upper=1.0)
    params = params_of(f, 500)
    x = 6 * torch.rand(500, dtype=DOUBLE) - 3
    for turns in (1, -2):
        moved, log_slope = f.forward(x + 3 * turns, params)
        still, same = f.forward(x, params)
        torch.testing.assert_close(moved, still + 3 * turns, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, same, rtol=0, atol=1e-9)


def test_beyond_its_bounds_the_line_is_straight_and_smooth_where_it_begins():
    f = RealSmoothMixture(components=6)
    params = params_of(f, 300, scale=2.0)
    for end in (-5.0, 5.0):
        out = [torch.full((300,), s * end, dtype=DOUBLE) for s in (1.0, 1.5, 40.0)]
        slopes = [f.forward(x, params)[1] for x in out]
        for slope in slopes[1:]:
            torch.testing.assert_close(slope, slopes[0], rtol=0, atol=1e-12)
        for value in derivatives(lambda x: f.forward(x, params)[0], out[0], 4)[1:]:
            assert float(value.abs().max()) < 1e-100


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(("dtype", "bound"), [(DOUBLE, 1e-10), (torch.float32, 5e-6)])
def test_round_trips_of_a_thousand_parameter_sets(kind, dtype, bound):
    f = kind()
    params = params_of(f, 1000, dtype=dtype, scale=2.0)
    unit = torch.rand(20, 1000, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x = f.lower + (f.upper - f.lower) * unit
    with torch.no_grad():
        y, log_slope = f.forward(x, params)
        back, log_inverse = f.inverse(y, params)
    # Rounding of y is as much in x as the inverse is steep.
    error = (back - x).abs() / (f.upper - f.lower) * log_slope.exp().clamp_max(1.0)
    assert float(error.max()) < bound
    at, _ = f.forward(back.double(), params.double())
    exact = f.forward(back.double(), params.double())[1]
    assert float((at - y).abs().max()) < 20 * bound * (f.upper - f.lower)
    assert float((log_inverse + exact).abs().max()) < (1e-8 if dtype == DOUBLE else 1e-2)


class Counted:
    """Counts calls of the search, less the last, which gives the log-slope."""

    def __init__(self, monkeypatch):
        self.calls = -1
        plain = smooth_module._Residual.__call__

        def count(residual, x):
            self.calls += 1
            return plain(residual, x)

        monkeypatch.setattr(smooth_module._Residual, "__call__", count)


@pytest.mark.parametrize(
    ("kind", "shape", "tolerance", "most"),
    [
        *((kind, (4096, 1), 1e-6, 8) for kind in MAPS),
        *((kind, (4096, 32), 1e-12, 16) for kind in MAPS),
        (SmoothMixture, (4096, 32), 1e-6, 8),
        # In large batches, cheap calls for some numbers are preferred to few for many.
        (RealSmoothMixture, (4096, 32), 1e-6, 11),
        (CircularSmoothMixture, (4096, 32), 1e-6, 11),
    ],
)
def test_few_calls_find_all_of_a_batch(kind, shape, tolerance, most, monkeypatch):
    f = kind(tolerance=tolerance)
    params = params_of(f, *shape)
    y = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    y = f.lower + (f.upper - f.lower) * y
    counted = Counted(monkeypatch)
    with torch.no_grad():
        x, _ = f.inverse(y, params)
    assert counted.calls <= most
    moved, log_slope = f.forward(x, params)
    assert float(((moved - y).abs() / log_slope.exp()).max()) < tolerance * (f.upper - f.lower)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("kind", MAPS)
def test_the_search_finds_the_root_of_any_parameters(kind, dtype, scale):
    f = kind(components=4)
    n = 60_000  # times 18 cases: a million parameter sets
    params = params_of(f, n, dtype=dtype, scale=scale, seed=3)
    generator = torch.Generator().manual_seed(4)
    y = f.lower + (f.upper - f.lower) * (
        1.6 * torch.rand(n, generator=generator, dtype=dtype) - 0.3
    )
    with torch.no_grad():
        x, log_slope = f.inverse(y, params)
        # What the search knows to rounding is the sign, in the precision of its numbers.
        step = 64 * torch.finfo(dtype).eps * (f.upper - f.lower + x.abs())
        step = step / torch.exp(-log_slope).clamp(1e-3, 1.0)
        low, high = (f.forward(x + s * step, params)[0] for s in (-1, 1))
    assert bool(x.isfinite().all() & log_slope.isfinite().all())
    slack = 64 * torch.finfo(dtype).eps * (1 + y.abs())
    assert bool((low <= y + slack).all() & (high >= y - slack).all())


def test_a_search_that_does_not_end_says_so(monkeypatch):
    class Endless:
        """No root: each step goes further up."""

        def take(self, index):
            return self

        def __call__(self, x):
            return torch.full_like(x, -1.0), torch.ones_like(x)

    one = torch.ones(3, dtype=DOUBLE)
    monkeypatch.setattr(bins, "_FIRST_STEPS", 2)
    with pytest.raises(ConvergenceError, match="3 of 3 numbers.*remedy"):
        find_root_in_bins(Endless(), 0 * one, -math.inf * one, math.inf * one)
    monkeypatch.setattr(roots, "_NEWTON_STEPS", {DOUBLE: 4})
    with pytest.raises(ConvergenceError, match="1 of 3 numbers.*remedy"):
        find_root_by_newton(
            lambda x: (x**3 - one, 3 * x**2),
            torch.tensor([1.0, 1.0, 9.0], dtype=DOUBLE),
            -one,
            9 * one,
        )


def test_missing_and_infinite_parameters_do_not_pass_silently():
    f = SmoothMixture(components=3)
    params, y = params_of(f, 3), torch.full((3,), 0.4, dtype=DOUBLE)
    params[1, 2] = math.nan
    with torch.no_grad():
        x, log_slope = f.inverse(y, params)
    assert x.isnan().tolist() == [False, True, False]
    assert log_slope.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", MAPS)
def test_the_inverse_passes_gradient_checks_in_everything(kind):
    f = kind(components=2)
    params = params_of(f, 3, seed=5).requires_grad_()
    y = (f.lower + (f.upper - f.lower) * torch.tensor([0.2, 0.55, 0.8], dtype=DOUBLE)).detach()
    y.requires_grad_()
    assert gradcheck(f.inverse, (y, params), eps=1e-6, atol=1e-5)
    assert gradgradcheck(f.inverse, (y, params), eps=1e-6, atol=1e-5)


def test_gradients_of_a_coupling_reach_context_and_condition_through_the_inverse():
    torch.manual_seed(0)
    flow = smooth_flow(2, circular=True, context=1, layers=2, components=3, hidden=(4,)).double()
    stir(flow)
    z = torch.tensor([[0.3, -0.4], [-0.6, 0.1]], dtype=DOUBLE, requires_grad=True)
    context = torch.tensor([[0.5], [-1.0]], dtype=DOUBLE, requires_grad=True)
    assert gradcheck(flow.transform.inverse, (z, context), eps=1e-6, atol=1e-5)
    assert gradgradcheck(flow.transform.inverse, (z, context), eps=1e-6, atol=1e-5)


def stir(flow, scale=0.3):
    """Give a new flow random weights, so that it is not near the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return flow


PLACES = {
    "torus": ({"circular": True}, 2),
    "mixed": (
        {"circular": [True, False, False], "lower": [0, -2, None], "upper": [1, 2, None]},
        3,
    ),
    "line": ({}, 2),
}


@pytest.mark.parametrize("structure", ["coupling", "autoregressive"])
@pytest.mark.parametrize("place", PLACES)
def test_forces_are_derivatives_and_agree_in_both_directions(place, structure):
    options, features = PLACES[place]
    flow = smooth_flow(
        features, layers=4, structure=structure, components=5, hidden=(8, 8), **options
    ).double()
    stir(flow, 0.1)
    x = flow.sample(20, generator=torch.Generator().manual_seed(0)).detach()
    force = flow.score(x).detach()
    step = 1e-4
    for i in range(features):
        shift = torch.zeros(features, dtype=DOUBLE)
        shift[i] = step
        with torch.no_grad():
            near, far = (
                flow.log_prob(x + k * shift) - flow.log_prob(x - k * shift) for k in (1, 2)
            )
            slope = (8 * near - far) / (12 * step)  # central, of fourth order
        scale = force.abs().max()
        assert float((slope - force[:, i]).abs().max() / scale) < 1e-6
    # The density through the inverse: log p(x(z)) along the map, pulled back to x.
    z = flow.to_noise(x).detach().requires_grad_()
    back, log_det = flow.transform.inverse(z)
    log_prob = flow.base.log_prob(z) - log_det
    jacobian = torch.stack(
        [torch.autograd.grad(back[:, i].sum(), z, retain_graph=True)[0] for i in range(features)],
        1,
    )
    (slope,) = torch.autograd.grad(log_prob.sum(), z)
    through_inverse = torch.linalg.solve(jacobian.mT, slope)
    error = (through_inverse - force).abs() / (1 + force.abs())
    assert float(error.max()) < 1e-8


def jumps(f, points, params):
    """The largest step of the slope of the log-density between neighbours of a grid."""
    x = f.lower + (f.upper - f.lower) * torch.linspace(0, 1, points + 1, dtype=DOUBLE)[:-1]
    x = x.unsqueeze(-1).expand(-1, len(params)).clone().requires_grad_()
    (force,) = torch.autograd.grad(f.forward(x, params)[1].sum(), x)
    return float(force.diff(dim=0).abs().max())


def test_finer_grids_see_smaller_steps_of_smooth_forces_but_not_of_splines():
    smooth = CircularSmoothMixture(components=8, max_log_scale=2.0)
    params = params_of(smooth, 4)
    assert jumps(smooth, 20_000, params) > 8 * jumps(smooth, 200_000, params)
    spline = CircularSpline(bins=8, lower=0.0, upper=1.0)
    params = params_of(spline, 4)
    assert jumps(spline, 20_000, params) < 2 * jumps(spline, 200_000, params)


def test_energy_of_constant_energy_dynamics_is_bounded_and_scales_with_the_squared_step():
    from flowkit.molecules import FlowPotential

    flow = smooth_flow(2, circular=True, layers=2, components=3, hidden=(6,)).double()
    stir(flow, 0.2)
    potential = FlowPotential(flow)
    x = flow.sample(16, generator=torch.Generator().manual_seed(2)).detach()
    v = potential.draw_velocities(x, generator=torch.Generator().manual_seed(3))
    worst = []
    for dt, steps in ((0.02, 10_000), (0.01, 1000)):
        total = potential.velocity_verlet(x, v, dt=dt, steps=steps, every=5).total
        drift = (total - total[0]).abs()
        # No trend: the second half of the run is no worse than the first.
        half = len(drift) // 2
        assert float(drift[half:].max()) < 2 * float(drift[:half].max())
        # The same span of time for both.
        worst.append(drift[: round(10 / (5 * dt)) + 1].square().mean().sqrt())
    assert 3 < float(worst[0] / worst[1]) < 5


@pytest.mark.parametrize("features", [2, 8, 32])
def test_training_stays_finite_in_single_precision(features):
    from flowkit import fit

    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(2000, features // 2)
    pairs = torch.stack([angle, (angle + 0.1 * torch.randn_like(angle)) % (2 * math.pi)], -1)
    x = pairs.flatten(1) - math.pi
    flow = smooth_flow(features, circular=True, layers=2, components=4, hidden=(16,))
    with torch.no_grad():
        before = float(-flow.log_prob(x).mean())
    history = fit(flow, x, steps=60, batch_size=100, progress=False, compile=False)
    assert math.isfinite(history.best)
    with torch.no_grad():
        assert float(-flow.log_prob(x).mean()) < before


def test_bounds_circles_and_lines_are_where_they_are_said_to_be():
    flow = smooth_flow(
        3, circular=[True, False, False], lower=[0, -1, None], upper=[360, 1, None], components=4
    ).double()
    stir(flow, 0.1)
    x = flow.sample(500, generator=torch.Generator().manual_seed(0))
    assert bool(((x[:, 0] >= 0) & (x[:, 0] <= 360) & (x[:, 1].abs() <= 1)).all())
    turned = x + torch.tensor([720.0, 0.0, 0.0])
    torch.testing.assert_close(flow.log_prob(turned), flow.log_prob(x), rtol=0, atol=1e-6)
    outside = x.clone()
    outside[:, 1] = 1.5
    assert bool((flow.log_prob(outside) == -math.inf).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"circular": [True]}, "a sequence of 2 boolean"),
        (
            {"circular": True, "upper": [math.inf, 1]},
            "both ends finite .* and inf for periodic variable 0",
        ),
        ({"lower": [0]}, "one for each of 2 feature"),
        ({"lower": [1, None], "upper": [0, None]}, "lower < upper"),
        ({"structure": "autoregresive"}, "did you mean 'autoregressive'"),
        ({"circular": [0, 2]}, "a sequence of 2 boolean"),
        ({"activation": "relu"}, "derivatives of every order"),
        ({"scalar": "smoth"}, "did you mean 'smooth'"),
    ],
)
def test_bad_arguments_of_smooth_flow_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        smooth_flow(2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"components": 0},
        {"points": 2},
        {"min_density": 0.0},
        {"exponent": 0.0},
        {"lower": 1.0, "upper": 1.0},
        {"tolerance": 1.0},
    ],
)
def test_bad_options_of_smooth_mixtures_are_named(options):
    with pytest.raises(ValueError, match="SmoothMixture expected"):
        SmoothMixture(**options)


def test_maps_of_features_move_what_each_alone_would_move():
    maps = (Affine(), RationalQuadraticSpline(3), Affine(), RealSmoothMixture(2))
    joint = PerFeature(maps)
    params, x = params_of(joint, 4, 6), torch.randn(4, 6, dtype=DOUBLE)
    for direction in ("forward", "inverse"):
        got = getattr(joint, direction)(x, params)
        for i, f in enumerate(maps):
            want = getattr(f, direction)(x[i], params[i][..., : f.param_size])
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a[i], b)
    assert joint.take([0, 2], 4) == Affine()
    with pytest.raises(ShapeError, match="holds 4 maps and the layer has 3"):
        Coupling([True, False, True], joint)


def test_a_chart_reads_circles_at_any_turn_and_starts_lines_from_data():
    chart = Rescale([0.0, -math.inf], [2.0, math.inf], circular=[True, False]).double()
    x = torch.tensor([[0.5, 10.0], [1.5, 30.0]], dtype=DOUBLE)
    chart.initialize(x)
    z, log_det = chart(x + torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(z, torch.tensor([[-0.5, -1.0], [0.5, 1.0]], dtype=DOUBLE))
    torch.testing.assert_close(log_det, torch.full((2,), -math.log(10.0), dtype=DOUBLE))
    with pytest.raises(ValueError, match="periodic variable 0"):
        Rescale([-math.inf], [math.inf], circular=[True])


def test_a_shift_leaves_lines_alone():
    shift = CircularShift(3, lower=-1.0, upper=1.0, circular=[True, False, True])
    with torch.no_grad():
        shift.shift.copy_(torch.tensor([0.5, 1.5]))
    x = torch.tensor([[0.75, 9.0, 0.0]])
    z, _ = Compose(shift)(x)
    torch.testing.assert_close(z, torch.tensor([[-0.75, 9.0, -0.5]]))
    torch.testing.assert_close(shift.inverse(z)[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_rounding_at_an_end_leads_out_of_no_interval_and_no_circle(dtype):
    generator = torch.Generator().manual_seed(0)
    lower = (10 * torch.rand(200, generator=generator, dtype=DOUBLE) - 5).round(decimals=2)
    width = 5 * torch.rand(200, generator=generator, dtype=DOUBLE) + 0.01
    upper = (lower + width).round(decimals=2)
    for circular in (False, True):
        chart = Rescale(lower.tolist(), upper.tolist(), circular=[circular] * 200).to(dtype)
        ends = torch.stack([lower, upper]).to(dtype)
        assert float(chart(ends)[0].abs().max()) <= 1
        unit = torch.ones(200, dtype=dtype)
        back = torch.stack([chart.inverse(-unit)[0], chart.inverse(unit)[0]])
        assert bool(((back >= ends[0]) & (back <= ends[1])).all())
    shift = CircularShift(4000, lower=-math.pi, upper=math.pi).to(dtype)
    x = torch.full((4000,), math.pi, dtype=dtype)
    x = x * (1 + torch.finfo(dtype).eps * torch.arange(-2000, 2000))
    assert shift(x)[0].detach().abs().max() <= torch.tensor(math.pi, dtype=dtype)
    flow = smooth_flow(2, lower=[0.11, 2.84], upper=[4.19, 5.91], components=3).to(dtype)
    at_ends = torch.tensor([[0.11, 2.84], [4.19, 5.91]], dtype=dtype)
    assert bool(flow.log_prob(at_ends).isfinite().all())


def test_a_circle_has_no_distribution_function_and_an_interval_has():
    with pytest.raises(NotInvertibleError, match="without a first point"):
        smooth_flow(1, circular=True).cdf(torch.zeros(1, 1))
    interval = smooth_flow(1, lower=0, upper=4, components=3)
    torch.testing.assert_close(interval.cdf(torch.tensor([[4.0]])), torch.ones(1))


def test_data_beyond_an_interval_are_named_before_training():
    flow = smooth_flow(2, lower=[0, None], upper=[1, None], components=3)
    with pytest.raises(DataError, match="column 0 holds 0 to 90"):
        flow.initialize(torch.tensor([[0.0, 1.0], [90.0, 2.0]]))


@pytest.mark.parametrize("kind", MAPS)
def test_the_inverse_takes_single_numbers_and_vmap(kind):
    f = kind(components=3)
    params, y = params_of(f, 5), torch.full((5,), 0.3, dtype=DOUBLE)
    want = f.inverse(y, params)
    got = torch.vmap(f.inverse)(y, params)
    one = f.inverse(y[2], params[2])
    for a, b, c in zip(want, got, one, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a[2])


@pytest.mark.parametrize("exponent", [0.2, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_extreme_exponents_stay_finite(dtype, exponent):
    for kind in MAPS:
        f = kind(components=4, exponent=exponent)
        params = params_of(f, 500, dtype=dtype, scale=2.0).requires_grad_()
        x = f.lower + (f.upper - f.lower) * torch.linspace(-0.2, 1.2, 500, dtype=dtype)
        y, log_slope = f.forward(x, params)
        (y.sum() + log_slope.sum()).backward()
        assert bool(y.isfinite().all() & log_slope.isfinite().all())
        assert bool(params.grad.isfinite().all())


def test_products_of_bases_nest_and_name_what_does_not_fit():
    inner = ProductBase((Uniform(1), [0]), (StandardNormal(1), [1]))
    outer = ProductBase((inner, [0, 2]), (StandardNormal(1), [1]))
    x = torch.tensor([[0.5, 3.0, -4.0], [1.5, 0.0, 0.0]])
    assert outer.support.check(x).tolist() == [True, False]
    want = StandardNormal(2).log_prob(x[:, 1:])
    torch.testing.assert_close(outer.log_prob(x)[0], want[0])
    contexts = (DiagonalNormal(1, context=2), [0]), (DiagonalNormal(1, context=3), [1])
    with pytest.raises(ArgumentError, match=r"one context size, got \[2, 3\]"):
        ProductBase(*contexts)
    with pytest.raises(ArgumentError, match="pairs"):
        ProductBase(Uniform(1))
