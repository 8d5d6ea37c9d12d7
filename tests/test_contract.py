"""Every public transform keeps the contract, and check_transform catches those that do not."""

import copy
import math

import pytest
import torch
from registry import CASES
from torch import nn

import flowkit
from flowkit.errors import ContractError, ShapeError
from flowkit.testing import check_transform
from flowkit.transforms import Elementwise, LULinear, Transform

# Importing inductor touches a deprecated corner of torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")

ONCE = {
    torch.float64: {"R8": "compiled in the float32 run"},
    torch.float32: {"R3": "goes through all dtypes in the float64 run"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_transform_keeps_the_contract(case, dtype):
    options = {"backend": "aot_eager", **case.options}
    skip = {**options.pop("skip", {}), **ONCE[dtype]}
    report = check_transform(case.build(), dtypes=(dtype,), skip=skip, **options)
    assert len(report.results) == 16


def test_ids_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


@flowkit.register
class Scale(Transform):
    """A correct transform, ``z = exp(s) x + b``; the broken ones below change one line each."""

    constant_log_det = True

    def __init__(self, features=2):
        super().__init__((features,))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))

    def forward(self, x, context=None):
        z = x * self.log_scale.exp() + self.shift
        return z, self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, z, context=None):
        x = (z - self.shift) * torch.exp(-self.log_scale)
        return x, -self.log_scale.sum().expand(z.shape[:-1])


class LogDetOfEveryFeature(Scale):
    def forward(self, x, context=None):
        return super().forward(x)[0], self.log_scale.expand(x.shape)


class OneBatchDimensionOnly(Scale):
    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z - (0.1 if x.ndim == 3 else 0.0), log_det


class NamesItsDtype(Scale):
    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z, log_det + torch.zeros(x.shape[:-1], dtype=torch.float64)


class ForgetsTheDevice(Scale):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x, torch.zeros(z.shape[:-1], dtype=z.dtype) + log_det.detach().sum() * 0


class WrongInverse(Scale):
    def inverse(self, z, context=None):
        return super().inverse(z + 1e-3)[0], super().inverse(z)[1]


class InverseLosesDigitsFarOut(Scale):
    def inverse(self, z, context=None):
        return super().inverse(z.clamp(-50, 50))


class WrongSignInTheInverse(Scale):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x, -log_det


class WrongLogDetBothWays(Scale):
    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z, 2 * log_det

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x, 2 * log_det


class RootAtZero(Scale):
    """Right values, but the gradient at 0 is NaN: sqrt(x^2) in one side of a where."""

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z + torch.where(x == 0, 0.0, x.square().sqrt() - x.abs()), log_det


class DetachedInverse(Scale):
    def inverse(self, z, context=None):
        with torch.no_grad():
            return super().inverse(z)


class BranchesOnAValue(Scale):
    def forward(self, x, context=None):
        if x.sum() > 0:
            return super().forward(x)
        return super().forward(x)


class WritesInPlace(Scale):
    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        total = torch.empty(())
        total.copy_(log_det.sum() * 0)
        return z, log_det


class CachesItsInput(Scale):
    """Pyro's way: the inverse looks up what forward has seen."""

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        self._seen = z
        return z, log_det


class RemembersItsScale(Scale):
    """A matrix computed in the first call and never again."""

    def forward(self, x, context=None):
        if not hasattr(self, "_scale"):
            self._scale = self.log_scale.detach().exp()
        return x * self._scale + self.shift, self._scale.log().sum().expand(x.shape[:-1])


class StateOutsideTheStateDict(Scale):
    def __init__(self, features=2):
        super().__init__(features)
        self.centre = 0.0

    def initialize(self, x, context=None):
        self.centre = x.mean().item()

    def forward(self, x, context=None):
        return super().forward(x - self.centre)

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x + self.centre, log_det


class PromisesAConstant(Elementwise):
    constant_log_det = True


class DropsTooMuch(Elementwise):
    def unnormalized(self, x, context=None):
        z, log_det = self(x, context)
        return z, torch.zeros_like(log_det)


class StartsElsewhere(Scale):
    def __init__(self, features=2):
        super().__init__(features)
        nn.init.constant_(self.shift, 0.1)


class HasAnUnusedParameter(Scale):
    def __init__(self, features=2):
        super().__init__(features)
        self.unused = nn.Parameter(torch.zeros(3))


class HasADeadParameter(Scale):
    def __init__(self, features=2):
        super().__init__(features)
        self.dead = nn.Parameter(torch.zeros(2))

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z + 0 * self.dead, log_det


class MapsOntoHalf(Scale):
    """A smooth monotone map of the line onto (0, inf): half of the noise is never reached."""

    constant_log_det = False

    def forward(self, x, context=None):
        return x.exp(), x.sum(-1)

    def inverse(self, z, context=None):
        return z.log(), -z.log().sum(-1)


@flowkit.register
class RandomStep(Scale):
    """A symmetric random step before the scale: its path weight is the log_det of the scale."""

    stochastic = True
    constant_log_det = False

    def noise(self, like, generator):
        device = like.device
        return 0.5 * torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device)

    def forward(self, x, context=None, generator=None):
        return super().forward(x + self.noise(x, generator))

    def inverse(self, z, context=None, generator=None):
        x, log_det = super().inverse(z)
        return x + self.noise(x, generator), log_det


class RandomStepOfTheWrongWeight(RandomStep):
    def inverse(self, z, context=None, generator=None):
        x, log_det = super().inverse(z, generator=generator)
        return x, log_det + 0.5


