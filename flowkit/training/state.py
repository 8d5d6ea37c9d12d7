"""The state of modules before a fit, to which a fit that went wrong brings them back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StateBefore:
    """Weights, buffers, dtypes, devices and modes of a module, as they are now.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> flow = coupling_flow(1)
        >>> before = StateBefore(flow)
        >>> flow.double().initialize(torch.arange(5.0).double()[:, None])
        >>> before.restore()
        >>> flow.dtype, bool(flow.initialized), flow.training
        (torch.float32, False, True)
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [(p, p.detach().clone()) for p in module.parameters()]
        self.modules = [(part, part.training) for part in module.modules()]
        self.buffers = [
            (part, name, None if value is None else value.detach().clone())
            for part in module.modules()
            for name, value in part._buffers.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the module back, and forget its gradients."""
        for parameter, saved in self.parameters:
            parameter.grad = None
            if not _fill(parameter, saved):
                parameter.data = saved.clone()
        for part, name, value in self.buffers:
            if not _fill(part._buffers.get(name), value):
                part._buffers[name] = None if value is None else value.clone()
        for part, training in self.modules:
            part.training = training


def _fill(present: Tensor | None, saved: Tensor | None) -> bool:
    """Copy in place where that is possible, for others may hold the tensor."""
    if present is None or saved is None:
        return False
    like = (saved.shape, saved.dtype, saved.device)
    if (present.shape, present.dtype, present.device) != like:
        return False
    present.copy_(saved)
    return True
