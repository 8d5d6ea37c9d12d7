"""Density: what flows and their mixtures have in common, so that either can be used for the other.

Whatever only scores and samples (files, views, estimators, potentials) takes a :class:`Density`;
what needs a map to noise (objectives, paths, dependent observations) takes a flow.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.errors import StochasticFlowError
from flowkit.numerics.gradients import require_ordinary, value_and_gradient
from flowkit.numerics.types import Context, Generator, Sizes
from flowkit.statistics.estimates import Estimate, mean_of
from flowkit.transforms.region import Region


class Density(nn.Module):
    """A normalized density of events, given a context or none.

    A subclass defines the properties, ``forward`` (the log-density), ``rsample``,
    ``rsample_and_log_prob``, ``in_support``, ``region``, ``_prepare`` and ``_energy``, and for
    scalar events ``log_cdf``, ``log_survival`` and ``quantile``.

    Attributes:
        event_shape: Shape of one event.
    """

    event_shape: tuple[int, ...]

    @property
    def needs_context(self) -> bool:
        """Whether a context must be given."""
        raise NotImplementedError

    @property
    def context_size(self) -> int | None:
        """Number of context features to give; ``None`` if an embedding decides."""
        raise NotImplementedError

    @property
    def stochastic(self) -> bool:
        """Whether a layer is stochastic, so that no exact density exists."""
        raise NotImplementedError

    @property
    def reparameterized(self) -> bool:
        """Whether samples of ``rsample`` carry gradients to every parameter."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating-point dtype that is computed in; ``None`` if no tensor is held."""
        for tensor in self.parameters():
            return tensor.dtype
        return next((b.dtype for b in self.buffers() if b.is_floating_point()), None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def _like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the density."""
        dtype = self.dtype or torch.get_default_dtype()
        return torch.empty(0, dtype=dtype, device=self.device)

    def _require_exact(self, what: str) -> None:
        if self.stochastic:
            raise StochasticFlowError(
                f"{what} does not exist for a flow with a stochastic layer; use "
                "log_prob_bound, a lower bound of the log-density"
            )

    def context_batch(self, context: Context) -> tuple[int, ...]:
        """Check a context ``(*b, C)``, and return its batch ``b``; empty without one."""
        raise NotImplementedError

    def _prepare(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Check both inputs, and give x the broadcast batch; the context as ``_energy`` reads."""
        raise NotImplementedError

    def _energy(self, x: Tensor, context: Context) -> Tensor:
        """The energy of prepared inputs."""
        raise NotImplementedError

    def region(self, context: Context = None) -> Region | None:
        """The box that is the support; ``None`` if it is none."""
        raise NotImplementedError

    def in_support(self, x: Tensor, context: Context = None) -> Tensor:
        """Whether the density is positive, ``(*batch,)``."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, context: Context = None) -> Tensor:
        r"""Log-density in nats, in the units of the data.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``, broadcast against the batch.

        Returns:
            ``(*batch,)``, the broadcast batch: ``-inf`` outside of the support and at infinite x,
            NaN where x is NaN (or infinite on a circle, which has no such point).

        Raises:
            ShapeError: If x or the context does not fit, or is of another dtype or device.
            StochasticFlowError: If a layer is stochastic.

        Example:
            >>> import torch
            >>> from flowkit import elementwise_flow
            >>> positive = elementwise_flow(1, lower=0)
            >>> positive.log_prob(torch.tensor([[-1.0], [1.0]])).isfinite()
            tensor([False,  True])
        """
        return self(x, context)

    def rsample(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw samples that carry gradients to the parameters. See :meth:`sample`."""
        raise NotImplementedError

    def rsample_and_log_prob(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-density in one pass; both carry gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw samples, without gradients.

        Args:
            shape: A number, or a shape.
            context: ``(*b, C)``: each context gets ``shape`` samples.
            generator: Source of randomness; the global one by default.

        Returns:
            ``(*shape, *b, *event)``.

        Raises:
            NotInvertibleError: If the transform has no inverse.
        """
        return self.rsample(shape, context, generator)

    @torch.no_grad()
    def sample_and_log_prob(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-density in one pass, without gradients.

        The arguments of :meth:`sample`; returns ``(*shape, *b, *event)`` and ``(*shape, *b)``.
        """
        return self.rsample_and_log_prob(shape, context, generator)

    def entropy(
        self, n: int = 4096, context: Context = None, generator: Generator = None
    ) -> Estimate:
        r"""Estimate the differential entropy :math:`-E[\log p(x)]` in nats from ``n`` samples.

        It carries gradients where these are enabled and the base can be reparameterised (all but
        :class:`flowkit.bases.NormalMixture` can), and none otherwise.

        Args:
            n: Number of samples per context.
            context: ``(*b, C)``.
            generator: Source of randomness.

        Returns:
            The estimate ``(*b,)`` and its standard error ``(*b,)``.

        Raises:
            StochasticFlowError: If a layer is stochastic.
            ArgumentError: If n is not an integer of 2 or more.

        Example:
            >>> import torch
            >>> from flowkit import coupling_flow
            >>> value, error = coupling_flow(2).entropy(generator=torch.Generator().manual_seed(0))
            >>> bool((value - 2.8379).abs() < 4 * error), bool(error < 0.02)
            (True, True)
        """
        n = checks.integer("entropy", "n", n, least=2, remedy="for example n=10_000")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.reparameterized):
            _, log_prob = self.rsample_and_log_prob(n, context, generator)
        return mean_of(-log_prob)

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        r"""Dimensionless energy: :math:`E(x) = -\log p(x) - \log Z`, with :meth:`log_normalizer`.

        Log-determinants of layers with a constant Jacobian are left out, and never computed.
        """
        self._require_exact("energy")
        return self._energy(*self._prepare(x, context))

    def log_normalizer(self, context: Context = None) -> Tensor:
        r"""The exact :math:`\log Z` of :math:`p = e^{-E} / Z`, ``(*b,)``."""
        raise NotImplementedError

    def score(self, x: Tensor, context: Context = None) -> Tensor:
        r"""The gradient :math:`\nabla_x \log p(x)`, ``(*broadcast batch, *event)``.

        It carries a graph where gradients are enabled, so it can be differentiated again, with
        respect to ``x`` and to the parameters; under ``torch.no_grad()`` and
        ``torch.inference_mode()`` it does not. Where the density is zero there is no score: it is
        NaN there.
        """
        self._require_exact("score")
        require_ordinary(self)
        energy, gradient = value_and_gradient(self._energy, *self._prepare(x, context))
        outside = (energy == math.inf).reshape(*energy.shape, *(1,) * len(self.event_shape))
        return torch.where(outside, math.nan, -gradient)

    def log_survival(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X > x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        0 below the support and ``-inf`` above it; NaN where x is NaN.
        """
        raise NotImplementedError

    def log_cdf(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``log P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        ``-inf`` below the support and 0 above it; NaN where x is NaN.
        """
        raise NotImplementedError

    def cdf(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``."""
        return self.log_cdf(x, context).exp()

    def survival(self, x: Tensor, context: Context = None) -> Tensor:
        r"""``P(X > x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        1 below the support, 0 above it: the survival curve of a waiting time.

        Example:
            >>> import torch
            >>> from flowkit import elementwise_flow
            >>> waiting = elementwise_flow(1, lower=0)
            >>> waiting.survival(torch.tensor([[-1.0], [0.0], [1.0]])).detach()
            tensor([1.0000, 1.0000, 0.5000])
        """
        return self.log_survival(x, context).exp()

    def quantile(self, q: Tensor, context: Context = None) -> Tensor:
        r"""The ``x`` with ``P(X <= x) = q`` of a scalar event; ``q (*batch,) -> (*batch, 1)``.

        0 and 1 give the ends of the support, which may be infinite; a ``q`` outside [0, 1], or
        NaN, gives NaN.
        """
        raise NotImplementedError

    def summary(self) -> str:
        """A table of all parts with their numbers of parameters, to print."""
        raise NotImplementedError

    def _layer_sizes(self) -> list[tuple[str, int]]:
        """Names and numbers of parameters of all parts, in the order of :meth:`summary`."""
        raise NotImplementedError


def check_density(owner: str, flow: Any, remedy: str = "") -> Density:
    """Check that something is a flow, or a mixture of flows.

    Raises:
        ArgumentError: If it is neither.
    """
    if not isinstance(flow, Density):
        raise checks.fail(owner, "flow", "a Flow or a FlowMixture", flow, remedy)
    return flow