class MadeAnew(Scale):
    """A layer that is another one whenever it is made."""

    made = 0

    def __init__(self, features=2):
        super().__init__(features)
        MadeAnew.made += 1
        self._number = MadeAnew.made

    def forward(self, x, context=None):
        z, log_det = super().forward(x)
        return z + self._number, log_det

    def inverse(self, z, context=None):
        return super().inverse(z - self._number)


def narrow_normal(x):
    """Variance one half: with a wider base the path weights have a finite variance."""
    return -x.square().sum(-1) - 0.5 * x.shape[-1] * math.log(math.pi)


@flowkit.register
class Rounds(Scale):
    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x * (1 + 1e-6), log_det


@flowkit.register
class OneWay(Scale):
    inverse = Transform.inverse


BROKEN = [
    ("R1", LogDetOfEveryFeature, {}),
    ("R2", OneBatchDimensionOnly, {}),
    ("R3", NamesItsDtype, {}),
    ("R3", ForgetsTheDevice, {}),
    ("R4", WrongInverse, {}),
    ("R4", InverseLosesDigitsFarOut, {}),
    ("R4", WrongSignInTheInverse, {}),
    ("R5", WrongLogDetBothWays, {}),
    ("R6", RootAtZero, {}),
    ("R7", DetachedInverse, {"skip": {"R5": "isolate", "R6": "isolate"}}),
    ("R8", BranchesOnAValue, {"skip": {"R3": "isolate", "R5": "isolate"}}),
    ("R9", WritesInPlace, {"skip": {"R8": "isolate", "R5": "isolate", "R3": "isolate"}}),
    ("R10", CachesItsInput, {"skip": {"R5": "isolate", "R9": "isolate"}}),
    ("R10", RemembersItsScale, {"skip": {f"R{i}": "isolate" for i in (3, 5, 7, 8, 9)}}),
    ("R10", StateOutsideTheStateDict, {}),
    ("R11", PromisesAConstant, {}),
    ("R11", DropsTooMuch, {}),
    ("R12", StartsElsewhere, {}),
    ("R13", HasAnUnusedParameter, {}),
    ("R13", HasADeadParameter, {}),
    ("R14", RandomStepOfTheWrongWeight, {"target": narrow_normal}),
    ("R15", MapsOntoHalf, {"far": (), "starts_at_identity": False, "skip": {"R13": "isolate"}}),
    ("R16", MadeAnew, {"starts_at_identity": False}),
]


@pytest.mark.parametrize(
    ("rule", "broken", "options"), BROKEN, ids=lambda v: getattr(v, "__name__", None)
)
def test_a_broken_transform_is_caught_by_its_rule(rule, broken, options):
    flowkit.register(broken)
    with pytest.raises(ContractError, match=rf"{broken.__name__}.*breaks {rule} ") as caught:
        check_transform(broken(2), dtypes=(torch.float64,), backend="eager", **options)
    assert "expected" in str(caught.value)
    assert "got" in str(caught.value)


def test_every_rule_has_an_example_that_breaks_it():
    assert {rule for rule, _, _ in BROKEN} == {f"R{number}" for number in range(1, 17)}


def test_the_correct_transform_passes_every_rule_that_applies():
    report = check_transform(Scale(), backend="aot_eager")
    assert report.skipped == {"R14": "the transform is deterministic"}
    assert len(report.results) == 32


def test_a_correct_stochastic_layer_passes_the_rules_for_paths():
    report = check_transform(RandomStep(), target=narrow_normal, dtypes=(torch.float64,))
    passed = {result.rule for result in report.results if result.passed}
    assert passed == {"R1", "R2", "R3", "R10", "R13", "R14", "R16"}


def test_float32_is_held_to_its_own_tolerance():
    skip = {"R5": "isolate", "R7": "isolate"}
    check_transform(Rounds(), dtypes=(torch.float32,), skip=skip, backend="eager")
    with pytest.raises(ContractError, match="breaks R4"):
        check_transform(Rounds(), dtypes=(torch.float64,), skip=skip, backend="eager")


def test_the_users_transform_and_random_state_stay_untouched():
    transform = LULinear(2)
    before, state = copy.deepcopy(transform.state_dict()), torch.get_rng_state()
    check_transform(transform, backend="aot_eager")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in transform.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in transform.parameters())


def test_a_transform_without_inverse_is_checked_forward_only():
    report = check_transform(OneWay(), backend="aot_eager")
    assert report.skipped["R4"] == "the transform defines no inverse"
    assert set(report.skipped) == {"R4", "R14"}


def test_nothing_is_skipped_without_a_reason():
    report = check_transform(Scale(), skip={"R8": "no compiler here"})
    assert report.skipped["R8"] == "no compiler here"
    assert "skipped: no compiler here" in str(report)
    with pytest.raises(ValueError, match="expected skip as a reason for R8, got ''"):
        check_transform(Scale(), skip={"R8": ""})
    with pytest.raises(ValueError, match="skip as reasons by rules, of R1, .*, got 'R99'"):
        check_transform(Scale(), skip={"R99": "unheard of"})


def test_inputs_of_the_wrong_shape_are_refused_in_words():
    with pytest.raises(ShapeError, match=r"expected x \(n, \*event\) with n >= 2"):
        check_transform(Scale(), x=torch.zeros(2))
    with pytest.raises(ShapeError, match=r"expected context \(4, 1\), got \(3, 1\)"):
        check_transform(Elementwise(2, context=1), torch.randn(4, 2), torch.randn(3, 1))
