"""Units of energy: a potential is divided by kT once, and the same physics is the same number."""

import math

import pytest
import torch

from flowkit import ForceMatching, PathKL, ReverseKL, coupling_flow, elementwise_flow, fit
from flowkit.energies import (
    CallableEnergy,
    ConditionalEnergy,
    Energy,
    Interpolation,
    NegativeLogProb,
)
from flowkit.errors import ArgumentError, DataError
from flowkit.molecules import FlowPotential
from flowkit.statistics import log_partition
from flowkit.stochastic import MALA, independence_chain
from flowkit.toys import DoubleWell

KT = 2.494  # kJ/mol at 300 K
STIFFNESS = 7.0  # kJ/mol over the square of the unit of x


def potential(x):
    """A spring in kJ/mol; in kT its stiffness is 2.807."""
    return 0.5 * STIFFNESS * x.square().sum(-1)


def normal():
    return elementwise_flow(1).double()


X = torch.tensor([[-1.5], [0.2], [2.0]], dtype=torch.float64)
# The flow is a standard normal, whose force is -x: the error is that of the stiffness.
EXACT = ((STIFFNESS / KT - 1) ** 2 * X.square().mean()).item()


@pytest.mark.parametrize(
    "objective",
    [
        lambda: ForceMatching(lambda x: potential(x) / KT),
        lambda: ForceMatching(CallableEnergy(potential, 1, kT=KT)),
        lambda: ForceMatching(log_prob=lambda x: -potential(x) / KT),
        lambda: ForceMatching(CallableEnergy(potential, 1, force=lambda x: -STIFFNESS * x, kT=KT)),
        lambda: ForceMatching(),
    ],
)
def test_the_same_forces_are_the_same_loss_in_every_way_to_give_them(objective):
    batch = {"x": X, "force": -STIFFNESS * X / KT}
    assert objective()(normal(), batch).value.item() == pytest.approx(EXACT, rel=1e-12)


def test_a_unit_does_not_matter():
    losses = []
    for unit in (1.0, 1000.0, 1 / 4.184):  # kJ, J, kcal
        energy = CallableEnergy(lambda x, unit=unit: unit * potential(x), 1, kT=unit * KT)
        losses.append(ForceMatching(energy)(normal(), {"x": X}).value.item())
    assert losses == pytest.approx([EXACT] * 3, rel=1e-12)


@pytest.mark.parametrize("kT", [0.0, -1.0, math.inf, math.nan, True, None, "2"])
def test_kT_is_a_positive_number_wherever_it_is_given(kT):
    for make in (
        lambda: CallableEnergy(potential, 1, kT=kT),
        lambda: FlowPotential(normal(), kT=kT),
    ):
        with pytest.raises((ArgumentError, DataError), match="kT .*finite number > 0"):
            make()


def test_energies_are_in_units_of_kT():
    energy = CallableEnergy(potential, 1, kT=KT)
    torch.testing.assert_close(energy(X), 0.5 * STIFFNESS / KT * X[:, 0].square())
    torch.testing.assert_close(energy.force(X), -STIFFNESS / KT * X)
    # What is made of energies divides no more.
    half = Interpolation(NegativeLogProb(normal()), energy, 0.5)
    torch.testing.assert_close(half.force(X), -0.5 * (1 + STIFFNESS / KT) * X)
    both = CallableEnergy(lambda x: potential(x), 2, kT=KT)
    free = ConditionalEnergy(both, [True, False])
    torch.testing.assert_close(free.force(X, torch.zeros_like(X)), -STIFFNESS / KT * X)


def test_objectives_and_weights_read_the_same_energy():
    # log Z of the spring, and KL(N(0, 1) || N(0, kT / k)) - log Z, in closed form.
    energy, ratio = CallableEnergy(potential, 1, kT=KT), STIFFNESS / KT
    log_z = 0.5 * math.log(2 * math.pi / ratio)
    divergence = 0.5 * (ratio - 1 - math.log(ratio))
    torch.manual_seed(0)
    n = 40_000
    # The spread of u - x^2 / 2 is |ratio - 1| / sqrt(2).
    error = abs(ratio - 1) / math.sqrt(2 * n)
    for objective in (ReverseKL(energy, samples=n), PathKL(energy, samples=n)):
        value = objective(normal(), {}).value.item()
        assert value == pytest.approx(divergence - log_z, abs=4 * error)
    estimate = log_partition(normal().sample_with_log_weight(n, energy)[1])
    assert abs(estimate.value - log_z) < 4 * estimate.error
    assert 4 * estimate.error < 0.05 < abs(0.5 * math.log(KT))


def test_chains_sample_at_the_temperature_of_the_energy():
    energy, ratio = CallableEnergy(potential, 1, kT=KT), STIFFNESS / KT
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, dtype=torch.float64, generator=draw) / math.sqrt(ratio)
    with torch.no_grad():
        x, _ = MALA(energy, steps=10, step_size=0.1).double()(start, generator=draw)
    # The standard error of the variance of n independent normals.
    assert abs(x.var() * ratio - 1) < 4 * math.sqrt(2 / 20_000)
    run = independence_chain(normal(), energy, steps=500, chains=200, generator=draw)
    assert abs(run.x.var() * ratio - 1) < 0.05


def test_a_flow_leaves_the_units_of_kT_where_it_becomes_a_potential():
    # A normal of variance s^2 is a spring of stiffness kT / s^2, whatever kT is.
    flow, mass = normal(), 3.0
    for kT in (1.0, KT, 300.0):
        spring = FlowPotential(flow, kT=kT, mass=mass)
        torch.testing.assert_close(spring.force(X), -kT * X)
        moved = spring.energy(X) - spring.energy(torch.zeros_like(X))
        torch.testing.assert_close(moved, 0.5 * kT * X[:, 0].square())
        # Back into an objective it goes by its kT, once: the loss of the exact model is zero.
        objective = ForceMatching(CallableEnergy(spring.energy, 1, kT=kT))
        assert objective(flow, {"x": X}).value.item() < 1e-25
        # One period is 2 pi sqrt(m / k).
        period = 2 * math.pi * math.sqrt(mass / kT)
        path = spring.velocity_verlet(
            X, torch.zeros_like(X), dt=period / 400, steps=400, every=400
        )
        torch.testing.assert_close(path.x[-1], X, rtol=1e-3, atol=1e-3)


def test_a_fit_to_a_potential_finds_its_spread():
    # The target is N(0, kT / k): its standard deviation is 0.597, that of kT = 1 0.378.
    torch.manual_seed(0)
    energy = CallableEnergy(potential, 1, kT=KT)
    for objective, data in (
        (ReverseKL(energy), None),
        (ForceMatching(energy), torch.randn(400, 1)),
        (ForceMatching(), {"x": torch.randn(400, 1)}),
    ):
        if isinstance(data, dict):
            data["force"] = -STIFFNESS / KT * data["x"]
        flow = elementwise_flow(1, scalar="affine")
        fit(flow, data, objective, steps=300, lr=3e-2, validation=None, progress=False)
        assert flow.sample(20_000).std().item() == pytest.approx(
            math.sqrt(KT / STIFFNESS), rel=0.03
        )


def test_energies_without_units_take_no_kT():
    for make in (
        lambda: Energy((1,), kT=2.0),
        lambda: DoubleWell(kT=2.0),
        lambda: ReverseKL(DoubleWell(), kT=2.0),
        lambda: coupling_flow(2).sample_with_log_weight(3, DoubleWell(), kT=2.0),
    ):
        with pytest.raises(TypeError, match="kT"):
            make()
