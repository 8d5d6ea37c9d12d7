"""Energies between two others, for annealing from a base to a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.energies.base import Energy
from flowkit.energies.checks import varies
from flowkit.errors import ShapeError
from flowkit.numerics.gradients import no_gradient
from flowkit.numerics.types import Context


@register
class Interpolation(Energy):
    r"""Interpolate linearly between energies, :math:`u_\lambda = (1-\lambda) u_0 + \lambda u_1`.

    Args:
        start: :math:`u_0`, as a rule of the base (:class:`NegativeLogProb`).
        end: :math:`u_1`, as a rule the target.
        fraction: :math:`\lambda` in [0, 1]. At 0 and 1 only one of the energies is computed, so
            that the other may be infinite.
        learn: Whether :math:`\lambda` is a parameter, the sigmoid of an unbounded one; it must
            then lie strictly inside.

    Raises:
        ArgumentError: If the fraction is outside, or at an end while it is learned.
        DataError: From a call with gradients, if one of the energies carries none to x.
        ShapeError: If the two energies have other events.

    Example:
        >>> import torch
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.energies import Interpolation, NegativeLogProb
        >>> between = Interpolation(NegativeLogProb(StandardNormal(2)), DoubleWell(), 0.25)
        >>> x = torch.zeros(2)
        >>> torch.allclose(between(x), 0.75 * between.start(x) + 0.25 * between.end(x))
        True
    """

    def __init__(
        self, start: Energy, end: Energy, fraction: float, *, learn: bool = False
    ) -> None:
        for name, energy in (("start", start), ("end", end)):
            remedy = "CallableEnergy(function, event_shape), or NegativeLogProb(base)"
            checks.instance("Interpolation", name, energy, Energy, remedy)
        if start.event_shape != end.event_shape:
            raise ShapeError(
                f"Interpolation expected energies of the same events, got {start.event_shape} "
                f"and {end.event_shape}"
            )
        learn = checks.flag("Interpolation", "learn", learn)
        inside = {"above": 0, "below": 1} if learn else {"least": 0, "most": 1}
        fraction = checks.number("Interpolation", "fraction", fraction, **inside)  # type: ignore[arg-type]
        super().__init__(start.event_shape, context=max(start.context_size, end.context_size))
        self.start = start
        self.end = end
        self.learn = learn
        if learn:
            self.raw_fraction = nn.Parameter(torch.tensor(math.log(fraction / (1 - fraction))))
        else:
            self.fixed_fraction = fraction

    @property
    def fraction(self) -> Tensor | float:
        r"""The current :math:`\lambda`."""
        return torch.sigmoid(self.raw_fraction) if self.learn else self.fixed_fraction

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """Return the weighted sum of both energies."""
        fraction = self.fraction
        if not self.learn and fraction in (0.0, 1.0):
            return (self.end if fraction else self.start).energy(x, context)
        start, end = self.start.energy(x, context), self.end.energy(x, context)
        if x.requires_grad and torch.is_grad_enabled():
            # The gradient of the one must not stand for that of both.
            for energy, value in ((self.start, start), (self.end, end)):
                if not value.requires_grad and varies(value):
                    raise no_gradient(energy._name)
        return (1 - fraction) * start + fraction * end
