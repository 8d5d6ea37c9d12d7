"""check_scalar: the rules of the contract on a scalar map alone, at every point and parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.errors import ContractError
from flowkit.scalar import ScalarMap
from flowkit.testing.points import (
    exact_points,
    expect_one_sided_derivatives,
    expect_second_derivatives,
)
from flowkit.testing.probe import (
    TOLERANCE,
    expect,
    expect_close,
    expect_finite,
    expect_finite_gradients,
)
from flowkit.testing.runner import DTYPES, ContractReport, Rules, Skipped, run_rules

# Roundings that a round trip may take, in units of those of its numbers.
_ROUNDINGS = 256
# Parameters of a trained flow, on which derivatives are compared.
_TRAINED = 1.0
# So many parameters are drawn at each scale.
_DRAWS = 16

_Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check_scalar(
    scalar: ScalarMap,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    scales: Sequence[float] = (0.0, 0.1, 1.0, 10.0, 100.0),
    reach: float = 1e4,
    seed: int = 0,
) -> ContractReport:
    """Check a scalar map against the contract, also at zero, at knots and for extreme parameters.

    The points are 0 and -0, the ends, knots and middles of bins, and numbers of both signs from
    1e-3 to ``reach``; parameters are drawn from normal distributions of every scale, zeros
    included. The map is questioned in both directions.

    ===== =======================================================================================
    R4    the inverse undoes ``forward``, up to what the slope makes of rounding
    R5    the log-slope is the logarithm of the derivative that autodiff finds
    R6    values and gradients are finite
    R7    value and log-slope are continuous, with the derivatives of autodiff on either side;
          second derivatives, too, where ``smoothness`` is 2 or more
    ===== =======================================================================================

    Args:
        scalar: The map.
        dtypes: The dtypes in which every rule is run; R7 needs float64.
        scales: Standard deviations of the parameters. R5 and R7 are run for those up to 1.
        reach: The largest number.
        seed: Seed of the parameters.

    Returns:
        A report that lists every rule.

    Raises:
        ContractError: If a rule is broken; names the rule, the place, what was expected and what
            came.

    Example:
        >>> from flowkit.scalar import RationalQuadraticSpline
        >>> from flowkit.testing import check_scalar
        >>> check_scalar(RationalQuadraticSpline(bins=4)).skipped
        {}
    """
    checks.instance("check_scalar", "scalar", scalar, ScalarMap)
    seed = checks.integer("check_scalar", "seed", seed, least=0, most=None)
    reach = checks.number("check_scalar", "reach", reach, above=1e-3)
    scales = checks.numbers("check_scalar", "scales", scales, least=0)

    def prepare(dtype: torch.dtype) -> list[_Asked]:
        generator = torch.Generator().manual_seed(seed)
        params = torch.randn(_DRAWS, scalar.param_size, generator=generator).double()
        return [
            _Asked(scalar, (scale * params[: _DRAWS if scale else 1]).to(dtype), scale, reach)
            for scale in scales
        ]

    return run_rules("check_scalar", str(scalar), _RULES, prepare, dtypes, None, seed)


class _Asked(NamedTuple):
    """A map with parameters ``(draws, param_size)`` of a scale, and the largest number."""

    scalar: ScalarMap
    params: Tensor
    scale: float
    reach: float


def _grid(asked: _Asked, reach: float) -> tuple[Tensor, Tensor]:
    """Numbers ``(n, draws)`` near and far with their parameters; the joints are a draw's own."""
    params = asked.params
    far = torch.logspace(-3, torch.tensor(reach).log10().item(), 24).to(params)
    common = torch.cat([-far.flip(0), params.new_tensor([-0.0, 0.0]), far])
    joints = asked.scalar.joints(params)
    middles = (joints[:, 1:] + joints[:, :-1]) / 2
    x = torch.cat([common.expand(len(params), -1), joints, middles], -1).mT
    return x, params.expand(len(x), *params.shape)


