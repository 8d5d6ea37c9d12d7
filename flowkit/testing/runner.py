"""Run the rules of a check one by one, report their results, and say what broke which of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from flowkit.checks import as_list, fail
from flowkit.errors import ContractError, FlowkitError

#: By its name the title of a rule, and what raises where it is broken, or ``Skipped``.
Rules = Mapping[str, tuple[str, Callable[[Any], None]]]

DTYPES = (torch.float64, torch.float32)
# A check that takes longer than this shows its progress.
_PATIENCE = 10.0


@dataclass(frozen=True)
class RuleResult:
    """What became of one rule: passed, or not checked for a stated reason.

    Attributes:
        rule: ``R1`` to ``R16``.
        title: The rule in words.
        dtype: The dtype of the numbers.
        reason: Why the rule was not checked; ``None`` if it was, and holds.
    """

    rule: str
    title: str
    dtype: torch.dtype
    reason: str | None

    @property
    def passed(self) -> bool:
        """Whether the rule was checked, and holds."""
        return self.reason is None


@dataclass(frozen=True)
class ContractReport:
    """Every rule with its result, in every dtype; ``print`` it to read it.

    Attributes:
        label: The name of what was checked.
        results: One entry per rule and dtype.
    """

    label: str
    results: tuple[RuleResult, ...]

    @property
    def skipped(self) -> dict[str, str]:
        """Rules that were checked in no dtype, each with its reason."""
        passed = {result.rule for result in self.results if result.passed}
        return {r.rule: r.reason for r in self.results if r.reason and r.rule not in passed}

    def __str__(self) -> str:
        rows = [self.label]
        for r in self.results:
            outcome = "passed" if r.passed else f"skipped: {r.reason}"
            rows.append(f"  {r.rule:<4}{str(r.dtype)[6:]:<9}{r.title:<42}{outcome}")
        return "\n".join(rows)


class Skipped(Exception):  # noqa: N818
    """A rule does not apply, for a reason."""


def run_rules(
    owner: str,
    label: str,
    rules: Rules,
    prepare: Callable[[torch.dtype], Any],
    dtypes: Sequence[torch.dtype],
    skip: Mapping[str, str] | None,
    seed: int,
    known: Sequence[torch.dtype] = DTYPES,
) -> ContractReport:
    """Ask every rule in every dtype; the global random state stays as it is.

    Args:
        owner: The check, for messages.
        label: The name of what is checked.
        rules: What is asked, by its name.
        prepare: Makes what a rule is asked about, in a dtype.
        dtypes: The dtypes of the numbers.
        skip: Rules that shall not be checked, each with a reason.
        seed: Seed of everything random.
        known: The dtypes that there may be.

    Raises:
        ArgumentError: If a dtype is none of these, ``skip`` names an unknown rule, or gives no
            reason.
        ContractError: If a rule is broken, or cannot be checked.
    """
    if not all(dtype in known for dtype in as_list(dtypes) or [dtypes]):
        raise fail(owner, "dtypes", f"a sequence of {', '.join(map(str, known))}", dtypes)
    skip = skip or {}
    for name, why in skip.items():
        if name not in rules:
            raise fail(owner, "skip", f"reasons by rules, of {', '.join(rules)}", name)
        if not isinstance(why, str) or not why.strip():
            raise fail(owner, "skip", f"a reason for {name}", why)
    results = []
    pairs = list(itertools.product(dtypes, sorted(rules, key=lambda name: int(name[1:]))))
    with (
        torch.random.fork_rng(devices=[]),
        tqdm(pairs, f"{owner} {label}", delay=_PATIENCE, leave=False) as progress,
    ):
        torch.manual_seed(seed)
        for dtype, name in progress:
            title, rule = rules[name]
            asked, reason = f"{name} ({title}) in {str(dtype)[6:]}", skip.get(name)
            # What the package raises on purpose, such as a root search that did not converge, says
            # that the rule could not be checked; any other exception breaks it.
            try:
                if reason is None:
                    rule(prepare(dtype))
            except Skipped as why:
                reason = str(why)
            except ContractError as error:
                raise ContractError(f"{label} breaks {asked}: {error}") from error
            except FlowkitError as error:
                told = f"cannot be checked for {asked}: {type(error).__name__}: {error}"
                raise ContractError(f"{label} {told}") from error
            except Exception as error:
                told = f"expected the check to run, got {type(error).__name__}: {error}"
                raise ContractError(f"{label} breaks {asked}: {told}") from error
            results.append(RuleResult(name, title, dtype, reason))
    return ContractReport(label, tuple(results))
