"""Molecular dynamics with a flow against exact solutions and the theory of the integrators."""

import math

import pytest
import torch

from flowkit import Flow, ForceMatching, coupling_flow, elementwise_flow
from flowkit.bases import StandardNormal, Uniform
from flowkit.energies import CallableEnergy
from flowkit.errors import ArgumentError, NonFiniteEnergyError, ShapeError, StochasticFlowError
from flowkit.molecules import FlowPotential
from flowkit.scalar import CircularSpline
from flowkit.stochastic import Dequantize
from flowkit.transforms import (
    CircularShift,
    Compose,
    Conv1x1,
    Elementwise,
    Logit,
    LULinear,
    Standardize,
)


def springs(mean, scale, kT=1.0, mass=1.0):
    """Independent springs, k = kT / scale^2, of a flow that is N(mean, scale^2)."""
    flow = Flow(LULinear(len(mean)), StandardNormal(len(mean))).double()
    with torch.no_grad():
        flow.transform.lower_upper.diagonal().copy_(-torch.tensor(scale).double().log())
        flow.transform.bias.copy_(-torch.tensor(mean).double() / torch.tensor(scale).double())
    return FlowPotential(flow, kT=kT, mass=mass)


def smooth_flow(context=0):
    """Couplings of mixtures with random weights, in float64: smooth and far from Gaussian."""
    flow = coupling_flow(
        2,
        context=context,
        layers=2,
        scalar="mixture",
        hidden=(16,),
        linear=None,
        start=None,
    ).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return flow


def test_force_is_the_negative_gradient_of_energy_which_is_minus_kT_log_p():
    flow = smooth_flow()
    potential = FlowPotential(flow, kT=2.5)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    energy = potential.energy(x)
    exact = -2.5 * flow.log_prob(x)
    torch.testing.assert_close(energy + 2.5 * flow.log_normalizer(), exact)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(potential.force(x), -gradient)
    energy = CallableEnergy(potential.energy, 2, kT=2.5)
    assert ForceMatching(energy)(flow, {"x": x}).value.item() < 1e-25


def test_verlet_follows_a_harmonic_oscillator_with_an_error_of_order_dt_squared():
    mean, scale, kT = [0.5, -1.0], [0.7, 1.5], 2.0
    mass = torch.tensor([2.0, 0.5], dtype=torch.float64)
    potential = springs(mean, scale, kT, mass)
    m, omega = torch.tensor(mean).double(), torch.sqrt(kT / mass) / torch.tensor(scale).double()
    x, v = torch.randn(2, 7, 2, dtype=torch.float64)
    errors = []
    for steps in (400, 200, 100):
        path = potential.velocity_verlet(x, v, dt=5.0 / steps, steps=steps)
        phase = omega * path.time[:, None, None]
        exact = m + (x - m) * phase.cos() + v / omega * phase.sin()
        speed = v * phase.cos() - (x - m) * omega * phase.sin()
        errors.append(max((path.x - exact).abs().max(), (path.v - speed).abs().max()).item())
    assert errors[0] < 1e-3
    assert errors[1] / errors[0] == pytest.approx(4, abs=0.1)
    assert errors[2] / errors[1] == pytest.approx(4, abs=0.1)
    kinetic = 0.5 * (mass * path.v.square()).sum(-1)
    stored = 0.5 * (mass * omega**2 * (path.x - m).square()).sum(-1)
    torch.testing.assert_close(path.kinetic, kinetic)
    torch.testing.assert_close(path.potential - path.potential[0], stored - stored[0])
    torch.testing.assert_close(path.total, path.potential + path.kinetic)


