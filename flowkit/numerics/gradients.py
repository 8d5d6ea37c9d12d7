"""Gradients with respect to what a function reads, in every mode of torch.

Under ``torch.no_grad()`` a gradient needs ``enable_grad``, under ``torch.inference_mode()`` also
``inference_mode(False)``, and tensors that were made there have to be copied first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flowkit.errors import ShapeError


def ordinary(value: Any) -> Any:
    """Copy a tensor that was made in inference mode, which autograd cannot store.

    Everything else is returned as it is. Call it outside of inference mode.

    Example:
        >>> import torch
        >>> with torch.inference_mode():
        ...     x = torch.ones(2)
        >>> ordinary(x).requires_grad_().requires_grad
        True
    """
    if isinstance(value, Tensor) and value.is_inference():
        return value.clone()
    return value


def leaf(x: Tensor) -> Tensor:
    """Copy a tensor as a leaf of autograd that requires a gradient."""
    return ordinary(x).detach().requires_grad_()


def require_ordinary(module: nn.Module) -> None:
    """Refuse a module whose parameters were made in inference mode.

    Raises:
        ShapeError: If its first parameter was.
    """
    first = next(module.parameters(), None)
    if first is not None and first.is_inference():
        raise ShapeError(
            f"the parameters of this {type(module).__name__} were made in "
            "torch.inference_mode(), and no gradient can be taken through them; remedy: build or "
            "load it outside, or copy.deepcopy(flow) outside"
        )
