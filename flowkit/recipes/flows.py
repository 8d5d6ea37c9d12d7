"""Flows of vectors: coupling, autoregressive and elementwise layers of any scalar map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.scalar import Affine, ScalarMap
from flowkit.transforms import Elementwise, Transform

_HIDDEN = (64, 64)


@parts.recipe
def coupling_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 6,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str | ScalarMap = "spline",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    linear: str | None = "lu",
    base: str = "normal",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    start: str | None = "auto",
    seed: int | None = None,
) -> Flow:
    r"""Stack coupling layers: fast in both directions. With splines, a neural spline flow.

    Each layer leaves one half :math:`x_a` of the features unchanged and transforms the other half,
    one feature at a time, by a monotone map whose parameters a network computes:
    :math:`z_b = f(x_b; \theta(x_a, c))`. A first choice for tables of some thousand samples or
    more.

    Args:
        features: Number of features D; events have shape ``(D,)``.
        context: Number of context features; 0 for an unconditional density.
        layers: Number of coupling layers.
        hidden: Widths of the hidden layers of each network; (64, 64) by default.
        activation: Activation of each network, ``"silu"`` by default; see
            :class:`flowkit.conditioners.MLP`.
        scalar: ``"spline"`` (rational-quadratic), ``"affine"`` (Real NVP), ``"mixture"``,
            ``"smooth"``, or a :class:`flowkit.scalar.ScalarMap`.
        conditioner: The network: ``"mlp"``, ``"residual"``, or a factory
            ``(in_features, out_features, *, context=0) -> nn.Module``, such as a class; it has
            its own widths and activation.
        linear: What mixes the features before each layer: ``"lu"``, ``"orthogonal"``,
            ``"dense"`` (a full matrix, for training without determinants), ``"permutation"``, or
            ``None``, with which the two halves alternate.
        base: ``"normal"``, ``"student_t"``, ``"logistic"`` or ``"mixture"``.
        lower: Lower ends of the data: one number, or one per feature, ``None`` or ``-inf`` for an
            open side. ``lower=0`` is for positive data. The flow then starts with
            :class:`flowkit.transforms.Unconstrain`.
        upper: Upper ends of the data, likewise.
        start: What ``fit`` starts the flow from, by layers whose constants it takes from the
            training data. ``"auto"``: the one of the next three whose short fit validates best;
            without validation the first. ``"copula"``: a Gaussian copula with spline margins
            (:class:`flowkit.transforms.Standardize`, :class:`flowkit.transforms.Gaussianize`,
            :class:`flowkit.transforms.Whiten`); ``"gaussian"``: the normal distribution of the
            data, without the splines, but with far clusters brought nearer
            (:class:`flowkit.transforms.ShortenGaps`); ``"latent"``: the same, with the whitening
            behind all other layers, which then read the data as they are; ``"margins"``:
            independent features with spline margins, without the whitening; ``"standardize"``:
            mean 0 and variance 1; ``None``: nothing, and the context is not standardised. They
            come behind an ``Unconstrain``; the whitening includes a linear regression on the
            context.
        seed: Seed of the permutations and initial weights; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Dinh et al. 2017, arXiv 1605.08803; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import coupling_flow
        >>> coupling_flow(3, layers=2).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    name = "coupling_flow"
    chosen = parts.scalar_map(name, scalar)
    net = parts.network(name, conditioner, parts.CONDITIONERS, hidden, activation, default=_HIDDEN)
    stack: list[Transform] = []
    for i in range(layers):
        stack += parts.mixing(name, linear, features, i)
        stack.append(parts.coupling(parts.half(features, linear, i), chosen, net, context))
    return parts.assemble(name, stack, base, features, context, lower, upper, start)


