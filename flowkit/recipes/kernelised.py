"""The recipe of kernelised flows: few parameters, for little data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import add

from flowkit.bases import StandardNormal
from flowkit.conditioners import KernelConditioner, RandomFourierConditioner, StandardizeContext
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.kernels import Kernel, Matern, RationalQuadratic, SquaredExponential
from flowkit.recipes.checks import check_flags, check_sizes
from flowkit.recipes.flows import half, mixing, named_scalar, unconstrained
from flowkit.recipes.registry import choose, recipe
from flowkit.scalar import ScalarMap
from flowkit.transforms import Compose, Coupling, Elementwise, Standardize

_KERNELS: dict[str, Callable[[], Kernel]] = {
    "squared-exponential": SquaredExponential,
    "matern-1/2": functools.partial(Matern, nu=0.5),
    "matern-3/2": functools.partial(Matern, nu=1.5),
    "matern-5/2": functools.partial(Matern, nu=2.5),
    "rational-quadratic": RationalQuadratic,
}


def _named(name: str) -> Kernel:
    """One kernel, or a sum of some: ``"matern-5/2 + rational-quadratic"``."""
    parts = [choose("kernel", part.strip(), _KERNELS)() for part in name.split("+")]
    return functools.reduce(add, parts)


@recipe
def kernelised_flow(
    features: int,
    context: int = 0,
    layers: int = 8,
    points: int = 150,
    kernel: str | Kernel = "matern-3/2",
    scalar: str | ScalarMap = "affine",
    linear: str | None = "lu",
    mean: bool = False,
    learn_points: bool = True,
    frequencies: int | None = None,
    elementwise: str | ScalarMap | None = None,
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    """A stack of coupling layers whose functions are kernel expansions, not networks.

    A layer has N ``points``, which are learned, and a weight a point and parameter: with affine
    maps :math:`2N(D - d) + Nd` for d of D features that stay, a tenth of the parameters of a
    network up to some ten features. Functions are smooth and fall back to the identity where no
    data are. Made for some hundreds of rows. Early stopping, which ``fit`` has, remains
    necessary; :class:`flowkit.KernelNorm` is the penalty to add.

    Args:
        features: Number of features D.
        context: Number of context features.
        layers: Number of coupling layers.
        points: Number of auxiliary points a layer.
        kernel: ``"squared-exponential"``, ``"matern-1/2"``, ``"matern-3/2"``, ``"matern-5/2"``,
            ``"rational-quadratic"``, a sum of such as ``"matern-1/2 + matern-5/2"``, or a
            kernel without a number of features, such as ``Matern(nu=1.5) * RationalQuadratic()``.
        scalar: ``"affine"``, ``"spline"``, ``"mixture"``, or a scalar map.
        linear: What mixes the features between layers: ``"lu"``, ``"orthogonal"``,
            ``"permutation"``, or ``None``, where the two halves alternate.
        mean: Whether an affine function is added to each expansion.
        learn_points: Whether points are learned, or stay where the first fit puts them, on the
            data as they reach the layer then.
        frequencies: Number of random Fourier frequencies, in place of points, for one kernel that
            is squared-exponential or Matérn; see
            :class:`flowkit.conditioners.RandomFourierConditioner`.
        elementwise: A scalar map of every feature by itself before each coupling layer, named as
            ``scalar`` is: ``"spline"`` bends marginal distributions for some twenty parameters a
            feature, which kernels of many features learn badly.
        lower: Where the data begin: a number, or one for each feature, ``None`` or ``-inf`` where
            there is no such end. ``lower=0`` is for positive data. See
            :class:`flowkit.transforms.Unconstrain`, with which the flow then starts.
        upper: Where they end, likewise.
        standardize: Whether the flow starts with a :class:`flowkit.transforms.Standardize`.
        seed: Seed of the permutations and of the frequencies.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        English, Kirchler, Lippert 2024, Kernelised Normalising Flows, arXiv 2307.14839.

    Example:
        >>> import torch
        >>> from flowkit import kernelised_flow
        >>> flow = kernelised_flow(features=6, layers=2)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    name = "kernelised_flow"
    check_sizes(name, features=features, context=context, layers=layers, points=points, seed=seed)
    check_flags(name, mean=mean, learn_points=learn_points, standardize=standardize)
    if features + context < 2:
        raise ArgumentError(
            f"{name} needs at least 2 features, or context to read, got 1 feature(s); remedy: "
            "elementwise_flow"
        )
    chosen = named_scalar(scalar)
    alone = None if elementwise is None else named_scalar(elementwise)
    chosen_kernel = _named(kernel) if isinstance(kernel, str) else kernel
    stack = unconstrained(name, features, lower, upper)
    stack += [Standardize(features)] if standardize else []
    for i in range(layers):
        net: Callable[..., KernelConditioner | RandomFourierConditioner]
        if frequencies is None:
            net = functools.partial(
                KernelConditioner,
                points=points,
                kernel=chosen_kernel,
                linear_term=mean,
                learn_points=learn_points,
            )
        else:
            check_sizes(name, frequencies=frequencies)
            net = functools.partial(
                RandomFourierConditioner,
                n_frequencies=frequencies,
                kernel=chosen_kernel,
                linear_term=mean,
                seed=seed + i,
            )
        stack += mixing(linear, features, seed + i)
        if alone is not None:
            stack.append(Elementwise(features, alone))
        if features == 1:
            stack.append(Elementwise(1, chosen, context=context, conditioner=net))
        else:
            stack.append(
                Coupling(half(features, linear, i), chosen, conditioner=net, context=context)
            )
    embedding = StandardizeContext(context) if context and standardize else None
    return Flow(Compose(*stack), StandardNormal(features), embedding=embedding)
