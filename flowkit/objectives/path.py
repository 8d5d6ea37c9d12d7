"""The path divergence: learning stochastic flows from an energy."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives.base import Batch, Loss, Objective, mean_over_samples
from flowkit.stochastic.paths import sample_paths


class PathKL(Objective):
    r"""Mean of :math:`-\log w` over paths from noise to data: a bound of the reverse KL.

    .. math:: E\Big[u(x) + \log p_Z(z) - \sum_t \log\frac{\tilde q_t}{q_t}\Big]
              = KL(\text{paths} \,\|\, \text{paths back}) - \log Z \ge KL(q \| p) - \log Z

    With a normalised target the value is the divergence of paths itself. Without stochastic layers
    it is :class:`ReverseKL` with ``estimator="reparam"``. From data, the divergence of backward
    paths is :class:`MaximumLikelihood`, and :class:`WeightedSum` mixes both. Without data in the
    batch, ``samples`` paths are drawn; contexts in the batch are each given ``samples`` of them,
    and count by their ``weight`` if present. Infinite where the path of a Langevin layer left for
    infinity: its step size is too large.

    Args:
        energy: ``energy(x) -> (*batch,)``, or ``energy(x, context)`` for a flow with context. Its
            parameters, if it has any, are trained with the flow.
        samples: Number of paths a step.
        gradient: ``"pathwise"`` follows the random numbers of every layer. It is exact for
            Langevin layers; for Metropolis, MALA and HMC it leaves out that parameters change
            what is accepted, a bias that is small in practice. ``"reinforce"`` adds that part by
            the score of the decisions, with the mean of the other paths as its baseline: unbiased,
            with more variance, and about twice the energy evaluations.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, it is no function,
            returns something else than one number a sample or carries no gradient to x; if the
            gradient is unknown, ``"reinforce"`` has fewer than two samples, or the samples of the
            base carry no gradient to some of its parameters.

    Warns:
        UserWarning: If the energy falls without bound far out, as a log-density does.

    References:
        Wu, Köhler, Noé 2020, Stochastic Normalizing Flows, arXiv 2002.06707; Williams 1992, Mach.
        Learn. 8, 229, for the score of decisions.

    Example:
        >>> import torch
        >>> from flowkit import PathKL, stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> flow = stochastic_flow(2, energy="double_well", layer="langevin", steps=2)
        >>> loss = PathKL(DoubleWell(), samples=64)(flow, {})
        >>> loss.value.backward()
        >>> sorted(loss.terms)
        ['path_kl']
    """

    needs_data = False
    reads = frozenset({"context", "weight"})

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        samples: int = 256,
        gradient: str = "pathwise",
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.target = Target("PathKL", energy, log_prob, differentiated=True)
        if gradient not in ("pathwise", "reinforce"):
            raise DataError(
                f"PathKL knows the gradients 'pathwise', 'reinforce'; got {gradient!r}"
            )
        least = 2 if gradient == "reinforce" else 1
        if not isinstance(samples, (int, Integral)) or samples < least:
            raise DataError(f"PathKL needs samples >= {least}, a whole number, got {samples!r}")
        self.samples = int(samples)
        self.gradient = gradient

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the mean over fresh paths."""
        if not flow.base.reparameterized:
            raise DataError(
                f"PathKL needs samples with gradients to every parameter, which the base "
                f"{type(flow.base).__name__} cannot give; remedy: another base, such as "
                "StandardNormal"
            )
        reinforce = self.gradient == "reinforce"
        paths = sample_paths(
            flow,
            self.samples,
            self.target,
            batch.get("context"),
            generator=generator,
            choices=reinforce,
        )
        losses = -paths.log_weight
        value = mean_over_samples(losses, batch)
        terms = {"path_kl": value.detach()}
        if paths.acceptance is not None:
            terms["acceptance"] = paths.acceptance
        if reinforce and paths.log_choice is not None:
            fixed = losses.detach()
            others = (fixed.sum(0) - fixed) / (self.samples - 1)
            score = mean_over_samples((fixed - others) * paths.log_choice, batch)
            # Its value is none of the loss; only its gradient is.
            value = value + (score - score.detach())
        return Loss(value, terms)

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say where the energy of samples is not finite, or how many paths left for infinity."""
        context = batch.get("context")
        with torch.no_grad():
            paths = sample_paths(flow, self.samples, self.target, context)
        found = self.target.fault(flow, paths.x, context)
        lost = int((~paths.log_weight.isfinite()).sum())
        if found is not None or not lost:
            return found
        return (
            f"the energy is finite at all samples, but {lost} of {paths.log_weight.numel()} paths "
            "to them have no weight: a layer took a step that is not finite; remedy: a smaller "
            "step_size of its Langevin layers"
        )
