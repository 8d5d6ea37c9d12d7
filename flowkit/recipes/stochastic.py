"""Stochastic normalizing flows: couplings and Markov chains that alternate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowkit import checks
from flowkit.bases import Base, StandardNormal
from flowkit.energies import Energy, Interpolation, NegativeLogProb
from flowkit.energies.base import as_energy
from flowkit.energies.target import Target
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import ScalarMap
from flowkit.stochastic import (
    HMC,
    MALA,
    Metropolis,
    OverdampedLangevin,
    StochasticTransform,
    UnderdampedLangevin,
)
from flowkit.toys import TOYS, make_toy
from flowkit.transforms import Compose, Coupling, Elementwise, MaskedAutoregressive, Transform

LAYERS: dict[str, Callable[..., StochasticTransform]] = {
    "hmc": HMC,
    "langevin": OverdampedLangevin,
    "mala": MALA,
    "metropolis": Metropolis,
    "underdamped": UnderdampedLangevin,
}


@parts.recipe
def stochastic_flow(
    features: int,
    *,
    energy: str | Energy | Callable[..., Any],
    context: int = 0,
    blocks: int = 3,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str | ScalarMap | None = "affine",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    layer: str = "metropolis",
    steps: int = 20,
    step_size: float | Sequence[float] | None = None,
    fractions: Sequence[float | None] | None = None,
    learn_fractions: bool = False,
    seed: int | None = None,
) -> Flow:
    r"""Alternate couplings and Markov chains, from a normal base to the density of an energy.

    From noise to data, each block is two couplings, which transform one half of the features and
    then the other, and a stochastic layer with the energy
    :math:`u_\lambda = (1 - \lambda) u_0 + \lambda u` between base and target. Block i of n has
    :math:`\lambda = i / n`, so that the last layer samples the target. With ``scalar=None``
    there are no couplings: annealed importance sampling, and with ``resample=`` of
    :func:`flowkit.stochastic.paths.sample_paths` a sequential Monte Carlo sampler.

    Args:
        features: Number of features D.
        energy: The dimensionless energy of the target: an :class:`flowkit.energies.Energy`, a
            function ``(*batch, D) -> (*batch,)``, or the name of a toy: ``"double_well"``,
            ``"funnel"``, ``"mixture"`` or ``"ring"``.
        context: Number of context features, which couplings read, and the energy too if it is a
            function.
        blocks: Number of blocks.
        hidden: Widths of the hidden layers of each network; (64, 64) by default.
        activation: Activation of each network; ``"silu"`` by default.
        scalar: The scalar map of the couplings, as in :func:`coupling_flow`, or ``None``.
        conditioner: Their networks, as in :func:`coupling_flow`.
        layer: ``"metropolis"``, ``"mala"``, ``"hmc"``, ``"langevin"`` or ``"underdamped"``.
        steps: Number of steps of each stochastic layer.
        step_size: Their step size; by default that of the layer's class.
        fractions: :math:`\lambda` of ``blocks + 1`` layers: one at the base, then one after each
            block; ``None`` among them leaves a layer out. By default ``(None, 1/n, ..., 1)``.
        learn_fractions: Whether fractions strictly between 0 and 1 are parameters.
        seed: Seed of the halves and initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown, or is for the networks of
            couplings and there are none.

    References:
        Wu, Köhler, Noé 2020, Stochastic Normalizing Flows, arXiv 2002.06707.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> flow = stochastic_flow(2, energy="double_well")
        >>> x, log_weight = flow.sample_with_log_weight(100, DoubleWell())
        >>> x.shape, log_weight.shape, flow.stochastic
        (torch.Size([100, 2]), torch.Size([100]), True)
    """
    name = "stochastic_flow"
    base = StandardNormal(features)
    places = _fractions(name, fractions, [i / blocks for i in range(blocks + 1)])
    if fractions is None:
        places[0] = None
    maps = None if scalar is None else parts.scalar_map(name, scalar)
    if maps is None:
        parts.refuse_unread(name, "scalar", hidden, activation, conditioner)
    net = parts.network(
        name, conditioner, parts.CONDITIONERS, hidden, activation, default=(64, 64)
    )
    ends = NegativeLogProb(base), _target(name, energy, base, context)
    chain = _chains(name, ends, layer, steps, step_size, learn_fractions)
    stack: list[Transform] = []
    shuffled = parts.shuffled(features)
    # With one feature there is only context to read.
    halves = [shuffled] if features == 1 else [shuffled[::2], shuffled[1::2]]
    for i, fraction in enumerate(places):
        if i and maps is not None:
            for half in halves:
                mask = [j in half for j in range(features)]
                stack.append(parts.coupling(mask, maps, net, context))
        if fraction is not None:
            stack.append(chain(fraction))
    return parts.finish(stack[::-1], base, 0)


def insert_stochastic_layers(
    flow: Flow,
    energy: Energy | Callable[..., Any] | str,
    *,
    layer: str = "metropolis",
    steps: int = 20,
    step_size: float | Sequence[float] | None = None,
    positions: Sequence[int] | None = None,
    fractions: Sequence[float] | None = None,
    learn_fractions: bool = False,
) -> Flow:
    r"""Insert stochastic layers between the layers of a flow, which both flows then share.

    Args:
        flow: A flow, trained or not, whose transform is a :class:`Compose`; left as it is.
        energy: The dimensionless energy of the target, as in :func:`stochastic_flow`.
        layer: Kind of layer, as there.
        steps: Number of steps of each.
        step_size: Its step size; by default that of the layer's class.
        positions: Where: 0 is the side of the data, i after layer i of the ``Compose`` counted
            from there, its length the side of the noise. By default 0 and before every layer
            with a conditioner but the first: between two that learn.
        fractions: :math:`\lambda` of the energies between base and target, one per position from
            data to noise; by default 1, ..., 2/k, 1/k for k layers.
        learn_fractions: Whether fractions strictly between 0 and 1 are parameters.

    Returns:
        The new flow.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    Example:
        >>> from flowkit import coupling_flow
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.recipes import insert_stochastic_layers
        >>> flow = coupling_flow(2, layers=2, scalar="affine")
        >>> longer = insert_stochastic_layers(flow, DoubleWell(), layer="langevin", steps=5)
        >>> len(longer.transform) - len(flow.transform), longer.stochastic
        (2, True)
    """
    name = "insert_stochastic_layers"
    flow = checks.instance(name, "flow", flow, Flow)
    if not isinstance(flow.transform, Compose):
        words = "a Flow whose transform is a Compose"
        raise checks.fail(name, "flow", words, type(flow.transform).__name__)
    layers: list[Any] = list(flow.transform.transforms)
    places = _places(name, positions, layers)
    default = [1 - i / len(places) for i in range(len(places))]
    shares = dict(zip(places, _fractions(name, fractions, default), strict=True))
    start = NegativeLogProb(flow.base, context=flow.base.context_size)
    target = _target(name, energy, flow.base, flow.transform.context_size)
    if target.context_size and flow.embedding is not None:
        raise ArgumentError(
            f"{name} cannot give a context to the energy of a flow that embeds its context; "
            "remedy: an energy without context, or a flow with start=None"
        )
    chain = _chains(name, (start, target), layer, steps, step_size, learn_fractions)
    stack: list[Transform] = []
    moved: list[int] = []
    for i in range(len(layers) + 1):
        if (share := shares.get(i)) is not None:
            stack.append(chain(share))
        moved.append(len(stack))
        stack += layers[i : i + 1]
    starts = {name: [moved[i] for i in of] for name, of in flow.transform.starts.items()}
    longer = Flow(Compose(*stack, starts=starts), flow.base, embedding=flow.embedding)
    longer.initialized.copy_(flow.initialized)
    return longer


def _places(name: str, positions: Any, layers: list[Any]) -> list[int]:
    """Where stochastic layers stand, from data to noise."""
    if positions is None:
        kinds = (Coupling, MaskedAutoregressive, Elementwise)
        learned = [i for i, layer in enumerate(layers) if isinstance(layer, kinds)]
        return sorted({0, *learned[1:]})
    places = sorted(checks.integers(name, "positions", positions, least=0))
    if not places or len(set(places)) < len(places) or places[-1] > len(layers):
        words = f"different integers from 0 to {len(layers)}"
        raise checks.fail(name, "positions", words, positions)
    return places


def _fractions(name: str, given: Any, default: list[float]) -> list[float | None]:
    """One fraction, or None, for each place of a stochastic layer."""
    if given is None:
        return list(default)
    listed = checks.as_list(given) or []
    reals = [None if f is None else checks.as_float(f) for f in listed]
    numbers = [f for f in reals if f is not None]
    if len(reals) != len(default) or not numbers or not all(0 <= f <= 1 for f in numbers):
        words = f"{len(default)} numbers in [0, 1], or None for no layer, with one number at least"
        raise checks.fail(name, "fractions", words, given)
    return reals


def _chains(
    name: str, ends: tuple[Energy, Energy], layer: Any, steps: Any, step_size: Any, learn: Any
) -> Callable[[float], Transform]:
    """A factory of stochastic layers, ``fraction -> layer``, between two energies."""
    kind = checks.choice(name, "layer", layer, LAYERS)
    learn = checks.flag(name, "learn_fractions", learn)
    options = {"steps": steps} | ({} if step_size is None else {"step_size": step_size})

    def chain(fraction: float) -> Transform:
        between = Interpolation(*ends, fraction, learn=learn and 0 < fraction < 1)
        return kind(between, **options)

    return chain


def _target(name: str, energy: Any, base: Base, context: int) -> Energy:
    """The energy of the target, from an energy, a function or the name of a toy."""
    if isinstance(energy, str):
        checks.choice(name, "energy", energy, TOYS)
        energy = make_toy(energy, base.event_shape[0])
    if not isinstance(energy, Energy) and not callable(energy):
        words = f"an Energy, a function of x, or one of {', '.join(sorted(TOYS))}"
        raise checks.fail(name, "energy", words, energy)
    target = as_energy(energy, base.event_shape, context=context)
    if not target.context_size:
        like = next((t for t in target.buffers() if t.is_floating_point()), torch.zeros(()))
        Target(name, target).examine_direction(
            base, like, remedy="energy=lambda x: -log_prob(x), or NegativeLogProb(density)"
        )
    return target
