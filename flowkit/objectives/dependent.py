"""Maximum likelihood of samples that are not independent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.dependence import RowCovariance
from flowkit.dependence.joint import check_flow, noise_and_log_det
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.noise import choose, drawing_from
from flowkit.numerics.types import Context, Generator
from flowkit.objectives.base import Batch, Loss, Objective, weighted_mean

_MODES = ("exact", "blocks", "pairs")


@register
class DependentLikelihood(Objective):
    r"""Negative joint log-density of dependent samples, per sample, in nats.

    .. math:: \frac1n \left[\tfrac{np}2 \log 2\pi + \tfrac p2 \log|C|
              + \tfrac12 \mathrm{tr}\, U^T C^{-1} U - \sum_i \log|\det J_f(x_i)| \right]

    of the noise U of all n samples, and the covariance C between them, whose correlation
    parameter is learned with the flow. Beside ``x`` a batch holds ``row``, the row of C of each
    sample.

    ``"exact"``
        Every step sees all samples: ``batch_size`` is their number. Gradients are exact; ``chunk``
        bounds the memory. If some whole blocks are held out, all that are left.
    ``"blocks"``
        Batches of whole blocks, which ``fit`` draws where the data name them as ``group``. The sum
        over the K blocks of a batch is scaled by B / (K n), with the B blocks and n samples to
        train on: an estimate without bias, in which pairs of relatives are never torn apart.
        ``fit`` gives that scale as ``weight``; without it B and n are those of the covariance.
    ``"pairs"``
        Batches of any b samples, by pairs: with :math:`P = C^{-1}`, an estimate without bias,

        .. math:: \tfrac p2 \log 2\pi + \tfrac p{2n} \log|C| + \frac1{2b} \sum_{i \in B} \Bigl[
                  P_{ii} |u_i|^2 + \tfrac{n-1}{b-1} \sum_{j \ne i} P_{ij}\, u_i \cdot u_j
                  \Bigr] - \frac1b \sum_{i \in B} \log|\det J_f(x_i)| ,

        but of a large variance where samples of a block seldom meet in a batch.

    In evaluation mode, as in validation, it is the joint negative log-density of a batch, per
    sample, if its samples have a ``row`` in C; without it they count as independent.

    Args:
        covariance: The covariance of the n training samples.
        mode: One of the above.
        chunk: Samples at a time in the exact mode.

    Raises:
        DataError: If an argument is unknown; from a call, if a batch lacks ``row``, is not made
            of all samples or of whole blocks where it has to, has rows twice or uneven weights, or
            the flow has another base than a standard normal.

    References:
        Kirchler, Lippert, Kloft 2023, arXiv 2209.14933.

    Example:
        >>> import torch
        >>> from flowkit import DependentLikelihood, coupling_flow, fit
        >>> from flowkit.dependence import EquicorrelatedBlocks
        >>> families = EquicorrelatedBlocks(torch.arange(60) // 3)
        >>> data = {"x": torch.randn(60, 2), "row": torch.arange(60)}
        >>> loss = DependentLikelihood(families)
        >>> history = fit(
        ...     coupling_flow(2, layers=2), data, loss, validation=None, batch_size=60, epochs=2,
        ...     progress=False,
        ... )
        >>> len(history.train)
        2
    """

    reads = frozenset({"x", "context", "weight", "row"})
    diverges_at_ties = True

    def __init__(
        self, covariance: RowCovariance, *, mode: str = "exact", chunk: int | None = None
    ) -> None:
        super().__init__()
        name = "DependentLikelihood"
        covariance = checks.instance(name, "covariance", covariance, RowCovariance)
        mode = checks.choice(name, "mode", mode, _MODES)
        if chunk is not None:
            chunk = checks.integer(name, "chunk", chunk, least=1)
        self.covariance, self.mode, self.chunk = covariance, mode, chunk

    @torch.no_grad()
    def start(self, batch: Batch, *, generator: Generator = None) -> Batch:
        r"""Return samples drawn by their weights in the mean of dependent ones, :math:`C^{-1} 1`.

        A large block says little about the location and scale of a table.
        """
        if "row" not in batch:
            return batch
        rows = self._rows(batch)
        ones = torch.ones(self.covariance.rows, 1).to(batch["x"])
        with drawing_from(generator):
            weight = self.covariance.solve(ones)[rows, 0].clamp(min=0).double()
        index = choose(weight, (torch.arange(len(rows)).to(weight) + 0.5) / len(rows))
        return {name: value[index] for name, value in batch.items()}

    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the loss of one batch."""
        # Log-determinants of structured covariances are estimates by random vectors.
        with drawing_from(generator):
            return self._loss(flow, batch)

    def _loss(self, flow: Flow, batch: Batch) -> Loss:
        check_flow(flow, "DependentLikelihood")
        x, context = batch["x"], batch.get("context")
        if not self.training and "row" not in batch:
            value = -weighted_mean(flow.log_prob(x, context), batch.get("weight"))
            return Loss(value, {"nll": value.detach()})
        rows = self._rows(batch)
        if not self.training:
            value = -self._together(flow, x, context, rows) / len(x)
        elif self.mode == "pairs":
            value = self._pairs(flow, batch, rows)
        else:
            blocks = self._whole_blocks(rows)
            scale = self._weight(batch) / len(x)
            if self.mode == "blocks" and "weight" not in batch:
                scale = blocks / self.covariance.rows
            value = -scale * self._together(flow, x, context, rows)
        return Loss(value, {"nll": value.detach()})

    def _rows(self, batch: Batch) -> Tensor:
        if "row" not in batch:
            raise DataError(
                "DependentLikelihood expected a batch with 'row', the row of each sample in the "
                "covariance; remedy: fit(flow, {'x': x, 'row': torch.arange(len(x))}, ...)"
            )
        rows = batch["row"].reshape(len(batch["x"])).long()
        self.covariance.check_rows(rows)
        return rows

    def _weight(self, batch: Batch) -> float | Tensor:
        """The weight that all samples share."""
        if "weight" not in batch:
            return 1.0
        weight = batch["weight"]
        if not torch.allclose(weight, weight[:1]):
            raise DataError(
                "DependentLikelihood expected samples of one weight, for a joint density weighs "
                f"none; got {float(weight.min()):g} to {float(weight.max()):g}; remedy: leave out "
                "'weight'"
            )
        return weight[0]

    def _whole_blocks(self, rows: Tensor) -> float:
        """How many times the blocks of the batch go into all, or an error if one is torn."""
        block, count = self.covariance.block, self.covariance.rows
        if len(rows) == count and (block is not None or self.mode == "exact"):
            return 1.0
        if block is not None:
            sizes = torch.bincount(block)
            here = torch.bincount(block[rows], minlength=len(sizes))
            if bool(((here == 0) | (here == sizes)).all()):
                return len(sizes) / int((here > 0).sum())
        if self.mode == "exact":
            remedy = f"batch_size={count} and validation=None, or validation samples of their own"
            raise DataError(
                f"DependentLikelihood in the exact mode expected all {count} samples at once, or "
                f"whole blocks of them, got {len(rows)}; remedy: {remedy}"
            )
        raise DataError(
            "DependentLikelihood by blocks expected whole blocks of a covariance that has some, "
            f"got {len(rows)} samples that are none; remedy: name the block of each as 'group' "
            "in the data, or use the exact mode"
        )

    def _together(self, flow: Flow, x: Tensor, context: Context, rows: Tensor) -> Tensor:
        """Joint log-density of a batch."""
        u, log_det = noise_and_log_det(flow, x, context=context, chunk=self.chunk)
        if len(rows) < self.covariance.rows:
            return self.covariance.log_prob(u, rows) + log_det
        return self.covariance.log_prob(torch.zeros_like(u).index_copy(0, rows, u)) + log_det

    def _pairs(self, flow: Flow, batch: Batch, rows: Tensor) -> Tensor:
        x, context = batch["x"], batch.get("context")
        n, (b, p) = self.covariance.rows, x.shape
        if "group" in batch:
            raise DataError(
                "DependentLikelihood by pairs expected batches of any samples, got whole groups; "
                "remedy: leave out 'group', or mode='blocks'"
            )
        self._weight(batch)
        if b < 2:
            raise DataError("DependentLikelihood by pairs expected batches of at least 2 samples")
        u, log_det = noise_and_log_det(flow, x, context=context)
        precision = self.covariance.precision(rows).to(u.dtype)
        products = precision * (u @ u.mT)
        own = products.diagonal().sum()
        pairs = products.sum() - own
        quadratic = own + (n - 1) / (b - 1) * pairs
        constant = 0.5 * p * (math.log(2 * math.pi) + self.covariance.log_det() / n)
        return constant + (0.5 * quadratic - log_det) / b
