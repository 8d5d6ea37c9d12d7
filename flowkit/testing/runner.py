"""Run the rules of a check one by one, and say what broke which of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from tqdm import tqdm

from flowkit.checks import fail
from flowkit.errors import ContractError, FlowkitError
from flowkit.testing.report import ContractReport, RuleResult

#: The title of a rule, and what asks it: ``None`` if it holds, the reason if it does not apply.
Question = tuple[str, Callable[[torch.dtype], "str | None"]]

# A check that takes longer than this shows its progress.
_PATIENCE = 10.0


def run_rules(
    owner: str,
    label: str,
    rules: Mapping[str, Question],
    dtypes: Sequence[torch.dtype],
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ContractReport:
    """Ask every rule in every dtype; the global random state stays as it is.

    Args:
        owner: The check, for messages.
        label: The name of what is checked.
        rules: The rules by their names.
        dtypes: The dtypes of the numbers.
        skip: Rules that shall not be checked, each with a reason.
        seed: Seed of everything random.

    Raises:
        ArgumentError: If ``skip`` names an unknown rule or gives no reason.
        ContractError: If a rule is broken, or cannot be checked.
    """
    skip = skip or {}
    for name, reason in skip.items():
        if name not in rules:
            raise fail(owner, "skip", f"reasons by rules, of {', '.join(rules)}", name)
        if not isinstance(reason, str) or not reason.strip():
            raise fail(owner, "skip", f"a reason for {name}", reason)
    results = []
    pairs = list(itertools.product(dtypes, rules))
    with (
        torch.random.fork_rng(devices=[]),
        tqdm(pairs, f"{owner} {label}", delay=_PATIENCE, leave=False) as progress,
    ):
        torch.manual_seed(seed)
        for dtype, name in progress:
            title, question = rules[name]
            told = skip[name] if name in skip else ask(label, name, title, question, dtype)
            results.append(RuleResult(name, title, dtype, told))
    return ContractReport(label, tuple(results))


def ask(
    label: str,
    name: str,
    title: str,
    question: Callable[[torch.dtype], str | None],
    dtype: torch.dtype,
) -> str | None:
    """Ask one rule.

    What the package raises on purpose, such as a root search that did not converge, says that the
    rule could not be checked; any other exception breaks it.
    """
    rule = f"{name} ({title}) in {str(dtype)[6:]}"
    try:
        return question(dtype)
    except ContractError as error:
        raise ContractError(f"{label} breaks {rule}: {error}") from error
    except FlowkitError as error:
        raise ContractError(
            f"{label} cannot be checked for {rule}: {type(error).__name__}: {error}"
        ) from error
    except Exception as error:
        raise ContractError(
            f"{label} breaks {rule}: expected the check to run, got {type(error).__name__}: "
            f"{error}"
        ) from error
