"""Objectives against closed forms."""

import math

import pytest
import torch
from torch.func import functional_call

from flowkit import (
    Flow,
    ForceMatching,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    WeightedSum,
    coupling_flow,
    elementwise_flow,
    fit,
)
from flowkit.bases import StandardNormal
from flowkit.errors import DataError, FlowkitError, NonFiniteLossError, StochasticFlowError
from flowkit.scalar import LogisticMixture
from flowkit.stochastic import Dequantize
from flowkit.transforms import Compose, Conv1x1, LULinear, Standardize


def normal_flow(mean, scale):
    """A flow that is N(mean, scale^2) in every feature."""
    flow = Flow(LULinear(len(mean)), StandardNormal(len(mean))).double()
    with torch.no_grad():
        flow.transform.lower_upper.diagonal().copy_(-torch.tensor(scale).double().log())
        flow.transform.bias.copy_(-torch.tensor(mean).double() / torch.tensor(scale).double())
    return flow


def standard_energy(x):
    return 0.5 * x.square().sum(-1) + 0.5 * x.shape[-1] * math.log(2 * math.pi)


def test_likelihood_of_a_normal_is_the_closed_form():
    flow = normal_flow([1.0], [2.0])
    x = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    exact = 0.5 * math.log(2 * math.pi * 4) + 0.5 * (0.25 + 1.0) / 2
    loss = MaximumLikelihood()(flow, {"x": x})
    assert loss.value.item() == pytest.approx(exact, abs=1e-12)
    assert loss.terms["nll"].item() == pytest.approx(exact, abs=1e-12)


def test_a_weight_is_a_number_of_copies():
    flow = normal_flow([1.0], [2.0])
    x = torch.randn(4, 1, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    copies = x.repeat_interleave(weight.long(), 0)
    weighted = MaximumLikelihood()(flow, {"x": x, "weight": weight / weight.mean()}).value
    torch.testing.assert_close(weighted, MaximumLikelihood()(flow, {"x": copies}).value)


def test_weights_of_the_wrong_shape_are_named():
    with pytest.raises(DataError, match="one weight per sample"):
        MaximumLikelihood()(
            elementwise_flow(1), {"x": torch.zeros(3, 1), "weight": torch.ones(3, 1)}
        )


def test_likelihood_of_counts_uses_the_bound():
    flow = Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1))
    loss = MaximumLikelihood()(flow, {"x": torch.zeros(100_000, 1)})
    # u ~ U[-1/2, 1/2): the mean of u^2 / 2 is 1/24, its standard error 0.0373 / sqrt(1e5)
    exact = 0.5 * math.log(2 * math.pi) + 1 / 24
    assert loss.value.item() == pytest.approx(exact, abs=4 * 0.0373 / math.sqrt(1e5))


@pytest.mark.parametrize("estimator", ["reparam", "path"])
def test_reverse_kl_of_two_normals(estimator):
    mean, scale = [0.5, -1.0], [0.7, 1.5]
    flow = normal_flow(mean, scale)
    exact = sum(0.5 * (s * s + m * m - 1) - math.log(s) for m, s in zip(mean, scale, strict=True))
    n = 100_000
    objective = ReverseKL(standard_energy, estimator=estimator, samples=n)
    value = objective(flow, {}).value.item()
    x, log_q = flow.sample_and_log_prob(n)
    error = (log_q + standard_energy(x)).std().item() / math.sqrt(n)
    assert value == pytest.approx(exact, abs=4 * error)


def gradient(flow, estimator, samples):
    flow.zero_grad()
    ReverseKL(standard_energy, estimator=estimator, samples=samples)(flow, {}).value.backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters()])


def test_both_estimators_have_the_same_mean_gradient():
    flow = normal_flow([0.5, -1.0], [0.7, 1.5])
    reparam = torch.stack([gradient(flow, "reparam", 500) for _ in range(200)])
    path = torch.stack([gradient(flow, "path", 500) for _ in range(200)])
    error = (reparam.var(0) / 200 + path.var(0) / 200).sqrt()
    assert ((reparam.mean(0) - path.mean(0)).abs() <= 4 * error + 1e-12).all()


def test_the_path_gradient_vanishes_where_the_flow_is_the_target():
    flow = normal_flow([0.0, 0.0], [1.0, 1.0])
    assert gradient(flow, "path", 100).abs().max() < 1e-12
    assert gradient(flow, "reparam", 100).abs().max() > 1e-3


