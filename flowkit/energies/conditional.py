"""The energy of some coordinates, given the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.energies.base import Energy
from flowkit.errors import ArgumentError, ShapeError
from flowkit.numerics.types import Context


@register
class ConditionalEnergy(Energy):
    r"""The energy of some coordinates given the others: :math:`u(x) = U(x, k)`.

    Events are the free coordinates in their order, and the context holds the known ones in
    theirs. Any stochastic layer or chain then samples :math:`p(x | k)`: it fills in what is
    missing, such as a part of an image.

    Args:
        energy: An energy of vectors without a context; of a flow, for example
            ``CallableEnergy(flow.energy, flow.event_shape)``, which computes no constant
            determinant.
        free: One boolean per coordinate.

    Raises:
        ShapeError: If events are no vectors.
        ArgumentError: If there are more or fewer booleans than coordinates, if all coordinates
            are free or none is, or the energy reads a context.

    Example:
        >>> import torch
        >>> from flowkit.energies import ConditionalEnergy
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import MALA
        >>> second = ConditionalEnergy(DoubleWell(), [False, True])
        >>> known = torch.tensor([[1.7], [-1.6]])
        >>> x, _ = MALA(second, steps=10)(torch.zeros(2, 1), known)
        >>> x.shape
        torch.Size([2, 1])
    """

    places: Tensor

    def __init__(self, energy: Energy, free: Sequence[bool]) -> None:
        checks.instance("ConditionalEnergy", "energy", energy, Energy)
        if len(energy.event_shape) != 1:
            raise ShapeError(
                f"ConditionalEnergy expected an energy of vectors, got {energy.event_shape}"
            )
        features = energy.event_shape[0]
        flags = checks.flags("ConditionalEnergy", "free", free, features)
        if energy.context_size or all(flags) or not any(flags):
            raise ArgumentError(
                "ConditionalEnergy expected an energy without context, and some coordinates free "
                f"and some known; got context {energy.context_size} and free {free!r}"
            )
        super().__init__(sum(flags), context=features - sum(flags))
        self.joint = energy
        # Where each coordinate stands in the free ones followed by the known ones.
        order = torch.tensor(flags).logical_not().to(torch.uint8).argsort(stable=True)
        self.register_buffer("places", order.argsort(), persistent=False)

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """Return the energy of all coordinates."""
        return self.joint.energy(self.join(x, context))

    def join(self, x: Tensor, context: Context) -> Tensor:
        """Put free and known coordinates together in their order."""
        batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])  # type: ignore[union-attr]
        parts = [part.expand(*batch, part.shape[-1]) for part in (x, context)]  # type: ignore[union-attr]
        return torch.cat(parts, -1)[..., self.places]
