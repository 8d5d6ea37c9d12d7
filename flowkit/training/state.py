"""The state of modules before a fit, to which a fit that went wrong brings them back."""

from __future__ import annotations

import torch
from torch import nn


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
        self.modules = [(part, part.training, {**part._buffers}) for part in module.modules()]
        self.parameters = [(parameter, parameter.data) for parameter in module.parameters()]
        tensors = [*(data for _, data in self.parameters), *module.buffers()]
        self.values = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the module back, and forget its gradients."""
        for parameter, data in self.parameters:
            parameter.grad, parameter.data = None, data
        for part, training, buffers in self.modules:
            part.training = training
            part._buffers.update(buffers)
        # In place, for others may hold the tensors.
        for tensor, value in self.values:
            tensor.copy_(value)
