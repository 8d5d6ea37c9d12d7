"""Bases, conditioners, energies and objectives keep the contract; broken ones are caught."""

import inspect
import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from options.walk import public_objects
from registry import BASES, CASES, CONDITIONERS, ENERGIES, OBJECTIVES
from torch import nn
from torch.distributions import constraints

import flowkit
from flowkit import elementwise_flow
from flowkit.bases import Base, DiagonalNormal, StandardNormal
from flowkit.conditioners import MLP, AutoregressiveConditioner, Conditioner, MaskedMLP
from flowkit.energies import Energy
from flowkit.errors import ArgumentError, ContractError, ConvergenceError
from flowkit.objectives import Loss, MaximumLikelihood, Objective
from flowkit.scalar import Affine, ScalarMap
from flowkit.stochastic import StochasticTransform
from flowkit.testing import (
    check_base,
    check_conditioner,
    check_energy,
    check_objective,
    check_scalar,
    check_transform,
    runner,
)
from flowkit.toys import Toy
from flowkit.transforms import LULinear, Transform

KINDS = (
    Transform, ScalarMap, Base, Conditioner, AutoregressiveConditioner, Energy, Objective,
)  # fmt: skip


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
    torch.manual_seed(0)
    # Layers count inside of others too, as in a Compose; other kinds need an entry of their own.
    layers = [module for case in CASES for module in case.build().modules()]
    known = {type(layer) for layer in layers if isinstance(layer, Transform)}
    known |= {type(layer.scalar) for layer in layers if hasattr(layer, "scalar")}
    for table in (BASES, CONDITIONERS, ENERGIES, OBJECTIVES):
        makers = [entry[0] if isinstance(entry, tuple) else entry for entry in table.values()]
        known |= {type(make()) for make in makers}
    public = {c for c in public_objects() if inspect.isclass(c) and issubclass(c, KINDS)}
    # Toys, of which some are on a torus or take minutes, have tests of their own.
    toys = {c for c in public if issubclass(c, Toy)}
    assert public - toys - known == {*KINDS, StochasticTransform}


# Broken parts --------------------------------------------------------------------------------


class Counted:
    """A part that is another one whenever it is made."""

    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Counted.made += 1
        self._number = Counted.made


class MadeAnew(Counted, StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z) + self._number


class LogProbOfEveryFeature(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z).unsqueeze(-1)


class DoubleLogProb(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z).double()


class RootOfDistance(StandardNormal):
    """Right values, but the gradient at 0 is NaN."""

    def log_prob(self, z, context=None):
        return super().log_prob(z) + (z.square().sqrt() - z.abs()).sum(-1)


class BranchesOnTheDistance(StandardNormal):
    def log_prob(self, z, context=None):
        return super().log_prob(z if z.sum() > 0 else 1 * z)


class RemembersItsPlace(DiagonalNormal):
    def log_prob(self, z, context=None):
        if not hasattr(self, "_constant"):
            self._constant = sum(p.detach().sum() for p in self.parameters())
        return super().log_prob(z) + 0.1 * self._constant


class HasAnUnusedParameter(StandardNormal):
    def __init__(self, features):
        super().__init__(features)
        self.unused = nn.Parameter(torch.zeros(2))


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


def isolated(*rules):
    """Options that leave out rules which would catch the same fault before."""
    return {"skip": dict.fromkeys(rules, "isolate")}


BROKEN_BASES = [
    (LogProbOfEveryFeature, "R1", {}),
    (OneBatchDimension, "R2", {}),
    (DoubleLogProb, "R3", {}),
    (WrongQuantiles, "R4", {}),
    (WrongConstant, "R5", {}),
    (RootOfDistance, "R6", {}),
    (KinkedDensity, "R7", {}),
    (BranchesOnTheDistance, "R9", isolated("R3")),
    (RemembersItsPlace, "R10", isolated("R5")),
    (HasAnUnusedParameter, "R13", {}),
    (WideSamples, "R14", {}),
    (GlobalDraws, "R14", {}),
    (SamplesOutside, "R14", {}),
    (WrongConstant, "R15", isolated("R5", "R14")),
    (MadeAnew, "R16", isolated("R5", "R14", "R15")),
]


@pytest.mark.parametrize(("broken", "rule", "options"), BROKEN_BASES)
def test_a_broken_base_is_caught_by_its_rule(broken, rule, options):
    flowkit.register(broken)
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_base(broken(1), dtypes=(torch.float64,), **options)


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


