"""Types that the signatures of layers and distributions share."""

from __future__ import annotations

import torch
from torch import Tensor

#: What a density is conditional on, ``(*batch, C)``.
Context = Tensor | None
#: Source of randomness; torch's global state for ``None``.
Generator = torch.Generator | None
#: The shape of samples, where it is no single number.
Sizes = tuple[int, ...]
#: A value ``(*batch, *event)`` and a log-determinant ``(*batch,)``.
Mapped = tuple[Tensor, Tensor]
