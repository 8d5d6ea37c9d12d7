"""Copies of weights: their average over the steps of a fit, and their state before it."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    r"""An exponential average of the weights of a module, which forgets the first steps quickly.

    The weights after the first step; then, after step :math:`n + 1`, with
    :math:`d_n = \min(d, (1 + n) / (10 + n))`, :math:`a \leftarrow d_n a + (1 - d_n) w`. Buffers
    and parameters that are not trained are those of the module.

    Args:
        module: The module; copied.
        decay: The largest decay d.

    References:
        Polyak and Juditsky 1992, doi:10.1137/0330046, for averages of iterates.

    Example:
        >>> from flowkit.training.weights import MovingAverage
        >>> weight = torch.nn.Linear(1, 1, bias=False)
        >>> average = MovingAverage(weight, 0.5)
        >>> for value in (1.0, 2.0):
        ...     _ = torch.nn.init.constant_(weight.weight, value)
        ...     average.update(int(value) - 1)
        >>> round(average.module.weight.item(), 4)  # 2/11 of the first and 9/11 of the second
        1.8182
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.averaged, self.module, self.decay = module, copy.deepcopy(module), decay
        self._parameters = list(zip(self.module.parameters(), module.parameters(), strict=True))

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Add the weights of the module, after ``steps`` earlier updates."""
        keep = min(self.decay, (1 + steps) / (10 + steps)) if steps else 0.0
        trained = [(old, new) for old, new in self._parameters if new.requires_grad]
        if trained:
            torch._foreach_lerp_([a for a, _ in trained], [w for _, w in trained], 1 - keep)

    @torch.no_grad()
    def copy_untrained(self) -> None:
        """Copy what no step moves: forward passes and callbacks set it, at once."""
        fixed = [(old, new) for old, new in self._parameters if not new.requires_grad]
        buffers = zip(self.module.buffers(), self.averaged.buffers(), strict=True)
        for old, new in (*fixed, *buffers):
            old.copy_(new)


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
