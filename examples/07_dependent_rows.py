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
# # Repeated measures, and mice
#
# Rows of a table are often not independent: visits of the same patient, animals of the same
# family. A flow trained as if they were takes a subject that came often for a bump of the density.
# `flowkit.dependence` gives the *noise* of the flow a covariance across rows
# ([Kirchler, Lippert, Kloft 2023](https://arxiv.org/abs/2209.14933)); each row by itself keeps the
# density of the flow, so that `flow.log_prob` stays the density of somebody new.
#
# Run it with `python examples/07_dependent_rows.py` (three minutes on one core), or open it as a
# notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in the environment it trains for a moment
# only, and its numbers then say nothing.

# %%
# %matplotlib inline
import os

import numpy as np
import torch
from matplotlib.figure import Figure

from flowkit import DependentLikelihood, MaximumLikelihood, coupling_flow, fit
from flowkit.datasets import heterogeneous_stock_mice
from flowkit.dependence import (
    EquicorrelatedBlocks,
    Kinship,
    LinearMixedModel,
    UpdateCovariance,
    rank_normalised,
    sample_jointly,
)
from flowkit.errors import MissingDependencyError

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"
STEPS = 5 if SMALL else 300

# %% [markdown]
# ## Repeated measures
#
# Sixty subjects came between once and eighty times, a few of them very often. Their visits
# correlate by 0.9, in the noise; the data are a crescent of it.

# %%
rng = np.random.default_rng(1)
visits = np.minimum(1 + (8 * rng.pareto(1.2, 60)).astype(int), 80)
subject = np.repeat(np.arange(60), visits)
truth = EquicorrelatedBlocks(subject, rho=0.9)


def crescent(u):
    return torch.stack([u[:, 0], u[:, 0].square() / 2 - 1 + np.exp(-1) * u[:, 1]], 1)


generator = torch.Generator().manual_seed(1)
x = crescent(truth.sample(2, generator).detach())
new = crescent(torch.randn(5000, 2, generator=generator))
print(f"{len(x)} visits of 60 subjects, at most {visits.max()} of one")

# %% [markdown]
# Three trainings of the same flow. `DependentLikelihood` needs the place of each row in the
# covariance, `row`, and sees all rows at once. The correlation starts at a half, and every thirty
# steps `UpdateCovariance` sets it to the most likely one for the present flow. Or the likelihood
# sees whole subjects at a time, and the correlation is learned with the flow: `group` says which
# rows belong together, and `fit` tears no group apart, neither for its batches nor for what it
# holds out.


# %%
def new_flow():
    torch.manual_seed(0)
    return coupling_flow(2, layers=3, hidden=(32, 32), linear="permutation")


options = {"lr": 1e-2, "compile": False, "progress": False}
data = {"x": x, "row": torch.arange(len(x))}
flows = {name: new_flow() for name in ("independent", "dependent", "by subjects")}
fit(flows["independent"], x, validation=None, batch_size=len(x), epochs=STEPS, **options)
related = EquicorrelatedBlocks(subject, rho=0.5, learn=False)
fit(
    flows["dependent"],
    data,
    DependentLikelihood(related),
    validation=None,
    batch_size=len(x),
    epochs=STEPS,
    callbacks=[UpdateCovariance(related, x, every=30)],
    **options,
)
grouped = {**data, "group": torch.from_numpy(subject)}
by_subjects = EquicorrelatedBlocks(subject, rho=0.5)
loss = DependentLikelihood(by_subjects, mode="blocks")
fit(flows["by subjects"], grouped, loss, validation=0.15, batch_size=200, steps=STEPS, **options)
entropy = np.log(2 * np.pi * np.e) - 1
for name, flow in flows.items():
    with torch.no_grad():
        loss_of_new = -flow.log_prob(new).mean().item()
    print(f"{name:12s} {loss_of_new:.3f} nats a new subject (the entropy is {entropy:.3f})")
print(
    f"correlation: {related.rho.item():.2f} with all rows, {by_subjects.rho.item():.2f} by parts"
)

# %%
axis_of = torch.linspace(-3.2, 3.2, 160)
grid = torch.cartesian_prod(axis_of, torch.linspace(-2.5, 4.5, 160))
figure = Figure(figsize=(9.0, 3.6), layout="constrained")
panels = figure.subplots(1, 2, sharex=True, sharey=True)
for panel, name in zip(panels, ("independent", "dependent"), strict=True):
    with torch.no_grad():
        density = flows[name].log_prob(grid).exp().reshape(160, 160).T
    panel.contour(
        axis_of,
        torch.linspace(-2.5, 4.5, 160),
        density,
        levels=[0.01, 0.05, 0.15, 0.3],
        cmap="Blues",
    )
    panel.scatter(*x.T, c=subject % 20, s=5, cmap="tab20", alpha=0.6, linewidth=0)
    panel.set_title(f"trained as {name}")
    panel.set_xlabel("first measure")
