"""The logit of a mixture-of-logistics distribution function: smooth, inverted by root search."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit import checks
from flowkit.config import register
from flowkit.numerics.clips import soft_clip
from flowkit.numerics.roots import find_root_by_newton
from flowkit.scalar.base import ScalarMap


@register
@dataclass(frozen=True)
class LogisticMixture(ScalarMap):
    r"""The logit of a mixture-of-logistics distribution function.

    .. math:: y = \mathrm{logit} F(x), \quad F(x) = \sum_k w_k \sigma((x - m_k) / s_k).

    Infinitely differentiable on the real line, linear in the tails. In log space throughout: with
    responsibilities :math:`q_k \propto w_k \sigma(u_k)` and :math:`r_k \propto w_k \sigma(-u_k)`,
    the slope is the sum of positive terms :math:`\sum_k (q_k \sigma(-u_k) + r_k \sigma(u_k)) /
    s_k`. The logarithms of the terms are added up, so no digits are lost however far out ``x`` is,
    and none between components that are far apart, where each term is below the smallest number.

    Three parameters per component: log-weights, centres, raw log-scales. All-zero parameters
    spread the centres evenly over [-2, 2] (equal components would receive equal gradients for
    ever), so the start is close to the identity, not equal to it.

    Args:
        components: Number of logistic components.
        max_log_scale: Bound on each log-scale.

    Raises:
        ArgumentError: If an argument is out of its range.

    References:
        Ho et al. 2019, Flow++, arXiv 1902.00275.

    Example:
        >>> import torch
        >>> f = LogisticMixture(components=4)
        >>> x, params = torch.linspace(-3, 3, 5), torch.randn(5, f.param_size)
        >>> y, log_slope = f.forward(x, params)
        >>> torch.allclose(f.inverse(y, params)[0], x, atol=1e-5)
        True
    """

    components: int = checks.option(8, checks.integer, least=1)
    _: KW_ONLY
    max_log_scale: float = checks.option(5.0, checks.number, above=0)

    starts_at_identity: ClassVar[bool] = False

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three per component: log-weight, centre, raw log-scale."""
        return 3 * self.components

    def _unpack(self, params: Tensor, ndim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of weights, centres and log-scales ``(K, ...)``, for ``ndim`` dimensions.

        Components come first: sums over them then run along whole rows of memory.
        """
        params = params[(None,) * (ndim + 1 - params.dim())].movedim(-1, 0)
        count = self.components
        logits, centres, raw = params.unflatten(0, (3, count)).unbind(0)
        end = 2 * (count - 1) / count
        spread = torch.linspace(-end, end, count, dtype=params.dtype, device=params.device)
        centres = centres + spread.reshape(-1, *(1,) * (centres.dim() - 1))
        return logits, centres, soft_clip(raw, self.max_log_scale)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``logit F(x)`` and its log-slope."""
        logits, centres, log_scales = self._unpack(params, x.dim())
        log_weights = torch.log_softmax(logits, 0)
        u = (x - centres) * torch.exp(-log_scales)
        log_inner, log_outer = F.logsigmoid(u), F.logsigmoid(-u)
        below, above = log_weights + log_inner, log_weights + log_outer
        terms = torch.cat(
            [
                torch.log_softmax(below, 0) + log_outer - log_scales,
                torch.log_softmax(above, 0) + log_inner - log_scales,
            ]
        )
        y = torch.logsumexp(below, 0) - torch.logsumexp(above, 0)
        return y, torch.logsumexp(terms, 0)

    def solve(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Solve ``logit F(x) = y`` in sums of positive terms: no logarithm per component.

        For :math:`y \ge 0` the search is for the root of :math:`\log \sum_k w_k \sigma(u_k) -
        \log \sum_k w_k e^y \sigma(-u_k)`, where the two sums are equal, however far out; for
        negative ``y`` all is mirrored. Overflow leaves the right sign, which the search needs.
        """
        logits, centres, log_scales = self._unpack(params, y.dim())
        log_weights = torch.log_softmax(logits, 0)
        weights, scales = log_weights.exp(), log_scales.exp()
        sign, height = torch.where(y < 0, -1.0, 1.0).to(y.dtype), y.abs()
        centres, rates = centres * sign, scales.reciprocal()
        offsets, highest, shrink = -centres * rates, log_weights + height, torch.exp(-height)

        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            u = torch.addcmul(offsets, rates, x)
            inner = torch.sigmoid(u)
            below = (weights * inner).sum(0)
            # e^y sigma(-u), from factors that do not overflow near the root.
            above = torch.sub(highest, u.clamp_min_(0)).exp_()
            above *= torch.maximum(inner, 1 - inner)
            total = above.sum(0)
            flow = above.mul_(inner).mul_(rates).sum(0)
            return torch.log(below / total), torch.addcdiv(flow / total, flow * shrink, below)

        # A mixture of distribution functions lies between its outermost components.
        solutions = torch.addcmul(centres, scales, height)
        lower, upper = solutions.amin(0), solutions.amax(0)
        margin = 1e-3 * (1 + torch.maximum(-lower, upper))
        x, _ = find_root_by_newton(f, height, lower - margin, upper + margin)
        x = x * sign
        # Between components the slope itself may be below the smallest number.
        return x, self.forward(x, params)[1]
