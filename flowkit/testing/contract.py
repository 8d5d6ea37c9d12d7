"""check_transform: run every rule of the contract on a transform, and report what was checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import transform_to

from flowkit import checks
from flowkit.bases import Base, StandardNormal
from flowkit.errors import ShapeError
from flowkit.testing import densities, derivatives, functions
from flowkit.testing.common import COMMON
from flowkit.testing.layers import Layer, has_inverse, mapped_shape
from flowkit.testing.probe import ROWS, TOLERANCE, check_probe, noise_of, states
from flowkit.testing.runner import DTYPES, ContractReport, Rules
from flowkit.transforms import Transform

# Rules that need the same output of the same input.
_OF_FUNCTIONS: Rules = {
    "R4": ("the inverse undoes forward", functions.round_trips),
    "R5": ("log_det is that of the Jacobian", derivatives.jacobian),
    "R6": ("gradients are finite everywhere", derivatives.finite_gradients),
    "R7": ("two orders of derivatives are right", derivatives.derivatives),
    "R8": ("compiled equals eager", functions.compiled),
    "R9": ("vmap and ensembles", functions.vmapped),
    "R11": ("constants are constant", functions.constants),
    "R12": ("starts as stated", functions.start),
    "R15": ("the density integrates to one", densities.total_mass),
}
_RULES: Rules = {
    **COMMON,
    **_OF_FUNCTIONS,
    "R14": ("path weights average to one", densities.path_weights),
}


def check_transform(
    transform: Transform,
    x: Tensor | None = None,
    context: Tensor | None = None,
    *,
    starts_at_identity: bool = True,
    skip: Mapping[str, str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    tolerance: Mapping[torch.dtype, float] | None = None,
    far: Sequence[float] = (1e2, 1e4),
    noise: float = 0.3,
    base: Base | None = None,
    target: Callable[[Tensor], Tensor] | None = None,
    backend: str = "inductor",
    seed: int = 0,
) -> ContractReport:
    """Check a transform against every rule of the contract.

    All work is done on copies, in eval mode, whose parameters are randomised for every rule but
    R12; the transform itself and the global random state stay as they are.

    ===== =======================================================================================
    R1    ``log_det`` has the batch shape
    R2    no batch dims, one, two, an empty batch, and broadcast context give the same numbers
    R3    dtype and device follow the input: float64, float32, meta, a bfloat16 smoke run
    R4    round trips and the sum of the two log-determinants, near the data and at ``far``
    R5    ``log_det`` is that of the autodiff Jacobian, in both directions
    R6    gradients are finite at the exact points, and far outside
    R7    ``gradcheck`` and ``gradgradcheck`` of both directions in x, context and parameters;
          at the exact points slopes from either side
    R8    ``torch.compile(fullgraph=True)`` equals eager
    R9    ``vmap(grad(log_prob))``, and ensembles by stacked parameters
    R10   ``state_dict``, ``deepcopy`` and ``pickle`` give the same bits
    R11   the promise of ``constant_log_det``; ``forward`` less ``unnormalized`` is constant in x
    R12   the stated start
    R13   every parameter gets a gradient
    R14   a stochastic layer's path weights average to one
    R15   in one and two dimensions the density integrates to one
    R16   ``build(describe(...))`` with the same parameters gives the same bits
    ===== =======================================================================================

    The exact points of R5 to R7 are 0 and -0, the ends of domains, the ends and knots of scalar
    maps at zero parameters and at those of the layer itself, and the middles between them; the
    new transform is questioned there as well as the one with random parameters. Second derivatives
    are compared there where no part says, by an attribute ``smoothness`` below 2, that they jump.
    See :func:`check_scalar` for scalar maps alone.

    Args:
        transform: The transform to check, in the state in which its constructor leaves it.
        x: At least two inputs ``(n, *event)``; by default drawn from ``transform.domain``.
        context: ``(n, C)``, row by row with ``x``; by default drawn from a standard normal.
        starts_at_identity: Whether a new transform is the identity (R12).
        skip: Rules that shall not be checked, each with a reason: ``{"R15": "has no density"}``.
        dtypes: The dtypes in which every rule is run.
        tolerance: Largest error relative to one plus the magnitude; 1e-8 in float64 and 1e-4 in
            float32 by default.
        far: Distances at which R4 to R6 question a transform of real variables.
        noise: Standard deviation of the noise that randomises the parameters.
        base: Base of the density in R14 and R15; standard normal by default.
        target: For a stochastic transform, a normalised log-density ``(n, *event) -> (n,)``.
        backend: Backend of ``torch.compile``; ``"aot_eager"`` needs no C++ compiler.
        seed: Seed of everything random.

    Returns:
        A report that lists every rule, with the reason where one was not checked.

    Raises:
        ContractError: If a rule is broken, or an error of flowkit keeps it from being checked;
            names the rule, what was expected and what came.
        ArgumentError: If ``skip`` names an unknown rule or gives no reason.
        ShapeError: If ``x`` has fewer than two rows, or ``context`` does not go with it.

    Example:
        >>> import torch
        >>> from flowkit.testing import check_transform
        >>> from flowkit.transforms import LULinear
        >>> report = check_transform(LULinear(3), backend="aot_eager")
        >>> report.skipped
        {'R14': 'the transform is deterministic',
         'R15': 'an event of 3 numbers is too large for a grid'}
    """
    name = "check_transform"
    checks.instance(name, "transform", transform, Transform)
    seed = checks.integer(name, "seed", seed, least=0, most=None)
    noise = checks.number(name, "noise", noise, least=0)
    far = checks.numbers(name, "far", far, least=0)
    if not isinstance(tolerance, (Mapping, type(None))):
        raise checks.fail(name, "tolerance", "errors by dtypes", tolerance)
    bounds = {**TOLERANCE, **(tolerance or {})}
    for dtype, bound in bounds.items():
        checks.number(name, f"tolerance of {dtype}", bound, least=0)
    generator = torch.Generator().manual_seed(seed)
    start, moved = states(transform, noise, generator)
    x, context = _inputs(start, x, context, generator)
    if base is None:
        base = StandardNormal(mapped_shape(moved, x.shape[1:]))
    invertible = has_inverse(copy.deepcopy(moved), x, context)
    probe = Layer(
        start=start, moved=moved, x=x, context=context, seed=seed, base=base, target=target,
        far=far, backend=backend, invertible=invertible,
    )  # fmt: skip
    undefined = () if invertible else ("R4", "R14")
    known = dict.fromkeys(undefined, "the transform defines no inverse")
    if not starts_at_identity:
        known["R12"] = "stated not to start at the identity"
    if transform.stochastic:
        known |= dict.fromkeys(_OF_FUNCTIONS, "a stochastic layer draws anew in every call")
    else:
        known["R14"] = "the transform is deterministic"
    skip = {**known, **(skip or {})}
    return check_probe(name, transform.label, probe, _RULES, dtypes, skip, bounds)


def _inputs(
    transform: Transform, x: Tensor | None, context: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Inputs and context in float64, an even number of rows; drawn where not given."""
    if x is None:
        event = [2 + i if size is None else size for i, size in enumerate(transform.event_shape)]
        x = transform_to(transform.domain)(noise_of(ROWS, *event, generator=generator))
    if x.ndim != transform.event_ndim + 1 or len(x) < 2:
        raise ShapeError(
            f"check_transform expected x (n, *event) with n >= 2 and {transform.event_ndim} event "
            f"dims, got {tuple(x.shape)}"
        )
    rows, size = len(x) // 2 * 2, transform.context_size
    if not transform.needs_context:
        return x[:rows].double(), None
    if context is None:
        context = noise_of(len(x), size, generator=generator)
    if context.ndim != 2 or len(context) != len(x):
        raise ShapeError(
            f"check_transform expected context ({len(x)}, {size}), got {tuple(context.shape)}"
        )
    return x[:rows].double(), context[:rows].double()
