"""check_conditioner: the contract of the networks of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from flowkit import checks
from flowkit.conditioners import AutoregressiveConditioner, Conditioner
from flowkit.testing.common import OF_PARTS, Part
from flowkit.testing.probe import (
    DTYPES,
    ROWS,
    Rules,
    check_probe,
    expect,
    expect_close,
    noise_of,
)
from flowkit.testing.report import ContractReport


def check_conditioner(
    conditioner: Conditioner | AutoregressiveConditioner,
    x: Tensor | None = None,
    *,
    starts_at_zero: bool = True,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
) -> ContractReport:
    """Check a conditioner, of couplings or of autoregressive layers, against the contract.

    R1 to R3 shapes, batches, dtypes; R5 parameters read no feature of their own block or later
    ones (autoregressive); R6, R7 derivatives; R9 vmap; R10 copies; R12 zeros at the start; R13
    gradients.

    Args:
        conditioner: The network, as its constructor leaves it.
        x: At least two inputs ``(n, in_features, *grid)``; drawn by default, without a grid.
        starts_at_zero: Whether a new one emits zeros, at which scalar maps are the identity.
        skip: Rules that shall not be checked, each with a reason.
        dtypes: The dtypes in which every rule is run.
        seed: Seed of everything random.

    Raises:
        ContractError: If a rule is broken; names the rule, what was expected and what came.

    Example:
        >>> from flowkit.conditioners import MaskedMLP
        >>> from flowkit.testing import check_conditioner
        >>> check_conditioner(MaskedMLP(3, 2, hidden=(8,))).skipped
        {}
    """
    seed = checks.integer("check_conditioner", "seed", seed, least=0, most=None)
    causal = isinstance(conditioner, AutoregressiveConditioner)
    net: Any = conditioner
    if x is None:
        x = noise_of(ROWS, net.in_features, generator=torch.Generator().manual_seed(seed))
    size: int = getattr(net, "context_size", 0)
    if causal:
        out = (net.in_features, net.param_size)
    elif hasattr(net, "out_features"):
        out = (net.out_features, *x.shape[2:])
    else:
        out = tuple(net(x[:1].float(), None).shape[1:])

    @torch.no_grad()
    def starts(part: Part) -> str | None:
        if not starts_at_zero:
            return "starts_at_zero=False"
        got = part.start(part.x, part.context)
        expect_close("the output of a new conditioner", got, 0 * got, part.tolerance)
        return None

    rules: Rules[Part] = {**OF_PARTS, "R12": ("starts at zero", starts)}
    if causal:
        rules = {**rules, "R5": ("nothing reads itself or later features", _causal)}
    part = Part.of(net, x.double(), size, seed, out=out)
    return check_probe("check_conditioner", type(net).__name__, part, rules, dtypes, skip)


def _causal(part: Part) -> None:
    jacobian = vmap(jacrev(part))(*part.rows).abs().sum((0, 2))
    token = torch.arange(len(jacobian)) // getattr(part.moved, "block", 1)
    read = jacobian * (token.unsqueeze(-1) <= token)
    expect(
        not bool(read.any()),
        f"expected no derivative in the same or later features, got {read.max().item():.3g} of "
        f"feature {int(read.amax(-1).argmax())}",
    )
