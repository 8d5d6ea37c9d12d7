"""A penalty on functions of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.config import register
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.types import Generator
from flowkit.objectives.base import Batch, Loss, Objective


@register
class KernelNorm(Objective):
    r"""The squared norm of all kernel expansions of a flow, :math:`\sum_l \mathrm{tr}\, A^TKA`.

    A small multiple of it beside the likelihood keeps functions smooth where data are few:
    ``WeightedSum((1.0, MaximumLikelihood()), (1e-3, KernelNorm()))``. In evaluation mode, as in
    validation, it is zero: weights and settings are compared by what the penalty is for.

    Raises:
        DataError: From a call, if the flow holds no kernel conditioner.

    References:
        Schölkopf, Herbrich, Smola 2001, A Generalized Representer Theorem.

    Example:
        >>> from flowkit import KernelNorm, kernelised_flow
        >>> KernelNorm()(kernelised_flow(2, layers=2), {}).value.item()
        0.0
    """

    needs_data = False
    compiles = True
    reads = frozenset()

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the sum of squared norms."""
        norms: list[Tensor] = [
            module.squared_norm()  # type: ignore[operator]
            for module in flow.modules()
            if hasattr(module, "squared_norm")
        ]
        if not norms:
            raise DataError(
                "KernelNorm expected a flow with kernel conditioners, got none; remedy: for "
                "example kernelised_flow"
            )
        value = torch.stack(norms).sum()
        if not self.training:
            value = torch.zeros_like(value)
        return Loss(value, {"norm": value.detach()})