def test_reverse_kl_gives_the_energy_the_context():
    flow = elementwise_flow(1, context=2, hidden=(8,))
    seen = []

    def energy(x, context):
        seen.append((x.shape, context.shape))
        return 0.5 * (x[..., 0] - context[..., 0]) ** 2

    loss = ReverseKL(energy, samples=6)(flow, {"context": torch.zeros(4, 2)})
    # The second call asks far out for the sign.
    assert seen == [((6, 4, 1), (4, 2)), ((4, 8, 1, 1), (1, 2))]
    assert loss.value.shape == ()


def test_an_energy_of_the_wrong_shape_is_named():
    objective = ReverseKL(lambda x: x, samples=3)
    with pytest.raises(DataError, match="one number per sample"):
        objective(elementwise_flow(1), {})


@pytest.mark.parametrize("energy", [lambda x: 0.0, lambda x: x.detach().numpy()])
def test_an_energy_that_returns_no_tensor_is_named(energy):
    with pytest.raises(DataError, match="expected a torch.Tensor with one number per sample"):
        ReverseKL(energy, samples=3)(elementwise_flow(1), {})


def test_a_base_without_reparameterised_samples_is_refused():
    with pytest.raises(DataError, match="NormalMixture cannot give"):
        ReverseKL(standard_energy)(elementwise_flow(1, base="mixture"), {})


def test_a_weighted_sum_adds_values_gradients_and_terms():
    flow = normal_flow([0.5], [0.7])
    batch = {"x": torch.randn(10, 1, dtype=torch.float64)}
    nll = MaximumLikelihood()
    both = WeightedSum((2.0, nll), (0.5, nll))
    loss = both(flow, batch)
    torch.testing.assert_close(loss.value, 2.5 * nll(flow, batch).value)
    assert set(loss.terms) == {"MaximumLikelihood.nll"}
    assert both.needs_data
    assert not WeightedSum((1.0, ReverseKL(standard_energy))).needs_data


def smooth_flow(features=2, hidden=(8,), seed=1, **arguments):
    """Couplings of mixtures with random weights, in float64: smooth and far from Gaussian."""
    flow = coupling_flow(
        features,
        layers=2,
        scalar=LogisticMixture(components=3),
        hidden=hidden,
        start=None,
        **arguments,
    ).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return flow


def test_the_force_loss_of_the_exact_model_is_zero():
    flow = smooth_flow()
    x = flow.sample(50)
    force = flow.score(x).detach()
    assert force.square().mean() > 0.1
    assert ForceMatching()(flow, {"x": x, "force": force}).value.item() < 1e-25
    own = ForceMatching(lambda x: -flow.log_prob(x))
    assert own(flow, {"x": x}).value.item() < 1e-25


def test_the_force_loss_of_two_normals_is_the_closed_form():
    mean, scale = [0.5, -1.0], [0.7, 1.5]
    flow = normal_flow(mean, scale)
    m, s = torch.tensor(mean).double(), torch.tensor(scale).double()
    x = torch.randn(1000, 2, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    # Target N(0, 1) at rows of mean 0 and variance 1: (x - m) / s^2 - x has these two moments.
    exact = ((1 / s**2 - 1) ** 2 + (m / s**2) ** 2).mean().item()
    loss = ForceMatching()(flow, {"x": x, "force": -x})
    assert loss.value.item() == pytest.approx(exact, rel=1e-10)
    assert loss.terms["force_mse"].item() == pytest.approx(exact, rel=1e-10)
    assert not loss.terms["force_mse"].requires_grad


def test_an_energy_and_its_stored_forces_agree_also_without_gradients():
    flow = smooth_flow()
    x = torch.randn(20, 2, dtype=torch.float64)
    weight = torch.rand(20, dtype=torch.float64)
    stored = ForceMatching()
    own = ForceMatching(lambda x: (x**4).sum(-1))
    value = stored(flow, {"x": x, "force": -4 * x**3, "weight": weight}).value
    torch.testing.assert_close(own(flow, {"x": x, "weight": weight}).value, value)
    with torch.no_grad():
        quiet = own(flow, {"x": x, "weight": weight}).value
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, value.detach())


