"""Gradients in inference mode and in traced programs; labels as contexts."""

import copy
import functools
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from registry import CASES
from torch import nn

from flowkit import (
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    ForceMatching,
    SlicedScoreMatching,
    coupling_flow,
    elementwise_flow,
)
from flowkit.bases import StandardNormal
from flowkit.conditioners import StandardizeContext
from flowkit.dependence import EquicorrelatedBlocks, Spatial
from flowkit.energies import NegativeLogProb
from flowkit.errors import ShapeError
from flowkit.kernels import Matern
from flowkit.molecules import FlowPotential
from flowkit.recipes import RECIPES
from flowkit.scalar import Affine, LogisticMixture
from flowkit.stochastic import MALA, OverdampedLangevin, neutra_chain
from flowkit.toys import DoubleWell, TwoMoons
from flowkit.transforms import Compose, Coupling, LULinear

D = torch.float64


def moved(flow, noise=0.3):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(noise * torch.randn_like(p))
    return flow.double()


@functools.cache
def flow_of(context=0):
    return moved(coupling_flow(2, context=context, layers=2, hidden=(8,)))


@functools.cache
def reversible():
    layers = [Coupling([0, 1], Affine()), LULinear(2), Coupling([1, 0], Affine())]
    return moved(Flow(Compose(*layers, reversible=True), StandardNormal(2)))


# Inference mode


def quadratic(x):
    return 0.5 * x.square().sum(-1)


def step(layer, x):
    return layer(x, generator=torch.Generator().manual_seed(0))[0]


def trajectory(x):
    v, draw = torch.ones_like(x), torch.Generator().manual_seed(0)
    return FlowPotential(flow_of()).langevin(x, v, dt=0.1, steps=2, friction=1.0, generator=draw).x


def nuts(x):
    options = {"chains": 1, "warmup": 2, "max_tree_depth": 2}
    generator = torch.Generator().manual_seed(0)
    return neutra_chain(flow_of(), DoubleWell(), steps=4, generator=generator, **options).x


