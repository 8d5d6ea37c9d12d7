"""A masked perceptron that also reads waves of the variables, for densities with fine detail."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners.masked import MaskedMLP
from flowkit.config import register


@register
class FourierMaskedMLP(MaskedMLP):
    r"""A :class:`MaskedMLP` whose first layer also reads sines and cosines of the variables.

    For variable i there are ``waves`` directions :math:`\omega` over the variables up to i, drawn
    once: uniform in direction, log-uniform in length between 1 and ``highest``. The first layer
    reads :math:`x`, :math:`\sin(\omega \cdot x)` and :math:`\cos(\omega \cdot x)`. Perceptrons
    learn slow variation first; the waves give them the fast one, such as the edges of a
    photograph. Made for few variables on an interval of length about 2.

    Args:
        in_features: Number of variables D.
        param_size: Parameters a variable.
        context: Number of context features, read by all units, without waves.
        hidden: Widths of the hidden layers.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        input_clip: Soft-clip bound of everything read.
        waves: Number of directions a variable.
        highest: Largest angular frequency, in radians a unit of the variables.
        seed: Seed of the directions.

    Raises:
        ValueError: If ``waves`` is below 1, ``highest`` is below 1, or an option is unknown.

    References:
        Tancik et al. 2020, Fourier features, arXiv 2006.10739.

    Example:
        >>> import torch
        >>> FourierMaskedMLP(3, 2, hidden=(16,), waves=4)(torch.randn(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    directions: Tensor
    wave_mask: Tensor

    def __init__(
        self,
        in_features: int,
        param_size: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        input_clip: float | None = 10.0,
        waves: int = 32,
        highest: float = 40.0,
        seed: int = 0,
    ) -> None:
        if waves < 1 or not (math.isfinite(highest) and highest >= 1):
            raise ValueError(
                f"FourierMaskedMLP needs waves >= 1 and highest >= 1, got {waves} and {highest}"
            )
        super().__init__(in_features, param_size, context, hidden, activation, input_clip)
        self.waves, self.highest = waves, float(highest)
        rng = np.random.default_rng(seed)
        draws = rng.standard_normal((in_features, waves, in_features))
        draws *= np.tri(in_features)[:, None, :]
        draws *= highest ** rng.random((in_features, waves, 1)) / np.linalg.norm(
            draws, axis=-1, keepdims=True
        )
        dtype = self.last.weight.dtype
        directions = torch.from_numpy(draws.reshape(-1, in_features)).to(dtype)
        self.register_buffer("directions", directions)
        # Waves of variable i are read where variable i itself is read.
        reads = torch.from_numpy(np.tile(np.arange(in_features).repeat(waves), 2))
        self.register_buffer(
            "wave_mask", self.get_buffer("mask_0")[:, reads].clone(), persistent=False
        )
        self.from_waves = nn.Linear(2 * len(directions), self.hidden[0], bias=False)

    def _first(self, x: Tensor, context: Tensor | None) -> Tensor:
        angles = F.linear(self._clip(x), self.directions)
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        return super()._first(x, context) + F.linear(
            waves, self.from_waves.weight * self.wave_mask
        )

    def _columns(self) -> Tensor:
        of_waves = self.from_waves.weight.unflatten(-1, (2, self.in_features, self.waves))
        return torch.cat([super()._columns().unsqueeze(-1), *of_waves.unbind(1)], -1).flatten(1)

    def _rows_to_read(self, known: list[Tensor], start: int, stop: int) -> Tensor:
        directions = self.directions[start * self.waves : stop * self.waves, :stop]
        angles = directions @ self._clip(torch.cat(known))
        angles = angles.unflatten(0, (-1, self.waves))
        last = self._clip(known[-1]).unsqueeze(1)
        return torch.cat([last, angles.sin(), angles.cos()], 1).flatten(0, 1)
