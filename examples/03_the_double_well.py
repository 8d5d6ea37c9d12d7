# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A double well: flows, chains, and exact weights
#
# An energy $u(x)$ is often all that we know of a density, $p(x) = e^{-u(x)} / Z$: we can compute
# it, but not sample it, and $Z$ is unknown. A flow can learn to sample it. But a flow is one
# smooth, invertible map of one bell, and a density with two separate wells is torn: the flow
# must leave a bridge of samples between the wells, where there is almost no density. A Markov
# chain has no such trouble on its own side of the barrier, but it does not cross it.
#
# *Stochastic* flows (Wu, Köhler, Noé 2020, [arXiv 2002.06707](https://arxiv.org/abs/2002.06707))
# put short chains between the layers of a flow. Every sample comes with a weight that is exact,
# whatever the layers are and however badly they are trained.
#
# Run it with `python examples/03_the_double_well.py` (two minutes on one core), or open it as a
# notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in the environment it trains for a moment
# only, and its numbers then say nothing.
#
# Units: energies and free energies are in kT, positions have none.

# %%
# %matplotlib inline
import os

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import flowkit
from flowkit import MaximumLikelihood, PathKL, WeightedSum
from flowkit.recipes import insert_stochastic_layers
from flowkit.statistics import (
    effective_sample_size,
    free_energy_profile,
    log_partition,
    pareto_smooth,
    reweighted_mean,
)
from flowkit.stochastic import independence_chain
from flowkit.stochastic.paths import sample_paths
from flowkit.toys import DoubleWell

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"
SAMPLES = 5_000 if SMALL else 100_000
STEPS = 10 if SMALL else 1_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The energy
#
# Two wells along $x_1$ of different depth, a barrier of some 10 kT between them, and a spring
# along $x_2$. A quadrature gives everything that we will estimate: the normalizing constant, the
# share of the right well, and the free energy along $x_1$.

# %%
well = DoubleWell()
x = well.sample(SAMPLES, seeded(0))
print(f"log Z = {well.log_normalizer():.4f}, share of the right well = "
      f"{well.probability_right():.4f}")  # fmt: skip

# %% [markdown]
# ## A flow alone
#
# Six affine couplings, trained by the mean of two objectives: the likelihood of samples, which
# makes the flow cover both wells, and the path divergence from the energy, which needs no samples
# and makes it leave out what is not there. Alone the one would be vague, and the other would
# settle in one well. Without stochastic layers `PathKL` is the reverse Kullback-Leibler
# divergence.

# %%
mixture = WeightedSum((0.5, MaximumLikelihood()), (0.5, PathKL(well, samples=128)))


def couplings():
    torch.manual_seed(0)
    return flowkit.coupling_flow(
        2, layers=6, scalar="affine", hidden=(64, 64), linear=None, start=None
    )


def train(flow):
    flowkit.fit(
        flow, x[:10_000], mixture, validation=None, steps=STEPS, batch_size=128, lr=5e-3,
        progress=False,
    )  # fmt: skip
    return flow


alone = train(couplings())

# %% [markdown]
# ## The same flow with chains
#
# `insert_stochastic_layers` puts Metropolis layers behind every second coupling and at the end.
# Each walks on an energy between that of the base and that of the wells,
# $u_\lambda = (1 - \lambda) u_0 + \lambda u$; the last walks on the wells. How far a chain steps
# is not learned, but can be fitted to its acceptance
# (`flowkit.stochastic.paths.adapt_step_sizes`), best before training. Here steps of 0.25 will do.

# %%
chained = insert_stochastic_layers(
    couplings(), well, layer="metropolis", steps=20, step_size=0.25, positions=[0, 2, 4]
)
chained = train(chained)

# %% [markdown]
# ## Samples
#
# The couplings alone leave a bridge. The chains move what is on the bridge into the wells.

# %%
flows = {"couplings": alone, "couplings + Metropolis": chained}
runs = {}
for name, flow in flows.items():
    with torch.no_grad():
        runs[name] = sample_paths(flow, SAMPLES, well, generator=seeded(2))
    print(name, runs[name], sep="\n")

