"""Keep the processes of a fit together: means over them, and errors that end all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from flowkit.errors import NonFiniteLossError, ProcessError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Processes:
    """Means and errors of the processes of a fit, which all do the same steps.

    Args:
        fabric: Devices and strategy.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.count, self.rank = fabric, fabric.world_size, fabric.global_rank

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, which is the same number in all of them."""
        if self.count == 1:
            return values
        values = values.to(self.fabric.device)
        return torch.as_tensor(self.fabric.all_reduce(values, reduce_op="mean"))

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process."""
        return (self.mean(torch.tensor(flags).float()) > 0).tolist()

    @contextmanager
    def together(self, done: int) -> Iterator[None]:
        """Raise in every process what one raises here: the others would wait for it in vain.

        Args:
            done: Number of steps that are done, for the message.

        Raises:
            ProcessError: If there was an error in another process only.
            NonFiniteLossError: If that was one of these.
        """
        if self.count == 1:
            yield
            return
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        failed, not_finite = self.any(error is not None, isinstance(error, NonFiniteLossError))
        if error is not None:
            raise error
        if failed:
            what = "the loss became NaN or infinite" if not_finite else "the fit failed"
            raise (NonFiniteLossError if not_finite else ProcessError)(
                f"{what} in another process, after {done} steps; remedy: see the message of that "
                "process"
            )


@contextmanager
def released(model: Any) -> Iterator[None]:
    """Stop sharing gradients at the end: no later step of the weights may wait for this fit.

    A wrapper may outlive the fit, in one process and not in another, for example in the
    traceback of an error.
    """
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                # These own the hooks.
                del module.reducer, module.logger
