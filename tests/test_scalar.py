"""Scalar maps against their formulas, autodiff and scipy."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from registry import SCALARS
from scipy import optimize, stats
from torch.autograd import grad, gradcheck, gradgradcheck

from flowkit.errors import ArgumentError
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.roots import attach_newton, expand_bracket, find_root_by_newton
from flowkit.scalar import (
    Affine,
    CircularSpline,
    IntervalSpline,
    LogisticMixture,
    RationalQuadraticSpline,
    ScalarMap,
)

SPLINES = {
    "line": RationalQuadraticSpline(bins=5, bound=3.0),
    "interval": IntervalSpline(bins=5, lower=-3.0, upper=3.0),
    "circle": CircularSpline(bins=5, lower=-3.0, upper=3.0),
}


@dataclass(frozen=True)
class Bent(ScalarMap):
    """``exp(a) (x + 0.9 sin(x))``: no closed-form inverse, and no bracket of its own."""

    param_size: int = 1
    starts_at_identity: ClassVar[bool] = False

    def forward(self, x, params):
        a = params[..., 0]
        y = a.exp() * (x + 0.9 * x.sin())
        return y, (a + torch.log1p(0.9 * x.cos())).expand_as(y)


MAPS = {**SCALARS, "bent": Bent()}


def params_of(scalar, rows, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, scalar.param_size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scalar", MAPS.values(), ids=MAPS)
def test_the_log_slope_is_the_logarithm_of_the_derivative(scalar):
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    y, log_slope = scalar.forward(x, params_of(scalar, 101))
    (slope,) = grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scalar", MAPS.values(), ids=MAPS)
def test_every_map_is_strictly_increasing(scalar):
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    for seed in range(5):
        y, _ = scalar.forward(x, params_of(scalar, 1, scale=3.0, seed=seed))
        assert bool((y.diff() > 0).all())


@pytest.mark.parametrize("scalar", MAPS.values(), ids=MAPS)
def test_the_inverse_has_the_derivatives_of_an_inverse_function(scalar):
    x = torch.linspace(-2.7, 2.6, 4, dtype=torch.float64)
    params = params_of(scalar, 4).requires_grad_()
    y = scalar.forward(x, params)[0].detach().requires_grad_()
    back, log_slope = scalar.inverse(y, params)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_slope, -scalar.forward(x, params)[1], rtol=1e-8, atol=1e-8)
    assert gradcheck(scalar.inverse, (y, params))
    assert gradgradcheck(scalar.inverse, (y, params))


@pytest.mark.parametrize("scalar", MAPS.values(), ids=MAPS)
def test_zero_parameters_are_the_stated_start(scalar):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    y, log_slope = scalar.forward(x, x.new_zeros(scalar.param_size))
    if scalar.starts_at_identity:
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_slope, torch.zeros_like(x))
    if isinstance(scalar, LogisticMixture):
        # Near the identity: an odd function with slopes of the order of one.
        torch.testing.assert_close(y, -y.flip(0))
        assert float(log_slope.abs().max()) < 1.0


def test_soft_clip_has_slope_one_at_zero_and_keeps_its_limit():
    x = torch.tensor([0.0, 1e30, -1e30], dtype=torch.float64, requires_grad=True)
    y = soft_clip(x, 4.0)
    torch.testing.assert_close(y.detach(), x.new_tensor([0.0, 4.0, -4.0]))
    assert grad(y.sum(), x)[0][0] == 1
    assert soft_clip(x, None) is x


def test_affine_scales_stay_within_their_bound():
    params = torch.tensor([[0.0, 1e9], [0.0, -1e9]], dtype=torch.float64)
    _, log_slope = Affine(max_log_scale=2.0).forward(torch.ones(2).double(), params)
    torch.testing.assert_close(log_slope, torch.tensor([2.0, -2.0]).double())


# ---- splines ----


def numpy_spline(x, widths, heights, slopes, lower):
    """Eq. 4 of arXiv 1906.04032, one number at a time."""
    xs, ys = lower + np.cumsum([0, *widths]), lower + np.cumsum([0, *heights])
    k = int(np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(widths) - 1))
    s = (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])
    t = (x - xs[k]) / (xs[k + 1] - xs[k])
    d0, d1 = slopes[k], slopes[k + 1]
    above = (ys[k + 1] - ys[k]) * (s * t**2 + d0 * t * (1 - t))
    return ys[k] + above / (s + (d1 + d0 - 2 * s) * t * (1 - t))


def test_the_spline_is_the_formula_of_the_paper():
    f = IntervalSpline(bins=4, lower=-1.0, upper=2.0)
    params = params_of(f, 1)[0]

    def sizes(raw):
        weights = 1 / (1 + np.exp(-raw.numpy()))
        floor = f.min_size * 3 / 4 / (1 - f.min_size)
        return 3.0 * (weights + floor) / (weights + floor).sum()

    sigmoid = 1 / (1 + np.exp(-params[:8].numpy()))
    steep = sigmoid[4:] - sigmoid[:4]
    raw_slopes = params[8:].numpy() + [*steep, steep[-1]] + [steep[0], *steep]
    share = raw_slopes / -math.log(f.min_slope)
    slopes = np.exp(raw_slopes / (1 + share * np.tanh(2 * share)))
    x = torch.linspace(-0.99, 1.99, 41, dtype=torch.float64)
    widths, heights = sizes(params[:4]), sizes(params[4:8])
    want = [numpy_spline(v, widths, heights, slopes, -1.0) for v in x.tolist()]
    np.testing.assert_allclose(f.forward(x, params)[0], want, rtol=1e-12, atol=1e-12)


def test_no_parameters_make_a_bin_smaller_than_the_least_size():
    f = IntervalSpline(bins=4, min_size=0.2)
    params = torch.zeros(f.param_size, dtype=torch.float64)
    params[:8] = 1e9
    params[[0, 6]] = -1e9
    least, rest = 0.05, 0.95 / 3
    widths, heights, _ = f.knots(params)
    torch.testing.assert_close(widths, torch.tensor([least, rest, rest, rest]).double())
    torch.testing.assert_close(heights, torch.tensor([rest, rest, least, rest]).double())


@pytest.mark.parametrize("f", SPLINES.values(), ids=SPLINES)
def test_value_and_slope_are_continuous_at_every_knot(f):
    params = params_of(f, 1)[0]
    widths = f.knots(params)[0]
    knots = -3 + 6 * torch.cat([torch.zeros(1), widths.cumsum(-1)]).double()
    step = 1e-9
    y0, slope0 = f.forward(knots - step, params)
    y1, slope1 = f.forward(knots + step, params)
    torch.testing.assert_close(y0, y1, rtol=0, atol=1e-7)
    torch.testing.assert_close(slope0, slope1, rtol=0, atol=1e-5)


def test_the_spline_on_the_line_is_the_identity_outside():
    f = SPLINES["line"]
    x = torch.tensor([-1e6, -3.0, 3.0, 7.5], dtype=torch.float64)
    y, log_slope = f.forward(x, params_of(f, 4, scale=2.0))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-12)


def test_the_spline_of_an_interval_fixes_both_ends_and_goes_on_straight():
    f = SPLINES["interval"]
    params = params_of(f, 1)[0]
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    y, log_slope = f.forward(ends, params)
    torch.testing.assert_close(y, ends)
    beyond, same = f.forward(ends + torch.tensor([-2.0, 2.0]), params)
    torch.testing.assert_close(beyond, ends + log_slope.exp() * torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(same, log_slope)


def test_the_spline_of_a_circle_commutes_with_whole_turns():
    f = SPLINES["circle"]
    x, params = torch.linspace(-2.9, 2.9, 31, dtype=torch.float64), params_of(f, 1)[0]
    y, log_slope = f.forward(x, params)
    for turns in (-2, 1, 5):
        again, same = f.forward(x + 6 * turns, params)
        torch.testing.assert_close(again, y + 6 * turns)
        torch.testing.assert_close(same, log_slope)


@pytest.mark.parametrize("f", SPLINES.values(), ids=SPLINES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_splines_survive_extreme_parameters(f, dtype, bound):
    # The clip of the logits bounds a slope by about e^12, so an inverse may lose that many digits
    # where the map is flat; what it returns maps back onto y to rounding.
    x = torch.linspace(-2.99, 2.99, 200).to(dtype)
    for seed in range(5):
        params = params_of(f, 200, scale=50.0, seed=seed).to(dtype)
        y, log_slope = f.forward(x, params)
        back, _ = f.inverse(y, params)
        assert bool(torch.isfinite(y).all() and torch.isfinite(log_slope).all())
        assert bool(torch.isfinite(back).all())
        assert float((f.forward(back, params)[0] - y).abs().max()) < bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "RationalQuadraticSpline expected bins as an integer >= 2, got 1"),
        ({"min_size": 1.0}, "min_size as a finite number > 0 and < 1, got 1.0"),
        ({"min_slope": 1.0}, "min_slope as a finite number > 0 and < 1, got 1.0"),
        ({"bound": 0.0}, "bound as a finite number > 0, got 0.0"),
    ],
)
def test_spline_options_out_of_range_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        RationalQuadraticSpline(**options)


# ---- mixture ----


def test_the_mixture_is_the_logit_of_a_mixture_of_logistic_cdfs():
    f = LogisticMixture(components=3)
    params = params_of(f, 1)[0]
    weights = torch.softmax(params[:3], -1).numpy()
    centres = params[3:6].numpy() + np.array([-4 / 3, 0.0, 4 / 3])
    scales = np.exp(soft_clip(params[6:], 5.0).numpy())
    x = np.linspace(-4, 4, 33)
    cdf = (weights * stats.logistic.cdf(x[:, None], centres, scales)).sum(-1)
    y, _ = f.forward(torch.from_numpy(x), params)
    np.testing.assert_allclose(y, np.log(cdf) - np.log1p(-cdf), rtol=1e-9, atol=1e-9)


def test_the_mixture_is_linear_and_accurate_far_out():
    f = LogisticMixture(components=4)
    params = params_of(f, 1)[0]
    slowest = soft_clip(params[8:], 5.0).max()
    for x in (-1e6, 1e6):
        value, log_slope = f.forward(torch.tensor(x).double(), params)
        torch.testing.assert_close(log_slope, -slowest, rtol=1e-9, atol=1e-9)
        back, _ = f.inverse(value, params)
        assert abs(back.item() - x) < 1e-6


# ---- root finding ----


def with_slope(f):
    """A function of many numbers, and its slope by autodiff."""

    def both(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = f(x)
            return value.detach(), grad(value.sum(), x)[0]

    return both


def test_the_search_for_roots_agrees_with_brentq():
    functions = [
        (lambda x: x**3 - 2, 0.0, 2.0),
        (lambda x: torch.exp(x) - 10, -5.0, 20.0),
        (lambda x: torch.tanh(50 * (x - 0.3)), -3.0, 3.0),
        (lambda x: x + x.sin() * 0.99 - 4, -100.0, 100.0),
        (lambda x: (x - 0.1) ** 5 + 1e-6 * (x - 0.1), -1.0, 1.0),
    ]
    for f, low, high in functions:
        want = optimize.brentq(lambda v, f=f: f(torch.tensor(v).double()).item(), low, high)
        ends = torch.tensor([low, high], dtype=torch.float64)
        got = find_root_by_newton(with_slope(f), ends[0], ends[0], ends[1])[0].item()
        assert f(torch.tensor(got)).abs() <= max(1e-12, abs(f(torch.tensor(want)).item()))


def test_the_search_for_roots_reaches_the_resolution_of_float32():
    y = torch.linspace(-30, 30, 61)
    ends = torch.full_like(y, -40), torch.full_like(y, 40)
    root, _ = find_root_by_newton(with_slope(lambda x: x**3 + x - y), ends[0], *ends)
    assert float((root**3 + root - y).abs().max()) < 1e-5


def test_expand_bracket_reaches_a_root_a_million_away():
    centre = torch.zeros(3, dtype=torch.float64)
    root = torch.tensor([-1e6, 0.3, 1e6], dtype=torch.float64)
    lower, upper = expand_bracket(lambda x: x - root, centre)
    assert bool(((lower <= root) & (root <= upper)).all())


def test_the_default_inverse_brackets_any_map():
    y = torch.tensor([-1e4, -3.0, 0.0, 2.5, 1e4], dtype=torch.float64)
    params = torch.full((5, 1), -2.0, dtype=torch.float64)
    x, _ = Bent().inverse(y, params)
    torch.testing.assert_close(Bent().forward(x, params)[0], y, rtol=1e-10, atol=1e-10)


def nth_derivative(f, at, order):
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    value = f(x)
    for _ in range(order):
        if not value.requires_grad:
            return 0.0
        (value,) = grad(value, x, create_graph=True)
    return value.item()


def exponential(x):
    return x.exp(), x


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_k_attached_newton_steps_are_exact_to_order_two_to_the_k_less_one(steps):
    # The inverse of exp is log, whose n-th derivative at y is (-1)^(n-1) (n-1)! y^-n.
    def inverse(y):
        return attach_newton(exponential, y.detach().log(), y, steps=steps)

    exact = 2**steps - 1
    for order in range(1, exact + 2):
        want = (-1) ** (order - 1) * math.factorial(order - 1) * 2.0**-order
        got = nth_derivative(inverse, 2.0, order)
        assert (abs(got - want) < 1e-8 * abs(want)) == (order <= exact)


def test_scalar_maps_are_values():
    assert replace(RationalQuadraticSpline(), bins=4) == RationalQuadraticSpline(bins=4)
    assert hash(Affine()) == hash(Affine())