@parts.recipe
def autoregressive_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 3,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str | ScalarMap = "spline",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    linear: str | None = "lu",
    base: str = "normal",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    start: str | None = "auto",
    seed: int | None = None,
) -> Flow:
    r"""Stack masked autoregressive layers: the closest fit per layer, but slower to sample.

    Each layer transforms feature i given all features before it,
    :math:`z_i = f(x_i; \theta_i(x_1, \dots, x_{i-1}, c))`: densities take one pass, samples one
    pass per feature. With ``scalar="affine"`` it is a masked autoregressive flow (MAF), with
    splines an autoregressive neural spline flow.

    Args:
        features: Number of features.
        context: Number of context features.
        layers: Number of autoregressive layers.
        hidden: Widths of the hidden layers of each network; (64, 64) by default.
        activation: Activation of each network, ``"silu"`` by default.
        scalar: See :func:`coupling_flow`.
        conditioner: The network: ``"mlp"``, or a factory of causal networks,
            ``(features, param_size, *, block=1, context=0) -> nn.Module``.
        linear: See :func:`coupling_flow`; ``None`` reverses the order in every second layer.
        base: See :func:`coupling_flow`.
        lower: See :func:`coupling_flow`.
        upper: See :func:`coupling_flow`.
        start: See :func:`coupling_flow`.
        seed: See :func:`coupling_flow`.

    Raises:
        ArgumentError: If an argument is out of its range or unknown.

    References:
        Papamakarios et al. 2017, arXiv 1705.07057; Durkan et al. 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> from flowkit import autoregressive_flow
        >>> autoregressive_flow(3, layers=2).sample(5).shape
        torch.Size([5, 3])
    """
    name = "autoregressive_flow"
    chosen = parts.scalar_map(name, scalar)
    net = parts.network(
        name, conditioner, parts.MASKED_CONDITIONERS, hidden, activation, default=_HIDDEN
    )
    stack: list[Transform] = []
    for i in range(layers):
        stack += parts.mixing(name, linear, features, i)
        order = range(features)[::-1] if linear is None and i % 2 == 1 else None
        stack.append(parts.autoregressive(features, chosen, net, context, order))
    return parts.assemble(name, stack, base, features, context, lower, upper, start)


@parts.recipe
def elementwise_flow(
    features: int,
    *,
    context: int = 0,
    layers: int = 1,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    scalar: str | ScalarMap = "spline",
    conditioner: str | Callable[..., nn.Module] = "mlp",
    base: str = "normal",
    lower: float | Sequence[float | None] | None = None,
    upper: float | Sequence[float | None] | None = None,
    start: str | None = "margins",
    seed: int | None = None,
) -> Flow:
    r"""Model independent features, each by a monotone map of its own: margins, no dependence.

    With context the maps depend on it, :math:`z_i = f(x_i; \theta_i(c))`, which for one feature is
    conditional density estimation. Each layer is an affine map followed by the scalar map. For a
    single feature, densities, distribution functions and quantiles are all exact.

    Args:
        features: Number of features.
        context: Number of context features.
        layers: Number of layers.
        hidden: Widths of the hidden layers of each network, (64, 64) by default; with context
            alone, for without it there are no networks.
        activation: Activation of each network, ``"silu"`` by default; with context alone.
        scalar: See :func:`coupling_flow`.
        conditioner: See :func:`coupling_flow`; with context alone.
        base: See :func:`coupling_flow`.
        lower: See :func:`coupling_flow`.
        upper: See :func:`coupling_flow`.
        start: ``"margins"``, ``"standardize"`` or ``None``, as in :func:`coupling_flow`.
        seed: Seed of the initial weights of the networks; torch's global state by default.

    Raises:
        ArgumentError: If an argument is out of its range or unknown, or is for networks and there
            is no context.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> elementwise_flow(1).cdf(torch.zeros(1, 1)).detach().round(decimals=4)
        tensor([0.5000])
    """
    name = "elementwise_flow"
    chosen = parts.scalar_map(name, scalar)
    net = parts.network(name, conditioner, parts.CONDITIONERS, hidden, activation, default=_HIDDEN)
    if not context:
        parts.refuse_unread(name, "context", hidden, activation, conditioner)
    stack: list[Transform] = [
        Elementwise(features, scalar_of_layer, conditioner=net, context=context)
        for scalar_of_layer in (Affine(), chosen) * layers
    ]
    starts = {kind: parts.STARTS[kind] for kind in ("margins", "standardize")}
    return parts.assemble(name, stack, base, features, context, lower, upper, start, starts=starts)
