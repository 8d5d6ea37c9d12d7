"""Divergences of a flow from the density of an energy, for learning without data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from flowkit import checks
from flowkit.config import register
from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.types import Generator
from flowkit.objectives.base import Batch, Loss, Objective, weighted_mean
from flowkit.stochastic.paths import sample_paths


class _Divergence(Objective):
    """Learning from a target by samples of the flow, of which every context gets as many."""

    needs_data = False

    def __init__(
        self,
        energy: Callable[..., Tensor] | None,
        log_prob: Callable[..., Tensor] | None,
        samples: int,
        *,
        least: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.target = Target(name, energy, log_prob, differentiated=True)
        self.samples = checks.integer(name, "samples", samples, least=least)

    def _mean(self, values: Tensor, batch: Batch) -> Tensor:
        """Mean over samples ``(samples, *batch)`` and, by their weights, over contexts."""
        return weighted_mean(values.mean(0), batch.get("weight") if "context" in batch else None)

    def _check(self, flow: Flow) -> None:
        if not flow.base.reparameterized:
            raise DataError(
                f"{type(self).__name__} expected samples with gradients to every parameter, which "
                f"the base {type(flow.base).__name__} cannot give; remedy: another base, such as "
                "StandardNormal"
            )


@register
class ReverseKL(_Divergence):
    r"""Minimise the reverse divergence from an energy, KL(q || p), by samples of the flow.

    The value is the mean of :math:`\log q(x) + u(x)` over samples x, which is KL(q || p) - log Z.

    The energy u is dimensionless, :math:`p(x) = e^{-u(x)} / Z`; with a normalised target the value
    is the divergence itself. Without data in the batch, ``samples`` are drawn; contexts in the
    batch are each given ``samples`` draws, and count by their ``weight`` if present.

    Args:
        energy: ``energy(x) -> (*batch,)``, or ``energy(x, context)`` for a flow with context.
            Its parameters, if it has any, are trained with the flow.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        estimator: ``"reparam"`` differentiates everything; ``"path"`` (sticking the landing)
            leaves out the explicit gradient of :math:`\log q` in the parameters, whose mean is
            zero: its variance vanishes as q approaches p.
        samples: Number of samples per step.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, it is no function,
            returns something else than one number per sample or has no gradient to x; from a
            call, if the samples of the base have no gradient to some of its parameters (a
            mixture's weights).
        ArgumentError: If the estimator is unknown, or ``samples`` is out of its range.

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

    reads = frozenset({"context", "weight"})

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
        estimator: str = "path",
        samples: int = 256,
    ) -> None:
        super().__init__(energy, log_prob, samples)
        self.estimator = checks.choice("ReverseKL", "estimator", estimator, ("path", "reparam"))

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the mean over fresh samples."""
        context = batch.get("context")
        self._check(flow)
        if self.estimator == "reparam":
            x, log_q = flow.rsample_and_log_prob(self.samples, context, generator)
        else:
            x = flow.rsample(self.samples, context, generator)
            fixed = {name: p.detach() for name, p in flow.named_parameters()}
            log_q = functional_call(flow, fixed, (x, context))
        energy = self.target(flow, x, context, generator)
        value = self._mean(log_q + energy, batch)
        mean_energy = self._mean(energy.detach(), batch)
        return Loss(value, {"reverse_kl": value.detach(), "energy": mean_energy})

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say where the energy of samples is not finite."""
        context = batch.get("context")
        return self.target.fault(flow, flow.sample(self.samples, context), context)


@register
class PathKL(_Divergence):
    r"""Minimise the Kullback-Leibler divergence of paths, for flows with stochastic layers.

    The value is the mean of the negative log weight :math:`-\log w` of paths from noise to data,

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
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        gradient: ``"pathwise"`` follows the random numbers of every layer. It is exact for
            Langevin layers; for Metropolis, MALA and HMC it leaves out that parameters change
            what is accepted, a bias that is small in practice. ``"reinforce"`` adds that part by
            the score of the decisions, with the mean of the other paths as its baseline: unbiased,
            with more variance, and about twice the energy evaluations.
        samples: Number of paths per step.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, it is no function,
            returns something else than one number per sample or has no gradient to x; from a
            call, if the samples of the base have no gradient to some of its parameters.
        ArgumentError: If the gradient is unknown, or ``samples`` is out of its range, which
            starts at two for ``"reinforce"``.

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

    reads = frozenset({"context", "weight"})

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
        gradient: str = "pathwise",
        samples: int = 256,
    ) -> None:
        known = ("pathwise", "reinforce")
        gradient = checks.choice("PathKL", "gradient", gradient, known)
        super().__init__(energy, log_prob, samples, least=2 if gradient == "reinforce" else 1)
        self.gradient = gradient

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the mean over fresh paths."""
        self._check(flow)
        reinforce = self.gradient == "reinforce"
        paths = sample_paths(
            flow,
            self.samples,
            self.target,
            context=batch.get("context"),
            generator=generator,
            choices=reinforce,
        )
        losses = -paths.log_weight
        value = self._mean(losses, batch)
        terms = {"path_kl": value.detach()}
        if paths.acceptance is not None:
            terms["acceptance"] = paths.acceptance
        if reinforce and paths.log_choice is not None:
            fixed = losses.detach()
            others = (fixed.sum(0) - fixed) / (self.samples - 1)
            score = self._mean((fixed - others) * paths.log_choice, batch)
            # Its value is none of the loss; only its gradient is.
            value = value + (score - score.detach())
        return Loss(value, terms)

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say where the energy of samples is not finite, or how many paths left for infinity."""
        context = batch.get("context")
        with torch.no_grad():
            paths = sample_paths(flow, self.samples, self.target, context=context)
        found = self.target.fault(flow, paths.x, context)
        lost = int((~paths.log_weight.isfinite()).sum())
        if found is not None or not lost:
            return found
        return (
            f"the energy is finite at all samples, but {lost} of {paths.log_weight.numel()} paths "
            "to them have no weight: a layer took a step that is not finite; remedy: a smaller "
            "step_size of its Langevin layers"
        )
