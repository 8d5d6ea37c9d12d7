"""Joint densities and samples of rows that are dependent, with a flow for each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowkit.bases import StandardNormal
from flowkit.dependence.base import RowCovariance
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.noise import may_draw, redirected, repeatable


def check_flow(flow: Flow, what: str) -> None:
    """A deterministic flow of vectors on a standard normal, or an error."""
    vectors = len(flow.event_shape) == 1 and isinstance(flow.base, StandardNormal)
    if flow.stochastic or not vectors:
        raise DataError(
            f"{what} expected a flow of vectors without stochastic layers on a StandardNormal "
            f"base, got {type(flow.base).__name__} and events {flow.event_shape}; rows are "
            "dependent through normal noise"
        )


def noise_and_log_det(
    flow: Flow, x: Tensor, context: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Noise ``(n, p)`` of all rows, and the sum of log-determinants.

    With ``chunk`` only so many rows at a time keep what their gradient needs: the way back goes
    forward once more, so that a gradient over all rows fits into any memory.
    """

    def transform(rows: Tensor, theirs: Tensor | None) -> tuple[Tensor, Tensor]:
        z, log_det = flow.transform(rows, flow.embed(theirs))
        return z, log_det.sum()

    if chunk is None or chunk >= len(x):
        return transform(x, context)
    starts = range(0, len(x), chunk)
    if context is not None:
        context = context.expand(len(x), context.shape[-1])
    parts = [
        checkpoint(
            transform,
            x[i : i + chunk],
            None if context is None else context[i : i + chunk],
            use_reentrant=False,
            preserve_rng_state=may_draw(flow) and not redirected(),
            context_fn=repeatable,
        )
        for i in starts
    ]
    return torch.cat([z for z, _ in parts]), torch.stack([d for _, d in parts]).sum()


