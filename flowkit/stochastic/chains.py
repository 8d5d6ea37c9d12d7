"""Markov chains that a flow proposes: independence Metropolis-Hastings and NeuTra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkit.density import Density
from flowkit.energies.target import Target
from flowkit.errors import DataError, NonFiniteEnergyError, StochasticFlowError
from flowkit.numerics.gradients import ordinary
from flowkit.numerics.noise import drawing_from, lending_global, redirected
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


def flow_mcmc(
    flow: Density,
    energy: Callable[..., Tensor] | None = None,
    steps: int = 1000,
    *,
    log_prob: Callable[..., Tensor] | None = None,
    method: str = "independence",
    chains: int = 4,
    warmup: int | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Chains:
    r"""Sample a target by a Markov chain that uses a flow; exact whatever the flow, in the limit.

    ``"independence"`` proposes samples of the flow, and accepts one with weight w' over the
    present one with weight w with probability :math:`\min(1, w' / w)`. With stochastic layers the
    weights are those of paths, for which the same holds. All proposals are drawn at once. Chains
    get stuck where the flow has too little mass: the acceptance says so.

    ``"neutra"`` runs Pyro's NUTS in the noise of a deterministic flow, on
    :math:`u(T^{-1}(z)) - \log|\det \partial T^{-1} / \partial z|`, whose geometry a good flow has
    made simple, and maps the chain to data.

    Args:
        flow: Any flow with an inverse; deterministic for ``"neutra"``.
        energy: The dimensionless energy of the target; ``energy(x, context)`` if a context is
            given.
        steps: Steps that are kept, of every chain.
        log_prob: The log-density of the target up to a constant, instead of ``energy``.
        method: ``"independence"`` or ``"neutra"``.
        chains: Number of chains; those of NUTS run one after the other.
        warmup: Steps before those, which adapt NUTS and are discarded; ``steps // 2`` by default.
        context: ``(C,)``, the same for all.
        generator: Source of randomness.
        **options: Arguments of ``pyro.infer.NUTS`` for ``"neutra"``.

    Raises:
        DataError: If there is not exactly one of ``energy`` and ``log_prob``, the method is
            unknown, a number is out of its range, or the energy carries no gradient to x, which
            ``"neutra"`` needs.
        StochasticFlowError: If ``"neutra"`` is asked of a flow with a stochastic layer.
        NonFiniteEnergyError: If no finite start was found.

    References:
        Hoffman et al. 2019, NeuTra-lizing Bad Geometry, arXiv 1903.03704; Albergo, Kanwar,
        Shanahan 2019, arXiv 1904.12072, for proposals of flows.

    Example:
        >>> import torch
        >>> from flowkit import stochastic_flow
        >>> from flowkit.toys import DoubleWell
        >>> from flowkit.stochastic import flow_mcmc
        >>> flow = stochastic_flow(2, energy="double_well", blocks=10, scalar=None)
        >>> run = flow_mcmc(
        ...     flow, DoubleWell(), 200, chains=8, generator=torch.Generator().manual_seed(0)
        ... )
        >>> run.x.shape, bool(run.acceptance.mean() > 0.2)
        (torch.Size([200, 8, 2]), True)
    """
    for name, value in (("steps", steps), ("chains", chains)):
        if type(value) is not int or value < 1:
            raise DataError(f"flow_mcmc expected {name} as a whole number >= 1, got {value!r}")
    if context is not None and context.ndim != 1:
        raise DataError(
            f"flow_mcmc expected one context (C,) for all chains, got {tuple(context.shape)}; "
            "remedy: one call a context"
        )
    warmup = steps // 2 if warmup is None else warmup
    if type(warmup) is not int or warmup < 0:
        raise DataError(f"flow_mcmc expected warmup as a whole number >= 0, got {warmup!r}")
    if method == "independence":
        if options:
            raise DataError(f"'independence' has no options, got {sorted(options)}")
        target = Target("flow_mcmc", energy, log_prob)
        return _independence(flow, target, steps, chains, warmup, context, generator)
    if method == "neutra":
        target = Target("flow_mcmc", energy, log_prob, differentiated=True)
        return _neutra(flow, target, steps, chains, warmup, context, generator, options)
    raise DataError(f"flow_mcmc knows the methods 'independence', 'neutra'; got {method!r}")


@torch.no_grad()
def _independence(
    flow: Density,
    target: Target,
    steps: int,
    chains: int,
    warmup: int,
    context: Tensor | None,
    generator: torch.Generator | None,
) -> Chains:
    total = warmup + steps
    paths = sample_paths(flow, (total + 1, chains), target, context, generator)
    x, log_weight = paths.x.contiguous(), paths.log_weight
    finite = log_weight.isfinite()
    log_weight = torch.where(finite, log_weight, -torch.inf).double()
    uniform = torch.empty_like(log_weight).uniform_(generator=generator)
    threshold = uniform.log()
    # The best of each chain's proposals as its start would be biased; the first finite is not.
    present = finite.int().argmax(0)
    columns = torch.arange(chains, device=x.device)
    weight = log_weight[present, columns]
    if bool((weight == -torch.inf).any()):
        raise NonFiniteEnergyError(
            "flow_mcmc expected a sample of finite energy to start every chain from, got none in "
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
    kept = x[torch.stack(where), columns]
    return Chains(kept, accepted / steps, int((~finite).sum()))


def _neutra(
    flow: Density,
    target: Target,
    steps: int,
    chains: int,
    warmup: int,
    context: Tensor | None,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> Chains:
    from pyro.infer import MCMC, NUTS

    if flow.stochastic:
        raise StochasticFlowError(
            "'neutra' needs a deterministic flow, which this one with a stochastic layer is not; "
            "use method='independence'"
        )
    if steps < 4:
        raise DataError(f"'neutra' expected steps >= 4, for its diagnostics; got {steps}")
    embedded = flow._embed_unless_unread(context)

    def data(z: Tensor) -> tuple[Tensor, Tensor]:
        return flow.transform.inverse(z, embedded)

    def potential(values: dict[str, Tensor]) -> Tensor:
        x, log_det = data(values["z"])
        return target(flow, x, context) - log_det

    home = None if generator is None else generator.device
    seed = int(torch.randint(2**31, (), generator=generator, device=home))
    # Pyro draws from the global state. To lend it is much faster than to redirect every operation,
    # but does not reach draws that are redirected already.
    draws = drawing_from if redirected() else lending_global
    runs, rates, divergent = [], [], 0
    with (
        draws(torch.Generator().manual_seed(seed)),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        embedded, context = ordinary(embedded), ordinary(context)
        for _ in range(chains):
            start = flow.base.sample((), embedded).detach()
            kernel = NUTS(potential_fn=potential, **options)
            sampler = MCMC(
                kernel,
                num_samples=steps,
                warmup_steps=warmup,
                initial_params={"z": start},
                disable_progbar=True,
            )
            sampler.run()
            found = sampler.diagnostics()
            divergent += sum(len(steps) for steps in found["divergences"].values())
            rates.append(float(found["acceptance rate"]["chain 0"]))
            with torch.no_grad():
                runs.append(data(sampler.get_samples()["z"])[0])
    x = torch.stack(runs, 1)
    return Chains(x, x.new_tensor(rates), divergent)
