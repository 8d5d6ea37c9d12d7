"""Spline flows on two tables: flowkit, zuko and nflows, trained alike; and flowkit's defaults.

The data are MAGIC (10 columns) and grey 8 x 8 patches of photographs (63 columns, the recipe of
BSDS300 in Masked Autoregressive Flow, arXiv 1705.07057, and Neural Spline Flows, arXiv 1906.04032,
on other images, so that the numbers are not comparable with theirs). Every library builds the same
two architectures:

* coupling: 8 x (random permutation, LU-factored linear layer, rational-quadratic spline coupling
  with 8 bins on [-5, 5], perceptron of 2 x 128);
* autoregressive: 5 x (random permutation, LU-factored linear layer, masked autoregressive spline,
  masked perceptron of 2 x 128).

All get the same standardised rows, batches, optimiser (Adam, 1e-3, cosine to zero, gradient norm
at most 10) and number of steps; the weights with the best validation score are the ones tested.
What stays different is each library's own. flowkit's perceptrons use SiLU, start hidden layers at
He's size and last layers at zero; those of the others use ReLU and torch's start. zuko's linear
layer has no bias. zuko has no coupling spline flow by name, so its coupling is built of its
GeneralCouplingTransform and MonotonicRQSTransform. ``--activation silu`` gives the others SiLU as
well, ``--activation relu`` gives flowkit ReLU; ``--libraries "zuko NSF"`` adds that library's
ready-made flow, with permutations and without linear layers.

"flowkit fit" is what users get who set nothing: the default architecture and start of the recipe,
trained by ``fit`` with its defaults, for at most as many steps of as many rows as the others.

Run: ``python examples/papers/tabular_density.py --output docs/results`` (about 90 minutes on one
core); ``--small`` takes seconds. Finished trainings are stored in ``--runs`` and reused, so that
an interrupted call continues; empty that folder when a library has changed. ``--record FILE``
stores one entry per flow and library, as JSON.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Study, table
from torch import Tensor, nn

import flowkit
from flowkit.datasets import magic, photograph_patches
from flowkit.datasets.splits import Splits

ARCHITECTURES = ("coupling", "autoregressive")
RECIPES = {"coupling": flowkit.coupling_flow, "autoregressive": flowkit.autoregressive_flow}
LIBRARIES = ("flowkit", "flowkit fit", "zuko", "nflows", "zuko NSF")
LAYERS = {"coupling": 8, "autoregressive": 5}
HIDDEN, BINS, BOUND = (128, 128), 8, 5.0
STEPS = {"magic": 3000, "patches": 2000}
TITLES = {"magic": "MAGIC, 10 columns", "patches": "photograph patches, 63 columns"}


@dataclass(frozen=True)
class Setting:
    """One training."""

    data: str
    architecture: str
    library: str
    seed: int
    steps: int
    batch_size: int = 256
    activation: str = "default"

    @property
    def label(self) -> str:
        return "-".join(str(v) for v in asdict(self).values()).replace(" ", "_")


@dataclass
class Model:
    """A density of any library: its modules, and the function that scores rows."""

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]


# --- the same architecture, three times ------------------------------------------------------


def flowkit_model(s: Setting, train: Tensor) -> Model:
    options = {} if s.activation == "default" else {"activation": s.activation}
    layers = LAYERS[s.architecture]
    flow = RECIPES[s.architecture](
        train.shape[1], layers=layers, hidden=(128, 128), start="standardize", **options
    )
    flow.initialize(train)
    return Model(flow, flow.log_prob)


def zuko_model(s: Setting, train: Tensor) -> Model:
    from zuko.flows import GeneralCouplingTransform, MaskedAutoregressiveTransform
    from zuko.lazy import Flow, UnconditionalDistribution, UnconditionalTransform
    from zuko.transforms import LULinearTransform, MonotonicRQSTransform, PermutationTransform

    features = train.shape[1]
    options = {
        "univariate": MonotonicRQSTransform,  # its own default bound is 5
        "shapes": [(BINS,), (BINS,), (BINS - 1,)],
        "hidden_features": HIDDEN,
        "activation": {"default": None, "relu": nn.ReLU, "silu": nn.SiLU}[s.activation],
    }
    transforms = []
    for _ in range(LAYERS[s.architecture]):
        order = torch.randperm(features)
        transforms.append(UnconditionalTransform(PermutationTransform, order, buffer=True))
        transforms.append(UnconditionalTransform(LULinearTransform, torch.eye(features)))
        if s.architecture == "coupling":
            half = torch.arange(features) < features // 2
            transforms.append(GeneralCouplingTransform(features, mask=half, **options))
        else:
            transforms.append(MaskedAutoregressiveTransform(features, **options))
    base = UnconditionalDistribution(
        _normal, torch.zeros(features), torch.ones(features), buffer=True
    )
    flow = Flow(transforms, base)
    return Model(flow, lambda x: flow().log_prob(x))


def _normal(mean: Tensor, scale: Tensor) -> torch.distributions.Distribution:
    from zuko.distributions import DiagNormal

    return DiagNormal(mean, scale)


def zuko_ready_made_model(s: Setting, train: Tensor) -> Model:
    from zuko.flows import NSF

    flow = NSF(
        train.shape[1],
        transforms=LAYERS[s.architecture],
        randperm=True,
        passes=2 if s.architecture == "coupling" else None,
        bins=BINS,
        hidden_features=HIDDEN,
        activation={"default": None, "relu": nn.ReLU, "silu": nn.SiLU}[s.activation],
    )
    return Model(flow, lambda x: flow().log_prob(x))


def nflows_model(s: Setting, train: Tensor) -> Model:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        LULinear,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        RandomPermutation,
    )

    features = train.shape[1]
    act = nn.functional.silu if s.activation == "silu" else nn.functional.relu
    options = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}
    transforms = []
    for _ in range(LAYERS[s.architecture]):
        transforms += [RandomPermutation(features), LULinear(features, identity_init=True)]
        if s.architecture == "coupling":
            half = (torch.arange(features) >= features // 2).int()
            transforms.append(
                PiecewiseRationalQuadraticCouplingTransform(
                    half, lambda i, o: _nflows_perceptron(i, o, act), **options
                )
            )
        else:
            # The first masked layer and one feedforward block: two hidden layers.
            transforms.append(
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features,
                    HIDDEN[0],
                    num_blocks=1,
                    use_residual_blocks=False,
                    activation=act,
                    **options,
                )
            )
    flow = Flow(CompositeTransform(transforms), StandardNormal([features]))
    return Model(flow, flow.log_prob)


def _nflows_perceptron(inputs: int, outputs: int, act: Callable[[Tensor], Tensor]) -> nn.Module:
    from nflows.nn.nets import MLP

    class Perceptron(MLP):
        hidden_features = HIDDEN[0]  # nflows divides the logits of the bins by its square root

        def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(inputs)

    return Perceptron([inputs], [outputs], HIDDEN, activation=act)


BUILDERS = {
    "flowkit": flowkit_model,
    "zuko": zuko_model,
    "zuko NSF": zuko_ready_made_model,
    "nflows": nflows_model,
}


# --- the same training for all ---------------------------------------------------------------


def train_and_test(s: Setting, splits: Splits) -> dict[str, np.ndarray]:
    """Train one model; return log-likelihoods of the test rows and what the training took."""
    torch.manual_seed(s.seed)
    model = BUILDERS[s.library](s, splits.train)
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)
    generator = torch.Generator().manual_seed(s.seed)
    every = max(1, s.steps // 20)
    best, best_step, weights, seconds = -math.inf, 0, None, 0.0
    order = torch.empty(0, dtype=torch.long)
    begun = time.process_time()
    for step in range(1, s.steps + 1):
        if len(order) < s.batch_size:
            order = torch.randperm(len(splits.train), generator=generator)
        rows, order = order[: s.batch_size], order[s.batch_size :]
        loss = -model.log_prob(splits.train[rows]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        scheduler.step()
        if step % every == 0 or step == s.steps:
            seconds += time.process_time() - begun
            score = float(log_likelihoods(model, splits.validation[:2000]).mean())
            if score > best:
                best, best_step = score, step
                weights = copy.deepcopy(model.module.state_dict())
            begun = time.process_time()
    last = float(log_likelihoods(model, splits.test).mean())
    if weights is not None:
        model.module.load_state_dict(weights)
    return {
        "test": log_likelihoods(model, splits.test).numpy(),
        "last": np.array(last),
        "validation": np.array(best),
        "best_step": np.array(best_step),
        "seconds": np.array(seconds),
        "parameters": np.array(sum(p.numel() for p in parameters)),
    }


def fit_and_test(s: Setting, splits: Splits) -> dict[str, np.ndarray]:
    """Train flowkit's defaults by ``fit``; return what :func:`train_and_test` does."""
    torch.manual_seed(s.seed)
    flow = RECIPES[s.architecture](splits.train.shape[1])
    begun = time.process_time()
    history = flowkit.fit(
        flow, splits.train, validation=splits.validation[:2000], steps=s.steps,
        batch_size=s.batch_size, seed=s.seed, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - begun
    model = Model(flow, flow.log_prob)
    scores = log_likelihoods(model, splits.test)
    return {
        "test": scores.numpy(),
        "last": scores.mean().numpy(),  # fit restores the best weights
        "validation": -np.array(history.best),
        "best_step": np.array(history.best_step),
        "seconds": np.array(seconds),
        "parameters": np.array(sum(p.numel() for p in flow.parameters() if p.requires_grad)),
    }


@torch.no_grad()
def log_likelihoods(model: Model, rows: Tensor) -> Tensor:
    model.module.eval()
    scores = torch.cat([model.log_prob(part).double() for part in rows.split(1024)])
    model.module.train()
    return scores


def run(s: Setting, splits: Splits, folder: Path) -> dict[str, np.ndarray]:
    """The result of a training, from an earlier call if there is one."""
    file = folder / f"{s.label}.npz"
    if not file.is_file():
        train = fit_and_test if s.library == "flowkit fit" else train_and_test
        result = train(s, splits)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, **result)
    with np.load(file) as stored:
        result = dict(stored)
    mean, error = mean_and_error(result["test"])
    print(
        f"{s.data} {s.architecture} {s.library} seed {s.seed}: {mean:.3f} +- {error:.3f} "
        f"(last step {result['last']:.3f}, best step {result['best_step']}, "
        f"{result['seconds']:.0f} s)",
        flush=True,
    )
    return result


