"""A conditioner of features in groups, where no group reads a later one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.conditioners.base import Conditioner
from flowkit.conditioners.encodings import Encoding
from flowkit.conditioners.mlp import MLP
from flowkit.config import register


@register
class GroupedConditioner(Conditioner):
    """One conditioner per group of features, which reads its own group and those before.

    In a :class:`flowkit.transforms.Coupling` whose features come in groups, the transformed
    features of a group then depend on no later group: these entries of the Jacobian are exactly
    zero. A group that has nothing to read gets parameters of its own.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted, read as ``(param_size, transformed features)``.
        conditioning: Number of features read, per group.
        transformed: Number of features transformed, per group.
        context: Number of context features, read by all.
        conditioner: Factory ``(in_features, out_features, context=...) -> nn.Module``, called for
            every group.
        encoding: How features are read; each group's conditioner gets it for the features that it
            reads. See :class:`Conditioner`.

    Raises:
        ArgumentError: If the groups do not add up.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import GroupedConditioner
        >>> net = GroupedConditioner(3, 10, conditioning=(2, 1), transformed=(3, 2))
        >>> net(torch.randn(5, 3)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        conditioning: Sequence[int],
        transformed: Sequence[int],
        context: int = 0,
        conditioner: Callable[..., nn.Module] = MLP,
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(in_features, out_features, context=context)
        name = type(self).__name__
        read = checks.integers(name, "conditioning", conditioning, least=0)
        sizes = checks.integers(name, "transformed", transformed, least=0, length=len(read))
        checks.function(name, "conditioner", conditioner, "for example MLP")
        if encoding is not None:
            checks.instance(name, "encoding", encoding, Encoding)
        if sum(read) != in_features:
            words = f"sizes that add up to the {in_features} features read"
            raise checks.fail(name, "conditioning", words, conditioning)
        if not sum(sizes) or out_features % sum(sizes):
            words = f"sizes that add up to a divisor of the {out_features} parameters"
            raise checks.fail(name, "transformed", words, transformed)
        self._param_size = out_features // sum(sizes)
        self.nets = nn.ModuleList()
        # Of each group that transforms something: features to read and to transform.
        groups = zip(itertools.accumulate(read), sizes, strict=True)
        self._groups = [(known, size) for known, size in groups if size]
        for known, size in self._groups:
            out = size * self._param_size
            how = {} if encoding is None else {"encoding": encoding.take(range(known))}
            reads = known + context > 0
            net = conditioner(known, out, context=context, **how) if reads else _Constant(out)
            self.nets.append(net)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the conditioners from what they read, as far as they start from data."""
        for (known, _), net in zip(self._groups, self.nets, strict=True):
            if hasattr(net, "initialize"):
                net.initialize(x[..., :known], context)  # type: ignore[operator]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        parts = []
        for (known, size), net in zip(self._groups, self.nets, strict=True):
            raw = net(x[..., :known], context)
            parts.append(raw.unflatten(-1, (self._param_size, size)))
        return torch.cat(parts, -1).flatten(-2)


class _Constant(nn.Module):
    """Parameters that depend on nothing."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the same for every sample."""
        return self.values.to(x.dtype).expand(*x.shape[:-1], -1)
