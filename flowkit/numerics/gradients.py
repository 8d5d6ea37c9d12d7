"""Gradients with respect to what a function reads, in every mode of torch.

Under ``torch.no_grad()`` a gradient needs ``enable_grad``, under ``torch.inference_mode()`` also
``inference_mode(False)``, and tensors that were made there have to be copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import DataError, ShapeError


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


def value_and_gradient(
    function: Callable[..., Tensor],
    x: Tensor,
    context: Tensor | None = None,
    *,
    graph: bool | None = None,
    name: str = "the energy",
) -> tuple[Tensor, Tensor]:
    r"""Compute a function with one value per sample, and its gradient in ``x``, in every mode.

    Args:
        function: ``function(x, context) -> (*batch,)``.
        x: ``(*batch, *event)``.
        context: ``(*b, C)`` or ``None``.
        graph: Whether both can be differentiated again; by default where gradients are enabled.
        name: The name of the function in messages.

    Returns:
        The value ``(*batch,)`` and the gradient, of the shape of ``x``.

    Raises:
        DataError: If the value carries no gradient to ``x``.

    Example:
        >>> import torch
        >>> value_and_gradient(lambda x, context: x.square().sum(-1), torch.ones(2), graph=False)
        (tensor(2.), tensor([2., 2.]))
    """
    graph = torch.is_grad_enabled() if graph is None else graph
    with torch.inference_mode(mode=False), torch.enable_grad():
        if not (graph and x.requires_grad):
            x = leaf(x)
        value = function(x, ordinary(context))
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(
                value.sum(), x, create_graph=graph, allow_unused=True
            )
        if gradient is None:
            raise no_gradient(name)
    return (value if graph else value.detach()), gradient


def no_gradient(name: str = "the energy") -> DataError:
    """Make the error of a function whose gradient in ``x`` is lost."""
    return DataError(
        f"{name} carries no gradient to x, so there is no force and nothing to learn from; "
        "remedy: compute it from x with torch, without numpy, torch.no_grad(), .detach() or "
        "rounding; for a program outside of torch, CallableEnergy(function, event_shape, "
        "force=...) with its force"
    )


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
