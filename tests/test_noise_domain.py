"""Bases that do not fit the ends of a layer, quantiles there, and tails in half precision."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flowkit import Flow
from flowkit.bases import DiagonalNormal, NormalMixture, StandardNormal, StudentT, Uniform
from flowkit.errors import ShapeError
from flowkit.scalar import Affine
from flowkit.transforms import (
    ActNorm,
    Compose,
    Coupling,
    Elementwise,
    Log,
    Logit,
    LULinear,
    Permutation,
    Rescale,
    Standardize,
    Unconstrain,
)

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Log(2).inv,
        lambda: Logit(2).inv,
        lambda: Compose(Unconstrain([None, None], [1.0, None]).inv, Permutation([1, 0])),
        lambda: Compose(Compose(Log(2), Standardize(2)), Compose(Log(2)).inv),
        lambda: Compose(ActNorm(2), Logit(2).inv, LULinear(2), Coupling([0, 1])),
        lambda: Compose(Elementwise(2, Affine(), context=1), Log(2), Logit(2).inv, Logit(2).inv),
    ],
)
def test_a_base_that_goes_on_beyond_what_data_are_mapped_to_is_refused(make):
    with pytest.raises(ShapeError, match=r"maps data only to noise between .*remedy: a base"):
        Flow(make(), StandardNormal(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flow(Logit(1).inv, Uniform(1, lower=-1.0, upper=1.0)),
        lambda: Flow(Log(1).inv, Uniform(1, lower=-0.5, upper=2.0)),
        lambda: Flow(
            Compose(Logit(1).inv, Rescale([0.0], [2.0])), Uniform(1, lower=-1.0, upper=1.0)
        ),
    ],
)
def test_fixed_ends_short_of_those_of_the_base_are_refused(make):
    # Half, a fifth and half of the mass would have no samples.
    with pytest.raises(ShapeError, match=r"maps data only to noise between .*remedy: a base"):
        make()


def test_finite_ends_that_fit_or_may_come_to_fit_are_taken():
    x = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64).unsqueeze(-1)
    for layers, base in (
        ([Logit(1, lower=0.1, upper=0.7).inv], Uniform(1, lower=0.1, upper=0.7)),
        (
            [Logit(1, lower=0.1, upper=0.7).inv, Rescale([0.1], [0.7])],
            Uniform(1, lower=-1.0, upper=1.0),
        ),
    ):
        flow = Flow(Compose(*layers), base).double()
        mass = torch.trapezoid(flow.log_prob(x).exp(), x.squeeze(-1))
        assert mass.item() == pytest.approx(1, abs=1e-6)
    # Started from data or trained, this one may end where the base does.
    Flow(Compose(Logit(1).inv, Standardize(1)), Uniform(1, lower=-1.0, upper=1.0))


def test_a_layer_back_to_the_line_makes_the_same_base_right():
    flow = Flow(Compose(Logit(1).inv, Standardize(1), Standardize(1).inv, Logit(1)), StudentT(1))
    x = torch.tensor([[-3.0], [0.5]])
    torch.testing.assert_close(flow.log_prob(x), StudentT(1).log_prob(x))
    inside = Flow(Log(1).inv, Uniform(1, lower=0.0, upper=2.0))
    x, log_prob = inside.sample_and_log_prob(2000)
    torch.testing.assert_close(log_prob, inside.log_prob(x))
    # The logarithm of a uniform number on (0, 2): e^x / 2 below log 2.
    torch.testing.assert_close(log_prob, x.squeeze(-1) - math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_quantiles_of_tiny_probabilities_do_not_jump_where_a_layer_ends(dtype):
    # The noise of 1e-30 is rounded to -1, where the layer ends and x is -inf.
    for layers in (
        [Logit(1, lower=-1.0, upper=1.0).inv],
        [Rescale([-9.0], [9.0]), Logit(1, lower=-1.0, upper=1.0).inv],
        [Log(1), Rescale([-9.0], [9.0], circular=[False]), Logit(1, lower=-1.0, upper=1.0).inv],
    ):
        flow = Flow(Compose(*layers), Uniform(1, lower=-1.0, upper=1.0)).to(dtype)
        q = torch.tensor([1e-30, 1e-20, 1e-3, 0.5, 1 - torch.finfo(dtype).eps], dtype=dtype)
        x = flow.quantile(q).flatten()
        assert bool((x.diff() >= 0).all())
        torch.testing.assert_close(flow.cdf(x.unsqueeze(-1)), q, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("base", [StandardNormal, DiagonalNormal])
def test_the_normal_tail_has_no_hole_in_half_precision(base, dtype):
    # erfc underflows in float16 from 5.1 on.
    z = torch.tensor([[4.0], [5.0], [5.5], [6.0], [6.9], [7.1], [20.0]], dtype=dtype)
    flow = Flow(Elementwise(1, Affine()), base(1)).to(dtype)
    want = torch.as_tensor(stats.norm.logsf(z.flatten().double().numpy()))
    torch.testing.assert_close(
        flow.log_survival(z).double(), want, atol=0, rtol=2 * torch.finfo(dtype).eps
    )
    torch.testing.assert_close(flow.log_cdf(-z), flow.log_survival(z))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "base", [StandardNormal, DiagonalNormal, StudentT, lambda n: NormalMixture(n, components=2)]
)
def test_quantiles_and_samples_exist_in_half_precision(base, dtype):
    q = torch.tensor([0.0, 0.125, 0.5, 0.75, 1.0], dtype=dtype)
    flow = Flow(Permutation([0]), base(1)).to(dtype)
    x, eps = flow.quantile(q), torch.finfo(dtype).eps
    assert x.dtype is dtype
    assert x[[0, -1]].flatten().tolist() == [-math.inf, math.inf]
    torch.testing.assert_close(flow.cdf(x), q, atol=4 * eps, rtol=0)
    assert flow.sample(3).dtype is dtype
