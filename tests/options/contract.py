"""The checks of the contract: what each option of ``check_transform`` lets through or stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import flowkit
from flowkit.bases import StandardNormal, Uniform
from flowkit.conditioners import MLP
from flowkit.energies import Energy
from flowkit.errors import ContractError
from flowkit.objectives import Loss, MaximumLikelihood
from flowkit.scalar import Affine
from flowkit.stochastic import Metropolis
from flowkit.testing import (
    check_base,
    check_conditioner,
    check_energy,
    check_objective,
    check_scalar,
    check_transform,
)
from flowkit.testing.points import expect_one_sided_derivatives, expect_second_derivatives
from flowkit.toys import DoubleWell
from flowkit.transforms import DenseLinear, Rescale, Transform

from .harness import differs, of, seeds, shows
from .parts import C, D, X, rows

# Derivatives and compiled programs take long, and no option here is about them.
SKIPPED = {f"R{i}": "of no interest here" for i in (2, 3, 6, 7, 8, 9, 10, 13)}
QUICK: dict[str, Any] = {"skip": SKIPPED, "dtypes": (torch.float64,), "starts_at_identity": False}


def checked(layer: Transform, **options: Any) -> str:
    """The report on a layer, or the rule that it breaks."""
    try:
        return str(check_transform(layer, **{**QUICK, **options}))
    except ContractError as error:
        return str(error)


def holds(text: str) -> bool:
    """Whether a layer keeps every rule that was asked."""
    return "breaks" not in text


@flowkit.register
class Shifted(Transform):
    """A layer that can be wrong: by a constant, far out, or as soon as its parameter moves."""

    seen: list[tuple[Tensor, Tensor | None]] = []

    def __init__(self, wrong: float = 0.0, far: float = 0.0, context: int = 0) -> None:
        super().__init__((1,), context=context)
        self.wrong, self.far = wrong, far
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append((x.detach().clone(), context))
        off = torch.where(x.abs() > 50, self.far, 0.0).to(x)
        return x + 1 + off, x.new_zeros(x.shape[:-1]) + self.wrong

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z - 1, z.new_zeros(z.shape[:-1]) - self.wrong


@flowkit.register
class Moving(Shifted):
    """A layer whose log-determinant is wrong where its parameter is not zero."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x, context)
        return z, log_det + self.shift

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(z, context)
        return x, log_det - self.shift


def given(**options: Any) -> Any:
    """The first inputs and contexts that a layer is asked about."""
    Shifted.seen.clear()
    checked(Shifted(context=1), **options)
    return Shifted.seen[0]


def backends(**options: Any) -> list[Any]:
    """How the layer is compiled; the compiler itself is left out."""
    skip = {f"R{i}": "of no interest here" for i in range(1, 16) if i != 8}
    with mock.patch("torch.compile", side_effect=lambda f, **_: f) as compiler:
        checked(DenseLinear(1), skip=skip, **options)
    return [call.kwargs["backend"] for call in compiler.call_args_list]


walker = Metropolis(DoubleWell(), steps=2)


def normal(x: Tensor) -> Tensor:
    """A log-density that is not that of the walker."""
    return StandardNormal(2).to(x).log_prob(x)


of(
    check_transform,
    None,
    x=differs(rows(4, 1), rows(6, 1), see=given),
    context=differs(C, D, using={"x": X[:, :1]}, see=given),
    starts_at_identity=shows(holds, False, base=True, see=lambda **o: checked(Shifted(), **o)),
    skip=shows(
        holds,
        {**SKIPPED, "R4": "known", "R5": "known", "R15": "known"},
        base=SKIPPED,
        see=lambda **o: checked(Shifted(wrong=0.1), **o),
    ),
    dtypes=differs(
        (torch.float32,),
        (torch.float64, torch.float32),
        base=(torch.float64,),
        see=lambda **o: checked(Shifted(), **o),
    ),
    tolerance=shows(holds, {torch.float64: 0.2}, see=lambda **o: checked(Shifted(wrong=0.1), **o)),
    far=shows(holds, (10.0,), see=lambda **o: checked(Shifted(far=1.0), **o)),
    noise=shows(holds, 0.0, see=lambda **o: checked(Moving(), **o)),
    base=shows(
        holds,
        Uniform(1, lower=-1.0, upper=1.0),
        see=lambda **o: checked(Rescale([0.0], [1.0]), **o),
    ),
    target=differs(normal, see=lambda **o: checked(walker, **o)),
    backend=differs("aot_eager", "eager", see=backends),
    seed=seeds(see=given),
)

# Scalar maps, and single points -------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Affine):
    """A map that is no inverse of itself far out, and for large parameters."""

    asked = []

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(params.detach().clone())
        y, log_slope = super().forward(x, params)
        wrong = (x.abs() > 500) | (params[..., 0].abs() > 50)
        return torch.where(wrong, y + 100 * y.abs(), y), log_slope


