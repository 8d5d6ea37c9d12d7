"""Zero, ends, knots and middles of bins: single points at which gradients are easily wrong."""

import math
from dataclasses import dataclass
from typing import ClassVar

import mpmath
import pytest
import torch
from registry import SCALARS
from torch.autograd import grad
from torch.autograd.functional import jacobian

from flowkit.conditioners import MLP, ClipEncoding
from flowkit.errors import ContractError
from flowkit.kernels import Matern
from flowkit.numerics.clips import soft_clip
from flowkit.scalar import (
    Affine,
    CircularSmoothMixture,
    CircularSpline,
    IntervalSpline,
    PerFeature,
    RationalQuadraticSpline,
    RealSmoothMixture,
    ScalarMap,
    SmoothLeakyReLU,
    spline,
)
from flowkit.testing import check_scalar

DOUBLE = torch.float64
DTYPES = (torch.float32, DOUBLE)
MAPS = {
    **SCALARS,
    "activation": SmoothLeakyReLU(),
    "flat-activation": SmoothLeakyReLU(1e-3),
    "one-bin": IntervalSpline(bins=1, lower=-0.3, upper=0.7),
    "many-bins": RationalQuadraticSpline(bins=16, bound=4.0),
}


@pytest.mark.parametrize("f", MAPS.values(), ids=MAPS)
def test_every_map_has_the_right_derivatives_at_its_exact_points(f):
    report = check_scalar(f, scales=(0.0, 0.1, 1.0))
    assert report.skipped == {}


def test_the_slope_of_the_activation_at_zero():
    def value(x):
        return SmoothLeakyReLU(0.3).forward(x, torch.empty(0))[0]

    for zero in (0.0, -0.0):
        slope = jacobian(value, torch.tensor(zero, dtype=DOUBLE))
        torch.testing.assert_close(slope, torch.tensor(0.65, dtype=DOUBLE))


def test_the_slope_of_the_inverse_in_the_middle_of_a_bin():
    f = RationalQuadraticSpline(8, bound=4.0)
    params = torch.zeros(f.param_size, dtype=DOUBLE)
    for y in (0.5, -0.5, 3.5):
        slope = jacobian(lambda y: f.inverse(y, params)[0], torch.tensor(y, dtype=DOUBLE))
        torch.testing.assert_close(slope, torch.tensor(1.0, dtype=DOUBLE))


@dataclass(frozen=True)
class ByAbs(SmoothLeakyReLU):
    """Softplus with two parts whose slopes at zero torch sets to 1 and 0."""

    def forward(self, x, params):
        y = 0.3 * x + 0.7 * (x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())))
        return y, super().forward(x, params)[1]


@dataclass(frozen=True)
class Bent(ScalarMap):
    """Slopes 1 and 2 on the sides of a point, with the right log-slope."""

    param_size: int = 0

    def joints(self, params):
        return params.new_tensor([0.3]).expand(*params.shape[:-1], 1)

    def forward(self, x, params):
        above = torch.relu(x - 0.3)
        return x + above, torch.where(x > 0.3, math.log(2), 0.0).to(x.dtype)

    def inverse(self, y, params):
        above = torch.relu(y - 0.3)
        return y - above / 2, -torch.where(y > 0.3, math.log(2), 0.0).to(y.dtype)


@dataclass(frozen=True)
class CurvatureJumps(Affine):
    """A clip of the log-scale whose second derivative jumps where the parameter is zero."""

    def forward(self, x, params):
        shift, raw = params.unbind(-1)
        log_scale = raw / (1 + raw.abs() / 5)
        return x * log_scale.exp() + shift, log_scale.expand(torch.broadcast_shapes(x.shape))

    def inverse(self, y, params):
        shift, raw = params.unbind(-1)
        log_scale = raw / (1 + raw.abs() / 5)
        return (y - shift) * torch.exp(-log_scale), -log_scale.expand_as(y)


@pytest.mark.parametrize(
    ("f", "rule"), [(ByAbs(), "R5"), (Bent(), "R7"), (CurvatureJumps(), "R7")]
)
def test_a_wrong_derivative_at_a_single_point_is_caught(f, rule):
    with pytest.raises(ContractError, match=f"breaks {rule}"):
        check_scalar(f, dtypes=(DOUBLE,), scales=(0.0, 1.0))


