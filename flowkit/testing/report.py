"""What the programs of the contract return: every rule with its result."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
