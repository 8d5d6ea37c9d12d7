"""Flow: a transform and a base, read as a probability density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowkit.bases import Base
from flowkit.checks import as_shape, batch_text, last_axis_remedy
from flowkit.conditioners import StandardizeContext
from flowkit.config import register
from flowkit.energies.target import Target
from flowkit.errors import ShapeError, StochasticFlowError
from flowkit.numerics.compiling import can_compile
from flowkit.numerics.gradients import leaf, ordinary, require_ordinary
from flowkit.numerics.roots import look
from flowkit.numerics.rounding import clamp_through
from flowkit.statistics.estimates import Estimate, check_number, mean_of
from flowkit.stochastic.paths import layers_in_order, sample_paths
from flowkit.support import Support
from flowkit.transforms import CircularShift, MaskedAutoregressive, Permutation, Rescale, Transform
from flowkit.transforms.base import broadcast_context
from flowkit.transforms.region import Region, is_whole_line, region_of

if TYPE_CHECKING:
    from flowkit.distribution import FlowDistribution

# How often noise is moved whose x is rounded over an end; float64 takes 13 to reach half the way.
_MOVES = 24


@register
class Flow(nn.Module):
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

    initialized: Tensor

    def __init__(
        self, transform: Transform, base: Base, embedding: nn.Module | None = None
    ) -> None:
        super().__init__()
        if len(transform.noise_shape) != len(base.event_shape) or any(
            want is not None and want != got
            for want, got in zip(transform.noise_shape, base.event_shape, strict=True)
        ):
            raise ShapeError(
                f"{transform.label} maps to events {transform.noise_shape}, but the base "
                f"{type(base).__name__} has events {base.event_shape}"
            )
        keeps = transform.event_shape == transform.noise_shape
        if not keeps and None in transform.event_shape:
            raise ShapeError(
                f"{transform.label} changes the shape of events {transform.event_shape}; remedy: "
                "give its first layer all sizes"
            )
        #: Shape of one event.
        self.event_shape: tuple[int, ...] = (
            base.event_shape if keeps else transform.event_shape  # type: ignore[assignment]
        )
        self.transform = transform
        self.base = base
        self.embedding = embedding
        self._compiled_inverse: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.register_buffer("initialized", torch.tensor(False))
        self._has_circles = any(
            isinstance(layer, (Rescale, CircularShift)) and any(layer.circular)
            for layer in transform.modules()
        )
        self._expect_noise_everywhere()

    def _expect_noise_everywhere(self) -> None:
        """Refuse a transform that maps no data to a part of where the base has density.

        That part would have no samples, and the density would not integrate to one.
        """
        like = self._like()
        way = list(layers_in_order(self.transform, inverse=True))
        if like.is_meta or not any(t.restricts and not turned for t, turned in way):
            return
        region, fixed = region_of(self.base.support, self.base.event_shape, like), True
        for layer, turned in way:
            if region is None:
                return
            if layer.restricts and not turned:
                shape = tuple(region.lower.shape[region.lower.ndim - layer.event_ndim :])
                ends = region_of(layer.domain, shape, like)
                if ends is not None and _goes_beyond(region, ends, fixed):
                    raise ShapeError(
                        f"{layer.label}, inverted, maps data only to noise between "
                        f"{ends.lower.tolist()} and {ends.upper.tolist()}, but noise of the base "
                        f"{type(self.base).__name__} goes on beyond; remedy: a base between these "
                        "ends, such as Uniform, or the other direction of the layer (.inv)"
                    )
            with torch.no_grad():
                region = layer.map_region(region, inverse=turned)
            fixed = fixed and not layer.state_dict()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the log-density and sampling in place, with the arguments of ``torch.compile``.

        The first call in each direction then takes seconds a layer, and again for every other
        dtype or number of dimensions; calls after that reach almost the speed of the bare
        networks. Sampling of autoregressive flows compiles the scalar map of a feature only (see
        :meth:`flowkit.transforms.MaskedAutoregressive.compile_inverse`). The results are the same
        to rounding. Copies and files of a flow are not
        compiled. Without a C++ compiler there is one warning, and nothing changes.

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

    def _inverse(self, z: Tensor, context: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        # Compiled programs cannot draw from a generator.
        compiled = None if kwargs else self._compiled_inverse
        return (compiled or self.transform.inverse)(z, context, **kwargs)

    @property
    def needs_context(self) -> bool:
        """Whether a context must be given."""
        return self.transform.needs_context or self.base.context_size > 0

    @property
    def context_size(self) -> int | None:
        """Number of context features to give; ``None`` if an embedding decides."""
        if self.embedding is not None and not isinstance(self.embedding, StandardizeContext):
            return None
        return max(self.transform.context_size, self.base.context_size)

    @property
    def stochastic(self) -> bool:
        """Whether a layer is stochastic, so that no exact density exists."""
        return self.transform.stochastic

    @property
    def support(self) -> Support:
        """Where the density is positive, in the flow's dtype: see :class:`Support`."""
        return Support(self)

    def region(self, context: Tensor | None = None) -> Region | None:
        """The box that is the support, ``None`` if it is none: what :attr:`support` declares.

        Args:
            context: ``(*b, C)``, for ends that depend on it; without one, those are not known.
        """
        like = self._like()
        region = region_of(self.base.support, self.base.event_shape, like)
        if region is None:
            return None
        if context is not None:
            context = self.embed(context)
        with torch.no_grad():
            return self.transform.map_region(region, context)

    @torch.no_grad()
    def in_support(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Whether the density is positive: where ``log_prob`` is finite, ``(*batch,)``.

        With a stochastic layer there is no ``log_prob``: the box of :meth:`region` tells, and if
        that is not known, every finite x counts.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``, where the support depends on it.

        Raises:
            ShapeError: If the support depends on a context and there is none.
        """
        x = x.to(self._like())
        if self.stochastic:
            region = self.region(context)
            dims = tuple(range(-len(self.event_shape), 0))
            inside = x.isfinite() if region is None else (x >= region.lower) & (x <= region.upper)
            return (inside & x.isfinite()).all(dims)
        if context is None and self.needs_context:
            if self.region() is None:
                raise ShapeError(
                    "the support of this flow depends on its context; remedy: "
                    "flow.distribution(context).support, or flow.in_support(x, context)"
                )
            # Any context tells, then.
            embedded = x.new_zeros(max(self.transform.context_size, self.base.context_size))
            x, embedded = broadcast_context(x, embedded, len(self.event_shape))
        else:
            x, embedded = self._prepare(x, context)  # type: ignore[assignment]
        return self._log_prob(x, embedded).isfinite()

    def _like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the flow."""
        dtype = self.dtype or torch.get_default_dtype()
        return torch.empty(0, dtype=dtype, device=self.device)

    def _finite(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` with numbers in place of infinities, and the events that had any.

        There the density is zero, but layers and networks would make NaN of an infinity. A
        circle has no such point: NaN.
        """
        infinite = x.isinf()
        dims = tuple(range(-len(self.event_shape), 0))
        safe = x.new_zeros(())
        if self._has_circles:
            circles = self.transform.circular_columns(infinite.new_zeros(self.base.event_shape))
            safe = torch.where(circles, math.nan, safe)
        return torch.where(infinite, safe, x), infinite.any(dims)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The log-density of prepared inputs."""
        x, infinite = self._finite(x)
        z, log_det = self.transform(x, context)
        log_prob = self.base.log_prob(z, context) + log_det
        # NaN stays NaN.
        return torch.where(infinite, log_prob.detach() - math.inf, log_prob)

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating-point dtype that the flow computes in; ``None`` if it holds no tensor."""
        for tensor in self.parameters():
            return tensor.dtype
        return next((b.dtype for b in self.buffers() if b.is_floating_point()), None)

    @property
    def device(self) -> torch.device:
        """Where the flow is."""
        return next(self.parameters(), self.initialized).device

    def _check_tensor(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor):
            raise ShapeError(
                f"Flow expected {name} as a torch.Tensor, got {type(x).__name__}; remedy: "
                f"torch.as_tensor({name}, dtype={self.dtype})"
            )
        dtype = self.dtype
        number = x.is_floating_point() or x.is_complex()
        if dtype is not None and number and x.dtype != dtype:
            raise ShapeError(
                f"this flow computes in {dtype}, but {name} is {x.dtype}; remedy: "
                f"{name}.to({dtype}), or flow.to({x.dtype})"
            )
        device = self.device
        if x.device != device:
            raise ShapeError(
                f"this flow is on {device}, but {name} is on {x.device}; remedy: "
                f"{name}.to({str(device)!r}), or flow.to({str(x.device)!r})"
            )

    def embed(self, context: Tensor | None) -> Tensor | None:
        """Check the context ``(*b, C)`` and embed it, as transform and base read it.

        Integers and booleans are read as numbers in the dtype of the flow, unless an embedding
        other than :class:`flowkit.conditioners.StandardizeContext` takes them, as ``nn.Embedding``
        does.

        Raises:
            ShapeError: If the context does not fit, a conditional flow gets none, or an
                unconditional flow gets one.
        """
        if context is not None and not self.needs_context:
            raise ShapeError(
                "this flow is unconditional: it would ignore the context; remedy: leave the "
                "context out, or build a flow that reads it, for example "
                "coupling_flow(features, context=...)"
            )
        return self._embed_unless_unread(context)

    def _embed_unless_unread(self, context: Tensor | None) -> Tensor | None:
        """The same where an energy reads the context, and the flow itself need not."""
        size = self.context_size
        if context is None:
            if self.needs_context:
                raise ShapeError(
                    f"this flow is conditional: expected context (..., {size or '*'}), got None"
                )
            return None
        self._check_tensor(context, "context")
        if size is not None and not context.is_floating_point() and not context.is_complex():
            context = context.to(self.dtype or torch.get_default_dtype())
        if not self.needs_context:
            return context
        if size and (context.ndim < 1 or context.shape[-1] != size):
            raise ShapeError(
                f"Flow expected context (..., {size}), got {tuple(context.shape)}"
                + last_axis_remedy("context", context, (size,))
            )
        return context if self.embedding is None else self.embedding(context)

    def _prepare(
        self, x: Tensor, context: Tensor | None, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]:
        """Check both inputs, embed the context, and bring them to one batch shape."""
        self._check_tensor(x, name)
        shape = self.base.event_shape if name == "z" else self.event_shape
        ndim = len(shape)
        if x.ndim < ndim or tuple(x.shape[x.ndim - ndim :]) != shape:
            raise ShapeError(
                f"Flow expected {name} {batch_text(shape)}, got {tuple(x.shape)}"
                + last_axis_remedy(name, x, shape)
            )
        context = self.embed(context)
        return (x, context) if context is None else broadcast_context(x, context, ndim)

    def _require_exact(self, what: str) -> None:
        if self.stochastic:
            raise StochasticFlowError(
                f"{what} does not exist for a flow with a stochastic layer; use "
                "log_prob_bound, a lower bound of the log-density"
            )

    def initialize(self, x: Tensor | None, context: Tensor | None = None) -> None:
        """Start the embedding from ``context`` and the transform from ``x``; ``fit`` calls it."""
        if context is not None and hasattr(self.embedding, "initialize"):
            self.embedding.initialize(context)  # type: ignore[union-attr, operator]
        if x is not None:
            x, embedded = self._prepare(x, context)
            self.transform.initialize(x, embedded)
        self.initialized.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``log_prob(x, context)``, so that compile, DDP and hooks see one entry point."""
        self._require_exact("log_prob")
        x, context = self._prepare(x, context)
        return self._log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Log-density in nats, in the units of the data.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``, broadcast against the batch.

        Returns:
            ``(*batch,)``, the broadcast batch: ``-inf`` outside of the :attr:`support` and at
            infinite x, NaN where x is NaN (or infinite on a circle, which has no such point).

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

    def log_prob_bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        n: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""A stochastic lower bound of the log-density, from ``n`` paths per row.

        :math:`\log \frac1n \sum_j p_Z(z_j)\, \tilde q_j(z_j \to x) / q_j(x \to z_j)`. Its
        expectation is at most the log-density, grows with ``n``, and is equal to it without
        stochastic layers.

        Args:
            x: ``(*batch, *event)``.
            context: ``(*b, C)``.
            n: Number of paths.
            generator: Source of randomness.

        References:
            Burda et al. 2016, arXiv 1509.00519, for the average over paths.
        """
        if n < 1:
            raise ShapeError(f"log_prob_bound expected n >= 1 paths, got {n}")
        x, context = self._prepare(x, context)
        x, infinite = self._finite(x)
        x = x.expand(n, *x.shape)
        kwargs = {"generator": generator} if self.stochastic else {}
        z, log_ratio = self.transform(x, context, **kwargs)
        terms = self.base.log_prob(z, context) + log_ratio
        bound = torch.logsumexp(terms, 0) - math.log(n)
        return torch.where(infinite, bound.detach() - math.inf, bound)

    def _draw(
        self,
        shape: int | tuple[int, ...],
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, base log-density of their noise, and the inverse's log-determinant."""
        size = as_shape(shape)
        context = self.embed(context)
        z = self.base.sample(size, context, generator)
        kwargs = {"generator": generator} if self.stochastic else {}
        x, log_det = self._inverse(z, context, **kwargs)
        if self._may_leave():
            z, x, log_det = self._move_inside(z, x, log_det, context)
        largest = torch.finfo(x.dtype).max
        x = torch.nan_to_num(x, nan=math.nan, posinf=largest, neginf=-largest)
        return x.contiguous(), self.base.log_prob(z, context), log_det

    def _may_leave(self) -> bool:
        """Whether rounding in a layer may lead samples over an end that a later one sets."""
        if self.stochastic:
            return False
        layers = list(layers_in_order(self.transform))
        # Before the last layer with open ends nothing but the order of numbers may change.
        ends = [
            i
            for i, (layer, inverted) in enumerate(layers)
            if (not is_whole_line(layer.codomain) if inverted else layer.restricts)
        ]
        before = layers[: max(ends, default=0)]
        if any(not (t.reshapes or isinstance(t, Permutation)) for t, _ in before):
            return True
        bounded = not is_whole_line(self.base.support)
        return bounded and any(not layer.keeps_intervals for layer, _ in layers)

    def _move_inside(
        self, z: Tensor, x: Tensor, log_det: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise so far out that its x is rounded to where there is no density: less far out.

        It moves towards the middle of the base, by four roundings, each time by 16 times as much
        and then by half of the way, until the x that it gives is inside.
        """
        region = region_of(self.base.support, self.base.event_shape, z)
        if region is None:
            return z, x, log_det
        middle, rounding = region.interior(), 4 * torch.finfo(z.dtype).eps
        with torch.no_grad():
            possible = self.base.log_prob(z, context) > -math.inf
        for i in range(_MOVES):
            share = min(0.5, rounding * 16**i)
            with torch.no_grad():
                outside = possible & (self._log_prob(x.detach(), context) == -math.inf)
            if look(~outside):
                break
            step = torch.where(
                outside.reshape(*outside.shape, *(1,) * middle.ndim), share * (middle - z), 0.0
            )
            z = z + step.detach()
            x, log_det = self._inverse(z, context)
        return z, x, log_det

    def rsample(
        self,
        shape: int | tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples that carry gradients to the parameters. See :meth:`sample`."""
        return self._draw(shape, context, generator)[0]

    @torch.no_grad()
    def sample(
        self,
        shape: int | tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
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
        return self._draw(shape, context, generator)[0]

    def sample_and_log_prob(
        self,
        shape: int | tuple[int, ...] = (),
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw samples with their log-density in one pass; both carry gradients."""
        self._require_exact("log_prob")
        x, log_base, log_det = self._draw(shape, context, generator)
        return x, log_base - log_det

    def entropy(
        self,
        n: int = 4096,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
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
            ShapeError: If n is not an integer of 2 or more.

        Example:
            >>> import torch
            >>> from flowkit import coupling_flow
            >>> value, error = coupling_flow(2).entropy(generator=torch.Generator().manual_seed(0))
            >>> bool((value - 2.8379).abs() < 4 * error), bool(error < 0.02)
            (True, True)
        """
        check_number("entropy", n)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.base.reparameterized):
            _, log_prob = self.sample_and_log_prob(n, context, generator)
        return mean_of(-log_prob)

    @torch.no_grad()
    def sample_with_log_weight(
        self,
        shape: int | tuple[int, ...],
        energy: Callable[..., Tensor] | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Draw samples with their log importance weights for :math:`e^{-u(x)}`, no gradients.

        :math:`E[w] = \int e^{-u}`, and weighted means over samples are means over the target, for
        any flow: with stochastic layers, by the weights of paths. Without, the weight is
        :math:`e^{-u(x)} / p(x)`. :func:`flowkit.stochastic.paths.sample_paths` is the same with gradients,
        acceptance rates and resampling; :mod:`flowkit.statistics` makes estimates of weights.

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
        paths = sample_paths(self, shape, target, context, generator)
        return paths.x.contiguous(), paths.log_weight

    def reverse_log_weight(
        self,
        x: Tensor,
        energy: Callable[..., Tensor] | None = None,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        log_prob: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        r"""Log weights of paths that end in given samples of the target, drawn backwards.

        The same :math:`\log w` as of :meth:`sample_with_log_weight`, on paths from x to noise:
        :math:`E[1 / w] = 1 / Z`, and :math:`E[\log w] \ge \log Z`, where paths from noise have
        :math:`E[\log w] \le \log Z`. Both together make a Bennett estimate
        (:func:`flowkit.statistics.bennett_acceptance_ratio`).

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

    def to_noise(
        self,
        x: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Map data ``(*batch, *event)`` to noise; the generator is for stochastic layers."""
        x, context = self._prepare(x, context)
        kwargs = {"generator": generator} if self.stochastic else {}
        return self.transform(x, context, **kwargs)[0].contiguous()

    def to_data(
        self,
        z: Tensor,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Map noise ``(*batch, *event)`` to data; the generator is for stochastic layers.

        Like a sample, x is kept where there is density, if there is density at z.
        """
        z, context = self._prepare(z, context, "z")
        kwargs = {"generator": generator} if self.stochastic else {}
        x, log_det = self._inverse(z, context, **kwargs)
        if self._may_leave():
            _, x, _ = self._move_inside(z, x, log_det, context)
        return x.contiguous()

    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Dimensionless energy: :math:`E(x) = -\log p(x) - \log Z`, with :meth:`log_normalizer`.

        Log-determinants of layers with a constant Jacobian are left out, and never computed.
        """
        self._require_exact("energy")
        return self._energy(*self._prepare(x, context))

    def _energy(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The energy of prepared inputs."""
        x, infinite = self._finite(x)
        z, log_det = self.transform.unnormalized(x, context)
        energy = -self.base.log_prob(z, context) - log_det
        return torch.where(infinite, energy.detach() + math.inf, energy)

    def score(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The gradient :math:`\nabla_x \log p(x)`, ``(*broadcast batch, *event)``.

        It carries a graph where gradients are enabled, so it can be differentiated again, with
        respect to ``x`` and to the parameters; under ``torch.no_grad()`` and
        ``torch.inference_mode()`` it does not. Where the density is zero there is no score: it is
        NaN there.
        """
        self._require_exact("score")
        require_ordinary(self)
        create_graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x, context = self._prepare(ordinary(x), ordinary(context))
            if not x.requires_grad:
                x = leaf(x)
            energy = self._energy(x, context)
            (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=create_graph)
        outside = (energy.detach() == math.inf).reshape(
            *energy.shape, *(1,) * len(self.event_shape)
        )
        return torch.where(outside, torch.full_like(gradient, math.nan), -gradient)

    def log_normalizer(self, context: Tensor | None = None) -> Tensor:
        r"""The exact :math:`\log Z` of :math:`p = e^{-E} / Z`, from the constant log-determinants.

        Returns:
            ``(*b,)``, the batch of the context.
        """
        self._require_exact("log_normalizer")
        embedded = self.embed(context)
        batch = () if embedded is None else embedded.shape[:-1]
        x = self._inner_point(batch, embedded)
        return self.transform.unnormalized(x, embedded)[1] - self.transform(x, embedded)[1]

    def _inner_point(self, batch: tuple[int, ...], context: Tensor | None) -> Tensor:
        """A point with density ``(*batch, *event)``: what the middle of the base is mapped to."""
        like = self._like()
        shape = self.base.event_shape
        region = region_of(self.base.support, shape, like)
        middle = like.new_zeros(shape) if region is None else region.interior()
        if not self.transform.restricts and self.event_shape == shape:
            return middle.expand(*batch, *shape)
        return self.transform.inverse(middle.expand(*batch, *shape), context)[0]

    def _require_scalar(self) -> None:
        self._require_exact("the distribution function")
        if self.event_shape != (1,):
            raise ShapeError(
                f"distribution functions exist for scalar events; this flow has {self.event_shape}"
            )

    def _tail(self, x: Tensor, context: Tensor | None, upper: bool) -> Tensor:
        """Log-probability of one side of ``x``, which is the other side of a decreasing map."""
        self._require_scalar()
        x, context = self._prepare(x, context)
        infinite = x.isinf().squeeze(-1)
        safe = torch.where(x.isinf(), torch.zeros_like(x), x)
        z, log_det = self.transform(safe, context)
        above, below = self.base.log_survival(z, context), self.base.log_cdf(z, context)
        increasing = torch.as_tensor(self.transform.orientation() > 0, device=z.device)
        first, second = (above, below) if upper else (below, above)
        value = torch.where(increasing, first, second).squeeze(-1)
        # Layers are no maps outside of their domain: there only the side counts.
        outside, before = infinite, x.squeeze(-1) < 0
        if self.transform.restricts:
            inner = self._inner_point(x.shape[:-1], context).squeeze(-1)
            before = torch.where(infinite, before, x.squeeze(-1) < inner)
            outside = outside | (log_det == -math.inf)
        whole = before if upper else ~before
        return torch.where(outside, torch.where(whole, 0.0, -math.inf).to(value), value)

    def log_survival(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""``log P(X > x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        0 below the support and ``-inf`` above it; NaN where x is NaN.
        """
        return self._tail(x, context, upper=True)

    def log_cdf(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""``log P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``.

        ``-inf`` below the support and 0 above it; NaN where x is NaN.
        """
        return self._tail(x, context, upper=False)

    def cdf(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""``P(X <= x)`` of a scalar event; ``x (*batch, 1) -> (*batch,)``."""
        return self.log_cdf(x, context).exp()

    def survival(self, x: Tensor, context: Tensor | None = None) -> Tensor:
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

    def quantile(self, q: Tensor, context: Tensor | None = None) -> Tensor:
        r"""The ``x`` with ``P(X <= x) = q`` of a scalar event; ``q (*batch,) -> (*batch, 1)``.

        0 and 1 give the ends of the support, which may be infinite; a ``q`` outside [0, 1], or
        NaN, gives NaN.
        """
        self._require_scalar()
        self._check_tensor(q, "q")
        given = context
        q, context = self._prepare(q.unsqueeze(-1), context)
        inner = (q > 0) & (q < 1)
        safe = torch.where(inner, q, torch.full_like(q, 0.5))
        increasing = torch.as_tensor(self.transform.orientation() > 0, device=q.device)
        z = torch.where(increasing, self.base.icdf(safe, context), self.base.isf(safe, context))
        # An end of the base may be where a layer ends, to which rounding shall not lead.
        z = self._within_base(z)
        x = self.transform.inverse(z, context)[0]
        region = self.region(given)
        if region is None:
            return torch.where(inner, x, torch.full_like(x, math.nan))
        # Rounding shall not lead out of the support.
        x = clamp_through(x, region.lower, region.upper)
        ends = torch.where(q == 0, region.lower, torch.where(q == 1, region.upper, math.nan))
        return torch.where(inner, x, ends)

    def _within_base(self, z: Tensor) -> Tensor:
        """Noise, kept strictly between the ends of the base."""
        if is_whole_line(self.base.support):
            return z
        region = region_of(self.base.support, self.base.event_shape, z)
        if region is None:
            return z
        least = torch.nextafter(region.lower, region.upper)
        return clamp_through(z, least, torch.nextafter(region.upper, region.lower))

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """A ``torch.distributions`` view, which Pyro accepts too; its batch is the context's."""
        from flowkit.distribution import flow_distribution

        return flow_distribution(self, context)

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
        layers = [self.embedding] if self.embedding is not None else []
        inner = getattr(self.transform, "transforms", [self.transform])
        rows = []
        for module in [*layers, *inner, self.base]:
            name = module.label if isinstance(module, Transform) else type(module).__name__
            scalar = getattr(module, "scalar", None)
            name += f" of {type(scalar).__name__}" if scalar is not None else ""
            rows.append((name, sum(p.numel() for p in module.parameters())))
        rows.append(("total parameters", sum(p.numel() for p in self.parameters())))
        width = max(28, *(len(name) for name, _ in rows))
        return "\n".join(f"{name:<{width}}{count:>8,}" for name, count in rows)


def _goes_beyond(noise: Region, ends: Region, fixed: bool) -> bool:
    """Whether noise has density beyond the ends of a layer, by more than rounding.

    Finite ends count only if they are fixed: else they may meet once the layers between have
    started from data or are trained.
    """
    slack = 16 * torch.finfo(ends.lower.dtype).eps
    room = [slack * end.abs().clamp(min=1.0) for end in ends]
    below = (noise.lower < ends.lower - room[0]) & (fixed | noise.lower.isinf())
    above = (noise.upper > ends.upper + room[1]) & (fixed | noise.upper.isinf())
    return bool((below | above).any())
