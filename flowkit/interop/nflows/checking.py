"""The check of a conversion: both libraries compute the same numbers for the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from nflows.transforms.base import InputOutsideDomain
from torch import Tensor
from torch.distributions import transform_to

from flowkit.bases import Base
from flowkit.errors import ConversionError
from flowkit.transforms import Transform

_SAMPLES = 24
# Largest differences, of numbers relative to 1 + their size. Rounding in float64 stays far below;
# in float32, where nflows refuses to compute in float64, sums of many layers do.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}

Pairs = list[tuple[Any, Any]]


def _normal(*sizes: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(_SAMPLES, *sizes, generator=draw, dtype=torch.float64)


def check_transform(theirs: Any, ours: Transform, features: int, like: Tensor) -> None:
    """Compare a transform and its conversion, in evaluation mode, in both directions.

    Args:
        theirs: The nflows transform.
        ours: The flowkit transform.
        features: Number of features.
        like: Gives dtype and device.

    Raises:
        ConversionError: If values or log-determinants differ.
    """
    wide, domain = _normal(features), transform_to(ours.domain)
    # Some samples lie in the tails, unless the domain ends: near its ends nflows clamps.
    bounded = not torch.equal(domain(wide), wide)
    scale = torch.linspace(0.3, 1.0 if bounded else 3.0, _SAMPLES, dtype=torch.float64)
    _compare(theirs, ours, like, domain(scale.unsqueeze(-1) * wide), _both_directions)


def _both_directions(theirs: Any, ours: Transform, x: Tensor, context: Tensor | None) -> Pairs:
    try:
        expected = theirs(x.clone(), context)
    except InputOutsideDomain:
        # Splines without tails; the unit interval is the one domain that nflows has.
        x = torch.sigmoid(x)
        expected = theirs(x.clone(), context)
    pairs = list(zip(ours(x, context), expected, strict=True))
    try:
        back, log_det = theirs.inverse(expected[0].clone(), context)
    except Exception:
        # Some layers of nflows have no inverse under this version of torch.
        return pairs
    # Where nflows itself does not find back, as beyond a clamp, there is nothing to compare.
    there = ((back - x).abs() < 1e-3 * (1 + x.abs())).all(-1)
    found = ours.inverse(expected[0], context)
    return pairs + [(f[there], e[there]) for f, e in zip(found, (back, log_det), strict=True)]


def check_base(theirs: Any, ours: Base, like: Tensor) -> None:
    """Compare the log-densities of a distribution and its conversion.

    Raises:
        ConversionError: If they differ.
    """

    def both(theirs: Any, ours: Base, z: Tensor, context: Tensor | None) -> Pairs:
        return [(ours.log_prob(z, context), theirs.log_prob(z, context))]

    _compare(theirs, ours, like, _normal(*ours.event_shape), both)


def _compare(
    theirs: Any,
    ours: Any,
    like: Tensor,
    x: Tensor,
    both: Callable[[Any, Any, Tensor, Tensor | None], Pairs],
) -> None:
    """Compare in float64 on copies, or in the dtype of ``like`` if nflows cannot."""
    name = type(theirs).__name__
    error: Exception | None = None
    for dtype in dict.fromkeys((torch.float64, like.dtype)):
        # A flow that still trains must not be started by a probe, nor draw its dropout.
        their, our = (deepcopy(part).to(dtype).eval() for part in (theirs, ours))
        given = _normal(ours.context_size).to(like.device, dtype) if ours.context_size else None
        try:
            pairs = both(their, our, x.to(like.device, dtype), given)
        except Exception as caught:
            error = caught
            continue
        worst = max((_difference(found, expected) for found, expected in pairs), default=0.0)
        if not worst <= _TOLERANCE.get(dtype, 1e-1):
            raise ConversionError(
                f"nflows' {name} computes other numbers than its conversion, by up to "
                f"{worst:.2g} relative: something in it (an attribute, a hook or a method that "
                "was overridden) is not read; remedy: write it as a flowkit Transform (forward "
                "and inverse, as in nflows) to put between the others in a Compose"
            )
        return
    raise ConversionError(
        f"the conversion of nflows' {name} could not be checked, since a probe ended in "
        f"{type(error).__name__}: {error}; remedy: call it once on a batch of your own, and "
        "correct what that reports"
    ) from error


def _difference(found: Tensor, expected: Any) -> float:
    """The largest difference relative to 1 + the size; equal infinities and NaN are none."""
    expected = torch.as_tensor(expected).to(found).expand_as(found)
    gap = (found - expected).abs() / (1 + expected.abs())
    gap = torch.where(torch.isclose(found, expected, 0, 0, equal_nan=True), 0.0, gap)
    return float(gap.nan_to_num(torch.inf).max()) if gap.numel() else 0.0
