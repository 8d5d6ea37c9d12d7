"""The two kinds of conditioners: networks that emit the parameters of scalar maps.

A structure makes its conditioner by a factory, ``conditioner(in_features, out_features,
context=...)`` or, in autoregressive layers, ``conditioner(features, param_size, context=...)``:
a class of this package, or ``functools.partial`` of one with more of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.conditioners.encodings import ClipEncoding, Encoding
from flowkit.errors import ArgumentError

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Conditioner(nn.Module):
    """Base class of conditioners, ``(..., in_features), (..., context) -> (..., out_features)``.

    Subclasses define ``forward(x, context=None)``, which reads by :meth:`_read`. Conditioners that
    start from data also define ``initialize(x, context=None)``.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features, read beside the features.
        encoding: How features are read: :class:`CircularEncoding`, :class:`FourierEncoding`,
            :class:`AsinhEncoding` or :class:`ClipEncoding`, which is the default.

    Raises:
        ArgumentError: If an argument is out of its range, or there is nothing to read.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import Conditioner
        >>> class Linear(Conditioner):
        ...     def __init__(self, in_features, out_features, *, context=0):
        ...         super().__init__(in_features, out_features, context=context)
        ...         self.last = torch.nn.Linear(self.columns, out_features)
        ...     def forward(self, x, context=None):
        ...         return self.last(self._read(x, context))
        >>> Linear(3, 4)(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    encoding_constants: Tensor | None
    #: Number of continuous derivatives.
    smoothness: float = math.inf
    #: Bound of the soft clip where no encoding is given.
    _bound: ClassVar[float | None] = 10.0
    _causal: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context: int = 0,
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        most = checks.MAX_FEATURES
        self.in_features = checks.integer(name, "in_features", in_features, least=0, most=most)
        self.out_features = checks.integer(name, "out_features", out_features, least=1)
        self.context_size = checks.integer(name, "context", context, least=0, most=most)
        if self.in_features + self.context_size < 1:
            raise ArgumentError(
                f"{name} has nothing to read: expected in_features + context >= 1, got 0; remedy: "
                "Elementwise, for parameters that depend on nothing"
            )
        chosen = ClipEncoding(bound=self._bound) if encoding is None else encoding
        remedy = "for example AsinhEncoding()"
        self.encoding = checks.instance(name, "encoding", chosen, Encoding, remedy)
        constants = self.encoding.constants(self.in_features, causal=self._causal)
        drawn = constants is not None and constants.is_floating_point()
        self.register_buffer("encoding_constants", constants, persistent=drawn)
        #: Number of columns that :meth:`_read` returns.
        self.columns = sum(self.encoding.sizes(self.in_features)) + self.context_size

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_features} -> {self.out_features}, context={self.context_size}"

    def _encode(self, x: Tensor) -> Tensor:
        return self.encoding.encode(x, self.encoding_constants)

    def _read(self, x: Tensor, context: Tensor | None, dim: int = -1) -> Tensor:
        """Encoded features and clipped context side by side, along a dimension."""
        with_context = self.context_size > 0 and context is not None
        if self.encoding_constants is None:  # number by number, so for both at once
            return self.encoding.clip(torch.cat([x, context], dim) if with_context else x)  # type: ignore[list-item]
        encoded = self._encode(x.movedim(dim, -1)).movedim(-1, dim)
        if not with_context:
            return encoded
        return torch.cat([encoded, self.encoding.clip(context)], dim)  # type: ignore[arg-type]


class AutoregressiveConditioner(Conditioner):
    """Base class of the conditioners of autoregressive layers.

    The parameters of a feature read only features before it. ``forward`` returns
    ``(..., features, param_size)``. The inverse of an autoregressive layer calls :meth:`unroll`,
    which here serves every subclass, by one full pass per token.

    Args:
        features: Number of features.
        param_size: Number of parameters per feature.
        block: Number of features per token. The parameters of a feature read the features of the
            tokens before its own; by default every feature is a token.
        context: Number of context features, read by all.
        encoding: See :class:`Conditioner`.

    Raises:
        ArgumentError: If an argument is out of its range, or features do not come in whole
            tokens.
    """

    _causal: ClassVar[bool] = True

    def __init__(
        self,
        features: int,
        param_size: int,
        *,
        block: int = 1,
        context: int = 0,
        encoding: Encoding | None = None,
    ) -> None:
        name = type(self).__name__
        checks.integer(name, "features", features, least=1, most=checks.MAX_FEATURES)
        size = checks.integer(name, "param_size", param_size, least=1)
        out_features = checks.elements(name, features, size)
        super().__init__(features, out_features, context=context, encoding=encoding)
        self.param_size = size
        self.block = checks.integer(name, "block", block, least=1)
        if self.in_features % self.block:
            raise checks.fail(name, "block", f"a divisor of the {features} features", block)

    def unroll(
        self,
        solve: Callable[[Tensor, Tensor], Tensor],
        z: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Build ``x`` from ``z``, some ``k`` features at a time; features come first here.

        Args:
            solve: Given ``z (k, batch)`` of the next features and their parameters
                ``(k, batch, param_size)``, returns their ``x (k, batch)``.
            z: What ``x`` is made from, ``(features, batch)``.
            context: ``(batch, context)`` or ``None``.

        Returns:
            ``x``, ``(features, batch)``.
        """
        values: list[Tensor] = []
        for i in range(0, self.in_features, self.block):
            known = torch.cat([*values, torch.zeros_like(z[i:])])
            token = slice(i, i + self.block)
            params = self(known.mT, context)[:, token]
            values.append(solve(z[token], params.transpose(0, 1)))
        return torch.cat(values)


def linear(owner: str, in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer, refused before it is allocated if it would be too large."""
    checks.elements(owner, in_features, out_features)
    return nn.Linear(in_features, out_features, bias=bias)


def start_at_zero(layer: Layer) -> Layer:
    """Zero the last layer: every parameter starts at the scalar map's start."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
