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
# # Fit a density
#
# First a density whose entropy is known, so that we can see how close a fit comes to the best
# possible one. Then a photograph: the color of a pixel, given where it is.
#
# Run it with `python examples/01_fit_a_density.py`, or open it as a notebook with jupytext.
# With `FLOWKIT_EXAMPLES=small` in the environment it trains for a moment only.

# %%
# %matplotlib inline
import math
import os

import torch

import flowkit
from flowkit.datasets import photograph_colors
from flowkit.plotting import density_2d, plot_history
from flowkit.toys import Sine

torch.set_num_threads(1)
torch.manual_seed(0)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"

# %% [markdown]
# ## A curve with noise
#
# Points along a sine curve, blurred. A flow sees samples only.

# %%
toy = Sine()
data = toy.sample(5_000 if SMALL else 50_000, torch.Generator().manual_seed(0))

flow = flowkit.coupling_flow(features=2, layers=6, hidden=(64, 64))
print(flow.summary())

# %%
epochs = 5 if SMALL else 30
record = flowkit.fit(flow, data, epochs=epochs, batch_size=512, lr=3e-3, progress=False)
print(f"{record.steps[-1]} steps, stopped by {record.stopped}, best step {record.best_step}")

# %% [markdown]
# The loss is the negative log-density in nats. On fresh data its mean cannot fall below the
# entropy of the density itself; the difference is the Kullback-Leibler divergence of the fit.

# %%
fresh = toy.sample(20_000, torch.Generator().manual_seed(1))
with torch.no_grad():
    log_density = flow.log_prob(fresh)
error = log_density.std().item() / math.sqrt(len(fresh))
print(f"negative log-likelihood, fresh data  {-log_density.mean().item():.4f} +- {error:.4f} nats")
print(f"entropy of the density               {toy.entropy():.4f} nats")

# %%
plot_history(record)

# %%
density_2d(flow.log_prob, ((-11, 11), (-8, 8)), samples=flow.sample(2_000), title="the fit")

# %% [markdown]
# ## The color of a pixel, given its place
#
# A flow with context is a conditional density: here of (red, green, blue) given (x, y), learned
# from the pixels of a photograph. Colours are integers, so we spread each over its unit interval.

# %%
photo = photograph_colors("flower.jpg")
points = photo.dequantized(seed=0)
colors, places = points[:, :3], points[:, 3:]
print(f"{len(points):,} pixels, {photo.width} x {photo.height}")

# %%
painter = flowkit.autoregressive_flow(features=3, context=2, layers=2, hidden=(128, 128, 128))
flowkit.fit(
    painter,
    {"x": colors, "context": places},
    steps=50 if SMALL else 6_000,
    batch_size=1024,
    lr=3e-3,
    progress=False,
)

# %% [markdown]
# One color drawn for every fourth pixel, with nothing but the flow to paint from: noise where
# the flow is unsure, sharp where the place determines the color.

# %%
rows = torch.arange(0, photo.height, 4)
columns = torch.arange(0, photo.width, 4)
y, x = torch.meshgrid(rows, columns, indexing="ij")
grid = torch.stack([x, y], -1).float()
painted = painter.sample((), grid).clamp(0, 255)

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(10, 3.6), layout="constrained")
for axes, image, title in zip(
    figure.subplots(1, 2),
    [photo.image(), painted.to(torch.uint8).numpy()],
    ["the photograph", "a color drawn for every fourth pixel"],
    strict=True,
):
    axes.imshow(image, extent=(0, photo.width, photo.height, 0))
    axes.set(title=title, xlabel="x (pixels)", ylabel="y (pixels)")
figure

# %% [markdown]
# ## Keep it
#
# A flow file holds weights and recipe. It can be read anywhere, and runs nothing.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "painter.safetensors"
    flowkit.save(painter, path)
    again = flowkit.load(path)
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
some = slice(0, 1000)
print(
    torch.equal(
        again.log_prob(colors[some], places[some]), painter.log_prob(colors[some], places[some])
    )
)
