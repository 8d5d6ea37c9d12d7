"""How events lie in memory between layers: the features outermost, the batch innermost.

Shapes are those of the contract, features last; only strides differ. What belongs to one feature,
or to one parameter of all features, is then one run of memory: layers cut and join features
without copies, and elementwise operations and sums over parameters run along whole batches. Code
that reads shapes alone never notices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def features_first(x: Tensor, event_ndim: int = 1) -> Tensor:
    """Bring ``x (..., D)`` to the shape ``(D, ...)``, without a copy where it lies so already.

    With ``event_ndim=3`` the features are the channels of ``x (..., C, H, W)``.

    Example:
        >>> import torch
        >>> features_first(torch.zeros(5, 3)).shape
        torch.Size([3, 5])
    """
    return x.movedim(-event_ndim, 0).contiguous()


def features_last(rows: Tensor, event_ndim: int = 1) -> Tensor:
    """Bring ``rows (D, ...)`` to the shape ``(..., D)``, without a copy.

    With ``event_ndim=3``, ``(C, ..., H, W)`` to ``(..., C, H, W)``.
    """
    return rows.movedim(0, -event_ndim)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` of ``x (..., in)``; the result ``(..., out)`` has the features outermost.

    Example:
        >>> import torch
        >>> out = linear(torch.ones(5, 3), torch.ones(2, 3), torch.zeros(2))
        >>> out.shape, out.stride()
        (torch.Size([5, 2]), (1, 5))
    """
    if x.dim() == 2:
        return affine_rows(bias.unsqueeze(-1), weight, x.mT).mT
    out = linear(x.unsqueeze(0).flatten(0, -2), weight, bias)
    return features_last(out.mT.view(weight.shape[0], *x.shape[:-1]))


def affine_rows(bias: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """``bias (out, 1) + weight (out, in) @ rows (in, batch)``, ``(out, batch)``.

    Example:
        >>> import torch
        >>> affine_rows(torch.ones(2, 1), torch.ones(2, 3), torch.ones(3, 5)).shape
        torch.Size([2, 5])
    """
    if torch.jit.is_tracing():
        # The gradient of a traced addmm takes its result to be as narrow as the bias.
        return weight @ rows + bias
    return torch.addmm(bias, weight, rows)
