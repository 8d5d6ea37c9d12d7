"""Stochastic layers: maps whose log-determinant slot is a log path-probability ratio."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowkit.arrays import as_array
from flowkit.energies import Energy
from flowkit.errors import DataError, NonFiniteEnergyError
from flowkit.numerics.layout import features_first, features_last
from flowkit.transforms.base import Transform, full_precision


class Walk(NamedTuple):
    """What a stochastic layer did to every row.

    Attributes:
        value: The new state ``(*batch, *event)``.
        log_ratio: The log path-probability ratio ``(*batch,)``.
        acceptance: The fraction of proposals that were accepted, ``(*batch,)``; ``None`` for a
            layer that accepts nothing.
        nonfinite: How many proposals had an energy that is not finite, ``(*batch,)``; ``None``
            for a layer that computes none.
        log_choice: Log-probability of the decisions, given the proposals, ``(*batch,)``; ``None``
            unless it was asked for.
    """

    value: Tensor
    log_ratio: Tensor
    acceptance: Tensor | None = None
    nonfinite: Tensor | None = None
    log_choice: Tensor | None = None


class StochasticTransform(Transform):
    r"""A layer that draws: its log-determinant slot holds a log path-probability ratio.

    A subclass defines ``forward`` and ``inverse`` with a ``generator=`` argument; both return
    :math:`\log \tilde q(z \to x) - \log q(x \to z)` of their own direction. A ratio is never
    left out of :meth:`unnormalized`.
    """

    stochastic = True

    def unnormalized(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same as ``forward``."""
        return self(x, context, generator=generator)

    def walk(
        self,
        value: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
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

    A subclass defines ``_walk(x, context, generator, choices)``. Both directions of the layer are
    the same random move: for kernels in detailed balance, because they are reversible; for
    Langevin steps, because the step back is taken as one of the same kind.

    Args:
        energy: The dimensionless energy, of events of the state.
        steps: Number of steps.
        step_size: One number above 0 for all coordinates, or one for each of the last dimension.
        learn: Whether the step size is a parameter, as its logarithm.

    Raises:
        DataError: If there is no energy, or a number is out of its range.
    """

    log_step_size: Tensor

    def __init__(self, energy: Energy, steps: int, step_size: Any, learn: bool) -> None:
        name = type(self).__name__
        if not isinstance(energy, Energy):
            raise DataError(
                f"{name} expected an Energy, got {type(energy).__name__}; remedy: "
                "flowkit.energies.from_callable(function, event_shape)"
            )
        super().__init__(energy.event_shape, context=energy.context_size)
        if type(steps) is not int or steps < 1:
            raise DataError(f"{name} expected steps as a whole number >= 1, got {steps!r}")
        self.energy = energy
        self.steps = steps
        size = positive(name, "step_size", step_size, energy.event_shape[-1:])
        if learn:
            self.log_step_size = nn.Parameter(size.log())
        else:
            self.register_buffer("log_step_size", size.log())

    @property
    def step_size(self) -> Tensor:
        """The present step size: one number, or one for each of the last dimension."""
        return self.log_step_size.exp()

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Move the state; return it with the log path-probability ratio."""
        return self._start(x, context, generator, False)[:2]

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Move the state, in the same way as ``forward``."""
        return self._start(z, context, generator, False)[:2]

    def walk(
        self,
        value: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        inverse: bool = False,
        choices: bool = False,
    ) -> Walk:
        """Move the state; report acceptance and energies that are not finite."""
        value, context = self._prepare(value, context, "z" if inverse else "x")
        return self._start(value, context, generator, choices)

    def _start(
        self,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
        choices: bool,
    ) -> Walk:
        # Compiled programs cannot differentiate within, draw from a generator or look at energies.
        compiling = torch.compiler.is_compiling()
        walk = torch.compiler.disable(self._walk) if compiling else self._walk
        with full_precision(x):
            return walk(self._laid_out(x), context, generator, choices)

    def _walk(
        self,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
        choices: bool,
    ) -> Walk:
        raise NotImplementedError(f"{type(self).__name__} does not define _walk")

    def _laid_out(self, x: Tensor) -> Tensor:
        """The state with its features outermost in memory, where steps are fastest."""
        return features_last(features_first(x)) if self.event_ndim == 1 else x

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the event."""
        return x.sum(tuple(range(-self.event_ndim, 0)))

    def _as_rows(self, rows: Tensor) -> Tensor:
        """One number per row ``(*batch,)``, to go with events."""
        return rows.reshape(*rows.shape, *(1,) * self.event_ndim)

    def _require_finite_start(self, energy: Tensor) -> None:
        """Raise where the energy of a row is not finite before anything was done to it."""
        if energy.is_meta:
            return
        finite = energy.detach().isfinite()
        if not bool(finite.all()):
            row = tuple(torch.nonzero(~finite)[0].tolist())
            raise NonFiniteEnergyError(
                f"{self.label} expected finite energies and forces at its start, got "
                f"{energy[row].item()} in row {row[0] if len(row) == 1 else row} "
                f"({int((~finite).sum())} of {finite.numel()} rows); remedy: energies that are "
                "finite where the base and the layers before put a state, or a layer with an "
                "interpolated energy before this one"
            )


def positive(name: str, what: str, value: Any, last: tuple[int, ...]) -> Tensor:
    """A number above 0, or one for each of the last dimension, as a tensor."""
    # Checked as an array: files are read by building flows without numbers.
    numbers = as_array(value)
    if numbers.shape not in ((), last) or not ((numbers > 0) & np.isfinite(numbers)).all():
        raise DataError(
            f"{name} expected {what} > 0, one finite number or one for each of {last}, got "
            f"{value!r}"
        )
    return torch.as_tensor(numbers, dtype=torch.get_default_dtype()).clone()
