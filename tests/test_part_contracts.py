"""Bases, conditioners, energies and objectives keep the contract; broken ones are caught."""

import inspect
import math
from functools import partial

import pytest
import torch
from registry import BASES, CONDITIONERS, ENERGIES, OBJECTIVES
from torch import nn
from torch.distributions import constraints

import flowkit
from flowkit import elementwise_flow
from flowkit.bases import Base, StandardNormal
from flowkit.conditioners import MLP, AutoregressiveConditioner, Conditioner, MaskedMLP
from flowkit.energies import Energy
from flowkit.errors import ContractError, ConvergenceError
from flowkit.objectives import Loss, MaximumLikelihood, Objective
from flowkit.testing import (
    check_base,
    check_conditioner,
    check_energy,
    check_objective,
    check_transform,
    runner,
)
from flowkit.transforms import LULinear


def public(package, parent, *abstract):
    """The public classes of a kind in a package."""
    found = {getattr(package, name) for name in package.__all__}
    return {c for c in found if inspect.isclass(c) and issubclass(c, parent)} - set(abstract)


def made(table):
    torch.manual_seed(0)
    parts = [entry[0]() if isinstance(entry, tuple) else entry() for entry in table.values()]
    return {type(module) for part in parts for module in part.modules()}


@pytest.mark.parametrize("name", BASES)
def test_every_base_keeps_the_contract(name):
    torch.manual_seed(0)
    check_base(BASES[name]())


@pytest.mark.parametrize("name", CONDITIONERS)
def test_every_conditioner_keeps_the_contract(name):
    torch.manual_seed(0)
    make, options = CONDITIONERS[name]
    check_conditioner(make(), **options)