def _both_ways(scalar: ScalarMap, x: Tensor, params: Tensor) -> list[tuple[str, _Map, Tensor]]:
    with torch.no_grad():
        y = scalar.forward(x, params)[0]
    return [("forward", scalar.forward, x), ("inverse", scalar.inverse, y)]


def _round_trips(asked: _Asked) -> None:
    x, params = _grid(asked, asked.reach)
    eps = _ROUNDINGS * torch.finfo(x.dtype).eps
    with torch.no_grad():
        y, log_slope = asked.scalar.forward(x, params)
    for tracked in (False, True):
        with torch.set_grad_enabled(tracked):
            back = asked.scalar.inverse(y.clone().requires_grad_(tracked), params)[0].detach()
        again = asked.scalar.forward(back, params)[0]
        # Rounding of one side, as the slope carries it to the other.
        steep = log_slope.clamp(-80, 80).exp()
        of_x = eps * (1 + x.abs() + (1 + y.abs()) / steep)
        of_y = eps * (1 + y.abs() + (1 + x.abs()) * steep)
        error = torch.minimum((back - x).abs() / of_x, (again - y).abs() / of_y)
        worst = int(error.nan_to_num(nan=torch.inf).argmax())
        expect(
            error.flatten()[worst] <= 1,
            f"expected inverse(forward(x)) = {x.flatten()[worst].item():.9g}, got "
            f"{back.flatten()[worst].item():.9g}",
        )


def _slopes(asked: _Asked) -> None:
    if asked.scale > _TRAINED:
        return
    # Far out in float32, a place on a circle is not known to the digits that this looks at.
    x, params = _grid(asked, min(asked.reach, 10.0))
    for name, f, at in _both_ways(asked.scalar, x, params):
        with torch.no_grad():
            log_slope = f(at, params)[1]
        wide = at.double().requires_grad_()
        value = f(wide, params.double())[0]
        (slope,) = torch.autograd.grad(value.sum(), wide)
        what = f"the log-slope of {name} = log of the derivative"
        expect_close(what, log_slope, slope.log(), TOLERANCE[at.dtype])


def _finite(asked: _Asked) -> None:
    x, params = _grid(asked, asked.reach)
    params = params.clone().requires_grad_()
    for name, f, at in _both_ways(asked.scalar, x, params):
        at = at.requires_grad_()
        for what, value in zip(("value", "log-slope"), f(at, params), strict=True):
            expect_finite(f"the {what} of {name}", value)
            named = {"its argument": at, "parameters": params}
            expect_finite_gradients(f"the {what} of {name}", value, named)


def _derivatives(asked: _Asked) -> None:
    if asked.params.dtype != torch.float64:
        raise Skipped("finite differences need float64")
    if asked.scale > _TRAINED:
        return
    generator = torch.Generator().manual_seed(0)
    for row in asked.params[:4]:
        x = torch.tensor(exact_points(asked.scalar, row)).to(row)
        for name, f, at in _both_ways(asked.scalar, x, row):

            def of_all(both: Tensor, f: _Map = f) -> tuple[Tensor, Tensor]:
                return f(both[..., 0], both[..., 1:])

            points = torch.cat([at.unsqueeze(-1), row.expand(len(at), -1)], -1)
            once = (True, asked.scalar.smoothness >= 2)
            expect_one_sided_derivatives(name, of_all, points, once)
            if asked.scalar.smoothness >= 2:
                expect_second_derivatives(name, of_all, points, generator)


def _at_every_scale(rule: Callable[[_Asked], None], all_asked: Sequence[_Asked]) -> None:
    for asked in all_asked:
        try:
            rule(asked)
        except ContractError as error:
            message = f"with parameters of the scale {asked.scale:g}: {error}"
            raise ContractError(message) from error


_RULES: Rules = {
    "R4": ("the inverse undoes forward", partial(_at_every_scale, _round_trips)),
    "R5": ("log_slope is that of autodiff", partial(_at_every_scale, _slopes)),
    "R6": ("values and gradients are finite", partial(_at_every_scale, _finite)),
    "R7": ("derivatives are right at exact points", partial(_at_every_scale, _derivatives)),
}