def questioned(**options: Any) -> str:
    """The report on a scalar map, or the rule that it breaks."""
    told = {"dtypes": (torch.float64,), "scales": (0.0, 0.1), "reach": 100.0, **options}
    try:
        return str(check_scalar(Broken(), **told))
    except ContractError as error:
        return str(error)


def parameters(**options: Any) -> Any:
    """The parameters that a map is asked about."""
    Broken.asked.clear()
    questioned(**options)
    return Broken.asked[-1]


of(
    check_scalar,
    questioned,
    dtypes=differs((torch.float32,), (torch.float64, torch.float32), base=(torch.float64,)),
    scales=shows(holds, (0.0,), base=(0.0, 1000.0)),
    reach=shows(holds, 10.0, base=1e4),
    seed=seeds(see=parameters),
)
at = torch.zeros(1, 1, dtype=torch.float64)


def around(x: Tensor) -> list[Tensor]:
    """A value that goes around a circle at zero."""
    return [(x - torch.floor(x.detach())).sum(-1)]


def bent(x: Tensor) -> list[Tensor]:
    """A value whose slope jumps at zero."""
    return [torch.where(x > 0, 2 * x, x).sum(-1) + 0 * x.square().sum(-1)]


def told(call: Any) -> str:
    """What breaks a rule; empty if it holds."""
    try:
        call()
    except ContractError as error:
        return f"breaks: {error}"
    return ""


of(
    expect_one_sided_derivatives,
    lambda **o: told(lambda: expect_one_sided_derivatives("f", around, at, [True], **o)),
    wraps=shows(holds, True),
)
of(
    expect_second_derivatives,
    lambda **o: told(
        lambda: expect_second_derivatives("f", bent, at, torch.Generator().manual_seed(0), **o)
    ),
    wraps=shows(holds, True),
)

# Other parts ---------------------------------------------------------------------------------


@flowkit.register
class Heavier(StandardNormal):
    """A base whose density is not that of its samples."""

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(z) + 0.2


@flowkit.register
class Remembering(StandardNormal):
    """A base that remembers where it was asked."""

    asked: list[Tensor] = []

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        self.asked.append(z.detach().clone())
        return super().log_prob(z)


@flowkit.register
class Drifting(Energy):
    """An energy whose force is no gradient; it remembers where it was asked."""

    asked: list[Tensor] = []

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.asked.append(x.detach().clone())
        return x.square().sum(-1)

    def energy_and_force(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.energy(x), 1 - 2 * x


@flowkit.register
class Lifted(MLP):
    """A network that does not start at zero; it remembers what it read."""

    asked: list[Tensor] = []

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.asked.append(x.detach().clone())
        return super().forward(x, context) + 1


class Doubling(MaximumLikelihood):
    """A loss with draws of the global state, and another gradient; it remembers the weights."""

    asked: list[Tensor] = []

    def forward(self, flow: Any, batch: Any, *, generator: Any = None, progress: Any = 1) -> Any:
        self.asked.append(next(flow.parameters()).detach().clone())
        value = super().forward(flow, batch).value
        return Loss(value + value.detach(), {})


def reported(check: Any, *parts: Any, **options: Any) -> str:
    """The report on a part, or the rule that it breaks."""
    try:
        return str(check(*parts, **{"dtypes": (torch.float64,), **options}))
    except ContractError as error:
        return str(error)


def first_asked(part: Any, check: Any, *more: Any, **options: Any) -> Any:
    """What a part was given at first."""
    part.asked.clear()
    reported(check, part, *more, **options)
    return part.asked[0]


remembering = Remembering(1)
heavier, drifting, lifted = Heavier(1), Drifting((2,)), Lifted(2, 2, hidden=(4,))
doubling, learned = Doubling(), flowkit.elementwise_flow(2)
PARTS: list[tuple[Any, tuple[Any, ...], tuple[str, ...]]] = [
    (check_base, (heavier,), ("R5", "R14", "R15")),
    (check_energy, (drifting,), ("R5",)),
    (check_conditioner, (lifted,), ("R12",)),
    (check_objective, (doubling, learned, {"x": X}), ("R7",)),
]
for check, parts, wrong in PARTS:
    reasons = dict.fromkeys(wrong, "known")
    of(
        check,
        lambda check=check, parts=parts, **o: reported(check, *parts, **o),
        skip=shows(holds, reasons),
        dtypes=differs(
            (torch.float32,),
            (torch.float64, torch.float32),
            base=(torch.float64,),
            using={"skip": reasons},
        ),
    )
of(check_base, lambda **o: first_asked(remembering, check_base, **o), seed=seeds())
of(check_energy, lambda **o: first_asked(drifting, check_energy, **o), seed=seeds())
of(
    check_conditioner,
    lambda **o: first_asked(lifted, check_conditioner, **o),
    seed=seeds(),
    x=differs(2 * X),
    starts_at_zero=shows(
        holds, False, base=True, see=lambda **o: reported(check_conditioner, lifted, **o)
    ),
)
of(
    check_objective,
    lambda **o: first_asked(doubling, check_objective, learned, {"x": X}, **o),
    seed=seeds(),
)
