"""Langevin dynamics as layers: differentiable random steps along the force of an energy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.energies import Energy
from flowkit.numerics.noise import normal_like
from flowkit.numerics.types import Context, Generator
from flowkit.stochastic.base import EnergyTransform, Walk, positive


def _settle(change: Tensor) -> tuple[Tensor, Tensor]:
    """Which samples can take a step, and its log-ratio: minus infinity for those that cannot."""
    fine = change.detach().isfinite()
    return fine, torch.where(fine, change, -torch.inf)


@register
class OverdampedLangevin(EnergyTransform):
    r"""Steps of overdamped (unadjusted) Langevin dynamics.

    .. math:: y' = y - \epsilon \nabla u(y) + \sqrt{2\epsilon}\, \eta, \qquad
              \log\tfrac{\tilde q}{q} = \tfrac12 (|\eta|^2 - |\tilde\eta|^2), \quad
              \tilde\eta = \frac{y - y' + \epsilon \nabla u(y')}{\sqrt{2\epsilon}}

    Nothing is rejected; the weights of a path make up for the error of a finite step. Everything
    is differentiable: the state, the step size, and the parameters of the energy, by second
    derivatives of it. A sample whose next state or force would not be finite stays where it is
    with a weight of zero, which is its limit; an objective that averages log weights is then
    infinite, and the remedy is a smaller step size.

    Args:
        energy: The dimensionless energy.
        steps: Number of steps.
        step_size: :math:`\epsilon`, one number or one per coordinate; in squared units of x.
        learn: Whether the step size is a parameter.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
        NonFiniteEnergyError: If a force is not finite at the start; names the sample.

    References:
        Wu, Köhler, Noé 2020, Stochastic Normalizing Flows, arXiv 2002.06707.

    Example:
        >>> import torch
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import OverdampedLangevin
        >>> layer = OverdampedLangevin(DoubleWell(), steps=10, step_size=0.01)
        >>> x, log_ratio = layer(torch.zeros(5, 2), generator=torch.Generator().manual_seed(0))
        >>> x.shape, log_ratio.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self, energy: Energy, *, steps: int = 1, step_size: Any = 0.01, learn: bool = True
    ) -> None:
        super().__init__(energy, steps=steps, step_size=step_size, learn=learn)

    def step(self, x: Tensor, noise: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """One step with given noise; returns the new state and the noise of the step back.

        Example:
            >>> import torch
            >>> from flowkit.toys import DoubleWell
            >>> from flowkit.stochastic import OverdampedLangevin
            >>> layer = OverdampedLangevin(DoubleWell()).double()
            >>> x, noise = torch.randn(2, 4, 2, dtype=torch.float64)
            >>> back, forth = layer.step(*layer.step(x, noise))
            >>> torch.allclose(back, x), torch.allclose(forth, noise)
            (True, True)
        """
        force = self.energy.force(x, context)
        new, _, back = self._step(x, force, noise, context)
        return new, back

    def _step(
        self, x: Tensor, force: Tensor, noise: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        size = self.step_size
        scale = torch.sqrt(2 * size)
        new = x + size * force + scale * noise
        new_force = self.energy.force(new, context)
        # As the difference from the noise, which loses no digits where steps are small.
        back = -noise - torch.sqrt(0.5 * size) * (force + new_force)
        return new, new_force, back

    def _walk(self, x: Tensor, context: Context, generator: Generator, *, choices: bool) -> Walk:
        force = self.energy.force(x, context)
        self._require_finite_start(self._sum(force))
        log_ratio = x.new_zeros(x.shape[: x.ndim - self.event_ndim])
        nonfinite = torch.zeros_like(log_ratio)
        for _ in range(self.steps):
            noise = normal_like(x, generator)
            new, new_force, back = self._step(x, force, noise, context)
            change = 0.5 * self._sum(noise * noise - back * back)
            fine, taken = _settle(change)
            nonfinite, log_ratio = nonfinite + (~fine).to(nonfinite), log_ratio + taken
            each = self._per_event(fine)
            x, force = torch.where(each, new, x), torch.where(each, new_force, force)
        return Walk(x, log_ratio, None, nonfinite)


class _Phase(NamedTuple):
    """A step of underdamped dynamics."""

    x: Tensor
    v: Tensor
    force: Tensor
    back: tuple[Tensor, Tensor]


@register
class UnderdampedLangevin(EnergyTransform):
    r"""Steps of underdamped Langevin dynamics, with new velocities in every layer.

    With mass m, friction :math:`\gamma`, step :math:`\epsilon`, force :math:`F = -\nabla u` and
    :math:`c = \sqrt{4 \gamma m / \epsilon}`:

    .. math::
        v_h &= v + \tfrac{\epsilon}{2m} (F(q) - \gamma m v + c\,\eta), \qquad
        q' = q + \epsilon v_h, \\
        v' &= \big(v_h + \tfrac{\epsilon}{2m} (F(q') + c\,\eta')\big) / (1 + \gamma\epsilon/2), \\
        \log\tfrac{\tilde q}{q} &= \tfrac12 (|\eta|^2 + |\eta'|^2 - |\tilde\eta|^2 -
        |\tilde\eta'|^2), \quad
        \tilde\eta = \eta' - \sqrt{\gamma m \epsilon}\, v', \;
        \tilde\eta' = \eta - \sqrt{\gamma m \epsilon}\, v.

    The step back starts from the flipped velocity, :math:`(q', -v')`, and ends at
    :math:`(q, -v)`. A layer draws :math:`v_0 \sim N(0, 1/m)` and leaves its last velocity, which
    adds :math:`\tfrac m2 (|v_0|^2 - |v_T|^2)`: events are positions alone, and layers of any kind
    can follow. Differentiable as :class:`OverdampedLangevin` is.

    Args:
        energy: The dimensionless energy.
        steps: Number of steps.
        step_size: :math:`\epsilon`, a time; one number or one per coordinate.
        friction: :math:`\gamma`, one over a time.
        mass: m, one number or one per coordinate.
        learn: Whether step size and friction are parameters.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
        NonFiniteEnergyError: If a force is not finite at the start; names the sample.

    References:
        Brünger, Brooks, Karplus 1984, Chem. Phys. Lett. 105, 495, for the integrator; Wu, Köhler,
        Noé 2020, arXiv 2002.06707, for the ratio.

    Example:
        >>> import torch
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import UnderdampedLangevin
        >>> layer = UnderdampedLangevin(DoubleWell(), steps=10)
        >>> layer(torch.zeros(5, 2), generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([5, 2])
    """

    log_friction: Tensor
    mass: Tensor

    def __init__(
        self,
        energy: Energy,
        *,
        steps: int = 10,
        step_size: Any = 0.05,
        friction: float = 2.0,
        mass: Any = 1.0,
        learn: bool = True,
    ) -> None:
        super().__init__(energy, steps=steps, step_size=step_size, learn=learn)
        name = type(self).__name__
        gamma = positive(name, "friction", friction, ()).log()
        if learn:
            self.log_friction = nn.Parameter(gamma)
        else:
            self.register_buffer("log_friction", gamma)
        self.register_buffer("mass", positive(name, "mass", mass, energy.event_shape[-1:]))

    def stored_fault(self) -> str | None:
        """Say what is wrong with stored numbers; files are checked by it."""
        return not_positive("mass", self.mass)

    def step(
        self, x: Tensor, v: Tensor, first: Tensor, second: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step with given noises; returns position, velocity, and the noises of the step back.

        Example:
            >>> import torch
            >>> from flowkit.toys import DoubleWell
            >>> from flowkit.stochastic import UnderdampedLangevin
            >>> layer = UnderdampedLangevin(DoubleWell()).double()
            >>> x, v, first, second = torch.randn(4, 5, 2, dtype=torch.float64)
            >>> new_x, new_v, *noises = layer.step(x, v, first, second)
            >>> back_x, back_v, *_ = layer.step(new_x, -new_v, *noises)
            >>> torch.allclose(back_x, x), torch.allclose(back_v, -v)
            (True, True)
        """
        force = self.energy.force(x, context)
        phase = self._step(x, v, force, (first, second), context)
        return phase.x, phase.v, *phase.back

    def _step(
        self, x: Tensor, v: Tensor, force: Tensor, noise: tuple[Tensor, Tensor], context: Context
    ) -> _Phase:
        size, friction, mass = self.step_size, self.log_friction.exp(), self.mass
        half = 0.5 * size / mass
        kick = half * torch.sqrt(4 * friction * mass / size)
        drag = torch.sqrt(friction * mass * size)
        middle = (1 - 0.5 * friction * size) * v + half * force + kick * noise[0]
        new = x + size * middle
        new_force = self.energy.force(new, context)
        new_v = (middle + half * new_force + kick * noise[1]) / (1 + 0.5 * friction * size)
        return _Phase(new, new_v, new_force, (noise[1] - drag * new_v, noise[0] - drag * v))

    def _walk(self, x: Tensor, context: Context, generator: Generator, *, choices: bool) -> Walk:
        force = self.energy.force(x, context)
        self._require_finite_start(self._sum(force))
        v = normal_like(x, generator) / self.mass.sqrt()
        log_ratio = 0.5 * self._sum(self.mass * v * v)
        nonfinite = torch.zeros_like(log_ratio)
        for _ in range(self.steps):
            noise = normal_like(x, generator), normal_like(x, generator)
            new, new_v, new_force, back = self._step(x, v, force, noise, context)
            change = 0.5 * self._sum(
                noise[0] * noise[0] + noise[1] * noise[1] - back[0] * back[0] - back[1] * back[1]
            )
            fine, taken = _settle(change)
            nonfinite, log_ratio = nonfinite + (~fine).to(nonfinite), log_ratio + taken
            each = self._per_event(fine)
            x, v = torch.where(each, new, x), torch.where(each, new_v, v)
            force = torch.where(each, new_force, force)
        log_ratio = log_ratio - 0.5 * self._sum(self.mass * v * v)
        return Walk(x, log_ratio, None, nonfinite)