@pytest.mark.slow
def test_the_energy_of_a_smooth_flow_stays_bounded_with_an_error_of_order_dt_squared():
    flow = smooth_flow()
    potential = FlowPotential(flow)
    draw = torch.Generator().manual_seed(0)
    x = flow.sample(16, generator=draw)
    v = potential.draw_velocities(x, draw)
    rms, largest = [], []
    for dt, steps in ((0.02, 10_000), (0.04, 5_000)):
        path = potential.velocity_verlet(x, v, dt=dt, steps=steps)
        error = (path.total - path.total[0]).abs()
        early, late = error[: steps // 2].amax(), error[steps // 2 :].amax()
        assert late < 1.5 * early
        rms.append(error.square().mean().sqrt().item())
        largest.append(error.max().item())
    assert largest[0] < 0.05
    assert rms[1] / rms[0] == pytest.approx(4, abs=1)
    assert largest[1] / largest[0] == pytest.approx(4, abs=1)


def test_verlet_is_reversible():
    flow = smooth_flow()
    potential = FlowPotential(flow, mass=[1.0, 2.0])
    x = flow.sample(8)
    v = potential.draw_velocities(x)
    there = potential.velocity_verlet(x, v, dt=0.05, steps=200, every=200)
    assert (there.x[-1] - x).abs().max() > 0.1
    back = potential.velocity_verlet(there.x[-1], -there.v[-1], dt=0.05, steps=200, every=200)
    torch.testing.assert_close(back.x[-1], x, atol=1e-9, rtol=0)
    torch.testing.assert_close(back.v[-1], -v, atol=1e-9, rtol=0)


def test_langevin_has_the_variances_of_baoab_in_a_harmonic_potential():
    scale, kT, dt, n = [1.0, 0.5], 2.0, 0.5, 50_000
    mass = torch.tensor([2.0, 8.0], dtype=torch.float64)
    potential = springs([0.0, 1.0], scale, kT, mass)
    start = torch.zeros(n, 2, dtype=torch.float64)
    path = potential.langevin(start, start, dt=dt, steps=60, friction=1.0, every=60)
    stretch = torch.tensor(scale).double()
    omega = torch.sqrt(kT / mass) / stretch
    # Positions are exact, velocities of order dt^2 too slow: Leimkuhler, Matthews 2013.
    speed = torch.sqrt(kT / mass * (1 - (omega * dt).square() / 4))
    error = 4 * math.sqrt(2 / n)
    for values, exact, centre in (
        (path.x[-1], stretch, torch.tensor([0.0, 1.0])),
        (path.v[-1], speed, torch.zeros(2)),
    ):
        torch.testing.assert_close(values.var(0) / exact**2, torch.ones(2).double(), **near(error))
        far = (values.mean(0) - centre) / exact
        torch.testing.assert_close(far, torch.zeros(2).double(), **near(4 / math.sqrt(n)))
    bond = torch.corrcoef(torch.cat([path.x[-1], path.v[-1]], 1).T)
    torch.testing.assert_close(bond, torch.eye(4).double(), **near(4 / math.sqrt(n)))


def near(error):
    return {"atol": error, "rtol": 0}


def test_langevin_samples_a_smooth_flow():
    flow = smooth_flow()
    potential = FlowPotential(flow)
    n = 4000
    start = flow.sample(n)
    path = potential.langevin(
        start, potential.draw_velocities(start), dt=0.1, steps=50, friction=2.0, every=50
    )
    # Of what the flow's own samples have, -log p is the hardest to keep.
    kept, moved = path.potential
    error = 4 * math.sqrt((kept.var() + moved.var()).item() / n)
    assert (kept.mean() - moved.mean()).abs() < error
    assert (path.x[1] - path.x[0]).abs().mean() > 0.5


def test_langevin_without_friction_is_verlet():
    potential = springs([0.0], [1.0])
    x, v = torch.randn(2, 4, 1, dtype=torch.float64)
    damped = potential.langevin(x, v, dt=0.1, steps=20, friction=1e-20)
    torch.testing.assert_close(damped.x, potential.velocity_verlet(x, v, dt=0.1, steps=20).x)


def test_velocities_are_those_of_maxwell_and_boltzmann():
    mass, n = torch.tensor([0.5, 2.0]), 100_000
    v = springs([0.0, 0.0], [1.0, 1.0], 3.0, mass).draw_velocities(torch.zeros(n, 2))
    torch.testing.assert_close(v.var(0) * mass / 3.0, torch.ones(2), **near(4 * math.sqrt(2 / n)))
    assert v.dtype == torch.float32


def test_randomness_comes_from_the_generator_alone():
    potential = springs([0.0], [1.0])
    x = torch.zeros(3, 1, dtype=torch.float64)
    state = torch.get_rng_state()

    def run():
        draw = torch.Generator().manual_seed(3)
        v = potential.draw_velocities(x, draw)
        return potential.langevin(x, v, dt=0.1, steps=5, friction=1.0, generator=draw).x

    assert torch.equal(run(), run())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 3)])
