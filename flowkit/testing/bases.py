"""check_base: the contract of base distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.distributions import biject_to, transform_to

from flowkit import checks
from flowkit.bases import Base
from flowkit.errors import NotInvertibleError
from flowkit.testing.common import DRAWS, OF_PARTS, STANDARD_ERRORS, Part
from flowkit.testing.densities import mass_is_one
from flowkit.testing.probe import (
    DTYPES,
    ROWS,
    Rules,
    check_probe,
    expect,
    expect_close,
    expect_shape,
    noise_of,
)
from flowkit.testing.report import ContractReport


def check_base(
    base: Base,
    *,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
) -> ContractReport:
    """Check a base distribution against the contract.

    R1 to R3 shapes, batches, dtypes; R4 quantiles undo the distribution function; R5 the density
    is its derivative; R6, R7 derivatives; R9 vmap; R10 copies; R13 gradients; R14 samples have the
    shape, the support and the distribution that are stated; R15 the density integrates to one.

    Args:
        base: The base, as its constructor leaves it.
        skip: Rules that shall not be checked, each with a reason.
        dtypes: The dtypes in which every rule is run.
        seed: Seed of everything random.

    Raises:
        ContractError: If a rule is broken; names the rule, what was expected and what came.

    Example:
        >>> from flowkit.bases import Logistic
        >>> from flowkit.testing import check_base
        >>> check_base(Logistic(1)).skipped
        {'R13': 'there are no parameters to learn'}
    """
    seed = checks.integer("check_base", "seed", seed, least=0, most=None)
    generator = torch.Generator().manual_seed(seed)
    x = transform_to(base.support)(noise_of(ROWS, *base.event_shape, generator=generator))
    part = Part.of(base, x, base.context_size, seed, function=type(base).log_prob)
    return check_probe("check_base", type(base).__name__, part, _RULES, dtypes, skip)


@torch.no_grad()
def _quantiles(part: Part) -> str | None:
    q = torch.linspace(0.05, 0.95, part.x.numel()).to(part.x).reshape(part.x.shape)
    try:
        for what, there, back in (
            ("cdf(icdf(q))", part.moved.icdf, part.moved.log_cdf),
            ("survival(isf(q))", part.moved.isf, part.moved.log_survival),
        ):
            got = back(there(q, part.context), part.context).exp()
            expect_close(what, got, q, 10 * part.tolerance)
    except NotInvertibleError as error:
        return str(error)
    return None


def _slopes(part: Part) -> str | None:
    try:
        part.moved.log_cdf(part.x, part.context)
    except NotInvertibleError as error:
        return str(error)
    x = part.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(part.moved.cdf(x, part.context).sum(), x)
    log_density = slope.log().flatten(1).sum(-1)
    expect_close("the log-density", part(part.x, part.context), log_density, 10 * part.tolerance)
    return None


@torch.no_grad()
def _samples(part: Part) -> None:
    before = torch.get_rng_state()
    context = None if part.context is None else part.context[:1]
    x = part.moved.sample((DRAWS,), context, part.generator())
    shape = (DRAWS, *([] if context is None else [1]), *part.moved.event_shape)
    expect_shape("samples", x, shape)
    expect(torch.equal(before, torch.get_rng_state()), "expected a generator to be the only "
           "source of randomness, got another state of the global one")  # fmt: skip
    expect(bool(part.moved.support.check(x).all()), "expected samples in the support, got others")
    flat = x.reshape(DRAWS, -1).double()
    # Importance weights of a narrower normal, or of a smaller box, in place of the base.
    low, high = flat.quantile(0.3, 0), flat.quantile(0.7, 0)
    inside = ((flat >= low) & (flat <= high)).all(-1)
    log_volume = (high - low).log().sum()
    log_prob = part(x, context).reshape(DRAWS).double()
    weight = torch.where(inside, (-log_volume - log_prob).exp(), 0.0)
    mean, error = weight.mean().item(), weight.std().item() / math.sqrt(DRAWS)
    if bool(inside.sum() > 100):
        expect(
            abs(mean - 1) <= STANDARD_ERRORS * error + 1e-3,
            f"expected weights of a box in place of the base with mean 1, got {mean:.5g} with a "
            f"standard error of {error:.2g}",
        )


@torch.no_grad()
def _integrates(part: Part) -> str | None:
    context = None if part.context is None else part.context[0]
    return mass_is_one(lambda x: part(x, context), biject_to(part.moved.support), part.x[0])


_RULES: Rules[Part] = {
    **OF_PARTS,
    "R4": ("quantiles undo the distribution function", _quantiles),
    "R5": ("the density is the slope of the distribution function", _slopes),
    "R14": ("samples follow the density", _samples),
    "R15": ("the density integrates to one", _integrates),
}
