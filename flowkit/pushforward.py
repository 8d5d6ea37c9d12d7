"""The base of a flow carried through its transform: shapes, contexts, regions and samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkit import checks
from flowkit.bases import Base
from flowkit.conditioners import StandardizeContext
from flowkit.density import Density
from flowkit.ends import may_leave, require_noise_everywhere
from flowkit.errors import ShapeError
from flowkit.numerics.roots import all_known
from flowkit.numerics.types import Context, Generator, Mapped, Sizes
from flowkit.shapes import as_shape, check_event, check_tensor
from flowkit.transforms import CircularShift, Rescale, Transform
from flowkit.transforms.base import broadcast_context
from flowkit.transforms.region import Region, region_of

# How often noise is moved whose x is rounded over an end; float64 takes 13 to reach half the way.
_MOVES = 24


class Pushforward(Density):
    r"""The distribution of :math:`x = T^{-1}(z)`, for noise z of a base and a transform T.

    Args:
        transform: Maps data to noise.
        base: The distribution of the noise.
        embedding: Module applied to the context before transform and base read it.

    Raises:
        ShapeError: If transform and base disagree about the event, or the base has density where
            the transform maps no data.
    """

    initialized: Tensor

    def __init__(
        self, transform: Transform, base: Base, *, embedding: nn.Module | None = None
    ) -> None:
        super().__init__()
        remedy = "Flow(transform, base), with Compose(*layers) for several layers"
        checks.instance("Flow", "transform", transform, Transform, remedy)
        checks.instance("Flow", "base", base, Base, "one of flowkit.bases")
        if embedding is not None:
            checks.instance("Flow", "embedding", embedding, nn.Module)
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
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._has_circles = any(
            isinstance(layer, (Rescale, CircularShift)) and any(layer.circular)
            for layer in transform.modules()
        )
        require_noise_everywhere(transform, base, self._like())

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
    def reparameterized(self) -> bool:
        """Whether samples of ``rsample`` carry gradients to every parameter."""
        return self.base.reparameterized and not self.stochastic

    def embed(self, context: Context) -> Context:
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

    def _embed_unless_unread(self, context: Context) -> Context:
        """The same where an energy reads the context, and the flow itself need not."""
        size = self.context_size
        if context is None:
            if self.needs_context:
                raise ShapeError(
                    f"this flow is conditional: expected context (..., {size or '*'}), got None; "
                    "remedy: pass context=..., one for all or one per sample"
                )
            return None
        check_tensor("context", context, self.dtype, self.device)
        if size is not None and not context.is_floating_point() and not context.is_complex():
            context = context.to(self.dtype or torch.get_default_dtype())
        if not self.needs_context:
            return context
        if size:
            check_event("Flow", "context", context, (size,))
        return context if self.embedding is None else self.embedding(context)

    def context_batch(self, context: Context) -> tuple[int, ...]:
        """Check a context ``(*b, C)``, and return its batch ``b``; empty without one."""
        with torch.no_grad():
            embedded = self.embed(context)
        return () if embedded is None else tuple(embedded.shape[:-1])

    def _prepare(
        self, x: Tensor, context: Context, name: str = "x"
    ) -> tuple[Tensor, Tensor | None]:
        """Check both inputs, embed the context, and bring them to one batch shape."""
        check_tensor(name, x, self.dtype, self.device)
        shape = self.base.event_shape if name == "z" else self.event_shape
        check_event("Flow", name, x, shape)
        context = self.embed(context)
        return (x, context) if context is None else broadcast_context(x, context, len(shape))

    @property
    def starts(self) -> tuple[str, ...]:
        """Names of the ways to start from data, if there are several; ``fit`` tries each."""
        return tuple(getattr(self.transform, "starts", ()))

    def initialize(self, x: Context, context: Context = None, start: str | None = None) -> None:
        """Start the embedding from ``context`` and the transform from ``x``; ``fit`` calls it.

        Args:
            x: ``(samples, *event)``; ``None`` if the transform shall not start from data.
            context: ``(samples, C)``.
            start: One of :attr:`starts`; the first by default.
        """
        if context is not None and hasattr(self.embedding, "initialize"):
            self.embedding.initialize(context)  # type: ignore[union-attr, operator]
        if x is not None:
            x, embedded = self._prepare(x, context)
            self.transform.initialize(x, embedded, *(() if start is None else (start,)))
        self.initialized.fill_(value=True)

    def region(self, context: Context = None) -> Region | None:
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

    def _log_density(
        self, to_noise: Callable[..., Mapped], x: Tensor, context: Context, *draws: Generator
    ) -> Tensor:
        """The log-density of prepared inputs, by a map to noise with a log-determinant.

        At infinity the density is zero, but layers and networks would make NaN of it. A circle
        has no such point: NaN.
        """
        infinite, safe = x.isinf(), x.new_zeros(())
        if self._has_circles:
            circles = self.transform.circular_columns(infinite.new_zeros(self.base.event_shape))
            safe = torch.where(circles, math.nan, safe)
        z, log_det = to_noise(torch.where(infinite, safe, x), context, *draws)
        log_prob = self.base.log_prob(z, context) + log_det
        # NaN stays NaN.
        outside = infinite.any(tuple(range(-len(self.event_shape), 0)))
        return torch.where(outside, log_prob.detach() - math.inf, log_prob)

    def _log_prob(self, x: Tensor, context: Context) -> Tensor:
        """The log-density of prepared inputs."""
        return self._log_density(self.transform, x, context)

    def _inverse(self, z: Tensor, context: Context, generator: Generator = None) -> Mapped:
        """From noise to data."""
        return self.transform.inverse(z, context, generator)

    def _draw(
        self, shape: int | Sizes, context: Context, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, base log-density of their noise, and the inverse's log-determinant."""
        size = as_shape(shape)
        if generator is not None:
            remedy = "torch.Generator().manual_seed(0)"
            checks.instance("Flow", "generator", generator, torch.Generator, remedy)
        context = self.embed(context)
        noise = self.base.sample(size, context, generator)
        z, x, log_det = self._inside(noise, context, generator)
        largest = torch.finfo(x.dtype).max
        x = torch.nan_to_num(x, nan=math.nan, posinf=largest, neginf=-largest)
        return x.contiguous(), self.base.log_prob(z, context), log_det

    def _inside(
        self, z: Tensor, context: Context, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From noise to data that have a density: noise, data and log-determinant.

        Noise so far out that its x is rounded to where there is no density moves towards the
        middle of the base, by four roundings, each time by 16 times as much and then by half of
        the way, until the x that it gives is inside.
        """
        x, log_det = self._inverse(z, context, generator)
        leaves = may_leave(self.transform, self.base)
        region = region_of(self.base.support, self.base.event_shape, z) if leaves else None
        if region is None:
            return z, x, log_det
        middle, rounding = region.interior(), 4 * torch.finfo(z.dtype).eps
        with torch.no_grad():
            possible = self.base.log_prob(z, context) > -math.inf
        for i in range(_MOVES):
            share = min(0.5, rounding * 16**i)
            with torch.no_grad():
                outside = possible & (self._log_prob(x.detach(), context) == -math.inf)
            if all_known(~outside):
                break
            step = torch.where(
                outside.reshape(*outside.shape, *(1,) * middle.ndim), share * (middle - z), 0.0
            )
            z = z + step.detach()
            x, log_det = self._inverse(z, context)
        return z, x, log_det

    def rsample(
        self, shape: int | Sizes = (), context: Context = None, generator: Generator = None
    ) -> Tensor:
        """Draw samples that carry gradients to the parameters. See :meth:`sample`."""
        return self._draw(shape, context, generator)[0]

    def to_noise(self, x: Tensor, context: Context = None, generator: Generator = None) -> Tensor:
        """Map data ``(*batch, *event)`` to noise; the generator is for stochastic layers."""
        x, context = self._prepare(x, context)
        return self.transform(x, context, generator)[0].contiguous()

    def to_data(self, z: Tensor, context: Context = None, generator: Generator = None) -> Tensor:
        """Map noise ``(*batch, *event)`` to data; the generator is for stochastic layers.

        Like a sample, x stays where there is density, if there is density at z.
        """
        z, context = self._prepare(z, context, "z")
        return self._inside(z, context, generator)[1].contiguous()