# --- the tables ------------------------------------------------------------------------------


def mean_and_error(rows: np.ndarray) -> tuple[float, float]:
    """Mean over rows and its standard error."""
    return float(rows.mean()), float(rows.std(ddof=1) / math.sqrt(len(rows)))


def summarise(results: Sequence[tuple[Setting, dict[str, np.ndarray]]]) -> list[dict]:
    """One entry per data set, architecture and library; seeds averaged row by row."""
    grouped: dict[tuple[str, str, str], list[tuple[Setting, dict[str, np.ndarray]]]] = {}
    for setting, result in results:
        key = (setting.data, setting.architecture, setting.library)
        grouped.setdefault(key, []).append((setting, result))
    entries = []
    for (data, architecture, library), runs in grouped.items():
        rows = np.mean([r["test"] for _, r in runs], 0)
        mean, error = mean_and_error(rows)
        entry = {
            "data": data,
            "architecture": architecture,
            "library": library,
            "seeds": [s.seed for s, _ in runs],
            "steps": runs[0][0].steps,
            "log_likelihood": round(mean, 4),
            "standard_error": round(error, 4),
            "by_seed": [round(float(r["test"].mean()), 4) for _, r in runs],
            "after_last_step": [round(float(r["last"]), 4) for _, r in runs],
            "parameters": int(runs[0][1]["parameters"]),
            "seconds": round(float(np.mean([r["seconds"] for _, r in runs])), 1),
        }
        ours = grouped.get((data, architecture, "flowkit"), [])
        if library != "flowkit" and len(ours) == len(runs):
            lead = np.mean([r["test"] for _, r in ours], 0) - rows
            entry["flowkit_lead"], entry["flowkit_lead_error"] = (
                round(v, 4) for v in mean_and_error(lead)
            )
        entries.append(entry)
    return entries


