"""Masked autoregressive layers: features before each feature choose how it is transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkit import checks
from flowkit.conditioners import AutoregressiveConditioner, MaskedMLP
from flowkit.config import register
from flowkit.numerics.layout import features_first, features_last
from flowkit.numerics.roots import all_known
from flowkit.numerics.types import Context, Generator, Mapped
from flowkit.scalar import Affine, PerFeature, ScalarMap
from flowkit.transforms.structure import ScalarStructure


@register
class MaskedAutoregressive(ScalarStructure):
    r"""Transform each feature by a scalar map with parameters computed from those before it.

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
            once with parameters from the last sweep, until no value changes or D sweeps are done.
            A sweep costs one forward pass; how many a flow needs depends on how strongly its
            features depend on each other. It can be faster where the batch is small and the
            scalar map cheap.

    Raises:
        ArgumentError: If ``order`` is not a permutation of the features, or a name is unknown.

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
        *,
        conditioner: Callable[..., AutoregressiveConditioner] = MaskedMLP,
        context: int = 0,
        order: Sequence[int] | Tensor | None = None,
        inverse_method: str = "incremental",
    ) -> None:
        name = "MaskedAutoregressive"
        features = checks.integer(name, "features", features, least=1)
        first_to_last = list(range(features))
        if order is not None:
            first_to_last = checks.permutation(name, "order", order, features)
        super().__init__(features, scalar, first_to_last, context=context)
        methods = ("incremental", "jacobi")
        self.inverse_method = checks.choice(name, "inverse_method", inverse_method, methods)
        self.register_buffer("order", torch.tensor(first_to_last))
        self._natural = order is None
        checks.function(name, "conditioner", conditioner)
        self.conditioner: AutoregressiveConditioner = conditioner(
            features, self.scalar.param_size, context=context
        )
        self._compiled_solve: Callable[..., Mapped] | None = None

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

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All features in their order, twice: each is transformed, and read by later ones."""
        rows = features_first(x)
        rows = rows if self._natural else rows.index_select(0, self.order)
        return rows, rows

    def merge(self, read: Tensor, transformed: Tensor) -> Tensor:
        """Restore the order of the event."""
        if not self._natural:
            transformed = transformed.index_select(0, self.order.argsort())
        return features_last(transformed)

    def parameters_from(self, read: Tensor, context: Context) -> Tensor:
        """Parameters ``(features, *batch, param_size)``."""
        params = self.conditioner(features_last(read), context).to(read.dtype)
        return params.movedim((-1, -2), (0, 1)).contiguous().movedim(0, -1)

    def inverse(self, z: Tensor, context: Context = None, generator: Generator = None) -> Mapped:
        """Map noise to data by the method that ``inverse_method`` names."""
        if self.inverse_method == "jacobi":
            return self._sweep(z, context)
        batch, features = z.shape[:-1], z.shape[-1]
        rows = self.split(z)[0].unsqueeze(-1).flatten(1)
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
        log_det = torch.cat(log_slopes).sum(0).reshape(batch)
        return self.merge(x, x.reshape(features, *batch)), log_det

    def _sweep(self, z: Tensor, context: Context) -> Mapped:
        """Invert all features at once, with parameters from the last sweep's.

        Every sweep makes at least one more feature final, so D sweeps are exact. Derivatives need
        all of them, too.
        """
        rows = self.split(z)[0]
        x, log_slope = torch.zeros_like(rows), torch.zeros_like(rows)
        for _ in range(len(rows)):
            before = x
            x, log_slope = self.scalar.inverse(rows, self.parameters_from(x, context))
            least = 16 * torch.finfo(x.dtype).eps * (1 + x.abs())
            # A missing value compares false, and is not waited for.
            if not torch.is_grad_enabled() and all_known(~((x - before).abs() > least)):
                break
        return self.merge(x, x), log_slope.sum(0)
