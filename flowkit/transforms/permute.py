"""Permutations of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.layout import features_last
from flowkit.transforms.volume import ConstantVolume


@register
class Permutation(ConstantVolume):
    r"""Reorder the features: :math:`z_i = x_{p_i}`. The order is saved with the weights.

    Args:
        order: A permutation of ``range(features)``.

    Raises:
        ArgumentError: If ``order`` is not a permutation.

    Example:
        >>> import torch
        >>> from flowkit.transforms import Permutation
        >>> Permutation([2, 0, 1])(torch.tensor([1.0, 2.0, 3.0]))[0]
        tensor([3., 1., 2.])
    """

    rearranges = True
    keeps_intervals = True
    order: Tensor

    def __init__(self, order: Sequence[int] | Tensor) -> None:
        listed = checks.permutation("Permutation", "order", order)
        super().__init__((len(listed),))
        self.register_buffer("order", torch.tensor(listed))

    @classmethod
    def random(cls, features: int, *, seed: int | None = None) -> Permutation:
        """Draw a permutation, from a seed or from torch's global random state."""
        features = checks.integer("Permutation.random", "features", features, least=1)
        if seed is None:
            return cls(torch.randperm(features))
        seed = checks.integer("Permutation.random", "seed", seed, least=0, most=None)
        return cls(np.random.default_rng(seed).permutation(features).tolist())

    def circular_columns(self, after: Tensor, *, inverse: bool = False) -> Tensor:
        """Reorder the features."""
        return after.index_select(0, self.order if inverse else self.order.argsort())

    def _to_noise(self, x: Tensor) -> Tensor:
        return features_last(x.movedim(-1, 0).index_select(0, self.order))

    def _to_data(self, z: Tensor) -> Tensor:
        return features_last(z.movedim(-1, 0).index_select(0, self.order.argsort()))
