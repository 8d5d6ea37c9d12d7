"""Kernels: positive-definite functions of two points, with length-scales that are learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.config import register
from flowkit.errors import ShapeError

__all__ = ["Kernel", "Matern", "RationalQuadratic", "SquaredExponential"]

# Below this t, Matern kernels are their series: differences of nearly equal numbers, which the
# derivatives of the closed form are, would lose as many digits twice as 1 / t has.
_NEAR = 0.03
# So many terms of the series are right to 1e-16 there.
_TERMS = 8
# Logarithm of the factor, up or down, that a length-scale can go from its start.
_REACH = math.log(20.0)


class Kernel(nn.Module):
    """Base class of positive-definite kernels ``k(x, y)``; ``+`` and ``*`` combine kernels.

    A kernel made without ``features`` is the argument of a conditioner, which gives it the number
    of features that it reads.

    Args:
        features: Number of features d.

    Raises:
        ArgumentError: If it is not an integer >= 1.
    """

    #: Number of continuous derivatives, also where two points coincide.
    smoothness: float = math.inf

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        if features is not None:
            most = checks.MAX_FEATURES
            checks.integer(type(self).__name__, "features", features, least=1, most=most)
        self.features = features

    def with_features(self, features: int) -> Kernel:
        """The same kernel with a number of features: a new one, unless it has one already."""
        raise NotImplementedError(f"{type(self).__name__} does not define with_features(features)")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``k(x_i, y_j)``, ``(..., n, m)``, of ``(..., n, d)`` and ``(m, d)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x, y)")

    def initialize(self, x: Tensor) -> None:
        """Start length-scales from points ``(n, d)``."""

    def __add__(self, other: Kernel) -> Kernel:
        return KernelSum(self, other)

    def __mul__(self, other: Kernel) -> Kernel:
        return KernelProduct(self, other)


class _Stationary(Kernel):
    r"""A function of :math:`r^2 = \sum_a (x_a - y_a)^2 / \ell_a^2`, times a learned variance.

    The arguments are those of :class:`Matern`.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        length_scale: float | Sequence[float] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__(features)
        self._options: dict[str, Any] = {"length_scale": length_scale, "learn": learn}
        name = type(self).__name__
        checks.flag(name, "learn", learn)
        start = math.sqrt(features or 1) if length_scale is None else length_scale
        count = features or len(checks.as_list(length_scale) or [1])
        scales = checks.numbers(name, "length_scale", start, count, above=0)
        if features is None:
            return
        self.register_buffer("start", torch.tensor(scales))
        # The logarithm of the factor from the start, before it is bounded, and of the variance.
        self.raw_scales = nn.Parameter(torch.zeros(features), requires_grad=learn)
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=learn)

    def with_features(self, features: int) -> Kernel:
        """The same kernel with a number of features: a new one, unless it has one already."""
        return self if self.features else type(self)(features, **self._options)

    @property
    def length_scales(self) -> Tensor:
        """The length-scales, ``(features,)``."""
        if self.features is None:
            name = type(self).__name__
            raise ShapeError(f"{name} expected a number of features first, as {name}(3) has")
        return self.get_buffer("start") * (_REACH * torch.tanh(self.raw_scales / _REACH)).exp()

    def initialize(self, x: Tensor) -> None:
        """Start the length-scales at the median distance of points, over the root of two."""
        if self._options["length_scale"] is not None or len(x) < 2:
            return
        distance = torch.pdist(x[:1000].double()).median()
        # One distance for all features: one that hardly varies says hardly anything.
        if distance > 0:
            self.get_buffer("start").fill_(float(distance) / math.sqrt(2))

    def _variance(self, x: Tensor) -> Tensor:
        return self.log_variance.exp().to(x.dtype)

    def _scaled(self, x: Tensor) -> Tensor:
        # Beyond, squares of distances would overflow and make NaN of a kernel that is zero.
        limit = torch.finfo(x.dtype).max ** 0.25
        return (x / self.length_scales.to(x.dtype)).clamp(-limit, limit)

    def random_features(self, x: Tensor, frequencies: Tensor) -> Tensor:
        """Cosines and sines, the products of which are the kernel on average."""
        angles = self._scaled(x) @ frequencies.mT.to(x.dtype)
        pairs = torch.cat([angles.cos(), angles.sin()], -1)
        return pairs * (self._variance(x) / len(frequencies)).sqrt()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the kernel of every pair."""
        values = self._shape(self._scaled(x), self._scaled(y.to(x.dtype)))
        return self._variance(x) * values

    def _shape(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError


def _square_distance(a: Tensor, b: Tensor) -> Tensor:
    """By one product of matrices, about the mean of b; to rounding, which may be below zero.

    Not clamped: at coincident points that would take the curvature away.
    """
    centre = b.mean(-2).detach()
    a, b = a - centre, b - centre
    return a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * a @ b.mT


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """By differences: the root of a product's rounding would be no small error near zero."""
    square = (a.unsqueeze(-2) - b).square().sum(-1)
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)