def test_a_weight_of_forces_is_a_number_of_copies():
    flow = normal_flow([1.0], [2.0])
    x, force = torch.randn(2, 4, 1, dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    copies = {k: v.repeat_interleave(weight.long(), 0) for k, v in (("x", x), ("force", force))}
    batch = {"x": x, "force": force, "weight": weight / weight.mean()}
    torch.testing.assert_close(
        ForceMatching()(flow, batch).value, ForceMatching()(flow, copies).value
    )


@pytest.mark.parametrize("energy", [None, lambda x, context: ((x - context) ** 4).sum(-1)])
def test_gradients_of_the_force_loss_are_those_of_finite_differences(energy):
    flow = smooth_flow(hidden=(4,), context=2)
    both = torch.nn.ModuleDict({"flow": flow, "objective": ForceMatching(energy)})
    both.forward = lambda batch: both["objective"](both["flow"], batch).value
    x, force, context = torch.randn(3, 5, 2, dtype=torch.float64)
    batch = {"x": x, "context": context} | ({"force": force} if energy is None else {})
    names, parameters = zip(*both.named_parameters(), strict=True)

    def value(*parameters):
        return functional_call(both, dict(zip(names, parameters, strict=True)), (batch,))

    assert torch.autograd.gradcheck(value, parameters)


def test_the_energy_of_force_matching_reads_the_context_and_broadcasts():
    flow = elementwise_flow(1, context=1, hidden=(8,)).double()
    x, context = torch.randn(2, 6, 1, dtype=torch.float64)
    spring = ForceMatching(lambda x, context: 0.5 * (x - context).square().sum(-1))
    # The flow starts as N(0, 1), the target is N(context, 1).
    exact = context.square().mean()
    torch.testing.assert_close(spring(flow, {"x": x, "context": context}).value.detach(), exact)
    one = {"x": x[:1], "context": context}
    torch.testing.assert_close(spring(flow, one).value.detach(), exact)


def test_the_force_loss_is_a_mean_over_all_coordinates_of_an_event():
    flow = Flow(Conv1x1(2), StandardNormal((2, 3, 3))).double()
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    exact = (-3 * x - flow.score(x)).square().mean()
    torch.testing.assert_close(ForceMatching()(flow, {"x": x, "force": -3 * x}).value, exact)
    own = ForceMatching(lambda x: 1.5 * x.square().sum((-3, -2, -1)))
    torch.testing.assert_close(own(flow, {"x": x}).value, exact)


@pytest.mark.parametrize("stored", [True, False])
def test_a_fit_of_likelihood_and_forces_lowers_both(stored):
    mix = torch.tensor([[1.5, 0.0], [0.8, 0.5]], dtype=torch.float64)
    precision = torch.linalg.inv(mix @ mix.T)
    x = torch.randn(2000, 2, dtype=torch.float64) @ mix.T + 1.0
    data = {"x": x, "force": -(x - 1.0) @ precision} if stored else {"x": x}
    forces = ForceMatching(
        None if stored else lambda x: 0.5 * ((x - 1.0) @ precision * (x - 1.0)).sum(-1)
    )
    flow = Flow(LULinear(2), StandardNormal(2)).double()
    objective = WeightedSum((0.5, MaximumLikelihood()), (0.5, forces))
    history = fit(flow, data, objective, validation=0.2, steps=400, lr=0.02, progress=False)
    nll, error = (
        history.terms[name] for name in ("MaximumLikelihood.nll", "ForceMatching.force_mse")
    )
    entropy = 1 + math.log(2 * math.pi) + torch.logdet(mix).item()
    # 4 standard errors of the mean of a negative log-density, whose variance is D / 2 = 1.
    assert nll[-1] == pytest.approx(entropy, abs=4 / math.sqrt(1600))
    assert nll[0] > nll[-1] + 0.5
    assert error[-1] < 1e-3 * error[0]
    assert history.validation[-1] < history.validation[0]


def test_forces_train_a_flow_in_float32_without_its_density():
    flow = Flow(LULinear(1), StandardNormal(1))
    x = torch.linspace(-2, 2, 200)[:, None]
    objective = ForceMatching(lambda x: 2.0 * (x - 0.5).square().sum(-1))
    fit(flow, x, objective, steps=400, lr=0.05, batch_size=50, progress=False)
    torch.testing.assert_close(flow.score(x).detach(), -4 * (x - 0.5), atol=1e-2, rtol=1e-2)


# torch's compiler reads .grad of the loss, and hides the warning unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_fit_of_forces_is_the_same():
    x = torch.randn(200, 2)
    weights = []
    for compile in (False, True):
        flow = elementwise_flow(2, scalar="affine")
        data = {"x": x, "force": -2 * x}
        fit(flow, data, ForceMatching(), steps=20, lr=0.1, compile=compile, progress=False)
        weights.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
    torch.testing.assert_close(*weights)


def test_no_gradient_reaches_the_energy_of_force_matching():
    model = smooth_flow()
    objective = ForceMatching(model.energy)
    objective(smooth_flow(seed=2), {"x": torch.zeros(2, 2).double()}).value.backward()
    assert all(p.grad is None for p in model.parameters())


def test_infinite_forces_of_an_energy_are_named_by_fit():
    objective = ForceMatching(lambda x: x.abs().sqrt().sum(-1))
    flow = Flow(LULinear(1), StandardNormal(1))
    with pytest.raises(NonFiniteLossError, match="so the objective is at fault"):
        fit(flow, torch.tensor([[0.0], [1.0]]), objective, validation=None, progress=False)


def test_force_matching_of_a_stochastic_flow_is_refused():
    flow = Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1))
    x = torch.zeros(3, 1)
    with pytest.raises(StochasticFlowError, match="score does not exist"):
        ForceMatching()(flow, {"x": x, "force": x})


