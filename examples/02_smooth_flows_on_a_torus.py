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
# # Smooth flows on a torus
#
# Two flows can give the same density and still differ where it matters for physics: in the
# gradient of the log-density, the *force*. This tutorial fits one density of two angles with
# splines and with smooth maps, compares their forces with the exact ones, trains on forces, and
# then lets particles move in the energy of each flow.
#
# Run it with `python examples/02_smooth_flows_on_a_torus.py` (some minutes on one core), or open
# it as a notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in the environment it trains for a
# moment only, and then its numbers and figures say nothing about the two kinds of maps.
#
# Units: angles $x$ are in radians, log-densities in nats, and forces are $F = \nabla_x \log p(x)$
# in 1/rad. That is the force of the potential $U = -kT \log p$, divided by $kT$.

# %%
# %matplotlib inline
import math
import os

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import flowkit
from flowkit.molecules import FlowPotential
from flowkit.toys import TorusRings

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"

# %% [markdown]
# ## The density
#
# Two angles, both periodic: a spot at the origin, a ring around it, and a sharper ring around the
# corner $(\pi, \pi)$, where both circles close, so that it runs across the cut at $\pm\pi$ four
# times. The density is known up to one number, a quadrature gives that and the entropy, and the
# forces are exact.

# %%
toy = TorusRings()
x = toy.sample(5_000 if SMALL else 50_000, torch.Generator().manual_seed(0))
force = toy.score(x)
size = force.square().mean().sqrt().item()
print(f"entropy {toy.entropy():.4f} nats, root mean square of a force component {size:.2f} 1/rad")

# %% [markdown]
# ## Three fits
#
# `smooth_flow` builds coupling layers for periodic, bounded and real variables. With
# `scalar="spline"` the same layers have rational-quadratic splines; everything else is equal:
# networks, layers, number of bumps or bins, data, number of steps.
#
# A circle needs care in three places, and the recipe takes it. The maps of an angle must meet at
# the cut, the networks read an angle as its cosine and sine, and every layer first turns the
# circles, so that no point of theirs is special.
#
# The third flow is smooth and also sees the forces of the training points.
# A weighted sum adds 0.01 of the mean squared force error, which is in 1/rad², to the negative
# log-likelihood, which is in nats. It takes as many steps as the others; each costs three to
# four times as much.

# %%
STEPS = 10 if SMALL else 3_000


def train(scalar, data, objective):
    torch.manual_seed(0)
    hidden = (16, 16) if SMALL else (64, 64)
    flow = flowkit.smooth_flow(2, circular=True, scalar=scalar, components=16, hidden=hidden)
    flowkit.fit(
        flow, data, objective, steps=STEPS, batch_size=512, lr=2e-3, patience=None, progress=False
    )
    return flow.double()


likelihood = flowkit.MaximumLikelihood()
both = flowkit.WeightedSum((1.0, likelihood), (0.01, flowkit.ForceMatching()))
flows = {
    "spline": train("spline", x, likelihood),
    "smooth": train("smooth", x, likelihood),
    "smooth, with forces": train("smooth", {"x": x, "force": force}, both),
}

# %% [markdown]
# On fresh points: how far the negative log-likelihood lies above the entropy, and how far a
# component of the force is off. Differences of log-likelihood are taken point by point, which
# makes their standard error small.

# %%
# Nothing is trained from here on; scores and forces take the gradients that they need.
torch.set_grad_enabled(False)
fresh = toy.double().sample(2_000 if SMALL else 20_000, torch.Generator().manual_seed(1))
exact = toy.score(fresh)
log_density = {name: flow.log_prob(fresh) for name, flow in flows.items()}
print(f"{'':20} above entropy   below spline          force error")
print(f"{'':20} nats            nats                  1/rad")
for name, flow in flows.items():
    above = -log_density[name].mean().item() - toy.entropy()
    gain = log_density[name] - log_density["spline"]
    error = gain.std().item() / math.sqrt(len(gain))
    rmse = (flow.score(fresh) - exact).square().mean().sqrt().item()
    below = "" if name == "spline" else f"{gain.mean().item():.4f} +- {error:.4f}"
    print(f"{name:20} {above:+.4f}         {below:22}{rmse:.3f}")

# %% [markdown]
# ## The forces, seen
#
# Above the densities, below the force on the second angle. Where the density is less than a
# hundredth of its largest value there are next to no data, and nothing tells a flow what the force
# is: those places are grey.