#: Of (1 + t + t^2 / 3) exp(-t), the last summand for nu = 2.5 alone, by the product of the series.
_EXPONENTIAL = [(-1.0) ** n / math.factorial(n) for n in range(_TERMS)]
_COEFFICIENTS = {
    nu: np.convolve(powers, _EXPONENTIAL).tolist()
    for nu, powers in ((1.5, (1.0, 1.0)), (2.5, (1.0, 1.0, 1 / 3)))
}


def _series(nu: float, square: Tensor) -> Tensor:
    """A Matern kernel of a small :math:`t^2`, twice differentiable also at zero.

    Terms with odd powers of t, from the third on, are what limits the derivatives there.
    """
    terms = _COEFFICIENTS[nu]
    # Rounding may have led below zero, where the odd terms have no root.
    positive = square > torch.finfo(square.dtype).eps ** 2
    t = torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)
    even = terms[0] + square * (terms[2] + square * (terms[4] + square * terms[6]))
    return even + square * t * (terms[3] + square * (terms[5] + square * terms[7]))


@register
class SquaredExponential(_Stationary):
    r"""The squared-exponential (Gaussian) kernel :math:`k = \sigma^2 e^{-r^2 / 2}`.

    Args:
        features: See :class:`Matern`.
        length_scale: See :class:`Matern`.
        learn: See :class:`Matern`.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from flowkit.kernels import SquaredExponential
        >>> k = SquaredExponential(1, length_scale=1.0)
        >>> k(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0]])).detach()
        tensor([[1.0000],
                [0.6065]])
    """

    def _shape(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * _square_distance(a, b))

    def draw_frequencies(self, count: int, rng: np.random.Generator) -> Tensor:
        """Normal draws."""
        return torch.from_numpy(rng.standard_normal((count, len(self.length_scales))))