def test_every_batch_shape_gives_the_same_numbers(batch):
    potential = FlowPotential(smooth_flow())
    x, v = torch.randn(2, *batch, 2, dtype=torch.float64)
    path = potential.velocity_verlet(x, v, dt=0.1, steps=6, every=2)
    assert path.time.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert path.x.shape == path.v.shape == (4, *batch, 2)
    assert path.potential.shape == path.kinetic.shape == path.total.shape == (4, *batch)
    assert torch.equal(path.x[0], x)
    for row, (a, b) in enumerate(zip(x.reshape(-1, 2), v.reshape(-1, 2), strict=True)):
        alone = potential.velocity_verlet(a, b, dt=0.1, steps=6)
        torch.testing.assert_close(path.x.reshape(4, -1, 2)[:, row], alone.x[::2])
        torch.testing.assert_close(path.total.reshape(4, -1)[:, row], alone.total[::2])
    assert potential.langevin(x, v, dt=0.1, steps=6, friction=1.0, every=3).x.shape == (
        3,
        *batch,
        2,
    )


def test_a_context_broadcasts_against_the_trajectories():
    flow = smooth_flow(context=1)
    context = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    potential = FlowPotential(flow, context=context)
    x = torch.zeros(3, 1, 2, dtype=torch.float64)
    v = potential.draw_velocities(x)
    assert v.shape == (3, 2, 2)
    path = potential.velocity_verlet(x, v, dt=0.1, steps=5)
    for i in range(2):
        one = FlowPotential(flow, context=context[i])
        alone = one.velocity_verlet(x[:, 0], v[:, i], dt=0.1, steps=5)
        torch.testing.assert_close(path.x[:, :, i], alone.x)


def test_results_follow_the_dtype_and_carry_no_graph():
    potential = FlowPotential(elementwise_flow(2), mass=torch.tensor([1.0, 2.0]).double())
    x = torch.randn(4, 2, requires_grad=True)
    v = potential.draw_velocities(x)
    for path in (
        potential.velocity_verlet(x, v, dt=0.1, steps=3),
        potential.langevin(x, v, dt=0.1, steps=3, friction=1.0),
    ):
        assert all(part.dtype == torch.float32 and not part.requires_grad for part in path)
    assert all(p.grad is None for p in potential.flow.parameters())


def test_a_step_costs_one_pass_of_the_flow(monkeypatch):
    potential = springs([0.0], [1.0])
    calls = []
    log_prob = potential.flow.base.log_prob
    monkeypatch.setattr(
        potential.flow.base, "log_prob", lambda *z: calls.append(0) or log_prob(*z)
    )
    x = torch.zeros(2, 1, dtype=torch.float64)
    potential.velocity_verlet(x, x, dt=0.1, steps=7)
    potential.langevin(x, x, dt=0.1, steps=9, friction=1.0, every=3)
    assert len(calls) == 8 + 10


