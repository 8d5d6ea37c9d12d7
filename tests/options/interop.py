"""Networks and flows of nflows."""

from __future__ import annotations

from typing import Any

import nflows.transforms as nt
import torch
from torch import Tensor, nn

from flowkit.errors import ConversionError
from flowkit.interop.nflows import from_nflows
from flowkit.interop.nflows.features import OnFeatures
from flowkit.interop.nflows.nets import HeldMADE, HeldNet
from flowkit.interop.nflows.wrapper import WrappedTransform
from flowkit.scalar import Affine
from flowkit.transforms import Coupling, Elementwise

from .harness import differs, of
from .parts import X, reads_context, small, stirred


class Reads(nn.Module):
    """A network of somebody else's, of features and context."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        wide = torch.cat([inputs, 2 * inputs], -1)
        return wide if context is None else wide + context


ONES, ZEROS = torch.tensor([1.0, 2.0]), torch.zeros(2)
reads_context(HeldNet(Reads(), context=1), X, "forward")
reads_context(HeldMADE(Reads(), 2, context=1, scale=ONES, offset=ZEROS), X, "forward")
of(
    HeldNet,
    lambda **o: HeldNet(Reads(), context=0, **{"scale": ONES, "offset": ZEROS, **o})(X),
    scale=differs(2 * ONES, base=ONES),
    offset=differs(ONES, base=ZEROS),
)
inner = stirred(Elementwise(1, Affine(), context=1, conditioner=small))
reads_context(OnFeatures(2, [1], inner), X, "forward", "inverse")
layer = stirred(Coupling([0, 1], Affine(), conditioner=small, context=1))
reads_context(WrappedTransform(layer), X, "forward", "inverse")


class Given(nn.Module):
    """A network that does not tell how much context it reads."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.net = nn.Linear(i, o)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(inputs)


own = nt.AffineCouplingTransform(torch.tensor([0, 1]), lambda i, o: Given(i, o)).eval()


def converted(source: Any, **options: Any) -> Any:
    """What a converted layer expects, or why there is none."""
    try:
        ours = from_nflows(source, **options)
    except ConversionError as error:
        return str(error)
    return ours.event_shape, ours.context_size


of(
    from_nflows,
    None,
    features=differs(2, 3, see=lambda **o: converted(nt.Sigmoid(), **o)),
    context=differs(1, 2, base=0, see=lambda **o: converted(own, **o)),
)