def page(study: Study, entries: Sequence[dict], sets: dict[str, Splits]) -> list[str]:
    """One table per data set, and what its columns are."""
    shapes = "; ".join(
        f"{name}: {len(s.train):,} training, {len(s.validation):,} validation, "
        f"{len(s.test):,} test rows"
        for name, s in sets.items()
    )
    lines = study.heading(
        "Tabular density estimation: flowkit, zuko and nflows",
        'Mean log-likelihood of the test rows in nats, in units of the standardised columns. "±" '
        'is the standard error over test rows of the mean over seeds; "flowkit\'s lead" is the '
        "mean difference to flowkit on the same rows, paired. Patches of one image overlap, so "
        "for them the standard errors are too small. Training is CPU seconds of one thread, mean "
        "over seeds, without evaluation.",
        f"Rows: {shapes}. Batches of {study.options.batch_size}, Adam 1e-3 with a cosine to zero, "
        "gradient norm at most 10, the weights of the best of 20 validations. The architectures "
        "of the libraries, and where they differ, are described at the head of "
        "`examples/papers/tabular_density.py`.",
    )
    for data in dict.fromkeys(e["data"] for e in entries):
        chosen = [e for e in entries if e["data"] == data]
        seeds = ", ".join(map(str, chosen[0]["seeds"]))
        lines += [f"**{TITLES[data]}** ({chosen[0]['steps']} steps, seeds {seeds})", ""]
        lines += table(
            ("flow", "library", "test log-likelihood", "flowkit's lead", "parameters", "training"),
            map(_row, chosen),
            left=2,
        )
    return lines


