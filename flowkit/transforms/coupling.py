"""Coupling layers: some features choose how the others are transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.conditioners import MLP, ConvNet
from flowkit.config import register
from flowkit.errors import ArgumentError
from flowkit.numerics.layout import features_first, features_last
from flowkit.scalar import ScalarMap
from flowkit.transforms.structure import ScalarStructure


@register
class Coupling(ScalarStructure):
    r"""Transform some features by a scalar map whose parameters are computed from the others.

    With A the conditioning features outside the mask and B the transformed ones inside,
    :math:`z_A = x_A,\; z_B = f(x_B; \theta(x_A, c))` and
    :math:`\log|\det| = \sum_{i \in B} \log f'(x_i)`. Starts at the start of the scalar map.

    Args:
        mask: One boolean per feature, true for transformed features.
        scalar: The scalar map; rational-quadratic spline by default.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module`` of a network
            ``(x, context) -> (..., out_features)``, read as ``(..., param_size, transformed
            features)``; :class:`flowkit.conditioners.MLP` or, for images, ``ConvNet`` by default.
        context: Number of context features, read by the conditioner.
        event_ndim: 1 for vectors; 3 for images ``(channels, height, width)``, where the features
            are the channels and the conditioner is one of images.

    Raises:
        ArgumentError: If the mask transforms no feature, or all without context to read.

    References:
        Dinh et al. 2017, Real NVP, arXiv 1605.08803; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Coupling
        >>> t = Coupling([False, True, True])
        >>> z, log_det = t(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    conditioning_index: Tensor
    transformed_index: Tensor
    merge_index: Tensor

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        scalar: ScalarMap | None = None,
        *,
        conditioner: Callable[..., nn.Module] | None = None,
        context: int = 0,
        event_ndim: int = 1,
    ) -> None:
        chosen = checks.flags("Coupling", "mask", mask)
        if event_ndim not in (1, 3):
            raise checks.fail("Coupling", "event_ndim", "1 (vectors) or 3 (images)", event_ndim)
        if not any(chosen):
            raise checks.fail("Coupling", "mask", "booleans with at least one true", mask)
        if all(chosen) and not context:
            raise ArgumentError(
                "Coupling expected a conditioning feature (false in the mask), or context, to "
                "read from; remedy: Elementwise, which transforms every feature by itself"
            )
        read = [i for i, inside in enumerate(chosen) if not inside]
        transformed = [i for i, inside in enumerate(chosen) if inside]
        super().__init__(len(chosen), scalar, transformed, context=context, event_ndim=event_ndim)
        joined = read + transformed
        merge = sorted(range(len(chosen)), key=joined.__getitem__)
        places = {"conditioning": read, "transformed": transformed, "merge": merge}
        for name, index in places.items():
            values = torch.tensor(index, dtype=torch.long)
            self.register_buffer(f"{name}_index", values, persistent=False)
        # Parts that lie side by side are cut and joined without gathers.
        self._read_first = joined == sorted(joined)
        self._read_last = transformed + read == sorted(joined)
        if conditioner is None:
            conditioner = MLP if event_ndim == 1 else ConvNet
        checks.function("Coupling", "conditioner", conditioner)
        self.conditioner = conditioner(
            len(read), len(transformed) * self.scalar.param_size, context=context
        )

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The conditioning and the transformed features, ``(features, *batch, *pixels)``."""
        rows = features_first(x, self.event_ndim)
        count = self.transformed
        if self._read_first:
            return rows[: len(rows) - count], rows[len(rows) - count :]
        if self._read_last:
            return rows[count:], rows[:count]
        return rows.index_select(0, self.conditioning_index), rows.index_select(
            0, self.transformed_index
        )

    def merge(self, read: Tensor, transformed: Tensor) -> Tensor:
        """Join both in the order of the event."""
        both = torch.cat([transformed, read] if self._read_last else [read, transformed])
        if not (self._read_first or self._read_last):
            both = both.index_select(0, self.merge_index)
        return features_last(both, self.event_ndim)
