"""Score matching and its kin: learning from energies and scores, without a determinant."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from flowkit.errors import DataError
from flowkit.flow import Flow
from flowkit.numerics.gradients import ordinary
from flowkit.objectives.base import Batch, Loss, Objective, mean_over_rows

# What each method reads, and its default.
_OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "sliced": {"slices": 1},
    "denoising": {"noise": 0.1, "antithetic": False},
    "finite-difference": {"radius": 0.1},
    "multiplicative": {"noise": 0.1, "antithetic": False},
    "non-negative": {"slices": None},
}


class ScoreMatching(Objective):
    r"""Fit the score :math:`s(x) = \nabla_x \log p(x)` to that of the data.

    Energies, scores and this loss leave the log-determinants of constant layers out
    (:meth:`flowkit.Flow.energy`): with dense linear layers a step costs :math:`O(D^2)` instead of
    :math:`O(D^3)`. With :math:`E = -\log p` up to a constant, and numbers summed over an event of
    D coordinates (nothing is divided by D):

    ``"exact"``
        :math:`\frac12 |s|^2 + \mathrm{tr}\, \nabla s`, by D derivatives (Hyvärinen 2005).
    ``"sliced"``
        :math:`\frac12 |s|^2 + v^T \nabla s\, v`, mean over ``slices`` random signs v: the same in
        expectation (Song et al. 2019, with reduced variance).
    ``"denoising"``
        :math:`\frac12 |s(x + \sigma\epsilon) + \epsilon / \sigma|^2`: the score of the data with
        noise of standard deviation ``noise``, no second derivatives (Vincent 2011).
    ``"finite-difference"``
        :math:`\frac{D}{\xi^2} \big[\frac18 (E(x + v) - E(x - v))^2 - E(x + v) - E(x - v) + 2
        E(x)\big]`, v uniform on a sphere of ``radius`` :math:`\xi`: as ``"sliced"`` up to
        :math:`O(\xi^2)`, no derivative in x at all (Pang et al. 2020).
    ``"multiplicative"``
        For positive data, :math:`\frac12 |\tilde x s(\tilde x) + 1 + \epsilon / \sigma|^2` with
        :math:`\tilde x = x e^{\sigma\epsilon}`: denoising of :math:`\log x`.
    ``"non-negative"``
        For positive data,
        :math:`\sum_i 2 x_i s_i + x_i^2 \partial_i s_i + \frac12 x_i^2 s_i^2` (Hyvärinen 2007), by
        D derivatives, or ``slices`` random signs.

    Reads ``x``, and if present ``context`` and ``weight``. The flow needs continuous second
    derivatives, see :class:`ForceMatching`.

    Args:
        method: One of the above.
        noise: Standard deviation of the noise, in units of x, or of log x.
        slices: Number of random signs a row.
        radius: Radius of the sphere, in units of x.
        antithetic: Whether noise comes in pairs :math:`\pm\epsilon`: two scores a row. What is odd
            in the noise cancels, :math:`s \cdot \epsilon / \sigma` above all, so that small noise
            no longer drowns the gradient.
        energy_weight: A multiple of the mean energy of the rows that is added: a little of it
            keeps energies low where data are.

    Raises:
        DataError: If the method is unknown, an option is not the method's or out of its range; if
            positive data are asked for and come with others.
        StochasticFlowError: If a layer of the flow is stochastic.

    References:
        Chao et al. 2023, arXiv 2305.15267, for flows; Hyvärinen 2005, J. Mach. Learn. Res. 6, 695,
        and 2007, Comput. Stat. Data Anal. 51, 2499; Vincent 2011, Neural Comput. 23, 1661; Song et
        al. 2019, arXiv 1905.07088; Pang et al. 2020, arXiv 2007.03317; Shetty et al. 2025, arXiv
        2510.02730, for multiplicative noise.

    Example:
        >>> import torch
        >>> from flowkit import ScoreMatching, elementwise_flow
        >>> x = {"x": torch.tensor([[1.0], [2.0]])}
        >>> flow = elementwise_flow(1, scalar="affine")
        >>> round(ScoreMatching("exact")(flow, x).value.item(), 6)
        0.25
    """

    reads = frozenset({"x", "context", "weight"})

    noise: float
    radius: float
    slices: int | None
    antithetic: bool
    energy_weight: float

    def __init__(
        self,
        method: str = "denoising",
        *,
        noise: float | None = None,
        slices: int | None = None,
        radius: float | None = None,
        antithetic: bool | None = None,
        energy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if method not in _OPTIONS:
            raise DataError(
                f"ScoreMatching knows the methods {', '.join(map(repr, _OPTIONS))}; got {method!r}"
            )
        self.method = method
        self.diverges_at_ties = "denoising" not in method
        known = _OPTIONS[method]
        options = {"noise": noise, "slices": slices, "radius": radius, "antithetic": antithetic}
        for name, value in options.items():
            if value is not None and name not in known:
                raise DataError(
                    f"ScoreMatching({method!r}) has no option {name!r}; it reads "
                    f"{', '.join(known) or 'none'}"
                )
            value = known.get(name) if value is None else value
            if value is not None:
                value = _checked(name, value)
            setattr(self, name, value)
        if not isinstance(energy_weight, Real) or not 0 <= float(energy_weight) < float("inf"):
            raise DataError(
                f"ScoreMatching expected energy_weight as a number >= 0, got {energy_weight!r}"
            )
        self.energy_weight = float(energy_weight)

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the mean loss over rows."""
        # Compiled programs cannot be differentiated twice, so this part of a step stays eager.
        compiling = torch.compiler.is_compiling()
        return (torch.compiler.disable(self._loss) if compiling else self._loss)(
            flow, batch, generator
        )

    def _loss(self, flow: Flow, batch: Batch, generator: torch.Generator | None) -> Loss:
        learning = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x, context = ordinary(batch["x"]).detach(), ordinary(batch.get("context"))
            method = getattr(self, f"_{self.method.replace('-', '_')}")
            losses = method(flow, x, context, generator)
            value = mean_over_rows(losses, batch.get("weight"))
            terms = {"score_matching": value.detach()}
            if self.energy_weight:
                energy = mean_over_rows(flow.energy(x, context), batch.get("weight"))
                value = value + self.energy_weight * energy
                terms["energy"] = energy.detach()
        return Loss(value if learning else value.detach(), terms)

    def _exact(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        x = x.requires_grad_()
        score = flow.score(x, context)
        return _sum(0.5 * score.square() + _diagonal(score, x, None, generator), flow)

    def _sliced(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        x = x.requires_grad_()
        score = flow.score(x, context)
        return _sum(0.5 * score.square() + _diagonal(score, x, self.slices, generator), flow)

    def _denoising(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        epsilon = self._draw(x, generator)
        score = flow.score(x + self.noise * epsilon, context)
        return 0.5 * _sum((score + epsilon / self.noise).square(), flow).mean(0)

    def _draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise ``(1, *batch, *event)``, or pairs of it ``(2, *batch, *event)``."""
        epsilon = _normal_like(x, generator)
        return torch.stack([epsilon, -epsilon] if self.antithetic else [epsilon])

    def _finite_difference(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        ndim = len(flow.event_shape)
        direction = _normal_like(x, generator)
        length = torch.linalg.vector_norm(direction, dim=tuple(range(-ndim, 0)), keepdim=True)
        v = self.radius * direction / length
        # One pass for all three: rows beside each other.
        three = flow.energy(torch.stack([x + v, x - v, x]), context)
        ahead, behind, here = three.unbind(0)
        scale = x.shape[x.ndim - ndim :].numel() / self.radius**2
        return scale * (0.125 * (ahead - behind).square() - (ahead - here) - (behind - here))

    def _multiplicative(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        _require_positive(x)
        epsilon = self._draw(x, generator)
        noisy = x * torch.exp(self.noise * epsilon)
        score = flow.score(noisy, context)
        return 0.5 * _sum((noisy * score + 1 + epsilon / self.noise).square(), flow).mean(0)

    def _non_negative(
        self,
        flow: Flow,
        x: Tensor,
        context: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        _require_positive(x)
        x = x.requires_grad_()
        score = flow.score(x, context)
        slope = _diagonal(score, x, self.slices, generator)
        scaled = x * score
        return _sum(2 * scaled + x.square() * slope + 0.5 * scaled.square(), flow)


class StochasticMaximumLikelihood(Objective):
    r"""Maximum likelihood by contrast with the flow's own samples: no log-normalizer.

    .. math:: \frac1n \sum_i w_i E(x_i) - \frac1n \sum_i w_i E(x_i^-), \qquad x_i^- \sim p

    Its expected gradient is that of the negative log-likelihood, for
    :math:`\nabla \log Z = -E_p[\nabla E]`; no gradient goes through the samples. Sampling costs
    an inverse of every layer, but no determinant. The value says nothing about the fit: it is zero
    in expectation for a perfect one, and for many others. Validate with the likelihood.

    Reads ``x``, and if present ``context`` and ``weight``.

    Raises:
        StochasticFlowError: If a layer of the flow is stochastic.

    References:
        Younes 1999, Stochastics 65, 177; Chao et al. 2023, arXiv 2305.15267, for flows.

    Example:
        >>> import torch
        >>> from flowkit import StochasticMaximumLikelihood, elementwise_flow
        >>> flow = elementwise_flow(1, scalar="affine")
        >>> loss = StochasticMaximumLikelihood()(flow, {"x": torch.randn(100, 1)})
        >>> loss.value.shape
        torch.Size([])
    """

    reads = frozenset({"x", "context", "weight"})
    diverges_at_ties = True

    def forward(
        self,
        flow: Flow,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        progress: float = 1.0,
    ) -> Loss:
        """Return the difference of the mean energies."""
        x, context, weight = batch["x"], batch.get("context"), batch.get("weight")
        shape = x.shape[:1] if context is None else ()
        samples = flow.sample(shape, context, generator)
        data = mean_over_rows(flow.energy(x, context), weight)
        own = mean_over_rows(flow.energy(samples, context), weight)
        return Loss(data - own, {"energy": data.detach(), "energy_of_samples": own.detach()})


def _checked(name: str, value: Any) -> float | int:
    if name == "antithetic":
        if not isinstance(value, bool):
            raise DataError(f"ScoreMatching expected antithetic as True or False, got {value!r}")
        return value
    if name == "slices":
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise DataError(f"ScoreMatching expected slices as a whole number >= 1, got {value!r}")
        return int(value)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < float("inf"):
        raise DataError(f"ScoreMatching expected {name} as a finite number > 0, got {value!r}")
    return float(value)


def _sum(values: Tensor, flow: Flow) -> Tensor:
    """Sum over the event."""
    return values.sum(tuple(range(-len(flow.event_shape), 0)))


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _diagonal(
    score: Tensor, x: Tensor, slices: int | None, generator: torch.Generator | None
) -> Tensor:
    """The diagonal of the score's Jacobian, of the shape of ``x``: exactly, or by random signs."""
    total = torch.zeros_like(score)
    if slices is not None:
        for _ in range(slices):
            sign = torch.randint(0, 2, score.shape, generator=generator, device=score.device)
            sign = sign.to(score) * 2 - 1
            (row,) = torch.autograd.grad(score, x, sign, create_graph=True)
            total = total + sign * row / slices
        return total
    event = score.shape[1:]
    for i in range(event.numel()):
        one = score.new_zeros(event.numel())
        one[i] = 1
        one = one.reshape(event)
        (row,) = torch.autograd.grad(score, x, one.expand_as(score), create_graph=True)
        total = total + one * row
    return total


def _require_positive(x: Tensor) -> None:
    smallest = float(x.min()) if x.numel() else 1.0
    if not smallest > 0:
        raise DataError(
            f"this method of ScoreMatching needs data > 0, got {smallest}; remedy: "
            "'denoising' or 'sliced', or data that are shifted"
        )