panels[0].set_ylabel("second measure")
figure  # noqa: B018

# %% [markdown]
# Points have the color of their subject. The flow that takes visits for independent puts islands
# of density on those who came often.
#
# With the covariance, one visit says something about the next: `sample_jointly` draws all rows
# given some of them.

# %%
twice = EquicorrelatedBlocks([0, 0], rho=related.rho.item())
first = torch.tensor([[-1.5, 0.1]])
draws = [
    sample_jointly(flows["dependent"], twice, x=first, observed=[0], generator=generator)[1]
    for _ in range(20 if SMALL else 300)
]
nearby = torch.stack(draws)
print(f"next visit after {first[0].tolist()}: {nearby.mean(0)} +- {nearby.std(0)}")

# %% [markdown]
# ## Mice
#
# The heterogeneous stock of Valdar and others: 1,940 mice in 85 families, genotyped at 12,226
# places, with CD8 cells and the mean haemoglobin of red cells (MCH) of 1,197 of them. The files
# come with the Debian package `gemma-doc`. Without it, what follows runs on mice that are made up.


# %%
def made_up_mice(families=40, siblings=4, markers=300):
    """Siblings of two founders each, and two measures that ten markers move."""
    frequency = rng.uniform(0.1, 0.5, markers)
    haplotypes = rng.random((families, 4, markers)) < frequency
    parent = rng.integers(0, 2, (2, families, siblings, markers))
    family, place = np.arange(families)[:, None, None], np.arange(markers)
    doses = haplotypes[family, parent[0], place] + haplotypes[family, 2 + parent[1], place]
    doses = torch.from_numpy(doses.reshape(-1, markers).astype(float))
    standard = (doses - doses.mean(0)) / doses.std(0)
    moved = standard[:, :10] @ torch.randn(10, 2, generator=generator).double() / 10**0.5
    noise = torch.randn(len(doses), 2, generator=generator)
    standard = standard / standard.norm(dim=1, keepdim=True)
    return doses, moved + noise, standard @ standard.mT, np.repeat(np.arange(families), siblings)


try:
    mice = heterogeneous_stock_mice()
    complete = ~mice.phenotypes[:, [0, 5]].isnan().any(1)
    doses, measures = mice.genotypes[complete], mice.phenotypes[complete][:, [0, 5]]
    kinship = mice.kinship()[complete][:, complete]
    family = np.unique(mice.families, return_inverse=True)[1][complete.numpy()]
except MissingDependencyError as error:
    print(error)
    doses, measures, kinship, family = made_up_mice()
print(f"{len(measures)} mice, {doses.shape[1]} markers")

# %% [markdown]
# A fifth of the families is held out. The flow is trained on the others, once as independent, and
# once with $\lambda I + (1 - \lambda) G$ across mice, with their kinship G.

# %%
held = np.isin(family, rng.permutation(np.unique(family))[: len(np.unique(family)) // 5])
held = torch.from_numpy(held)
y = ((measures - measures[~held].mean(0)) / measures[~held].std(0)).float()
structure = Kinship(kinship[~held][:, ~held], residual_proportion=0.5)
trained = y[~held]
for name, data, objective in (
    ("independent", trained, MaximumLikelihood()),
    (
        "dependent",
        {"x": trained, "row": torch.arange(len(trained))},
        DependentLikelihood(structure),
    ),
):
    flows[name] = new_flow()
    fit(
        flows[name],
        data,
        objective,
        validation=None,
        batch_size=len(trained),
        epochs=STEPS // 3,
        **options,
    )
    with torch.no_grad():
        value = flows[name].log_prob(y[held]).mean().item()
    print(f"{name:12s} {value:.3f} nats a mouse of other families")
print(f"residual proportion of variance: {structure.residual_proportion.item():.2f}")

# %% [markdown]
# The noise of the flow is a phenotype as normal as the flow can make it, and jointly so, which
# rank-normalising each measure by itself is not. A linear mixed model tests every marker, with the
# kinship as the covariance.

# %%
with torch.no_grad():
    noise = flows["dependent"].to_noise(y)
model = LinearMixedModel(kinship)
for name, phenotypes in (
    ("raw", y),
    ("rank-normalised", rank_normalised(y)),
    ("noise of the flow", noise),
):
    tests = model.score_test(phenotypes, doses)
    found = int((tests.p_value < 0.05 / doses.shape[1]).sum())
    print(f"{name:18s} {found:5d} markers found, genomic control {tests.genomic_control:.2f}")

# %% [markdown]
# What a study with known causes says about power and false findings is in the table of
# [association](../results/association_study); that of the densities of the paper is
# [here](../results/dependent_data).
