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
    conv_flow,
    coupling_flow,
    dense_flow,
    elementwise_flow,
    glow_flow,
    kernelised_flow,
    smooth_flow,
    stochastic_flow,
    tail_adaptive_flow,
)
from flowkit.conditioners import MLP, ConvNet, MaskedMLP
from flowkit.kernels import Matern
from flowkit.recipes import insert_stochastic_layers
from flowkit.recipes.parts import build_for_columns
from flowkit.scalar import Affine
from flowkit.toys import DoubleWell, Ring

from .harness import differs, falls, number_of_parameters, of, rises
from .parts import UNIT, X, rows, stirred

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


def conditioner(make: Callable[..., Flow]) -> Any:
    """A factory of the networks of a recipe, with other widths than the default."""
    return partial(MaskedMLP if make in (autoregressive_flow, box_flow) else MLP, hidden=(9,))


def shared(make: Callable[..., Flow]) -> dict[str, Any]:
    """Cases of the recipes of rows on the line."""
    # Without context there are no networks in elementwise flows.
    fixed = {"layers": 2} if make is elementwise_flow else tiny
    see = density(make, 3, x=three, **fixed)
    starts = ["standardize", None]
    if make is not elementwise_flow:
        starts += ["gaussian", "margins"]
    return {
        **network(make, 3, **fixed) | {"activation": differs("relu", "tanh", see=see)},
        "scalar": differs("affine", "mixture", "smooth", Affine(1.0), see=see),
        "base": differs("student_t", "logistic", "mixture", see=see),
        "conditioner": differs(
            conditioner(make), see=density(make, 3, x=three, layers=2, context=1)
        ),
        "start": differs(*starts, see=layers(make, 3, **fixed)),
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


of(coupling_flow, None, **shared(coupling_flow), **mixed(coupling_flow))
of(autoregressive_flow, None, **shared(autoregressive_flow), **mixed(autoregressive_flow))
elementwise = shared(elementwise_flow)
# Without context there is no network.
conditional = {"context": 1, **tiny}
elementwise |= {
    "context": rises(1, 3, see=count(elementwise_flow, 3, layers=2)),
    "seed": differs(1, 2, see=density(elementwise_flow, 3, x=three, layers=2, context=1)),
    "hidden": rises((16,), base=(8,), see=count(elementwise_flow, 3, **conditional)),
    "activation": differs(
        "relu", "tanh", see=density(elementwise_flow, 3, x=three, **conditional)
    ),
}
of(elementwise_flow, None, **elementwise)

box: dict[str, Any] = {"lower": 0.0, "upper": 1.0, **tiny}
see_box = density(box_flow, 2, x=UNIT, bins=4, **box)
see_frequencies = density(box_flow, 2, x=UNIT, **box, n_frequencies=4)
of(
    box_flow,
    see_box,
    lower=differs(-1.0, (-1.0, 0.0), base=0.0),
    upper=differs(2.0, (1.0, 2.0), base=1.0),
    context=rises(1, 3, see=count(box_flow, 2, **box)),
    layers=rises(3, 4, see=count(box_flow, 2, **box)),
    hidden=rises((16,), (16, 16), base=(8,), see=count(box_flow, 2, **box)),
    activation=differs("silu", "tanh"),
    conditioner=differs(
        conditioner(box_flow), see=density(box_flow, 2, x=UNIT, lower=0.0, upper=1.0)
    ),
    bins=rises(20, 30, see=count(box_flow, 2, **box)),
    n_frequencies=rises(4, 8, see=count(box_flow, 2, **box)),
    max_frequency=differs(2.0, 100.0, see=see_frequencies),
    order=differs((1, 0)),
    seed=differs(1, 2, see=see_frequencies),
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
    linear_term=rises(True),
    learn_points=falls(False),
    n_frequencies=differs(3, 4, using={"points": None}),
    elementwise=rises("affine", "spline"),
    start=differs("gaussian", "margins", "standardize", None, see=layers(kernels, 3)),
    seed=differs(1, 2, see=partial(see_permutations, kernels)),
)

see_smooth = density(smooth_flow, 2, x=0.5 * X, components=3, **tiny)
of(
    smooth_flow,
    see_smooth,
    circular=differs(True, (True, False), (False, True)),
    lower=differs(-3.0, (-3.0, None), using={"upper": 3.0}),
    upper=differs(3.0, (3.0, None), using={"lower": -3.0}),
    conditioner=differs(
        conditioner(smooth_flow), see=density(smooth_flow, 2, x=0.5 * X, components=3, layers=2)
    ),
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


def unbounded(make: Callable[..., Flow], shape: Any, **fixed: Any) -> dict[str, Any]:
    """Cases of what the flows for training without determinants share."""
    see = layers(make, shape, **fixed)
    return {
        "layers": rises(3, 5, base=2, see=count(make, shape)),
        "lower": differs(-0.5, -1.0, see=lambda **o: logit(make, shape, **{"upper": 2.0} | o)),
        "upper": differs(2.0, 3.0, see=lambda **o: logit(make, shape, **{"lower": -1.0} | o)),
        "standardize": differs(False, see=see),
    }


def logit(make: Callable[..., Flow], shape: Any, **options: Any) -> Any:
    """The ends of the logit that a flow starts with; without it, the first error in words."""
    if {"lower", "upper"} - set(options):
        return None
    region = make(shape, **options).region()
    return None if region is None else [end.flatten() for end in region]


of(
    dense_flow,
    None,
    **unbounded(dense_flow, 2),
    negative_slope=differs(0.1, 0.9, see=density(dense_flow, 2)),
)
of(
    conv_flow,
    count(conv_flow, images),
    **unbounded(conv_flow, images),
    scales=rises(2, 3, base=1),
    kernel=rises(5, base=3),
    negative_slope=differs(
        0.1, 0.9, see=density(conv_flow, images, x=rows(3, 16).view(3, 1, 4, 4))
    ),
)
see_glow = density(glow_flow, images, x=rows(3, 16).view(3, 1, 4, 4), layers=1)
of(
    glow_flow,
    count(glow_flow, images),
    **unbounded(glow_flow, images),
    hidden=rises((16,), base=(8,)),
    activation=differs("relu", "tanh", see=see_glow),
    conditioner=differs(partial(ConvNet, hidden=(9,)), see=see_glow),
    scales=rises(2, base=1),
    seed=differs(1, 2, see=see_glow),
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
see_chain = count(stochastic_flow, 2, energy=well, **annealed)
of(
    stochastic_flow,
    sampled(stochastic_flow, 2, energy=well, **annealed),
    energy=differs(Ring(), "funnel"),
    context=rises(1, 2, see=see_chain),
    blocks=rises(3, 4, see=see_chain),
    scalar=rises(
        "affine",
        "spline",
        base=None,
        see=count(stochastic_flow, 2, energy=well, blocks=2, steps=2),
    ),
    **WALKS,
    fractions=differs((None, 0.3, 1.0), (0.0, 0.5, 1.0)),
    learn_fractions=rises(True, see=see_chain),
    hidden=rises((16,), base=(8,), see=see_chain),
    activation=differs("relu", "tanh", see=lambda **o: stirred_noise(**o)),
    conditioner=differs("residual", see=lambda **o: stirred_noise(**o)),
    seed=differs(1, 2, 3, see=lambda **o: halves(**o)),
)


def stirred_noise(**options: Any) -> Any:
    """What the couplings of a stochastic flow, their parameters moved, make of noise."""
    flow = stirred(
        stochastic_flow(2, energy=well, **{**annealed, "fractions": (0.0, None, None), **options})
    )
    return flow.to_data(X)


def halves(**options: Any) -> Any:
    """Which features each coupling transforms."""
    flow = stochastic_flow(12, energy=springs, context=1, **{**annealed, "steps": 1, **options})
    couplings = [t for t in flow.transform.transforms if type(t).__name__ == "Coupling"]
    return [t.transformed_index for t in couplings]


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

heavy: dict[str, Any] = {"tails": (2.0, None), **tiny}
see_tails = density(tail_adaptive_flow, 2, x=HEAVY, **heavy)
of(
    tail_adaptive_flow,
    see_tails,
    **network(tail_adaptive_flow, 2, **heavy),
    tails=differs((3.0, None), 2.0, base=(2.0, None)),
    lower=differs(-99.0, (-99.0, None)),
    upper=differs(99.0, (99.0, None)),
    conditioner=differs(
        partial(MaskedMLP, hidden=(9,)),
        see=density(tail_adaptive_flow, 2, x=HEAVY, layers=2, tails=(2.0, None)),
    ),
    variant=differs("gtaf", "taf", "ttf"),
    structure=differs("coupling"),
    scalar=differs("affine", Affine(1.0)),
    seed=differs(1, 2, see=lambda **o: tail_orders(**o)),
)


def tail_orders(**options: Any) -> Any:
    """The orders of the features within their groups."""
    flow = tail_adaptive_flow(8, **{**tiny, "tails": [2.0] * 4 + [None] * 4, **options})
    return [t.order for t in flow.transform.transforms if type(t).__name__ == "Permutation"]


# Building by name ---------------------------------------------------------------------------

of(
    build_for_columns,
    lambda **o: number_of_parameters(build_for_columns("coupling_flow", 2, **o)),
    options=differs({"layers": 3}, {"layers": 2, "hidden": (8,)}),
)
