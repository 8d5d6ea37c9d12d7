"""Force matching: the gradient of a flow's log-density against forces, stored or of an energy."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from flowkit.energies.base import one_number_each
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.noise import drawing_from
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

    Args:
        energy: ``energy(x) -> (*batch,)``, in the unit of ``kT``; ``energy(x, context)`` for
            batches with a context. ``None`` for stored forces.
        kT: Temperature times Boltzmann's constant, in the unit of energy of the forces.

    Raises:
        DataError: If the energy is no function, or returns something else than one number a row
            with a gradient to ``x``; if ``kT`` is not a positive finite number; if there is
            neither ``force`` nor an energy, or the forces have another shape than ``x``.
        StochasticFlowError: If a layer of the flow is stochastic.

    References:
        Köhler, Krämer, Noé 2021, Smooth Normalizing Flows, arXiv 2110.00351.

    Example:
        >>> import torch
        >>> from flowkit import ForceMatching, elementwise_flow
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> spring = {"x": x, "force": -3.0 * x}
        >>> round(ForceMatching()(elementwise_flow(1), spring).value.item(), 4)
        2.0
        >>> stored = ForceMatching(kT=3.0)(elementwise_flow(1), spring)
        >>> own = ForceMatching(lambda x: 1.5 * x.square().sum(-1), kT=3.0)
        >>> torch.allclose(own(elementwise_flow(1), {"x": x}).value, stored.value)
        True
    """

    def __init__(self, energy: Callable[..., Tensor] | None = None, kT: float = 1.0) -> None:
        super().__init__()
        if energy is not None and not callable(energy):
            raise DataError(
                f"ForceMatching expected energy as a function of x, got {energy!r}; remedy: for "
                "example lambda x: 0.5 * x.square().sum(-1), or None for forces in the data"
            )
        number = isinstance(kT, Real) and not isinstance(kT, bool)
        if not number or not 0 < float(kT) < float("inf"):
            raise DataError(
                f"ForceMatching expected kT as a finite number > 0, got {kT!r}; remedy: for "
                "example 2.494 for kJ/mol at 300 K"
            )
        self.energy = energy
        self.kT = float(kT)

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
        x, context = batch["x"], batch.get("context")
        score = flow.score(x, context)
        if self.energy is not None:
            force = self._force(x.expand_as(score), context, len(flow.event_shape), generator)
        else:
            force = self._stored(batch)
        error = (force / self.kT - score).square().flatten(score.ndim - len(flow.event_shape))
        value = mean_over_rows(error.mean(-1), batch.get("weight"))
        return Loss(value, {"force_mse": value.detach()})

    def _stored(self, batch: Batch) -> Tensor:
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

    def _force(
        self,
        x: Tensor,
        context: Tensor | None,
        event_ndim: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The negative gradient of the energy, also where gradients are switched off."""
        with torch.enable_grad(), drawing_from(generator):
            x = x.detach().requires_grad_()
            energy = self.energy(x) if context is None else self.energy(x, context)  # type: ignore[misc]
            energy = one_number_each(energy, x, event_ndim)
            gradient = None
            if energy.requires_grad:
                (gradient,) = torch.autograd.grad(energy.sum(), x, allow_unused=True)
        if gradient is None:
            raise DataError(
                "the energy carries no gradient to x, so there is no force; remedy: compute it "
                "from x with torch, without torch.no_grad() or .detach(), or give stored forces "
                "as 'force'"
            )
        return -gradient
