"""Flow: a transform and a base, read as a probability density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkit.change_of_variables import ChangeOfVariables
from flowkit.config import register
from flowkit.distribution import FlowDistribution, flow_distribution
from flowkit.energies.target import Target
from flowkit.numerics.compiling import can_compile
from flowkit.numerics.types import Context, Generator, Mapped, Sizes
from flowkit.stochastic.paths import sample_paths
from flowkit.summary import as_html, as_table, as_text, layer_sizes
from flowkit.support import Support
from flowkit.transforms import MaskedAutoregressive
from flowkit.transforms.base import broadcast_context


@register
class Flow(ChangeOfVariables):
    r"""A density by change of variables: :math:`\log p(x) = \log p_Z(T(x)) + \log|\det T'(x)|`.

    Args:
        transform: Maps data to noise.
        base: The distribution of the noise.
        embedding: Module applied to the context before transform and base read it.

    Raises:
        ShapeError: If transform and base disagree about the event, the base has density where the
            transform maps no data, or the input does not fit.

    Attributes:
        initialized: Whether :meth:`initialize` has run; saved with the weights, so that a second
            ``fit`` goes on instead of starting from the data again.

    Example:
        >>> import torch
        >>> from flowkit import Flow
        >>> from flowkit.bases import StandardNormal
        >>> from flowkit.transforms import LULinear
        >>> flow = Flow(LULinear(2), StandardNormal(2))
        >>> flow.log_prob(torch.zeros(3, 2)).shape, flow.sample(4).shape
        (torch.Size([3]), torch.Size([4, 2]))
    """

    @property
    def support(self) -> Support:
        """Where the density is positive, in the flow's dtype: see :class:`Support`."""
        return Support(self)

    def distribution(self, context: Context = None) -> FlowDistribution:
        """A ``torch.distributions`` view, which Pyro accepts too; its batch is the context's."""
        return flow_distribution(self, context)

    @torch.no_grad()
    def sample_with_log_weight(
        self,
        shape: int | Sizes,
        energy: Callable[..., Tensor] | None = None,
        context: Context = None,
        generator: Generator = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Draw samples with their log importance weights for :math:`e^{-u(x)}`, no gradients.

        :math:`E[w] = \int e^{-u}`, and weighted means over samples are means over the target, for
        any flow: with stochastic layers, by the weights of paths. Without, the weight is
        :math:`e^{-u(x)} / p(x)`. :func:`flowkit.stochastic.paths.sample_paths` is the same with
        gradients, acceptance rates and resampling; :mod:`flowkit.statistics` makes estimates of
        weights.

        Args:
            shape: A number, or a shape.
            energy: The dimensionless energy u of the target; ``energy(x, context)`` if a context
                is given.
            context: ``(*b, C)``: each context gets ``shape`` samples.
            generator: Source of randomness.
            log_prob: The log-density of the target up to a constant, instead of ``energy``.

        Returns:
            ``(*shape, *b, *event)`` and ``(*shape, *b)``.

        Raises:
            DataError: If there is not exactly one of ``energy`` and ``log_prob``.
            NonFiniteEnergyError: If a layer starts where its energy is not finite.

        Example:
            >>> import torch
            >>> from flowkit import coupling_flow
            >>> from flowkit.toys import DoubleWell
            >>> x, log_weight = coupling_flow(2).sample_with_log_weight(5, DoubleWell())
            >>> x.shape, log_weight.shape
            (torch.Size([5, 2]), torch.Size([5]))
        """
        target = Target.of("sample_with_log_weight", energy, log_prob)
        paths = sample_paths(self, shape, target, context=context, generator=generator)
        return paths.x.contiguous(), paths.log_weight

    def reverse_log_weight(
        self,
        x: Tensor,
        energy: Callable[..., Tensor] | None = None,
        context: Context = None,
        generator: Generator = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        r"""Log weights of paths that end in given samples of the target, drawn backwards.

        The same :math:`\log w` as of :meth:`sample_with_log_weight`, on paths from x to noise:
        :math:`E[1 / w] = 1 / Z`, and :math:`E[\log w] \ge \log Z`, where paths from noise have
        :math:`E[\log w] \le \log Z`. Both together make Bennett's estimate
        (:func:`flowkit.statistics.log_partition`).

        Args:
            x: Samples of the target ``(*batch, *event)``.
            energy: Its dimensionless energy; ``energy(x, context)`` if a context is given.
            context: ``(*b, C)``.
            generator: Source of randomness.
            log_prob: The log-density of the target up to a constant, instead of ``energy``.

        Returns:
            ``(*batch,)``.

        Raises:
            DataError: If there is not exactly one of ``energy`` and ``log_prob``.
        """
        target = Target("reverse_log_weight", energy, log_prob)
        ndim = len(self.event_shape)
        read = context if self.needs_context else None
        if context is not None:
            x, context = broadcast_context(x, context, ndim)
        bound = self.log_prob_bound(x, read, generator=generator)
        return -target(self, x, context, generator) - bound

    _compiled_inverse: Callable[..., Mapped] | None = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the log-density and sampling in place, with the arguments of ``torch.compile``.

        The first call in each direction then takes seconds per layer, and again for every other
        dtype or number of dimensions; calls after that reach almost the speed of the bare
        networks. Sampling of autoregressive flows compiles the scalar map of a feature only (see
        :meth:`flowkit.transforms.MaskedAutoregressive.compile_inverse`). The results are the same
        to rounding. Copies and files of a flow are not compiled. Without a C++ compiler there is
        one warning, and nothing changes.

        Example:
            >>> from flowkit import coupling_flow
            >>> flow = coupling_flow(2)
            >>> flow.compile()
        """
        if can_compile(self.device):
            super().compile(*args, **kwargs)
            loops = [m for m in self.transform.modules() if isinstance(m, MaskedAutoregressive)]
            for layer in loops:
                layer.compile_inverse(*args, **kwargs)
            if not loops:
                self._compiled_inverse = torch.compile(self.transform.inverse, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_inverse": None}

    def _inverse(self, z: Tensor, context: Context, generator: Generator = None) -> Mapped:
        # Compiled programs cannot draw from a generator.
        if self._compiled_inverse is None or self.stochastic:
            return super()._inverse(z, context, generator)
        return self._compiled_inverse(z, context)

    def summary(self) -> str:
        """A table of the layers with their numbers of parameters, to print.

        Example:
            >>> from flowkit import Flow
            >>> from flowkit.bases import StandardNormal
            >>> from flowkit.transforms import LULinear
            >>> print(Flow(LULinear(2), StandardNormal(2)).summary())
            LULinear(features=2)               6
            StandardNormal                     0
            total parameters                   6
        """
        return as_table(self)

    _layer_sizes = layer_sizes
    __repr__ = as_text
    _repr_html_ = as_html
