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
# # Training without determinants
#
# A flow of dense linear layers is cheap to apply and dear to train: every step of maximum
# likelihood needs the determinant of every matrix. But these determinants do not depend on the
# data. They are the normalizing constant $Z$ of
#
# $$ p(x) = e^{-E(x)} / Z , $$
#
# and $Z$ drops out of the score $\nabla \log p = -\nabla E$. Losses on scores and energies train
# the same flow without a determinant, and the likelihood is still exact when it is computed
# (Chao et al. 2023, [arXiv 2305.15267](https://arxiv.org/abs/2305.15267)).
#
# Run it with `python examples/04_training_without_determinants.py` (three minutes on one core), or
# open it as a notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in the environment it trains
# for a moment only, and its numbers then say nothing.

# %%
# %matplotlib inline
import os

import torch
from matplotlib.figure import Figure

import flowkit
from flowkit import (
    AfterPreprocessing,
    DenoisingScoreMatching,
    FiniteDifferenceScoreMatching,
    Flow,
    MaximumLikelihood,
    SlicedScoreMatching,
    StochasticMaximumLikelihood,
    coupling_flow,
    dense_flow,
)
from flowkit.data import dequantize
from flowkit.datasets import digits
from flowkit.energies import CallableEnergy, ConditionalEnergy
from flowkit.stochastic import MALA
from flowkit.toys import Sine
from flowkit.transforms import Compose

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"
STEPS = 10 if SMALL else 800

# %% [markdown]
# ## Five losses on one toy
#
# The toy's entropy is known: no density has a mean negative log-likelihood below it. `sliced`,
# `denoising` and `finite-difference` are three estimates of one thing, the squared error of the
# score; they differ in how many derivatives they need. The stochastic likelihood has the gradient
# of the likelihood, from samples of the flow. Two things help: `energy_weight` adds a little of
# the mean energy, which keeps mass from where no data are, and `antithetic` noise comes in pairs.

# %%
toy = Sine()
x = toy.sample(STEPS * 512, torch.Generator().manual_seed(0))
test = toy.sample(20_000, torch.Generator().manual_seed(1))
losses = {
    "likelihood": MaximumLikelihood(),
    "stochastic likelihood": StochasticMaximumLikelihood(),
    "sliced": SlicedScoreMatching(energy_weight=0.1),
    "denoising": DenoisingScoreMatching(noise=0.1, antithetic=True, energy_weight=0.1),
    "finite-difference": FiniteDifferenceScoreMatching(radius=0.1, energy_weight=0.1),
}
side = torch.linspace(-11, 11, 150)
grid = torch.cartesian_prod(side, side)
pictures = {"exact": toy.log_prob(grid)}
for name, loss in losses.items():
    torch.manual_seed(0)
    flow = coupling_flow(2, layers=5, hidden=(64, 64, 64), scalar="affine", linear="dense")
    flowkit.fit(
        flow, x, loss, validation=None, steps=STEPS, batch_size=512, lr=2e-3, progress=False
    )
    with torch.no_grad():
        nll = -flow.log_prob(test).mean()
        error = 0.5 * (flow.score(test) - toy.score(test)).square().sum(-1).mean()
        pictures[name] = flow.log_prob(grid)
    print(f"{name:<22} {nll - toy.entropy():+.3f} nats above the entropy, "
          f"squared error of the score {error:.3f}")  # fmt: skip

# %%
figure = Figure(figsize=(10, 6.4), layout="constrained")
axes = figure.subplots(2, 3, sharex=True, sharey=True)
for axis, (name, log_prob) in zip(axes.flat, pictures.items(), strict=True):
    density = log_prob.exp().reshape(150, 150).mT.numpy()
    image = axis.imshow(density, extent=(-11, 11, -11, 11), origin="lower", vmin=0, vmax=0.03)
    axis.set_title(name)
for axis in axes[1]:
    axis.set_xlabel("$x_1$")
for axis in axes[:, 0]:
    axis.set_ylabel("$x_2$")
figure.colorbar(image, ax=axes, label="density", shrink=0.7, extend="max")
figure  # noqa: B018

# %% [markdown]
# Likelihood fills the bends first, and leaves filaments. Score matching draws the curve smoothly,
# with smaller errors of the score, and lets mass leave at its ends, where no data ask for a score:
# that costs likelihood. More steps help all of them.
#
# ## Digits
#
# Counts of ink from 0 to 16 become real numbers by uniform noise, and a logit maps them to all of
# the real numbers. There scores are moderate: `AfterPreprocessing` applies the loss behind the
# layers without parameters. `log_prob` is the density of the numbers themselves.

# %%
parts = digits(seed=0)
train, held = (dequantize(p, seed=i) for i, p in enumerate((parts.train, parts.test)))
torch.manual_seed(0)
flow = dense_flow(64, lower=-0.5, upper=16.5)
print(flow.summary())
loss = AfterPreprocessing(DenoisingScoreMatching(noise=0.3, antithetic=True, energy_weight=0.1))
flowkit.fit(
    flow, train, loss, validation=None, steps=4 * STEPS, batch_size=100, lr=1e-3, ema=0.999,
    progress=False,
)  # fmt: skip
with torch.no_grad():
    bits = -flow.log_prob(held).mean() / (64 * torch.log(torch.tensor(2.0)))
print(f"test images: {bits:.3f} bits per dimension, log Z = {flow.log_normalizer():.1f}")

# %% [markdown]
# ## Filling in what is missing
#
# The lower half of a digit is missing. Given the upper half, its density is the energy of the
# whole with the known pixels held fixed (`ConditionalEnergy`), and a chain samples it: Langevin
# proposals that are accepted or not, so that they have the right density in the long run. The
# chain walks where the flow was trained, behind the logit, and needs no determinant either.

# %%
logit, rest = flow.transform[0], list(flow.transform.transforms)[1:]
inner = Flow(Compose(*rest), flow.base)
free = torch.arange(64) >= 32
energy = ConditionalEnergy(CallableEnergy(inner.energy, 64), free=free.tolist())
chain = MALA(energy, steps=20 if SMALL else 2_000, step_size=0.3)

shown, copies = held[:8], 3
known = logit(shown)[0][:, ~free]
start = torch.zeros(copies, 8, 32)
with torch.no_grad():
    walk = chain.walk(start, known.expand(copies, 8, 32), torch.Generator().manual_seed(2))
    filled = logit.inverse(energy.join(walk.value, known.expand(copies, 8, 32)))[0]
print(f"accepted {walk.acceptance.mean():.2f}")

rows = {"whole": shown, "known": torch.where(free, torch.nan, shown)}
rows |= {f"filled {i + 1}": filled[i] for i in range(copies)}
figure = Figure(figsize=(8, 5.2), layout="constrained")
axes = figure.subplots(len(rows), 8)
for line, (name, images) in zip(axes, rows.items(), strict=True):
    for axis, pixels in zip(line, images, strict=True):
        image = axis.imshow(pixels.reshape(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=17)
        axis.set_xticks([])
        axis.set_yticks([])
    line[0].set_ylabel(name)
figure.colorbar(image, ax=axes, label="ink", shrink=0.6)
figure  # noqa: B018