class OneParameterMore(MLP):
    def forward(self, x, context=None):
        out = super().forward(x, context)
        return torch.cat([out, out[..., :1]], -1)


class RootOfInputs(MLP):
    def forward(self, x, context=None):
        return super().forward(x) + (x.square().sqrt() - x.abs()).sum(-1, keepdim=True)


class ReadsDetached(MLP):
    def forward(self, x, context=None):
        return super().forward(x.detach()) + 0 * x.sum(-1, keepdim=True)


class BranchesOnInputs(MLP):
    def forward(self, x, context=None):
        return super().forward(x if x.sum() > 0 else 1 * x)


class RemembersItsBias(MLP):
    def forward(self, x, context=None):
        if not hasattr(self, "_bias"):
            self._bias = list(self.parameters())[-1].detach().clone()
        return super().forward(x) + self._bias


class NetMadeAnew(Counted, MLP):
    def forward(self, x, context=None):
        return super().forward(x) + self._number


BROKEN_CONDITIONERS = [
    (partial(OneParameterMore, 2, 3, hidden=(4,)), "R1", {}),
    (partial(MixesTheBatch, 2, 3, hidden=(4,)), "R2", {}),
    (partial(SinglePrecision, 2, 3, hidden=(4,)), "R3", {}),
    (partial(ReadsAhead, 3, 2, hidden=(4,)), "R5", {}),
    (partial(RootOfInputs, 2, 3, hidden=(4,)), "R6", {}),
    (partial(ReadsDetached, 2, 3, hidden=(4,)), "R7", {}),
    (partial(BranchesOnInputs, 2, 3, hidden=(4,)), "R9", isolated("R3")),
    (partial(RemembersItsBias, 2, 3, hidden=(4,)), "R10", isolated("R3")),
    (partial(StartsSomewhere, 2, 3, hidden=(4,)), "R12", {}),
    (partial(Unused, 2, 3, hidden=(4,)), "R13", {}),
    (partial(NetMadeAnew, 2, 3, hidden=(4,)), "R16", isolated("R12")),
]


@pytest.mark.parametrize(("broken", "rule", "options"), BROKEN_CONDITIONERS)
def test_a_broken_conditioner_is_caught_by_its_rule(broken, rule, options):
    flowkit.register(broken.func)
    with pytest.raises(ContractError, match=rf"{broken.func.__name__} breaks {rule} "):
        check_conditioner(broken(), dtypes=(torch.float64,), **options)


@flowkit.register
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


class EnergyOfEveryFeature(Spring):
    def forward(self, x, context=None):
        return 0.5 * x.square()


class SingleEnergy(Spring):
    def forward(self, x, context=None):
        return super().forward(x).float()


class RootAtRest(Spring):
    def energy(self, x, context=None):
        return super().energy(x) + (x.square().sqrt() - x.abs()).sum(-1)


class HalfTheGradient(Spring):
    def energy(self, x, context=None):
        return 0.5 * (x * x.detach()).sum(-1)


class BranchesOnPlaces(Spring):
    def energy(self, x, context=None):
        return super().energy(x if x.sum() > 0 else 1 * x)


class Stiff(Spring):
    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.stiffness = nn.Parameter(torch.ones(()))


class RemembersItsStiffness(Stiff):
    def energy(self, x, context=None):
        if not hasattr(self, "_known"):
            self._known = self.stiffness.detach().clone()
        return self._known * super().energy(x)


class EnergyMadeAnew(Counted, Spring):
    def energy(self, x, context=None):
        return super().energy(x) + self._number


BROKEN_ENERGIES = [
    (EnergyOfEveryFeature, "R1", {}),
    (KeepsTheBatch, "R2", {}),
    (SingleEnergy, "R3", {}),
    (WrongForce, "R5", {}),
    (RootAtRest, "R6", {}),
    (HalfTheGradient, "R7", {}),
    (BranchesOnPlaces, "R9", isolated("R3")),
    (RemembersItsStiffness, "R10", isolated("R3")),
    (Stiff, "R13", {}),
    (ShiftedSamples, "R14", {}),
    (WrongNormalizer, "R15", {}),
    (EnergyMadeAnew, "R16", isolated("R15")),
]


@pytest.mark.parametrize(("broken", "rule", "options"), BROKEN_ENERGIES)
def test_a_broken_energy_is_caught_by_its_rule(broken, rule, options):
    flowkit.register(broken)
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_energy(broken((2,)), dtypes=(torch.float64,), **options)


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


