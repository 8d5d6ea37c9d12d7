"""Monotone splines that map single features to a normal, with normal or power-law tails."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowkit.numerics.types import Mapped
from flowkit.scalar.spline import forward_in_bin, inverse_in_bin


class Margins(NamedTuple):
    """One spline per row; what follows the last knot of a row repeats it.

    Attributes:
        x: Knots in the data ``(R, K)``, increasing.
        z: Where they are mapped to, likewise.
        slope: Slopes there, positive.
        number: Number of knots ``(R,)``; 0 for the identity.
        shape: Shapes of the lower and the upper tail ``(R, 2)``: 0 for that of a normal, else
            two divided by the tail index.
    """

    x: Tensor
    z: Tensor
    slope: Tensor
    number: Tensor
    shape: Tensor


def to_normal(margins: Margins, x: Tensor, row: Tensor) -> Mapped:
    """Map data to noise.

    Args:
        margins: The splines.
        x: Numbers of any shape.
        row: The spline of each, an integer tensor that broadcasts to the shape of ``x``.

    Returns:
        ``z`` and ``log dz/dx``, both of the shape of ``x``.
    """
    known = (margins.number > 0)[row]
    low, high = ((knots[row]) for knots in (margins.x[:, 0], margins.x[:, -1]))
    below, above = x < low, x > high
    inside = torch.where(below, low, torch.where(above, high, x))
    start, end = _bin(margins, margins.x, inside, row)
    width, height = end[0] - start[0], end[1] - start[1]
    diagonal = height / width
    eta, slope = forward_in_bin(
        (inside - start[0]) / width, start[2] / diagonal, end[2] / diagonal
    )
    z, log_slope = start[1] + height * eta, (diagonal * slope).log()
    sign, knot, at, steep, shape = _end(margins, below, row)
    scaled = torch.where(below | above, sign * (x - knot) * steep, torch.zeros_like(x))
    beyond, change = tail(scaled, at, shape)
    z = torch.where(below | above, sign * beyond, z)
    log_slope = torch.where(below | above, steep.log() + change, log_slope)
    return torch.where(known, z, x), torch.where(known, log_slope, torch.zeros_like(x))


def from_normal(margins: Margins, z: Tensor, row: Tensor) -> Mapped:
    """Map noise to data; the second number is ``log dz/dx`` at the result."""
    known = (margins.number > 0)[row]
    low, high = ((knots[row]) for knots in (margins.z[:, 0], margins.z[:, -1]))
    below, above = z < low, z > high
    inside = torch.where(below, low, torch.where(above, high, z))
    start, end = _bin(margins, margins.z, inside, row)
    width, height = end[0] - start[0], end[1] - start[1]
    diagonal = height / width
    first, last = start[2] / diagonal, end[2] / diagonal
    theta = inverse_in_bin((inside - start[1]) / height, first, last)
    x = start[0] + width * theta
    log_slope = (diagonal * forward_in_bin(theta, first, last)[1]).log()
    sign, knot, at, steep, shape = _end(margins, below, row)
    scaled, change = _tail_inverse(torch.where(below | above, sign * z, at), at, shape)
    x = torch.where(below | above, knot + sign * scaled / steep, x)
    log_slope = torch.where(below | above, steep.log() + change, log_slope)
    return torch.where(known, x, z), torch.where(known, log_slope, torch.zeros_like(z))


def tail(t: Tensor, at: Tensor, shape: Tensor) -> Mapped:
    r"""Continue a spline beyond a knot.

    :math:`u = \sqrt{a^2 + \frac{2}{\xi} \log(1 + \xi (a t + t^2 / 2))}`, which is :math:`a + t`
    for :math:`\xi = 0`; of a normal it makes a power law of index :math:`2 / \xi`.

    Args:
        t: Distance from the knot times the slope there, at least 0.
        at: Value a of the knot, positive unless the shape is 0.
        shape: Shape :math:`\xi`, at least 0.

    Returns:
        u and :math:`\log du/dt`.
    """
    heavy = shape > 0
    xi, start = (torch.where(heavy, v, torch.ones_like(v)) for v in (shape, at))
    far = t > 1
    near = torch.where(far, torch.ones_like(t), t)
    inverse = 1 / torch.where(far, t, torch.ones_like(t))
    # The second is the same without a square that overflows.
    grown = torch.where(
        far,
        (inverse * inverse + xi * (start * inverse + 0.5)).log() - 2 * inverse.log(),
        torch.log1p(xi * (start * near + 0.5 * near * near)),
    )
    u = (start * start + 2 * grown / xi).sqrt()
    change = (start + t).log() - u.log() - grown
    return torch.where(heavy, u, at + t), torch.where(heavy, change, torch.zeros_like(t))


def _tail_inverse(u: Tensor, at: Tensor, shape: Tensor) -> Mapped:
    """Undo :func:`tail`; the logarithm returned is the same."""
    heavy = shape > 0
    xi, start = (torch.where(heavy, v, torch.ones_like(v)) for v in (shape, at))
    end = torch.where(heavy, u, start)
    grown = 0.5 * xi * (end - start) * (end + start)
    far = grown > 1
    w = torch.expm1(torch.where(far, torch.ones_like(grown), grown)) / xi
    large = torch.where(far, grown, torch.ones_like(grown))
    half = 0.5 * (large + torch.log1p(-torch.exp(-large)) - xi.log())
    half = half.clamp(max=math.log(torch.finfo(u.dtype).max) - 10)
    small = torch.exp(-half)
    t = torch.where(
        far,
        2 * half.exp() / (start * small + (start * start * small * small + 2).sqrt()),
        2 * w / (start + (start * start + 2 * w).sqrt()),
    )
    change = (start + t).log() - end.log() - grown
    return torch.where(heavy, t, u - at), torch.where(heavy, change, torch.zeros_like(u))


def _end(margins: Margins, below: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    """Sign, knot, distance of its value from zero, slope and tail of the end on this side."""
    first, last = (
        torch.stack([margins.x[:, k], sign * margins.z[:, k], margins.slope[:, k], shape], -1)
        for k, sign, shape in zip((0, -1), (-1, 1), margins.shape.unbind(-1), strict=True)
    )
    one = torch.ones((), dtype=first.dtype, device=first.device)
    ends = torch.where(below.unsqueeze(-1), first[row], last[row]).unbind(-1)
    return torch.where(below, -one, one), *ends


def _bin(
    margins: Margins, knots: Tensor, value: Tensor, row: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Place, value and slope at both ends of the bin that each number lies in, by halving."""
    size = int(knots.shape[-1])
    flat, offset, last = knots.flatten(), row * size, (margins.number - 2)[row]
    index = torch.zeros_like(value, dtype=torch.long)
    step = 1 << (size.bit_length() - 1)
    while step:
        following = index + step
        there = following <= last
        at = flat[offset + torch.where(there, following, torch.zeros_like(following))]
        index = torch.where(there & (value >= at), following, index)
        step //= 2
    table = torch.stack([margins.x, margins.z, margins.slope], -1).flatten(0, 1)
    return table[offset + index].unbind(-1), table[offset + index + 1].unbind(-1)
