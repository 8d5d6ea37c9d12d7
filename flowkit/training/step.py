"""One evaluation of an objective, as a module that Fabric, DDP and torch.compile can wrap."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives import Loss, Objective


class StepInput:
    """A batch that Fabric hands on as it is; its mixed precision would round the data.

    Not a dataclass: Fabric looks into these.

    Args:
        tensors: The samples.
        generator: Source of randomness; ``None`` for a compiled step, which cannot take one.
        progress: The part of the fit that is done; a tensor for a compiled step, which would be
            compiled anew for another number.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        progress: float | Tensor,
    ) -> None:
        self.tensors, self.generator, self.progress = tensors, generator, progress


class Step(nn.Module):
    """Flow and objective as one module, so that DDP and compile see a single forward."""

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow = flow
        self.objective = objective

    def forward(self, batch: StepInput) -> Loss:
        """Return the loss of a batch."""
        loss = self.objective(
            self.flow, batch.tensors, generator=batch.generator, progress=batch.progress
        )
        if not isinstance(loss, Loss) or not isinstance(loss.value, Tensor) or loss.value.ndim:
            raise DataError(
                f"expected {type(self.objective).__name__} to return a Loss(value, terms) whose "
                f"value is a scalar tensor, got {type(loss).__name__}; remedy: return "
                "Loss(values.mean(), {})"
            )
        return loss
