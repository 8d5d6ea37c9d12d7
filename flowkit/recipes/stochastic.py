"""Recipes with stochastic layers: normalizing flows and Markov chains in turn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from flowkit.bases import Base, StandardNormal
from flowkit.conditioners import MLP
from flowkit.energies import Energy, Interpolation, NegativeLogProb, as_energy
from flowkit.energies.target import Target
from flowkit.errors import ArgumentError, DataError
from flowkit.flow import Flow
from flowkit.recipes.checks import check_flags, check_network, check_sizes
from flowkit.recipes.flows import named_scalar
from flowkit.recipes.registry import as_python, choose, recipe
from flowkit.scalar import ScalarMap
from flowkit.stochastic import (
    HMC,
    MALA,
    Metropolis,
    OverdampedLangevin,
    StochasticTransform,
    UnderdampedLangevin,
)
from flowkit.toys.energies import TOYS
from flowkit.transforms import Compose, Coupling, Elementwise, MaskedAutoregressive, Transform

_LAYERS: dict[str, Callable[..., StochasticTransform]] = {
    "hmc": HMC,
    "langevin": OverdampedLangevin,
    "mala": MALA,
    "metropolis": Metropolis,
    "underdamped": UnderdampedLangevin,
}


def _fractions(name: str, given: Any, default: list[float]) -> list[float | None]:
    """One fraction, or None, for every place of a layer."""
    if given is None:
        return list(default)
    fits = (
        isinstance(given, tuple)
        and len(given) == len(default)
        and all(
            f is None or (isinstance(f, (int, float)) and not isinstance(f, bool) and 0 <= f <= 1)
            for f in given
        )
    )
    if not fits or all(f is None for f in given):
        raise ArgumentError(
            f"{name} needs fractions as {len(default)} numbers in [0, 1] or None for no layer, "
            f"with one number at least; got {given!r}"
        )
    return list(given)


def _chain(
    layer: str,
    base: Energy,
    target: Energy,
    fraction: float,
    learn: bool,
    steps: int,
    step_size: Any,
) -> Transform:
    """A stochastic layer at one fraction of the way from base to target."""
    energy = Interpolation(base, target, fraction, learn and 0 < fraction < 1)
    options = {} if step_size is None else {"step_size": step_size}
    return choose("stochastic layer", layer, _LAYERS)(energy, steps=steps, **options)


def _target(name: str, energy: Any, base: Base, context: int) -> Energy:
    if isinstance(energy, str):
        energy = choose("energy", energy, TOYS)(*base.event_shape)
    if not isinstance(energy, Energy) and not callable(energy):
        raise ArgumentError(
            f"{name} needs energy as an Energy, a function of x, or one of "
            f"{', '.join(sorted(TOYS))}; got {energy!r}"
        )
    target = as_energy(energy, base.event_shape, context)
    if not target.context_size:
        like = next((t for t in target.buffers() if t.is_floating_point()), torch.zeros(()))
        Target(name, target).examine_direction(
            base, like, remedy="energy=lambda x: -log_prob(x), or NegativeLogProb(density)"
        )
    return target


@recipe
def stochastic_flow(
    features: int,
    energy: str | Energy | Callable[..., Any],
    context: int = 0,
    blocks: int = 3,
    scalar: str | ScalarMap | None = "affine",
    layer: str = "metropolis",
    steps: int = 20,
    step_size: float | Sequence[float] | None = None,
    fractions: Sequence[float | None] | None = None,
    learn_fractions: bool = False,
    hidden: Sequence[int] = (64, 64),
    activation: str = "silu",
    seed: int = 0,
) -> Flow:
    r"""A stochastic normalizing flow from a normal base towards an energy.

    From noise to data, every block is two couplings, which move the one half of the features and
    then the other, and a stochastic layer with the energy
    :math:`u_\lambda = (1 - \lambda) u_0 + \lambda u` between base and target. Block i of n has
    :math:`\lambda = i / n`, so that the last layer walks on the target. With ``scalar=None``
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
        scalar: ``"affine"``, ``"spline"``, ``"mixture"``, ``"smooth"``, a scalar map, or ``None``.
        layer: ``"metropolis"``, ``"mala"``, ``"hmc"``, ``"langevin"`` or ``"underdamped"``.
        steps: Steps of every stochastic layer.
        step_size: Its step size; by default that of the layer's class.
        fractions: :math:`\lambda` of ``blocks + 1`` layers: one at the base, then one after each
            block; ``None`` among them leaves a layer out. By default ``(None, 1/n, ..., 1)``.
        learn_fractions: Whether fractions strictly between 0 and 1 are parameters.
        hidden: Widths of the hidden layers of every conditioner.
        activation: See :class:`flowkit.conditioners.Conditioner`.
        seed: Seed of the halves.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Wu, Köhler, Noé 2020, Stochastic Normalizing Flows, arXiv 2002.06707.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> flow = stochastic_flow(2, "double_well")
        >>> x, log_weight = flow.sample_with_log_weight(100, DoubleWell())
        >>> x.shape, log_weight.shape, flow.stochastic
        (torch.Size([100, 2]), torch.Size([100]), True)
    """
    name = "stochastic_flow"
    check_sizes(name, features=features, context=context, blocks=blocks, steps=steps, seed=seed)
    check_network(name, hidden, activation)
    check_flags(name, learn_fractions=learn_fractions)
    base = StandardNormal(features)
    start, target = NegativeLogProb(base), _target(name, energy, base, context)
    places = _fractions(name, fractions, [i / blocks for i in range(blocks + 1)])
    if fractions is None:
        places[0] = None
    moves = None if scalar is None else named_scalar(scalar)
    net = functools.partial(MLP, hidden=hidden, activation=activation)
    shuffled = np.random.default_rng(seed).permutation(features).tolist()
    # With one feature there is only context to read.
    halves = [set(shuffled)] if features == 1 else [set(shuffled[::2]), set(shuffled[1::2])]
    stack: list[Transform] = []
    for i, fraction in enumerate(places):
        if i and moves is not None:
            stack += [_moving(features, half, moves, net, context) for half in halves]
        if fraction is not None:
            stack.append(_chain(layer, start, target, fraction, learn_fractions, steps, step_size))
    return Flow(Compose(*stack[::-1]), base)


def _moving(
    features: int, moved: set[int], scalar: ScalarMap, net: Callable[..., Any], context: int
) -> Transform:
    """A layer that moves some of the features."""
    if features == 1:
        return Elementwise(1, scalar, context=context, conditioner=net)
    return Coupling(
        [j in moved for j in range(features)], scalar, conditioner=net, context=context
    )


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
    r"""A new flow with stochastic layers between the layers of another, which it shares.

    Args:
        flow: A flow, trained or not, whose transform is a :class:`Compose`; left as it is.
        energy: The dimensionless energy of the target, as in :func:`stochastic_flow`.
        layer: Kind of layer, as there.
        steps: Steps of every one.
        step_size: Its step size; by default that of the layer's class.
        positions: Where: 0 is the side of the data, i after layer i of the ``Compose`` counted
            from there, its length the side of the noise. By default 0 and before every layer
            with a conditioner but the first: between two that learn.
        fractions: :math:`\lambda` of the energies between base and target, one a position from
            data to noise; by default 1, ..., 2/k, 1/k for k layers.
        learn_fractions: Whether fractions strictly between 0 and 1 are parameters.

    Returns:
        The new flow. It cannot be saved as a file: keep its ``state_dict``.

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
    if not isinstance(flow, Flow) or not isinstance(flow.transform, Compose):
        raise ArgumentError(
            f"{name} needs a Flow whose transform is a Compose, got {type(flow).__name__}"
        )
    layers: list[Any] = list(flow.transform.transforms)
    learned = [
        i
        for i, t in enumerate(layers)
        if isinstance(t, (Coupling, MaskedAutoregressive, Elementwise))
    ]
    places = sorted({0, *learned[1:]}) if positions is None else as_python(positions)
    if (
        not isinstance(places, (tuple, list))
        or not places
        or any(type(p) is not int or not 0 <= p <= len(layers) for p in places)
        or len(set(places)) < len(places)
    ):
        raise ArgumentError(
            f"{name} needs positions as different whole numbers from 0 to {len(layers)}, got "
            f"{positions!r}"
        )
    places = sorted(places)
    check_sizes(name, steps=steps)
    check_flags(name, learn_fractions=learn_fractions)
    count = len(places)
    default = [(count - i) / count for i in range(count)]
    shares = _fractions(name, as_python(fractions), default)
    start = NegativeLogProb(flow.base, flow.base.context_size)
    target = _target(name, energy, flow.base, flow.transform.context_size)
    if target.context_size and flow.embedding is not None:
        raise ArgumentError(
            f"{name} cannot give a context to the energy of a flow that embeds its context; "
            "remedy: an energy without context, or a flow with standardize=False"
        )
    stack: list[Transform] = []
    for i in range(len(layers) + 1):
        if i in places and (share := shares[places.index(i)]) is not None:
            try:
                chain = _chain(layer, start, target, share, learn_fractions, steps, step_size)
            except DataError as error:
                raise ArgumentError(f"{name} cannot be built: {error}") from error
            stack.append(chain)
        stack += layers[i : i + 1]
    longer = Flow(Compose(*stack), flow.base, embedding=flow.embedding)
    longer.initialized.copy_(flow.initialized)
    return longer
