"""Scalar maps over parameters of every size: log space, finite gradients, searches that end."""

import math
from dataclasses import dataclass

import mpmath
import pytest
import torch
from registry import SCALARS
from torch.autograd import grad

from flowkit.errors import ContractError, ConvergenceError
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.roots import expand_bracket, find_root_by_newton
from flowkit.scalar import (
    IntervalSpline,
    LogisticMixture,
    ScalarMap,
    SmoothLeakyReLU,
    TailTransform,
)
from flowkit.testing import check_scalar

DOUBLE = torch.float64
DTYPES = (torch.float32, DOUBLE)
MAPS = {
    **SCALARS,
    "activation": SmoothLeakyReLU(),
    "one-bin": IntervalSpline(bins=1, lower=-0.3, upper=0.7),
}


@pytest.mark.parametrize("f", MAPS.values(), ids=MAPS)
def test_no_parameters_spoil_values_gradients_or_the_inverse(f):
    check_scalar(f, scales=(10.0, 100.0))


# ---- the mixture of logistics ----


def exact_mixture(x, params, limit=5.0):
    """``logit F(x)`` and its log-slope by mpmath, of one number."""
    params = params.double()
    count = len(params) // 3
    end = 2 * (count - 1) / count
    spread = torch.linspace(-end, end, count, dtype=DOUBLE)
    with mpmath.workdps(60):
        logits = [mpmath.mpf(v) for v in params[:count].tolist()]
        centres = [mpmath.mpf(v) for v in (params[count : 2 * count] + spread).tolist()]
        scales = [mpmath.exp(v) for v in soft_clip(params[2 * count :], limit).tolist()]
        weights = [mpmath.exp(v) for v in logits]
        below = above = density = mpmath.mpf(0)
        for w, m, s in zip(weights, centres, scales, strict=True):
            u = (mpmath.mpf(x) - m) / s
            inner, outer = 1 / (1 + mpmath.exp(-u)), 1 / (1 + mpmath.exp(u))
            below, above = below + w * inner, above + w * outer
            density += w * inner * outer / s
        total = sum(weights)
        log_slope = mpmath.log(density) + mpmath.log(total)
        log_slope -= mpmath.log(below) + mpmath.log(above)
        return float(mpmath.log(below / above)), float(log_slope)


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_components_the_log_slope_and_its_gradient_are_finite(dtype):
    params = torch.tensor([0, 0, -1.5, 1.5, -20.0, -20.0], dtype=dtype, requires_grad=True)
    _, log_slope = LogisticMixture(2).forward(torch.zeros((), dtype=dtype), params)
    (gradient,) = grad(log_slope, params)
    _, want = exact_mixture(0.0, params.detach())
    assert want == pytest.approx(-131.1, abs=0.1)
    assert log_slope.item() == pytest.approx(want, rel=1e-5)
    # Both components are as far away: what moves one towards zero raises the slope there.
    scale = math.exp(-soft_clip(torch.tensor(-20.0, dtype=DOUBLE), 5.0).item())
    want = scale / 2 * torch.tensor([1, -1]).to(dtype)
    torch.testing.assert_close(gradient[2:4], want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (DOUBLE, 1e-12)])
