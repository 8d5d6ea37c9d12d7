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
    x, context = domain(scale.unsqueeze(-1) * wide), _normal(ours.context_size)

    def both(their: Any, our: Transform, like: Tensor) -> Pairs:
        rows, given = x.to(like), context.to(like) if ours.context_size else None
        try:
            expected = their(rows.clone(), given)
        except InputOutsideDomain:
            # Splines without tails; the unit interval is the one domain that nflows has.
            rows = torch.sigmoid(rows)
            expected = their(rows.clone(), given)
        pairs = list(zip(our(rows, given), expected, strict=True))
        try:
            back, log_det = their.inverse(expected[0].clone(), given)
        except Exception:
            # Some layers of nflows have no inverse under this version of torch.
            return pairs
        # Where nflows itself does not find back, as beyond a clamp, there is nothing to compare.
        there = ((back - rows).abs() < 1e-3 * (1 + rows.abs())).all(-1)
        found = our.inverse(expected[0], given)
        return pairs + [(f[there], e[there]) for f, e in zip(found, (back, log_det), strict=True)]

    _compare(theirs, ours, like, both)


def check_base(theirs: Any, ours: Base, like: Tensor) -> None:
    """Compare the log-densities of a distribution and its conversion.

    Raises:
        ConversionError: If they differ.
    """
    z, context = _normal(*ours.event_shape), _normal(ours.context_size)

    def both(their: Any, our: Base, like: Tensor) -> Pairs:
        rows, given = z.to(like), context.to(like) if ours.context_size else None
        return [(our.log_prob(rows, given), their.log_prob(rows, given))]

    _compare(theirs, ours, like, both)


def _compare(
    theirs: Any, ours: Any, like: Tensor, both: Callable[[Any, Any, Tensor], Pairs]
) -> None:
    """Compare in float64 on copies, or in the dtype of ``like`` if nflows cannot."""
    name = type(theirs).__name__
    error: Exception | None = None
    for dtype in dict.fromkeys((torch.float64, like.dtype)):
        # A flow that still trains must not be started by a probe, nor draw its dropout.
        their, our = (deepcopy(part).to(dtype).eval() for part in (theirs, ours))
        try:
            pairs = both(their, our, like.to(dtype))
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
    same = (found == expected) | (found.isnan() & expected.isnan())
    gap = (found - expected).abs() / (1 + expected.abs())
    gap = torch.where(same, 0.0, torch.where(gap.isfinite(), gap, torch.inf))
    return float(gap.max()) if gap.numel() else 0.0
