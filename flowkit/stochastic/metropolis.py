"""Markov chains in detailed balance as layers: Metropolis Monte Carlo, MALA and HMC."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.energies import Energy
from flowkit.numerics.noise import normal_like
from flowkit.numerics.types import Context, Generator
from flowkit.stochastic.base import EnergyTransform, Walk


class _State(NamedTuple):
    """Where a chain is; the force is ``None`` where proposals need none."""

    x: Tensor
    energy: Tensor
    force: Any


class _Decision(NamedTuple):
    """What a step drew, whether it moved, and whether that was anything but certain."""

    noise: Tensor
    accepted: Tensor
    unsure: Tensor


class MetropolisTransform(EnergyTransform):
    r"""Steps of a kernel that is in detailed balance with :math:`e^{-u}`, by acceptance.

    A proposal is accepted with probability :math:`\min(1, e^a)`. Whatever the number of steps,
    the log path-probability ratio is the change of the energy, :math:`u(y_T) - u(y_0)`. A
    proposal whose energy is not finite is rejected, and counted.

    A subclass defines ``_propose``, the proposed state and the noise of the move back; with the
    squares of both noises, :math:`a = u(y) - u(y') + (|\eta|^2 - |\tilde\eta|^2) / 2`. Acceptance
    is found without gradients, whose pathwise part then follows the moves that were made; that
    leaves out how the parameters change what is accepted, a bias that
    :class:`flowkit.objectives.PathKL` can remove. The step size is no parameter:
    :func:`flowkit.stochastic.paths.adapt_step_sizes` fits it to :attr:`target_acceptance`.

    Args:
        energy: The dimensionless energy.
        steps: Number of steps.
        step_size: One number, or one per coordinate.
    """

    target_acceptance: float
    needs_force = True

    def __init__(self, energy: Energy, *, steps: int, step_size: Any) -> None:
        super().__init__(energy, steps=steps, step_size=step_size, learn=False)

    def _evaluate(self, x: Tensor, context: Context) -> _State:
        if self.needs_force:
            return _State(x, *self.energy.energy_and_force(x, context))
        return _State(x, self.energy.energy(x, context), None)

    def _propose(
        self, state: _State, noise: Tensor, size: Tensor, context: Context
    ) -> tuple[_State, Tensor | None]:
        """The proposed state, and the noise of the move back; ``None`` for minus the noise."""
        raise NotImplementedError(f"{type(self).__name__} does not define _propose")

    def _move(self, state: _State, noise: Tensor, size: Tensor, context: Context) -> Tensor:
        """The proposed position alone."""
        return self._propose(state, noise, size, context)[0].x

    def _try(
        self, state: _State, noise: Tensor, size: Tensor, context: Context
    ) -> tuple[_State, Tensor]:
        """The proposed state, and the logarithm of its acceptance ratio."""
        new, back = self._propose(state, noise, size, context)
        change = state.energy - new.energy
        if back is not None:
            change = change + 0.5 * self._sum(noise * noise - back * back)
        return new, change

    def _walk(self, x: Tensor, context: Context, generator: Generator, *, choices: bool) -> Walk:
        graph = torch.is_grad_enabled()
        with torch.no_grad():
            start = self._evaluate(x.detach(), context)
            self._require_finite_start(
                start.energy if start.force is None else start.energy + 0 * self._sum(start.force)
            )
            end, decisions, acceptance, nonfinite = self._chain(
                start, context, generator, record=graph
            )
        if not graph:
            change = (end.energy - start.energy).to(x.dtype)
            return Walk(end.x, change, acceptance, nonfinite)
        moved, log_choice = self._replay(x, context, decisions, choices=choices)
        log_ratio = self.energy.energy(moved, context) - self.energy.energy(x, context)
        return Walk(moved, log_ratio.to(x.dtype), acceptance, nonfinite, log_choice)

    def _chain(
        self, state: _State, context: Context, generator: Generator, *, record: bool
    ) -> tuple[_State, list[_Decision], Tensor, Tensor]:
        """Run all steps; return the last state, the decisions if ``record``, and counts."""
        size, decisions = self.step_size, []
        least = torch.finfo(state.energy.dtype).min
        certain = math.log(torch.finfo(state.energy.dtype).eps)
        moves = torch.zeros_like(state.energy)
        failures = torch.zeros_like(state.energy)
        for _ in range(self.steps):
            noise = normal_like(state.x, generator)
            threshold = torch.empty_like(state.energy).uniform_(generator=generator).log_()
            # Of a number that may be zero, whose logarithm would be below the least.
            threshold = threshold.clamp_(min=least)
            proposal, log_accept = self._try(state, noise, size, context)
            # Flags as ones and zeros, and choices by lerp, which is exact at both ends: torch
            # makes, converts and follows booleans several times more slowly.
            log_accept = log_accept.nan_to_num(least, least, least)
            failed = torch.eq(log_accept, least, out=torch.empty_like(log_accept))
            accepted = torch.lt(threshold, log_accept, out=torch.empty_like(log_accept))
            moved = self._per_event(accepted).to(state.x.dtype)
            state = _State(
                torch.lerp(state.x, proposal.x.nan_to_num(), moved),
                torch.lerp(state.energy, proposal.energy.nan_to_num(0.0, 0.0, 0.0), accepted),
                None
                if state.force is None
                else torch.lerp(state.force, proposal.force.nan_to_num(), moved),
            )
            moves += accepted
            failures += failed
            if record:
                unsure = (accepted > 0) | (log_accept > certain)
                decisions.append(_Decision(noise, accepted > 0, unsure))
        return state, decisions, moves / self.steps, failures

    def _replay(
        self, x: Tensor, context: Context, decisions: list[_Decision], *, choices: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same moves with gradients; samples that did not move make a step of size zero."""
        log_choice = None
        for noise, accepted, unsure in decisions:
            if choices:
                part = self._log_choice(x, noise, accepted, unsure, context)
                log_choice = part if log_choice is None else log_choice + part
            size = torch.where(self._per_event(accepted), self.step_size, 0.0)
            # Moves read no energy.
            force = self.energy.force(x, context) if self.needs_force else None
            x = self._move(_State(x, x, force), noise, size, context)
        return x, log_choice

    def _log_choice(
        self, x: Tensor, noise: Tensor, accepted: Tensor, unsure: Tensor, context: Context
    ) -> Tensor:
        """Log-probability of the decision that was made, given the proposal.

        Proposals that are rejected with certainty may be where slopes overflow: they are left out.
        """
        size = torch.where(self._per_event(unsure), self.step_size, 0.0)
        log_accept = self._try(self._evaluate(x, context), noise, size, context)[1]
        # Rejected samples have a logarithm below 0; others get a stand-in that is.
        below = torch.where(accepted | ~unsure, -1.0, log_accept.clamp(max=-1e-12))
        rejection = torch.where(unsure, torch.log(-torch.expm1(below)), 0.0)
        return torch.where(accepted, log_accept.clamp(max=0.0), rejection)


