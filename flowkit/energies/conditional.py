"""Some coordinates of an energy, given the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.config import register
from flowkit.energies.base import Energy
from flowkit.errors import DataError, ShapeError


@register
class Conditional(Energy):
    r"""The energy of the free coordinates, the others known: :math:`u(x) = U(x, k)`.

    Events are the free coordinates in their order, and the context holds the known ones in
    theirs; so any stochastic layer or chain samples :math:`p(x | k)`: it fills in what is missing,
    such as a part of an image.

    Args:
        energy: An energy of vectors without a context; of a flow, for example
            ``from_callable(flow.energy, flow.event_shape)``, which computes no constant
            determinant.
        free: One boolean a coordinate.

    Raises:
        ShapeError: If events are no vectors, or there are more or fewer booleans than coordinates.
        DataError: If all coordinates are free or none is, or the energy reads a context.

    Example:
        >>> import torch
        >>> from flowkit.energies import Conditional
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import MALA
        >>> second = Conditional(DoubleWell(), [False, True])
        >>> known = torch.tensor([[1.7], [-1.6]])
        >>> x, _ = MALA(second, steps=10)(torch.zeros(2, 1), known)
        >>> x.shape
        torch.Size([2, 1])
    """

    places: Tensor

    def __init__(self, energy: Energy, free: Sequence[bool]) -> None:
        flags = [bool(f) for f in free]
        if energy.event_shape != (len(flags),):
            raise ShapeError(
                f"Conditional expected one boolean for each of {energy.event_shape}, got "
                f"{len(flags)}"
            )
        if energy.context_size or all(flags) or not any(flags):
            raise DataError(
                "Conditional expected an energy without context, and some coordinates free and "
                f"some known; got context {energy.context_size} and free {free!r}"
            )
        count = sum(flags)
        super().__init__((count,), len(flags) - count)
        self.joint = energy
        order = [i for i, f in enumerate(flags) if f] + [i for i, f in enumerate(flags) if not f]
        # Where each coordinate stands in the free ones followed by the known ones.
        places = [order.index(i) for i in range(len(flags))]
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The energy in kT of the whole."""
        return self.joint.energy(self.join(x, context))

    def join(self, x: Tensor, context: Tensor | None) -> Tensor:
        """All coordinates in their order, from free and known ones."""
        batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])  # type: ignore[union-attr]
        parts = [part.expand(*batch, part.shape[-1]) for part in (x, context)]  # type: ignore[union-attr]
        return torch.cat(parts, -1)[..., self.places]
