"""Force matching: the gradient of a flow's log-density against forces, stored or of an energy."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from flowkit.energies import Energy
from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.objectives.base import Batch, Loss, Objective, mean_over_rows


class ForceMatching(Objective):
    r"""Mean squared error of the flow's force, in units of kT.

    .. math:: \frac1n \sum_i w_i \frac1D \Big\| \frac{F_i}{kT} - \nabla_x \log p(x_i|c_i) \Big\|^2

    It is zero for the Boltzmann density :math:`p \propto e^{-U / kT}` of the forces
    :math:`F = -\nabla U`, and has the unit of :math:`1/x^2`. Reads ``x``, and if present
    ``context`` and ``weight``. F is the batch entry ``force``, of the shape of ``x``, or if an
    energy is given, its negative gradient; no gradient reaches parameters of that energy. Samples
    need not follow the Boltzmann density: add :class:`MaximumLikelihood` by :class:`WeightedSum`
    if they do. The flow needs continuous second derivatives: smooth scalar maps (affine,
    mixture) and activations (SiLU), for the forces of splines jump at every knot.

    kT divides once, where forces enter: stored ones and those of a plain function here, those of
    an :class:`flowkit.energies.Energy` where it was made, for energies are dimensionless.

    Args:
        energy: ``energy(x) -> (*batch,)``, or ``energy(x, context)`` for batches with a context;
            a plain function in the unit of ``kT``. ``None`` for stored forces.
        kT: Temperature times Boltzmann's constant, in the unit of energy of the stored forces or
            of the plain function. With an Energy, the energy of a flow or a log-density, which
            are dimensionless, it must be left out.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.

    Raises:
        DataError: If ``energy`` and ``log_prob`` are both given, what is given is no function, or
            returns something else than one number per row with a gradient to ``x``; if there is
            neither ``force`` nor an energy, or the forces have another shape than ``x``; if
            ``kT`` is not a finite number above 0, or is given for what is dimensionless.
        StochasticFlowError: If a layer of the flow is stochastic.

    Warns:
        UserWarning: If the energy falls without bound far out, as a log-density does.

    References:
        Köhler, Krämer, Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> from flowkit import ForceMatching, elementwise_flow
        >>> from flowkit.energies import from_callable
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> spring = {"x": x, "force": -3.0 * x}
        >>> round(ForceMatching()(elementwise_flow(1), spring).value.item(), 4)
        2.0
        >>> potential = lambda x: 7.5 * x.square().sum(-1)
        >>> round(ForceMatching(potential, kT=5.0)(elementwise_flow(1), {"x": x}).value.item(), 4)
        2.0
        >>> energy = from_callable(potential, 1, kT=5.0)
        >>> round(ForceMatching(energy)(elementwise_flow(1), {"x": x}).value.item(), 4)
        2.0
    """

    def __init__(
        self,
        energy: Callable[..., Tensor] | None = None,
        kT: float = 1.0,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        number = isinstance(kT, Real) and not isinstance(kT, bool)
        if not number or not 0 < float(kT) < float("inf"):
            raise DataError(
                f"ForceMatching expected kT as a finite number > 0, got {kT!r}; remedy: for "
                "example 2.494 for kJ/mol at 300 K"
            )
        # A bound method, such as energy of a flow, is as dimensionless as what it belongs to.
        source = getattr(energy, "__self__", energy)
        if kT != 1 and (log_prob is not None or isinstance(source, (Energy, Flow))):
            what = "an Energy" if isinstance(source, Energy) else "a Flow"
            raise DataError(
                f"ForceMatching expected no kT for what is dimensionless already, got kT={kT!r} "
                f"and {'log_prob' if energy is None else what}; remedy: kT once, "
                "where the potential enters: from_callable(function, event_shape, kT=...)"
            )
        self.kT = float(kT)
        stored = energy is None and log_prob is None
        self.target = (
            None if stored else Target("ForceMatching", energy, log_prob, differentiated=True)
        )
        self.reads = frozenset({"x", "context", "weight", *(["force"] if stored else [])})

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the mean squared error over rows and coordinates."""
        # Compiled programs cannot be differentiated twice, so this part of a step stays eager.
        compiling = torch.compiler.is_compiling()
        return (torch.compiler.disable(self._loss) if compiling else self._loss)(
            flow, batch, generator
        )

    def _loss(self, flow: Flow, batch: Batch, generator: torch.Generator | None) -> Loss:
        score = flow.score(batch["x"], batch.get("context"))
        force = self._force(flow, batch, score, generator)
        error = (force / self.kT - score).square().flatten(score.ndim - len(flow.event_shape))
        value = mean_over_rows(error.mean(-1), batch.get("weight"))
        return Loss(value, {"force_mse": value.detach()})

    def _force(
        self,
        flow: Flow,
        batch: Batch,
        score: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The forces of the rows, of the shape of the score."""
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
            "an energy with a finite value and slope at every row (no hard wall, and no root, "
            "logarithm or distance of zero there), or other rows"
        )
        for name, values in (("the force of the energy", force), ("the flow's own force", score)):
            bad = ~values.isfinite().flatten(values.ndim - len(flow.event_shape)).all(-1)
            if bool(bad.any()):
                return f"{name} is not finite at {int(bad.sum())} rows; remedy: {remedy}"
            remedy = "a flow whose log-density is smooth at these rows, or a lower lr"
        return None


def _stored(batch: Batch) -> Tensor:
    """The forces that came with the rows."""
    if "force" not in batch:
        raise DataError(
            f"ForceMatching expected the forces of the rows as 'force', got {sorted(batch)}; "
            "remedy: data={'x': x, 'force': force}, or ForceMatching(energy)"
        )
    x, force = batch["x"], batch["force"]
    if force.shape != x.shape:
        raise DataError(
            f"force expected the shape of x, {tuple(x.shape)}, got {tuple(force.shape)}; "
            "remedy: one force a coordinate, force.reshape(x.shape) if they are in its order"
        )
    return force
