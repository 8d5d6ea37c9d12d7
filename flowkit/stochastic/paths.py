"""Paths through a flow, layer by layer: weights, acceptance, resampling and step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkit import checks
from flowkit.change_of_variables import ChangeOfVariables
from flowkit.energies.target import Target
from flowkit.errors import DataError
from flowkit.numerics.noise import choose
from flowkit.numerics.types import Context, Generator
from flowkit.shapes import as_shape
from flowkit.statistics import effective_sample_size
from flowkit.stochastic.base import EnergyTransform, Walk
from flowkit.stochastic.metropolis import MetropolisTransform
from flowkit.transforms.base import Transform
from flowkit.transforms.compose import layers_in_order


@dataclass(frozen=True)
class LayerReport:
    """What happened in one layer, over all samples.

    Attributes:
        label: The layer's name.
        acceptance: Mean fraction of proposals that were accepted; ``None`` without proposals.
        nonfinite: Number of proposals whose energy was not finite; ``None`` without proposals.
        effective: Effective sample size over the number of samples, where it was computed.
        resampled: Whether samples were drawn anew after the layer.
    """

    label: str
    acceptance: Tensor | None = None
    nonfinite: Tensor | None = None
    effective: Tensor | None = None
    resampled: bool = False

    @classmethod
    def of(cls, layer: Transform, walk: Walk, **more: Any) -> LayerReport:
        """Sum up what a layer did to every sample."""
        acceptance = None if walk.acceptance is None else walk.acceptance.mean()
        nonfinite = None if walk.nonfinite is None else walk.nonfinite.sum()
        return cls(layer.label, acceptance, nonfinite, **more)

    def __str__(self) -> str:
        parts = [] if self.acceptance is None else [f"accepted {self.acceptance.item():.3f}"]
        if self.nonfinite is not None:
            parts.append(f"not finite {int(self.nonfinite.item())}")
        if self.effective is not None:
            parts.append(f"effective {self.effective.item():.3f}")
        if self.resampled:
            parts.append("resampled")
        return f"{self.label:<36}" + ", ".join(parts)


@dataclass(frozen=True)
class Paths:
    """Samples at the end of paths through a flow; ``print`` it for one line per layer.

    Attributes:
        x: ``(*shape, *context_batch, *event)``.
        log_weight: Logarithms of the importance weights, ``(*shape, *context_batch)``.
        layers: One report for every stochastic layer, from noise to data.
        log_choice: Log-probability of all decisions on a path, if requested.
    """

    x: Tensor
    log_weight: Tensor
    layers: tuple[LayerReport, ...]
    log_choice: Tensor | None = None

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers)) or "no stochastic layer"

    @property
    def acceptance(self) -> Tensor | None:
        """Mean acceptance over all layers with proposals; ``None`` if there are none."""
        rates = [layer.acceptance for layer in self.layers if layer.acceptance is not None]
        return torch.stack(rates).mean() if rates else None


def sample_paths(
    flow: ChangeOfVariables,
    shape: int | tuple[int, ...],
    energy: Target | Callable[..., Tensor] | None = None,
    *,
    log_prob: Callable[..., Tensor] | None = None,
    context: Context = None,
    generator: Generator = None,
    resample: float | None = None,
    choices: bool = False,
) -> Paths:
    r"""Draw paths from noise to data with their importance weights for a target.

    .. math:: \log w = -u(x) - \log p_Z(z) + \sum_t \log\frac{\tilde q_t}{q_t}, \qquad
              E[w] = Z = \int e^{-u(x)} dx, \quad E[w\, O(x)] / E[w] = E_{e^{-u}/Z}[O]

    where a deterministic layer contributes its log-determinant. Both hold for any layers, trained
    or not, so long as every path back from the target ends where the base has density: a bounded
    base needs layers that stay inside. Without learned layers this is annealed importance
    sampling (Neal 2001); with ``resample`` it is a sequential Monte Carlo sampler (Del Moral et
    al. 2006): wherever after a layer with an energy the effective sample size has fallen below
    that fraction of the samples, these are drawn anew in proportion to their weights for that
    energy, by systematic resampling, and go on with equal ones. The mean of w stays an unbiased
    estimate of Z, but samples are then no longer independent: repeat the run for its error.

    Args:
        flow: Any flow with an inverse.
        shape: Number or shape of samples.
        energy: The dimensionless energy u of the target, ``energy(x) -> (*batch,)``;
            ``energy(x, context)`` if a context is given.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        context: ``(*b, C)``: each context gets ``shape`` samples.
        generator: Source of randomness.
        resample: Threshold in (0, 1]; ``None`` for none. For one shape number and no context.
        choices: Whether to compute the log-probability of decisions.

    Returns:
        The :class:`Paths`; with gradients where they are enabled. An infinite energy of a sample
        gives it a weight of zero.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, it is no function
            or returns something else than one number per sample; if the threshold is out of its
            range.
        NonFiniteEnergyError: If a layer starts where its energy is not finite.

    References:
        Wu, Köhler, Noé 2020, arXiv 2002.06707; Neal 2001, Stat. Comput. 11, 125,
        arXiv physics/9803008; Del Moral, Doucet, Jasra 2006, J. R. Stat. Soc. B 68, 411.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic.paths import sample_paths
        >>> annealing = stochastic_flow(2, energy="double_well", blocks=10, scalar=None, steps=5)
        >>> with torch.no_grad():
        ...     paths = sample_paths(
        ...         annealing, 1000, DoubleWell(), generator=torch.Generator().manual_seed(0)
        ...     )
        >>> log_z = torch.logsumexp(paths.log_weight, 0) - torch.log(torch.tensor(1000.0))
        >>> bool((log_z - DoubleWell().log_normalizer()).abs() < 0.3), len(paths.layers)
        (True, 10)
    """
    target = Target.of("sample_paths", energy, log_prob)
    size = as_shape(shape)
    if resample is not None:
        resample = checks.number("sample_paths", "resample", resample, above=0, most=1)
        if len(size) != 1 or context is not None:
            raise DataError(
                f"resampling expected one number of samples and no context, got shape {size} and "
                f"{'no' if context is None else 'a'} context; remedy: one call per context"
            )
        if not any(isinstance(layer, EnergyTransform) for layer in flow.transform.modules()):
            raise DataError(
                "resampling expected a flow with a layer that has an energy, after which "
                "samples are drawn anew, got none; remedy: resample=None, or a stochastic_flow"
            )
        if choices:
            raise DataError(
                "resampling is a decision without a log-probability; remedy: choices=False"
            )
    embedded = flow._embed_unless_unread(context)
    x = flow.base.sample(size, embedded, generator)
    log_weight = -flow.base.log_prob(x, embedded)
    log_choice, reports = torch.zeros_like(log_weight), []
    for layer, inverse in layers_in_order(flow.transform, inverse=True):
        walk = _through(layer, x, embedded, generator, inverse=inverse, choices=choices)
        x, log_weight = walk.value, log_weight + walk.log_ratio
        if not layer.stochastic:
            continue
        if walk.log_choice is not None:
            log_choice = log_choice + walk.log_choice
        effective, low = None, False
        if resample is not None and isinstance(layer, EnergyTransform):
            here = layer.energy(x)
            effective = effective_sample_size(log_weight - here) / len(here)
            low = bool(effective < resample)
            if low:
                which, level = _systematic(log_weight - here, generator)
                x, log_weight = x[which], level + here[which]
        reports.append(LayerReport.of(layer, walk, effective=effective, resampled=low))
    value = target(flow, x, context, generator)
    return Paths(x, log_weight - value, tuple(reports), log_choice if choices else None)


def adapt_step_sizes(
    flow: ChangeOfVariables,
    samples: int = 1024,
    *,
    context: Context = None,
    generator: Generator = None,
    target: float | None = None,
    rounds: int = 20,
) -> tuple[LayerReport, ...]:
    r"""Fit the step size of every Metropolis layer to its acceptance, in place.

    From noise to data, each layer gets the samples that reach it, moves them ``rounds`` times, and
    moves :math:`\log \sigma \leftarrow \log \sigma + 3 r^{-0.6} (\bar a - a^*)` after round r
    (Robbins and Monro 1951). Step sizes of coordinates keep their ratios. Weights are exact for
    any step size, so long as it does not depend on the samples that are weighted: adapt first,
    then sample.

    Args:
        flow: A flow; other layers than Metropolis, MALA and HMC are left alone.
        samples: Number of samples.
        context: ``(*b, C)``.
        generator: Source of randomness.
        target: Acceptance to reach, in (0, 1); by default that of each layer's class: 0.3, 0.574
            and 0.651 for Metropolis, MALA and HMC.
        rounds: Number of rounds per layer.

    Returns:
        One report per layer, with the acceptance that it reached.

    Raises:
        ArgumentError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.stochastic.paths import adapt_step_sizes
        >>> flow = stochastic_flow(2, energy="double_well", blocks=2, scalar=None, step_size=5.0)
        >>> reports = adapt_step_sizes(flow, generator=torch.Generator().manual_seed(0))
        >>> all(abs(report.acceptance - 0.3) < 0.05 for report in reports)
        True
    """
    name = "adapt_step_sizes"
    samples = checks.integer(name, "samples", samples, least=1)
    rounds = checks.integer(name, "rounds", rounds, least=0)
    if target is not None:
        target = checks.number(name, "target", target, above=0, below=1)
    reports = []
    with torch.no_grad():
        embedded = flow.embed(context)
        x = flow.base.sample((samples,), embedded, generator)
        for layer, inverse in layers_in_order(flow.transform, inverse=True):
            if not isinstance(layer, MetropolisTransform):
                x = _through(layer, x, embedded, generator, inverse=inverse).value
                continue
            goal = layer.target_acceptance if target is None else target
            for i in range(rounds):
                rate = layer.walk(x, embedded, generator).acceptance.mean()  # type: ignore[union-attr]
                layer.log_step_size += 3.0 * (i + 1) ** -0.6 * (rate - goal)
            walk = layer.walk(x, embedded, generator)
            x = walk.value
            reports.append(LayerReport.of(layer, walk))
    return tuple(reports)


class AdaptStepSizes:
    """A callback of :func:`flowkit.fit` that adapts step sizes every few records.

    Args:
        every: Number of records between calls of :func:`adapt_step_sizes`: of epochs where ``fit``
            is given ``epochs``, and of 25 steps or so where it is not.
        **options: Passed on.

    Example:
        >>> from flowkit import PathKL, fit, stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic.paths import AdaptStepSizes
        >>> flow = stochastic_flow(2, energy="double_well", blocks=1, steps=2)
        >>> callbacks = [AdaptStepSizes(samples=256, rounds=5)]
        >>> objective = PathKL(DoubleWell(), samples=32)
        >>> history = fit(flow, None, objective, steps=2, progress=False, callbacks=callbacks)
    """

    def __init__(self, every: int = 1, **options: Any) -> None:
        self.every = checks.integer("AdaptStepSizes", "every", every, least=1)
        self.options = options

    def __call__(self, flow: ChangeOfVariables, history: Any) -> bool:
        """Adapt where the number of records is a multiple of ``every``; never stop the fit."""
        if len(history.steps) % self.every == 0:
            adapt_step_sizes(flow, **self.options)
        return False


def _through(
    layer: Any, x: Tensor, context: Context, generator: Generator, *, inverse: bool, **options: Any
) -> Walk:
    """Go through a layer of any kind."""
    if layer.stochastic:
        return layer.walk(x, context, generator, inverse=inverse, **options)
    return Walk(*(layer.inverse if inverse else layer)(x, context))


def _systematic(log_weight: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Indices of systematic resampling, and the logarithm of the mean weight."""
    n, exact = len(log_weight), log_weight.detach().double()
    start = torch.rand((), generator=generator, dtype=exact.dtype, device=exact.device)
    which = choose(torch.softmax(exact, 0), (torch.arange(n).to(exact) + start) / n)
    return which, (torch.logsumexp(exact, 0) - math.log(n)).to(log_weight.dtype)
