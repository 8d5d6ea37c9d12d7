"""Flows of kernel expansions: few parameters, for little data."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from flowkit import checks
from flowkit.conditioners import KernelConditioner, RandomFourierConditioner
from flowkit.errors import ArgumentError
from flowkit.flow import Flow
from flowkit.kernels import Kernel, Matern, RationalQuadratic, SquaredExponential
from flowkit.recipes import parts
from flowkit.scalar import ScalarMap
from flowkit.transforms import Elementwise, Transform

_KERNELS: dict[str, Callable[[], Kernel]] = {
    "squared-exponential": SquaredExponential,
    "matern-1/2": functools.partial(Matern, nu=0.5),
    "matern-3/2": functools.partial(Matern, nu=1.5),
    "matern-5/2": functools.partial(Matern, nu=2.5),
    "rational-quadratic": RationalQuadratic,
}


@parts.recipe
def kernelised_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 8,
    scalar: str | ScalarMap = "affine",
    linear: str | None = "lu",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    kernel: str | Kernel = "matern-3/2",
    points: int | None = None,
    learn_points: bool | None = None,
    n_frequencies: int | None = None,
    linear_term: bool = False,
    elementwise: str | ScalarMap | None = None,
    start: str | None = "auto",
    seed: int | None = None,
) -> Flow:
    r"""Stack coupling layers whose functions are kernel expansions, not networks.

    The parameters of a layer are :math:`\theta(x_a) = N^{-1/2} \sum_{j=1}^N k(x_a, w_j)\, A_j`
    with N points :math:`w_j`, which are learned, and weights A. With affine maps that is
    :math:`2N(D - d) + Nd` numbers for d of D conditioning features, a tenth of the parameters of a
    network up to some ten features. Functions are smooth and fall back to the identity where no
    data are. Made for some hundreds of samples. Early stopping, which ``fit`` has, remains
    necessary; :class:`flowkit.KernelNorm` is a penalty to add.

    Args:
        features: Number of features D; with context, one is enough, else two.
        context: Number of context features.
        layers: Number of coupling layers.
        scalar: ``"affine"``, or another of :func:`coupling_flow`.
        linear: What mixes the features before each layer, as in :func:`coupling_flow`.
        lower: Lower ends of the data, as in :func:`coupling_flow`.
        upper: Upper ends of the data, likewise.
        kernel: ``"squared-exponential"``, ``"matern-1/2"``, ``"matern-3/2"``, ``"matern-5/2"``,
            ``"rational-quadratic"``, a sum such as ``"matern-1/2 + matern-5/2"``, or a kernel
            without a number of features, such as ``Matern(nu=1.5) * RationalQuadratic()``.
        points: Number of points of each layer; 150 by default.
        learn_points: Whether points are learned, as by default, or stay where the start of the
            first fit puts them: on the data as they reach the layer then.
        n_frequencies: Number of random Fourier frequencies in place of points, for one kernel that
            is squared-exponential or Matérn; see
            :class:`flowkit.conditioners.RandomFourierConditioner`.
        linear_term: Whether an affine function is added to each expansion.
        elementwise: A scalar map, named as ``scalar`` is, of each feature by itself before each
            coupling layer: ``"spline"`` shapes marginal distributions for some twenty parameters
            per feature, which kernels of many features learn badly.
        start: What ``fit`` starts the flow from, as in :func:`coupling_flow`.
        seed: Seed of permutations, points and frequencies; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown, or ``points`` or
            ``learn_points`` is given beside ``n_frequencies``.

    References:
        English, Kirchler, Lippert 2024, Kernelised Normalising Flows, arXiv 2307.14839.

    Example:
        >>> import torch
        >>> from flowkit import kernelised_flow
        >>> kernelised_flow(6, layers=2).log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    name = "kernelised_flow"
    if features + context < 2:
        words = "more than 1 feature(s), or context to read"
        raise checks.fail(name, "features", words, features, "elementwise_flow")
    chosen = parts.scalar_map(name, scalar)
    own = [] if elementwise is None else [parts.scalar_map(name, elementwise, name="elementwise")]
    net = _network(name, kernel, points, learn_points, n_frequencies, linear_term)
    stack: list[Transform] = []
    for i in range(layers):
        stack += parts.mixing(name, linear, features, i)
        stack += [Elementwise(features, each) for each in own]
        stack.append(parts.coupling(parts.half(features, linear, i), chosen, net, context))
    return parts.assemble(name, stack, "normal", features, context, lower, upper, start)


def _network(
    name: str, kernel: Any, points: Any, learn_points: Any, n_frequencies: Any, linear_term: Any
) -> parts.Factory:
    """The conditioner: an expansion at points, or one in random frequencies."""
    made = _named(name, kernel) if isinstance(kernel, str) else kernel
    made = checks.instance(name, "kernel", made, Kernel, "a name, or for example Matern(nu=1.5)")
    given = {"points": points, "learn_points": learn_points}
    given = {option: value for option, value in given.items() if value is not None}
    if n_frequencies is None:
        expansion: parts.Factory = functools.partial(KernelConditioner, **given)
    elif given:
        words = ", ".join(f"{option}={value!r}" for option, value in given.items())
        raise ArgumentError(
            f"{name} with n_frequencies has no points, got {words}; remedy: one of the two"
        )
    else:
        expansion = functools.partial(RandomFourierConditioner, n_frequencies=n_frequencies)
    return functools.partial(expansion, kernel=made, linear_term=linear_term)


def _named(name: str, kernel: str) -> Kernel:
    """One kernel, or a sum: ``"matern-5/2 + rational-quadratic"``."""
    terms = [checks.choice(name, "kernel", term.strip(), _KERNELS)() for term in kernel.split("+")]
    return functools.reduce(operator.add, terms)
