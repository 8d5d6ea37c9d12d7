"""Joint densities and samples of dependent observations, by one flow for all of them."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flowkit import checks
from flowkit.bases import StandardNormal
from flowkit.dependence.base import RowCovariance
from flowkit.errors import ArgumentError, DataError, ShapeError
from flowkit.flow import Flow
from flowkit.numerics.noise import may_draw, redirected, repeatable


def check_flow(flow: Flow, what: str) -> None:
    """A deterministic flow of vectors on a standard normal, or an error."""
    vectors = len(flow.event_shape) == 1 and isinstance(flow.base, StandardNormal)
    if flow.stochastic or not vectors:
        raise DataError(
            f"{what} expected a flow of vectors without stochastic layers on a StandardNormal "
            f"base, got {type(flow.base).__name__} and events {flow.event_shape}; observations "
            "are dependent through normal noise"
        )


def noise_and_log_det(
    flow: Flow, x: Tensor, *, context: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the noise ``(n, p)`` of all observations, and the sum of log-determinants.

    With ``chunk`` only so many observations at a time store what their gradient needs: the
    backward pass computes it once more, so that a gradient over all fits into any memory.
    """

    def transform(rows: Tensor, theirs: Tensor | None) -> tuple[Tensor, Tensor]:
        z, log_det = flow.transform(rows, flow.embed(theirs))
        return z, log_det.sum()

    if chunk is not None:
        chunk = checks.integer("noise_and_log_det", "chunk", chunk, least=1)
    if chunk is None or chunk >= len(x):
        return transform(x, context)
    contexts: Any = repeat(None)
    if context is not None:
        contexts = context.expand(len(x), context.shape[-1]).split(chunk)
    parts = [
        checkpoint(
            transform,
            *rows,
            use_reentrant=False,
            preserve_rng_state=may_draw(flow) and not redirected(),
            context_fn=repeatable,
        )
        for rows in zip(x.split(chunk), contexts, strict=False)
    ]
    z, log_dets = zip(*parts, strict=True)
    return torch.cat(z), torch.stack(log_dets).sum()


def joint_log_prob(
    flow: Flow,
    x: Tensor,
    covariance: RowCovariance,
    *,
    context: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    r"""Joint log-density of dependent observations, a scalar in nats.

    With the noise :math:`U = (f(x_1), \dots, f(x_n))^T` and the covariance C across them,

    .. math:: \log p(x_1, \dots, x_n) = \log N(U; 0, C) + \sum_i \log|\det J_f(x_i)| .

    The density of one observation by itself stays ``flow.log_prob``.

    Args:
        flow: A flow of vectors on a standard normal base.
        x: ``(n, p)``.
        covariance: The covariance of the n observations.
        context: ``(n, C)``.
        chunk: Observations at a time; see :func:`noise_and_log_det`.

    Raises:
        DataError: If the flow has another base, or a stochastic layer.
        ShapeError: If x has another number of observations than the covariance.

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
    u, log_det = noise_and_log_det(flow, x, context=context, chunk=chunk)
    return covariance.log_prob(u) + log_det


class UpdateCovariance:
    r"""A callback of ``fit`` that sets the parameters of a covariance by maximum likelihood.

    At every so many records of the fit the parameters of the covariance, such as :math:`\rho` or
    :math:`\lambda`, are set to the maximum of the exact likelihood of all observations at the
    current flow; alternating with the steps of the flow this is coordinate ascent. Give the
    covariance ``learn=False``, so that gradient steps leave them alone.

    Args:
        covariance: The covariance of the objective.
        x: ``(n, p)``, all observations in the order of the covariance.
        context: ``(n, C)``.
        every: Number of records between updates: of epochs where ``fit`` is given ``epochs``, and
            of 25 steps or so where it is not.

    Raises:
        ArgumentError: If ``every`` is no integer above 0.
        DataError: If observations are missing; from a call, as :func:`joint_log_prob`.

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
        self,
        covariance: RowCovariance,
        x: Tensor,
        *,
        context: Tensor | None = None,
        every: int = 1,
    ) -> None:
        owner = "UpdateCovariance"
        self.every = checks.integer(owner, "every", every, least=1)
        self.covariance = checks.instance(owner, "covariance", covariance, RowCovariance)
        self.x = torch.as_tensor(x).detach()
        if len(self.x) != covariance.rows:
            raise DataError(
                f"UpdateCovariance expected all {covariance.rows} observations of the covariance, "
                f"in its order, got {len(self.x)}"
            )
        self.context = None if context is None else torch.as_tensor(context).detach()

    def __call__(self, flow: Flow, history: Any) -> None:
        """Update the covariance at every so many records."""
        check_flow(flow, "UpdateCovariance")
        if len(history.steps) % self.every == 0:
            training, like = flow.training, flow.initialized
            x = self.x.to(like.device, flow.dtype or self.x.dtype)
            context = None if self.context is None else self.context.to(x)
            with torch.no_grad():
                u = flow.eval().to_noise(x, context)
            flow.train(training)
            self.covariance.fit_parameters(u)


@torch.no_grad()
def sample_jointly(
    flow: Flow,
    covariance: RowCovariance,
    *,
    context: Tensor | None = None,
    x: Tensor | None = None,
    observed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample dependent observations jointly, or, given some of them, all others.

    Args:
        flow: A flow of vectors on a standard normal base.
        covariance: The covariance of all n observations.
        context: ``(n, C)``, of all.
        x: ``(m, p)``, the given ones; none by default.
        observed: ``(m,)``, their indices.
        generator: Random generator.

    Returns:
        ``(n, p)``, with x at the given indices.

    Raises:
        ArgumentError: If only one of x and their indices is given.
        DataError, ShapeError: As :func:`joint_log_prob`.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> from flowkit.dependence import EquicorrelatedBlocks, sample_jointly
        >>> flow, family = coupling_flow(2, layers=2), EquicorrelatedBlocks([0, 0, 0], rho=0.8)
        >>> sample_jointly(flow, family).shape
        torch.Size([3, 2])
        >>> sample_jointly(flow, family, x=torch.ones(1, 2), observed=[1])[1].tolist()
        [1.0, 1.0]
    """
    check_flow(flow, "sample_jointly")
    if (x is None) != (observed is None):
        raise ArgumentError("sample_jointly expected both x and observed, its indices, or neither")
    if x is None:
        u = covariance.sample(flow.event_shape[0], generator)
        return flow.to_data(u.to(flow.dtype or u.dtype), context)
    x = checks.instance("sample_jointly", "x", x, Tensor, "torch.as_tensor(x)")
    rows = torch.as_tensor(observed, dtype=torch.long, device=x.device)
    covariance.check_rows(rows)
    if context is not None and context.shape[:-1] != (covariance.rows,):
        got = tuple(context.shape)
        raise ShapeError(f"sample_jointly expected context ({covariance.rows}, C), got {got}")
    theirs = None if context is None else context[rows]
    u = covariance.sample_given(flow.to_noise(x, theirs), rows, generator)
    return flow.to_data(u.to(x.dtype), context).index_copy(0, rows, x)