class SingleLoss(MaximumLikelihood):
    def forward(self, flow, batch, *, generator=None, progress=1.0):
        return Loss(super().forward(flow, batch).value.float(), {})


class HoldsAFunction(MaximumLikelihood):
    def __init__(self):
        super().__init__()
        self.weigh = lambda value: value


class ReadsTheWeights(MaximumLikelihood):
    reads = frozenset({"x"})

    def forward(self, flow, batch, *, generator=None, progress=1.0):
        value = super().forward(flow, batch).value
        return Loss(2 * value if "weight" in batch else value, {})


BROKEN_OBJECTIVES = [
    (OneLossEach, "R1", {}),
    (SingleLoss, "R3", {}),
    (Detached, "R7", {}),
    (HoldsAFunction, "R10", {}),
    (ReadsTheWeights, "R11", {}),
    (NoGradient, "R13", {}),
    (Noisy, "R14", isolated("R7", "R10")),
]


@pytest.mark.parametrize(("broken", "rule", "options"), BROKEN_OBJECTIVES)
def test_a_broken_objective_is_caught_by_its_rule(broken, rule, options):
    batch = {"x": torch.randn(8, 1), "weight": torch.ones(8)}
    with pytest.raises(ContractError, match=rf"{broken.__name__} breaks {rule} "):
        check_objective(
            broken(), elementwise_flow(1), batch, dtypes=(torch.float64,), **options
        )  # fmt: skip


@dataclass(frozen=True)
class InverseBeside(Affine):
    def inverse(self, y, params):
        x, log_slope = super().inverse(y, params)
        return x + 1e-3, log_slope


@dataclass(frozen=True)
class TwiceTheSlope(Affine):
    def forward(self, x, params):
        y, log_slope = super().forward(x, params)
        return y, 2 * log_slope


@dataclass(frozen=True)
class RootOfParameters(Affine):
    def forward(self, x, params):
        y, log_slope = super().forward(x, params)
        return y + (params.square().sqrt() - params.abs()).sum(-1), log_slope


@dataclass(frozen=True)
class NothingToLearn(Affine):
    def forward(self, x, params):
        return super().forward(x, params.detach())


BROKEN_SCALARS = [
    (InverseBeside, "R4", {}),
    (TwiceTheSlope, "R5", {}),
    (RootOfParameters, "R6", {}),
    (NothingToLearn, "R7", {}),
]


@pytest.mark.parametrize(("broken", "rule", "options"), BROKEN_SCALARS)
def test_a_broken_scalar_map_is_caught_by_its_rule(broken, rule, options):
    with pytest.raises(ContractError, match=rf"{broken.__name__}.* breaks {rule} "):
        check_scalar(broken(), dtypes=(torch.float64,), **options)


def test_every_rule_has_an_example_that_breaks_it():
    pairs = [
        (check_base(StandardNormal(1)), BROKEN_BASES),
        (check_conditioner(MaskedMLP(2, 2, hidden=(4,))), BROKEN_CONDITIONERS),
        (check_energy(Spring((1,))), BROKEN_ENERGIES),
        (check_objective(MaximumLikelihood(), elementwise_flow(1), {"x": torch.randn(8, 1)}),
         BROKEN_OBJECTIVES),
        (check_scalar(Affine()), BROKEN_SCALARS),
    ]  # fmt: skip
    for report, broken in pairs:
        assert {result.rule for result in report.results} == {rule for _, rule, _ in broken}


@pytest.mark.parametrize(
    "check", [check_base, check_conditioner, check_energy, check_scalar, check_transform]
)
def test_a_part_of_another_kind_is_no_broken_contract(check):
    kind = check.__name__.removeprefix("check_")
    with pytest.raises(ArgumentError, match=f"check_{kind} expected {kind} as an? "):
        check(LULinear)
    with pytest.raises(ArgumentError, match="check_objective expected objective as an Objective"):
        check_objective(LULinear(2), elementwise_flow(2), {})


class Nameless(StandardNormal):
    """Right in everything, but not registered."""


def test_a_part_without_a_description_is_reported():
    with pytest.raises(ContractError, match=r"Nameless cannot be checked for R16 .*@flowkit.reg"):
        check_base(Nameless(1))
    report = check_base(Nameless(1), skip={"R16": "never saved"})
    assert report.skipped["R16"] == "never saved"


@flowkit.register
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
