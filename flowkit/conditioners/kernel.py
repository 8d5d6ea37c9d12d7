"""Conditioners that are functions of a reproducing-kernel Hilbert space."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkit.config import register
from flowkit.errors import DataError
from flowkit.kernels import Kernel, SquaredExponential

_SEED = 0


class _Expansion(nn.Module):
    """What both share: a kernel of features and context, and an affine function beside it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int,
        kernel: Callable[[int], Kernel],
        mean: bool,
    ) -> None:
        super().__init__()
        name, features = type(self).__name__, in_features + context
        if features < 1:
            raise ValueError(
                f"{name} has nothing to read: in_features + context must be at least 1; "
                "parameters that depend on nothing belong into Elementwise"
            )
        self.in_features, self.out_features, self.context_size = in_features, out_features, context
        self.kernel = kernel(features)
        if not isinstance(self.kernel, Kernel) or self.kernel.features != features:
            raise ValueError(
                f"{name} needs a factory of kernels of {features} features, got {self.kernel!r} "
                "from it"
            )
        self.mean = nn.Linear(features, out_features) if mean else None
        if self.mean is not None:
            nn.init.zeros_(self.mean.weight)
            nn.init.zeros_(self.mean.bias)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_features} -> {self.out_features}, context={self.context_size}"

    def _read(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Features, and the context next to them where it is read."""
        if not self.context_size or context is None:
            return x
        return torch.cat([x, context.expand(*x.shape[:-1], -1)], -1)

    def _with_mean(self, out: Tensor, rows: Tensor) -> Tensor:
        if self.mean is None:
            return out
        weight, bias = self.mean.weight.to(rows.dtype), self.mean.bias.to(rows.dtype)
        return out + F.linear(rows, weight, bias)


@register
class KernelConditioner(_Expansion):
    r"""A kernel expansion :math:`\theta(u) = \sum_{j=1}^N k(w_j, u)\, A_j` over auxiliary points.

    Few parameters and smooth functions, for little data. Far from all points a kernel vanishes,
    and with it every parameter: the layer goes back to the start of its scalar map, which is the
    identity. Linear layers between, or ``mean``, have to bring the scale. Weights A start at zero.

    By ``initialize``, which the first fit calls, points become random rows of the data as they
    reach the layer. With a point on every row that the layer reads, some function of this form
    has the best likelihood of all in the space (the representer). Points stay where they are put,
    or are learned; so where layers before are trained, what the layer reads moves away from them.

    A row costs :math:`O(N d)`. From some thousand points on
    :class:`RandomFourierConditioner` is cheaper.

    Args:
        in_features: Number of features read.
        out_features: Number of parameters emitted.
        context: Number of context features; points have them, too.
        points: Number of auxiliary points N.
        kernel: Factory ``features -> Kernel``, such as :class:`SquaredExponential` or
            ``lambda d: Matern(d, 0.5) + RationalQuadratic(d)``.
        mean: Whether an affine function, started at zero, is added.
        learn_points: Whether points are learned, or kept where ``initialize`` puts them.

    Raises:
        ValueError: If there is nothing to read, no point, or the kernel has other features.

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
        context: int = 0,
        points: int = 150,
        kernel: Callable[[int], Kernel] = SquaredExponential,
        mean: bool = False,
        learn_points: bool = True,
    ) -> None:
        super().__init__(in_features, out_features, context, kernel, mean)
        if type(points) is not int or points < 1:
            raise ValueError(f"KernelConditioner needs points >= 1, got {points!r}")
        start = torch.randn(points, in_features + context)
        if learn_points:
            self.points = nn.Parameter(start)
        else:
            self.register_buffer("points", start)
        self.weights = nn.Parameter(torch.zeros(points, out_features))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{super().extra_repr()}, points={len(self.points)}"

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Put the points on random rows of the data, and start the kernel from them.

        With fewer rows than points, rows are taken again, a hundredth of a deviation apart.
        """
        rows = self._read(x, context)
        rows = rows.reshape(-1, rows.shape[-1])
        if not len(rows):
            raise DataError("KernelConditioner.initialize expected at least one row, got none")
        count = len(self.points)
        rng = np.random.default_rng(_SEED)
        rounds = math.ceil(count / len(rows))
        order = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])[:count]
        # All rows in their order, where there is one point for each.
        order = np.sort(order) if count == len(rows) else order
        chosen = rows[torch.from_numpy(order).to(rows.device)].to(self.points.dtype)
        noise = torch.from_numpy(rng.standard_normal(chosen.shape)).to(chosen)
        again = torch.arange(count, device=chosen.device).unsqueeze(-1) >= len(rows)
        chosen = chosen + 0.01 * again * noise * chosen.std(0, correction=0)
        self.points.copy_(chosen)
        self.kernel.initialize(self.points)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        rows = self._read(x, context)
        near = self.kernel(rows, self.points)
        out = near @ self.weights.to(x.dtype)
        return self._with_mean(out, rows)

    def squared_norm(self) -> Tensor:
        r"""The squared norm in the space, :math:`\mathrm{tr}\, A^T K_{WW} A`."""
        gram = self.kernel(self.points, self.points)
        return (self.weights * (gram @ self.weights)).sum()


@register
class RandomFourierConditioner(_Expansion):
    r"""A kernel conditioner whose cost does not grow with the number of points.

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
        frequencies: Number of frequencies m; there are twice as many weights a parameter.
        kernel: Factory ``features -> Kernel`` of a kernel with a spectral density:
            :class:`SquaredExponential` or :class:`Matern`.
        mean: Whether an affine function, started at zero, is added.
        seed: Seed of the frequencies.

    Raises:
        ValueError: If there is nothing to read, no frequency, or the kernel has no spectral
            density.

    References:
        Rahimi and Recht 2007, Random Features for Large-Scale Kernel Machines.

    Example:
        >>> import torch
        >>> from flowkit.conditioners import RandomFourierConditioner
        >>> RandomFourierConditioner(3, 4, frequencies=64)(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    omega: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        context: int = 0,
        frequencies: int = 256,
        kernel: Callable[[int], Kernel] = SquaredExponential,
        mean: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, context, kernel, mean)
        if type(frequencies) is not int or frequencies < 1:
            raise ValueError(
                f"RandomFourierConditioner needs frequencies >= 1, got {frequencies!r}"
            )
        omega = self.kernel.frequencies(frequencies, np.random.default_rng(seed))
        self.register_buffer("omega", omega.to(torch.get_default_dtype()))
        self.weights = nn.Parameter(torch.zeros(2 * frequencies, out_features))

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{super().extra_repr()}, frequencies={len(self.omega)}"

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Start the length-scales from the data."""
        rows = self._read(x, context)
        self.kernel.initialize(rows.reshape(-1, rows.shape[-1]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``(..., out_features)`` raw parameters."""
        rows = self._read(x, context)
        out = self.kernel.waves(rows, self.omega) @ self.weights.to(x.dtype)
        return self._with_mean(out, rows)

    def squared_norm(self) -> Tensor:
        r"""The squared norm in the space of the features, :math:`\mathrm{tr}\, A^T A`."""
        return self.weights.square().sum()