def joint_log_prob(
    flow: Flow,
    x: Tensor,
    structure: RowCovariance,
    context: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Log-density of dependent rows together, a scalar in nats.

    With the noise :math:`U = (f(x_1), \dots, f(x_n))^T` and the covariance C of its rows,

    .. math:: \log p(x_1, \dots, x_n) = \log N(U; 0, C) + \sum_i \log|\det J_f(x_i)| .

    The density of one row by itself stays ``flow.log_prob``.

    Args:
        flow: A flow of vectors on a standard normal base.
        x: ``(n, p)``.
        structure: The covariance of the n rows.
        context: ``(n, C)``.
        chunk: Rows at a time; see :func:`noise_and_log_det`.

    Raises:
        DataError: If the flow has another base, or a stochastic layer.
        ShapeError: If x has another number of rows than the covariance.

    References:
        Kirchler, Lippert, Kloft 2023, Training Normalizing Flows from Dependent Data,
        arXiv 2209.14933.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> from flowkit.dependence import EquicorrelatedBlocks, joint_log_prob
        >>> flow, x = coupling_flow(2, layers=2), torch.randn(6, 2)
        >>> together = joint_log_prob(flow, x, EquicorrelatedBlocks([0, 0, 0, 1, 1, 2]))
        >>> together.shape
        torch.Size([])
    """
    check_flow(flow, "joint_log_prob")
    u, log_det = noise_and_log_det(flow, x, context, chunk)
    return structure.log_prob(u) + log_det


class UpdateCovariance:
    r"""A callback of ``fit`` that sets the strength of a dependence to the likeliest one.

    After every so many epochs the parameters of the covariance, such as :math:`\rho` or
    :math:`\lambda`, go to the maximum of the exact likelihood of all rows at the flow of the
    moment; in turns with the steps of the flow that is coordinate ascent. Nothing that depends on
    them is kept. Give the structure ``learn=False``, so that gradient steps leave them alone.

    Args:
        structure: The covariance of the objective.
        x: ``(n, p)``, all rows in the order of the covariance.
        context: ``(n, C)``.
        every: Epochs between.

    Raises:
        DataError: If ``every`` is no whole number above 0 or rows are missing; from a call, as
            :func:`joint_log_prob`.

    Example:
        >>> import torch
        >>> from flowkit import DependentLikelihood, coupling_flow, fit
        >>> from flowkit.dependence import EquicorrelatedBlocks, UpdateCovariance
        >>> truth = EquicorrelatedBlocks(torch.arange(90) // 3, rho=0.6)
        >>> x = truth.sample(2, torch.Generator().manual_seed(0)).detach()
        >>> families = EquicorrelatedBlocks(torch.arange(90) // 3, rho=0.1, learn=False)
        >>> history = fit(
        ...     coupling_flow(2, layers=1), {"x": x, "row": torch.arange(90)},
        ...     DependentLikelihood(families), validation=None, batch_size=90, epochs=3,
        ...     progress=False, callbacks=[UpdateCovariance(families, x)],
        ... )
        >>> 0.4 < families.rho.item() < 0.8
        True
    """

    def __init__(
        self, structure: RowCovariance, x: Tensor, context: Tensor | None = None, every: int = 1
    ) -> None:
        if type(every) is not int or every < 1:
            raise DataError(f"UpdateCovariance expected every >= 1, got {every!r}")
        self.x = torch.as_tensor(x).detach()
        if len(self.x) != structure.rows:
            raise DataError(
                f"UpdateCovariance expected all {structure.rows} rows of the covariance, in its "
                f"order, got {len(self.x)}"
            )
        self.context = None if context is None else torch.as_tensor(context).detach()
        self.structure, self.every = structure, every

    def __call__(self, flow: Flow, history: Any) -> None:
        """Set the strength, if it is its turn."""
        check_flow(flow, "UpdateCovariance")
        if history.epochs[-1] % self.every == 0:
            training, like = flow.training, flow.initialized
            x = self.x.to(like.device, flow.dtype or self.x.dtype)
            context = None if self.context is None else self.context.to(x)
            with torch.no_grad():
                u = flow.eval().to_noise(x, context)
            flow.train(training)
            self.structure.fit_strength(u)


@torch.no_grad()
def sample_jointly(
    flow: Flow,
    structure: RowCovariance,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw dependent rows ``(n, p)``.

    Args and errors are those of :func:`joint_log_prob`.

    Example:
        >>> from flowkit import coupling_flow
        >>> from flowkit.dependence import EquicorrelatedBlocks, sample_jointly
        >>> sample_jointly(coupling_flow(2, layers=2), EquicorrelatedBlocks([0, 0, 1])).shape
        torch.Size([3, 2])
    """
    check_flow(flow, "sample_jointly")
    u = structure.sample(flow.event_shape[0], generator)
    return flow.to_data(u.to(flow.dtype or u.dtype), context)


@torch.no_grad()
def sample_relatives(
    flow: Flow,
    x: Tensor,
    observed: Tensor,
    structure: RowCovariance,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw all rows given some of them.

    Args:
        flow: A flow of vectors on a standard normal base.
        x: ``(m, p)``, the observed rows.
        observed: ``(m,)``, their places.
        structure: The covariance of all n rows.
        context: ``(n, C)``, of all rows.
        generator: Random generator.

    Returns:
        ``(n, p)``, with the observed rows in their places.

    Raises:
        DataError, ShapeError: As :func:`joint_log_prob`.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> from flowkit.dependence import EquicorrelatedBlocks, sample_relatives
        >>> family = EquicorrelatedBlocks([0, 0, 0], rho=0.8)
        >>> x = sample_relatives(coupling_flow(2, layers=2), torch.ones(1, 2), [1], family)
        >>> x[1].tolist()
        [1.0, 1.0]
    """
    check_flow(flow, "sample_relatives")
    places = torch.as_tensor(observed, dtype=torch.long, device=x.device)
    theirs = None if context is None else context[places]
    u = structure.sample_given(flow.to_noise(x, theirs), places, generator)
    drawn = flow.to_data(u.to(x.dtype), context)
    return drawn.index_copy(0, places, x)
