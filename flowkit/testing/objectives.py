"""check_objective: the contract of what is minimised."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.flow import Flow
from flowkit.objectives import Loss, Objective
from flowkit.objectives.base import Batch
from flowkit.testing.common import expect_same_copies
from flowkit.testing.probe import expect, expect_finite, expect_shape, noise_of, randomize
from flowkit.testing.runner import DTYPES, ContractReport, Rules, Skipped, run_rules


def check_objective(
    objective: Objective,
    flow: Flow,
    batch: Batch,
    *,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
) -> ContractReport:
    """Check an objective on a flow and a batch against the contract.

    R1 a :class:`flowkit.objectives.Loss` of finite scalar tensors; R3 in the dtype of the flow; R7
    its gradient is that of finite differences; R10 copies give the same bits; R11 it reads what
    ``reads`` says; R13 the flow gets a gradient; R14 the generator is the only source of
    randomness.

    Args:
        objective: The objective.
        flow: A flow that it can be called with.
        batch: What it reads, float tensors.
        skip: Rules that shall not be checked, each with a reason.
        dtypes: The dtypes in which every rule is run.
        seed: Seed of everything random.

    Raises:
        ContractError: If a rule is broken; names the rule, what was expected and what came.

    Example:
        >>> import torch
        >>> from flowkit import MaximumLikelihood, elementwise_flow
        >>> from flowkit.testing import check_objective
        >>> batch = {"x": torch.randn(8, 2)}
        >>> check_objective(MaximumLikelihood(), elementwise_flow(2), batch).skipped
        {}
    """
    checks.instance("check_objective", "objective", objective, Objective)
    seed = checks.integer("check_objective", "seed", seed, least=0, most=None)

    def prepare(dtype: torch.dtype) -> _Evaluated:
        given: Any = copy.deepcopy(nn.ModuleList([objective, flow])).to(dtype)
        randomize(given[1], 0.1, torch.Generator().manual_seed(seed))
        values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
        return _Evaluated(given[0], given[1], values, dtype, seed)

    name = type(objective).__name__
    return run_rules("check_objective", name, _RULES, prepare, dtypes, skip, seed)


@dataclass(frozen=True)
class _Evaluated:
    objective: Objective
    flow: Flow
    batch: Batch
    dtype: torch.dtype
    seed: int

    @property
    def learned(self) -> list[Tensor]:
        return [p for p in self.flow.parameters() if p.requires_grad]

    def __call__(self, objective: Any = None) -> Loss:
        generator = torch.Generator().manual_seed(self.seed)
        chosen = self.objective if objective is None else objective
        return chosen(self.flow, self.batch, generator=generator)

    def gradients(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self().value, self.learned, materialize_grads=True)


def _losses(given: _Evaluated) -> None:
    loss = given()
    expect(isinstance(loss, Loss), f"expected a Loss, got {type(loss).__name__}")
    for name, value in {"the loss": loss.value, **loss.terms}.items():
        expect_shape(name, value, ())
        expect_finite(name, value)


def _dtype(given: _Evaluated) -> None:
    got = given().value.dtype
    expect(got == given.dtype, f"expected a loss in {given.dtype}, got {got}")


def _gradient(given: _Evaluated) -> None:
    if given.dtype != torch.float64:
        raise Skipped("finite differences need float64")
    generator = torch.Generator().manual_seed(given.seed)
    steps = [noise_of(*p.shape, generator=generator) for p in given.learned]
    slope = sum(float((g * s).sum()) for g, s in zip(given.gradients(), steps, strict=True))
    values = []
    for width in (1e-5, -2e-5):
        with torch.no_grad():
            for p, step in zip(given.learned, steps, strict=True):
                p.add_(width * step)
        values.append(given().value.item())
    finite = (values[0] - values[1]) / 2e-5
    error = abs(slope - finite) / (1 + abs(finite))
    expect(error < 1e-5, f"expected a directional derivative of {finite:.9g}, got {slope:.9g}")


def _copies(given: _Evaluated) -> None:
    # The weights of the flow are as they are: only the objective is copied.
    other = copy.deepcopy(given.objective)
    expect_same_copies(given.objective, other, lambda m: (given(m).value.detach(),))


def _reads(given: _Evaluated) -> None:
    reads = given.objective.reads
    if reads is None:
        raise Skipped("it does not say what it reads")
    batch = {name: value for name, value in given.batch.items() if name in reads}
    got, want = replace(given, batch=batch)().value, given().value
    expect(torch.equal(got, want), f"expected it to read {sorted(reads)} alone, but others matter")


def _learns(given: _Evaluated) -> None:
    known = any((gradient != 0).any() for gradient in given.gradients())
    expect(known, "expected a gradient for the flow, got none, or zeros throughout")


def _draws(given: _Evaluated) -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), given().value
    same_state = torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    expect(
        same_state and torch.equal(first, given().value),
        "expected the generator to decide alone, got draws from the global state",
    )


_RULES: Rules = {
    "R1": ("the loss is a finite scalar", _losses),
    "R3": ("dtype follows the flow", _dtype),
    "R7": ("the gradient is that of finite differences", _gradient),
    "R10": ("copies give the same bits", _copies),
    "R11": ("it reads what it says", _reads),
    "R13": ("the flow gets a gradient", _learns),
    "R14": ("the generator decides alone", _draws),
}
