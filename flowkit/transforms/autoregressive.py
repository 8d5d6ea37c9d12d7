"""Masked autoregressive layers: each feature is moved by a map that those before it choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit.conditioners import AutoregressiveConditioner, MaskedMLP
from flowkit.config import register
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.roots import all_known
from flowkit.scalar import Affine, PerFeature, RationalQuadraticSpline, ScalarMap
from flowkit.transforms.base import Transform
from flowkit.transforms.permute import check_order
from flowkit.transforms.region import Region, ends_stay, keep_ends


@register
class MaskedAutoregressive(Transform):
    r"""Move feature i by a scalar map whose parameters the features before i give.

    With an order :math:`o`, :math:`z_{o_i} = f(x_{o_i}; \theta_i(x_{o_1}, \dots, x_{o_{i-1}},
    c))`. The forward direction is one pass of the network. The inverse goes feature by feature,
    but its conditioner computes each hidden unit once, so it costs about one pass in arithmetic,
    not D; for small batches, the overhead of D small steps.

    Args:
        features: Number of features D.
        scalar: The scalar map; rational-quadratic spline by default.
        conditioner: Factory ``(features, param_size, context=...) -> AutoregressiveConditioner``.
        context: Number of context features.
        order: A permutation of ``range(features)``, the first feature first; natural by default.
        inverse_method: ``"incremental"``, feature by feature, or ``"jacobi"``: all features at
            once with parameters from the last sweep, until nothing moves or D sweeps are done. A
            sweep costs one pass forward; how many a flow needs depends on how strongly its
            features do. Worth a trial where the batch is small and the scalar map cheap.

    Raises:
        ShapeError: If ``order`` is not a permutation of the features.
        ValueError: If ``inverse_method`` is unknown.

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
        inverse_method: str = "incremental",
    ) -> None:
        super().__init__((features,), context)
        if inverse_method not in ("incremental", "jacobi"):
            raise ValueError(
                f"unknown inverse_method {inverse_method!r}: choose from incremental, jacobi"
            )
        self.inverse_method = inverse_method
        first_to_last = list(range(features)) if order is None else check_order(order, features)
        scalar = RationalQuadraticSpline() if scalar is None else scalar
        self.scalar = scalar.take(first_to_last, features)
        self.keeps_intervals = self.scalar.keeps_interval
        self.register_buffer("order", torch.tensor(first_to_last))
        self._natural = order is None
        self.conditioner = conditioner(features, self.scalar.param_size, context=context)
        self._compiled_solve: Callable[..., tuple[Tensor, Tensor]] | None = None

    def compile_inverse(self, *args: Any, **kwargs: Any) -> None:
        """Compile how the scalar map is undone, with the arguments of ``torch.compile``.

        One program then serves all features, and all layers with the same scalar map. The loop
        over the features stays as it is: unrolled it takes minutes to compile and gains little,
        and so would an affine map. Maps that differ between features stay as they are, too.
        Copies and files are not compiled.
        """
        if not isinstance(self.scalar, (Affine, PerFeature)):
            self._compiled_solve = torch.compile(self.scalar.inverse, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_solve": None}

    def _sort(self, x: Tensor) -> Tensor:
        """The features in their order, ``(features, *batch)``."""
        rows = features_first(x)
        return rows if self._natural else rows.index_select(0, self.order)

    def _unsort(self, rows: Tensor) -> Tensor:
        """Undo :meth:`_sort`."""
        rows = rows if self._natural else rows.index_select(0, self.order.argsort())
        return features_last(rows)

    def _params(self, rows: Tensor, context: Tensor | None) -> Tensor:
        """Parameters ``(features, *batch, param_size)``."""
        params = self.conditioner(features_last(rows), context).to(rows.dtype)
        return params.movedim((-1, -2), (0, 1)).contiguous().movedim(0, -1)

    def map_region(
        self, region: Region, context: Tensor | None = None, *, inverse: bool = True
    ) -> Region | None:
        """Carry a box whose ends stay, and any of one feature."""
        if self.event_shape == (1,) and (context is not None or not self.needs_context):
            return keep_ends(self.scalar, region, self._map_ends(region, context, inverse))
        in_order = Region(*(self._sort(end) for end in region))
        return region if ends_stay(self.scalar, in_order) else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise in one pass."""
        rows = self._sort(x)
        z, log_slope = self.scalar.forward(rows, self._params(rows, context))
        return self._unsort(z), log_slope.sum(0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data by the method that ``inverse_method`` names."""
        if self.inverse_method == "jacobi":
            return self._sweep(z, context)
        batch, features = z.shape[:-1], z.shape[-1]
        rows = self._sort(z).unsqueeze(-1).flatten(1)
        if context is not None:
            context = context.reshape(-1, context.shape[-1]) if self.needs_context else None
        log_slopes: list[Tensor] = []
        solved = 0

        def solve(z: Tensor, params: Tensor) -> Tensor:
            nonlocal solved
            scalar = self.scalar.take(range(solved, solved + len(z)), features)
            solved += len(z)
            undo = self._compiled_solve or scalar.inverse
            x, log_slope = undo(z, params[..., : scalar.param_size].to(z.dtype))
            log_slopes.append(log_slope)
            return x

        x = self.conditioner.unroll(solve, rows, context)
        return self._unsort(x.reshape(features, *batch)), torch.cat(log_slopes).sum(0).reshape(
            batch
        )

    def _sweep(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Invert all features at once, with parameters from the last sweep's.

        Every sweep makes at least one more feature final, so D sweeps are exact. Derivatives need
        all of them, too.
        """
        rows = self._sort(z)
        x, log_slope = torch.zeros_like(rows), torch.zeros_like(rows)
        for _ in range(len(rows)):
            before = x
            x, log_slope = self.scalar.inverse(rows, self._params(x, context))
            least = 16 * torch.finfo(x.dtype).eps * (1 + x.abs())
            # A missing value compares false, and is not waited for.
            if not torch.is_grad_enabled() and all_known(~((x - before).abs() > least)):
                break
        return self._unsort(x), log_slope.sum(0)
