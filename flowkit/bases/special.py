"""Logarithms of survival functions that keep value and derivatives in the far tails.

Compositions of elementary functions: they compile, vmap and have derivatives of every order.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# Beyond it the continued fraction of the normal tail, with so many terms, is exact to float64.
_NORMAL_TAIL = 7.0
_NORMAL_TERMS = 24
# The double-exponential rule of the tail of Student's t, and the nodes of Gauss around its centre.
_STEP, _FIRST, _LAST = 0.1, -44, 41
_GAUSS = 24


def log_normal_survival(z: Tensor) -> Tensor:
    r""":math:`\log P(Z > z)` of a standard normal; minus its slope is the hazard.

    By erfc around the origin, and beyond 7 by :math:`\log p(z)` plus the logarithm of the
    continued fraction :math:`1/(z+1/(z+2/(z+3/(z+\dots))))`. The derivatives of
    ``torch.special.log_ndtr`` lose all digits there (in float32 from 1e3 on).

    Example:
        >>> import torch
        >>> z = torch.tensor([0.0, 1e4, 1e20], requires_grad=True)
        >>> value = log_normal_survival(z)
        >>> torch.autograd.grad(value.sum(), z)[0].tolist()[1:]
        [-10000.0, -1.0000000200408773e+20]
    """
    # In half precision erfc would be zero long before the continued fraction begins.
    dtype, z = z.dtype, z.to(torch.promote_types(z.dtype, torch.float32))
    # Not abs, which has no slope at zero.
    positive = z > 0
    distance = torch.where(positive, z, -z)
    far = distance > _NORMAL_TAIL
    near = torch.where(far, torch.zeros_like(z), distance)
    out = torch.where(far, distance, torch.full_like(z, _NORMAL_TAIL))
    out = out.clamp(max=torch.finfo(z.dtype).max)
    fraction = out
    for k in range(_NORMAL_TERMS, 0, -1):
        fraction = out + k / fraction
    log_tail = -0.5 * out * out - LOG_SQRT_2PI - fraction.log()
    half = 0.5 * torch.erfc(near * math.sqrt(0.5))
    log_upper = torch.where(far, log_tail, half.log())
    upper = torch.where(far, log_tail.exp(), half)
    return torch.where(positive, log_upper, torch.log1p(-upper)).to(dtype)


def normal_quantile(q: Tensor) -> Tensor:
    """``ndtri``, also in half precision, in which torch has none."""
    return torch.special.ndtri(q.to(torch.promote_types(q.dtype, torch.float32))).to(q.dtype)


def smaller_tail(q: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ``q`` is between 0 and 1, and the mass of the tail that its quantile is in.

    In its own tail, each side of the median keeps the digits of probabilities.
    """
    inside = (q > 0) & (q < 1)
    tail = torch.where(q > 0.5, 1 - q, q)
    return inside, torch.where(inside, tail, torch.full_like(q, 0.5))


def keep_digits(tail: Tensor, other: Tensor) -> Tensor:
    """A log-probability, from that of the opposite event where this has the more digits.

    Example:
        >>> import torch
        >>> keep_digits(torch.tensor(0.0), torch.tensor(-50.0))
        tensor(-1.9287e-22)
    """
    near_one = other < -math.log(2)
    safe = torch.where(near_one, other, torch.full_like(other, -1.0))
    return torch.where(near_one, torch.log1p(-safe.exp()), tail)


def log_one_plus_square(z: Tensor, df: Tensor) -> Tensor:
    r""":math:`\log(1 + z^2 / \nu)` without overflow of the square, for ``z >= 0``."""
    scaled = z / df.sqrt()
    large = scaled > 1e3
    square = torch.where(large, torch.ones_like(scaled), scaled).square()
    beyond = torch.where(large, z, 1e3 * df.sqrt())
    log_beyond = 2 * beyond.log() - df.log()
    return torch.where(large, log_beyond + torch.log1p((-log_beyond).exp()), torch.log1p(square))


@functools.cache
def _tail_rule() -> tuple[list[float], list[float]]:
    r"""Nodes and weights of :math:`\int_0^\infty e^{-v} f(v) dv`, :math:`v = e^{y - e^{-y}}`."""
    y = _STEP * np.arange(_FIRST, _LAST + 1)
    nodes = np.exp(y - np.exp(-y))
    return nodes.tolist(), (_STEP * nodes * (1 + np.exp(-y)) * np.exp(-nodes)).tolist()


@functools.cache
def _centre_rule() -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(_GAUSS)
    return (0.5 * (nodes + 1)).tolist(), (0.5 * weights).tolist()


def log_student_survival(z: Tensor, df: Tensor, log_constant: Tensor) -> Tensor:
    r""":math:`\log P(T > z)` of Student's t, with derivatives in z and in the degrees of freedom.

    With :math:`u = \log(1 + z^2 / \nu)` and the density's constant c, for large z

    .. math:: P(T > z) = c\, e^{-\nu u / 2} \int_0^\infty e^{-v}
        \bigl[\nu\,(1 - e^{-u - 2v/\nu})\bigr]^{-1/2} dv

    by the double-exponential rule; around the centre one half less the integral of the density
    over :math:`z = \sqrt\nu \tan\theta` by Gauss's.

    Args:
        z: Where, any shape.
        df: Degrees of freedom :math:`\nu`, broadcast against ``z``.
        log_constant: :math:`\log c`, the log-density at 0.

    References:
        Takahasi and Mori 1974, Publ. RIMS 9, 721-741, for the double-exponential rule.
    """
    z, df, log_constant = torch.broadcast_tensors(z, df, log_constant)
    positive = z > 0
    distance = torch.where(positive, z, -z)
    root = df.sqrt()
    far = distance > torch.clamp(root, max=1.5).detach()
    near = torch.where(far, torch.zeros_like(z), distance)
    out = torch.where(far, distance, root.detach() + 1).clamp(max=torch.finfo(z.dtype).max)
    u = log_one_plus_square(out, df)
    nodes, weights = (z.new_tensor(values) for values in _tail_rule())
    inner = -df.unsqueeze(-1) * torch.expm1(-u.unsqueeze(-1) - 2 * nodes / df.unsqueeze(-1))
    integral = (weights * inner.rsqrt()).sum(-1)
    log_tail = log_constant - 0.5 * df * u + integral.log()

    nodes, weights = (z.new_tensor(values) for values in _centre_rule())
    angle = torch.atan(near / root)
    # The logarithm of the cosine, from a tangent that keeps the digits of small angles.
    log_cosine = -0.5 * torch.log1p(torch.tan(angle.unsqueeze(-1) * nodes).square())
    powers = torch.exp((df - 1).unsqueeze(-1) * log_cosine)
    half = 0.5 - log_constant.exp() * root * angle * (weights * powers).sum(-1)
    log_upper = torch.where(far, log_tail, half.log())
    upper = torch.where(far, log_tail.exp(), half)
    return torch.where(positive, log_upper, torch.log1p(-upper))