@register
class Metropolis(MetropolisTransform):
    r"""Metropolis Monte Carlo with normal proposals: :math:`y' = y + \sigma \eta`.

    Accepted with probability :math:`\min(1, e^{u(y) - u(y')})`; needs no force.

    Args:
        energy: The dimensionless energy.
        steps: Number of steps.
        step_size: :math:`\sigma`, one number or one per coordinate.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
        NonFiniteEnergyError: If an energy is not finite at the start; names the sample.

    References:
        Metropolis et al. 1953, J. Chem. Phys. 21, 1087; Wu, Köhler, Noé 2020, Stochastic
        Normalizing Flows, arXiv 2002.06707, for chains as layers.

    Example:
        >>> import torch
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import Metropolis
        >>> layer, x = Metropolis(DoubleWell(), steps=20), torch.zeros(100, 2)
        >>> walk = layer.walk(x, generator=torch.Generator().manual_seed(0))
        >>> change = layer.energy(walk.value) - layer.energy(x)
        >>> torch.allclose(walk.log_ratio, change), bool(walk.acceptance.mean() > 0.5)
        (True, True)
    """

    target_acceptance = 0.3
    needs_force = False

    def __init__(self, energy: Energy, *, steps: int = 10, step_size: Any = 0.25) -> None:
        super().__init__(energy, steps=steps, step_size=step_size)

    def _propose(
        self, state: _State, noise: Tensor, size: Tensor, context: Context
    ) -> tuple[_State, Tensor | None]:
        return self._evaluate(self._move(state, noise, size, context), context), None

    def _move(self, state: _State, noise: Tensor, size: Tensor, context: Context) -> Tensor:
        return torch.addcmul(state.x, noise, size)


