"""Conditioners that are functions of a reproducing-kernel Hilbert space."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit import checks
from flowkit.conditioners.base import Conditioner, linear, start_at_zero
from flowkit.conditioners.encodings import Encoding
from flowkit.config import register
from flowkit.errors import DataError
from flowkit.kernels import Kernel, SquaredExponential
from flowkit.numerics.noise import numpy_generator

_SEED = 0


class _Expansion(Conditioner):
    """What both share: a kernel of features and context, and an affine function beside it."""

    _bound: ClassVar[float | None] = None
    weights: nn.Parameter

    def __init__(
        self, *sizes: int, kernel: Kernel | None, linear_term: bool, **options: Any
    ) -> None:
        super().__init__(*sizes, **options)
        name = type(self).__name__
        chosen = SquaredExponential() if kernel is None else kernel
        remedy = "for example Matern(nu=1.5)"
        chosen = checks.instance(name, "kernel", chosen, Kernel, remedy)
        if chosen.features not in (None, self.columns):
            raise checks.fail(name, "kernel", f"a kernel of {self.columns} features", kernel)
        self.kernel = chosen.with_features(self.columns)
        self.linear: nn.Linear | None = None
        if checks.flag(name, "linear_term", linear_term):
            self.linear = start_at_zero(linear(name, self.columns, self.out_features))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{super().extra_repr()}, terms={len(self.weights)}"

    def _read(self, x: Tensor, context: Tensor | None, dim: int = -1) -> Tensor:
        if context is not None:
            context = context.expand(*x.shape[:-1], -1)
        return super()._read(x, context, dim)

    def _samples(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._read(x, context).reshape(-1, self.columns)

    def _terms(self, read: Tensor) -> Tensor:
        """What the weights multiply, ``(..., terms)``."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        read = self._read(x, context)
        out = self._terms(read) @ self.weights.to(x.dtype)
        if self.linear is None:
            return out
        return out + F.linear(read, self.linear.weight.to(x.dtype), self.linear.bias.to(x.dtype))


