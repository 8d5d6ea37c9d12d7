"""The contract of scalar maps: strictly increasing functions with their parameters handed in.

Structures (``Coupling``, ``MaskedAutoregressive``, ``Elementwise``) decide where the parameters
come from; a scalar map only says what they mean. It keeps no tensors, so one object serves every
layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowkit import checks
from flowkit.errors import ArgumentError
from flowkit.numerics.roots import attach_newton, expand_bracket, find_root_by_newton


class ScalarMap:
    r"""A strictly increasing map :math:`f_\theta: R \to R`, applied element by element.

    Subclasses are frozen dataclasses that define :attr:`param_size` and :meth:`forward`. All-zero
    parameters are the map's start, the identity where :attr:`starts_at_identity` is true. At least
    one derivative is continuous; :attr:`smoothness` says how many are. If :meth:`inverse` is not
    overridden, it is computed by a bracketed root search followed by two attached Newton steps, so
    derivatives of the inverse are exact up to third order.

    Shapes:
        ``x`` is ``(...)`` and ``params`` is ``(..., param_size)``; the two broadcast. The
        log-slope has the shape of ``x`` and is **not** summed over the event.

    Example:
        >>> import torch
        >>> from flowkit.scalar import Affine
        >>> y, log_slope = Affine().forward(torch.tensor([1.0]), torch.zeros(1, 2))
        >>> y.item(), log_slope.item()
        (1.0, 0.0)
    """

    param_size: ClassVar[int]
    starts_at_identity: ClassVar[bool] = True
    #: Number of continuous derivatives in ``x``, in both directions.
    smoothness: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        checks.check_options(self)
        lower, upper = getattr(self, "lower", 0.0), getattr(self, "upper", 1.0)
        if not 0 < upper - lower < math.inf:
            name = type(self).__name__
            raise ArgumentError(f"{name} expected lower < upper, got {lower} and {upper}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval sent to itself: from ``lower`` to ``upper``, or all real numbers."""
        return (getattr(self, "lower", -math.inf), getattr(self, "upper", math.inf))

    def fixes(self, end: Tensor) -> Tensor:
        """Where a number is sent to itself, whatever the parameters, with all beyond it."""
        lower, upper = self.bounds
        return (end == lower) | (end == upper)

    @property
    def keeps_interval(self) -> bool:
        """Whether it is a map of a bounded interval, which no rounding leads out of."""
        return all(map(math.isfinite, self.bounds))

    def joints(self, params: Tensor) -> Tensor:
        """Points ``(..., n)``, in order, where the map is put together of pieces: knots, ends.

        Zero need not be among them. It is at these that ``flowkit.testing`` looks most closely.
        """
        ends = [end for end in self.bounds if math.isfinite(end)]
        return params.new_tensor(ends).expand(*params.shape[:-1], len(ends))

    def take(self, features: Sequence[int], of: int) -> ScalarMap:
        """Return the map of some of ``of`` features: itself, where all features share one."""
        return self

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f(x)`` and ``log f'(x)``, both of the shape of ``x``."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x, params)")

    def bracket(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``lower <= f^-1(y) <= upper``; the default widens an interval around ``y``."""
        return expand_bracket(lambda x: self.forward(x, params)[0] - y, y)

    def solve(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``f^-1(y)`` and ``log f'`` there, without gradient.

        Override it where a search can do better than to call :meth:`forward`.
        """

        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            value, log_slope = self.forward(x, params)
            return value - y, log_slope.exp()

        x, _ = find_root_by_newton(f, y, *self.bracket(y, params))
        return x, self.forward(x, params)[1]

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x = f^-1(y)`` and ``log dx/dy = -log f'(x)``."""
        with torch.no_grad():
            x, log_slope = self.solve(y, params)
        if torch.is_grad_enabled():
            x = attach_newton(lambda x: self.forward(x, params), x, y)
            log_slope = self.forward(x, params)[1]
        return x, -log_slope
