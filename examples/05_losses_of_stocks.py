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
# # Losses of stocks
#
# How bad is the worst day in a thousand? A density fitted to daily returns answers with two
# numbers: the *value at risk*, a quantile of the losses, and the *expected shortfall*, their mean
# beyond it. Both live in the tail, where a normal density is hopeless, and where a flow on a
# normal base is, too, as soon as the data end: its layers are lines there, and lines make no
# normal tail heavier.
#
# This tutorial estimates tails, builds flows that have them, and holds their losses against years
# that no fit has seen. It needs one table of the package skfolio, and nothing else of it:
# `pip install --no-deps skfolio`. Run it with `python examples/05_losses_of_stocks.py` (three
# minutes on one core), or open it as a notebook with jupytext. With `FLOWKIT_EXAMPLES=small` in
# the environment it trains for a moment only, and its numbers then say nothing.

# %%
# %matplotlib inline
import os

import numpy as np
import torch

import flowkit
from flowkit import tail_adaptive_flow
from flowkit.datasets import stock_returns
from flowkit.plotting import mean_excess_plot, pareto_plot, qq_plot
from flowkit.statistics import expected_shortfall, tail_indices, tail_verdict

torch.set_num_threads(1)
SMALL = os.environ.get("FLOWKIT_EXAMPLES") == "small"
EPOCHS, DRAWS = (1, 2_000) if SMALL else (60, 100_000)

# %% [markdown]
# ## Twenty stocks, 33 years
#
# Daily log returns in per cent. What comes before 2010 is there to be fitted, the rest to judge.

# %%
stocks = stock_returns()
before, after = stocks.split("2010-01-01")
print(f"{len(before):,} days before, {len(after):,} after, {len(stocks.names)} stocks")

# %% [markdown]
# On logarithmic axes the share of losses beyond t is a line for a tail of powers, and bends down
# for a light one. A normal density of the same variance leaves the data behind at three or four
# standard deviations.

# %%
ge = before[:, stocks.names.index("GE")].double().numpy()
normal = np.random.default_rng(0).normal(ge.mean(), ge.std(), len(ge))
pareto_plot(
    {"GE": ge, "normal": normal}, tail="left", unit="%", title="daily losses of General Electric"
)

# %% [markdown]
# The mean excess says the same in another way: how much worse than t it gets on average, once it
# is worse than t. For a tail of powers it rises.

# %%
mean_excess_plot({"GE": ge, "normal": normal}, tail="left", unit="%", title="mean excess, GE")

# %% [markdown]
# Estimators put a number to it, the tail index: the power with which the tail falls. Moments of
# an order above it do not exist. Where the interval is wide, the data do not know better. The
# losses of GE count as light: the curves above rise, but they bend at 6 %, and estimators that
# look at the last of the days take that for an end.

# %%
for name in ("GE", "KO", "BAC"):
    column = before[:, stocks.names.index(name)]
    for tail in ("left", "right"):
        verdict = tail_verdict(column, tail=tail)
        low, high = verdict.interval
        print(f"{name:4s} {tail:5s} index {verdict.index:.1f}, from {low:.1f} to {high:.1f}")

# %% [markdown]
# ## Three flows
#
# All have the same layers, autoregressive splines, and differ in where their tails come from:
#
# - `spline`: a normal base. Its tails are as light as the last knot of a spline lets them be.
# - `mtaf`: a Student-t base with the estimated tail index of each stock, learned on.
# - `ttf`: a normal base, and one more map between the flow and the data, that turns normal tails
#   into those of powers, with an index for losses and one for gains.

# %%
tails = tail_indices(before)
sides = tail_indices(before, tail="apart")
flows = {
    "spline": tail_adaptive_flow(len(stocks.names), tails=None),
    "mtaf": tail_adaptive_flow(len(tails), tails=tails),
    "ttf": tail_adaptive_flow(len(sides), tails=sides, variant="ttf"),
}
drawn = {}
for name, flow in flows.items():
    torch.manual_seed(0)
    flowkit.fit(flow, before, epochs=EPOCHS, patience=10, compile=False, progress=False)
    with torch.no_grad():
        score = flow.log_prob(after).mean().item()
    drawn[name] = flow.sample(DRAWS, generator=torch.Generator().manual_seed(0))
    print(f"{name:8s} log p of a held-out day {score:.2f} nats")

# %% [markdown]
# As a yardstick, a normal density with the mean and covariance of the returns.

# %%
mean, root = before.mean(0), torch.linalg.cholesky(before.T.cov())
noise = torch.randn(DRAWS, len(stocks.names), generator=torch.Generator().manual_seed(0))
drawn["normal"] = mean + noise @ root.T

# %% [markdown]
# ## Against the years that followed
#
# Mean over the stocks of the absolute difference to the held-out years, in per cent a day. The
# worst day in a thousand came about three times in these years, for each stock: take the last
# column with caution. And the years differ: those before hold two crashes, those after one.


# %%
def risks(x, level):
    """Value at risk and expected shortfall of every column."""
    columns = x.double().numpy().T
    return np.array(
        [
            [np.quantile(-c, level) for c in columns],
            [expected_shortfall(c, level, tail="left") for c in columns],
        ]
    )


print("              99 %                99.9 %")
print("           at risk shortfall   at risk shortfall")
for name in ("normal", "spline", "mtaf", "ttf"):
    errors = [np.abs(risks(drawn[name], p) - risks(after, p)).mean(1) for p in (0.99, 0.999)]
    print(f"{name:8s}" + "".join(f"{v:10.2f}" for pair in errors for v in pair))

# %% [markdown]
# ## A portfolio
#
# A joint density also knows what happens to the sum. Here is the portfolio that holds the same of
# each: whether stocks fall *together* on a bad day decides how much of the risk averages out.

# %%
portfolio = after.mean(1)
sums = {name: x.mean(1)[: len(portfolio) * 10] for name, x in drawn.items()}
pareto_plot(
    {"held out": portfolio, **sums}, tail="left", unit="%", title="losses of the portfolio"
)

# %%
qq_plot(
    portfolio,
    {name: sums[name] for name in ("normal", "spline", "ttf")},
    label="held-out years",
    unit="%",
    title="returns of the portfolio",
)

# %% [markdown]
# The flows do not know of time: the days of a crash come together, and a model of volatility would
# see them coming, where these densities only say how often such days are.
