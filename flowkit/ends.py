"""The ends of supports: whether noise, rounding or layers lead over them."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit.bases import Base
from flowkit.errors import ShapeError
from flowkit.numerics.rounding import clamp_through
from flowkit.transforms import Transform
from flowkit.transforms.compose import layers_in_order
from flowkit.transforms.region import Region, is_whole_line, region_of


def require_noise_everywhere(transform: Transform, base: Base, like: Tensor) -> None:
    """Refuse a transform that maps no data to a part of where the base has density.

    That part would have no samples, and the density would not integrate to one.

    Raises:
        ShapeError: If there is such a part.
    """
    way = list(layers_in_order(transform, inverse=True))
    if like.is_meta or not any(t.restricts and not inverted for t, inverted in way):
        return
    region, fixed = region_of(base.support, base.event_shape, like), True
    for layer, inverted in way:
        if region is None:
            return
        if layer.restricts and not inverted:
            shape = tuple(region.lower.shape[region.lower.ndim - layer.event_ndim :])
            ends = region_of(layer.domain, shape, like)
            if ends is not None and _goes_beyond(region, ends, fixed=fixed):
                raise ShapeError(
                    f"{layer.label}, inverted, maps data only to noise between "
                    f"{ends.lower.tolist()} and {ends.upper.tolist()}, but noise of the base "
                    f"{type(base).__name__} goes on beyond; remedy: a base between these "
                    "ends, such as Uniform, or the other direction of the layer (.inv)"
                )
        with torch.no_grad():
            region = layer.map_region(region, inverse=inverted)
        fixed = fixed and not layer.state_dict()


def may_leave(transform: Transform, base: Base) -> bool:
    """Whether rounding in a layer may lead samples over an end that a later one sets."""
    if transform.stochastic:
        return False
    layers = list(layers_in_order(transform))
    # Before the last layer with open ends nothing but the order of numbers may change.
    last = 0
    for i, (layer, inverted) in enumerate(layers):
        if not is_whole_line(layer.codomain) if inverted else layer.restricts:
            last = i
    if any(not t.rearranges for t, _ in layers[:last]):
        return True
    bounded = not is_whole_line(base.support)
    return bounded and any(not layer.keeps_intervals for layer, _ in layers)


def within(base: Base, z: Tensor) -> Tensor:
    """Clamp noise strictly between the ends of a base."""
    region = region_of(base.support, base.event_shape, z)
    if region is None:
        return z
    least = torch.nextafter(region.lower, region.upper)
    return clamp_through(z, least, torch.nextafter(region.upper, region.lower))


def _goes_beyond(noise: Region, ends: Region, *, fixed: bool) -> bool:
    """Whether noise has density beyond the ends of a layer, by more than rounding.

    Finite ends count only if they are fixed: else they may meet once the layers between have
    started from data or are trained.
    """
    rounding = 16 * torch.finfo(ends.lower.dtype).eps
    slack = [rounding * end.abs().clamp(min=1.0) for end in ends]
    below = (noise.lower < ends.lower - slack[0]) & (fixed | noise.lower.isinf())
    above = (noise.upper > ends.upper + slack[1]) & (fixed | noise.upper.isinf())
    return bool((below | above).any())