@register
class KernelConditioner(_Expansion):
    r"""A conditioner that is a sum of kernels at auxiliary points, in place of a network.

    It emits :math:`\theta(u) = N^{-1/2} \sum_{j=1}^N k(w_j, u)\, A_j` with points w and weights A:
    few parameters and smooth functions, for little data. The root keeps a step of an optimiser
    from growing with the number of points. Far from all points a kernel vanishes, and
    with it every parameter: the layer goes back to the start of its scalar map, which is the
    identity. Linear layers between, or ``linear_term``, have to bring the scale. Weights A start
    at zero.

    By ``initialize``, which the first fit calls, points become random samples of the data as they
    reach the layer. With a point on every sample, some function of this form has the best
    likelihood of all in the space (the representer theorem). Points stay where they are put, or
    are learned; where layers before are trained, what this one reads drifts away from them.

    A sample costs :math:`O(N d)`. From some thousand points on
    :class:`RandomFourierConditioner` is cheaper.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features; points have them, too.
        points: Number of auxiliary points N.
        kernel: A kernel, such as ``Matern(nu=0.5) + RationalQuadratic()``, which gets its number
            of features here; :class:`flowkit.kernels.SquaredExponential` by default.
        linear_term: Whether an affine function, started at zero, is added.
        learn_points: Whether points are learned, or stay where ``initialize`` puts them.
        encoding: How features are read before the kernel; as they are by default. With a
            :class:`CircularEncoding` the kernel is periodic.

    Raises:
        ArgumentError: If there is nothing to read, an argument is out of its range, or the kernel
            has another number of features.

    References:
        English, Kirchler, Lippert 2024, Kernelised Normalising Flows, arXiv 2307.14839.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import KernelConditioner
        >>> net = KernelConditioner(3, 4, points=50)
        >>> net(torch.randn(5, 3)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([5, 4]), 354)
    """

    points: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context: int = 0,
        points: int = 150,
        kernel: Kernel | None = None,
        linear_term: bool = False,
        learn_points: bool = True,
        encoding: Encoding | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features,
            kernel=kernel, linear_term=linear_term, context=context, encoding=encoding,
        )  # fmt: skip
        name = type(self).__name__
        checks.integer(name, "points", points, least=1)
        checks.elements(name, points, max(self.columns, self.out_features))
        start = torch.randn(points, self.columns)
        if checks.flag(name, "learn_points", learn_points):
            self.points = nn.Parameter(start)
        else:
            self.register_buffer("points", start)
        self.weights = nn.Parameter(torch.zeros(points, self.out_features))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Put the points on random samples, and start the kernel from them.

        With fewer samples than points, samples are taken again, a hundredth of a standard
        deviation apart.

        Raises:
            DataError: If there are no samples.
        """
        samples = self._samples(x, context)
        if not len(samples):
            raise DataError("KernelConditioner.initialize expected at least one sample, got none")
        count = len(self.points)
        rng = np.random.default_rng(_SEED)
        rounds = math.ceil(count / len(samples))
        order = np.concatenate([rng.permutation(len(samples)) for _ in range(rounds)])[:count]
        # All samples in their order, where there is one point for each.
        order = np.sort(order) if count == len(samples) else order
        chosen = samples[torch.from_numpy(order).to(samples.device)].to(self.points.dtype)
        noise = torch.from_numpy(rng.standard_normal(chosen.shape)).to(chosen)
        again = torch.arange(count, device=chosen.device).unsqueeze(-1) >= len(samples)
        chosen = chosen + 0.01 * again * noise * chosen.std(0, correction=0)
        self.points.copy_(chosen)
        self.kernel.initialize(self.points)

    def _terms(self, read: Tensor) -> Tensor:
        return self.kernel(read, self.points) / math.sqrt(len(self.points))

    def squared_norm(self) -> Tensor:
        r"""The squared norm in the space, :math:`\mathrm{tr}\, A^T K_{WW} A / N`."""
        gram = self.kernel(self.points, self.points)
        return (self.weights * (gram @ self.weights)).sum() / len(self.points)


@register
class RandomFourierConditioner(_Expansion):
    r"""A kernel conditioner by random Fourier features, whose cost does not grow with the data.

    :math:`\theta(u) = \phi(u)^T A` with :math:`\phi = m^{-1/2} (\cos \omega_i \cdot u, \sin
    \omega_i \cdot u)_{i \le m}`, frequencies drawn once from the spectral density of the kernel.
    Then :math:`\phi(x) \cdot \phi(y)` is an unbiased estimate of :math:`k(x, y) = \kappa(x - y)`
    with the standard error

    .. math:: \sqrt{\frac{1 + \kappa(2 \delta) - 2 \kappa(\delta)^2}{2 m}} \le \frac1{\sqrt{m}}

    at :math:`\delta = x - y` and variance one. Unlike kernels it does not vanish far from the
    data, but stays bounded by its weights.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features.
        n_frequencies: Number of frequencies m; there are twice as many weights per parameter.
        kernel: A kernel with a spectral density, :class:`flowkit.kernels.SquaredExponential`,
            which is the default, or :class:`flowkit.kernels.Matern`.
        linear_term: Whether an affine function, started at zero, is added.
        encoding: See :class:`KernelConditioner`.
        seed: Seed of the frequencies; by default they come from torch's global random state.

    Raises:
        ArgumentError: If there is nothing to read, an argument is out of its range, or the kernel
            has no spectral density.

    References:
        Rahimi and Recht 2007, Random Features for Large-Scale Kernel Machines.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import RandomFourierConditioner
        >>> RandomFourierConditioner(3, 4, n_frequencies=64)(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    frequencies: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context: int = 0,
        n_frequencies: int = 256,
        kernel: Kernel | None = None,
        linear_term: bool = False,
        encoding: Encoding | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features,
            kernel=kernel, linear_term=linear_term, context=context, encoding=encoding,
        )  # fmt: skip
        name = type(self).__name__
        checks.integer(name, "n_frequencies", n_frequencies, least=1)
        checks.elements(name, n_frequencies, max(self.columns, 2 * self.out_features))
        if seed is not None:
            checks.integer(name, "seed", seed, least=0, most=None)
        if not hasattr(self.kernel, "draw_frequencies"):
            words = "a kernel with a spectral density: SquaredExponential or Matern"
            raise checks.fail(name, "kernel", words, kernel)
        frequencies = self.kernel.draw_frequencies(n_frequencies, numpy_generator(seed))  # type: ignore[operator]
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))
        self.weights = nn.Parameter(torch.zeros(2 * n_frequencies, self.out_features))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the length-scales from the data."""
        self.kernel.initialize(self._samples(x, context))

    def _terms(self, read: Tensor) -> Tensor:
        return self.kernel.random_features(read, self.frequencies)  # type: ignore[operator]

    def squared_norm(self) -> Tensor:
        r"""The squared norm in the space of the features, :math:`\mathrm{tr}\, A^T A`."""
        return self.weights.square().sum()
