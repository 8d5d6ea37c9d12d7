"""The masked perceptron of autoregressive flows, and its inverse, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners.base import AutoregressiveConditioner, linear, start_at_zero
from flowkit.conditioners.encodings import Encoding
from flowkit.conditioners.mlp import Layered
from flowkit.config import register
from flowkit.numerics.compiling import is_traced
from flowkit.numerics.layout import affine_rows
from flowkit.numerics.layout import linear as apply_linear

# Steps of the inverse that share their products with what is known before; measured.
_STEPS = 8


@register
class MaskedMLP(Layered, AutoregressiveConditioner):
    """A perceptron with masked weights (MADE), ``(..., features) -> (..., features, param_size)``.

    The parameters of a feature read the features of the tokens before its own. The last layer
    emits the first parameter of all features, then the second, and so on, as scalar maps like to
    read them. Hidden units are sorted by degree, the number of leading tokens that they may read.
    What a new token changes is then one slice of every layer, and :meth:`unroll` costs one forward
    pass altogether instead of one per token.

    Args:
        features: Number of features.
        param_size: Number of parameters per feature.
        block: Number of features per token; tokens are causal among each other, and no feature
            reads another one of its token.
        context: Number of context features, read by all units.
        hidden: Widths of the hidden layers.
        activation: See :class:`MLP`.
        encoding: How features are read; see :class:`Conditioner`.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Germain et al. 2015, MADE, arXiv 1502.03509.

    Example:
        >>> import torch
        >>> MaskedMLP(3, 2, hidden=(16,))(torch.randn(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        features: int,
        param_size: int,
        *,
        block: int = 1,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(features, param_size, block=block, context=context, encoding=encoding)
        self._set_layers(hidden, activation)
        name, sizes = type(self).__name__, self.encoding.sizes(self.in_features)
        widths = (sum(sizes), *self.hidden)
        self.layers = nn.ModuleList(linear(name, a, b) for a, b in itertools.pairwise(widths))
        context = self.context_size
        self.from_context = linear(name, context, widths[1], bias=False) if context else None
        self.last = start_at_zero(linear(name, widths[-1], self.out_features))

        # A unit of degree m reads the first m tokens; degree 0 reads the context alone.
        tokens = self.in_features // self.block
        lowest = 0 if context or tokens == 1 else 1
        token = np.arange(self.in_features) // self.block
        degrees = [(1 + token).repeat(sizes)]
        degrees += [lowest + np.arange(h) * (tokens - lowest) // h for h in self.hidden]
        reach = np.tile(token, self.param_size)
        columns = self._column_weights()[: widths[0]]
        for i, (before, after) in enumerate(zip(degrees, [*degrees[1:], reach], strict=True)):
            mask = torch.tensor(before <= after[:, None]).to(self.last.weight.dtype)
            self.register_buffer(f"mask_{i}", mask, persistent=False)
            if i < len(self.layers):
                weights = columns if i == 0 else torch.ones(mask.shape[-1])
                reads = mask @ weights + (context if i == 0 else 0)
                self._start_hidden(self.layers[i], reads, weights)
                if i == 0 and self.from_context is not None:
                    self._start_hidden(self.from_context, reads)
        # A step starts at every token before which hidden units become known. Counted up to each
        # step: the features, the columns that they are read by, the units of each hidden layer.
        starts = sorted({0}.union(*(d.tolist() for d in degrees[1:])))
        self._starts = [self.block * t for t in (*starts, tokens)]
        counted = np.cumsum([0, *sizes])
        self._known = [[int(counted[i]) for i in self._starts]]
        self._known += [[0, *np.searchsorted(d, starts, "right").tolist()] for d in degrees[1:]]

    def _masked(self, i: int, layer: Any) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer."""
        return layer.weight * getattr(self, f"mask_{i}"), layer.bias

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., features, param_size)`` raw parameters."""
        h = F.linear(self._encode(x), *self._masked(0, self.layers[0]))
        if self.from_context is not None and context is not None:
            h = h + self.from_context(self.encoding.clip(context))
        h = self._act_on_new(h)
        for i, layer in enumerate(self.layers[1:], start=1):
            h = self._act_on_new(F.linear(h, *self._masked(i, layer)))
        out = apply_linear(h, *self._masked(len(self.layers), self.last))
        return out.unflatten(-1, (self.param_size, self.in_features)).transpose(-1, -2)

    def unroll(
        self,
        solve: Callable[[Tensor, Tensor], Tensor],
        z: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` token by token; each hidden unit is computed once.

        Tokens that no hidden unit tells apart are solved in one step. A few steps make a group:
        what they read from before the group is one product of matrices per layer.
        """
        features, counts = self._starts, [*self._known]
        counts.append([n * self.param_size for n in features])
        by_feature = (self.param_size, self.in_features)
        layers: list[tuple[Tensor, Tensor]] = [
            *((layer.weight, layer.bias.unsqueeze(-1)) for layer in self.layers),
            (
                self.last.weight.unflatten(0, by_feature).transpose(0, 1).flatten(0, 1),
                self.last.bias.unflatten(0, by_feature).mT.reshape(-1, 1),
            ),
        ]
        if self.from_context is not None and context is not None:
            read = self.from_context(self.encoding.clip(context))
            layers[0] = (layers[0][0], layers[0][1] + read.mT)

        values: list[Tensor] = []
        reads = [_Rows(z, c) for c in counts[:-1]]
        waiting = z.split([j - i for i, j in itertools.pairwise(features)])
        for first in range(0, len(features) - 1, _STEPS):
            last = min(first + _STEPS, len(features) - 1)
            before, inside = [], []
            for (weight, bias), read, rows in zip(layers, reads, counts[1:], strict=True):
                group = slice(rows[first], rows[last])
                starts = [read.counts[first], read.counts[last]]
                old, new, _ = weight[group].tensor_split(starts, -1)
                sizes = [j - i for i, j in itertools.pairwise(rows[first : last + 1])]
                before.append(affine_rows(bias[group], old, read.get(0, first)).split(sizes))
                inside.append(new.split(sizes))
            for t in range(first, last):
                h = waiting[t]
                for depth, read in enumerate(reads):
                    if depth:
                        read.put(t, self._act_on_new(h))
                    # What is not known yet is zero there.
                    known = read.get(first, last)
                    h = affine_rows(before[depth][t - first], inside[depth][t - first], known)
                params = h.reshape(len(waiting[t]), self.param_size, z.shape[-1]).mT
                values.append(solve(waiting[t], params))
                constants = self.encoding_constants
                reads[0].put(t, self.encoding.encode_next(values, constants, features[t]))
        return torch.cat(values)


class _Rows:
    """The input of a layer, which becomes known step by step; zero until then.

    Args:
        like: Gives dtype, device and batch, ``(..., batch)``.
        counts: Numbers of rows known before each step, and at the end.
    """

    def __init__(self, like: Tensor, counts: list[int]) -> None:
        self.counts = counts
        self.all = like.new_zeros(counts[-1], like.shape[-1])
        self.parts = list(self.all.split([j - i for i, j in itertools.pairwise(counts)]))
        # Written into one tensor, unless someone records what is read from it.
        self.written = not (torch.is_grad_enabled() or is_traced())

    def put(self, step: int, rows: Tensor) -> None:
        """Set what a step made known."""
        if self.written:
            self.parts[step].copy_(rows)
        else:
            self.parts[step] = rows

    def get(self, first: int, last: int) -> Tensor:
        """The rows of the steps from ``first`` up to ``last``."""
        if self.written:
            return self.all[self.counts[first] : self.counts[last]]
        return torch.cat(self.parts[first:last]) if last > first else self.all[:0]
