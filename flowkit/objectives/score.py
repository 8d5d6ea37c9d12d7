"""Score matching: learning from energies and scores, without a determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkit import checks
from flowkit.config import register
from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.compiling import eager
from flowkit.numerics.gradients import ordinary
from flowkit.numerics.noise import normal_like
from flowkit.numerics.types import Context, Generator
from flowkit.objectives.base import Batch, Loss, Objective, weighted_mean


class _ScoreMatching(Objective):
    """The mean of the losses of a subclass, and a multiple of the mean energy."""

    reads = frozenset({"x", "context", "weight"})

    def __init__(self, energy_weight: float) -> None:
        super().__init__()
        name = type(self).__name__
        self.energy_weight = checks.number(name, "energy_weight", energy_weight, least=0)

    # Compiled programs cannot be differentiated twice, so this part of a step stays eager.
    @eager
    def forward(
        self, flow: Flow, batch: Batch, *, generator: Generator = None, progress: float = 1.0
    ) -> Loss:
        """Return the mean loss over samples."""
        learning = torch.is_grad_enabled()
        with torch.inference_mode(mode=False), torch.enable_grad():
            x, context = ordinary(batch["x"]).detach(), ordinary(batch.get("context"))
            losses = self.losses(flow, x, context, generator)
            value = weighted_mean(losses, batch.get("weight"))
            terms = {"score_matching": value.detach()}
            if self.energy_weight:
                energy = weighted_mean(flow.energy(x, context), batch.get("weight"))
                value = value + self.energy_weight * energy
                terms["energy"] = energy.detach()
        return Loss(value if learning else value.detach(), terms)

    def losses(self, flow: Flow, x: Tensor, context: Context, generator: Generator) -> Tensor:
        """Return one loss per sample, of shape ``(*batch,)``."""
        raise NotImplementedError


@register
class SlicedScoreMatching(_ScoreMatching):
    r"""Sliced score matching: second derivatives of the log-density in random directions.

    With the score :math:`s(x) = \nabla_x \log p(x)` of the flow and random signs v,

    .. math:: \frac1n \sum_i w_i \left[ \tfrac12 |s(x_i)|^2 + v_i^T \nabla s(x_i)\, v_i \right] ,

    whose expectation is, up to a constant, half the squared error of the score. With
    ``slices=None`` it is :math:`\tfrac12 |s|^2 + \mathrm{tr}\, \nabla s`, exactly, by D second
    derivatives of D coordinates. Numbers are summed over an event, nothing is divided by D.

    Scores leave the log-determinants of constant layers out (:meth:`flowkit.Flow.energy`): with
    dense linear layers a step costs :math:`O(D^2)` instead of :math:`O(D^3)`. Reads ``x``, and
    ``context`` and ``weight`` if present. The flow needs continuous second derivatives, see
    :class:`ForceMatching`.

    Args:
        slices: Number of random signs per sample, or ``None`` for the exact trace.
        non_negative: Whether data are positive, with a density that need not vanish at 0: the
            loss is then :math:`\sum_i 2 x_i s_i + x_i^2 \partial_i s_i + \frac12 x_i^2 s_i^2`.
        energy_weight: A multiple of the mean energy of the data that is added: a little of it
            keeps energies low where data are.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: From a call, if ``non_negative`` data are not positive.
        StochasticFlowError: From a call, if a layer of the flow is stochastic.

    References:
        Hyvärinen 2005, J. Mach. Learn. Res. 6, 695, and 2007, Comput. Stat. Data Anal. 51, 2499;
        Song et al. 2019, arXiv 1905.07088, with reduced variance; Chao et al. 2023, arXiv
        2305.15267, for flows.

    Example:
        >>> import torch
        >>> from flowkit import SlicedScoreMatching, elementwise_flow
        >>> x = {"x": torch.tensor([[1.0], [2.0]])}
        >>> flow = elementwise_flow(1, scalar="affine")
        >>> round(SlicedScoreMatching(slices=None)(flow, x).value.item(), 6)
        0.25
    """

    diverges_at_ties = True

    def __init__(
        self, *, slices: int | None = 1, non_negative: bool = False, energy_weight: float = 0.0
    ) -> None:
        super().__init__(energy_weight)
        name = "SlicedScoreMatching"
        self.slices = slices
        if slices is not None:
            self.slices = checks.integer(name, "slices", slices, least=1)
        self.non_negative = checks.flag(name, "non_negative", non_negative)

    def losses(self, flow: Flow, x: Tensor, context: Context, generator: Generator) -> Tensor:
        """Return one loss per sample, of shape ``(*batch,)``."""
        if self.non_negative:
            _require_positive("SlicedScoreMatching(non_negative=True)", x)
        x = x.requires_grad_()
        score = flow.score(x, context)
        slope = _diagonal(score, x, self.slices, generator)
        if not self.non_negative:
            return _sum(0.5 * score.square() + slope, flow)
        scaled = x * score
        return _sum(2 * scaled + x.square() * slope + 0.5 * scaled.square(), flow)


@register
class DenoisingScoreMatching(_ScoreMatching):
    r"""Denoising score matching: fit the score of data with Gaussian noise, by first derivatives.

    .. math:: \frac1n \sum_i w_i \tfrac12 |s(x_i + \sigma\epsilon_i) + \epsilon_i / \sigma|^2 ,
              \qquad \epsilon_i \sim N(0, 1)

    The minimum is the density of the data convolved with the noise. Cost and conditions are those
    of :class:`SlicedScoreMatching`, without the second derivative.

    Args:
        noise: Standard deviation :math:`\sigma` of the noise, in units of x.
        antithetic: Whether noise comes in pairs :math:`\pm\epsilon`, with two scores per sample.
            Terms odd in the noise cancel, :math:`s \cdot \epsilon / \sigma` above all, so that
            small noise does not drown the gradient.
        multiplicative: Whether noise multiplies positive data, :math:`\tilde x = x
            e^{\sigma\epsilon}`, with the loss :math:`\frac12 |\tilde x s(\tilde x) + 1 + \epsilon
            / \sigma|^2`: denoising of :math:`\log x`.
        energy_weight: A multiple of the mean energy of the data that is added.

    Raises:
        ArgumentError: If an argument is out of its range.
        DataError: From a call, if noise multiplies data that are not positive.
        StochasticFlowError: From a call, if a layer of the flow is stochastic.

    References:
        Vincent 2011, Neural Comput. 23, 1661; Chao et al. 2023, arXiv 2305.15267, for flows;
        Shetty et al. 2025, arXiv 2510.02730, for multiplicative noise.

    Example:
        >>> import torch
        >>> from flowkit import DenoisingScoreMatching, elementwise_flow
        >>> loss = DenoisingScoreMatching(noise=0.2, antithetic=True)
        >>> loss(elementwise_flow(1), {"x": torch.randn(10, 1)}).value.shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        noise: float = 0.1,
        antithetic: bool = False,
        multiplicative: bool = False,
        energy_weight: float = 0.0,
    ) -> None:
        super().__init__(energy_weight)
        name = "DenoisingScoreMatching"
        self.noise = checks.number(name, "noise", noise, above=0)
        self.antithetic = checks.flag(name, "antithetic", antithetic)
        self.multiplicative = checks.flag(name, "multiplicative", multiplicative)

    def losses(self, flow: Flow, x: Tensor, context: Context, generator: Generator) -> Tensor:
        """Return one loss per sample, of shape ``(*batch,)``."""
        if self.multiplicative:
            _require_positive("DenoisingScoreMatching(multiplicative=True)", x)
        drawn = normal_like(x, generator)
        epsilon = torch.stack([drawn, -drawn] if self.antithetic else [drawn])
        if self.multiplicative:
            noisy = x * torch.exp(self.noise * epsilon)
            error = noisy * flow.score(noisy, context) + 1 + epsilon / self.noise
        else:
            error = flow.score(x + self.noise * epsilon, context) + epsilon / self.noise
        return 0.5 * _sum(error.square(), flow).mean(0)