def test_the_mixture_agrees_with_exact_arithmetic(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    f = LogisticMixture(3)
    for scale in (0.1, 1.0, 10.0, 100.0):
        for x in (-1e4, -7.0, 0.0, 0.01, 30.0, 1e4):
            params = (scale * torch.randn(f.param_size, generator=generator)).to(dtype)
            value, log_slope = f.forward(torch.tensor(x, dtype=dtype), params)
            want, want_slope = exact_mixture(x, params)
            # Rounding of a scale moves exponents by as much as they are large.
            slack = bound * (1 + max(abs(want), abs(want_slope)))
            assert value.item() == pytest.approx(want, abs=slack)
            assert log_slope.item() == pytest.approx(want_slope, abs=slack)


def test_a_mixture_loses_no_digits_of_its_slope_far_out():
    f, params = LogisticMixture(3), torch.randn(9, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([-1e6, -1e4, 1e4, 1e6])
    _, log_slope = f.forward(x, params)
    _, want = f.forward(x.double(), params.double())
    # Differences of numbers of the order of x had left four digits at 1e4, and none at 1e6.
    torch.testing.assert_close(log_slope.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_components_the_inverse_is_the_same_with_and_without_gradients(dtype):
    f = LogisticMixture(2)
    params = torch.tensor([0, 0, -30.0, 30.0, -20.0, -20.0], dtype=dtype)
    y = torch.tensor([-1e-3, 0.0, 1e-3], dtype=dtype)
    with torch.no_grad():
        want, _ = f.inverse(y, params)
    y, params = y.requires_grad_(), params.requires_grad_()
    got, log_slope = f.inverse(y, params)
    assert torch.equal(got, want)
    torch.testing.assert_close(f.forward(got, params)[0], y, rtol=1e-5, atol=1e-6)
    for value in (got, log_slope):
        for gradient in grad(value.sum(), (y, params), retain_graph=True):
            assert bool(gradient.isfinite().all())


# ---- heavy tails ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_noise_has_a_finite_number_however_heavy_the_tail(dtype):
    f = TailTransform()
    half = torch.logspace(-3, 4, 40, dtype=dtype)
    z = torch.cat([-half.flip(0), half]).unsqueeze(-1)
    raw = torch.tensor([-300.0, -3.0, 0.0, 3.0, 30.0, 300.0], dtype=dtype)
    params = torch.stack([raw, raw.flip(0)], -1)
    x, log_slope = f.inverse(z, params)
    assert bool(x.isfinite().all() and log_slope.isfinite().all())
    assert bool((x.diff(dim=0) > 0).all())
    back, log_back = f.forward(x, params)
    torch.testing.assert_close(back, z.expand_as(back), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(-log_back, log_slope, rtol=2e-6, atol=2e-5)


def test_the_exponential_goes_on_along_its_tangent():
    f, params = TailTransform(), torch.zeros(2, dtype=DOUBLE)
    z = torch.tensor([30.0, 45.0, 46.0, 80.0], dtype=DOUBLE, requires_grad=True)
    x, log_slope = f.inverse(z, params)
    (slope,) = grad(x.sum(), z)
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-12, atol=1e-12)


# ---- searches ----


@dataclass(frozen=True)
class OntoAnInterval(ScalarMap):
    """A map of the line onto (-1, 1): nothing is mapped to 2."""

    param_size: int = 0

    def forward(self, x, params):
        y = torch.tanh(x)
        return y, 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))


@dataclass(frozen=True)
class WrongBracket(SmoothLeakyReLU):
    """A bracket that does not hold the root."""

    def bracket(self, y, params):
        return y - 1, y + 1


def test_a_value_that_a_map_does_not_take_is_refused():
    y = torch.tensor([0.5, 2.0, -3.0], dtype=DOUBLE)
    with pytest.raises(ConvergenceError, match="none for 2 of 3 numbers; remedy"):
        OntoAnInterval().inverse(y, y.new_empty(0))
    inside = torch.tensor([0.5, -0.99], dtype=DOUBLE)
    x, _ = OntoAnInterval().inverse(inside, y.new_empty(0))
    torch.testing.assert_close(x, inside.atanh())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_root_outside_of_its_bracket_is_not_silently_wrong(dtype):
    y = torch.tensor([-30.0, 5.0], dtype=dtype)
    with pytest.raises(ConvergenceError, match="none for 1 of 2 numbers"):
        WrongBracket().inverse(y, y.new_empty(0))
    one = torch.ones(3, dtype=dtype)
    with pytest.raises(ConvergenceError, match="none for 3 of 3"):
        find_root_by_newton(lambda x: (x - 7, torch.ones_like(x)), one, 0 * one, 2 * one)
    at_end, _ = find_root_by_newton(lambda x: (x - 2, torch.ones_like(x)), one, 0 * one, 2 * one)
    assert torch.equal(at_end, 2 * one)


def test_a_bracket_that_is_never_found_is_an_error():
    with pytest.raises(ConvergenceError, match="none for 1 of 1"):
        expand_bracket(lambda x: torch.tanh(x) - 2, torch.zeros(1))


def test_non_finite_gradients_are_caught():
    @dataclass(frozen=True)
    class InPlainNumbers(LogisticMixture):
        """The slope as a sum of numbers that are below the smallest one."""

        def forward(self, x, params):
            y, log_slope = super().forward(x, params)
            return y, log_slope.exp().log()

    with pytest.raises(ContractError, match="breaks R6"):
        check_scalar(InPlainNumbers(3), dtypes=(torch.float32,), scales=(100.0,))
