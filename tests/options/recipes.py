"""Recipes: every argument changes the flow that is built, its size or its density."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from flowkit import (
    Flow,
    autoregressive_flow,
    box_flow,
    coupling_flow,
    elementwise_flow,
    energy_based_flow,
    kernelised_flow,
    smooth_flow,
    stochastic_flow,
    tail_adaptive_flow,
)
from flowkit.conditioners import MLP
from flowkit.kernels import Matern
from flowkit.recipes import build, insert_stochastic_layers
from flowkit.recipes.checks import check_flags, check_sizes
from flowkit.recipes.registry import build_for_columns
from flowkit.scalar import Affine
from flowkit.toys import DoubleWell

from .harness import differs, falls, number_of_parameters, of, rises, shows
from .parts import UNIT, X, message, rows, stirred

HEAVY = 3 * rows(12, 2)


def density(make: Callable[..., Flow], *args: Any, x: Any = X, **fixed: Any) -> Any:
    """The log-density of a flow whose parameters are moved, at some rows."""

    def see(**options: Any) -> Any:
        flow = stirred(make(*args, **{**fixed, **options}), 0.3)
        context = torch.ones(len(x), flow.context_size) if flow.needs_context else None
        return flow.log_prob(x, context)

    return see


def count(make: Callable[..., Flow], *args: Any, **fixed: Any) -> Any:
    """The number of parameters of a flow."""
    return lambda **o: number_of_parameters(make(*args, **{**fixed, **o}))


def layers(make: Callable[..., Flow], *args: Any, **fixed: Any) -> Any:
    """The names of the layers of a flow."""
    return lambda **o: [
        type(t).__name__ for t in make(*args, **{**fixed, **o}).transform.transforms
    ]


def network(make: Callable[..., Flow], *args: Any, **fixed: Any) -> dict[str, Any]:
    """Cases of what most recipes share."""
    activation = "gelu" if make is smooth_flow else "relu"
    return {
        "context": rises(1, 3, see=count(make, *args, **fixed)),
        "layers": rises(3, 4, see=count(make, *args, **fixed)),
        "hidden": rises((16,), (16, 16), base=(8,), see=count(make, *args, **fixed)),
        "activation": differs(activation, "tanh", see=density(make, *args, **fixed)),
    }


tiny: dict[str, Any] = {"layers": 2, "hidden": (8,)}
three = rows(6, 3)


def shared(make: Callable[..., Flow]) -> dict[str, Any]:
    """Cases of the recipes of rows on the line."""
    see = density(make, 3, x=three, **tiny)
    return {
        **network(make, 3, **tiny) | {"activation": differs("relu", "tanh", see=see)},
        "scalar": differs("affine", "mixture", "smooth", Affine(1.0), see=see),
        "base": differs("student_t", "logistic", "mixture", see=see),
        "standardize": differs(False, see=layers(make, 3, **tiny)),
    }


def mixed(make: Callable[..., Flow]) -> dict[str, Any]:
    """Cases of the recipes that mix features."""
    see = density(make, 3, x=three, **tiny)
    return {
        "linear": differs("orthogonal", "permutation", None, see=see),
        "seed": differs(1, 2, see=partial(see_permutations, make)),
    }


def see_permutations(make: Callable[..., Flow], **options: Any) -> Any:
    """The orders of the features in the layers of a flow."""
    flow = make(9, **{"layers": 2, "linear": "permutation", **options})
    return [t.order for t in flow.transform.transforms if type(t).__name__ == "Permutation"]


of(
    coupling_flow,
    density(coupling_flow, 3, x=three, **tiny),
    **shared(coupling_flow),
    **mixed(coupling_flow),
    conditioner=differs("residual", partial(MLP, hidden=(9,))),
)
of(autoregressive_flow, None, **shared(autoregressive_flow), **mixed(autoregressive_flow))
elementwise = shared(elementwise_flow)
# Without context there is no network.
conditional = {"context": 1, **tiny}
elementwise |= {
    "hidden": rises((16,), base=(8,), see=count(elementwise_flow, 3, **conditional)),
    "activation": differs(
        "relu", "tanh", see=density(elementwise_flow, 3, x=three, **conditional)
    ),
}
of(elementwise_flow, None, **elementwise)

box = ((0.0, 0.0), (1.0, 1.0))
see_box = density(box_flow, *box, x=UNIT, bins=4, **tiny)
of(
    box_flow,
    see_box,
    features=rises(3, 4, base=2, see=lambda **o: float(box_flow(0.0, 1.0, **o).event_shape[0])),
    context=rises(1, 3, see=count(box_flow, *box, **tiny)),
    layers=rises(3, 4, see=count(box_flow, *box, **tiny)),
    hidden=rises((16,), (16, 16), base=(8,), see=count(box_flow, *box, **tiny)),
    activation=differs("silu", "tanh"),
    bins=rises(20, 30, see=count(box_flow, *box, **tiny)),
    waves=rises(4, 8, see=count(box_flow, *box, **tiny)),
    highest=differs(2.0, 100.0, using={"waves": 4}),
    order=differs((1, 0)),
    seed=differs(1, 2, using={"waves": 4}),
)

kernels = partial(kernelised_flow, layers=2, points=5)
see_kernels = density(kernels, 3, x=three)
of(
    kernelised_flow,
    count(kernels, 3),
    context=rises(1, 2),
    layers=rises(3, 4),
    points=rises(6, 8),
    kernel=differs("matern-1/2", "squared-exponential", Matern(), see=see_kernels),
    scalar=differs("spline", "mixture", see=see_kernels),
    linear=differs("orthogonal", "permutation", None, see=see_kernels),
    mean=rises(True),
    learn_points=falls(False),
    frequencies=differs(3, 4),
    elementwise=rises("affine", "spline"),
    standardize=differs(False, see=layers(kernels, 3)),
    seed=differs(1, 2, see=partial(see_permutations, kernels)),
)

see_smooth = density(smooth_flow, 2, x=0.5 * X, components=3, **tiny)
of(
    smooth_flow,
    see_smooth,
    circular=differs(True, (True, False), (False, True)),
    bounds=differs((-3.0, 3.0), ((-3.0, 3.0), None), (None, (-3.0, 3.0))),
    **network(smooth_flow, 2, components=3, **tiny),
    structure=differs("autoregressive"),
    scalar=differs("spline"),
    components=rises(20, 24, see=count(smooth_flow, 2, **tiny)),
    seed=differs(
        1,
        2,
        using={"structure": "autoregressive"},
        see=density(smooth_flow, 9, x=0.3 * rows(6, 9), **tiny),
    ),
)

images = (1, 4, 4)
of(
    energy_based_flow,
    count(energy_based_flow, images),
    architecture=differs("conv", "glow", "coupling"),
    layers=rises(3, 4),
    scales=rises(2, base=1, using={"architecture": "glow"}),
    bounds=differs((0.0, 1.0), see=layers(energy_based_flow, 2)),
    standardize=differs(False, see=layers(energy_based_flow, 2)),
    negative_slope=differs(0.1, 0.9, see=density(energy_based_flow, 2)),
    kernel=rises(5, base=3, using={"architecture": "conv"}),
    hidden=rises((16,), base=(8,), using={"architecture": "coupling"}),
    activation=differs(
        "relu", "tanh", see=density(energy_based_flow, 2, architecture="coupling", layers=2)
    ),
)

well = DoubleWell()


def sampled(make: Callable[..., Flow], *args: Any, **fixed: Any) -> Any:
    """Samples with their log weights."""

    def see(**options: Any) -> Any:
        flow = make(*args, **{**fixed, **options})
        return flow.sample_with_log_weight(8, well)

    return see


def springs(x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """An energy that reads a context."""
    return (x - context[..., :1]).square().sum(-1)


annealed = {"blocks": 2, "steps": 2, "hidden": (8,)}
WALKS: dict[str, Any] = {
    "layer": differs("mala", "hmc", "langevin", "underdamped"),
    "steps": differs(1, 3),
    "step_size": differs(0.01, (0.01, 0.1)),
}
see_chain = count(stochastic_flow, 2, well, **annealed)
of(
    stochastic_flow,
    sampled(stochastic_flow, 2, well, **annealed),
    context=rises(1, 2, see=count(stochastic_flow, 2, well, **annealed)),
    blocks=rises(3, 4, see=see_chain),
    scalar=rises("affine", "spline", base=None, see=see_chain),
    **WALKS,
    fractions=differs((None, 0.3, 1.0), (0.0, 0.5, 1.0)),
    learn_fractions=rises(True, see=see_chain),
    hidden=rises((16,), base=(8,), see=see_chain),
    activation=differs("relu", "tanh", see=lambda **o: stirred_noise(**o)),
    seed=differs(1, 2, 3, see=lambda **o: halves(**o)),
)


def stirred_noise(**options: Any) -> Any:
    """What the couplings of a stochastic flow, their parameters moved, make of noise."""
    flow = stirred(
        stochastic_flow(2, well, **{**annealed, "fractions": (0.0, None, None), **options})
    )
    return flow.to_data(X)


def halves(**options: Any) -> Any:
    """Which features each coupling moves."""
    flow = stochastic_flow(6, springs, 1, **{**annealed, "steps": 1, **options})
    return [t.moved_index for t in flow.transform.transforms if hasattr(t, "moved_index")]


def inserted(**options: Any) -> Flow:
    """A small flow with chains between its layers."""
    flow = coupling_flow(2, layers=2, scalar="affine", hidden=(8,))
    return insert_stochastic_layers(flow, well, **{"steps": 2, **options})


of(
    insert_stochastic_layers,
    sampled(inserted),
    **WALKS,
    positions=differs((0,), (1, 2), see=layers(inserted)),
    fractions=differs((1.0, 0.0), (0.9, 0.5)),
    learn_fractions=rises(True, see=count(inserted)),
)

see_tails = density(tail_adaptive_flow, (2.0, None), x=HEAVY, **tiny)
of(
    tail_adaptive_flow,
    see_tails,
    **network(tail_adaptive_flow, (2.0, None), **tiny),
    variant=differs("gtaf", "taf", "ttf"),
    kind=differs("coupling"),
    scalar=differs("affine", Affine(1.0)),
    seed=differs(1, 2, see=lambda **o: tail_orders(**o)),
)


def tail_orders(**options: Any) -> Any:
    """The orders of the features within their groups."""
    flow = tail_adaptive_flow([2.0] * 4 + [None] * 4, **{**tiny, **options})
    return [t.order for t in flow.transform.transforms if type(t).__name__ == "Permutation"]


# Building by name ---------------------------------------------------------------------------

of(
    build,
    lambda **o: build("coupling_flow", **{"features": 2, "layers": 2, **o}).recipe,
    arguments=differs({"layers": 3}, {"layers": 2, "hidden": (8,)}),
)
of(
    build_for_columns,
    lambda **o: build_for_columns("coupling_flow", 2, **o).recipe,
    arguments=differs({"layers": 3}, {"layers": 2, "hidden": (8,)}),
)
of(
    check_sizes,
    lambda **o: message(lambda: check_sizes("a recipe", **o)),
    sizes=shows(bool, {"layers": 0}, {"context": -1}),
)
of(
    check_flags,
    lambda **o: message(lambda: check_flags("a recipe", **o)),
    flags=shows(bool, {"mean": 1}, {"standardize": "yes"}),
)
