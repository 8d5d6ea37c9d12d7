"""The bracketed Newton search, and the inverse of the mixture, where they are hard."""

import math

import pytest
import torch

from flowkit.numerics.roots import all_known, find_root_by_newton
from flowkit.scalar import LogisticMixture


@pytest.mark.parametrize(
    ("f", "low", "high", "root"),
    [
        (lambda x: (x**3 - 2, 3 * x**2), 0.0, 2.0, 2 ** (1 / 3)),
        (lambda x: (x.exp() - 10, x.exp()), -5.0, 20.0, math.log(10)),
        (lambda x: (torch.tanh(50 * (x - 0.3)), 50 / (50 * (x - 0.3)).cosh() ** 2), -3, 3, 0.3),
        (lambda x: (x.atan(), 1 / (1 + x * x)), -90.0, 100.0, 0.0),
        (lambda x: (x - 0.1, torch.full_like(x, math.inf)), -1.0, 1.0, 0.1),
        (lambda x: (x - 0.1, torch.full_like(x, math.nan)), -1.0, 1.0, 0.1),
    ],
)
def test_the_search_finds_roots_from_either_end_and_without_a_slope(f, low, high, root):
    ends = torch.tensor([low, high], dtype=torch.float64)
    got, _ = find_root_by_newton(f, ends, ends[0].expand(2), ends[1].expand(2))
    torch.testing.assert_close(got, torch.full_like(got, root), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("scale", [0.5, 3.0, 50.0])
# Where a map is as flat as it may be, e^-5, and its parameters are rounded at a magnitude of 100,
# an inverse in float32 keeps three digits, and one in float64 twelve.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-3)])
def test_no_mixture_and_no_distance_spoils_the_inverse(dtype, bound, scale, distance):
    f, generator = LogisticMixture(components=5), torch.Generator().manual_seed(0)
    params = scale * torch.randn(4000, f.param_size, generator=generator, dtype=torch.float64)
    y = distance * torch.randn(4000, generator=generator, dtype=torch.float64)
    params, y = params.to(dtype), y.to(dtype)
    with torch.no_grad():
        x, log_slope = f.inverse(y, params)
    exact, y = params.double(), y.double()
    low, high = f.bracket(y, exact)
    for _ in range(80):
        want = (low + high) / 2
        below = f.forward(want, exact)[0] < y
        low, high = torch.where(below, want, low), torch.where(below, high, want)
    error = (x - want).abs() / (1 + want.abs())
    assert float(error.max()) < bound
    assert bool(torch.isfinite(log_slope).all())


def test_a_missing_value_stays_alone():
    f = LogisticMixture(components=3)
    params, y = torch.randn(4, f.param_size), torch.tensor([0.5, math.nan, -1.0, 2.0])
    with torch.no_grad():
        x, _ = f.inverse(y, params)
        want, _ = f.inverse(y[[0, 2, 3]], params[[0, 2, 3]])
    assert x[1].isnan()
    torch.testing.assert_close(x[[0, 2, 3]], want)


def test_nobody_asks_where_no_number_can_be_seen():
    assert all_known(torch.tensor([True, True]))
    assert not all_known(torch.tensor([True], device="meta"))
    seen = []
    torch.vmap(lambda x: seen.append(all_known(x > 0)) or x)(torch.ones(3))
    assert seen == [None]