@register
class FiniteDifferenceScoreMatching(_ScoreMatching):
    r"""Sliced score matching by finite differences of energies, without a derivative in x.

    With :math:`E = -\log p` up to a constant and v uniform on a sphere of radius :math:`\xi` in D
    dimensions, the loss of a sample is

    .. math:: \frac{D}{\xi^2} \left[ \tfrac18 (E(x + v) - E(x - v))^2
              - E(x + v) - E(x - v) + 2 E(x) \right] ,

    that of :class:`SlicedScoreMatching` up to :math:`O(\xi^2)`.

    Args:
        radius: Radius :math:`\xi` of the sphere, in units of x.
        energy_weight: A multiple of the mean energy of the data that is added.

    Raises:
        ArgumentError: If an argument is out of its range.
        StochasticFlowError: From a call, if a layer of the flow is stochastic.

    References:
        Pang et al. 2020, arXiv 2007.03317; Chao et al. 2023, arXiv 2305.15267, for flows.

    Example:
        >>> import torch
        >>> from flowkit import FiniteDifferenceScoreMatching, elementwise_flow
        >>> loss = FiniteDifferenceScoreMatching(radius=0.1)
        >>> loss(elementwise_flow(1), {"x": torch.randn(10, 1)}).value.shape
        torch.Size([])
    """

    diverges_at_ties = True

    def __init__(self, *, radius: float = 0.1, energy_weight: float = 0.0) -> None:
        super().__init__(energy_weight)
        name = "FiniteDifferenceScoreMatching"
        self.radius = checks.number(name, "radius", radius, above=0)

    def losses(self, flow: Flow, x: Tensor, context: Context, generator: Generator) -> Tensor:
        """Return one loss per sample, of shape ``(*batch,)``."""
        ndim = len(flow.event_shape)
        direction = normal_like(x, generator)
        length = torch.linalg.vector_norm(direction, dim=tuple(range(-ndim, 0)), keepdim=True)
        v = self.radius * direction / length
        # One pass for all three, beside each other.
        three = flow.energy(torch.stack([x + v, x - v, x]), context)
        ahead, behind, here = three.unbind(0)
        scale = x.shape[x.ndim - ndim :].numel() / self.radius**2
        return scale * (0.125 * (ahead - behind).square() - (ahead - here) - (behind - here))


def _sum(values: Tensor, flow: Flow) -> Tensor:
    """Sum over the event."""
    return values.sum(tuple(range(-len(flow.event_shape), 0)))


def _diagonal(score: Tensor, x: Tensor, slices: int | None, generator: Generator) -> Tensor:
    """The diagonal of the score's Jacobian, of the shape of ``x``: exactly, or by random signs."""
    event, total = score.shape[1:], torch.zeros_like(score)
    for i in range(event.numel() if slices is None else slices):
        if slices is None:
            v = score.new_zeros(event.numel())
            v[i] = 1
            v = v.reshape(event).expand_as(score)
        else:
            sign = torch.randint(0, 2, score.shape, generator=generator, device=score.device)
            v = sign.to(score) * 2 - 1
        (row,) = torch.autograd.grad(score, x, v, create_graph=True)
        total = total + v * row / (slices or 1)
    return total


def _require_positive(owner: str, x: Tensor) -> None:
    smallest = float(x.min()) if x.numel() else 1.0
    if not smallest > 0:
        raise DataError(
            f"{owner} expected data > 0, got {smallest}; remedy: the loss for any data, or "
            "data that are shifted"
        )