def test_the_search_for_wrong_points_sees_the_middle_of_a_bin(monkeypatch):
    def by_abs(eta, first, last):
        q = first * (1 - eta) - last * eta
        root = q.abs() + torch.sqrt(q * q + 4 * eta * (1 - eta))
        numerator = torch.where(q >= 0, 2 * eta, root)
        return numerator / (numerator + torch.where(q >= 0, root, 2 * (1 - eta)))

    monkeypatch.setattr(spline, "inverse_in_bin", by_abs)
    with pytest.raises(ContractError, match="breaks R5"):
        check_scalar(RationalQuadraticSpline(bins=4), dtypes=(DOUBLE,), scales=(0.0,))


def test_a_kink_of_the_curvature_has_to_be_declared():
    @dataclass(frozen=True)
    class Declared(CurvatureJumps):
        smoothness: ClassVar[float] = 1

    check_scalar(Declared(), dtypes=(DOUBLE,), scales=(0.0, 1.0))
    assert PerFeature((Affine(), IntervalSpline())).smoothness == 1


# ---- ends ----


def intervals(count):
    """Ends in decimals, which no binary number is equal to."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        a, b = torch.rand(2, generator=generator, dtype=DOUBLE).tolist()
        lower = round(10 * a - 5, 2)
        yield lower, round(lower + 5 * b + 0.01, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_splines_keep_their_ends_to_the_bit_and_lead_nowhere_beyond(dtype):
    generator = torch.Generator().manual_seed(1)
    for bins, (low, high) in enumerate(intervals(16), start=1):
        for f in (
            RationalQuadraticSpline(bins + 1, bound=high - low),
            IntervalSpline(bins, lower=low, upper=high),
            CircularSpline(bins, lower=low, upper=high),
        ):
            ends = (low - high, high - low) if f.bounds[0] == -math.inf else (low, high)
            lower, upper = torch.tensor(ends, dtype=dtype)
            for scale in (0.0, 1.0, 100.0):
                params = scale * torch.randn(50, f.param_size, generator=generator).to(dtype)
                for apply in (f.forward, f.inverse):
                    for end, to in ((lower, upper), (upper, lower)):
                        at, log_slope = apply(end.expand(50), params)
                        assert bool((at == end).all())
                        inside = end
                        for _ in range(3):
                            inside = torch.nextafter(inside, to)
                            value, _ = apply(inside.expand(50), params)
                            assert bool(((value >= lower) & (value <= upper)).all())
                        beyond = end + 0.25 * (end - to)
                        if isinstance(f, CircularSpline):
                            continue
                        value, same = apply(beyond.expand(50), params)
                        assert torch.equal(same, log_slope)
                        want = end + (beyond - end) * log_slope.exp()
                        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "f",
    [
        CircularSpline(bins=5, lower=-math.pi, upper=math.pi),
        CircularSmoothMixture(components=4, lower=-math.pi, upper=math.pi),
    ],
    ids=lambda f: type(f).__name__,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_slope_agree_at_the_cut_of_a_circle(f, dtype):
    generator = torch.Generator().manual_seed(2)
    bound = 2e-4 if dtype == torch.float32 else 1e-12
    for scale in (0.0, 1.0):
        params = (scale * torch.randn(100, f.param_size, generator=generator)).to(dtype)
        for apply in (f.forward, f.inverse):
            found = []
            for end in (f.lower, f.upper):
                x = torch.full((100,), end, dtype=dtype, requires_grad=True)
                value, log_slope = apply(x, params)
                (slope,) = grad(value.sum(), x)
                found.append((value - x, log_slope, slope.log()))
            for low, high in zip(*found, strict=True):
                torch.testing.assert_close(low, high, rtol=bound, atol=bound)
            torch.testing.assert_close(found[0][1], found[0][2], rtol=bound, atol=bound)


# ---- clips, activations and kernels ----


def derivatives(f, at, order):
    x = torch.tensor(at, dtype=DOUBLE, requires_grad=True)
    value, found = f(x), []
    for _ in range(order):
        (value,) = grad(value, x, create_graph=True)
        found.append(value.item())
    return found


def test_the_clip_has_the_derivatives_of_its_series_at_zero():
    # x / (1 + v tanh 2 v) = x - 2 x^3 / c^2 + (20 / 3) x^5 / c^4 - ...
    for zero in (0.0, -0.0):
        got = derivatives(lambda x: soft_clip(x, 2.0), zero, 5)
        assert got == pytest.approx([1, 0, -12 / 4, 0, 800 / 16], abs=1e-9)
    x = torch.linspace(-60, 60, 4001, dtype=DOUBLE)
    assert bool((soft_clip(x, 2.0).diff() > 0).all())


@pytest.mark.parametrize("activation", ["gelu", "silu", "softplus", "tanh"])
def test_a_conditioner_has_one_second_derivative_at_zero(activation):
    torch.manual_seed(0)
    net = MLP(1, 1, hidden=(8,), activation=activation, encoding=ClipEncoding(bound=0.5)).double()
    torch.nn.init.normal_(net.last.weight)
    sides = [derivatives(lambda x: net(x.reshape(1))[0], x, 2)[1] for x in (-1e-7, 0.0, 1e-7)]
    # Where the clip has a kink, they differ by 8 times the first derivative.
    assert max(sides) - min(sides) < 1e-4


def test_softplus_of_a_conditioner_has_no_step():
    net = MLP(1, 1, hidden=(1,), activation="softplus", encoding=ClipEncoding(bound=None)).double()
    for x in (19.9, 20.0, 20.1, 39.9, 40.1):
        exact = float(mpmath.log1p(mpmath.exp(x)))
        assert net._act(torch.tensor(x, dtype=DOUBLE)).item() == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("nu", [1.5, 2.5])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-5), (DOUBLE, 1e-9)])
def test_matern_kernels_have_the_derivatives_of_theory_where_points_meet(nu, dtype, bound):
    kernel = Matern(1, nu=nu, length_scale=0.5).to(dtype)
    rate = math.sqrt(2 * nu) / 0.5
    for distance in (0.0, 1e-9, 1e-6, 1e-4, 3e-3, 8.6e-3, 8.7e-3, 0.01, 0.1, 1.0):
        x = torch.tensor([[distance]], dtype=dtype, requires_grad=True)
        value = kernel(x, torch.zeros(1, 1, dtype=dtype)).sum()
        (first,) = grad(value, x, create_graph=True)
        (second,) = grad(first.sum(), x)
        t = rate * x.item()
        decay = math.exp(-t)
        if nu == 1.5:
            want = (1 + t, -t * rate, (t - 1) * rate**2)
        else:
            want = (1 + t + t * t / 3, -t * (1 + t) / 3 * rate, (t * t - t - 1) / 3 * rate**2)
        for got, expected in zip((value, first, second), want, strict=True):
            assert got.item() == pytest.approx(expected * decay, rel=bound, abs=bound)


def test_the_matern_kernel_with_a_kink_has_a_finite_gradient_at_it():
    kernel = Matern(2, nu=0.5).double()
    x = torch.zeros(3, 2, dtype=DOUBLE, requires_grad=True)
    (gradient,) = grad(kernel(x, torch.zeros(4, 2, dtype=DOUBLE)).sum(), x)
    assert bool((gradient == 0).all())
    assert [Matern(1, nu=nu).smoothness for nu in (0.5, 1.5, 2.5)] == [0, 2, 4]


def test_joints_are_knots_and_ends():
    f = IntervalSpline(bins=4, lower=-1.0, upper=3.0)
    params = torch.zeros(2, f.param_size)
    torch.testing.assert_close(f.joints(params), torch.tensor([-1.0, 0, 1, 2, 3]).expand(2, 5))
    assert RealSmoothMixture(lower=-2.0, upper=1.0).joints(params).tolist() == [[-2.0, 1.0]] * 2
    assert Affine().joints(torch.zeros(2)).shape == (0,)
