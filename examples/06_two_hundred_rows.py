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
# # Two hundred rows
#
# Coupling flows of perceptrons have tens of thousands of parameters, and with a few hundred rows
# they learn these by heart. A *kernelised* flow
# ([English, Kirchler, Lippert 2024](https://arxiv.org/abs/2307.14839)) replaces each network by a
# sum of kernels around some auxiliary points,
#
# $$ \theta(u) = \frac{1}{\sqrt{N}} \sum_{j=1}^N k(w_j, u)\, A_j , $$
#
# which is smooth, has few parameters, and goes back to the identity where there are no data.
#
# Run it with `python examples/06_two_hundred_rows.py` (two minutes on one core), or open it as a
# notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in the environment it trains for a moment
# only, and its numbers then say nothing.

# %%
# %matplotlib inline
import os

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from flowkit import (
    KernelNorm,
    MaximumLikelihood,
    WeightedSum,
    coupling_flow,
    fit,
    kernelised_flow,
)
from flowkit.datasets import breast_cancer
from flowkit.training import repeated_splits

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"
EPOCHS, SPLITS = (2, 2) if SMALL else (300, 3)

# %% [markdown]
# ## The data
#
# Cell nuclei of 569 tumours: the means of ten measurements each. We pretend to have 200 of them,
# and test on the rest.

# %%
parts = breast_cancer(seed=0)
rows = torch.cat([parts.train, parts.validation, parts.test])[:, :10]
train, test = rows[:200], rows[200:]
mean, scale = train.mean(0), train.std(0)
train, test = (train - mean) / scale, (test - mean) / scale

# %% [markdown]
# ## Flows
#
# The same four affine coupling layers with linear layers between them, three times: with kernel
# expansions, with perceptrons of about as many parameters, and of ten times as many.
# A fifth of the rows decides when to stop; without that, all of them overfit. (The mixture and the
# kernel estimate below see these rows, too, in the end: an advantage of theirs.)


# %%
def perceptrons(width):
    return coupling_flow(10, layers=4, scalar="affine", hidden=(width, width))


def count(flow):
    return sum(p.numel() for p in flow.parameters())


makers = {
    "kernelised": lambda: kernelised_flow(10, layers=4),
    "MLP, equal": lambda: perceptrons(40),
    "MLP, ten times": lambda: perceptrons(145),
}
options = {"epochs": EPOCHS, "batch_size": 50, "lr": 3e-3, "patience": 30, "progress": False}
scores, histories = {}, {}
for name, make in makers.items():
    torch.manual_seed(0)
    flow = make()
    histories[name] = fit(flow, train, validation=0.2, **options)
    with torch.no_grad():
        scores[name] = flow.log_prob(test).mean().item()
    print(f"{name:15s} {count(flow):7,d} parameters, test log-likelihood {scores[name]:.2f} nats")

# %%
figure = Figure(figsize=(6.4, 4.0), layout="constrained")
axis = figure.subplots()
for color, (name, history) in zip(("#1f5fa8", "0.45", "#c0392b"), histories.items(), strict=True):
    axis.plot(history.epochs, history.train, "--", color=color, linewidth=1)
    axis.plot(history.epochs, history.validation, color=color, label=name)
axis.set_ylim(-12, 20)
axis.set_xlabel("epoch")
axis.set_ylabel("negative log-likelihood [nats]")
axis.set_title("validation (lines) and training (dashed)")
axis.legend(frameon=False)
figure  # noqa: B018

# %% [markdown]
# ## What is not a flow
#
# A mixture of normals and a kernel density estimate, with the number of components and the
# bandwidth chosen by the same kind of split. Where a table looks like a normal density, or two of
# them, the mixture is hard to beat.

# %%
held, kept = train[:40].numpy(), train[40:].numpy()
mixtures = [GaussianMixture(k, reg_covar=1e-3, random_state=0) for k in range(1, 7)]
kernels = [KernelDensity(bandwidth=b) for b in np.geomspace(0.1, 2, 15)]
for name, candidates in (("mixture", mixtures), ("KDE", kernels)):
    best = max(candidates, key=lambda c: c.fit(kept).score_samples(held).mean())
    scores[name] = best.fit(train.numpy()).score_samples(test.numpy()).mean()
    print(f"{name:15s} test log-likelihood {scores[name]:.2f} nats")

# %% [markdown]
# ## Choosing with little data
#
# One split of 200 rows says little: `repeated_splits` fits a new flow to each of several, and
# compares settings on the same ones. Here it weighs a penalty on the norm of the functions in
# their space, `KernelNorm`, which is part of the training loss only: scores are likelihoods of
# held-out rows. The median of the best steps says about how long to train on all rows in the end.

# %%
for weight in (0.0, 1e-3, 1e-2):
    loss = WeightedSum((1.0, MaximumLikelihood()), (weight, KernelNorm()))
    found = repeated_splits(makers["kernelised"], train, loss, splits=SPLITS, **options)
    print(f"penalty {weight:g}: {found.mean:.2f} nats over {SPLITS} splits, {found.steps} steps")

# %% [markdown]
# The kernelised flow has its place where data are few and not normal. With many rows perceptrons
# catch up: see the table of [kernelised flows](../results/kernelised_flows).
