"""Score matching and stochastic maximum likelihood against closed forms of linear flows."""

import math
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    MaximumLikelihood,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    WeightedSum,
    coupling_flow,
    elementwise_flow,
    fit,
    stochastic_flow,
)
from flowkit.bases import StandardNormal
from flowkit.errors import ArgumentError, DataError, StochasticFlowError
from flowkit.scalar import Affine, SmoothLeakyReLU
from flowkit.stochastic import Dequantize
from flowkit.transforms import (
    ActNorm,
    Compose,
    Conv2d,
    Coupling,
    DenseLinear,
    Elementwise,
    Log,
    Logit,
    LULinear,
)

#: Every way to match scores.
METHODS = {
    "exact": partial(SlicedScoreMatching, slices=None),
    "sliced": SlicedScoreMatching,
    "denoising": DenoisingScoreMatching,
    "finite-difference": FiniteDifferenceScoreMatching,
    "multiplicative": partial(DenoisingScoreMatching, multiplicative=True),
    "non-negative": partial(SlicedScoreMatching, slices=None, non_negative=True),
}

D = 4
DETERMINANTS = ("slogdet", "_lu", "lu_", "inv", "solve", "cholesky", "svd", "eig")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomized(*layers, noise=0.3, seed=0):
    flow = Flow(Compose(*layers), StandardNormal(_event(layers))).double()
    source = generator(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p += noise * torch.randn(p.shape, generator=source, dtype=torch.float64)
    return flow


def _event(layers):
    sizes = [t.event_shape for t in layers if t.event_shape[0] is not None]
    return (sizes[0][0],) if len(sizes[0]) == 1 else (sizes[0][0], 3, 4)


def linear_flow(weight):
    flow = Flow(Compose(DenseLinear(len(weight))), StandardNormal(len(weight))).double()
    with torch.no_grad():
        flow.transform[0].weight.copy_(weight)
    return flow


@pytest.fixture
def normal():
    """A linear flow, its S = W'W, and normal data with their covariance."""
    source = generator(1)
    weight = torch.eye(D) + 0.5 * torch.randn(D, D, generator=source)
    mixing = torch.eye(D) + 0.5 * torch.randn(D, D, generator=source)
    weight, mixing = weight.double(), mixing.double()
    x = torch.randn(200_000, D, generator=source, dtype=torch.float64) @ mixing.mT
    return linear_flow(weight), weight.mT @ weight, x, mixing @ mixing.mT


def mean_and_error(flow, x, objective, parts=50):
    torch.manual_seed(1_000_003)  # another stream than that of the data
    values = torch.stack([objective(flow, {"x": part}).value for part in x.chunk(parts)])
    return values.mean(), values.std() / parts**0.5


def test_scores_are_gradients_of_energies():
    flow = randomized(
        DenseLinear(3),
        Elementwise(3, SmoothLeakyReLU()),
        Coupling([0, 1, 1], Affine()),
        ActNorm(3),
    )
    x = torch.randn(20, 3, dtype=torch.float64, generator=generator(), requires_grad=True)
    (of_density,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    (of_energy,) = torch.autograd.grad(flow.energy(x).sum(), x)
    assert (of_density + of_energy).abs().max() < 1e-10
    assert (flow.score(x) - of_density).abs().max() < 1e-10


def test_the_log_normalizer_is_the_constant_log_determinants():
    flow = randomized(
        DenseLinear(3), Elementwise(3, SmoothLeakyReLU()), DenseLinear(3), ActNorm(3)
    )
    x = torch.randn(1000, 3, dtype=torch.float64, generator=generator())
    constant = flow.log_prob(x) + flow.energy(x)
    assert constant.std() < 1e-10
    exact = (
        sum(torch.linalg.slogdet(layer.weight)[1] for layer in flow.transform if _is_dense(layer))
        - flow.transform[3].log_scale.sum()
    )
    assert abs(constant.mean() - exact) < 1e-10
    assert abs(flow.log_normalizer() + exact) < 1e-10


def _is_dense(layer):
    return isinstance(layer, DenseLinear)


def test_losses_of_a_linear_flow_in_closed_form(normal):
    flow, s, x, covariance = normal
    # 1/2 tr(S^2 C) - tr(S) for data of covariance C.
    exact = 0.5 * torch.trace(s @ s @ covariance) - torch.trace(s)
    for method, options in (
        ("exact", {}), ("sliced", {}), ("sliced", {"slices": 3}),
        ("finite-difference", {"radius": 0.1}), ("finite-difference", {"radius": 1.0}),
    ):  # fmt: skip
        value, error = mean_and_error(flow, x, METHODS[method](**options))
        assert abs(value - exact) < 5 * error
    noise = 0.7
    wider = covariance + noise**2 * torch.eye(D)
    exact = 0.5 * (torch.trace(s @ s @ wider) - 2 * torch.trace(s) + D / noise**2)
    errors = []
    for antithetic in (False, True):
        loss = DenoisingScoreMatching(noise=noise, antithetic=antithetic)
        value, error = mean_and_error(flow, x, loss)
        assert abs(value - exact) < 5 * error
        errors.append(error)
    assert errors[1] < errors[0]


def test_pairs_of_noise_keep_gradients_from_drowning(normal):
    flow, _, x, _ = normal
    spread = []
    for antithetic in (False, True):
        loss = DenoisingScoreMatching(noise=0.01, antithetic=antithetic)
        gradients = []
        for i in range(100):
            flow.zero_grad()
            torch.manual_seed(i)
            loss(flow, {"x": x[:100]}).value.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
        spread.append(torch.stack(gradients).std(0).norm())
    # Without pairs a part of the order of 1 / noise is left.
    assert spread[1] < spread[0] / 10


def test_finite_differences_of_a_quadratic_energy_have_no_error(normal):
    flow, _, x, _ = normal
    values = []
    for radius in (0.1, 1.0):
        torch.manual_seed(0)
        values.append(FiniteDifferenceScoreMatching(radius=radius)(flow, {"x": x}).value)
    assert torch.allclose(*values, rtol=1e-8)


def test_the_gradient_of_stochastic_maximum_likelihood(normal):
    flow, _, x, covariance = normal
    weight = flow.transform[0].weight
    exact = weight @ covariance - torch.linalg.inv(weight).mT
    torch.manual_seed(0)
    objective, found = StochasticMaximumLikelihood(), []
    for part in x.chunk(40):
        loss = objective(flow, {"x": part}).value
        found.append(torch.autograd.grad(loss, weight)[0])
    found = torch.stack(found)
    error = found.std(0) / 40**0.5
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()


@pytest.mark.parametrize("method", ["exact", "sliced", "finite-difference", "denoising", "ml"])
def test_the_optimum_is_the_precision_of_the_data_or_of_the_noisy_data(method):
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    covariance = mixing @ mixing.mT
    x = torch.randn(20_000, 2, generator=generator(), dtype=torch.float64) @ mixing.mT
    sample = x.mT @ x / len(x)
    flow = linear_flow(torch.eye(2, dtype=torch.float64))
    noise = 0.5
    objective = {
        "denoising": DenoisingScoreMatching(noise=noise), "ml": MaximumLikelihood()
    }.get(method) or METHODS[method]()  # fmt: skip
    flow.transform[0].bias.requires_grad_(False)
    fit(flow, x, objective, validation=None, epochs=40, batch_size=1000, lr=2e-2, progress=False)
    weight = flow.transform[0].weight.detach()
    wanted = torch.linalg.inv(sample + (noise**2 if method == "denoising" else 0) * torch.eye(2))
    difference = torch.linalg.matrix_norm(weight.mT @ weight - wanted)
    assert difference < 0.03 * torch.linalg.matrix_norm(wanted)
    if method == "denoising":
        clean = torch.linalg.inv(covariance)
        assert torch.linalg.matrix_norm(weight.mT @ weight - clean) > 0.2


class Operators(TorchDispatchMode):
    """The names of all operators that run, backward passes included."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def determinants(self):
        return [n for n in self.names if n == "det" or any(word in n for word in DETERMINANTS)]


@pytest.mark.parametrize(
    "objective",
    [METHODS[m]() for m in ("exact", "sliced", "denoising", "finite-difference")],
    ids=("exact", "sliced", "denoising", "finite-difference"),
)
def test_no_determinant_runs_in_a_step_of_score_matching(objective):
    flow = randomized(
        DenseLinear(3), Elementwise(3, SmoothLeakyReLU()), DenseLinear(3), ActNorm(3)
    )
    image = randomized(
        Conv2d(1), Elementwise(1, SmoothLeakyReLU(), event_ndim=3), Conv2d(1), noise=0.1
    )
    for module, event in ((flow, (3,)), (image, (1, 3, 4))):
        x = torch.randn(5, *event, dtype=torch.float64, generator=generator())
        with Operators() as seen:
            objective(module, {"x": x}).value.backward()
        assert seen.determinants() == []
        assert len(seen.names) > 50
        with Operators() as seen:
            MaximumLikelihood()(module, {"x": x}).value.backward()
        assert len(seen.determinants()) >= 2


def test_determinants_of_convolutions_against_autodiff():
    for kernel in (1, 3, (1, 3), (5, 3)):
        layer = randomized(Conv2d(2, kernel=kernel), noise=0.2).transform
        x = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator())
        jacobian = torch.func.jacrev(lambda v, layer=layer: layer(v)[0])(x).reshape(24, 24)
        assert abs(layer(x)[1] - torch.linalg.slogdet(jacobian)[1]) < 1e-8
        assert (layer.inverse(layer(x)[0])[0] - x).abs().max() < 1e-9


def test_the_activation_is_undone_to_rounding():
    x = torch.linspace(-100, 100, 4001, dtype=torch.float64).unsqueeze(-1)
    for alpha in (0.05, 0.3, 0.9):
        layer = Elementwise(1, SmoothLeakyReLU(alpha))
        z, log_det = layer(x)
        back, back_log_det = layer.inverse(z)
        assert (back - x).abs().max() < 1e-10
        assert (log_det + back_log_det).abs().max() < 1e-10
        slope = alpha + (1 - alpha) * torch.sigmoid(x[:, 0])
        assert torch.allclose(log_det, slope.log(), atol=1e-12)


def positive_flow(mean, scale):
    """Log-normal: log x ~ N(mean, scale^2)."""
    flow = Flow(Compose(Log(1), Elementwise(1, Affine(None))), StandardNormal(1)).double()
    with torch.no_grad():
        flow.transform[1].params.copy_(torch.tensor([[-mean / scale, -math.log(scale)]]))
    return flow


def test_multiplicative_denoising_is_denoising_of_logarithms():
    mean, scale, noise = 0.3, 0.5, 0.4
    flow = positive_flow(mean, scale)
    log_x = 0.1 + 0.8 * torch.randn(200_000, 1, generator=generator(), dtype=torch.float64)
    loss = DenoisingScoreMatching(multiplicative=True, noise=noise)
    value, error = mean_and_error(flow, log_x.exp(), loss)
    pairs = DenoisingScoreMatching(multiplicative=True, noise=noise, antithetic=True)
    paired, paired_error = mean_and_error(flow, log_x.exp(), pairs)
    # In y = log x the score is -(y - m) / s^2, and the target -eps / noise.
    second = (0.1 - mean) ** 2 + 0.8**2 + noise**2
    exact = 0.5 * (second / scale**4 - 2 / scale**2 + 1 / noise**2)
    assert abs(value - exact) < 5 * error
    assert abs(paired - exact) < 5 * paired_error


@pytest.mark.parametrize("slices", [None, 1])
def test_non_negative_score_matching_of_an_exponential(slices):
    # For p = r exp(-r x) the loss is -2 r E[x] + r^2 E[x^2] / 2; its optimum is the rate.
    class Exponential(Flow):
        def score(self, x, context=None):
            return -rate * x / x

    rate = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    flow = Exponential(Compose(Log(2)), StandardNormal(2)).double()
    x = torch.empty(400_000, 2, dtype=torch.float64).exponential_(1.7, generator=generator())
    objective = SlicedScoreMatching(non_negative=True, slices=slices)
    torch.manual_seed(0)
    value = objective(flow, {"x": x}).value
    exact = (-2 * rate * x + 0.5 * (rate * x).square()).sum(-1).mean()
    assert abs(value - exact) < 1e-9
    optimum = 2 * x.mean() / x.square().mean()
    assert abs(optimum - 1.7) < 0.02
    (gradient,) = torch.autograd.grad(value, rate)
    assert abs(gradient) < 0.05


def test_images_are_events_of_their_numbers():
    flow = randomized(Conv2d(1), Elementwise(1, SmoothLeakyReLU(), event_ndim=3), noise=0.1)
    x = torch.randn(6, 1, 3, 4, dtype=torch.float64, generator=generator())
    exact = SlicedScoreMatching(slices=None)(flow, {"x": x}).value
    # The mean over many random signs is the trace.
    torch.manual_seed(0)
    objective = SlicedScoreMatching(slices=50)
    sliced = torch.stack([objective(flow, {"x": x}).value for _ in range(4)])
    assert abs(sliced.mean() - exact) < 5 * sliced.std() / 2 + 0.05
    for method in ("denoising", "finite-difference"):
        assert METHODS[method]()(flow, {"x": x}).value.isfinite()


def test_weights_contexts_and_the_weight_of_the_energy():
    flow = coupling_flow(2, context=1, layers=2, scalar="affine", hidden=(4,))
    batch = {
        "x": torch.randn(8, 2, generator=generator()),
        "context": torch.randn(8, 1, generator=generator(1)),
    }
    for objective in (SlicedScoreMatching(slices=None), StochasticMaximumLikelihood()):
        torch.manual_seed(0)
        plain = objective(flow, batch).value
        torch.manual_seed(0)
        double = objective(flow, {**batch, "weight": torch.full((8,), 2.0)}).value
        assert torch.allclose(2 * plain, double)
    added = SlicedScoreMatching(slices=None, energy_weight=0.1)(flow, batch)
    energy = flow.energy(batch["x"], batch["context"]).mean()
    assert torch.allclose(
        added.value, SlicedScoreMatching(slices=None)(flow, batch).value + 0.1 * energy, atol=1e-5
    )
    with torch.no_grad():
        value = SlicedScoreMatching()(flow, batch).value
    assert not value.requires_grad
    mixed = WeightedSum((1.0, MaximumLikelihood()), (0.1, SlicedScoreMatching(slices=None)))
    assert mixed(flow, batch).value.isfinite()


def test_learning_by_scores_reaches_the_likelihood_of_a_fit_by_likelihood():
    x = torch.randn(4000, 2, generator=generator()) @ torch.tensor([[1.0, 0.0], [0.5, 0.8]]).mT
    values = {}
    for objective in (MaximumLikelihood(), SlicedScoreMatching(), StochasticMaximumLikelihood()):
        torch.manual_seed(0)
        # Without a determinant nothing keeps a dense matrix from passing through a singular one,
        # to densities with other modes, which scores at the data do not see.
        flow = Flow(
            Compose(LULinear(2), Elementwise(2, SmoothLeakyReLU()), LULinear(2)), StandardNormal(2)
        )
        fit(
            flow, x, objective, validation=None, epochs=60, batch_size=200, lr=1e-2,
            progress=False,
        )  # fmt: skip
        with torch.no_grad():
            values[type(objective).__name__] = -flow.log_prob(x).mean().item()
    best = values["MaximumLikelihood"]
    assert all(value < best + 0.15 for value in values.values()), values


def counts_flow():
    """Counts from 0 to 255: dequantised, logit, and a linear layer."""
    flow = Flow(
        Compose(Dequantize(2), Logit(2, lower=-0.5, upper=255.5), DenseLinear(2)),
        StandardNormal(2),
    )
    with torch.no_grad():
        flow.transform[2].weight.copy_(torch.tensor([[0.7, 0.1], [-0.2, 0.9]]))
    return flow.double()


def test_likelihoods_do_not_see_the_preprocessing_and_scores_do():
    flow = Flow(
        Compose(Logit(2, lower=0.0, upper=256.0), DenseLinear(2)), StandardNormal(2)
    ).double()
    x = 1 + 250 * torch.rand(50, 2, dtype=torch.float64, generator=generator())
    found = {}
    for kind, objective in (("ml", MaximumLikelihood()), ("sm", SlicedScoreMatching(slices=None))):
        for after in (False, True):
            flow.zero_grad()
            wrapped = AfterPreprocessing(objective) if after else objective
            wrapped(flow, {"x": x}).value.backward()
            found[kind, after] = flow.transform[1].weight.grad.clone()
    assert torch.allclose(found["ml", False], found["ml", True], rtol=0, atol=1e-6)
    assert not torch.allclose(found["sm", False], found["sm", True], rtol=0.1)


def test_dequantised_data_train_by_scores_behind_the_noise():
    flow = counts_flow()
    counts = torch.randint(0, 256, (500, 2), generator=generator())
    objective = AfterPreprocessing(DenoisingScoreMatching(noise=0.2), layers=2)
    before = flow.log_prob_bound(counts, generator=generator(1)).mean()
    fit(flow, counts, objective, validation=None, epochs=10, lr=1e-2, progress=False)
    assert flow.log_prob_bound(counts, generator=generator(1)).mean() > before


def test_a_density_behind_the_preprocessing_is_one_of_the_data():
    flow = Flow(
        Compose(Logit(1, lower=0.0, upper=256.0), DenseLinear(1)), StandardNormal(1)
    ).double()
    edges = torch.linspace(0, 256, 200_001, dtype=torch.float64)
    middles = 0.5 * (edges[1:] + edges[:-1])
    mass = flow.log_prob(middles.unsqueeze(-1)).exp().sum() * (edges[1] - edges[0])
    assert abs(mass - 1) < 1e-3


def test_preprocessing_has_nothing_to_learn():
    flow = counts_flow()
    x = {"x": torch.zeros(2, 2)}
    for call, words in (
        (lambda: AfterPreprocessing(3), "objective as an Objective"),
        (
            lambda: AfterPreprocessing(DenoisingScoreMatching(), layers=0),
            "layers as an integer >= 1",
        ),
        (
            lambda: AfterPreprocessing(DenoisingScoreMatching(), layers=3)(flow, x),
            "a Compose that begins",
        ),
        (
            lambda: AfterPreprocessing(DenoisingScoreMatching())(
                Flow(Compose(DenseLinear(2), DenseLinear(2)), StandardNormal(2)), x
            ),
            "begins with layers without parameters",
        ),
        (
            lambda: AfterPreprocessing(DenoisingScoreMatching(), layers=1)(
                Flow(Compose(DenseLinear(2), DenseLinear(2)), StandardNormal(2)), x
            ),
            "without parameters, got DenseLinear",
        ),
    ):
        with pytest.raises((ArgumentError, DataError), match=words):
            call()


def test_score_matching_refuses_what_it_cannot_use():
    flow = elementwise_flow(1)
    negative = {"x": torch.tensor([[1.0], [-1.0]])}
    for call, error, words in (
        (
            lambda: DenoisingScoreMatching(antithetic=1),
            ArgumentError,
            "antithetic as True or False, got 1",
        ),
        (lambda: SlicedScoreMatching(slices=0), ArgumentError, "slices as an integer >= 1"),
        (
            lambda: DenoisingScoreMatching(noise=-1.0),
            ArgumentError,
            "noise as a finite number > 0",
        ),
        (lambda: DenoisingScoreMatching(energy_weight=-1), ArgumentError, "energy_weight"),
        (
            lambda: DenoisingScoreMatching(multiplicative=True)(flow, negative),
            DataError,
            "data > 0, got -1",
        ),
        (
            lambda: SlicedScoreMatching(slices=None, non_negative=True)(flow, negative),
            DataError,
            "data > 0",
        ),
        (
            lambda: DenoisingScoreMatching()(stochastic_flow(1, energy="double_well"), negative),
            StochasticFlowError,
            "score does not exist",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
