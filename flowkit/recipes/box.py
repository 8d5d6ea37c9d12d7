"""Flows of data in a box with closed ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flowkit import checks
from flowkit.bases import Uniform
from flowkit.conditioners import FourierEncoding
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import IntervalSpline
from flowkit.transforms import Rescale, Transform


@parts.recipe
def box_flow(
    features: int,
    *,
    lower: float | Sequence[float],
    upper: float | Sequence[float],
    context: int = 0,
    layers: int = 1,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    conditioner: str | Callable[..., nn.Module] = "mlp",
    bins: int = 16,
    n_frequencies: int | None = None,
    max_frequency: float | None = None,
    order: Sequence[int] | None = None,
    seed: int | None = None,
) -> Flow:
    r"""Stack autoregressive splines on a box over a uniform base: bounded data, sharp edges.

    The density lives on :math:`\prod_i [l_i, u_i]` and is zero outside; at the ends it may be
    anything, where the other recipes with ``lower`` and ``upper`` tend to zero. For pixels,
    proportions, ranks and other bounded data. Every second layer reverses the order.

    Args:
        features: Number of features.
        lower: Lower ends of the box: one number, or one per feature.
        upper: Upper ends, likewise.
        context: Number of context features, which are standardised.
        layers: Number of autoregressive layers.
        hidden: Widths of the hidden layers of each network; (256, 256) by default.
        activation: Activation of each network; ``"relu"`` by default.
        conditioner: The network: ``"mlp"``, or a factory of causal networks as for
            :func:`autoregressive_flow`, which takes ``encoding=`` if there are frequencies.
        bins: Number of bins of each spline.
        n_frequencies: Number of random Fourier frequencies per feature that the networks read
            beside the features, for fine detail in few dimensions; none by default.
        max_frequency: Largest of these frequencies, in radians per half side of the box; 40 by
            default.
        order: Order of the features in the first layer, the first one first; as they come by
            default.
        seed: Seed of the frequencies and initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown, or ``max_frequency`` is given
            without ``n_frequencies``.

    References:
        Durkan et al. 2019, arXiv 1906.04032; Tancik et al. 2020, arXiv 2006.10739.

    Example:
        >>> import torch
        >>> from flowkit import box_flow
        >>> flow = box_flow(2, lower=0, upper=[1, 2])
        >>> flow.log_prob(torch.tensor([[0.5, 1.5], [0.5, 2.5]])).detach()
        tensor([-0.6931,    -inf])
    """
    name = "box_flow"
    lows, highs = checks.bounds(name, lower, upper, features)
    if not all(map(math.isfinite, (*lows, *highs))):
        raise checks.fail(
            name, "lower and upper", "finite numbers", (lower, upper),
            "another recipe with lower= and upper=, for open sides",
        )  # fmt: skip
    # Least bins twenty times smaller than a spline's default: in a box, detail can be fine.
    scalar = IntervalSpline(bins=bins, min_size=0.004, lower=-1.0, upper=1.0)
    first = range(features) if order is None else order
    first = checks.permutation(name, "order", first, features)
    net: Any = parts.network(
        name, conditioner, parts.MASKED_CONDITIONERS, hidden, activation,
        default=(256, 256), default_activation="relu",
    )  # fmt: skip
    if n_frequencies is not None:
        largest = 40.0 if max_frequency is None else max_frequency
        encoding = FourierEncoding(n_frequencies, max_frequency=largest)
        net = functools.partial(net, encoding=encoding)
    elif max_frequency is not None:
        raise ArgumentError(
            f"{name} reads max_frequency beside n_frequencies alone, got {max_frequency!r}; "
            "remedy: n_frequencies=32, for example"
        )
    stack: list[Transform] = [Rescale(lower=lows, upper=highs, circular=[False] * features)]
    for i in range(layers):
        reverse = first[::-1] if i % 2 else first
        stack.append(parts.autoregressive(features, scalar, net, context, reverse))
    return parts.finish(stack, Uniform(features, lower=-1.0, upper=1.0), context)