@register
class Matern(_Stationary):
    r"""The Matérn kernel of smoothness :math:`\nu` = 1/2, 3/2 or 5/2.

    With :math:`t = \sqrt{2 \nu}\, r` it is :math:`\sigma^2 e^{-t}` for 1/2,
    :math:`\sigma^2 (1 + t)\, e^{-t}` for 3/2 and :math:`\sigma^2 (1 + t + t^2 / 3)\, e^{-t}`
    for 5/2. The variance :math:`\sigma^2` starts at one. At coincident points the gradient is
    zero, also for 1/2, which has a kink there; second derivatives are :math:`-3 / \ell^2` for 3/2
    and :math:`-5 / (3 \ell^2)` for 5/2, times the variance. The kernel 1/2 costs memory for every
    feature of every pair.

    Args:
        features: Number of features d; a kernel without one is for the argument ``kernel=`` of a
            conditioner.
        nu: 0.5, 1.5 or 2.5.
        length_scale: Where the length-scales start, one number or one per feature; by default
            :math:`\sqrt d` and, with ``initialize``, the median distance of the data over the root
            of two. Each stays between a twentieth and twenty times its start.
        learn: Whether length-scales and variance are learned.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, chapter 4.

    Example:
        >>> import torch
        >>> from flowkit.kernels import Matern
        >>> k = Matern(2, nu=1.5) + Matern(nu=0.5)
        >>> k(torch.zeros(3, 2), torch.zeros(4, 2)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        nu: float = 2.5,
        length_scale: float | Sequence[float] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__(features, length_scale=length_scale, learn=learn)
        self.nu = checks.number("Matern", "nu", nu)
        if self.nu not in (0.5, 1.5, 2.5):
            raise checks.fail("Matern", "nu", "0.5, 1.5 or 2.5", nu)
        self._options["nu"] = self.nu
        self.smoothness = 2 * self.nu - 1

    def _shape(self, a: Tensor, b: Tensor) -> Tensor:
        if self.nu == 0.5:
            return torch.exp(-_distance(a, b))
        square = 2 * self.nu * _square_distance(a, b)
        near = square < _NEAR**2
        t = torch.where(near, 1, square).sqrt()
        power = 1 + t if self.nu == 1.5 else 1 + t + t.square() / 3
        series = _series(self.nu, torch.where(near, square, 0))
        return torch.where(near, series, power * torch.exp(-t))

    def draw_frequencies(self, count: int, rng: np.random.Generator) -> Tensor:
        r"""Draws of a multivariate t with :math:`2 \nu` degrees of freedom."""
        normal = rng.standard_normal((count, len(self.length_scales)))
        spread = np.sqrt(rng.chisquare(2 * self.nu, (count, 1)) / (2 * self.nu))
        return torch.from_numpy(normal / spread)


@register
class RationalQuadratic(_Stationary):
    r"""The rational quadratic kernel :math:`k = \sigma^2 (1 + r^2 / (2 \alpha))^{-\alpha}`.

    It is a mixture of squared-exponential kernels of many length-scales.

    Args:
        features: See :class:`Matern`.
        alpha: The start of :math:`\alpha`, which is learned as the logarithm of a factor.
        length_scale: See :class:`Matern`.
        learn: See :class:`Matern`; also for :math:`\alpha`.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from flowkit.kernels import RationalQuadratic
        >>> RationalQuadratic(1)(torch.zeros(1, 1), torch.ones(1, 1)).detach()
        tensor([[0.6667]])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        alpha: float = 1.0,
        length_scale: float | Sequence[float] | None = None,
        learn: bool = True,
    ) -> None:
        super().__init__(features, length_scale=length_scale, learn=learn)
        start = checks.number("RationalQuadratic", "alpha", alpha, above=0)
        self._options["alpha"] = start
        if features is not None:
            self.register_buffer("start_alpha", torch.tensor(start))
            self.raw_alpha = nn.Parameter(torch.zeros(()), requires_grad=learn)

    def _shape(self, a: Tensor, b: Tensor) -> Tensor:
        alpha = (self.get_buffer("start_alpha") * self.raw_alpha.exp()).to(a.dtype)
        return torch.exp(-alpha * torch.log1p(_square_distance(a, b) / (2 * alpha)))


class _Pair(Kernel):
    _join: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, first: Kernel, second: Kernel) -> None:
        name = type(self).__name__
        parts = [checks.instance(name, "first", first, Kernel)]
        parts += [checks.instance(name, "second", second, Kernel)]
        features = first.features or second.features
        if features is not None:
            parts = [part.with_features(features) for part in parts]
            if parts[1].features != features:
                words = f"a kernel of {features} feature(s), like the first one"
                raise checks.fail(name, "second", words, second)
        super().__init__(features)
        self.parts = nn.ModuleList(parts)
        self.smoothness = min(part.smoothness for part in parts)

    def with_features(self, features: int) -> Kernel:
        """The same kernels with a number of features."""
        parts = (part.with_features(features) for part in self.parts)  # type: ignore[operator]
        return self if self.features else type(self)(*parts)

    def initialize(self, x: Tensor) -> None:
        """Start both."""
        for part in self.parts:
            part.initialize(x)  # type: ignore[operator]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the kernels of every pair, joined."""
        first, second = self.parts
        return self._join(first(x, y), second(x, y))


@register
class KernelSum(_Pair):
    """The sum of two kernels, ``k1 + k2``.

    Example:
        >>> from flowkit.kernels import Matern, SquaredExponential
        >>> type(SquaredExponential(2) + Matern(2)).__name__
        'KernelSum'
    """

    _join = staticmethod(torch.add)


@register
class KernelProduct(_Pair):
    """The product of two kernels, ``k1 * k2``.

    Example:
        >>> from flowkit.kernels import Matern, SquaredExponential
        >>> type(SquaredExponential(2) * Matern(2)).__name__
        'KernelProduct'
    """

    _join = staticmethod(torch.mul)
