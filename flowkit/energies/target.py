"""The one place where the energy of a target enters an objective, a sampler or a chain."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkit import checks
from flowkit.energies.checks import one_number_each, varies
from flowkit.errors import ArgumentError
from flowkit.numerics.compiling import eager
from flowkit.numerics.gradients import no_gradient, value_and_gradient
from flowkit.numerics.noise import drawing_from
from flowkit.numerics.types import Context, Generator

# Far enough apart that the logarithm of any density falls by more than 1 from one to the next.
_RADII = (1e3, 1e6, 1e9, 1e12)
_RAYS = 4
_REMEDIES = {
    "inf": "for hard walls a flow that stays between them, such as box_flow(lower, upper) or "
    "smooth_flow(features, bounds=...); or softer walls, high but finite and with a slope, such "
    "as 100 * distance_beyond**2",
    "-inf": "an energy with a lower bound, regularised where it is singular, such as "
    "distance.clamp(min=0.1); a log-density as log_prob=",
    "nan": "an energy that is a number wherever the flow puts samples: no inf - inf, 0 / 0, or "
    "logarithm or root of a negative number there; or a flow with bounds, if it has a limited "
    "domain",
}


class Target(nn.Module):
    r"""The target of an objective or a sampler: its energy u, or minus its log-density.

    :math:`p(x) \propto e^{-u(x)}`, from exactly one of ``energy`` and ``log_prob``. Checked at
    every call: one number per sample, of the dtype and on the device of x. Checked at the first
    one: whether the energy falls without bound along every ray, as the logarithm of a density
    does, which warns; and if ``differentiated``, whether it carries a gradient to x.

    Args:
        owner: The name in the messages.
        energy: ``energy(x (*batch, *event)) -> (*batch,)``, or ``energy(x, context)``, which is
            dimensionless (:class:`flowkit.energies.CallableEnergy` divides a potential by kT).
        log_prob: A log-density instead, up to a constant; the same shapes.
        differentiated: Whether an energy without a gradient to x is refused.

    Raises:
        ArgumentError: If both are given or none is, or what is given is no function.
    """

    def __init__(
        self,
        owner: str,
        energy: Callable[..., Tensor] | None = None,
        log_prob: Callable[..., Tensor] | None = None,
        *,
        differentiated: bool = False,
    ) -> None:
        super().__init__()
        if energy is not None and log_prob is not None:
            raise ArgumentError(
                f"{owner} expected either energy or log_prob, got both; remedy: one of them, "
                "for each is minus the other up to a constant"
            )
        self.negative = log_prob is not None
        self.name, function = ("log_prob", log_prob) if self.negative else ("the energy", energy)
        remedy = (
            "for example lambda x: 0.5 * x.square().sum(-1) as energy, "
            "flowkit.toys.DoubleWell(), or log_prob= with a log-density"
        )
        name = self.name.removeprefix("the ")
        self.owner, self.function = owner, checks.function(owner, name, function, remedy)
        self.differentiated = differentiated
        self.direction_known = self.gradient_known = False

    @classmethod
    def of(
        cls,
        owner: str,
        energy: Target | Callable[..., Tensor] | None,
        log_prob: Callable[..., Tensor] | None,
    ) -> Target:
        """Return a target as it is, and make one of functions."""
        if isinstance(energy, Target) and log_prob is None:
            return energy
        return cls(owner, energy, log_prob)

    def forward(
        self, flow: Any, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Return the energy ``(*batch,)`` of samples ``(*batch, *event)`` of a flow.

        Args:
            flow: The flow.
            x: Samples of it.
            context: Their context.
            generator: Source of randomness of an energy that draws, as on minibatches.
        """
        with drawing_from(generator):
            value = self._evaluate(flow, x, context)
        asked = self.differentiated and x.requires_grad and torch.is_grad_enabled()
        known = self.gradient_known and value.requires_grad
        if self.training and ((asked and not known) or not self.direction_known):
            self._look(flow, x, context, value, asked=asked)
        return value

    def force(
        self, flow: Any, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Tensor:
        r"""Return :math:`-\nabla u`, of the shape of x, without a graph and in any mode.

        NaN where the energy is not finite: beyond a hard wall there is no force, and not none.
        """
        value, gradient = value_and_gradient(
            lambda x, context: self(flow, x, context, generator),
            x,
            context,
            graph=False,
            name=self.name,
        )
        finite = value.isfinite().reshape(value.shape + (1,) * (x.ndim - value.ndim))
        return torch.where(finite, -gradient, torch.nan)

    def _evaluate(self, flow: Any, x: Tensor, context: Context) -> Tensor:
        value = self.function(x) if context is None else self.function(x, context)
        value = one_number_each(value, x, len(flow.event_shape), self.name)
        return -value if self.negative else value

    @eager
    def _look(self, flow: Any, x: Tensor, context: Context, value: Tensor, *, asked: bool) -> None:
        if x.is_meta or not x.numel():
            return
        # Draws of an energy here must not change those of the fit.
        with drawing_from(torch.Generator().manual_seed(0)):
            if not self.direction_known:
                self.direction_known = True
                self.examine_direction(flow, x, context)
            if asked:
                self._require_gradient(flow, x, context, value)

    def _require_gradient(self, flow: Any, x: Tensor, context: Context, value: Tensor) -> None:
        self.gradient_known = value.requires_grad
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
            if gradient is not None and bool((gradient != 0).any()):
                self._require_every_part(flow, x, context, gradient)
                return
        # Of a single sample, ask for another number: a constant needs no gradient.
        with torch.no_grad():
            other = self._evaluate(flow, 2 * x.detach() + 1, context)
        if varies(torch.stack([value.detach(), other])):
            raise no_gradient(self.name)

    @torch.no_grad()
    def _require_every_part(
        self, flow: Any, x: Tensor, context: Context, gradient: Tensor
    ) -> None:
        """Raise if the energy follows coordinates of which it carries no gradient."""
        flat = (gradient == 0).flatten(0, x.ndim - len(flow.event_shape) - 1).all(0)
        if x.ndim == len(flow.event_shape) or not bool(flat.any()):
            return
        values = []
        for place in (x, torch.where(flat, x + 1e-3 * (1 + x.abs()), x)):
            # The same draws, for energies that draw.
            with drawing_from(torch.Generator().manual_seed(0)):
                values.append(self._evaluate(flow, place, context))
        # Next to a wall a few samples may notice it; without a gradient nearly all do.
        if bool((values[0] != values[1]).double().mean() > 0.5):
            raise no_gradient(self.name)

    def examine_direction(
        self, space: Any, like: Tensor, context: Context = None, remedy: str | None = None
    ) -> None:
        """Warn if the energy falls without bound along every ray.

        Args:
            space: What has the ``support`` and the ``event_shape`` of events: a flow or a base.
            like: A tensor of their dtype and device.
            context: Contexts, if the energy reads one.
            remedy: What to do, where the owner has no ``log_prob=``.
        """
        if self._falls_everywhere(space, like, context):
            falls, is_one, other = "the energy falls", "a log-density", "log_prob=..."
            if self.negative:
                falls, is_one, other = "the log-density rises", "an energy", "energy=..."
            warnings.warn(
                f"{falls} without bound along every ray, as {is_one} does, so there is no density "
                f"to learn: its sign is likely to be wrong; remedy: "
                f"{remedy or f'{self.owner}({other})'} for {is_one}, or the other sign",
                stacklevel=2,
            )

    @torch.no_grad()
    def _falls_everywhere(self, flow: Any, x: Tensor, context: Context) -> bool:
        """Whether the energy falls by more than 1 from radius to radius, along every ray."""
        # Files are read by building flows without numbers.
        if x.is_meta or not _unbounded(flow.support):
            return False
        draw = torch.Generator().manual_seed(0)
        rays = torch.randn(_RAYS, *flow.event_shape, generator=draw, dtype=torch.float64)
        rays = torch.cat([rays, -rays])
        far = torch.stack([radius * rays for radius in _RADII]).to(x)
        if context is not None:
            # The first context of all.
            lead = min(context.ndim - 1, x.ndim - len(flow.event_shape))
            context = context[(slice(1),) * lead]
            far = far.reshape(*far.shape[:2], *(1,) * lead, *flow.event_shape)
        try:
            value = self._evaluate(flow, far, context)
        except Exception:
            # Far from all samples an energy may refuse what it is given.
            return False
        near, beyond = value[:-1], value[1:]
        return bool(((near - beyond > 1) | (beyond == -torch.inf)).all())

    @torch.no_grad()
    def fault(self, flow: Any, x: Tensor, context: Context) -> str | None:
        """Say which samples of a flow are not finite or have no finite energy; ``None`` if none.

        Args:
            flow: The flow.
            x: Samples of it, ``(*batch, *event)``.
            context: Their context.

        Returns:
            What is wrong and the remedy, or ``None``.
        """
        ndim = len(flow.event_shape)
        lost = int((~x.isfinite()).flatten(x.ndim - ndim).any(-1).sum())
        if lost:
            return (
                f"{lost} of {x[..., 0].numel()} samples of the flow are not finite themselves; "
                "remedy: a lower lr, or clip"
            )
        value = self._evaluate(flow, x, context)
        bad = ~value.isfinite()
        if not bool(bad.any()):
            return None
        first = tuple(int(i) for i in bad.nonzero()[0])
        number = float(value[first])
        where = [round(float(v), 4) for v in x[first].flatten()[:4]]
        more = ", ..." if x[first].numel() > 4 else ""
        shown = -number if self.negative else number
        remedy = _REMEDIES[str(number)]
        return (
            f"{self.name} is {shown} at {int(bad.sum())} of {bad.numel()} samples of the flow, "
            f"for example at x = {str(where)[:-1]}{more}]; remedy: {remedy}"
        )


def _unbounded(support: Any) -> bool:
    """Whether a support is the whole space, so that there is a far away."""
    if isinstance(support, constraints.independent):
        return _unbounded(support.base_constraint)
    if isinstance(support, (constraints.cat, constraints.stack)):
        return all(map(_unbounded, support.cseq))
    return isinstance(support, type(constraints.real))
