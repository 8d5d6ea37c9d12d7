"""Stochastic layers between the layers of a flow that exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowkit import checks
from flowkit.energies import Energy, NegativeLogProb
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes.stochastic import chains, fractions_of, target_energy
from flowkit.transforms import Compose, Coupling, Elementwise, MaskedAutoregressive, Transform


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
    r"""Insert stochastic layers between the layers of a flow, which the new flow shares.

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
    shares = dict(zip(places, fractions_of(name, fractions, default), strict=True))
    start = NegativeLogProb(flow.base, context=flow.base.context_size)
    target = target_energy(name, energy, flow.base, flow.transform.context_size)
    if target.context_size and flow.embedding is not None:
        raise ArgumentError(
            f"{name} cannot give a context to the energy of a flow that embeds its context; "
            "remedy: an energy without context, or a flow with standardize=False"
        )
    chain = chains(name, layer, steps, step_size, learn_fractions)
    stack: list[Transform] = []
    for i in range(len(layers) + 1):
        if (share := shares.get(i)) is not None:
            stack.append(chain(start, target, share))
        stack += layers[i : i + 1]
    longer = Flow(Compose(*stack), flow.base, embedding=flow.embedding)
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
