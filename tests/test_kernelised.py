"""Kernels against scikit-learn, expansions against algebra, and flows of them on little data."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import sklearn.gaussian_process.kernels as reference
import torch

from flowkit import KernelNorm, MaximumLikelihood, WeightedSum, coupling_flow, fit, kernelised_flow
from flowkit.bases import StandardNormal
from flowkit.conditioners import GroupedConditioner, KernelConditioner, RandomFourierConditioner
from flowkit.datasets import breast_cancer
from flowkit.errors import ArgumentError, DataError
from flowkit.kernels import Matern, RationalQuadratic, SquaredExponential
from flowkit.scalar import Affine
from flowkit.toys import TwoMoons
from flowkit.transforms import Coupling

SCALES = [0.5, 1.0, 3.0]
KERNELS = {
    "squared exponential": (SquaredExponential, lambda s: reference.RBF(s)),
    **{
        f"matern {nu}": (
            lambda d, nu=nu, **options: Matern(d, nu=nu, **options),
            lambda s, nu=nu: reference.Matern(s, nu=nu),
        )
        for nu in (0.5, 1.5, 2.5)
    },
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_those_of_scikit_learn(name):
    ours, theirs = KERNELS[name]
    x, y = normal(20, 3), normal(10, 3, seed=1)
    y[0] = x[0]
    ours = ours(3, length_scale=SCALES).double()
    exact = theirs(SCALES)(x.numpy(), y.numpy())
    assert np.abs(ours(x, y).detach().numpy() - exact).max() < 1e-10
    ours.log_variance.data.fill_(math.log(2.5))
    assert np.abs(ours(x, y).detach().numpy() - 2.5 * exact).max() < 1e-10


def test_sums_and_products_of_kernels_are_those_of_scikit_learn():
    x, y = normal(20, 2), normal(10, 2, seed=1)
    one, two = Matern(nu=1.5, length_scale=0.75), RationalQuadratic(alpha=0.5, length_scale=1.25)
    a, b = reference.Matern(0.75, nu=1.5), reference.RationalQuadratic(1.25, 0.5)
    for ours, theirs in ((one + two, a + b), (one * two, a * b)):
        values = ours.with_features(2).double()(x, y).detach().numpy()
        assert np.abs(values - theirs(x.numpy(), y.numpy())).max() < 1e-10


def test_length_scales_stay_within_their_bounds():
    kernel = SquaredExponential(2, length_scale=[0.5, 2.0]).double()
    assert torch.allclose(kernel.length_scales, torch.tensor([0.5, 2.0]).double())
    for raw, factor in ((-1e3, 1 / 20), (1e3, 20)):
        kernel.raw_scales.data.fill_(raw)
        assert torch.allclose(kernel.length_scales, factor * torch.tensor([0.5, 2.0]).double())


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, None])
def test_gradients_are_right_and_finite_at_coincident_points(nu):
    kernel = SquaredExponential() if nu is None else Matern(nu=nu)
    net = KernelConditioner(2, 3, points=4, kernel=kernel).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(net.weights)
    x = normal(5, 2, seed=5)

    def value(points, raw, x):
        parameters = {"points": points, "kernel.raw_scales": raw}
        return torch.func.functional_call(net, parameters, (x,))

    arguments = [
        p.detach().clone().requires_grad_() for p in (net.points, net.kernel.raw_scales, x)
    ]
    assert torch.autograd.gradcheck(value, arguments)
    # A row on a point: no derivative of the kink of matern 1/2, and no NaN of the others.
    on_point = net.points[:1].detach().clone().requires_grad_()
    gradients = torch.autograd.grad(net(on_point).sum(), [on_point, *net.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    if nu != 0.5:
        step = 1e-6 * torch.eye(2, dtype=torch.float64)
        slopes = (net(on_point + step).sum(-1) - net(on_point - step).sum(-1)) / 2e-6
        assert torch.allclose(gradients[0][0], slopes.detach(), atol=1e-5)


@pytest.mark.parametrize("make", [SquaredExponential, partial(Matern, nu=1.5), Matern])
def test_curvature_is_right_at_coincident_points_and_far_from_the_origin(make):
    d, scale, twice = 3, 2.0, torch.func.jacrev
    kernel = make(d).double()
    kernel.start.fill_(scale)
    x = 100 + normal(50, d)
    curvature = {SquaredExponential: -1.0}.get(make)
    if curvature is None:
        nu = kernel.nu
        curvature = -nu / (nu - 1)
    hessian = torch.func.vmap(twice(twice(lambda v, w: kernel(v[None], w[None])[0, 0])))
    laplacian = hessian(x, x.clone()).diagonal(dim1=-1, dim2=-2).sum(-1)
    assert torch.allclose(laplacian, torch.tensor(curvature * d / scale**2).double(), rtol=1e-6)
    single = make(d)
    single.start.fill_(scale)
    error = (single(x.float(), x.float()) - kernel(x, x)).abs().max()
    assert error < 1e-4


@pytest.mark.parametrize(("features", "layers", "points"), [(6, 12, 150), (5, 3, 7)])
def test_parameters_are_counted_by_the_formula(features, layers, points):
    flow = kernelised_flow(features, layers=layers, points=points, linear="permutation")
    total = sum(p.numel() for p in flow.parameters())
    read = features // 2
    moved = features - read
    hyper = layers * (read + 1)
    assert total - hyper == layers * (2 * points * moved + points * read)
    if features == 6:
        assert total - hyper == 16_200
    kept = kernelised_flow(
        features, layers=layers, points=points, linear="permutation", learn_points=False
    )
    trained = sum(p.numel() for p in kept.parameters()) - hyper
    assert trained == 2 * layers * points * moved
    assert f"{total:,}" in flow.summary()


def test_a_new_flow_is_its_base():
    flow = kernelised_flow(4, start=None).double()
    x = normal(10, 4)
    z, log_det = flow.transform(x)
    base = StandardNormal(4).double()
    assert torch.allclose(flow.log_prob(x), base.log_prob(x), atol=1e-12, rtol=0)
    assert log_det.abs().max() < 1e-12
    assert z.shape == x.shape


def test_expansions_interpolate_and_represent():
    x, targets = normal(50, 2), normal(50, 3, seed=1)
    rough = Matern(nu=1.5)
    net = KernelConditioner(2, 3, points=50, kernel=rough, learn_points=False).double()
    net.initialize(x)
    assert torch.equal(net.points, x)
    gram = net.kernel(x, x)
    solution = torch.linalg.solve(gram, targets).detach()
    net.weights.data = math.sqrt(50) * solution
    assert (net(x) - targets).abs().max() < 1e-6
    assert net.squared_norm().item() == pytest.approx((targets * solution).sum().item())

    # The representer theorem: the part of a function that is orthogonal to the kernels at the
    # data vanishes on the data. What is left of it has there the same values, so that the flow
    # has the same likelihood, and a smaller norm.
    layer = Coupling(
        [0, 0, 1],
        Affine(),
        conditioner=partial(KernelConditioner, points=80, kernel=rough),
    ).double()
    wide = layer.conditioner
    torch.manual_seed(1)
    torch.nn.init.normal_(wide.points)
    torch.nn.init.normal_(wide.weights, std=0.3)
    data = torch.cat([x, normal(50, 1, seed=2)], -1)
    before, norm = layer(data), wide.squared_norm()
    at_data = wide(x).detach()
    small = KernelConditioner(2, 2, points=50, learn_points=False).double()
    small.initialize(x)
    small.kernel = wide.kernel
    solution = torch.linalg.solve(wide.kernel(x, x), at_data).detach()
    small.weights.data = math.sqrt(50) * solution
    layer.conditioner = small
    after = layer(data)
    assert torch.allclose(after[0], before[0], atol=1e-8)
    assert torch.allclose(after[1], before[1], atol=1e-8)
    assert small.squared_norm() <= norm


def test_far_from_the_data_a_layer_is_the_identity():
    for kernel, far in ((SquaredExponential(), 1e3), (Matern(nu=0.5), 1e3)):
        layer = Coupling(
            [0, 1], Affine(), conditioner=partial(KernelConditioner, kernel=kernel)
        ).double()
        torch.nn.init.normal_(layer.conditioner.weights)
        x = torch.tensor([[far, 2.0], [-far, -1.0]], dtype=torch.float64)
        assert (layer(x)[0] - x).abs().max() < 1e-12
    # The functions of matern 1/2 die out like exp(-r / l).
    net = KernelConditioner(1, 1, kernel=Matern(nu=0.5, length_scale=2.0)).double()
    torch.nn.init.normal_(net.weights)
    values = net(torch.tensor([[20.0], [22.0]], dtype=torch.float64)).flatten()
    assert (values[1] / values[0]).item() == pytest.approx(math.exp(-1), rel=1e-9)


def test_points_start_from_data_as_they_reach_their_layer():
    x = 5 + 2 * normal(40, 4)
    flow = kernelised_flow(4, layers=2, points=40, linear="permutation").double()
    flow.initialize(x)
    rows = (x - x.mean(0)) / x.std(0, correction=0)
    for layer in flow.transform.transforms:
        if isinstance(layer, Coupling):
            read = rows[:, layer.conditioning_index]
            assert torch.allclose(layer.conditioner.points, read, atol=1e-2)
            distance = torch.pdist(read).median() / math.sqrt(2)
            assert torch.allclose(layer.conditioner.kernel.length_scales, distance, rtol=0.05)
        rows = layer(rows)[0] if layer is not flow.transform[0] else rows
    more = KernelConditioner(2, 1, points=100)
    more.initialize(x[:, :2].float())
    assert len(more.points.unique(dim=0)) == 100
    points = partial(KernelConditioner, points=40)
    grouped = GroupedConditioner(2, 2, conditioning=(1, 1), transformed=(1, 1), conditioner=points)
    grouped.initialize(x[:, :2].float())
    assert (grouped.nets[0].points.min() - x[:, 0].min()).abs() < 1e-6


def test_fits_start_points_from_context_too():
    flow = kernelised_flow(1, context=2, layers=1, points=30, start="copula")
    data = {"x": normal(60, 1).float(), "context": 3 + normal(60, 2, seed=1).float()}
    fit(flow, data, epochs=1, progress=False)
    points = flow.transform[-1].conditioner.points
    assert points.shape == (30, 2)
    assert points.mean().abs() < 1


@pytest.mark.parametrize("kernel", [SquaredExponential(), Matern(nu=1.5)])
def test_random_features_have_the_error_that_is_stated(kernel):
    m, repeats = 50, 400
    delta = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    estimates = []
    for seed in range(repeats):
        net = RandomFourierConditioner(2, 1, n_frequencies=m, kernel=kernel, seed=seed).double()
        # Frequencies are kept in single precision.
        waves = [net.kernel.random_features(v, net.frequencies) for v in (zero, delta)]
        estimates.append((waves[0] @ waves[1].mT).item())
    exact = net.kernel(zero, delta).item()
    twice = net.kernel(zero, 2 * delta).item()
    error = math.sqrt((1 + twice - 2 * exact**2) / (2 * m))
    assert abs(np.mean(estimates) - exact) < 4 * error / math.sqrt(repeats)
    # The standard error of a standard deviation is 1 / sqrt(2 n).
    assert np.std(estimates) == pytest.approx(error, rel=4 / math.sqrt(2 * repeats))


def test_random_features_stand_in_for_many_points():
    torch.manual_seed(0)
    points = KernelConditioner(2, 1, points=3000, learn_points=False).double()
    torch.nn.init.normal_(points.weights)
    waves = RandomFourierConditioner(2, 1, n_frequencies=20_000).double()
    waves.weights.data = (
        waves.kernel.random_features(points.points, waves.frequencies).mT
        @ points.weights
        / math.sqrt(3000)
    ).detach()
    x = normal(200, 2)
    error = (points(x) - waves(x)).detach().std()
    # A sum of independent errors, of 1 / sqrt(m) at most each.
    assert error < 4 * (points.weights / math.sqrt(3000)).norm() / math.sqrt(20_000)
    assert waves.squared_norm().item() == pytest.approx(points.squared_norm().item(), rel=0.1)


def test_the_norm_is_a_penalty():
    flow = kernelised_flow(2, layers=2, points=5)
    for module in flow.modules():
        if isinstance(module, KernelConditioner):
            torch.nn.init.normal_(module.weights)
    expected = sum(
        (m.weights * (m.kernel(m.points, m.points) @ m.weights)).sum().item() / 5
        for m in flow.modules()
        if isinstance(m, KernelConditioner)
    )
    assert KernelNorm()(flow, {}).value.item() == pytest.approx(expected, rel=1e-5)
    assert KernelNorm().eval()(flow, {}).value == 0
    with pytest.raises(DataError, match="remedy: for example kernelised_flow"):
        KernelNorm()(coupling_flow(2), {})
    x = TwoMoons().sample(200, torch.Generator().manual_seed(0))
    norms = []
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        flow = kernelised_flow(2, layers=2, points=20)
        loss = WeightedSum((1.0, MaximumLikelihood()), (weight, KernelNorm()))
        fit(flow, x, loss, validation=None, epochs=20, batch_size=50, lr=1e-2, progress=False)
        norms.append(KernelNorm()(flow, {}).value.item())
    assert norms[1] < 0.7 * norms[0]


def nll(flow, x, lr, seed, test, epochs=150):
    fit(
        flow,
        x,
        validation=0.2,
        epochs=epochs,
        batch_size=100,
        lr=lr,
        patience=30,
        compile=False,
        seed=seed,
        progress=False,
    )
    with torch.no_grad():
        return -flow.log_prob(test).mean().item()


def test_little_data_of_breast_cancer():
    parts = breast_cancer(dtype=torch.float32)
    rows = torch.cat([parts.train, parts.validation, parts.test])
    train, test = rows[:300], rows[300:]
    torch.manual_seed(0)
    kernel = kernelised_flow(30, start="standardize")
    count = sum(p.numel() for p in kernel.parameters())
    scores = {"kernel": nll(kernel, train, 3e-3, 0, test)}
    for name, width in (("equal", 62), ("ten times", 253)):
        torch.manual_seed(0)
        flow = coupling_flow(
            30, layers=8, scalar="affine", hidden=(width, width), start="standardize"
        )
        scores[name] = nll(flow, train, 3e-3, 0, test)
    assert sum(p.numel() for p in flow.parameters()) == pytest.approx(10 * count, rel=0.1)
    assert scores["kernel"] + 1 < min(scores["equal"], scores["ten times"])


@pytest.mark.slow
def test_little_data_of_moons():
    toy = TwoMoons()
    parts = [
        (toy.sample(500, generator), toy.sample(5_000, generator))
        for generator in (torch.Generator().manual_seed(seed) for seed in range(3))
    ]
    scores = dict.fromkeys((10, 150), 0.0)
    for points, (train, test) in itertools.product(scores, parts):
        flow = kernelised_flow(2, layers=8, points=points, seed=0)
        scores[points] += nll(flow, train, 3e-3, 0, test) / 3
    assert scores[150] <= scores[10]
    # Networks depend on their initial weights, so each has three starts.
    train, test = parts[0]
    ours, theirs = [], []
    for seed in range(3):
        # Without the splines of the start, which both would have.
        made = {"layers": 8, "seed": seed, "start": "standardize"}
        kernel = kernelised_flow(2, points=135, elementwise="spline", **made)
        perceptrons = coupling_flow(2, scalar="affine", hidden=(19, 19), **made)
        counts = [sum(p.numel() for p in flow.parameters()) for flow in (kernel, perceptrons)]
        assert counts[0] == pytest.approx(counts[1], rel=0.1)
        ours.append(nll(kernel, train, 3e-3, 0, test))
        theirs.append(nll(perceptrons, train, 3e-3, 0, test))
    assert sum(ours) / 3 <= sum(theirs) / 3 - 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KernelConditioner(0, 2), "nothing to read"),
        (lambda: KernelConditioner(1, 2, points=0), "points as an integer >= 1"),
        (lambda: KernelConditioner(2, 2, kernel=Matern(1)), "a kernel of 2 features"),
        (lambda: KernelConditioner(2, 2, kernel=Matern), "kernel as a Kernel, got <class"),
        (lambda: RandomFourierConditioner(0, 2), "nothing to read"),
        (lambda: RandomFourierConditioner(1, 2, n_frequencies=0), "n_frequencies as an integer"),
        (
            lambda: RandomFourierConditioner(1, 2, kernel=RationalQuadratic()),
            "with a spectral density",
        ),
        (lambda: Matern(2, nu=1.0), "nu as 0.5, 1.5 or 2.5"),
        (lambda: Matern(0), "features as an integer >= 1"),
        (lambda: SquaredExponential(2, length_scale=[1.0]), "one for each of 2 feature"),
        (lambda: SquaredExponential(2, length_scale=-1.0), "length_scale as a finite number > 0"),
        (lambda: RationalQuadratic(2, alpha=0.0), "alpha as a finite number > 0"),
        (lambda: Matern(2) + Matern(3), "second as a kernel of 2 feature"),
    ],
)
def test_what_cannot_be_a_kernel_is_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
