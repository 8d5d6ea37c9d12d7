"""The masked perceptron of autoregressive flows, and its inverse, variable by variable."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.conditioners.mlp import Conditioner
from flowkit.config import register
from flowkit.numerics.compiling import is_traced
from flowkit.numerics.layout import affine_rows, linear

# Turns of the inverse that share their products with what is known before; measured.
_TURNS = 8


class AutoregressiveConditioner(Conditioner):
    """A conditioner whose parameters for variable ``i`` read only the variables before ``i``.

    ``forward`` returns ``(..., features, param_size)``. :meth:`unroll` serves the inverse; the one
    here works for every subclass at the cost of one full pass a variable.
    """

    def unroll(
        self,
        solve: Callable[[Tensor, Tensor], Tensor],
        z: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` from ``z``, some ``k`` variables at a time; variables are rows here.

        Args:
            solve: Given ``z (k, batch)`` of the variables whose turn it is and their parameters
                ``(k, batch, param_size)``, returns their ``x (k, batch)``.
            z: What ``x`` is made from, ``(features, batch)``.
            context: ``(batch, context)`` or ``None``.

        Returns:
            ``x``, ``(features, batch)``.
        """
        values: list[Tensor] = []
        for i in range(self.in_features):
            known = torch.cat([*values, torch.zeros_like(z[i:])])
            params = self(known.mT, context)[:, i]
            values.append(solve(z[i : i + 1], params.unsqueeze(0)))
        return torch.cat(values)


@register
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
        input_clip: See :class:`flowkit.conditioners.Conditioner`.

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
        input_clip: float | str | None = 10.0,
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
        # A turn starts at every variable before which hidden units become known. Counted up to
        # each turn: the variables, then the units of each hidden layer.
        starts = sorted({0}.union(*(d.tolist() for d in degrees[1:])))
        self._known = [[*starts, in_features]]
        self._known += [[0, *np.searchsorted(d, starts, "right").tolist()] for d in degrees[1:]]

    def _masked(self, i: int, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer."""
        return layer.weight * getattr(self, f"mask_{i}"), layer.bias  # type: ignore[return-value]

    def _first(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the first hidden units read, before the activation."""
        h = F.linear(self._clip(x), *self._masked(0, self.layers[0]))
        return self._with_context(h, context)

    def _with_context(self, h: Tensor, context: Tensor | None) -> Tensor:
        if self.from_context is None or context is None:
            return h
        return h + self.from_context(self._clip(context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., features, param_size)`` raw parameters."""
        h = self._act_on_new(self._first(x, context))
        for i, layer in enumerate(self.layers[1:], start=1):
            h = self._act_on_new(F.linear(h, *self._masked(i, layer)))
        out = linear(h, *self._masked(len(self.layers), self.last))
        return out.unflatten(-1, (self.param_size, self.in_features)).transpose(-1, -2)

    def _columns(self) -> Tensor:
        """Weights of the first layer, all that it reads of one variable before the next."""
        return self.layers[0].weight  # type: ignore[return-value]

    def _rows_to_read(self, known: list[Tensor], start: int, stop: int) -> Tensor:
        """What the first layer reads of variables ``start:stop``, the last of those known.

        Rows are in the order of :meth:`_columns`.
        """
        return self._clip(known[-1])

    def unroll(
        self,
        solve: Callable[[Tensor, Tensor], Tensor],
        z: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` variable by variable; each hidden unit is computed once.

        Variables that no hidden unit tells apart take one turn together. A few turns make a block:
        what they read from before the block is one product of matrices a layer.
        """
        per_variable = self._columns().shape[-1] // self.in_features
        variables, counts = self._known[0], [list(c) for c in self._known]
        counts[0] = [n * per_variable for n in variables]
        counts.append([n * self.param_size for n in variables])
        by_variable = (self.param_size, self.in_features)
        linears = [cast(nn.Linear, layer) for layer in self.layers]
        layers: list[tuple[Tensor, Tensor]] = [
            (self._columns(), linears[0].bias.unsqueeze(-1)),
            *((linear.weight, linear.bias.unsqueeze(-1)) for linear in linears[1:]),
            (
                self.last.weight.unflatten(0, by_variable).transpose(0, 1).flatten(0, 1),
                self.last.bias.unflatten(0, by_variable).mT.reshape(-1, 1),
            ),
        ]
        if self.from_context is not None and context is not None:
            read = self.from_context(self._clip(context))
            layers[0] = (layers[0][0], layers[0][1] + read.mT)

        values: list[Tensor] = []
        reads = [_Rows(z, c) for c in counts[:-1]]
        waiting = z.split([j - i for i, j in itertools.pairwise(variables)])
        for first in range(0, len(variables) - 1, _TURNS):
            last = min(first + _TURNS, len(variables) - 1)
            before, inside = [], []
            for (weight, bias), read, rows in zip(layers, reads, counts[1:], strict=True):
                block = slice(rows[first], rows[last])
                old, new, _ = weight[block].tensor_split(read.starts(first, last), -1)
                sizes = [j - i for i, j in itertools.pairwise(rows[first : last + 1])]
                before.append(affine_rows(bias[block], old, read.get(0, first)).split(sizes))
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
                reads[0].put(t, self._rows_to_read(values, variables[t], variables[t + 1]))
        return torch.cat(values)


class _Rows:
    """What a layer reads, as it becomes known turn by turn; zero until then.

    Args:
        like: Gives dtype, device and batch, ``(..., batch)``.
        counts: Rows known before each turn, and at the end.
    """

    def __init__(self, like: Tensor, counts: list[int]) -> None:
        self.counts = counts
        self.all = like.new_zeros(counts[-1], like.shape[-1])
        self.parts = list(self.all.split([j - i for i, j in itertools.pairwise(counts)]))
        # Written into one tensor, unless someone records what is read from it.
        self.written = not (torch.is_grad_enabled() or is_traced())

    def starts(self, first: int, last: int) -> list[int]:
        """The rows at which two turns start."""
        return [self.counts[first], self.counts[last]]

    def put(self, turn: int, rows: Tensor) -> None:
        """Set what a turn made known."""
        if self.written:
            self.parts[turn].copy_(rows)
        else:
            self.parts[turn] = rows

    def get(self, first: int, last: int) -> Tensor:
        """The rows of the turns from ``first`` up to ``last``."""
        if self.written:
            return self.all[self.counts[first] : self.counts[last]]
        return torch.cat(self.parts[first:last]) if last > first else self.all[:0]
