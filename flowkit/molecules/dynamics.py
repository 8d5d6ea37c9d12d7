"""A flow as a potential: energies, forces, and molecular dynamics of many trajectories at once.

What force matching trains is what moves here: U = -kT log p, whose forces are kT times the score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.density import Density, check_density
from flowkit.errors import NonFiniteEnergyError, ShapeError, StochasticFlowError
from flowkit.numerics.gradients import require_ordinary, value_and_gradient
from flowkit.numerics.noise import normal_like
from flowkit.numerics.types import Context, Generator
from flowkit.transforms.base import broadcast_context


class Trajectory(NamedTuple):
    """Frames of a simulation; the first is the start.

    Attributes:
        time: ``(frames,)``, from 0.
        x: Positions ``(frames, *batch, D)``.
        v: Velocities ``(frames, *batch, D)``, at the same times.
        potential: Potential energies ``(frames, *batch)``, up to the potential's constant.
        kinetic: Kinetic energies ``(frames, *batch)``.
    """

    time: Tensor
    x: Tensor
    v: Tensor
    potential: Tensor
    kinetic: Tensor

    @property
    def total(self) -> Tensor:
        """Potential plus kinetic energy, ``(frames, *batch)``."""
        return self.potential + self.kinetic


class FlowPotential:
    r"""The potential whose Boltzmann density is a flow: :math:`U(x) = -kT \log p(x|c)` + const.

    Coordinates move by :math:`m \ddot x = -\nabla U`. Units are any that agree, energy = mass x
    length² / time²: for example kJ/mol, u, nm and ps, where kT = 2.494 at 300 K. Positions are
    never wrapped: a flow of periodic variables (:class:`flowkit.transforms.CircularShift`) reads
    them modulo its period. A bounded variable has walls: beyond them there is no density, and a
    trajectory that gets there raises. For energies that stay bounded the flow must be smooth, see
    :class:`flowkit.objectives.ForceMatching`.

    Args:
        flow: A flow with events ``(D,)``.
        kT: Temperature times Boltzmann's constant.
        mass: A number, or one per coordinate ``(D,)``; an atom's is given for each of its three.
        context: ``(*b, C)``, fixed; broadcasts against the batch of the trajectories.

    Raises:
        ArgumentError: If there is no flow, or ``kT`` or a mass is not a finite number above 0, or
            there are more or fewer masses than coordinates.
        ShapeError: If events are not vectors.
        StochasticFlowError: If a layer is stochastic.

    References:
        Köhler, Krämer, Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> from flowkit.molecules import FlowPotential
        >>> spring = FlowPotential(elementwise_flow(1).double(), kT=2.0, mass=0.5)
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> torch.allclose(spring.force(x), -2 * x)
        True
        >>> period, v = torch.pi, torch.zeros_like(x)
        >>> path = spring.velocity_verlet(x, v, dt=period / 200, steps=200, every=100)
        >>> torch.allclose(path.x[-1], x, atol=1e-2), torch.allclose(path.x[1], -x, atol=1e-2)
        (True, True)
    """

    def __init__(
        self, flow: Density, *, context: Context = None, kT: float = 1.0, mass: Any = 1.0
    ) -> None:
        owner, remedy = "FlowPotential", "coupling_flow(2), or Flow(transform, base)"
        check_density(owner, flow, remedy)
        if flow.stochastic:
            raise StochasticFlowError(
                "FlowPotential expected a flow with an exact density, got one with a stochastic "
                "layer; remedy: a flow without it"
            )
        if len(flow.event_shape) != 1:
            raise ShapeError(
                f"FlowPotential expected a flow with events (D,), got {flow.event_shape}; remedy: "
                "a flow of all coordinates in one row"
            )
        self.flow = flow
        self.kT = checks.number(owner, "kT", kT, above=0)
        # In float64; they follow the positions when they are used.
        masses = checks.positive(owner, "mass", mass, flow.event_shape)
        self.mass = torch.tensor(masses, dtype=torch.float64)
        self.context = context

    def energy(self, x: Tensor) -> Tensor:
        """Potential energy ``(*batch,)`` at ``x (*batch, D)``, up to a constant of the flow.

        ``kT * flow.energy(x)``: the determinants of layers whose Jacobian does not depend on ``x``
        are left out. ``energy(x) + kT * flow.log_normalizer(context)`` is ``-kT log p`` itself.
        """
        return self.kT * self.flow.energy(x, self.context)

    def force(self, x: Tensor) -> Tensor:
        """Force ``(*batch, D)`` at ``x (*batch, D)``: ``kT * flow.score(x)``."""
        return self.kT * self.flow.score(x, self.context)

    def draw_velocities(self, x: Tensor, generator: Generator = None) -> Tensor:
        r"""Velocities of the Maxwell-Boltzmann density, :math:`v_i \sim N(0, kT / m_i)`.

        Args:
            x: Positions ``(*batch, D)``, which give shape, dtype and device.
            generator: Source of randomness; the global one by default.

        Returns:
            ``(*batch, D)``, with the batch broadcast against that of the context.
        """
        x = self._positions(x)
        return torch.sqrt(self.kT / self.mass.to(x)) * normal_like(x, generator)

    def velocity_verlet(
        self, x: Tensor, v: Tensor, *, dt: float, steps: int, every: int = 1
    ) -> Trajectory:
        r"""Follow Newton's equations at constant energy; one force evaluation per step.

        .. math::
            v' = v_n + \frac{\Delta t}{2m} F(x_n), \quad x_{n+1} = x_n + \Delta t\, v', \quad
            v_{n+1} = v' + \frac{\Delta t}{2m} F(x_{n+1})

        Symplectic and reversible: in a smooth potential the error of the total energy stays
        bounded, of the order of :math:`\Delta t^2`.

        Args:
            x: Positions ``(*batch, D)``.
            v: Velocities of the same shape, dtype and device.
            dt: Time step.
            steps: Number of steps.
            every: Steps from one frame to the next; must divide ``steps``.

        Returns:
            The :class:`Trajectory`, ``1 + steps / every`` frames without graphs.

        Raises:
            ArgumentError: If ``dt`` is not a finite number above 0, or ``steps`` and ``every`` are
                not integers of which the second divides the first.
            ShapeError: If ``x`` or ``v`` does not fit.
            NonFiniteEnergyError: If an energy or force becomes NaN or infinite.

        References:
            Swope, Andersen, Berens, Wilson 1982, J. Chem. Phys. 76, 637.
        """
        return self._run("velocity_verlet", x, v, dt=dt, steps=steps, every=every)

    def langevin(
        self,
        x: Tensor,
        v: Tensor,
        *,
        dt: float,
        steps: int,
        friction: float,
        every: int = 1,
        generator: Generator = None,
    ) -> Trajectory:
        r"""Sample at constant temperature: Langevin dynamics in the BAOAB splitting.

        .. math:: m\, dv = F\, dt - \gamma m v\, dt + \sqrt{2 \gamma m\, kT}\, dW

        Half a kick (B), half a drift (A), friction and noise solved exactly for a step (O:
        :math:`v \leftarrow c v + \sqrt{(1 - c^2) kT / m}\, \xi`, :math:`c = e^{-\gamma \Delta
        t}`), A, B; one force evaluation per step. In a harmonic potential positions have the exact
        variance for every stable ``dt``.

        Args:
            x: Positions ``(*batch, D)``.
            v: Velocities of the same shape, dtype and device.
            dt: Time step.
            steps: Number of steps.
            friction: :math:`\gamma`, above 0, in units of 1 / time.
            every: Steps from one frame to the next; must divide ``steps``.
            generator: Source of randomness; the global one by default.

        Returns:
            The :class:`Trajectory`, ``1 + steps / every`` frames without graphs.

        Raises:
            ArgumentError, ShapeError, NonFiniteEnergyError: As :meth:`velocity_verlet`,
                which is the limit of no friction.

        References:
            Leimkuhler, Matthews 2013, Rational Construction of Stochastic Numerical Methods for
            Molecular Sampling, Appl. Math. Res. Express 2013(1), 34, arXiv 1203.5428.

        Example:
            >>> import torch
            >>> from flowkit import elementwise_flow
            >>> from flowkit.molecules import FlowPotential
            >>> spring = FlowPotential(elementwise_flow(1))
            >>> x, draw = torch.zeros(1000, 1), torch.Generator().manual_seed(0)
            >>> v = spring.draw_velocities(x, draw)
            >>> path = spring.langevin(
            ...     x, v, dt=0.5, steps=20, friction=1.0, every=20, generator=draw
            ... )
            >>> path.x.shape, abs(path.x[-1].var() - 1).item() < 0.2
            (torch.Size([2, 1000, 1]), True)
        """
        friction = checks.number("langevin", "friction", friction, above=0)
        given = {"dt": dt, "steps": steps, "every": every}
        return self._run("langevin", x, v, **given, friction=friction, generator=generator)

    @torch.no_grad()
    def _run(
        self,
        owner: str,
        x: Tensor,
        v: Tensor,
        *,
        dt: Any,
        steps: Any,
        every: Any,
        friction: float = 0.0,
        generator: Generator = None,
    ) -> Trajectory:
        """Kick, drift, friction and noise, drift, kick."""
        require_ordinary(self.flow)
        dt = checks.number(owner, "dt", dt, above=0)
        steps = checks.integer(owner, "steps", steps, least=1)
        every = checks.integer(owner, "every", every, least=1)
        if steps % every:
            remedy = f"steps={steps + every - steps % every}"
            raise checks.fail(owner, "every", f"a divisor of {steps} steps", every, remedy)
        x = self._positions(x)
        if _described(v) != _described(x):
            raise ShapeError(
                f"v expected one velocity per coordinate, {_described(x)}, got {_described(v)}; "
                "remedy: for example draw_velocities(x)"
            )
        mass = self.mass.to(x)
        kick, keep = 0.5 * dt / mass, math.exp(-friction * dt)
        noise = torch.sqrt(-math.expm1(-2 * friction * dt) * self.kT / self.mass).to(x)
        potential, force = self._evaluate(x, 0, dt)
        frames = [(x, v, potential)]
        for step in range(1, steps + 1):
            v = v + kick * force
            x = x + 0.5 * dt * v
            if friction:
                v = keep * v + noise * normal_like(v, generator)
            x = x + 0.5 * dt * v
            potential, force = self._evaluate(x, step, dt)
            v = v + kick * force
            if step % every == 0:
                frames.append((x, v, potential))
        xs, vs, potentials = (torch.stack(part) for part in zip(*frames, strict=True))
        time = dt * every * torch.arange(len(frames), dtype=x.dtype, device=x.device)
        return Trajectory(time, xs, vs, potentials, 0.5 * (mass * vs.square()).sum(-1))

    def _positions(self, x: Tensor) -> Tensor:
        """Check positions, and bring them to one batch with the context."""
        shape = self.flow.event_shape
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[-1:] != shape:
            raise ShapeError(
                f"FlowPotential expected x (..., {shape[0]}) of floating point, got "
                f"{_described(x)}; remedy: for example flow.sample(10)"
            )
        return x.detach() if self.context is None else broadcast_context(x, self.context, 1)[0]

    def _evaluate(self, x: Tensor, step: int, dt: float) -> tuple[Tensor, Tensor]:
        """Energy and force from one pass, both finite."""
        potential, gradient = value_and_gradient(
            lambda x, context: self.kT * self.flow.energy(x, context),
            x,
            self.context,
            graph=False,
            name="the energy of the flow",
        )
        bad = ~(torch.isfinite(potential) & torch.isfinite(gradient).all(-1))
        if bool(bad.any()):
            raise NonFiniteEnergyError(
                f"the energy or a force became NaN or infinite at step {step}, in "
                f"{int(bad.sum())} of {bad.numel()} trajectories; remedy: start where the flow "
                f"has density, for example at flow.sample(...), and take a dt below {dt:g}"
            )
        return potential, -gradient


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} in {value.dtype} on {value.device}"
