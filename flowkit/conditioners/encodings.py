"""Encodings: how a network reads its features, chosen by the argument ``encoding=``.

An encoding turns features into columns for the first layer. It keeps no tensors, so that one
object serves every layer; what it needs for a number of features, the network stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.noise import numpy_generator


class Encoding:
    """Base class of encodings: every feature becomes one column or more, in order.

    The columns of a feature read that feature and, if the encoding mixes features, others; for
    autoregressive networks only others before it.
    """

    def clip(self, x: Tensor) -> Tensor:
        """Bound numbers one by one: features that are read as they are, and the context."""
        raise NotImplementedError(f"{type(self).__name__} does not define clip(x)")

    def sizes(self, features: int) -> tuple[int, ...]:
        """Number of columns per feature."""
        return (1,) * features

    def weights(self, features: int) -> list[float]:
        """Share of each column in the variance of the first layer's initial weights."""
        return [1.0] * sum(self.sizes(features))

    def constants(self, features: int, *, causal: bool) -> Tensor | None:
        """A tensor for :meth:`encode`; ``None`` where ``encode`` is :meth:`clip`.

        With ``causal`` no column of a feature may read a later feature.
        """
        return None

    def encode(self, x: Tensor, constants: Tensor | None) -> Tensor:
        """Columns ``(..., columns)`` of ``x (..., features)``."""
        return self.clip(x)

    def encode_next(self, known: list[Tensor], constants: Tensor | None, start: int) -> Tensor:
        """Columns ``(columns, batch)`` of the last features known, from number ``start`` on.

        Args:
            known: Features ``(n, batch)`` in pieces, the last piece new.
            constants: As for :meth:`encode`.
            start: Number of features before the last piece.
        """
        return self.clip(known[-1])

    def take(self, features: Sequence[int]) -> Encoding:
        """The encoding of some of the features."""
        return self