# %%
pi = math.pi
side = torch.linspace(-pi, pi, 81 if SMALL else 321, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
density = toy.log_prob(grid).exp().numpy()
empty = density < 0.01 * density.max()


def panel(axes, values, title, **options):
    """One quantity over both angles."""
    options |= {"origin": "lower", "extent": (-pi, pi, -pi, pi), "interpolation": "nearest"}
    picture = axes.imshow(values, **options)
    axes.set(title=title, facecolor="0.85", xlabel="$x_1$ (rad)", ylabel="$x_2$ (rad)")
    ticks, labels = [-pi, 0, pi], [r"$-\pi$", "0", r"$\pi$"]
    axes.set(xticks=ticks, yticks=ticks, xticklabels=labels, yticklabels=labels)
    return picture


forces = {"exact": toy.score(grid).numpy()}
densities = {"exact": density}
for name, flow in flows.items():
    forces[name] = torch.cat([flow.score(rows) for rows in grid.split(40)]).numpy()
    densities[name] = flow.log_prob(grid).exp().numpy()

figure = Figure(figsize=(12.5, 6.4), layout="constrained")
panels = figure.subplots(2, 4, sharex=True, sharey=True)
for column, name in enumerate(forces):
    top = panel(panels[0, column], densities[name], name, vmin=0, vmax=density.max())
    shown = np.ma.masked_where(empty, forces[name][..., 1])
    below = panel(panels[1, column], shown, "", cmap="RdBu_r", vmin=-20, vmax=20)
figure.colorbar(top, ax=panels[0], label="density (1/rad²)")
figure.colorbar(below, ax=panels[1], label="force on $x_2$ (1/rad)", extend="both")
for axes in panels.flat:
    axes.label_outer()
figure

# %% [markdown]
# The error of the force, on a logarithmic scale.

# %%
figure = Figure(figsize=(11, 3.8), layout="constrained")
panels = figure.subplots(1, 3, sharey=True)
for axes, name in zip(panels, flows, strict=True):
    off = np.ma.masked_where(empty, np.linalg.norm(forces[name] - forces["exact"], axis=-1))
    picture = panel(axes, off, name, cmap="magma", norm=LogNorm(0.1, 30))
    axes.label_outer()
figure.colorbar(picture, ax=panels, label="error of the force (1/rad)", extend="both")
figure

# %% [markdown]
# ## Why splines jump
#
# At a knot, two pieces of a rational-quadratic spline meet with the same value and the same slope,
# but not with the same curvature: the map is continuously differentiable once, no more. The
# log-density of a flow contains $\log f'(x)$, so it has a kink at every knot, and the force
# contains $f''(x) / f'(x)$, so it jumps. More bins make more jumps; more training moves them.
#
# A smooth mixture $f(x) = \sum_k w_k g_k(x)$ is made of steps that are infinitely differentiable,
# and around a circle they are wrapped: all derivatives agree at the cut as well.
#
# Below is a cut along a side of the ring around the corner, across $x_1 = \pi$, where the circle
# closes. The flows are asked at angles beyond $\pi$; they read them modulo $2\pi$.

# %%
at = torch.linspace(pi - 0.8, pi + 0.8, 4001, dtype=torch.float64)
cut = torch.stack([at, torch.full_like(at, pi / 2)], -1)
along = {"exact": toy.score(cut)[:, 0].numpy()}
along |= {name: flow.score(cut)[:, 0].numpy() for name, flow in flows.items()}
colors = {"exact": "0.0", "spline": "C1", "smooth": "C0", "smooth, with forces": "C2"}

figure = Figure(figsize=(10, 4), layout="constrained")
panels = figure.subplots(1, 2)
for name in ("spline", "smooth", "smooth, with forces"):
    panels[0].plot(at.numpy(), along[name], color=colors[name], label=name)
    panels[1].plot(at.numpy(), along[name] - along["exact"], color=colors[name], label=name)
panels[0].plot(at.numpy(), along["exact"], "--", color="0.0", label="exact", lw=1.2)
for axes in panels:
    axes.axvline(pi, color="0.7", lw=0.8, zorder=0)
    axes.set(
        xlabel=r"$x_1$ (rad), at $x_2 = \pi/2$",
        xticks=[pi - 0.8, pi - 0.4, pi, pi + 0.4, pi + 0.8],
        xticklabels=[r"$\pi-0.8$", r"$\pi-0.4$", r"$\pi$", r"$\pi+0.4$", r"$\pi+0.8$"],
    )
panels[0].set(ylabel="force on $x_1$ (1/rad)", title="the force across the cut of the circle")
panels[1].set(ylabel="error of the force (1/rad)", title="less the exact force")
panels[0].legend()
figure

# %% [markdown]
# A jump is what does not shrink on a finer grid. The largest difference of the force between two
# neighbours on this cut, with 4,000 and with 40,000 steps: a smooth function's falls tenfold.

# %%
finer = torch.linspace(pi - 0.8, pi + 0.8, 40_001, dtype=torch.float64)
finer = torch.stack([finer, torch.full_like(finer, pi / 2)], -1)
for name, flow in flows.items():
    coarse = np.abs(np.diff(along[name])).max()
    parts = torch.cat([flow.score(part) for part in finer.split(10_000)])[:, 0]
    fine = parts.diff().abs().max().item()
    print(f"{name:20} {coarse:.5f} and {fine:.5f} 1/rad, {coarse / fine:.1f} times less")

# %% [markdown]
# ## Dynamics at constant energy
#
# `FlowPotential` takes a flow as the potential $U = -kT \log p$, here with $kT = 1$ and masses of
# one, and `velocity_verlet` follows Newton's equations in it. Nothing exchanges energy with the
# outside, so the total energy should stay what it was. In a smooth potential the error of this
# integrator stays bounded and falls with the square of the time step. At a jump of the force it
# errs by about the jump times a fraction of the step's length, now up, now down, and such errors
# add up like a random walk.
#
# All in float64, from the same starts with the same velocities and the same time step.

# %%
starts = toy.sample(8 if SMALL else 64, torch.Generator().manual_seed(2))
velocities = FlowPotential(flows["smooth"]).draw_velocities(
    starts, torch.Generator().manual_seed(0)
)
DT, MOVES = 0.01, 200 if SMALL else 4_000


def energy_error(flow, dt, steps):
    """Times, and total energy less that of the start, (frames, trajectories), in kT."""
    path = FlowPotential(flow).velocity_verlet(
        starts, velocities, dt=dt, steps=steps, every=steps // 100
    )
    return path.time.numpy(), (path.total - path.total[0]).numpy()


runs = {name: energy_error(flow, DT, MOVES) for name, flow in flows.items()}

figure = Figure(figsize=(10, 4), layout="constrained")
left, right = figure.subplots(1, 2)
for name in ("spline", "smooth"):
    time, off = runs[name]
    left.plot(time, off, color=colors[name], lw=0.6, alpha=0.6)
    left.plot([], [], color=colors[name], label=name)
for name, (time, off) in runs.items():
    right.semilogy(time[1:], np.sqrt((off[1:] ** 2).mean(1)), color=colors[name], label=name)
left.set(ylabel="total energy less that at the start (kT)", title=f"{len(starts)} trajectories")
right.set(ylabel="root mean square (kT)", title="over all trajectories")
for axes in (left, right):
    axes.set(xlabel=r"time (rad $\sqrt{m / kT}$)")
    axes.legend()
figure

# %% [markdown]
# The same in numbers, and once more with half the time step over the first quarter of the time.

# %%
print(f"{'':20} at the end        largest    first quarter      with dt / 2   ratio")
for name, flow in flows.items():
    off = runs[name][1]
    halved = energy_error(flow, DT / 2, MOVES // 2)[1]
    last, quarter, fine = (np.sqrt((e**2).mean()) for e in (off[-1], off[1:26], halved[1:]))
    print(
        f"{name:20} {last:8.4f} kT {np.abs(off).max():9.4f} kT {quarter:12.4f} kT {fine:12.4f} kT "
        f"{quarter / fine:7.1f}"
    )

# %% [markdown]
# ## What a full run shows
#
# The numbers of one run in full size (in this page's own run they are meaningless if it was a
# small one):
#
# | | spline | smooth | smooth, with forces |
# |---|--:|--:|--:|
# | negative log-likelihood above the entropy (nats) | 0.0168 | 0.0098 | 0.0043 |
# | force error, root mean square (1/rad) | 2.842 | 1.290 | 0.561 |
# | largest difference of neighbours, 4,000 steps (1/rad) | 7.388 | 0.043 | 0.044 |
# | largest difference of neighbours, 40,000 steps (1/rad) | 7.598 | 0.004 | 0.004 |
# | energy error at the end, root mean square (kT) | 1.5068 | 0.0018 | 0.0011 |
# | energy error, dt over dt / 2 | 1.9 | 4.0 | 4.1 |
#
# The likelihoods are about the same: the spline loses 0.007 nats to its smooth twin. The force
# error is less than half as large with smooth maps, and less than half of that again with forces
# in the training. The spline's energies wander off, by more than a kT; those of the smooth flows
# stay where they are, and their error falls with the square of the time step. This is one density
# and one seed. The comparison with larger networks, three seeds, and splines trained on forces as
# well is in `examples/papers/smooth_flows.py`.

# %% [markdown]
# ## When to use which
#
# - **Only densities and samples?** Splines do: their likelihood is about the same, and both
#   directions are closed formulas, where a smooth mixture searches for its inverse.
# - **Forces, dynamics, or a loss with gradients of the density?** Take smooth maps, and
#   conditioners with a smooth activation (SiLU, the default of `smooth_flow`, not ReLU).
# - **Do your data come with forces?** Use them: every point then tells the slope of the
#   log-density as well. A training step costs more, for the gradient of a gradient.
# - **Angles?** Say so with `circular=True`, whichever map you choose: a flow of real
#   variables need not be continuous across the cut.
