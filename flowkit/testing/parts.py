"""check_base, check_conditioner, check_energy: the contract of parts with one output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.func import jacrev, vmap

from flowkit import checks
from flowkit.bases import Base
from flowkit.conditioners import AutoregressiveConditioner, Conditioner
from flowkit.energies import Energy
from flowkit.errors import NotInvertibleError
from flowkit.testing.common import COMMON, two_orders_of_derivatives
from flowkit.testing.densities import expect_mass_of_one
from flowkit.testing.probe import (
    DRAWS,
    ROWS,
    Probe,
    check_probe,
    expect,
    expect_close,
    expect_finite_gradients,
    expect_mean,
    expect_shape,
    noise_of,
)
from flowkit.testing.runner import DTYPES, ContractReport, Rules, Skipped


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
    shape, the support and the distribution that are stated; R15 the density integrates to one; R16
    a description builds it again.

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
    checks.instance("check_base", "base", base, Base)
    seed = checks.integer("check_base", "seed", seed, least=0, most=None)
    generator = torch.Generator().manual_seed(seed)
    x = transform_to(base.support)(noise_of(ROWS, *base.event_shape, generator=generator))
    probe = Probe.of(base, x, base.context_size, seed, function=type(base).log_prob)
    return check_probe("check_base", type(base).__name__, probe, _OF_BASES, dtypes, skip)


def check_conditioner(
    conditioner: Conditioner,
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
    gradients; R16 a description builds it again.

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
    checks.instance("check_conditioner", "conditioner", conditioner, Conditioner)
    seed = checks.integer("check_conditioner", "seed", seed, least=0, most=None)
    rules, net = _OF_CONDITIONERS, conditioner
    if x is None:
        x = noise_of(ROWS, net.in_features, generator=torch.Generator().manual_seed(seed))
    out = (net.out_features, *x.shape[2:])
    if isinstance(net, AutoregressiveConditioner):
        rules = {**rules, "R5": ("nothing reads itself or later features", _causal)}
        out = (net.in_features, net.param_size)
    if not starts_at_zero:
        skip = {"R12": "starts_at_zero=False", **(skip or {})}
    probe = Probe.of(net, x.double(), net.context_size, seed, out=out)
    return check_probe("check_conditioner", type(net).__name__, probe, rules, dtypes, skip)


def check_energy(
    energy: Energy,
    *,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    seed: int = 0,
) -> ContractReport:
    """Check an energy against the contract.

    R1 to R3 shapes, batches, dtypes; R5 the force is minus the gradient; R6, R7 derivatives; R9
    vmap; R10 copies; R13 gradients; R14 exact samples have a mean force of zero; R15
    ``log_normalizer`` is that of a grid, in one and two dimensions; R16 a description builds it
    again.

    Args:
        energy: The energy.
        skip: Rules that shall not be checked, each with a reason.
        dtypes: The dtypes in which every rule is run.
        seed: Seed of everything random.

    Raises:
        ContractError: If a rule is broken; names the rule, what was expected and what came.

    Example:
        >>> from flowkit.testing import check_energy
        >>> from flowkit.toys import DoubleWell
        >>> check_energy(DoubleWell()).skipped
        {'R13': 'there are no parameters to learn'}
    """
    checks.instance("check_energy", "energy", energy, Energy)
    seed = checks.integer("check_energy", "seed", seed, least=0, most=None)
    x = noise_of(ROWS, *energy.event_shape, generator=torch.Generator().manual_seed(seed))
    probe = Probe.of(energy, x, energy.context_size, seed)
    return check_probe("check_energy", type(energy).__name__, probe, _OF_ENERGIES, dtypes, skip)


@contextmanager
def _where_defined() -> Iterator[None]:
    """Skip a rule about what a part says that it does not define."""
    try:
        yield
    except NotInvertibleError as error:
        raise Skipped(str(error)) from error


def _gradients(probe: Probe) -> None:
    x = torch.cat([probe.x, 0 * probe.x, 1e3 * probe.x]).requires_grad_()
    value = probe(x, *(context.repeat(3, 1) for context in probe.rows[1:]))
    inside = value.detach().isfinite()
    expect_finite_gradients("the output", value[inside], {"x": x})


def _derivatives(probe: Probe) -> None:
    if not probe(*(tensor.clone().requires_grad_() for tensor in probe.rows)).requires_grad:
        raise Skipped("nothing is differentiable")
    two_orders_of_derivatives(probe)


def _vmaps(probe: Probe) -> None:
    got, want = vmap(probe)(*probe.rows), probe(*probe.rows)
    expect_close("vmap over samples", got, want, probe.tolerance)


@_where_defined()
@torch.no_grad()
def _quantiles(probe: Probe) -> None:
    base, context = probe.moved, probe.context
    q = torch.linspace(0.05, 0.95, probe.x.numel()).to(probe.x).reshape(probe.x.shape)
    for what, there, back in (
        ("cdf(icdf(q))", base.icdf, base.log_cdf),
        ("survival(isf(q))", base.isf, base.log_survival),
    ):
        expect_close(what, back(there(q, context), context).exp(), q, 10 * probe.tolerance)


@_where_defined()
def _slopes(probe: Probe) -> None:
    x = probe.x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(probe.moved.cdf(x, probe.context).sum(), x)
    log_density = slope.log().flatten(1).sum(-1)
    expect_close("the log-density", probe(*probe.rows), log_density, 10 * probe.tolerance)


@torch.no_grad()
def _samples(probe: Probe) -> None:
    before = torch.get_rng_state()
    context = None if probe.context is None else probe.context[:1]
    x = probe.moved.sample((DRAWS,), context, probe.generator())
    shape = (DRAWS, *([] if context is None else [1]), *probe.moved.event_shape)
    expect_shape("samples", x, shape)
    expect(torch.equal(before, torch.get_rng_state()), "expected a generator to be the only "
           "source of randomness, got another state of the global one")  # fmt: skip
    expect(probe.moved.support.check(x).all(), "expected samples in the support, got others")
    flat = x.reshape(DRAWS, -1).double()
    # Importance weights of the uniform distribution in a smaller box in place of the base.
    low, high = flat.quantile(0.3, 0), flat.quantile(0.7, 0)
    inside = ((flat >= low) & (flat <= high)).all(-1)
    log_ratio = -(high - low).log().sum() - probe(x, context).reshape(DRAWS).double()
    if inside.sum() > 100:
        weights = torch.where(inside, log_ratio.exp(), 0.0)
        expect_mean("weights of a box in place of the base", weights, 1.0)


@torch.no_grad()
def _integrates(probe: Probe) -> None:
    context = None if probe.context is None else probe.context[0]
    to_support = biject_to(probe.moved.support)
    expect_mass_of_one(lambda x: probe(x, context), to_support, probe.x[0])


@torch.no_grad()
def _starts_at_zero(probe: Probe) -> None:
    (got,) = probe.call(probe.start, *probe.rows)
    expect_close("the output of a new conditioner", got, 0 * got, probe.tolerance)


def _causal(probe: Probe) -> None:
    jacobian = vmap(jacrev(probe))(*probe.rows).abs().sum((0, 2))
    token = torch.arange(len(jacobian)) // getattr(probe.moved, "block", 1)
    read = jacobian * (token.unsqueeze(-1) <= token)
    expect(
        not read.any(),
        f"expected no derivative in the same or later features, got {read.max().item():.3g} of "
        f"feature {int(read.amax(-1).argmax())}",
    )


def _forces(probe: Probe) -> None:
    x = probe.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(probe(x, *probe.rows[1:]).sum(), x)
    energy, force = probe.moved.energy_and_force(*probe.rows)
    expect_close("the force", force, -gradient, probe.tolerance)
    expect_close("the energy beside it", energy, probe(*probe.rows), probe.tolerance)


@_where_defined()
def _stein(probe: Probe) -> None:
    x = probe.moved.sample(DRAWS, generator=probe.generator())
    expect_mean("forces", probe.moved.force(x).detach(), 0.0)


@_where_defined()
@torch.no_grad()
def _normalizer(probe: Probe) -> None:
    exact = float(probe.moved.log_normalizer())
    expect_mass_of_one(lambda x: -probe(x) - exact, None, probe.x[0])


_OF_PARTS: Rules = {
    **COMMON,
    "R6": ("gradients are finite", _gradients),
    "R7": ("two orders of derivatives are right", _derivatives),
    "R9": ("vmap gives the same numbers", _vmaps),
}
_OF_BASES: Rules = {
    **_OF_PARTS,
    "R4": ("quantiles undo the cdf", _quantiles),
    "R5": ("the density is the slope of the cdf", _slopes),
    "R14": ("samples follow the density", _samples),
    "R15": ("the density integrates to one", _integrates),
}
_OF_CONDITIONERS: Rules = {**_OF_PARTS, "R12": ("starts at zero", _starts_at_zero)}
_OF_ENERGIES: Rules = {
    **_OF_PARTS,
    "R5": ("the force is minus the gradient", _forces),
    "R14": ("exact samples have a mean force of zero", _stein),
    "R15": ("log_normalizer is that of a grid", _normalizer),
}