@register
@dataclass(frozen=True)
class ClipEncoding(Encoding):
    """Read features softly clipped at a bound: the default of all networks.

    The clip, :func:`flowkit.numerics.clips.soft_clip`, keeps the inverse of a flow accurate far
    from the data.

    Args:
        bound: Bound of what is read, in the units of the features; ``None`` for no clip.

    Raises:
        ArgumentError: If the bound is not positive.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import MLP, ClipEncoding
        >>> MLP(3, 4, encoding=ClipEncoding(bound=100.0))(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    _: KW_ONLY
    bound: float | None = checks.option(10.0, checks.number, optional=True, above=0)

    def __post_init__(self) -> None:
        checks.check_options(self)

    def clip(self, x: Tensor) -> Tensor:
        """Soft-clip at the bound."""
        return soft_clip(x, self.bound)


@register
@dataclass(frozen=True)
class AsinhEncoding(Encoding):
    """Read the inverse hyperbolic sine of features, for heavy tails.

    It grows like a logarithm, so that it tells large numbers apart, which a clip does not.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import MLP, AsinhEncoding
        >>> MLP(3, 4, encoding=AsinhEncoding())(1e6 * torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def clip(self, x: Tensor) -> Tensor:
        """The inverse hyperbolic sine."""
        return torch.asinh(x)


def _flag_or_flags(owner: str, name: str, value: Any) -> bool | tuple[bool, ...]:
    return value if isinstance(value, bool) else checks.flags(owner, name, value)


@register
@dataclass(frozen=True)
class CircularEncoding(ClipEncoding):
    r"""Read periodic features as :math:`(\sin\varphi, \cos\varphi)` and clip the others.

    What a network emits is then periodic, and as smooth as its activation.

    Args:
        circular: One boolean per feature, true where it is periodic; ``True`` for all.
        period: Length of the period.
        bound: Bound of the soft clip of everything that is not periodic; ``None`` for no clip.

    Raises:
        ArgumentError: If an argument is out of its range, or the number of booleans is not that
            of the features.

    References:
        Köhler, Krämer and Noé 2021, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import MLP, CircularEncoding
        >>> net = MLP(2, 4, encoding=CircularEncoding([True, False], period=1.0))
        >>> torch.nn.init.normal_(net.last.weight).shape
        torch.Size([4, 128])
        >>> x = torch.tensor([[0.25, 3.0], [1.25, 3.0]])
        >>> torch.allclose(*net(x), atol=1e-5)
        True
    """

    circular: Sequence[bool] | bool = checks.option(default=True, check=_flag_or_flags)
    _: KW_ONLY
    period: float = checks.option(2.0, checks.number, above=0)

    def _first(self, features: int) -> Sequence[bool]:
        if isinstance(self.circular, bool):
            return (self.circular,) * features
        return self.circular[:features]

    def sizes(self, features: int) -> tuple[int, ...]:
        """Two where a feature is periodic, else one."""
        return tuple(2 if c else 1 for c in self._first(features))

    def constants(self, features: int, *, causal: bool) -> Tensor:
        """Feature and kind of every column: 0 as it is, 1 its sine, 2 its cosine."""
        if not isinstance(self.circular, bool):
            checks.flags(type(self).__name__, "circular", self.circular, features)
        kinds = [(1, 2) if c else (0,) for c in self._first(features)]
        columns = [(i, kind) for i, of_one in enumerate(kinds) for kind in of_one]
        return torch.tensor(columns, dtype=torch.long).reshape(-1, 2).T.contiguous()

    def _columns(self, x: Tensor, places: Tensor, kinds: Tensor) -> Tensor:
        x = x.index_select(-1, places)
        angles = x * (2 * math.pi / self.period)
        around = torch.where(kinds == 1, angles.sin(), angles.cos())
        return torch.where(kinds == 0, self.clip(x), around)

    def encode(self, x: Tensor, constants: Tensor | None) -> Tensor:
        """Sine and cosine of periodic features, others clipped."""
        return self._columns(x, *constants)  # type: ignore[misc]

    def encode_next(self, known: list[Tensor], constants: Tensor | None, start: int) -> Tensor:
        """Those of the last piece alone."""
        stop = start + len(known[-1])
        columns = slice(*(n + sum(self._first(n)) for n in (start, stop)))
        places, kinds = constants[:, columns]  # type: ignore[index]
        return self._columns(known[-1].mT, places - start, kinds).mT

    def take(self, features: Sequence[int]) -> CircularEncoding:
        """The encoding of some of the features."""
        if isinstance(self.circular, bool):
            return self
        return replace(self, circular=[self.circular[i] for i in features])


@register
@dataclass(frozen=True)
class FourierEncoding(ClipEncoding):
    r"""Read features and sines and cosines of them, for densities with fine detail.

    For every feature there are ``n_frequencies`` vectors :math:`\omega` over the features,
    uniform in direction and log-uniform in length between 1 and ``max_frequency``; in
    autoregressive networks over the features up to this one. Read are :math:`x`,
    :math:`\sin(\omega \cdot x)` and :math:`\cos(\omega \cdot x)`. Networks learn slow variation
    first; these columns give them the fast one, such as the edges of a photograph. Made for few
    features on an interval of length about 2.

    Args:
        n_frequencies: Number of frequencies per feature.
        max_frequency: Largest angular frequency, in radians per unit of the features.
        seed: Seed of the frequencies; by default they come from torch's global random state.
        bound: Bound of the soft clip of everything read; ``None`` for no clip.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Tancik et al. 2020, Fourier features, arXiv 2006.10739.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import FourierEncoding, MaskedMLP
        >>> net = MaskedMLP(3, 2, hidden=(16,), encoding=FourierEncoding(4))
        >>> net(torch.randn(5, 3)).shape
        torch.Size([5, 3, 2])
    """

    n_frequencies: int = checks.option(32, checks.integer, least=1)
    _: KW_ONLY
    max_frequency: float = checks.option(40.0, checks.number, least=1)
    seed: int | None = checks.option(None, checks.integer, optional=True, least=0, most=None)

    def sizes(self, features: int) -> tuple[int, ...]:
        """The feature itself, sines and cosines."""
        return (1 + 2 * self.n_frequencies,) * features

    def weights(self, features: int) -> list[float]:
        """A twelfth of the feature's own for its sines, and as much for its cosines."""
        parts = [1 / (12 * self.n_frequencies)] * (2 * self.n_frequencies)
        return [1.0, *parts] * features

    def constants(self, features: int, *, causal: bool) -> Tensor:
        """The frequencies, ``(features * n_frequencies, features)``."""
        count = self.n_frequencies
        checks.elements(type(self).__name__, features, count, features)
        rng = numpy_generator(self.seed)
        draws = rng.standard_normal((features, count, features))
        if causal:
            draws *= np.tri(features)[:, None, :]
        draws *= self.max_frequency ** rng.random((features, count, 1)) / np.linalg.norm(
            draws, axis=-1, keepdims=True
        )
        frequencies = torch.from_numpy(draws.reshape(features * count, features))
        return frequencies.to(torch.get_default_dtype())

    def _columns(self, x: Tensor, angles: Tensor) -> Tensor:
        angles = angles.unflatten(-1, (x.shape[-1], self.n_frequencies))
        return torch.cat([x.unsqueeze(-1), angles.sin(), angles.cos()], -1).flatten(-2)

    def encode(self, x: Tensor, constants: Tensor | None) -> Tensor:
        """Every feature, its sines and its cosines."""
        x = self.clip(x)
        return self._columns(x, F.linear(x, constants))  # type: ignore[arg-type]

    def encode_next(self, known: list[Tensor], constants: Tensor | None, start: int) -> Tensor:
        """Those of the last piece, which read all that is known."""
        x = self.clip(torch.cat(known).mT)
        stop, count = x.shape[-1], self.n_frequencies
        frequencies = constants[start * count : stop * count, :stop]  # type: ignore[index]
        return self._columns(x[..., start:], F.linear(x, frequencies)).mT