@register
class MALA(MetropolisTransform):
    r"""Steps of the Metropolis-adjusted Langevin algorithm, as a layer.

    .. math:: y' = y - \epsilon \nabla u(y) + \sqrt{2\epsilon}\, \eta

    as in :class:`OverdampedLangevin`, accepted with probability
    :math:`\min(1, e^{u(y) - u(y')}\, e^{(|\eta|^2 - |\tilde\eta|^2) / 2})`.

    Args:
        energy: The dimensionless energy.
        steps: Number of steps.
        step_size: :math:`\epsilon`, one number or one per coordinate; in squared units of x.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
        NonFiniteEnergyError: If an energy or force is not finite at the start; names the sample.

    References:
        Roberts, Tweedie 1996, Bernoulli 2(4), 341; Roberts, Rosenthal 1998, J. R. Stat. Soc. B
        60, 255, for the acceptance of 0.574.

    Example:
        >>> import torch
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import MALA
        >>> layer = MALA(DoubleWell(), steps=5)
        >>> layer(torch.zeros(7, 2), generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([7, 2])
    """

    target_acceptance = 0.574

    def __init__(self, energy: Energy, *, steps: int = 10, step_size: Any = 0.02) -> None:
        super().__init__(energy, steps=steps, step_size=step_size)

    def _propose(
        self, state: _State, noise: Tensor, size: Tensor, context: Context
    ) -> tuple[_State, Tensor | None]:
        new = self._evaluate(self._move(state, noise, size, context), context)
        return new, -noise - torch.sqrt(0.5 * size) * (state.force + new.force)

    def _move(self, state: _State, noise: Tensor, size: Tensor, context: Context) -> Tensor:
        return state.x + size * state.force + torch.sqrt(2 * size) * noise


@register
class HMC(MetropolisTransform):
    r"""Hamiltonian Monte Carlo: leapfrog trajectories with momenta of unit mass, drawn anew.

    A trajectory from :math:`(y, p)` to :math:`(y', p')` is accepted with probability
    :math:`\min(1, e^{u(y) - u(y') + (|p|^2 - |p'|^2) / 2})`. A step size for every coordinate
    acts as a diagonal mass matrix.

    Args:
        energy: The dimensionless energy.
        steps: Number of trajectories.
        step_size: Step of the leapfrog, one number or one per coordinate.
        leapfrog: Leapfrog steps per trajectory.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
        NonFiniteEnergyError: If an energy or force is not finite at the start; names the sample.

    References:
        Duane et al. 1987, Phys. Lett. B 195, 216; Beskos et al. 2013, Bernoulli 19(5A), 1501,
        arXiv 1001.4460, for the acceptance of 0.651.

    Example:
        >>> import torch
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import HMC
        >>> layer = HMC(DoubleWell(), steps=2, leapfrog=8, step_size=0.08)
        >>> layer(torch.zeros(7, 2), generator=torch.Generator().manual_seed(0))[0].shape
        torch.Size([7, 2])
    """

    target_acceptance = 0.651

    def __init__(
        self, energy: Energy, *, steps: int = 2, step_size: Any = 0.08, leapfrog: int = 8
    ) -> None:
        super().__init__(energy, steps=steps, step_size=step_size)
        self.leapfrog = checks.integer("HMC", "leapfrog", leapfrog, least=1)

    def _propose(
        self, state: _State, noise: Tensor, size: Tensor, context: Context
    ) -> tuple[_State, Tensor | None]:
        momentum = noise
        for _ in range(self.leapfrog):
            momentum = momentum + 0.5 * size * state.force
            state = self._evaluate(state.x + size * momentum, context)
            momentum = momentum + 0.5 * size * state.force
        return state, momentum
