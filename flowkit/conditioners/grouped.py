"""A conditioner of features in groups, where no group reads a later one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit.conditioners.mlp import MLP
from flowkit.config import register


@register
class GroupedConditioner(nn.Module):
    """One conditioner a group: it reads the features of its own group and of those before.

    In a :class:`flowkit.transforms.Coupling` whose features come in groups, what moves in a group
    then depends on no later one, to exact zeros in the Jacobian. A group that has nothing to read
    gets parameters of its own.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted, ``(param_size, moved features)`` in a row.
        reads: Number of features read, a group.
        moves: Number of features moved, a group.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module``, called for
            every group.
        context: Number of context features, read by all.

    Raises:
        ValueError: If the groups do not add up.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import GroupedConditioner
        >>> net = GroupedConditioner(3, 10, reads=(2, 1), moves=(3, 2))
        >>> net(torch.randn(5, 3)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        reads: Sequence[int],
        moves: Sequence[int],
        conditioner: Callable[..., nn.Module] = MLP,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.reads, self.moves = tuple(reads), tuple(moves)
        sizes = (*self.reads, *self.moves)
        whole = all(type(n) is int and n >= 0 for n in sizes)
        if not whole or len(self.reads) != len(self.moves) or sum(self.reads) != in_features:
            raise ValueError(
                f"GroupedConditioner expected as many sizes >= 0 to read as to move, adding up to the "
                f"{in_features} features read; got reads={self.reads} and moves={self.moves}"
            )
        moved = sum(self.moves)
        if not moved or out_features % moved:
            raise ValueError(
                f"GroupedConditioner expected moves that add up to a divisor of the {out_features} "
                f"parameters, got {self.moves}"
            )
        self._param_size = out_features // moved
        self.nets = nn.ModuleList()
        self.own = nn.ParameterList()
        # Of each group that moves something: features to read, to move, and where its net is.
        self._plan: list[tuple[int, int, int, bool]] = []
        for group, size in enumerate(self.moves):
            known = sum(self.reads[: group + 1])
            if not size:
                continue
            out = size * self._param_size
            nets: nn.ModuleList | nn.ParameterList = self.nets if known + context else self.own
            self._plan.append((known, size, len(nets), bool(known + context)))
            if known + context:
                self.nets.append(conditioner(known, out, context=context))
            else:
                self.own.append(nn.Parameter(torch.zeros(out)))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the conditioners from what they read, as far as they start from data."""
        for known, _, i, reads in self._plan:
            if reads and hasattr(self.nets[i], "initialize"):
                self.nets[i].initialize(x[..., :known], context)  # type: ignore[operator]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        parts = []
        for known, size, i, reads in self._plan:
            if reads:
                raw = self.nets[i](x[..., :known], context)
            else:
                raw = self.own[i].to(x.dtype).expand(*x.shape[:-1], -1)
            parts.append(raw.unflatten(-1, (self._param_size, size)))
        return torch.cat(parts, -1).flatten(-2)
