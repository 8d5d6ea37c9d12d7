"""Langevin dynamics as layers: differentiable random steps along the force of an energy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit import checks
from flowkit.arrays import not_positive
from flowkit.config import register
from flowkit.energies import Energy
from flowkit.numerics.noise import normal_like
from flowkit.numerics.types import Context, Generator
from flowkit.stochastic.base import EnergyTransform, Walk

#: Position, force and, where there is one, velocity; or the noises of a step.
State = tuple[Tensor, ...]


class LangevinTransform(EnergyTransform):
    r"""Steps that are always taken, with the ratio of the noises of the step and the step back.

    A subclass defines ``_step``, the next state and the noises of the step back. A sample whose
    next state or force would not be finite stays where it is, with a weight of zero.
    """

    #: Number of noises of a step.
    noises = 1

    def _step(self, state: State, noise: State, context: Context) -> tuple[State, State]:
        raise NotImplementedError(f"{type(self).__name__} does not define _step")

    def _draw_velocity(self, x: Tensor, generator: Generator) -> State:
        return ()

    def _kinetic(self, state: State) -> Tensor:
        """The kinetic energy of a state: zero where there is no velocity."""
        return state[0].new_zeros(state[0].shape[: -self.event_ndim])

    def _walk(self, x: Tensor, context: Context, generator: Generator, *, choices: bool) -> Walk:
        force = self.energy.force(x, context)
        self._require_finite_start(self._sum(force))
        state = (x, force, *self._draw_velocity(x, generator))
        log_ratio = self._kinetic(state)
        nonfinite = torch.zeros_like(log_ratio)
        for _ in range(self.steps):
            noise = tuple(normal_like(x, generator) for _ in range(self.noises))
            new, back = self._step(state, noise, context)
            squares = [self._sum(n * n - b * b) for n, b in zip(noise, back, strict=True)]
            change = 0.5 * sum(squares[1:], squares[0])
            fine = change.detach().isfinite()
            log_ratio = log_ratio + torch.where(fine, change, -torch.inf)
            nonfinite = nonfinite + (~fine).to(nonfinite)
            each = self._per_event(fine)
            state = tuple(torch.where(each, a, b) for a, b in zip(new, state, strict=True))
        return Walk(state[0], log_ratio - self._kinetic(state), None, nonfinite)


@register
class OverdampedLangevin(LangevinTransform):
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
        (new, _), (back,) = self._step((x, self.energy.force(x, context)), (noise,), context)
        return new, back

    def _step(self, state: State, noise: State, context: Context) -> tuple[State, State]:
        (x, force), (eta,) = state, noise
        size = self.step_size
        new = x + size * force + torch.sqrt(2 * size) * eta
        new_force = self.energy.force(new, context)
        # As the difference from the noise, which loses no digits where steps are small.
        back = -eta - torch.sqrt(0.5 * size) * (force + new_force)
        return (new, new_force), (back,)


@register
class UnderdampedLangevin(LangevinTransform):
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

    noises = 2
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
        friction = checks.number(type(self).__name__, "friction", friction, above=0)
        self._store_log("friction", torch.tensor(friction), learn=learn)
        self.register_buffer("mass", self._positive("mass", mass))

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
        start = (x, self.energy.force(x, context), v)
        (new, _, new_v), (back, again) = self._step(start, (first, second), context)
        return new, new_v, back, again

    def _step(self, state: State, noise: State, context: Context) -> tuple[State, State]:
        (x, force, v), (first, second) = state, noise
        size, friction, mass = self.step_size, self.log_friction.exp(), self.mass
        half = 0.5 * size / mass
        kick = half * torch.sqrt(4 * friction * mass / size)
        drag = torch.sqrt(friction * mass * size)
        middle = (1 - 0.5 * friction * size) * v + half * force + kick * first
        new = x + size * middle
        new_force = self.energy.force(new, context)
        new_v = (middle + half * new_force + kick * second) / (1 + 0.5 * friction * size)
        return (new, new_force, new_v), (second - drag * new_v, first - drag * v)

    def _draw_velocity(self, x: Tensor, generator: Generator) -> State:
        return (normal_like(x, generator) / self.mass.sqrt(),)

    def _kinetic(self, state: State) -> Tensor:
        return 0.5 * self._sum(self.mass * state[2] * state[2])
