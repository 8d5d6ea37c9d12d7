"""Run the rules of a check one by one, and say what broke which of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

from flowkit.checks import fail
from flowkit.errors import ContractError, FlowkitError
from flowkit.testing.report import ContractReport, RuleResult

Subject = TypeVar("Subject")

# A check that takes longer than this shows its progress.
_PATIENCE = 10.0


def run_rules(
    owner: str,
    label: str,
    rules: Mapping[str, tuple[str, Callable[[Subject], str | None]]],
    prepare: Callable[[torch.dtype], Subject],
    dtypes: Sequence[torch.dtype],
    skip: Mapping[str, str] | None,
    seed: int,
) -> ContractReport:
    """Ask every rule in every dtype; the global random state stays as it is.

    Args:
        owner: The check, for messages.
        label: The name of what is checked.
        rules: By its name the title of a rule, and what asks it: ``None`` if it holds, the reason
            if it does not apply.
        prepare: Makes what a rule is asked about, in a dtype.
        dtypes: The dtypes of the numbers.
        skip: Rules that shall not be checked, each with a reason.
        seed: Seed of everything random.

    Raises:
        ArgumentError: If ``skip`` names an unknown rule or gives no reason.
        ContractError: If a rule is broken, or cannot be checked.
    """
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
            asked = f"{name} ({title}) in {str(dtype)[6:]}"
            reason = skip[name] if name in skip else _ask(label, asked, rule, prepare, dtype)
            results.append(RuleResult(name, title, dtype, reason))
    return ContractReport(label, tuple(results))


def _ask(
    label: str,
    asked: str,
    rule: Callable[[Subject], str | None],
    prepare: Callable[[torch.dtype], Subject],
    dtype: torch.dtype,
) -> str | None:
    """Ask one rule.

    What the package raises on purpose, such as a root search that did not converge, says that the
    rule could not be checked; any other exception breaks it.
    """
    try:
        return rule(prepare(dtype))
    except ContractError as error:
        raise ContractError(f"{label} breaks {asked}: {error}") from error
    except FlowkitError as error:
        told = f"cannot be checked for {asked}: {type(error).__name__}: {error}"
        raise ContractError(f"{label} {told}") from error
    except Exception as error:
        told = f"expected the check to run, got {type(error).__name__}: {error}"
        raise ContractError(f"{label} breaks {asked}: {told}") from error
