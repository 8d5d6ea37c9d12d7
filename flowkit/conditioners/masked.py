"""The masked perceptron of autoregressive flows, and its inverse, variable by variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners.mlp import Conditioner
from flowkit.scalar.affine import soft_clip


class AutoregressiveConditioner(Conditioner):
    """A conditioner whose parameters for variable ``i`` read only the variables before ``i``.

    ``forward`` returns ``(..., features, param_size)``. :meth:`unroll` serves the inverse; the one
    here works for every subclass at the cost of one full pass a variable.
    """

    def unroll(
        self,
        solve: Callable[[int, Tensor], Tensor],
        like: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` one variable at a time.

        Args:
            solve: Given ``i`` and the parameters ``(..., param_size)`` of variable ``i``, returns
                its values ``(...)``.
            like: A tensor ``(..., features)`` whose batch, dtype and device ``x`` takes.
            context: ``(..., context)`` or ``None``.
        """
        columns: list[Tensor] = []
        for i in range(self.in_features):
            known = [
                *columns,
                *(torch.zeros_like(like[..., j]) for j in range(i, self.in_features)),
            ]
            params = self(torch.stack(known, -1), context)
            columns.append(solve(i, params[..., i, :]))
        return torch.stack(columns, -1)


class MaskedMLP(AutoregressiveConditioner):
    """A perceptron with masked weights (MADE); variables in their natural order.

    The last layer emits the first parameter of all variables, then the second, and so on, as
    scalar maps like to read them. Hidden units are sorted by degree, the number of leading
    variables that they may read. What a new variable changes is then one slice of every layer, and
    :meth:`unroll` costs one forward pass altogether instead of one a variable.

    Args:
        in_features: Number of variables D.
        param_size: Parameters a variable.
        context: Number of context features, read by all units.
        hidden: Widths of the hidden layers.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        input_clip: Soft-clip bound of everything read.

    References:
        Germain et al. 2015, MADE, arXiv 1502.03509.

    Example:
        >>> import torch
        >>> MaskedMLP(3, 2, hidden=(16,))(torch.randn(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        in_features: int,
        param_size: int,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        input_clip: float | None = 10.0,
    ) -> None:
        out_features = in_features * param_size
        super().__init__(in_features, out_features, context, hidden, activation, input_clip)
        self.param_size = param_size
        sizes = (in_features, *self.hidden)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.from_context = nn.Linear(context, sizes[1], bias=False) if context else None
        self.last = self._start_at_zero(nn.Linear(sizes[-1], out_features))

        # A unit of degree m reads the first m variables; degree 0 reads the context alone.
        lowest = 0 if context or in_features == 1 else 1
        span = in_features - lowest
        degrees = [np.arange(1, in_features + 1)]
        degrees += [lowest + np.arange(h) * span // h for h in self.hidden]
        reach = np.tile(np.arange(in_features), param_size)
        for i, (before, after) in enumerate(zip(degrees, [*degrees[1:], reach], strict=True)):
            mask = torch.tensor(before <= after[:, None]).to(self.last.weight.dtype)
            self.register_buffer(f"mask_{i}", mask, persistent=False)
            if i < len(self.layers):
                reads = mask.sum(-1) + (context if i == 0 else 0)
                self._start_hidden(self.layers[i], reads)  # type: ignore[arg-type]
                if i == 0 and self.from_context is not None:
                    self._start_hidden(self.from_context, reads)
        # _ends[l][m]: how many units of hidden layer l have a degree of at most m.
        self._ends = [
            np.searchsorted(d, np.arange(in_features), side="right").tolist() for d in degrees[1:]
        ]

    def _masked(self, i: int, layer: nn.Module, h: Tensor) -> Tensor:
        weight = layer.weight * getattr(self, f"mask_{i}")
        return F.linear(h, weight, layer.bias)  # type: ignore[arg-type]

    def _first(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the first hidden units read, from soft-clipped ``x``, before the activation."""
        h = self._masked(0, self.layers[0], x)
        if self.from_context is not None and context is not None:
            h = h + self.from_context(soft_clip(context, self.input_clip))
        return h

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., features, param_size)`` raw parameters."""
        h = self._act(self._first(soft_clip(x, self.input_clip), context))
        for i, layer in enumerate(self.layers[1:], start=1):
            h = self._act(self._masked(i, layer, h))
        out = self._masked(len(self.layers), self.last, h)
        return out.unflatten(-1, (self.param_size, self.in_features)).transpose(-1, -2)

    def unroll(
        self,
        solve: Callable[[int, Tensor], Tensor],
        like: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` one variable at a time; each hidden unit is computed once."""
        from_context = None
        if self.from_context is not None and context is not None:
            from_context = self.from_context(soft_clip(context, self.input_clip))
        values: list[Tensor] = []
        read: list[Tensor] = []
        chunks: list[list[Tensor]] = [[] for _ in self.layers]
        for i in range(self.in_features):
            for depth, layer in enumerate(self.layers):
                start = self._ends[depth][i - 1] if i else 0
                stop = self._ends[depth][i]
                if start == stop:
                    continue
                below = chunks[depth - 1] if depth else read
                known = torch.cat(below, -1) if below else like[..., :0]
                h = F.linear(
                    known,
                    layer.weight[start:stop, : known.shape[-1]],  # type: ignore[index]
                    layer.bias[start:stop],  # type: ignore[index]
                )
                if depth == 0 and from_context is not None:
                    h = h + from_context[..., start:stop]
                chunks[depth].append(self._act(h))
            known = torch.cat(chunks[-1], -1) if chunks[-1] else like[..., :0]
            rows = slice(i, None, self.in_features)
            params = F.linear(
                known, self.last.weight[rows, : known.shape[-1]], self.last.bias[rows]
            )
            value = solve(i, params)
            values.append(value)
            read.append(soft_clip(value, self.input_clip).unsqueeze(-1))
        return torch.stack(values, -1)
