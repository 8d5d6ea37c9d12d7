"""Stochastic layers: maps whose log-determinant slot is a log path-probability ratio."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.energies import Energy
from flowkit.errors import NonFiniteEnergyError
from flowkit.numerics.compiling import eager
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms.base import Transform
from flowkit.transforms.volume import full_precision


class Walk(NamedTuple):
    """What a stochastic layer did to every sample.

    Attributes:
        value: The new state ``(*batch, *event)``.
        log_ratio: The log path-probability ratio ``(*batch,)``.
        acceptance: The fraction of proposals that were accepted, ``(*batch,)``; ``None`` for a
            layer that accepts nothing.
        nonfinite: How many proposals had an energy that is not finite, ``(*batch,)``; ``None``
            for a layer that computes none.
        log_choice: Log-probability of the decisions, given the proposals, ``(*batch,)``; ``None``
            unless requested.
    """

    value: Tensor
    log_ratio: Tensor
    acceptance: Tensor | None = None
    nonfinite: Tensor | None = None
    log_choice: Tensor | None = None


class StochasticTransform(Transform):
    r"""Base class of stochastic layers; their log-determinant is a log ratio of path densities.

    A subclass defines ``forward`` and ``inverse`` with a ``generator=`` argument; both return
    :math:`\log \tilde q(z \to x) - \log q(x \to z)` of their own direction. A ratio is never
    left out of :meth:`unnormalized`.
    """

    stochastic = True

    def unnormalized(
        self, x: Tensor, context: Context = None, generator: Generator = None
    ) -> Mapped:
        """The same as ``forward``."""
        return self(x, context, generator=generator)

    def walk(
        self,
        value: Tensor,
        context: Context = None,
        generator: Generator = None,
        *,
        inverse: bool = False,
        choices: bool = False,
    ) -> Walk:
        """Apply ``forward``, or ``inverse``, and say more about it.

        Args:
            value: ``(*batch, *event)``.
            context: ``(*b, C)``.
            generator: Source of randomness.
            inverse: Whether to go from noise to data.
            choices: Whether to compute the log-probability of decisions, for gradients of them.
        """
        apply: Any = self.inverse if inverse else self
        return Walk(*apply(value, context, generator=generator))


class EnergyTransform(StochasticTransform):
    r"""A layer that moves a state at random under an energy, by ``steps`` steps.

    A subclass defines ``_walk(x, context, generator, choices=...)``. Both directions of the
    layer are the same random move: for kernels in detailed balance, because they are reversible;
    for Langevin steps, because the step back is taken as one of the same kind.

    Args:
        energy: The dimensionless energy, of events of the state.
        steps: Number of steps.
        step_size: One number above 0 for all coordinates, or one for each of the last dimension.
        learn: Whether the step size is a parameter, as its logarithm.

    Raises:
        ArgumentError: If there is no energy, or an argument is out of its range.
    """

    log_step_size: Tensor

    def __init__(self, energy: Energy, *, steps: int, step_size: Any, learn: bool) -> None:
        name = type(self).__name__
        remedy = "flowkit.energies.CallableEnergy(function, event_shape)"
        energy = checks.instance(name, "energy", energy, Energy, remedy)
        super().__init__(energy.event_shape, context=energy.context_size)
        self.energy = energy
        self.steps = checks.integer(name, "steps", steps, least=1)
        learn = checks.flag(name, "learn", learn)
        self._store_log("step_size", self._positive("step_size", step_size), learn=learn)

    def _positive(self, name: str, value: Any) -> Tensor:
        """Check a number above 0, or one for each of the last dimension; return a tensor."""
        # Checked as plain numbers: files are read by building flows without numbers.
        numbers = checks.positive(type(self).__name__, name, value, self.energy.event_shape[-1:])
        return torch.tensor(numbers, dtype=torch.get_default_dtype())

    def _store_log(self, name: str, value: Tensor, *, learn: bool) -> None:
        """Store the logarithm of a number, as a parameter if it is learned."""
        if learn:
            self.register_parameter(f"log_{name}", nn.Parameter(value.log()))
        else:
            self.register_buffer(f"log_{name}", value.log())

    @property
    def step_size(self) -> Tensor:
        """The present step size: one number, or one for each of the last dimension."""
        return self.log_step_size.exp()

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Move the state; return it with the log path-probability ratio."""
        return self._start(x, context, generator)[:2]

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Move the state, in the same way as ``forward``."""
        return self._start(z, context, generator)[:2]

    def walk(
        self,
        value: Tensor,
        context: Context = None,
        generator: Generator = None,
        *,
        inverse: bool = False,
        choices: bool = False,
    ) -> Walk:
        """Move the state; report acceptance and energies that are not finite."""
        value, context = self._prepare(value, context, "z" if inverse else "x")
        return self._start(value, context, generator, choices=choices)

    @eager
    def _start(
        self, x: Tensor, context: Context, generator: Generator, *, choices: bool = False
    ) -> Walk:
        if self.event_ndim == 1:
            # With the features outermost in memory, where steps are fastest.
            x = features_last(features_first(x))
        with full_precision(x):
            return self._walk(x, context, generator, choices=choices)

    def _walk(self, x: Tensor, context: Context, generator: Generator, *, choices: bool) -> Walk:
        raise NotImplementedError(f"{type(self).__name__} does not define _walk")

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the event."""
        return x.sum(tuple(range(-self.event_ndim, 0)))

    def _per_event(self, values: Tensor) -> Tensor:
        """One number per sample ``(*batch,)``, to go with events."""
        return values.reshape(*values.shape, *(1,) * self.event_ndim)

    def _require_finite_start(self, energy: Tensor) -> None:
        """Raise where the energy of a sample is not finite at the start."""
        if energy.is_meta:
            return
        finite = energy.detach().isfinite()
        if not bool(finite.all()):
            at = tuple(torch.nonzero(~finite)[0].tolist())
            raise NonFiniteEnergyError(
                f"{self.label} expected finite energies and forces at its start, got "
                f"{energy[at].item()} in sample {at[0] if len(at) == 1 else at} "
                f"({int((~finite).sum())} of {finite.numel()} samples); remedy: energies that are "
                "finite where the base and the layers before put a state, or a layer with an "
                "interpolated energy before this one"
            )
