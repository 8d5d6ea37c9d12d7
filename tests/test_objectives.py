"""Objectives against closed forms."""

import math

import pytest
import torch

from flowkit import Flow, MaximumLikelihood, ReverseKL, WeightedSum, elementwise_flow
from flowkit.bases import StandardNormal
from flowkit.errors import DataError
from flowkit.transforms import Compose, Dequantize, LULinear, Standardize


def normal_flow(mean, scale):
    """A flow that is N(mean, scale^2) in every feature."""
    flow = Flow(LULinear(len(mean)), StandardNormal(len(mean))).double()
    with torch.no_grad():
        flow.transform.lower_upper.diagonal().copy_(-torch.tensor(scale).double().log())
        flow.transform.bias.copy_(-torch.tensor(mean) / torch.tensor(scale))
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
    with pytest.raises(DataError, match="one weight a row"):
        MaximumLikelihood()(
            elementwise_flow(1), {"x": torch.zeros(3, 1), "weight": torch.ones(3, 1)}
        )


def test_likelihood_of_counts_uses_the_bound():
    flow = Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1))
    loss = MaximumLikelihood()(flow, {"x": torch.zeros(100_000, 1)})
    # u ~ U[0, 1): the mean of u^2 / 2 is 1/6, its standard error 0.149 / sqrt(1e5)
    exact = 0.5 * math.log(2 * math.pi) + 1 / 6
    assert loss.value.item() == pytest.approx(exact, abs=4 * 0.149 / math.sqrt(1e5))


@pytest.mark.parametrize("estimator", ["reparam", "path"])
def test_reverse_kl_of_two_normals(estimator):
    mean, scale = [0.5, -1.0], [0.7, 1.5]
    flow = normal_flow(mean, scale)
    exact = sum(0.5 * (s * s + m * m - 1) - math.log(s) for m, s in zip(mean, scale, strict=True))
    n = 100_000
    objective = ReverseKL(standard_energy, estimator, samples=n)
    value = objective(flow, {}).value.item()
    x, log_q = flow.sample_and_log_prob(n)
    error = (log_q + standard_energy(x)).std().item() / math.sqrt(n)
    assert value == pytest.approx(exact, abs=4 * error)


def gradient(flow, estimator, samples):
    flow.zero_grad()
    ReverseKL(standard_energy, estimator, samples)(flow, {}).value.backward()
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
    assert seen == [((6, 4, 1), (4, 2))]
    assert loss.value.shape == ()


def test_an_energy_of_the_wrong_shape_is_named():
    objective = ReverseKL(lambda x: x, samples=3)
    with pytest.raises(DataError, match="one number a sample"):
        objective(elementwise_flow(1), {})


@pytest.mark.parametrize("energy", [lambda x: 0.0, lambda x: x.detach().numpy()])
def test_an_energy_that_returns_no_tensor_is_named(energy):
    with pytest.raises(DataError, match="expected a torch.Tensor with one number a sample"):
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum(), "pairs"),
        (lambda: WeightedSum((math.inf, MaximumLikelihood())), "finite weight"),
        (lambda: WeightedSum(MaximumLikelihood()), r"pairs.*remedy: .*\(1.0, MaximumLikelihood"),
        (lambda: WeightedSum((1.0, MaximumLikelihood)), "pairs"),
        (lambda: ReverseKL(None), "energy as a function of x, got None; remedy"),
        (lambda: ReverseKL(standard_energy, samples=2.5), "whole number, got 2.5"),
        (lambda: ReverseKL(standard_energy, "score"), "'reparam', 'path'"),
        (lambda: ReverseKL(standard_energy, samples=0), "samples >= 1"),
    ],
)
def test_wrong_objectives_are_named(make, message):
    with pytest.raises(DataError, match=message):
        make()
