"""Masked autoregressive layers: each feature is moved by a map that those before it choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowkit.conditioners import AutoregressiveConditioner, MaskedMLP
from flowkit.scalar import RationalQuadraticSpline, ScalarMap
from flowkit.transforms.base import Transform
from flowkit.transforms.permute import check_order


class MaskedAutoregressive(Transform):
    r"""Move feature i by a scalar map whose parameters the features before i give.

    With an order :math:`o`, :math:`z_{o_i} = f(x_{o_i}; \theta_i(x_{o_1}, \dots, x_{o_{i-1}},
    c))`. The forward direction is one pass of the network. The inverse goes feature by feature,
    but its conditioner computes each hidden unit once, so it costs about one pass in arithmetic,
    not D.

    Args:
        features: Number of features D.
        scalar: The scalar map; rational-quadratic spline by default.
        conditioner: Factory ``(features, param_size, context=...) -> AutoregressiveConditioner``.
        context: Number of context features.
        order: A permutation of ``range(features)``, the first feature first; natural by default.

    Raises:
        ShapeError: If ``order`` is not a permutation of the features.

    References:
        Papamakarios et al. 2017, Masked Autoregressive Flow, arXiv 1705.07057.

    Example:
        >>> import torch
        >>> from flowkit.transforms import MaskedAutoregressive
        >>> t = MaskedAutoregressive(3, order=[2, 1, 0])
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(t.inverse(t(x)[0])[0], x, atol=1e-5)
        True
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        conditioner: Callable[..., AutoregressiveConditioner] = MaskedMLP,
        context: int = 0,
        order: Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__((features,), context)
        self.scalar = scalar if scalar is not None else RationalQuadraticSpline()
        first_to_last = list(range(features)) if order is None else check_order(order, features)
        self.register_buffer("order", torch.tensor(first_to_last))
        self._natural = order is None
        self.conditioner = conditioner(features, self.scalar.param_size, context=context)

    def _sort(self, x: Tensor) -> Tensor:
        return x if self._natural else x.index_select(-1, self.order)

    def _unsort(self, x: Tensor) -> Tensor:
        return x if self._natural else x.index_select(-1, self.order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise in one pass."""
        x = self._sort(x)
        z, log_slope = self.scalar.forward(x, self.conditioner(x, context).to(x.dtype))
        return self._unsort(z), log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data, feature by feature."""
        z = self._sort(z)
        log_slopes: list[Tensor] = []

        def solve(i: int, params: Tensor) -> Tensor:
            x, log_slope = self.scalar.inverse(z[..., i], params.to(z.dtype))
            log_slopes.append(log_slope)
            return x

        x = self.conditioner.unroll(solve, z, context)
        return self._unsort(x), torch.stack(log_slopes, -1).sum(-1)
