"""Conditioners that read circles as points of the plane, and everything smoothly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners.masked import MaskedMLP
from flowkit.conditioners.mlp import MLP
from flowkit.config import register
from flowkit.numerics.clips import soft_clip


def _check(name: str, circular: Sequence[bool], features: int, period: float) -> list[bool]:
    if len(circular) != features or any(c not in (0, 1) for c in circular):
        raise ValueError(
            f"{name} needs circular to be one boolean for each of {features} features, got "
            f"{list(circular)}"
        )
    if not 0 < period < math.inf:
        raise ValueError(f"{name} needs a finite period > 0, got {period}")
    return [bool(c) for c in circular]


@register
class CircularFeatures(nn.Module):
    r"""A conditioner that reads a circular feature as :math:`(\cos\varphi, \sin\varphi)`.

    What it emits is then a smooth function on the circle. Other features and the context are
    clipped by :func:`flowkit.numerics.clips.soft_clip`, which has derivatives of every order, as forces
    need it. Choose a smooth activation for the network, too.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features.
        circular: One boolean a feature read.
        period: Length of a turn.
        clip: Bound of everything that is not circular.
        conditioner: Factory of the network, which takes ``input_clip``.

    Raises:
        ValueError: If there is not one boolean a feature, or the period is not positive.

    References:
        Köhler, Krämer and Noé 2021, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> net = CircularFeatures(2, 4, circular=[True, False], period=1.0)
        >>> x = torch.tensor([[0.25, 3.0], [1.25, 3.0]])
        >>> torch.allclose(*net(x))
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        *,
        circular: Sequence[bool],
        period: float = 2.0,
        clip: float = 10.0,
        conditioner: Callable[..., nn.Module] = MLP,
    ) -> None:
        super().__init__()
        self.circular = _check("CircularFeatures", circular, in_features, period)
        self.rate, self.clip = 2 * math.pi / period, clip
        around = [i for i, c in enumerate(self.circular) if c]
        straight = [i for i, c in enumerate(self.circular) if not c]
        self.register_buffer("around", torch.tensor(around, dtype=torch.long), False)
        self.register_buffer("straight", torch.tensor(straight, dtype=torch.long), False)
        self.network = conditioner(
            in_features + len(around), out_features, context=context, input_clip=None
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        angles = self.rate * x.index_select(-1, self.get_buffer("around"))
        others = soft_clip(x.index_select(-1, self.get_buffer("straight")), self.clip)
        if context is not None:
            context = soft_clip(context, self.clip)
        return self.network(torch.cat([others, angles.cos(), angles.sin()], -1), context)


@register
class CircularMaskedMLP(MaskedMLP):
    r"""A :class:`MaskedMLP` that reads a circular variable as :math:`(\cos\varphi, \sin\varphi)`.

    See :class:`CircularFeatures` for the arguments, and :class:`MaskedMLP` for the others.

    Raises:
        ValueError: If there is not one boolean a variable, or the period is not positive.

    Example:
        >>> import torch
        >>> net = CircularMaskedMLP(2, 3, circular=[True, False], period=1.0)
        >>> x = torch.tensor([[0.25, 3.0], [1.25, 3.0]])
        >>> torch.allclose(*net(x))
        True
    """

    around: Tensor
    cosine_mask: Tensor

    def __init__(
        self,
        in_features: int,
        param_size: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        *,
        circular: Sequence[bool],
        period: float = 2.0,
        clip: float = 10.0,
    ) -> None:
        super().__init__(in_features, param_size, context, hidden, activation, None)
        circular = _check("CircularMaskedMLP", circular, in_features, period)
        self.rate, self.clip = 2 * math.pi / period, clip
        self.register_buffer("around", torch.tensor(circular), persistent=False)
        self.register_buffer("cosine_mask", self.get_buffer("mask_0") * self.around, False)
        self.from_cosines: nn.Linear | None = None
        if any(circular):
            reads = self.get_buffer("mask_0").sum(-1) + self.cosine_mask.sum(-1) + context
            layers = [self.layers[0], nn.Linear(in_features, self.hidden[0], bias=False)]
            layers += [self.from_context] if self.from_context is not None else []
            for layer in layers:
                self._start_hidden(layer, reads)  # type: ignore[arg-type]
            self.from_cosines = layers[1]  # type: ignore[assignment]

    def _encode(self, x: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
        """Sines of circles and clipped others, and cosines of circles and zeros."""
        angles = self.rate * x
        first = torch.where(around, angles.sin(), self._clip(x))
        return first, torch.where(around, angles.cos(), torch.zeros_like(x))

    def _clip(self, x: Tensor) -> Tensor:
        return soft_clip(x, self.clip)

    def _first(self, x: Tensor, context: Tensor | None) -> Tensor:
        first, cosines = self._encode(x, self.around)
        h = F.linear(first, *self._masked(0, self.layers[0]))
        if self.from_cosines is not None:
            h = h + F.linear(cosines, self.from_cosines.weight * self.cosine_mask)
        return self._with_context(h, context)

    def _columns(self) -> Tensor:
        if self.from_cosines is None:
            return super()._columns()
        return torch.stack([super()._columns(), self.from_cosines.weight], -1).flatten(1)

    def _rows_to_read(self, known: list[Tensor], start: int, stop: int) -> Tensor:
        if self.from_cosines is None:
            return super()._rows_to_read(known, start, stop)
        around = self.around[start:stop].unsqueeze(-1)
        return torch.stack(self._encode(known[-1], around), 1).flatten(0, 1)
