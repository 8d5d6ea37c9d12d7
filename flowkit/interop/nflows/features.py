"""A transform of some features, which couplings of nflows may hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkit.config import register
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.transforms import Transform
from flowkit.transforms.region import Region


@register
class OnFeatures(Transform):
    """A transform of some features of a vector, and the identity of the others.

    The ``unconditional_transform`` of nflows' couplings becomes one.

    Args:
        features: Number of features.
        index: The features that the transform maps, in the order in which it reads them.
        transform: A transform of as many features.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Permutation
        >>> OnFeatures(3, [0, 2], Permutation([1, 0]))(torch.tensor([1.0, 2.0, 3.0]))[0]
        tensor([3., 2., 1.])
    """

    index: Tensor

    def __init__(self, features: int, index: Sequence[int], transform: Transform) -> None:
        super().__init__((features,), context=transform.context_size)
        self.transform = transform
        self.needs_context = transform.needs_context
        self.constant_log_det = transform.constant_log_det
        places = torch.tensor(list(index), dtype=torch.long)
        self.register_buffer("index", places, persistent=False)

    @property
    def restricts(self) -> bool:
        """Whether the transform does."""
        return self.transform.restricts

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry the part of the transform; the rest stays."""
        part = Region(*(end.index_select(-1, self.index) for end in region))
        moved = self.transform.map_region(part, context, inverse=inverse)
        if moved is None:
            return None
        return Region(*(self._put(old, new) for old, new in zip(region, moved, strict=True)))

    def _put(self, whole: Tensor, part: Tensor) -> Tensor:
        """``whole`` with other numbers for the features of the transform."""
        whole = whole.expand(*part.shape[:-1], whole.shape[-1])
        return whole.index_copy(-1, self.index, part)

    def forward(self, x: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map the features of the transform."""
        part, log_det = self.transform(x.index_select(-1, self.index), context)
        return x.index_copy(-1, self.index, part), log_det

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map them back."""
        part, log_det = self.transform.inverse(z.index_select(-1, self.index), context)
        return z.index_copy(-1, self.index, part), log_det
