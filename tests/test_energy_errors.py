"""Energies that carry no gradient, have the wrong sign, shape or dtype, or are not finite."""

import math
import warnings

import pytest
import torch
from torch import distributions as td

from flowkit import (
    AfterPreprocessing,
    Flow,
    ForceMatching,
    MaximumLikelihood,
    PathKL,
    ReverseKL,
    WeightedSum,
    autoregressive_flow,
    box_flow,
    coupling_flow,
    elementwise_flow,
    fit,
    smooth_flow,
    stochastic_flow,
    tail_adaptive_flow,
)
from flowkit.bases import StandardNormal, Uniform
from flowkit.energies import (
    CallableEnergy,
    ConditionalEnergy,
    Energy,
    Interpolation,
    NegativeLogProb,
)
from flowkit.energies.base import as_energy
from flowkit.errors import ArgumentError, DataError, NonFiniteLossError, ShapeError
from flowkit.recipes import insert_stochastic_layers
from flowkit.stochastic import (
    HMC,
    MALA,
    Metropolis,
    OverdampedLangevin,
    UnderdampedLangevin,
    independence_chain,
    neutra_chain,
)
from flowkit.stochastic.paths import sample_paths
from flowkit.toys import DoubleWell, Funnel, GaussianMixture, Ring
from flowkit.transforms import Compose, DenseLinear, Logit

PARAMETER = torch.ones((), requires_grad=True)
NORMAL = td.Normal(0.0, 1.0)


def without_grad(x):
    with torch.no_grad():
        return x.square().sum(-1)


# Of vectors; each loses the gradient to x on another way.
LOST = {
    "numpy": lambda x: torch.as_tensor((x.detach().numpy() ** 2).sum(-1)),
    "numpy in float64": lambda x: torch.as_tensor((x.detach().double().numpy() ** 2).sum(-1)),
    "detach": lambda x: x.detach().square().sum(-1),
    "no_grad": without_grad,
    "copy": lambda x: torch.tensor(x.tolist(), dtype=x.dtype).square().sum(-1),
    "gradient to a parameter only": lambda x: PARAMETER * x.detach().square().sum(-1),
}
# What torch differentiates to zero everywhere.
FLAT_STEPS = {"round": lambda x: x.round().square().sum(-1), "sign": lambda x: x.sign().sum(-1)}


def flow(features=2, **options):
    torch.manual_seed(0)
    return coupling_flow(features, layers=2, hidden=(8,), **options)


def langevin(**options):
    torch.manual_seed(0)
    return stochastic_flow(
        2, energy="double_well", layer="langevin", steps=2, hidden=(8,), **options
    )