WELL = DoubleWell().double()
CALLS = {
    "score": lambda x: flow_of().score(x),
    "score of a reversible flow": lambda x: reversible().score(x),
    "score given a context": lambda x: flow_of(2).score(x, x.flip(-1)),
    "energy": lambda x: flow_of().energy(x),
    "force of an energy": lambda x: WELL.force(x),
    "force of a flow as energy": lambda x: NegativeLogProb(flow_of(2), context=2).force(
        x, x.flip(-1)
    ),
    "force of a flow as potential": lambda x: FlowPotential(flow_of(2), context=x[0]).force(x),
    "dynamics": trajectory,
    "score of a toy": lambda x: TwoMoons().score(x),
    "Langevin layer": lambda x: step(OverdampedLangevin(WELL, steps=2), x),
    "MALA layer": lambda x: step(MALA(WELL, steps=2), x),
    "force matching": lambda x: ForceMatching(quadratic)(flow_of(), {"x": x}).value,
    **{
        f"score matching, {name}": lambda x, objective=objective: (
            torch.manual_seed(0),
            objective(flow_of(), {"x": x.abs() + 0.1}).value,
        )[1]
        for name, objective in {
            "exact": SlicedScoreMatching(slices=None),
            "sliced": SlicedScoreMatching(),
            "denoising": DenoisingScoreMatching(),
            "finite-difference": FiniteDifferenceScoreMatching(),
            "multiplicative": DenoisingScoreMatching(multiplicative=True),
        }.items()
    },
    "score matching given a context": lambda x: (
        SlicedScoreMatching(slices=None)(flow_of(2), {"x": x, "context": x.flip(-1)}).value
    ),
    "NUTS through a flow": nuts,
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_in_inference_mode_are_those_outside(name):
    call = CALLS[name]
    x = torch.randn(5, 2, dtype=D)
    with torch.no_grad():
        expected = call(x)
    with torch.inference_mode():
        # Both a tensor from outside and one that was made here.
        for given in (x, x + 0):
            found = call(given)
            assert not found.requires_grad
            torch.testing.assert_close(found, expected)


def test_what_inference_mode_made_has_a_score_outside():
    flow, x = flow_of(2), torch.randn(5, 2, dtype=D)
    with torch.inference_mode():
        made = x.clone()
    torch.testing.assert_close(flow.score(made, made), flow.score(x, x))
    torch.testing.assert_close(WELL.force(made), WELL.force(x))
    torch.testing.assert_close(TwoMoons().score(made), TwoMoons().score(x))


@pytest.mark.parametrize("kind", ["one parameter", "several parameters"])
def test_covariances_are_fitted_in_inference_mode(kind):
    covariance = EquicorrelatedBlocks([0, 0, 1, 1, 2]).double()
    if kind == "several parameters":
        covariance = Spatial(torch.arange(5.0).unsqueeze(-1), Matern(1, nu=0.5)).double()
    other, u = copy.deepcopy(covariance), torch.randn(5, 3, dtype=D).cumsum(0)
    covariance.fit_parameters(u)
    with torch.inference_mode():
        other.fit_parameters(u + 0)
    torch.testing.assert_close(list(other.parameters()), list(covariance.parameters()))


def test_inference_mode_leaves_no_graph_and_no_gradient_behind():
    flow = flow_of()
    with torch.inference_mode():
        score = flow.score(torch.zeros(3, 2, dtype=D))
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    assert score.grad_fn is None
    assert all(p.grad is None for p in flow.parameters())


def test_a_flow_that_was_made_in_inference_mode_says_so():
    with torch.inference_mode():
        flow = elementwise_flow(2)
    for call in (flow.score, FlowPotential(flow).force):
        with pytest.raises(ShapeError, match=r"inference_mode.*remedy.*copy.deepcopy"):
            call(torch.zeros(3, 2))
    assert copy.deepcopy(flow).score(torch.zeros(3, 2)).shape == (3, 2)


def test_a_reversible_stack_goes_backwards_in_inference_mode():
    flow = reversible()
    x = torch.randn(5, 2, dtype=D, requires_grad=True)
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    total = flow.log_prob(x).sum()
    with torch.inference_mode():
        (found,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(found, expected)


# torch.jit.trace

OPTIONS = {
    "coupling_flow": [
        {},
        {"scalar": "affine"},
        {"scalar": "mixture"},
        {"conditioner": "residual", "scalar": "smooth"},
        {"linear": None, "base": "student_t"},
        {"linear": "orthogonal", "base": "mixture"},
    ],
    "autoregressive_flow": [{}, {"scalar": "affine", "base": "logistic"}],
    "box_flow": [{}, {"n_frequencies": 2}],
    "kernelised_flow": [{"points": 4}, {"n_frequencies": 4}],
    "smooth_flow": [{}, {"circular": True}, {"structure": "autoregressive"}],
    "conv_flow": [{"event_shape": (1, 4, 4), "layers": 1}],
    "glow_flow": [{"event_shape": (1, 4, 4), "layers": 1}],
    "tail_adaptive_flow": [{"tails": [3.0, None]}, {"tails": [3.0, None], "variant": "ttf"}],
}
EXACT = [name for name in RECIPES if name != "stochastic_flow"]
RECIPE_CASES = [(name, options) for name in EXACT for options in OPTIONS.get(name, [{}])]


def built(name, options, context=0):
    known = inspect.signature(RECIPES[name]).parameters
    given = {"features": 2, "event_shape": 2, "layers": 2}
    given |= {"hidden": (8,)} if context or name != "elementwise_flow" else {}
    given |= {"lower": -9.0, "upper": 9.0} if name == "box_flow" else {}
    given |= {"context": context} if context else {}
    return moved(RECIPES[name](**{k: v for k, v in given.items() if k in known} | options))


def check_trace(function, inputs, frozen=None):
    """A traced function has the values and gradients of the function, also after optimisation.

    TorchScript profiles the first calls and rewrites the program then.
    """
    traced = torch.jit.trace(function, inputs[0].clone(), check_trace=False)
    for x in [*inputs[:3], *inputs]:
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        expected, found = function(ours), traced(theirs)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        (expected,) = torch.autograd.grad(expected.sum(), ours)
        (found,) = torch.autograd.grad(found.sum(), theirs)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


traced = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
legacy = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


@traced
@legacy
@pytest.mark.parametrize(("name", "options"), RECIPE_CASES, ids=str)
def test_traced_log_densities_have_the_gradients_of_the_flow(name, options):
    flow = built(name, options).requires_grad_(False)
    # Also of one event without a batch, as Pyro's potential energy has it.
    for shapes in ((5, 5, 5, 9), ((), (), ())):
        check_trace(lambda x: flow.log_prob(x), [flow.sample(shape) for shape in shapes])


@traced
@legacy
def test_parameters_of_a_traced_flow_get_their_gradients():
    flow = built("coupling_flow", {})
    x = torch.randn(3, 5, 2, dtype=D)
    program = torch.jit.trace(flow, x[0], check_trace=False)
    parameters = list(flow.parameters())
    for rows in (*x, *x):
        expected = torch.autograd.grad(flow(rows).sum(), parameters)
        found = torch.autograd.grad(program(rows).sum(), parameters)
        torch.testing.assert_close(found, expected)


# Every conditioner and every kind of linear layer, in both directions.
LAYERS = [
    "Compose-of-two-scales",
    "Compose-reversible",
    "Conv2d",
    "LULinear-5-in-groups",
    "OrthogonalLinear-5-two-reflections",
    "Whiten-3",
    "autoregressive-3-asinh",
    "autoregressive-3-fourier-of-interval",
    "autoregressive-3-jacobi-of-affine",
    "autoregressive-5-context-few-units-of-spline",
    "coupling-2-context-of-random-fourier-features",
    "coupling-2-of-kernels-kept",
    "coupling-3-context-of-sums-of-kernels-of-spline",
    "coupling-5-in-groups-context",
    "coupling-5-residual-of-spline",
    "coupling-image-context-of-spline",
    "products-autoregressive",
    "products-coupling",
]


@traced
@legacy
@pytest.mark.parametrize("id_", LAYERS)
def test_traced_layers_have_the_gradients_of_the_layer(id_):
    case = next(case for case in CASES if case.id == id_)
    layer = moved(case.build()).requires_grad_(False)
    event = case.options["x"].shape[1:] if "x" in case.options else layer.event_shape
    event = tuple(size or 2 for size in event)
    context = torch.randn(layer.context_size, dtype=D) if layer.context_size else None
    # Between 0 and 1, which is inside every domain.
    data = [0.1 + 0.8 * torch.rand(n, *event, dtype=D) for n in (5, 5, 5, 9)]
    noise = [layer(x, context)[0] for x in data]

    def numbers(x, direction):
        out, log_det = direction(x, context)
        return out.flatten(1).sin().sum(-1) + log_det

    check_trace(lambda x: numbers(x, layer), data)
    # A traced root search takes all of its steps, which are slow to optimise; see below.
    if not id_.startswith("products"):
        check_trace(lambda z: numbers(z, layer.inverse), noise)


@traced
@legacy
def test_a_traced_root_search_does_not_stop_where_the_example_did():
    scalar = LogisticMixture(2)
    params = torch.tensor([0.0, 1.0, -3.0, 3.0, -1.0, 2.0])
    near, far = torch.tensor([0.0, 0.1]), torch.tensor([-40.0, 25.0])
    with torch.no_grad():
        program = torch.jit.trace(lambda y: scalar.inverse(y, params)[0], near, check_trace=False)
        for y in (near, far):
            torch.testing.assert_close(program(y), scalar.inverse(y, params)[0])


@traced
@legacy
def test_traced_distribution_functions_have_their_gradients():
    x = torch.randn(4, 5, 2, dtype=D)
    scalar = moved(elementwise_flow(1)).requires_grad_(False)
    check_trace(lambda x: scalar.log_survival(x), list(x[..., :1]))


@traced
@legacy
def test_nuts_with_a_compiled_program_draws_what_nuts_draws():
    flow = moved(coupling_flow(2, layers=1, hidden=(8,))).requires_grad_(False)

    def model():
        x = pyro.sample("x", flow.distribution())
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([0.5, -0.5]).double())

    draws = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        kernel = NUTS(model, jit_compile=compiled, ignore_jit_warnings=True, max_tree_depth=3)
        mcmc = MCMC(kernel, num_samples=8, warmup_steps=8, disable_progbar=True)
        mcmc.run()
        draws.append(mcmc.get_samples()["x"])
    # The same numbers to rounding, which a chain of this length does not blow up.
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-5, atol=1e-5)


