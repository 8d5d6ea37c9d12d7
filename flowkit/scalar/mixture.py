"""The logit of a mixture-of-logistics distribution function: smooth, inverted by root search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flowkit.scalar.affine import soft_clip
from flowkit.scalar.base import ScalarMap


@dataclass(frozen=True)
class LogisticMixture(ScalarMap):
    r""":math:`y = \mathrm{logit} F(x)`, :math:`F(x) = \sum_k w_k \sigma((x - m_k) / s_k)`.

    Infinitely differentiable on the whole line, linear in the tails. In log space throughout: with
    responsibilities :math:`q_k \propto w_k \sigma(u_k)` and :math:`r_k \propto w_k \sigma(-u_k)`,
    the slope is the sum of positive terms :math:`\sum_k (q_k \sigma(-u_k) + r_k \sigma(u_k)) /
    s_k`, which loses no digits however far out ``x`` is.

    Three parameters a component: log-weights, centres, raw log-scales. All-zero parameters spread
    the centres evenly over [-2, 2] (equal components would receive equal gradients for ever), so
    the start is close to the identity, not equal to it.

    Args:
        components: Number of logistic components.
        max_log_scale: Bound on each log-scale.

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

    components: int = 8
    max_log_scale: float = 5.0

    starts_at_identity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"LogisticMixture needs components >= 1, got {self.components}")

    @property
    def param_size(self) -> int:  # type: ignore[override]
        """Three a component: log-weight, centre, raw log-scale."""
        return 3 * self.components

    def _unpack(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, centres, raw = params.unflatten(-1, (3, self.components)).unbind(-2)
        index = torch.arange(self.components, dtype=params.dtype, device=params.device)
        spread = (2 * index + 1 - self.components) / self.components * 2
        return torch.log_softmax(logits, -1), centres + spread, soft_clip(raw, self.max_log_scale)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``logit F(x)`` and its log-slope."""
        log_weights, centres, log_scales = self._unpack(params)
        inverse_scales = torch.exp(-log_scales)
        u = (x.unsqueeze(-1) - centres) * inverse_scales
        below = log_weights + F.logsigmoid(u)
        above = log_weights + F.logsigmoid(-u)
        slope = torch.softmax(below, -1) * torch.sigmoid(-u)
        slope = slope + torch.softmax(above, -1) * torch.sigmoid(u)
        log_slope = torch.log((slope * inverse_scales).sum(-1))
        return torch.logsumexp(below, -1) - torch.logsumexp(above, -1), log_slope

    def bracket(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """A mixture of distribution functions lies between its outermost components."""
        _, centres, log_scales = self._unpack(params)
        solutions = centres + log_scales.exp() * y.unsqueeze(-1)
        margin = 1e-3 * (1 + solutions.abs().amax(-1))
        return solutions.amin(-1) - margin, solutions.amax(-1) + margin