OBJECTIVES = {
    "reverse kl, path": lambda u: ReverseKL(u, estimator="path", samples=16)(flow(), {}),
    "reverse kl, reparam": lambda u: ReverseKL(u, estimator="reparam", samples=16)(flow(), {}),
    "reverse kl, one sample": lambda u: ReverseKL(u, samples=1)(flow(), {}),
    "reverse kl, log_prob": lambda u: ReverseKL(log_prob=lambda x: -u(x), samples=9)(flow(), {}),
    "path kl": lambda u: PathKL(u, samples=16)(langevin(), {}),
    "path kl, reinforce": lambda u: PathKL(u, samples=16, gradient="reinforce")(langevin(), {}),
    "force matching": lambda u: ForceMatching(u)(flow(), {"x": torch.randn(5, 2)}),
    "in a sum": lambda u: WeightedSum((0.5, ReverseKL(u)))(flow(), {}),
}
LAYERS = {
    "mala": lambda u: MALA(u)(torch.randn(5, 2)),
    "hmc": lambda u: HMC(u)(torch.randn(5, 2)),
    "overdamped": lambda u: OverdampedLangevin(u)(torch.randn(5, 2)),
    "underdamped": lambda u: UnderdampedLangevin(u)(torch.randn(5, 2)),
    "force": lambda u: u.force(torch.randn(5, 2)),
    "interpolated": lambda u: Interpolation(DoubleWell(), u, 0.5).force(torch.randn(5, 2)),
    "interpolated from": lambda u: Interpolation(u, DoubleWell(), 0.5).force(torch.randn(5, 2)),
    "conditional": lambda u: ConditionalEnergy(u, [True, False]).force(
        torch.randn(5, 1), torch.randn(5, 1)
    ),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("energy", [*LOST, *FLAT_STEPS])
def test_an_objective_refuses_an_energy_without_a_gradient(objective, energy):
    if (objective, energy) == ("reverse kl, one sample", "sign"):
        return  # one of four values, by chance the same at another place
    with pytest.raises(DataError, match=r"carries no gradient to x.*remedy: compute it from x"):
        OBJECTIVES[objective]({**LOST, **FLAT_STEPS}[energy])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("energy", LOST)
def test_a_layer_that_needs_forces_refuses_an_energy_without_a_gradient(layer, energy):
    if energy == "gradient to a parameter only" and layer.startswith("interpolated"):
        return  # its values do not tell it from an energy with a gradient to x
    with pytest.raises(DataError, match="carries no gradient to x"):
        LAYERS[layer](CallableEnergy(LOST[energy], 2))


@pytest.mark.parametrize("energy", LOST)
def test_a_chain_with_gradients_refuses_an_energy_without_one(energy):
    with pytest.raises(DataError, match="carries no gradient to x"):
        neutra_chain(flow(), LOST[energy], steps=4, chains=1)


def test_the_case_of_a_program_that_is_not_torch():
    def energy(x):
        return torch.as_tensor(0.5 * ((x.detach().numpy() - 3) ** 2).sum(-1))

    with pytest.raises(DataError, match="carries no gradient to x"):
        fit(flow(), None, ReverseKL(energy), steps=3, lr=1e-2, progress=False)
    # With its force it trains: the mean moves from 0 towards 3.
    with_force = CallableEnergy(energy, 2, force=lambda x: 3.0 - x)
    trained = elementwise_flow(2, scalar="affine")
    fit(trained, None, ReverseKL(with_force), steps=300, lr=3e-2, progress=False)
    assert (trained.sample(4000).mean(0) - 3).abs().max() < 0.2


FINE = {
    "zeros": lambda x: x.new_zeros(x.shape[:-1]),
    "a parameter": lambda x: PARAMETER.expand(x.shape[:-1]),
    "flat between walls": lambda x: torch.where(x.abs().amax(-1) < 100, 0.0, torch.inf),
    "in float64": lambda x: x.double().square().sum(-1),
}


@pytest.mark.parametrize("energy", FINE)
def test_no_false_alarm_for_a_constant_or_a_finer_dtype(energy):
    for name in ("reverse kl, path", "reverse kl, reparam", "reverse kl, one sample", "path kl"):
        OBJECTIVES[name](FINE[energy])


PARTS = {
    "detach": lambda x: x[..., 0].square() + x[..., 1].detach().square(),
    "numpy": lambda x: x[..., 0].square() + torch.as_tensor(x[..., 1].detach().numpy()).cos(),
}
WHOLE = {
    "one coordinate": lambda x: x[..., 0].square(),
    "a wall": lambda x: x[..., 0].square() + 100 * (x[..., 1].abs() - 1).clamp(min=0).square(),
    "a far wall": lambda x: x[..., 0].square() + (x[..., 1].abs() - 20).clamp(min=0).square(),
    "noise": lambda x: x[..., 0].square() + torch.randn(x.shape[:-1]),
}


@pytest.mark.parametrize("estimator", ["path", "reparam"])
def test_a_gradient_that_is_lost_for_some_coordinates(estimator):
    for energy in PARTS.values():
        with pytest.raises(DataError, match="carries no gradient to x"):
            ReverseKL(energy, estimator=estimator)(flow(), {})
    for energy in WHOLE.values():
        ReverseKL(energy, estimator=estimator)(flow(), {})


def test_an_energy_of_a_torch_distribution_has_samples_of_a_generator():
    energy = NegativeLogProb(wide(torch.float32))
    first, second = (energy.sample(3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert energy.sample(3).shape == (3, 2)
    torch.testing.assert_close(energy(first), -wide(torch.float32).log_prob(first))


def test_no_false_alarm_where_no_gradient_is_needed():
    numpy = LOST["numpy"]
    with torch.no_grad():
        for objective in (ReverseKL(numpy), PathKL(numpy)):
            objective(langevin() if isinstance(objective, PathKL) else flow(), {})
    frozen = flow().requires_grad_(False)
    assert ReverseKL(numpy)(frozen, {}).value.isfinite()
    # Weights need values only, also where gradients are enabled.
    assert sample_paths(flow(), 5, numpy).log_weight.isfinite().all()
    assert flow().sample_with_log_weight(5, numpy)[1].isfinite().all()
    assert Metropolis(CallableEnergy(numpy, 2))(torch.randn(5, 2))[0].isfinite().all()
    assert independence_chain(flow(), numpy, steps=4).x.isfinite().all()
    some = flow()
    next(some.parameters()).requires_grad_(False)
    ReverseKL(lambda x: x.square().sum(-1))(some, {}).value.backward()


def test_a_flat_base_needs_no_force_in_an_interpolation():
    flat = NegativeLogProb(Uniform(2, lower=-5.0, upper=5.0))
    x = torch.randn(6, 2)
    half = Interpolation(flat, DoubleWell(), 0.5)
    torch.testing.assert_close(half.force(x), 0.5 * DoubleWell().force(x))


WRONG = {
    "one column": (lambda x: x.square().sum(-1, keepdim=True), r"returned \(\d+, (\d+, )?1\) for"),
    "one number": (lambda x: x.square().sum(), r"returned \(\) for"),
    "no sum": (lambda x: x, r"returned \(\d+, (\d+, )?2\) for"),
    "a float": (lambda x: 1.0, "returned float"),
    "numpy": (lambda x: x.detach().numpy().sum(-1), "returned ndarray"),
    "integers": (lambda x: x.long().sum(-1), "returned torch.int64 .* loses digits; remedy"),
    "booleans": (lambda x: x.sum(-1) > 0, "returned torch.bool .* loses digits"),
    "bfloat16": (lambda x: x.sum(-1).bfloat16(), "returned torch.bfloat16"),
    "another device": (lambda x: x.sum(-1).to("meta"), "on meta for .*s on cpu; remedy"),
}


class Own(Energy):
    """An energy of a user's own class."""

    def __init__(self, function):
        super().__init__((2,))
        self.function = function

    def energy(self, x, context=None):
        return self.function(x)


@pytest.mark.parametrize("name", WRONG)
def test_an_energy_of_the_wrong_shape_or_dtype_is_refused_wherever_it_enters(name):
    function, message = WRONG[name]
    entries = [
        *(
            lambda call=call: call(function)
            for entry, call in OBJECTIVES.items()
            if entry != "reverse kl, log_prob"
        ),
        lambda: flow().sample_with_log_weight(5, function),
        lambda: flow().reverse_log_weight(torch.zeros(5, 2), function),
        lambda: independence_chain(flow(), function, steps=4),
        lambda: CallableEnergy(function, 2)(torch.zeros(5, 2)),
        lambda: Own(function)(torch.zeros(5, 2)),
        lambda: Metropolis(Own(function))(torch.zeros(5, 2)),
        lambda: MALA(CallableEnergy(function, 2))(torch.zeros(5, 2)),
    ]
    for entry in entries:
        with pytest.raises(DataError, match=message):
            entry()


def test_an_option_that_could_not_do_anything_is_refused():
    with pytest.raises(DataError, match="a layer that has an energy.*remedy: resample=None"):
        sample_paths(flow(), 5, DoubleWell(), resample=0.5)
    reads = CallableEnergy(lambda x, c: x.sum(-1), 2, context=2)
    with pytest.raises(ShapeError, match="reads a context of 2 features, expected none or 3"):
        as_energy(reads, (2,), context=3)
    assert as_energy(reads, (2,), context=2) is reads
    assert as_energy(DoubleWell(), (2,), context=3).context_size == 0


def test_a_float32_energy_of_float64_samples_is_refused():
    with pytest.raises(DataError, match="float32 for samples in torch.float64, which loses"):
        ReverseKL(lambda x: x.float().square().sum(-1))(flow().double(), {})
    force = CallableEnergy(lambda x: x.square().sum(-1), 2, force=lambda x: (-2 * x).float())
    with pytest.raises(
        DataError, match="the force returned torch.float32 for samples in torch.float64"
    ):
        force.force(torch.zeros(3, 2).double())


def log_prob(x):
    return NORMAL.log_prob(x).sum(-1)


ENTRIES = {
    "ReverseKL": lambda **u: ReverseKL(**u)(flow(), {}),
    "PathKL": lambda **u: PathKL(**u)(flow(), {}),
    "ForceMatching": lambda **u: ForceMatching(**u)(flow(), {"x": torch.ones(5, 2)}),
    "sample_paths": lambda **u: sample_paths(flow(), 5, **u),
    "sample_with_log_weight": lambda **u: flow().sample_with_log_weight(5, **u),
    "reverse_log_weight": lambda **u: flow().reverse_log_weight(torch.zeros(5, 2), **u),
    "independence_chain": lambda **u: independence_chain(flow(), steps=4, **u),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_log_density_as_an_energy_warns_once_and_has_a_place_of_its_own(entry):
    with pytest.warns(UserWarning, match=rf"falls without bound.*remedy: {entry}\(log_prob=") as w:
        ENTRIES[entry](energy=log_prob)
    assert len(w) == 1
    with pytest.warns(UserWarning, match=rf"rises without bound.*remedy: {entry}\(energy="):
        ENTRIES[entry](log_prob=lambda x: -log_prob(x))
    for right in ({"log_prob": log_prob}, {"energy": lambda x: -log_prob(x)}):
        ENTRIES[entry](**right)
    with pytest.raises(
        ArgumentError, match=f"{entry} expected either energy or log_prob, got both"
    ):
        ENTRIES[entry](energy=log_prob, log_prob=log_prob)
    if entry != "ForceMatching":
        with pytest.raises(ArgumentError, match=f"{entry} expected energy as a function, got N"):
            ENTRIES[entry]()


def test_a_fit_warns_once_of_a_log_density():
    data = torch.randn(200, 2)
    objective = WeightedSum((1.0, MaximumLikelihood()), (0.1, ReverseKL(log_prob, samples=8)))
    with pytest.warns(UserWarning, match="falls without bound") as caught:
        fit(flow(), data, objective, epochs=3, ema=0.9, batch_size=50, progress=False)
    assert len(caught) == 1


@pytest.mark.parametrize("make", [stochastic_flow, insert_stochastic_layers])
def test_recipes_with_chains_warn_of_a_log_density(make):
    first = 2 if make is stochastic_flow else flow()
    with pytest.warns(UserWarning, match="falls without bound.*remedy: energy=lambda x: -log_pr"):
        make(first, energy=log_prob)
    make(first, energy=NegativeLogProb(StandardNormal(2)))


@pytest.mark.parametrize("estimator", ["path", "reparam"])
def test_both_ways_to_name_a_target_are_the_same_objective(estimator):
    losses = []
    for target in ({"energy": lambda x: -log_prob(x)}, {"log_prob": log_prob}):
        torch.manual_seed(1)
        model = flow()
        value = ReverseKL(**target, estimator=estimator)(model, {}).value
        value.backward()
        losses.append((value, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*losses)
    x = torch.randn(7, 2)
    own = [ForceMatching(**t)(flow(), {"x": x}).value for t in ({"log_prob": log_prob},)]
    # The start is not a normal: force -x against its score.
    torch.testing.assert_close(own[0], (flow().score(x) + x).square().mean())


def test_conditional_log_densities_are_known_too():
    model = flow(context=3)

    def conditional(x, context):
        return log_prob(x - context[..., :1])

    for shape in ((3,), (5, 3), (2, 5, 3)):
        context = {"context": torch.zeros(shape)}
        with pytest.warns(UserWarning, match="falls without bound"):
            ReverseKL(conditional, samples=4)(model, context)
        ReverseKL(log_prob=conditional, samples=4)(model, context)


def wide(dtype):
    return td.MultivariateNormal(
        torch.tensor([1e3, -1e3], dtype=dtype), torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=dtype)
    )


LOG_DENSITIES = {
    "normal": log_prob,
    "far and correlated": lambda x: wide(x.dtype).log_prob(x),
    "wide": lambda x: td.Normal(0.0, 1e5).log_prob(x).sum(-1),
    "student": lambda x: td.StudentT(0.5).log_prob(x).sum(-1),
    "cauchy": lambda x: td.Cauchy(0.0, 1.0).log_prob(x).sum(-1),
    "laplace": lambda x: td.Laplace(0.0, 1.0).log_prob(x).sum(-1),
    "mixture": lambda x: -GaussianMixture.ring().to(x)(x),
    "double well": lambda x: -DoubleWell()(x),
    "funnel": lambda x: -Funnel(2)(x),
    "ring": lambda x: -Ring()(x),
    "bounded": lambda x: torch.where(x.abs().amax(-1) < 1, 0.0, -torch.inf) + 0 * x.sum(-1),
    "coupling": lambda x: coupling_flow(2).to(x).log_prob(x),
    "autoregressive": lambda x: autoregressive_flow(2, layers=2, hidden=(8,)).to(x).log_prob(x),
    "mixture flow": lambda x: coupling_flow(2, scalar="mixture", hidden=(8,)).to(x).log_prob(x),
    "smooth": lambda x: smooth_flow(2, hidden=(8,)).to(x).log_prob(x),
    "dense": lambda x: coupling_flow(2, scalar="affine", linear="dense").to(x).log_prob(x),
    "tails": lambda x: tail_adaptive_flow(2, tails=[2.0, None]).to(x).log_prob(x),
}


def warned(energy, model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            ReverseKL(energy, samples=4)(model, {})
    return len(caught)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOG_DENSITIES)
def test_log_densities_are_told_from_energies(name, dtype):
    density, model = LOG_DENSITIES[name], elementwise_flow(2).to(dtype)
    assert warned(density, model) == 1
    assert warned(lambda x: -density(x), model) == 0


LEGAL = {
    "flat": lambda x: 0 * x.sum(-1),
    "flat tails": lambda x: -torch.exp(-x.square().sum(-1)),
    "bounded": lambda x: torch.tanh(x).sum(-1),
    "periodic": lambda x: 100 * torch.cos(x).sum(-1),
    "regularised": lambda x: x.square().sum(-1).clamp(max=1e4),
    "repulsion": lambda x: 557 / torch.linalg.vector_norm(x, dim=-1),
    "cohesion": lambda x: x.square().sum(-1) ** -6 - x.square().sum(-1) ** -3,
    "far from 0": lambda x: (x - 1.7e9).square().sum(-1),
    "wells far apart": lambda x: (x.square().sum(-1) / 1e14 - 1).square(),
    "one side": lambda x: x.sum(-1),
    "gamma": lambda x: x.sum(-1) - 2 * x.log().sum(-1),
    "hard wall": lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1), torch.inf),
    "saddle": lambda x: x[..., 0] ** 2 - x[..., 1] ** 2,
    "student": lambda x: -td.StudentT(0.1).log_prob(x).sum(-1),
    "raises far out": lambda x: x.sum(-1) if x.abs().max() < 100 else 1 / 0,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LEGAL)
def test_no_false_alarm_for_the_sign_of_legal_targets(name, dtype):
    assert warned(LEGAL[name], elementwise_flow(2).to(dtype)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: box_flow(2, lower=-1.0, upper=1.0, hidden=(8,)),
        lambda: smooth_flow(2, circular=True, hidden=(8,)),
        lambda: smooth_flow(2, lower=[0.0, None], upper=[1.0, None], hidden=(8,)),
        lambda: Flow(Logit(2), StandardNormal(2)),
    ],
)
def test_an_energy_may_fall_where_the_flow_never_goes(make):
    assert warned(lambda x: -x.square().sum(-1), make()) == 0


def walls(x):
    return torch.where((x > 0).all(-1), 0.5 * x.square().sum(-1), torch.inf)


INFINITE = {
    "walls": (
        walls,
        r"the energy is inf at \d+ of 256 .*at x = \[.*remedy: for hard walls a flow",
    ),
    "nan": (lambda x: walls(x) - walls(x), r"the energy is nan at .*remedy: an energy that is a"),
    "singular": (
        lambda x: torch.where(x[..., 0] > 0, x.square().sum(-1), -torch.inf),
        r"the energy is -inf at .*remedy: an energy with a lower bound",
    ),
}


@pytest.mark.parametrize("name", INFINITE)
@pytest.mark.parametrize("objective", [ReverseKL, PathKL])
def test_energies_that_are_not_finite_have_a_remedy_about_the_energy(name, objective):
    energy, message = INFINITE[name]
    with pytest.raises(NonFiniteLossError, match=message) as error:
        fit(flow(), None, objective(energy), steps=5, progress=False)
    text = str(error.value)
    assert "row" not in text
    assert "outlier" not in text
    assert text.count("remedy") == 1
    # In a sum, the term that is at fault says so.
    both = WeightedSum((1.0, ReverseKL(lambda x: x.square().sum(-1))), (0.5, objective(energy)))
    with pytest.raises(NonFiniteLossError, match=message):
        fit(flow(), None, both, steps=5, progress=False)


def test_the_remedy_for_hard_walls_is_true():
    # Uniform in the box but for a spring: a flow between the walls learns it.
    box = box_flow(2, lower=0.0, upper=4.0, hidden=(8,))
    history = fit(box, None, ReverseKL(walls, samples=64), steps=40, lr=1e-2, progress=False)
    assert math.isfinite(history.train[-1])
    soft = ReverseKL(lambda x: 0.5 * x.square().sum(-1) + 100 * x.clamp(max=0).square().sum(-1))
    assert math.isfinite(fit(flow(), None, soft, steps=5, progress=False).train[-1])


def test_a_log_density_that_is_not_finite_is_named_as_one():
    with pytest.raises(NonFiniteLossError, match="log_prob is -inf at .*remedy: for hard walls"):
        fit(flow(), None, ReverseKL(log_prob=lambda x: -walls(x)), steps=5, progress=False)


def test_paths_that_leave_for_infinity_have_a_remedy_of_their_own():
    torch.manual_seed(0)
    far = stochastic_flow(2, energy="double_well", layer="langevin", steps=20, step_size=3.0)
    with pytest.raises(NonFiniteLossError, match="paths .*remedy: a smaller step_size"):
        fit(far, None, PathKL(DoubleWell()), steps=5, progress=False)


def test_forces_that_are_not_finite_are_the_objective_s_fault():
    model, x = Flow(DenseLinear(1), StandardNormal(1)), torch.tensor([[0.0], [1.0]])
    objective = ForceMatching(lambda x: x.abs().sqrt().sum(-1))
    message = (
        "objective is at fault: the force of the energy is not finite at 1 of 2 samples; remedy"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        fit(model, x, objective, validation=None, progress=False)
    inner = Flow(Compose(Logit(1), DenseLinear(1)), StandardNormal(1))
    with pytest.raises(NonFiniteLossError, match=message):
        fit(
            inner, torch.tensor([[0.5], [0.7]]), AfterPreprocessing(objective),
            validation=None, progress=False,
        )  # fmt: skip


def test_there_is_no_force_where_the_energy_is_infinite():
    # Autograd says 0, which would be learned as flat.
    x = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.2, -0.1]])
    message = "the force of the energy is not finite at 2 of 3 samples; remedy: an energy"
    with pytest.raises(NonFiniteLossError, match=message):
        fit(flow(), x, ForceMatching(walls), validation=None, progress=False)
    inside = ForceMatching(walls)(flow(), {"x": x[:1]}).value
    free = ForceMatching(lambda x: 0.5 * x.square().sum(-1))(flow(), {"x": x[:1]}).value
    assert torch.equal(inside, free)
