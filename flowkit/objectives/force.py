"""Force matching: the gradient of a flow's log-density against forces, stored or of an energy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowkit.config import register
from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.compiling import eager
from flowkit.numerics.types import Generator
from flowkit.objectives.base import Batch, Loss, Objective, weighted_mean


@register
class ForceMatching(Objective):
    r"""Minimise the squared difference of the flow's score and dimensionless forces.

    .. math:: \frac1n \sum_i w_i \frac1D \Big\| F_i - \nabla_x \log p(x_i|c_i) \Big\|^2

    It is zero for the density :math:`p \propto e^{-u}` of the forces
    :math:`F = -\nabla u`, and has the unit of :math:`1/x^2`. Reads ``x``, and if present
    ``context`` and ``weight``. F is the batch entry ``force``, of the shape of ``x``, or if an
    energy is given, its negative gradient; no gradient reaches parameters of that energy. Samples
    need not follow the Boltzmann density: add :class:`MaximumLikelihood` by :class:`WeightedSum`
    if they do. The flow needs continuous second derivatives: smooth scalar maps (affine,
    mixture) and activations (SiLU), for the forces of splines jump at every knot.

    Energies and forces are dimensionless: divide forces by kT, :math:`F = -\nabla U / kT`, where
    they are stored; :class:`flowkit.energies.CallableEnergy` divides a potential by its kT.

    Args:
        energy: ``energy(x) -> (*batch,)``, or ``energy(x, context)`` for batches with a context;
            ``None`` for stored forces.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.

    Raises:
        DataError: If ``energy`` and ``log_prob`` are both given, what is given is no function, or
            returns something else than one number per sample with a gradient to ``x``; if there is
            neither ``force`` nor an energy, or the forces have another shape than ``x``.
        StochasticFlowError: If a layer of the flow is stochastic.

    Warns:
        UserWarning: If the energy falls without bound far out, as a log-density does.

    References:
        Köhler, Krämer, Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> from flowkit import ForceMatching, elementwise_flow
        >>> from flowkit.energies import CallableEnergy
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> spring = {"x": x, "force": -3.0 * x}
        >>> round(ForceMatching()(elementwise_flow(1), spring).value.item(), 4)
        2.0
        >>> potential = lambda x: 7.5 * x.square().sum(-1)
        >>> energy = CallableEnergy(potential, 1, kT=5.0)
        >>> round(ForceMatching(energy)(elementwise_flow(1), {"x": x}).value.item(), 4)
        2.0
    """

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        stored = energy is None and log_prob is None
        self.target = (
            None if stored else Target("ForceMatching", energy, log_prob, differentiated=True)
        )
        self.reads = frozenset({"x", "context", "weight", *(["force"] if stored else [])})

    # Compiled programs cannot be differentiated twice, so this part of a step stays eager.
    @eager
    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the mean squared error over samples and coordinates."""
        score = flow.score(batch["x"], batch.get("context"))
        force = self._force(flow, batch, score, generator)
        error = (force - score).square().flatten(score.ndim - len(flow.event_shape))
        value = weighted_mean(error.mean(-1), batch.get("weight"))
        return Loss(value, {"force_mse": value.detach()})

    def _force(
        self, flow: Flow, batch: Batch, score: Tensor, generator: Generator = None
    ) -> Tensor:
        """The forces of the samples, of the shape of the score."""
        if self.target is None:
            return _stored(batch)
        x = batch["x"].expand_as(score)
        return self.target.force(flow, x, batch.get("context"), generator)

    def fault(self, flow: Flow, batch: Batch) -> str | None:
        """Say how many forces are not finite."""
        if "x" not in batch or (self.target is None and "force" not in batch):
            return None
        score = flow.score(batch["x"], batch.get("context")).detach()
        force = self._force(flow, batch, score)
        remedy = (
            "an energy with a finite value and slope at every sample (no hard wall, and no root, "
            "logarithm or distance of zero there), or other samples"
        )
        for name, values in (("the force of the energy", force), ("the flow's own force", score)):
            bad = ~values.isfinite().flatten(values.ndim - len(flow.event_shape)).all(-1)
            if bool(bad.any()):
                count = f"{int(bad.sum())} of {bad.numel()} samples"
                return f"{name} is not finite at {count}; remedy: {remedy}"
            remedy = "a flow whose log-density is smooth at these samples, or a lower lr"
        return None


def _stored(batch: Batch) -> Tensor:
    """The forces that came with the samples."""
    if "force" not in batch:
        raise DataError(
            f"ForceMatching expected the forces of the samples as 'force', got {sorted(batch)}; "
            "remedy: data={'x': x, 'force': force}, or ForceMatching(energy)"
        )
    x, force = batch["x"], batch["force"]
    if force.shape != x.shape:
        raise DataError(
            f"force expected the shape of x, {tuple(x.shape)}, got {tuple(force.shape)}; "
            "remedy: one force per coordinate, force.reshape(x.shape) if they are in its order"
        )
    return force