def _row(e: dict) -> tuple[str, ...]:
    lead = ""
    if "flowkit_lead" in e:
        lead = f"{e['flowkit_lead']:+.3f} ± {e['flowkit_lead_error']:.3f}"
    score = f"{e['log_likelihood']:.3f} ± {e['standard_error']:.3f}"
    return (
        e["architecture"], e["library"], score, lead, f"{e['parameters']:,}",
        f"{e['seconds']:.0f} s",
    )  # fmt: skip


def load(name: str, rows: int, small: bool) -> Splits:
    raw = magic() if name == "magic" else photograph_patches(limit=1000 if small else rows)
    splits = raw.standardized()
    if not small:
        return splits
    return Splits(*(part[:300] for part in splits[:3]), splits.columns)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Train and score all."""
    study = Study(
        __file__,
        __doc__,
        small={"seeds": [0], "steps": 4},
        packages=("flowkit-density", "torch", "nflows", "zuko"),
        data=tuple(STEPS),
        libraries={"nargs": "+", "default": list(LIBRARIES[:4]), "choices": LIBRARIES},
        architectures=ARCHITECTURES,
        seeds=[0, 1],
        steps=int,  # 3000, and 2000 on patches
        batch_size=256,
        rows=100_000,
        activation={"default": "default", "choices": ("default", "relu", "silu")},
        runs=Path,
    )
    options = study.parse(arguments)
    folder = options.runs or Path(tempfile.gettempdir()) / "flowkit_tabular_density"
    sets = {name: load(name, options.rows, options.small) for name in options.data}
    results = []
    for name, splits in sets.items():
        steps = options.steps or STEPS[name]
        for seed in options.seeds:
            for architecture in options.architectures:
                for library in options.libraries:
                    setting = (name, architecture, library, seed, steps)
                    s = Setting(*setting, options.batch_size, options.activation)
                    results.append((s, run(s, splits, folder)))
    entries = summarise(results)
    entries.sort(
        key=lambda e: (
            list(sets).index(e["data"]),
            ARCHITECTURES.index(e["architecture"]),
            LIBRARIES.index(e["library"]),
        )
    )
    study.write(page(study, entries, sets))
    if options.record:
        options.record.write_text(json.dumps(entries, indent=1) + "\n")
    return entries


if __name__ == "__main__":
    main()
