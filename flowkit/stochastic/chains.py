"""Markov chains that use a flow: independence Metropolis-Hastings and NUTS in its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit import checks
from flowkit.change_of_variables import ChangeOfVariables
from flowkit.energies.target import Target
from flowkit.errors import NonFiniteEnergyError, StochasticFlowError
from flowkit.numerics.gradients import ordinary
from flowkit.numerics.noise import drawing_from, lending_global, redirected
from flowkit.numerics.types import Context, Generator
from flowkit.stochastic.paths import sample_paths


class Chains(NamedTuple):
    """Markov chains in the stationary state of a target.

    Attributes:
        x: ``(steps, chains, *event)``.
        acceptance: Mean acceptance of every chain, ``(chains,)``.
        nonfinite: Number of proposals whose energy was not finite, over all chains; for NUTS the
            number of divergent transitions.
    """

    x: Tensor
    acceptance: Tensor
    nonfinite: int


def independence_chain(
    flow: ChangeOfVariables,
    energy: Callable[..., Tensor] | None = None,
    *,
    log_prob: Callable[..., Tensor] | None = None,
    steps: int = 1000,
    chains: int = 4,
    warmup: int | None = None,
    context: Context = None,
    generator: Generator = None,
) -> Chains:
    r"""Sample a target by Metropolis-Hastings with samples of a flow as proposals.

    A proposal of weight w' is accepted over the present sample of weight w with probability
    :math:`\min(1, w' / w)`, which is exact whatever the flow, in the limit. With stochastic layers
    the weights are those of paths, for which the same holds. All proposals are drawn at once.
    Chains get stuck where the flow has too little mass: the acceptance says so.

    Args:
        flow: Any flow with an inverse.
        energy: The dimensionless energy of the target; ``energy(x, context)`` if a context is
            given.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        steps: Steps returned, of every chain.
        chains: Number of chains.
        warmup: Steps before those, which are discarded; ``steps // 2`` by default.
        context: ``(C,)``, the same for all.
        generator: Source of randomness.

    Raises:
        ArgumentError: If there is not exactly one of ``energy`` and ``log_prob``, or a number is
            out of its range.
        NonFiniteEnergyError: If no finite start was found.

    References:
        Albergo, Kanwar, Shanahan 2019, arXiv 1904.12072.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import independence_chain
        >>> flow = stochastic_flow(2, energy="double_well", blocks=10, scalar=None)
        >>> draw = torch.Generator().manual_seed(0)
        >>> run = independence_chain(flow, DoubleWell(), steps=200, chains=8, generator=draw)
        >>> run.x.shape, bool(run.acceptance.mean() > 0.2)
        (torch.Size([200, 8, 2]), True)
    """
    name = "independence_chain"
    steps, chains, warmup = _numbers(name, steps, chains, warmup, context, least=1)
    target, total = Target(name, energy, log_prob), warmup + steps
    with torch.no_grad():
        paths = sample_paths(
            flow, (total + 1, chains), target, context=context, generator=generator
        )
    x, log_weight = paths.x.contiguous(), paths.log_weight
    finite = log_weight.isfinite()
    log_weight = torch.where(finite, log_weight, -torch.inf).double()
    threshold = torch.empty_like(log_weight).uniform_(generator=generator).log()
    # The best of each chain's proposals as its start would be biased; the first finite is not.
    present = finite.int().argmax(0)
    columns = torch.arange(chains, device=x.device)
    weight = log_weight[present, columns]
    if bool((weight == -torch.inf).any()):
        raise NonFiniteEnergyError(
            f"{name} expected a sample of finite energy to start every chain from, got none in "
            f"{total + 1} proposals; remedy: a flow that reaches the target"
        )
    where, accepted = [], torch.zeros_like(weight)
    for t in range(1, total + 1):
        moves = threshold[t] < log_weight[t] - weight
        present = torch.where(moves, t, present)
        weight = torch.where(moves, log_weight[t], weight)
        if t > warmup:
            where.append(present)
            accepted += moves
    return Chains(x[torch.stack(where), columns], accepted / steps, int((~finite).sum()))


def neutra_chain(
    flow: ChangeOfVariables,
    energy: Callable[..., Tensor] | None = None,
    *,
    log_prob: Callable[..., Tensor] | None = None,
    steps: int = 1000,
    chains: int = 4,
    warmup: int | None = None,
    context: Context = None,
    generator: Generator = None,
    **options: Any,
) -> Chains:
    r"""Sample a target by Pyro's NUTS in the noise of a deterministic flow.

    On :math:`u(T^{-1}(z)) - \log|\det \partial T^{-1} / \partial z|`, whose geometry a good flow
    has made simple; the chain is mapped to data.

    Args:
        flow: A deterministic flow with an inverse.
        energy: The dimensionless energy of the target, with a gradient to x;
            ``energy(x, context)`` if a context is given.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        steps: Steps returned, of every chain; at least 4.
        chains: Number of chains, which run one after the other.
        warmup: Steps before those, which adapt NUTS and are discarded; ``steps // 2`` by default.
        context: ``(C,)``, the same for all.
        generator: Source of randomness.
        **options: Arguments of ``pyro.infer.NUTS``.

    Raises:
        ArgumentError: If there is not exactly one of ``energy`` and ``log_prob``, or a number is
            out of its range.
        DataError: If the energy carries no gradient to x.
        StochasticFlowError: If the flow has a stochastic layer.

    References:
        Hoffman et al. 2019, NeuTra-lizing Bad Geometry, arXiv 1903.03704.

    Example:
        >>> import torch
        >>> from flowkit import elementwise_flow
        >>> from flowkit.toys import Ring
        >>> from flowkit.stochastic import neutra_chain
        >>> flow, draw = elementwise_flow(2), torch.Generator().manual_seed(0)
        >>> neutra_chain(flow, Ring(), steps=10, chains=1, generator=draw).x.shape
        torch.Size([10, 1, 2])
    """
    from pyro.infer import MCMC, NUTS

    name = "neutra_chain"
    steps, chains, warmup = _numbers(name, steps, chains, warmup, context, least=4)
    target = Target(name, energy, log_prob, differentiated=True)
    if flow.stochastic:
        raise StochasticFlowError(
            f"{name} expected a deterministic flow, got one with a stochastic layer; remedy: "
            "independence_chain"
        )
    embedded = flow._embed_unless_unread(context)

    def potential(values: dict[str, Tensor]) -> Tensor:
        x, log_det = flow.transform.inverse(values["z"], embedded)
        return target(flow, x, context) - log_det

    home = None if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=home))
    # Pyro draws from the global state. To lend it is much faster than to redirect every operation,
    # but does not reach draws that are redirected already.
    draws = drawing_from if redirected() else lending_global
    runs, rates, divergent = [], [], 0
    with (
        draws(torch.Generator().manual_seed(seed)),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        embedded, context = ordinary(embedded), ordinary(context)
        for _ in range(chains):
            start = flow.base.sample((), embedded).detach()
            sampler = MCMC(
                NUTS(potential_fn=potential, **options),
                num_samples=steps,
                warmup_steps=warmup,
                initial_params={"z": start},
                disable_progbar=True,
            )
            sampler.run()
            found = sampler.diagnostics()
            divergent += sum(len(at) for at in found["divergences"].values())
            rates.append(float(found["acceptance rate"]["chain 0"]))
            with torch.no_grad():
                runs.append(flow.transform.inverse(sampler.get_samples()["z"], embedded)[0])
    x = torch.stack(runs, 1)
    return Chains(x, x.new_tensor(rates), divergent)


def _numbers(
    name: str, steps: Any, chains: Any, warmup: Any, context: Context, *, least: int
) -> tuple[int, int, int]:
    """Check the numbers of steps, chains and steps of warmup, and the context."""
    steps = checks.integer(name, "steps", steps, least=least)
    chains = checks.integer(name, "chains", chains, least=1)
    warmup = steps // 2 if warmup is None else checks.integer(name, "warmup", warmup, least=0)
    checks.elements(name, warmup + steps + 1, chains)
    if context is not None and (not isinstance(context, Tensor) or context.ndim != 1):
        remedy = "one call per context"
        raise checks.fail(name, "context", "one context (C,) for all chains", context, remedy)
    return steps, chains, warmup