@pytest.mark.parametrize(
    ("energy", "batch", "message"),
    [
        (None, {}, r"as 'force', got \['x'\]; remedy: data=.*or ForceMatching\(energy\)"),
        (None, {"force": torch.zeros(3)}, r"shape of x, \(3, 1\), got \(3,\); remedy"),
        (None, {"force": torch.zeros(3, 2)}, r"shape of x, \(3, 1\), got \(3, 2\)"),
        (lambda x: x, {}, r"returned \(3, 1\) for samples \(3, 1\); .* number per sample, \(3,\)"),
        (lambda x: x.sum(), {}, r"returned \(\) for samples"),
        (lambda x: x.sum(-1).tolist(), {}, "returned list for samples"),
        (lambda x: x.detach().sum(-1), {}, "carries no gradient to x.*remedy"),
        (lambda x: torch.ones(3, requires_grad=True), {}, "carries no gradient to x"),
    ],
)
def test_wrong_forces_are_named(energy, batch, message):
    with pytest.raises(DataError, match=message):
        ForceMatching(energy)(elementwise_flow(1), {"x": torch.zeros(3, 1), **batch})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum(), r"terms as one pair .*, got \(\)"),
        (lambda: WeightedSum((math.inf, MaximumLikelihood())), "finite weight"),
        (lambda: WeightedSum(MaximumLikelihood()), r"pair.*remedy: .*\(1.0, MaximumLikelihood"),
        (lambda: WeightedSum((1.0, MaximumLikelihood)), "terms as one pair"),
        (lambda: ReverseKL(None), "energy as a function, got None; remedy"),
        (lambda: ReverseKL(standard_energy, samples=2.5), "an integer >= 1, got 2.5"),
        (
            lambda: ReverseKL(standard_energy, estimator="score"),
            "estimator as one of 'path', 'reparam'",
        ),
        (lambda: ReverseKL(standard_energy, samples=0), "samples as an integer >= 1"),
        (lambda: ForceMatching(2.0), "energy as a function, got 2.0; remedy"),
    ],
)
def test_wrong_objectives_are_named(make, message):
    with pytest.raises(FlowkitError, match=message):
        make()


@pytest.mark.parametrize("objective", [ReverseKL, PathKL])
def test_contexts_of_samples_count_by_their_weights(objective):
    flow = elementwise_flow(1, context=1, hidden=(8,)).double()
    context = torch.tensor([[0.0], [5.0], [7.0]], dtype=torch.float64)
    target = objective(
        lambda x, context: standard_energy(x - context) + 0 * x.sum(-1), samples=20_000
    )
    # The flow starts as N(0, 1): its divergence from N(c, 1) is c^2 / 2, which varies by c.
    divergence = 0.5 * context[:, 0].square()
    for weight in ([1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 2.5, 0.5]):
        weight = torch.tensor(weight, dtype=torch.float64)
        batch = {"context": context, "weight": weight}
        value = target(flow, batch).value.item()
        error = ((weight * context[:, 0]).square().sum() / 9 / 20_000).sqrt().item()
        assert value == pytest.approx((weight * divergence).mean().item(), abs=4 * error + 1e-9)
    with pytest.raises(DataError, match="one weight per sample"):
        target(flow, {"context": context, "weight": torch.ones(3, 1)})