# Labels


LABELS = [
    (name, {} if start == "default" else {"start": start})
    for name, f in RECIPES.items()
    for start in ("default", None)
    if start == "default" or "start" in inspect.signature(f).parameters
    if "context" in inspect.signature(f).parameters and name != "stochastic_flow"
]


@pytest.mark.parametrize(("name", "options"), LABELS, ids=str)
def test_integer_and_boolean_labels_are_read_as_numbers(name, options):
    options = {"tails": [None, None], **options} if name == "tail_adaptive_flow" else options
    flow = built(name, options, context=1)
    if isinstance(flow.embedding, StandardizeContext):
        flow.embedding.initialize(torch.tensor([[0], [1], [1]]))
    x = flow.sample(3, torch.ones(1, dtype=D))
    for label in (torch.tensor([1]), torch.tensor([True]), torch.tensor([1], dtype=torch.uint8)):
        number = label.to(D)
        torch.testing.assert_close(flow.log_prob(x, label), flow.log_prob(x, number))
        torch.testing.assert_close(flow.score(x, label), flow.score(x, number))
        torch.testing.assert_close(flow.energy(x, label), flow.energy(x, number))
        torch.testing.assert_close(flow.to_noise(x, label), flow.to_noise(x, number))
        torch.testing.assert_close(flow.log_normalizer(label), flow.log_normalizer(number))
        view = flow.distribution(label)
        torch.testing.assert_close(view.log_prob(x), flow.log_prob(x, number))
        draws = [
            flow.sample(4, given, generator=torch.Generator().manual_seed(0))
            for given in (label, number)
        ]
        torch.testing.assert_close(*draws)