figure = Figure(figsize=(10, 3.4), layout="constrained")
axes = figure.subplots(1, 3, sharex=True, sharey=True)
pictures = {"exact": x, **{name: run.x for name, run in runs.items()}}
for axis, (name, points) in zip(axes, pictures.items(), strict=True):
    _, _, _, image = axis.hist2d(
        *points.numpy().T, bins=100, range=[(-3, 3), (-4, 4)], norm=LogNorm(1, SAMPLES / 100)
    )
    between = (points[:, 0].abs() < 0.7).double().mean().item()
    axis.set(title=f"{name}\nbetween the wells: {between:.2%}", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
figure.colorbar(image, ax=axes, label="samples a bin")
figure.savefig("double_well_samples.png", dpi=120)
figure

# %% [markdown]
# ## Weights
#
# Every sample has a weight $w$ with $E[w] = Z$, and weighted means are means over the wells. For
# chains the weight is that of the whole path. How good the weights are is told by the effective
# sample size, and by k-hat, the shape of their tail: below 0.7 their means can be trusted. Above,
# a few samples carry too much, and standard errors are too small.

# %%
for name, run in runs.items():
    value, error = log_partition(run.log_weight)
    right, right_error = reweighted_mean((run.x[:, 0] > 0).double(), run.log_weight)
    share = effective_sample_size(run.log_weight) / SAMPLES
    k_hat = pareto_smooth(run.log_weight).k_hat
    plain = (run.x[:, 0] > 0).double().mean()
    print(f"{name}: log Z = {value:.4f} +- {error:.4f} (exact {well.log_normalizer():.4f}), right "
          f"well {right:.4f} +- {right_error:.4f} (exact {well.probability_right():.4f}, without "
          f"weights {plain:.4f}), effective samples {share:.0%}, k-hat {k_hat:.2f}")  # fmt: skip

# %% [markdown]
# With samples of the target, paths can be drawn backwards, too. The mean log weights of both
# directions enclose $\log Z$, and Bennett's acceptance ratio makes the best of them.

# %%
with torch.no_grad():
    backwards = chained.reverse_log_weight(x, well, generator=seeded(3))
ahead = runs["couplings + Metropolis"].log_weight
value, error = log_partition(ahead, backwards)
print(f"{ahead.mean():.3f} <= log Z <= {backwards.mean():.3f}; both: {value:.4f} +- {error:.4f}")

# %% [markdown]
# ## Free energies
#
# The free energy along $x_1$ is $-\log p(x_1)$. Without weights the couplings put too much
# density on the bridge, so that the barrier looks low. With weights both agree with the
# quadrature within their error bars, which are large at the barrier: of exact samples, too,
# hardly one in 100,000 falls into a bin there. The bridge, a fault of the plain samples, gives
# the weighted ones something to weigh, but only where it is: narrow and bent, it misses most of
# the barrier, and its error bars know only of what it has seen.

# %%
figure = Figure(figsize=(10, 3.8), layout="constrained")
axes = figure.subplots(1, 2, sharey=True)
line = np.linspace(-2.5, 2.5, 301)
for axis, (name, run) in zip(axes, runs.items(), strict=True):
    axis.plot(line, well.profile(line), color="0.5", linewidth=3, label="exact")
    settings = (("no weights", None, "C1"), ("weights", run.log_weight, "C0"))
    for label, log_weight, color in settings:
        profile = free_energy_profile(run.x[:, 0], log_weight, bins=30, limits=(-2.5, 2.5))
        seen = profile.error.isfinite()
        axis.errorbar(
            profile.centers[seen], profile.free_energy[seen], 2 * profile.error[seen],
            fmt="o", markersize=3, capsize=2, color=color, label=label,
        )  # fmt: skip
    axis.set(title=name, xlabel="$x_1$", ylim=(-1, 14))
axes[0].set_ylabel("free energy, kT (bars: two standard errors)")
axes[0].legend()
figure.savefig("double_well_free_energies.png", dpi=120)
figure

# %% [markdown]
# ## Without learning: annealing, particles, and chains that a flow proposes
#
# With `scalar=None` a stochastic flow has chains alone. That is annealed importance sampling,
# and with resampling between the layers a sequential Monte Carlo sampler. And any flow can
# propose the moves of a Markov chain that is exact in the long run.

# %%
annealing = flowkit.stochastic_flow(
    2, energy=well, blocks=10 if SMALL else 40, scalar=None, steps=5
)
with torch.no_grad():
    plain = sample_paths(annealing, SAMPLES // 4, well, generator=seeded(4))
    particles = sample_paths(annealing, SAMPLES // 4, well, generator=seeded(4), resample=0.5)
value, error = log_partition(plain.log_weight)
print(f"annealing: log Z = {value:.4f} +- {error:.4f}")
times = sum(layer.resampled for layer in particles.layers)
print(f"particles: log Z = {log_partition(particles.log_weight).value:.4f}, resampled {times} "
      "times")  # fmt: skip
chain = independence_chain(chained, well, steps=200, chains=50, generator=seeded(5))
right = (chain.x[..., 0] > 0).double().mean(0)
print(f"Markov chains: right well {right.mean():.4f} +- {right.std() / 50**0.5:.4f}, accepted "
      f"{chain.acceptance.mean():.0%}")  # fmt: skip
