"""The reverse Kullback-Leibler divergence, for learning from an energy without data."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor
from torch.func import functional_call

from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives.base import Batch, Loss, Objective, mean_over_samples


class ReverseKL(Objective):
    r"""Mean of :math:`\log q(x) + u(x)` over samples x of the flow: KL(q || p) - log Z.

    The energy u is dimensionless, :math:`p(x) = e^{-u(x)} / Z`; with a normalised target the value
    is the divergence itself. Without data in the batch, ``samples`` are drawn; contexts in the
    batch are each given ``samples`` draws, and count by their ``weight`` if present.

    Args:
        energy: ``energy(x) -> (*batch,)``, or ``energy(x, context)`` for a flow with context.
            Its parameters, if it has any, are trained with the flow.
        estimator: ``"reparam"`` differentiates everything; ``"path"`` (sticking the landing)
            leaves out the explicit gradient of :math:`\log q` in the parameters, whose mean is
            zero: its variance vanishes as q approaches p.
        samples: Number of samples a step.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, it is no function,
            returns something else than one number a sample or carries no gradient to x; if the
            estimator is unknown, or the samples of the base carry no gradient to some of its
            parameters (a mixture's weights).

    Warns:
        UserWarning: If the energy falls without bound far out, as a log-density does.

    References:
        Roeder, Wu, Duvenaud 2017, Sticking the Landing, arXiv 1703.09194.

    Example:
        >>> import torch
        >>> from flowkit import ReverseKL, elementwise_flow
        >>> log_z = 0.5 * torch.log(torch.tensor(2 * torch.pi))
        >>> normal = lambda x: 0.5 * x.square().sum(-1) + log_z
        >>> loss = ReverseKL(normal, samples=8)(elementwise_flow(1), {})
        >>> abs(loss.value.item()) < 1e-5
        True
        >>> normal = torch.distributions.Normal(0.0, 1.0)
        >>> loss = ReverseKL(log_prob=lambda x: normal.log_prob(x).sum(-1), samples=8)
        >>> abs(loss(elementwise_flow(1), {}).value.item()) < 1e-5
        True
    """

    needs_data = False
    reads = frozenset({"context", "weight"})

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        estimator: str = "path",
        samples: int = 256,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.target = Target("ReverseKL", energy, log_prob, differentiated=True)
        if estimator not in ("reparam", "path"):
            raise DataError(f"ReverseKL knows the estimators 'reparam', 'path'; got {estimator!r}")
        if not isinstance(samples, (int, Integral)) or samples < 1:
            raise DataError(f"ReverseKL needs samples >= 1, a whole number, got {samples!r}")
        self.estimator = estimator
        self.samples = int(samples)

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the mean over fresh samples."""
        context = batch.get("context")
        if not flow.base.reparameterized:
            raise DataError(
                f"ReverseKL needs samples with gradients to every parameter, which the base "
                f"{type(flow.base).__name__} cannot give; remedy: another "
                "base, such as StandardNormal"
            )
        if self.estimator == "reparam":
            x, log_q = flow.rsample_and_log_prob(self.samples, context, generator)
        else:
            x = flow.rsample(self.samples, context, generator)
            fixed = {name: p.detach() for name, p in flow.named_parameters()}
            log_q = functional_call(flow, fixed, (x, context))
        energy = self.target(flow, x, context, generator)
        value = mean_over_samples(log_q + energy, batch)
        mean_energy = mean_over_samples(energy.detach(), batch)
        return Loss(value, {"reverse_kl": value.detach(), "energy": mean_energy})

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say where the energy of samples is not finite."""
        context = batch.get("context")
        return self.target.fault(flow, flow.sample(self.samples, context), context)