def test_labels_of_a_scalar_flow_give_its_distribution_function():
    flow = moved(elementwise_flow(1, context=1, hidden=(8,)))
    label, q = torch.tensor([[2], [0]]), torch.tensor([0.2, 0.7], dtype=D)
    x = flow.quantile(q, label)
    torch.testing.assert_close(flow.cdf(x, label), q)
    torch.testing.assert_close(flow.cdf(x, label.double()), q)


def test_an_embedding_of_labels_gets_them_as_they_are():
    class Table(nn.Embedding):
        def forward(self, labels):
            assert not labels.is_floating_point()
            return super().forward(labels)

    layers = Compose(LULinear(2), Coupling([0, 1], Affine(), context=3))
    flow = moved(Flow(layers, StandardNormal(2), embedding=Table(4, 3)))
    labels = torch.tensor([0, 3, 1])
    x = torch.randn(3, 2, dtype=D)
    expected = torch.stack([flow.log_prob(x[i], labels[i]) for i in range(3)])
    torch.testing.assert_close(flow.log_prob(x, labels), expected)
    view = flow.distribution(labels)
    assert view.batch_shape == (3,)
    torch.testing.assert_close(view.log_prob(x), expected)
    assert view.expand((5, 3)).sample((2,)).shape == (2, 5, 3, 2)


def test_complex_contexts_and_data_are_refused():
    flow = flow_of(2)
    x = torch.zeros(3, 2, dtype=D)
    for given in ((x, x + 0j), (x + 0j, x)):
        with pytest.raises(ShapeError, match="computes in torch.float64, but .* is torch.complex"):
            flow.log_prob(*given)


UNCONDITIONAL = {
    "log_prob": lambda f, x, c: f.log_prob(x, c),
    "log_prob_bound": lambda f, x, c: f.log_prob_bound(x, c),
    "score": lambda f, x, c: f.score(x, c),
    "energy": lambda f, x, c: f.energy(x, c),
    "to_noise": lambda f, x, c: f.to_noise(x, c),
    "to_data": lambda f, x, c: f.to_data(x, c),
    "sample": lambda f, x, c: f.sample(2, c),
    "rsample": lambda f, x, c: f.rsample(2, c),
    "sample_and_log_prob": lambda f, x, c: f.rsample_and_log_prob(2, c),
    "log_normalizer": lambda f, x, c: f.log_normalizer(c),
    "entropy": lambda f, x, c: f.entropy(8, c),
    "cdf": lambda f, x, c: f.cdf(x, c),
    "survival": lambda f, x, c: f.survival(x, c),
    "quantile": lambda f, x, c: f.quantile(x[:, 0], c),
    "distribution": lambda f, x, c: f.distribution(c),
    "initialize": lambda f, x, c: f.initialize(x, c),
}


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_an_unconditional_flow_refuses_a_context_in_every_method(name):
    flow = elementwise_flow(1)
    with pytest.raises(ShapeError, match=r"unconditional.*remedy: leave the context out"):
        UNCONDITIONAL[name](flow, torch.full((3, 1), 0.5), torch.zeros(3, 2))


def test_an_unconditional_flow_proposes_for_an_energy_that_reads_the_context():
    flow = moved(coupling_flow(2, layers=1, hidden=(8,)))
    context = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=D)

    def energy(x, context):
        return 0.5 * (x - context).square().sum(-1)

    x, log_weight = flow.sample_with_log_weight(3, energy, context)
    assert x.shape == (3, 2, 2)
    torch.testing.assert_close(log_weight, -energy(x, context) - flow.log_prob(x))
    back = flow.reverse_log_weight(x[0, 0], energy, context)
    torch.testing.assert_close(back, -energy(x[0, 0], context) - flow.log_prob(x[0, 0]))
