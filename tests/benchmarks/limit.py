"""The limit of a flow: its conditioner networks alone, without any map between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kinds import HIDDEN, Kind, moved_features


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; masks, where given, multiply the weights."""

    def __init__(self, sizes: list[int], degrees: list[Tensor] | None = None) -> None:
        super().__init__()
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.masked = degrees is not None
        for i in range(len(pairs) if degrees else 0):
            mask = (degrees[i] <= degrees[i + 1].unsqueeze(-1)).float()
            self.register_buffer(f"mask_{i}", mask)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            weight = layer.weight * self.get_buffer(f"mask_{i}") if self.masked else layer.weight
            x = F.linear(F.relu(x) if i else x, weight, layer.bias)
        return x


class Limit(nn.Module):
    """The conditioners of a flow, each with an input of its own.

    The networks have the layers, the widths and, where the flow is autoregressive, the masked
    weights of the flow's. Training runs forward, backward from a given gradient (to the weights
    and, after the first layer, to the inputs, as in a flow) and a fused Adam step.
    """

    def __init__(self, kind: Kind, features: int) -> None:
        super().__init__()
        self.features, self.read = features, []
        nets = []
        for i in range(kind.layers):
            if kind.autoregressive:
                self.read.append(features)
                sizes = [features, *HIDDEN, features * kind.param_size]
                nets.append(Perceptron(sizes, _degrees(features, kind.param_size)))
            else:
                moved = sum(moved_features(kind, features, i))
                self.read.append(features - moved)
                nets.append(Perceptron([features - moved, *HIDDEN, moved * kind.param_size]))
        self.nets = nn.ModuleList(nets)

    def call(self, workload: str, x: Tensor) -> Callable[[], object]:
        """A function of no arguments that does the workload once."""
        if workload == "training":
            return self._training(x)
        inputs = [x[:, :n].contiguous() for n in self.read]

        @torch.no_grad()
        def forward() -> None:
            for net, read in zip(self.nets, inputs, strict=True):
                net(read)

        return forward

    def _training(self, x: Tensor) -> Callable[[], object]:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-4, fused=True)
        inputs = [x[:, :n].clone().requires_grad_(i > 0) for i, n in enumerate(self.read)]
        with torch.no_grad():
            pairs = zip(self.nets, inputs, strict=True)
            gradients = [torch.randn_like(net(read)) / len(x) for net, read in pairs]

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            for read in inputs:
                read.grad = None
            outputs = [net(read) for net, read in zip(self.nets, inputs, strict=True)]
            torch.autograd.backward(outputs, gradients)
            optimizer.step()

        return step


def _degrees(features: int, param_size: int) -> list[Tensor]:
    """How many leading features each unit of a layer may read, from the inputs to the outputs."""
    lowest = int(features > 1)
    hidden = [lowest + torch.arange(h) * (features - lowest) // h for h in HIDDEN]
    outputs = torch.arange(features).repeat(param_size)
    return [torch.arange(1, features + 1), *hidden, outputs]