def test_positions_on_a_circle_stay_unwrapped():
    spline = Elementwise(1, CircularSpline(bins=4, lower=-1.0, upper=1.0))
    flow = Flow(
        Compose(CircularShift(1, lower=-1.0, upper=1.0), spline), Uniform(1, lower=-1.0, upper=1.0)
    ).double()
    x = torch.tensor([[0.5]], dtype=torch.float64)
    # Uniform on the circle: no force, so the rotor turns for ever.
    path = FlowPotential(flow).velocity_verlet(x, torch.ones_like(x), dt=0.5, steps=20)
    torch.testing.assert_close(path.x[:, 0, 0], 0.5 + path.time)
    torch.testing.assert_close(path.total, path.total[:1].expand_as(path.total))


def test_a_step_too_long_is_named():
    flow = Flow(Logit(1, lower=0.0, upper=1.0), StandardNormal(1)).double()
    potential = FlowPotential(flow)
    x = torch.tensor([[0.5], [0.5], [0.5]], dtype=torch.float64)
    v = torch.tensor([[0.0], [4.0], [-4.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteEnergyError, match=r"step 2, in 2 of 3 traj.*remedy.* below 0.1"):
        potential.velocity_verlet(x, v, dt=0.1, steps=5)
    with pytest.raises(NonFiniteEnergyError, match="at step 0, in 3 of 3 trajectories"):
        potential.langevin(x + 1, v, dt=0.1, steps=5, friction=1.0)


def run(x=None, v=None, **changes):
    potential = springs([0.0, 0.0], [1.0, 1.0])
    x = torch.zeros(3, 2, dtype=torch.float64) if x is None else x
    settings = {"dt": 0.1, "steps": 4, "friction": 1.0, **changes}
    return potential.langevin(x, x if v is None else v, **settings)


def images():
    return Flow(Conv1x1(2), StandardNormal((2, 3, 3)))


def counts():
    return Flow(Compose(Dequantize(1), Standardize(1)), StandardNormal(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: FlowPotential(None),
            ArgumentError,
            "flow as a Flow or .*, got None; remedy",
        ),
        (lambda: FlowPotential(counts()), StochasticFlowError, "stochastic layer; remedy"),
        (lambda: FlowPotential(images()), ShapeError, r"events \(D,\), got \(2, 3, 3\); remedy"),
        (lambda: springs([0.0], [1.0], kT=-1), ArgumentError, "kT as a finite number > 0"),
        (lambda: springs([0.0], [1.0], mass=0.0), ArgumentError, "mass as .*got 0.0"),
        (lambda: springs([0.0], [1.0], mass="H"), ArgumentError, "mass as .*got 'H'"),
        (lambda: springs([0.0], [1.0], mass=[1, 2]), ArgumentError, r"1 feature.*got \[1, 2\]"),
        (lambda: run(dt=0), ArgumentError, "dt as a finite number > 0, got 0"),
        (lambda: run(dt=math.nan), ArgumentError, "dt as a finite number > 0, got nan"),
        (lambda: run(friction=0.0), ArgumentError, "friction as a finite number > 0, got 0.0"),
        (lambda: run(steps=0), ArgumentError, "steps as an integer >= 1, got 0"),
        (lambda: run(steps=1.5), ArgumentError, "steps as an integer >= 1, got 1.5"),
        (lambda: run(every=True), ArgumentError, "every as an integer >= 1, got True"),
        (
            lambda: run(every=3),
            ArgumentError,
            "every as a divisor of 4 steps, got 3; remedy: steps=6",
        ),
        (lambda: run([0.0, 0.0]), ShapeError, r"x \(..., 2\) of floating point, got list; rem"),
        (lambda: run(torch.zeros(3)), ShapeError, r"x \(..., 2\) .*, got \(3,\) in torch.float32"),
        (lambda: run(torch.zeros(3, 2)), ShapeError, "computes in torch.float64, but x is"),
        (lambda: run(v=torch.zeros(2).double()), ShapeError, r"\(3, 2\) in .*got \(2,\) in .*rem"),
        (lambda: run(v=torch.zeros(3, 2)), ShapeError, "torch.float64 on cpu, got .*float32"),
        (lambda: run(v=0.0), ShapeError, "got float; remedy: for example draw_velocities"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
