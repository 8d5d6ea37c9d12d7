"""Transforms against linear algebra and closed forms, and the texts of their errors."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import SigmoidTransform

from flowkit.bases import DiagonalNormal, StandardNormal, Uniform
from flowkit.errors import (
    ArgumentError,
    DataError,
    FlowkitError,
    NotInvertibleError,
    StochasticFlowError,
)
from flowkit.flow import Flow
from flowkit.scalar import Affine, LogisticMixture, RationalQuadraticSpline
from flowkit.stochastic import Dequantize
from flowkit.testing.probe import randomize
from flowkit.transforms import (
    ActNorm,
    CircularShift,
    Compose,
    Conv1x1,
    Coupling,
    DenseLinear,
    Elementwise,
    Log,
    Logit,
    LULinear,
    MaskedAutoregressive,
    OrthogonalLinear,
    Permutation,
    Rescale,
    Standardize,
    Transform,
    TriangularLinear,
    Whiten,
)
from flowkit.transforms.base import Inverse

LINEAR = [DenseLinear, LULinear, OrthogonalLinear, TriangularLinear]


def moved(transform, seed=0):
    return randomize(transform, 0.4, torch.Generator().manual_seed(seed)).double()


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ---- linear ----


@pytest.mark.parametrize("features", [1, 2, 7])
@pytest.mark.parametrize("make", LINEAR)
def test_a_linear_layer_is_its_matrix_and_bias(make, features):
    t, x = moved(make(features)), rows(5, features)
    w = t.weight_matrix().detach()
    z, log_det = t(x)
    torch.testing.assert_close(z, x @ w.T + t.bias)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(w)[1].expand(5))
    back, log_det = t.inverse(z)
    torch.testing.assert_close(back, torch.linalg.solve(w, (z - t.bias).T).T)
    torch.testing.assert_close(log_det, -torch.linalg.slogdet(w)[1].expand(5))


@pytest.mark.parametrize("make", LINEAR)
def test_unnormalized_computes_no_determinant(make, monkeypatch):
    t, x = moved(make(3)), rows(4, 3)
    want = t(x)[0]
    monkeypatch.setattr(make, "log_abs_det", lambda self: pytest.fail("computed"))
    z, log_det = t.unnormalized(x)
    assert torch.equal(z, want)
    assert torch.equal(log_det, torch.zeros(4).double())


def test_lu_and_triangular_have_the_shape_of_their_names():
    lower, upper = moved(LULinear(4))._factors()
    assert torch.equal(lower, lower.tril())
    assert torch.equal(lower.diagonal(), torch.ones(4).double())
    assert torch.equal(upper, upper.triu())
    w = moved(TriangularLinear(4)).weight_matrix()
    assert torch.equal(w, w.tril())
    assert bool((w.diagonal() > 0).all() & (upper.diagonal() > 0).all())


@pytest.mark.parametrize(("features", "reflections"), [(1, None), (5, None), (5, 2), (4, 9)])
def test_the_orthogonal_layer_is_the_product_of_its_reflections(features, reflections):
    t = moved(OrthogonalLinear(features, reflections=reflections))
    q, eye = t.weight_matrix(), torch.eye(features).double()
    torch.testing.assert_close(q @ q.T, eye)
    product = eye
    for v in t.vectors.T:
        product = product @ (eye - 2 * torch.outer(v, v) / (v @ v))
    torch.testing.assert_close(q, product)
    assert torch.linalg.det(q).item() == pytest.approx(1.0)


def test_a_rotation_can_be_learned():
    angle = 2.5
    want = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    t = OrthogonalLinear(2)
    optimizer = torch.optim.Adam(t.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (t.weight_matrix() - want).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(t.weight_matrix(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("linear", LINEAR)
def test_a_1x1_convolution_is_the_linear_layer_at_every_pixel(linear):
    t, x = moved(Conv1x1(3, linear=linear)), rows(2, 3, 4, 5)
    z, log_det = t(x)
    kernel = t.linear.weight_matrix()[..., None, None]
    torch.testing.assert_close(z, torch.nn.functional.conv2d(x, kernel, t.linear.bias))
    torch.testing.assert_close(log_det, (20 * t.linear.log_abs_det()).expand(2))


@pytest.mark.parametrize("make", LINEAR)
def test_linear_layers_run_in_half_precision(make):
    t = moved(make(3)).to(torch.bfloat16)
    x = rows(4, 3).to(torch.bfloat16)
    back = t.inverse(t(x)[0])[0]
    assert back.dtype == torch.bfloat16
    torch.testing.assert_close(back, x, rtol=0.1, atol=0.1)


# ---- coupling and autoregressive ----


def test_a_coupling_leaves_the_features_outside_its_mask_and_reads_only_them():
    t, x = moved(Coupling([False, True, False, True], Affine())), rows(4)
    assert torch.equal(t(x)[0][[0, 2]], x[[0, 2]])
    jacobian = torch.func.jacrev(lambda x: t(x)[0])(x)
    # Moved features depend on themselves and on all that stay, never on each other.
    assert jacobian[1, 3] == 0
    assert jacobian[3, 1] == 0
    assert bool((jacobian[[1, 3]][:, [0, 2]] != 0).all())


def test_a_coupling_is_its_scalar_map_at_the_parameters_of_its_conditioner():
    t, x = moved(Coupling([True, False, True], RationalQuadraticSpline(bins=3))), rows(6, 3)
    params = t.conditioner(x[:, [1]], None).unflatten(-1, (-1, 2)).mT
    want, log_slope = t.scalar.forward(x[:, [0, 2]], params)
    z, log_det = t(x)
    torch.testing.assert_close(z[:, [0, 2]], want)
    torch.testing.assert_close(log_det, log_slope.sum(-1))


@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_an_autoregressive_layer_has_a_triangular_jacobian_in_its_order(order):
    t = moved(MaskedAutoregressive(4, Affine(), order=order))
    jacobian = torch.func.jacrev(lambda x: t(x)[0])(rows(4))
    sequence = order if order is not None else list(range(4))
    sorted_ = jacobian[sequence][:, sequence]
    assert torch.equal(sorted_, sorted_.tril())
    assert bool((sorted_.tril() + torch.ones(4, 4).triu(1) != 0).all())


@pytest.mark.parametrize("method", ["incremental", "jacobi"])
@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)])
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("features", "order"), [(1, None), (4, None), (4, [2, 0, 3, 1])])
def test_an_autoregressive_inverse_has_every_shape(features, order, context, batch, method):
    t = moved(
        MaskedAutoregressive(
            features, Affine(), context=context, order=order, inverse_method=method
        )
    )
    z, c = rows(*batch, features), rows(*batch, context)
    x, log_det = t.inverse(z, c)
    assert x.shape == z.shape
    again, opposite = t(x, c)
    torch.testing.assert_close(again, z)
    torch.testing.assert_close(log_det, -opposite)
    if context:  # one context for all, and all contexts for one
        torch.testing.assert_close(t(t.inverse(z, c.new_ones(context))[0], c * 0 + 1)[0], z)
        one = z.new_ones(features)
        torch.testing.assert_close(t(t.inverse(one, c)[0], c)[0], one.expand_as(z))


@pytest.mark.parametrize("order", [None, [2, 0, 1]])
def test_both_autoregressive_inverses_are_the_same_function(order):
    t = moved(MaskedAutoregressive(3, RationalQuadraticSpline(bins=3), order=order))
    z = rows(5, 3).requires_grad_()
    wanted, results = [z, *t.parameters()], []
    for method in ("incremental", "jacobi"):
        t.inverse_method = method
        x, log_det = t.inverse(z)
        loss = x.square().sum() + log_det.sum()
        gradients = torch.autograd.grad(loss, wanted, create_graph=True)
        (second,) = torch.autograd.grad(gradients[0].square().sum(), z)
        with torch.no_grad():
            early = t.inverse(z)
        results.append((x, log_det, gradients, second, early))
    torch.testing.assert_close(*results)


def test_jacobi_stops_when_nothing_moves_and_waits_for_no_missing_value(monkeypatch):
    t = MaskedAutoregressive(50, Affine(), inverse_method="jacobi")  # starts at the identity
    calls = []
    forward = t.conditioner.forward
    monkeypatch.setattr(t.conditioner, "forward", lambda *a: calls.append(1) or forward(*a))
    z = torch.randn(4, 50)
    z[0, 3] = math.nan
    with torch.no_grad():
        x, _ = t.inverse(z)
    assert torch.equal(x[1:], z[1:])
    assert len(calls) == 2


@pytest.mark.parametrize("method", ["incremental", "jacobi"])
def test_an_autoregressive_inverse_can_be_vmapped_without_gradient(method):
    t = moved(MaskedAutoregressive(3, LogisticMixture(3), inverse_method=method))
    z = rows(2, 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(t.inverse)(z), t.inverse(z))


def test_an_unknown_inverse_method_is_named():
    with pytest.raises(ValueError, match="inverse_method as one of 'incremental', 'jacobi'"):
        MaskedAutoregressive(2, inverse_method="newton")


def test_elementwise_is_diagonal():
    t = moved(Elementwise(3))
    jacobian = torch.func.jacrev(lambda x: t(x)[0])(rows(3))
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))


# ---- domains, normalisation, permutation ----


def test_logit_inverts_the_sigmoid_of_torch():
    u = rows(50, 1) * 3
    x = -1 + 4 * torch.sigmoid(u)
    z, log_det = Logit(1, lower=-1.0, upper=3.0)(x)
    torch.testing.assert_close(z, u)
    want = SigmoidTransform().log_abs_det_jacobian(u, torch.sigmoid(u)) + math.log(4)
    torch.testing.assert_close(log_det, -want.squeeze(-1))


def test_a_flow_on_the_half_line_is_log_normal():
    flow = Flow(Log(1), StandardNormal(1))
    x = torch.tensor([[0.2], [1.0], [7.0]])
    want = stats.lognorm(s=1).logpdf(x.numpy().squeeze(-1))
    np.testing.assert_allclose(flow.log_prob(x), want, rtol=1e-5)


@pytest.mark.parametrize("transform", [Logit(2), Log(2)])
def test_outside_the_domain_the_density_is_zero_and_gradients_are_finite(transform):
    x = torch.tensor([[-1.0, 0.5], [0.0, 0.5], [0.5, -3.0]], requires_grad=True)
    z, log_det = transform(x)
    assert log_det.tolist() == [-math.inf] * 3
    (gradient,) = torch.autograd.grad(z.sum() + log_det.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_a_circular_shift_wraps_around():
    t = CircularShift(1, lower=0.0, upper=2.0).double()
    torch.nn.init.constant_(t.shift, 1.5)
    z, log_det = t(torch.tensor([[0.25], [1.0]]).double())
    torch.testing.assert_close(z, torch.tensor([[1.75], [0.5]]).double())
    assert torch.equal(log_det, torch.zeros(2).double())


@pytest.mark.parametrize(
    ("transform", "shape"), [(ActNorm(3), (64, 3)), (Standardize(3), (64, 3))]
)
def test_initialised_layers_give_mean_zero_and_variance_one(transform, shape):
    x = 5 * torch.randn(*shape) + 3
    transform.initialize(x)
    z, log_det = transform(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(3), rtol=1e-5, atol=0)
    want = -x.std(0, unbiased=False).log().sum()
    torch.testing.assert_close(log_det, want.expand(64), rtol=1e-5, atol=1e-5)


def test_actnorm_of_images_has_one_scale_a_channel():
    t, x = ActNorm(2, event_ndim=3), 3 * torch.randn(8, 2, 4, 4) + 1
    t.initialize(x)
    z, log_det = t(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, (-16 * t.log_scale.sum()).expand(8))


def test_constant_columns_are_named():
    with pytest.raises(DataError, match=r"Standardize\(features=2\): column\(s\) \[1\] are const"):
        Standardize(2).initialize(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    with pytest.raises(DataError, match="needs at least 2 rows to start from data, got 1"):
        ActNorm(2).initialize(torch.ones(1, 2))


def test_random_permutations_come_from_their_seed_alone():
    state = torch.get_rng_state()
    assert torch.equal(Permutation.random(9, seed=3).order, Permutation.random(9, seed=3).order)
    assert torch.equal(torch.get_rng_state(), state)


# ---- compose and inverse ----


def test_compose_adds_up_its_layers():
    a, b, x = moved(LULinear(2)), moved(Coupling([True, False]), 1), rows(5, 2)
    t = Compose(a, b)
    y, first = a(x)
    z, second = b(y)
    torch.testing.assert_close(t(x), (z, first + second))
    torch.testing.assert_close(t.states(x), [x, y, z])
    torch.testing.assert_close(t.unnormalized(x), (z, second))
    assert not t.constant_log_det
    assert Compose(a, Permutation([1, 0])).constant_log_det


def test_compose_initialises_every_layer_from_what_reaches_it():
    t = Compose(ActNorm(2), Permutation([1, 0]), ActNorm(2))
    t.initialize(4 * torch.randn(100, 2) + 1)
    torch.testing.assert_close(t[2].log_scale, torch.zeros(2), rtol=0, atol=1e-5)


def test_the_inverse_of_an_inverse_is_the_transform():
    t = LULinear(2)
    assert t.inv.inv is t
    assert isinstance(t.inv, Inverse)


# ---- counts ----


def test_rounding_gives_the_counts_back():
    counts = torch.randint(0, 256, (1000, 3))
    z, log_ratio = Dequantize(3)(counts, generator=torch.Generator().manual_seed(0))
    assert log_ratio.shape == (1000,)
    assert torch.equal(Dequantize(3).inverse(z)[0], counts.float())


def test_the_mean_path_weight_is_the_mass_of_the_cell():
    # E_u[p(x + u)] over u in (-1/2, 1/2) is the probability of the cell; 4 standard errors.
    base = DiagonalNormal(1).double()
    flow, n = Flow(Dequantize(1), base), 100_000
    cells = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    z, log_ratio = flow.transform(
        cells.expand(n, 3, 1), generator=torch.Generator().manual_seed(0)
    )
    weights = torch.exp(base.log_prob(z) + log_ratio).detach()
    want = stats.norm.cdf(cells + 0.5) - stats.norm.cdf(cells - 0.5)
    error = (weights.mean(0) - torch.from_numpy(want).squeeze(-1)).abs()
    assert bool((error < 4 * weights.std(0) / math.sqrt(n)).all())
    with pytest.raises(StochasticFlowError):
        flow.log_prob(cells)


# ---- the words of errors ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Coupling([0, 0, 1, 1])(torch.zeros(32, 5)),
            "Coupling(features=4) expected x (..., 4), got (32, 5)",
        ),
        (
            lambda: Coupling([0, 0, 1, 1]).inverse(torch.zeros(32, 5)),
            "Coupling(features=4) expected z (..., 4), got (32, 5)",
        ),
        (
            lambda: LULinear(2).unnormalized(torch.zeros(())),
            "LULinear(features=2) expected x (..., 2), got ()",
        ),
        (
            lambda: Conv1x1(3)(torch.zeros(1, 8, 8)),
            "Conv1x1(event_shape=(3, None, None)) expected x (..., 3, *, *), got (1, 8, 8)",
        ),
        (
            lambda: Elementwise(2, context=3)(torch.zeros(5, 2)),
            "Elementwise(features=2) expected context (..., 3), got None",
        ),
        (
            lambda: Elementwise(2, context=3)(torch.zeros(5, 2), torch.zeros(5, 1)),
            "Elementwise(features=2) expected context (..., 3), got (5, 1)",
        ),
        (
            lambda: Elementwise(2, context=3)(torch.zeros(5, 2), torch.zeros(4, 3)),
            "the batch (5,) of the data does not broadcast with the batch (4,) of the context",
        ),
        (
            lambda: LULinear(2)(torch.zeros(5, 2, dtype=torch.long)),
            "LULinear(features=2) expected x of a floating-point dtype, got torch.int64; "
            "remedy: x.float(), or a Dequantize layer for counts",
        ),
        (
            lambda: LULinear(2)([[0.0, 1.0]]),
            "LULinear(features=2) expected x as a torch.Tensor, got list; "
            "remedy: torch.as_tensor(x)",
        ),
        (
            lambda: Permutation([0, 2]),
            "Permutation expected order as a permutation of the integers from 0 to 1, got [0, 2]",
        ),
        (lambda: Compose(), "Compose expected transforms as one Transform or more, got ()"),
        (
            lambda: Compose(LULinear(2), LULinear(3)),
            "LULinear(features=3) cannot follow layers with events (2,)",
        ),
        (
            lambda: Compose([]),
            "Compose expected transforms as a Transform, got []; remedy: Compose(*layers)",
        ),
        (
            lambda: Flow([], StandardNormal(2)),
            "Flow expected transform as a Transform, got []; remedy: Flow(transform, base), with "
            "Compose(*layers) for several layers",
        ),
        (
            lambda: Coupling([False, True], "spline"),
            "Coupling expected scalar as a ScalarMap, got 'spline'; remedy: an object, such as "
            "RationalQuadraticSpline()",
        ),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, message):
    with pytest.raises(FlowkitError) as caught:
        call()
    assert str(caught.value) == message


def test_masks_that_cannot_work_are_refused():
    with pytest.raises(ArgumentError, match="at least one true"):
        Coupling([False, False])
    with pytest.raises(ArgumentError, match="Elementwise"):
        Coupling([True, True])


def test_a_missing_inverse_is_named():
    class OneWay(Transform):
        def forward(self, x, context=None):
            return x, x.new_zeros(x.shape[:-1])

    with pytest.raises(NotInvertibleError, match="can score data, but not sample"):
        OneWay((2,)).inverse(torch.zeros(2))


@pytest.mark.parametrize(
    ("transform", "inside", "outside"),
    [
        (Logit(1, lower=0.0, upper=2.0), 1.0, 3.0),
        (Log(1, lower=1.0), 2.0, 0.0),
        (Inverse(CircularShift(1, lower=0.0, upper=1.0)), 0.5, 1.5),
        (Inverse(Rescale([0.0], [9.0])), 0.5, 1.5),
        (Inverse(Inverse(Logit(1, lower=0.0, upper=2.0))), 1.0, 3.0),
        (Compose(Logit(1, lower=0.0, upper=2.0), LULinear(1)), 1.0, 3.0),
        (Compose(LULinear(1), Logit(1, lower=0.0, upper=2.0).inv).inv, 1.0, 3.0),
    ],
    ids=lambda v: v.label if isinstance(v, Transform) else str(v),
)
def test_domains_follow_inversion_and_composition(transform, inside, outside):
    assert bool(transform.domain.check(torch.tensor([inside])))
    assert not bool(transform.domain.check(torch.tensor([outside])))


def test_a_stack_with_a_stochastic_layer_can_be_unnormalized_and_watched():
    stack = Compose(Dequantize(2), LULinear(2))
    x = torch.zeros(3, 2)

    def fresh():
        return torch.Generator().manual_seed(1)

    z, rest = stack.unnormalized(x, generator=fresh())
    assert torch.equal(rest, torch.zeros(3))
    assert torch.equal(stack.states(x, generator=fresh())[-1], z)


@pytest.mark.parametrize(
    "transform", [Logit(2, lower=0.0, upper=1.0), Log(2)], ids=lambda t: t.label
)
def test_a_missing_value_is_not_an_impossible_one(transform):
    z, log_det = transform(torch.tensor([[0.5, math.nan], [0.5, -1.0]]))
    assert z[0, 1].isnan()
    assert log_det[0].isnan()
    assert log_det[1] == -math.inf


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_a_dequantised_count_always_rounds_back(top):
    counts = torch.full((200_000, 1), float(top))
    z, _ = Dequantize(1)(counts)
    assert torch.equal(Dequantize(1).inverse(z)[0], counts)
    assert bool(((z - top).abs() < 0.5).all())


def test_dequantised_integers_take_the_dtype_of_the_flow():
    flow = Flow(Compose(Dequantize(1), Standardize(1), LULinear(1)), StandardNormal(1)).double()
    assert flow.log_prob_bound(torch.tensor([[3]])).dtype == torch.float64


def test_a_box_keeps_its_ends_in_every_dtype():
    for dtype in (torch.float32, torch.float64):
        flow = Flow(Rescale([0.1], [0.7]), Uniform(1, lower=-1.0, upper=1.0)).to(dtype)
        ends = torch.tensor([[0.1], [0.7]], dtype=dtype)
        assert torch.isfinite(flow.log_prob(ends)).all()


def test_the_direction_is_called_by_its_documented_names():
    t = LULinear(2)
    assert t.inverse(z=torch.zeros(3, 2))[0].shape == (3, 2)
    assert t.forward(x=torch.zeros(3, 2), context=None)[0].shape == (3, 2)


def test_a_reflection_of_nothing_is_nothing():
    t = OrthogonalLinear(3)
    with torch.no_grad():
        t.vectors[:, 0] = 0
        t.vectors[:, 1] *= 1e-20
    q = t.weight_matrix()
    torch.testing.assert_close(q @ q.T, torch.eye(3))


def test_whitening_makes_the_data_white_and_keeps_units():
    torch.manual_seed(0)
    x = 100 + torch.randn(5000, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    t = Whiten(3).double()
    t.initialize(x)
    z, log_det = t(x)
    # Shrinkage is at most a few parts in ten thousand with 5,000 rows of three columns.
    torch.testing.assert_close(z.T.cov(), torch.eye(3, dtype=torch.float64), atol=2e-2, rtol=0)
    exact = torch.linalg.slogdet(t.whitener)[1]
    torch.testing.assert_close(log_det, exact.expand(5000))
    torch.testing.assert_close(t.inverse(z)[0], x)


def test_whitening_shrinks_like_scikit_learn():
    from sklearn.covariance import OAS

    torch.manual_seed(0)
    x = torch.randn(40, 8, dtype=torch.float64)
    t = Whiten(8).double()
    t.initialize(x)
    scaled = ((x - x.mean(0)) / x.std(0, unbiased=False)).numpy()
    exact = torch.tensor(OAS(assume_centered=True).fit(scaled).covariance_)
    scale = x.std(0, unbiased=False)
    factor = torch.linalg.inv(t.whitener) / scale.unsqueeze(-1)
    torch.testing.assert_close(factor @ factor.T, exact)


def test_columns_that_determine_each_other_can_be_whitened():
    x = torch.randn(100, 1).repeat(1, 3)
    t = Whiten(3)
    t.initialize(x)
    assert torch.isfinite(t(x)[0]).all()