@pytest.mark.parametrize("name", ENERGIES)
def test_every_energy_keeps_the_contract(name):
    torch.manual_seed(0)
    make, options = ENERGIES[name]
    check_energy(make(), **options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_the_contract(name):
    torch.manual_seed(0)
    make, flow, batch, options = OBJECTIVES[name]
    check_objective(make(), flow(), batch(), **options)


def test_no_public_constructor_of_a_kind_is_missing():
    assert public(flowkit.bases, Base, Base) <= made(BASES)
    abstract = (Conditioner, AutoregressiveConditioner)
    assert public(flowkit.conditioners, Conditioner, *abstract) <= made(CONDITIONERS)
    assert public(flowkit.energies, Energy, Energy) <= made(ENERGIES)
    assert public(flowkit.objectives, Objective, Objective) <= made(OBJECTIVES)


# Broken parts --------------------------------------------------------------------------------


class WrongConstant(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z) + 0.1


class OneBatchDimension(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z) * (1.0 if z.ndim == 2 else 1.1)


class WideSamples(StandardNormal):
    def sample(self, shape=(), context=None, generator=None):
        return 1.1 * super().sample(shape, context, generator)


class GlobalDraws(StandardNormal):
    def sample(self, shape=(), context=None, generator=None):
        return super().sample(shape, context)


class WrongQuantiles(StandardNormal):
    def icdf(self, q, context=None):
        return super().icdf(q) + 0.01


class SamplesOutside(StandardNormal):
    @property
    def support(self):
        return constraints.independent(constraints.greater_than(0.0), 1)


class KinkedDensity(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z.detach()) + 0 * z.sum(-1)


BROKEN_BASES = [
    (WrongConstant, "R5"),
    (OneBatchDimension, "R2"),
    (WideSamples, "R14"),
    (GlobalDraws, "R14"),
    (WrongQuantiles, "R4"),
    (SamplesOutside, "R14"),
    (KinkedDensity, "R7"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN_BASES)
def test_a_broken_base_is_caught_by_its_rule(broken, rule):
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_base(broken(1), dtypes=(torch.float64,))


def test_a_density_of_another_mass_is_caught():
    with pytest.raises(ContractError, match="breaks R15 .* mass of 1, got 1.10"):
        check_base(WrongConstant(1), skip={"R5": "isolate", "R14": "isolate"})


class ReadsAhead(MaskedMLP):
    def forward(self, x, context=None):
        return super().forward(x, context) + 0.1 * x.flip(-1).unsqueeze(-1)


class StartsSomewhere(MLP):
    def forward(self, x, context=None):
        return super().forward(x, context) + 1.0


class Unused(MLP):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Parameter(torch.zeros(2))


class SinglePrecision(MLP):
    def forward(self, x, context=None):
        return super().forward(x, context).float()


class MixesTheBatch(MLP):
    def forward(self, x, context=None):
        out = super().forward(x, context)
        return out - out.mean(tuple(range(out.ndim - 1)), keepdim=True)


BROKEN_CONDITIONERS = [
    (partial(ReadsAhead, 3, 2, hidden=(4,)), "R5"),
    (partial(StartsSomewhere, 2, 3, hidden=(4,)), "R12"),
    (partial(Unused, 2, 3, hidden=(4,)), "R13"),
    (partial(SinglePrecision, 2, 3, hidden=(4,)), "R3"),
    (partial(MixesTheBatch, 2, 3, hidden=(4,)), "R2"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN_CONDITIONERS)
def test_a_broken_conditioner_is_caught_by_its_rule(broken, rule):
    with pytest.raises(ContractError, match=rf"{broken.func.__name__} breaks {rule} "):
        check_conditioner(broken(), dtypes=(torch.float64,))


class Spring(Energy):
    """A harmonic energy, right in everything."""

    def energy(self, x, context=None):
        return 0.5 * x.square().sum(-1)

    def log_normalizer(self):
        return 0.5 * self.event_shape[0] * math.log(2 * math.pi)

    def sample(self, shape=(), generator=None):
        size = (shape,) if isinstance(shape, int) else shape
        return torch.randn(*size, *self.event_shape, generator=generator, dtype=torch.float64)


class KeepsTheBatch(Spring):
    def energy(self, x, context=None):
        return 0.5 * x.square().mean() + 0 * x.sum(-1)


class WrongForce(Spring):
    def energy_and_force(self, x, context=None):
        energy, force = super().energy_and_force(x, context)
        return energy, -force


class ShiftedSamples(Spring):
    def sample(self, shape=(), generator=None):
        return super().sample(shape, generator) + 0.1


class WrongNormalizer(Spring):
    def log_normalizer(self):
        return super().log_normalizer() + 0.1


BROKEN_ENERGIES = [
    (KeepsTheBatch, "R2"),
    (WrongForce, "R5"),
    (ShiftedSamples, "R14"),
    (WrongNormalizer, "R15"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN_ENERGIES)
def test_a_broken_energy_is_caught_by_its_rule(broken, rule):
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_energy(broken((2,)), dtypes=(torch.float64,))


def test_a_right_energy_passes():
    assert set(check_energy(Spring((2,)), dtypes=(torch.float64,)).skipped) == {"R13"}


class OneLossEach(MaximumLikelihood):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        return Loss(-flow.log_prob(batch["x"]), {})


class Detached(MaximumLikelihood):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        loss = super().forward(flow, batch)
        return Loss(loss.value + loss.value.square().detach(), {})


class Noisy(Objective):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        return Loss(-flow.log_prob(batch["x"] + torch.randn(batch["x"].shape)).mean(), {})


class NoGradient(Objective):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        x = batch["x"]
        value = 0 * flow.log_prob(x).mean()
        return Loss(value, {})


BROKEN_OBJECTIVES = [
    (OneLossEach, "R1"),
    (Detached, "R7"),
    (Noisy, "R14"),
    (NoGradient, "R13"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN_OBJECTIVES)
def test_a_broken_objective_is_caught_by_its_rule(broken, rule):
    skip = {"R7": "isolate", "R10": "isolate"} if broken is Noisy else {}
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_objective(
            broken(), elementwise_flow(1), {"x": torch.randn(8, 1)}, skip=skip,
            dtypes=(torch.float64,),
        )  # fmt: skip


class NoRoot(LULinear):
    def inverse(self, z, context=None):
        raise ConvergenceError("the search did not end")


def test_an_error_of_the_package_is_reported_as_such():
    with pytest.raises(ContractError) as caught:
        check_transform(NoRoot(2), backend="eager", skip={"R3": "isolate"})
    text = str(caught.value)
    assert text.startswith("NoRoot(features=2) cannot be checked for R")
    assert "ConvergenceError: the search did not end" in text
    assert "breaks" not in text


def test_a_long_check_shows_its_progress(monkeypatch, capsys):
    monkeypatch.setattr(runner, "_PATIENCE", 0.0)
    check_energy(Spring((1,)), dtypes=(torch.float64,))
    assert "check_energy Spring" in capsys.readouterr().err
    monkeypatch.setattr(runner, "_PATIENCE", 10.0)
    check_energy(Spring((1,)), dtypes=(torch.float64,))
    assert capsys.readouterr().err == ""
