"""Association with markers among relatives: phenotypes as they are, ranked, or noise of flows.

"Training Normalizing Flows from Dependent Data" (Kirchler, Lippert, Kloft 2023, arXiv 2209.14933)
trains flows by the likelihood of related people together, and tests genetic markers for
association with what the flow makes of their phenotypes. The paper's data are not public; here is

* a simulated study: 200 families of two founders and two to six siblings, 5,000 independent
  markers, of which 100 act on two normal latents, and two phenotypes made of the latents by a
  crescent and skewed. Phenotypes as they are, ranked to normal column by column, as the noise of
  a flow trained by the likelihood of independent people or of families together, and as that of
  a flow of their ranks are tested with one mixed model; so are the latents, which no study has;
* 1,197 mice with both quantitative phenotypes of the Debian package gemma-doc, where flows are
  also compared by the likelihood of families that were held out.

Flows are fitted to the people who are then tested, as a study would. Their settings are those of
the least excess, of six tried on two simulated studies that are not among the replicates.

Run: ``python examples/papers/association_study.py`` (a quarter of an hour on one core);
``--small`` takes seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Records, Study, spread, table
from torch import Tensor

import flowkit
from flowkit import DependentLikelihood, Flow, MaximumLikelihood, coupling_flow
from flowkit.datasets import heterogeneous_stock_mice
from flowkit.datasets.mice import Mice
from flowkit.dependence import Kinship, LinearMixedModel, UpdateCovariance, rank_normalised
from flowkit.errors import MissingDependencyError

METHODS = ("raw", "ranked", "flow, independent", "flow, related", "flow of ranks, related")
LEVELS = (0.05, 1e-3)
POWERS = (1e-3, 1e-5)
GENOME = 5e-8
HERITABILITY = 0.5
CAUSAL = 100
FOLDS = 5
LAYERS, HIDDEN, RATE = 4, (32, 32), 5e-3
# CD8 and MCH.
COLUMNS = (0, 5)


@dataclass
class Simulated:
    """Tests of one replicate."""

    replicate: int
    method: str
    test: str
    people: int
    null: int
    false: list[int]
    causal: int
    found: list[int]
    genomic_control: float
    residual_proportion: float
    excess: float | None
    seconds: float


@dataclass
class HeldOut:
    """Log-density per mouse, of mice of families that were held out."""

    fold: int
    model: str
    trained: int
    held: int
    alone: float
    together: float
    residual_proportion: float


@dataclass
class Found:
    """Markers that are associated in mice."""

    method: str
    test: str
    markers: int
    genome: int
    bonferroni: int
    genomic_control: float
    residual_proportion: float
    adjusted: int


def families(count: int, markers: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Doses of markers (n, M), frequencies of their alleles, and the kinship of the pedigree."""
    frequency = rng.uniform(0.05, 0.5, markers)
    doses, blocks = [], []
    for _ in range(count):
        siblings = int(rng.integers(2, 7))
        founders = rng.random((2, 2, markers)) < frequency
        passed = rng.integers(2, size=(siblings, 2, markers))
        children = sum(np.where(passed[:, p] == 1, founders[p, 1], founders[p, 0]) for p in (0, 1))
        doses += [founders.sum(1).astype(np.int8), (1 * children).astype(np.int8)]
        block = torch.full((2 + siblings, 2 + siblings), 0.5, dtype=torch.float64)
        block[0, 1] = block[1, 0] = 0.0
        blocks.append(block.fill_diagonal_(1.0))
    kinship = torch.block_diag(*blocks)
    return torch.from_numpy(np.concatenate(doses)), torch.from_numpy(frequency), kinship


def latents(doses: Tensor, frequency: Tensor, causal: Tensor, rng: np.random.Generator) -> Tensor:
    """Two standard normal latents, half of whose variance is that of the causal markers."""
    f = frequency[causal]
    standard = (doses[:, causal].double() - 2 * f) / (2 * f * (1 - f)).sqrt()
    effects = torch.from_numpy(rng.standard_normal((len(causal), 2)))
    genetics = standard @ (effects / effects.norm(dim=0))
    noise = torch.from_numpy(rng.standard_normal(genetics.shape))
    return math.sqrt(HERITABILITY) * genetics + math.sqrt(1 - HERITABILITY) * noise


def phenotypes(u: Tensor) -> tuple[Tensor, Tensor]:
    """A crescent, then exp of one column and sinh of the other; and the log-determinants."""
    first, second = u[:, 0], u[:, 0].square() / 2 - 1 + math.exp(-1) * u[:, 1]
    x = torch.stack([first.exp(), second.sinh()], 1)
    return x, first + second.cosh().log() - 1


def trained(
    x: Tensor, related: Tensor | None, seed: int, epochs: int
) -> tuple[Flow, float, Callable[[Tensor], Tensor]]:
    """A flow, its residual proportion of variance, and the standardisation before it."""
    flow = coupling_flow(2, layers=LAYERS, hidden=HIDDEN, seed=seed)
    mean, scale = x.mean(0), x.std(0)

    def prepared(values: Tensor) -> Tensor:
        return ((values - mean) / scale).float()

    rows = prepared(x)
    data = {"x": rows, "row": torch.arange(len(rows))}
    objective, callbacks, structure = MaximumLikelihood(), [], None
    if related is not None:
        structure = Kinship(related, residual_proportion=0.5, learn=False)
        objective = DependentLikelihood(structure, mode="exact")
        callbacks = [UpdateCovariance(structure, rows, every=10)]
    torch.manual_seed(seed)
    flowkit.fit(
        flow,
        data if structure is not None else rows,
        objective,
        validation=None,
        batch_size=len(rows),
        epochs=epochs,
        lr=RATE,
        scheduler="cosine",
        ema=None,
        patience=None,
        compile=False,
        progress=False,
        seed=seed,
        callbacks=callbacks,
    )
    flow.eval()
    return flow, 1.0 if structure is None else float(structure.residual_proportion), prepared


@torch.no_grad()
def log_density(flow: Flow, prepared: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Log-density of phenotypes in their own units."""
    slope = (prepared(torch.ones(2)) - prepared(torch.zeros(2))).abs().log().sum()
    return (flow.log_prob(prepared(x)) + slope).double()


@torch.no_grad()
def noise(flow: Flow, prepared: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The noise of phenotypes."""
    return flow.to_noise(prepared(x)).double()


def replicate(number: int, options: argparse.Namespace) -> list[Simulated]:
    """Simulate a study and test it in every way."""
    rng = np.random.default_rng(number)
    doses, frequency, kinship = families(options.families, options.markers, rng)
    causal = torch.from_numpy(rng.permutation(options.markers)[:CAUSAL])
    u = latents(doses, frequency, causal, rng)
    x, _ = phenotypes(u)
    fresh = torch.from_numpy(rng.standard_normal((5000, 2)))
    fresh_x, slope = phenotypes(fresh)
    truth = -0.5 * fresh.square().sum(1) - math.log(2 * math.pi) - slope
    # Beyond the training rows a flow has its own tails: one row can outweigh thousands.
    inside = ((fresh_x > x.amin(0)) & (fresh_x < x.amax(0))).all(1)
    active = torch.zeros(options.markers, dtype=torch.bool)
    active[causal] = True
    model = LinearMixedModel(kinship)
    doses = doses.double()
    results = []
    for method in (*METHODS, "latents"):
        begun, excess = time.process_time(), None
        if method == "raw":
            y = x
        elif method == "ranked":
            y = rank_normalised(x)
        elif method == "latents":
            y = u
        else:
            related = None if method == "flow, independent" else kinship
            given = rank_normalised(x) if method.startswith("flow of ranks") else x
            flow, _, prepared = trained(given, related, number, options.epochs)
            y = noise(flow, prepared, given)
        if method in ("flow, independent", "flow, related"):
            excess = float((truth - log_density(flow, prepared, fresh_x))[inside].mean())
        both = model.score_test(y, doses)
        singles = [model.score_test(column, doses) for column in y.T]
        two = (2 * torch.stack([s.p_value for s in singles]).amin(0)).clamp(max=1.0)
        control = statistics.mean(s.genomic_control for s in singles)
        for test, p, median, proportion in (
            ("together", both.p_value, both.genomic_control, both.residual_proportion),
            ("two", two, control, statistics.mean(s.residual_proportion for s in singles)),
        ):
            results.append(
                Simulated(
                    number,
                    method,
                    test,
                    len(x),
                    int((~active).sum()),
                    [int((p[~active] < level).sum()) for level in LEVELS],
                    int(active.sum()),
                    [int((p[active] < level).sum()) for level in POWERS],
                    median,
                    proportion,
                    excess,
                    time.process_time() - begun,
                )
            )
    return results


def folds(codes: tuple[str, ...], count: int, seed: int = 0) -> np.ndarray:
    """The fold of each mouse: families stay together, large ones first."""
    names, sizes = np.unique(np.array(codes), return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    load, fold = np.zeros(count), {}
    for i in sorted(order, key=lambda i: -sizes[i]):
        fold[names[i]] = int(load.argmin())
        load[fold[names[i]]] += sizes[i]
    return np.array([fold[code] for code in codes])


def held_out(
    fold: int, where: np.ndarray, x: Tensor, related: Tensor, epochs: int
) -> list[HeldOut]:
    """Train without a fold, and compute its density."""
    test = torch.from_numpy(where == fold)
    order = torch.cat([(~test).nonzero()[:, 0], test.nonzero()[:, 0]])
    size, held = int((~test).sum()), int(test.sum())
    inner = related[~test][:, ~test]
    every = related[order][:, order]
    results = []
    for model in ("normal", "flow, independent", "flow, related"):
        if model == "normal":
            mean, covariance = x[~test].mean(0), torch.cov(x[~test].mT)
            root = torch.linalg.cholesky(covariance)
            u = torch.linalg.solve_triangular(root, (x - mean).mT, upper=False).mT
            log_det = -root.diagonal().log().sum().expand(len(x))
        else:
            flow, _, prepared = trained(
                x[~test], inner if model == "flow, related" else None, fold, epochs
            )
            u = noise(flow, prepared, x)
            standard = -0.5 * u.square().sum(1) - math.log(2 * math.pi)
            log_det = log_density(flow, prepared, x) - standard
        alone = -0.5 * u[test].square().sum(1) - math.log(2 * math.pi) + log_det[test]
        # The variance proportion by the training mice for all models, at their own noise.
        training = Kinship(inner, learn=False)
        training.fit_parameters(u[~test])
        fitted = float(training.residual_proportion)
        both = Kinship(every, residual_proportion=min(max(fitted, 1e-3), 1 - 1e-3), learn=False)
        with torch.no_grad():
            given = both.log_prob(u[order]) - training.log_prob(u[order[:size]])
        results.append(
            HeldOut(
                fold,
                model,
                size,
                held,
                float(alone.mean()),
                float(given + log_det[test].sum()) / held,
                fitted,
            )
        )
    return results


def mouse_tests(
    method: str, x: Tensor, related: Tensor, doses: Tensor, model: LinearMixedModel, epochs: int
) -> list[Found]:
    """Test every marker of the mice."""
    if method == "raw":
        y = x
    elif method == "ranked":
        y = rank_normalised(x)
    else:
        given = rank_normalised(x) if method.startswith("flow of ranks") else x
        kinship = None if method == "flow, independent" else related
        flow, _, prepared = trained(given, kinship, 0, epochs)
        y = noise(flow, prepared, given)
    results = []
    for test, columns in (("together", [0, 1]), ("first", [0]), ("second", [1])):
        tests = model.score_test(y[:, columns], doses)
        bonferroni = 0.05 / doses.shape[1]
        results.append(
            Found(
                method,
                test,
                doses.shape[1],
                int((tests.p_value < GENOME).sum()),
                int((tests.p_value < bonferroni).sum()),
                tests.genomic_control,
                tests.residual_proportion,
                int((tests.adjusted().p_value < bonferroni).sum()),
            )
        )
    return results


def page(study: Study, records: Records) -> list[str]:
    """All tables."""
    lines = [
        *study.heading(
            "Association with markers among relatives",
            f"Flows: {LAYERS} spline coupling layers of widths {HIDDEN[0]}, all observations in "
            f"every one of {study.options.epochs} epochs, Adam at {RATE:g} with a cosine to zero; "
            "by the likelihood of independent people, or of people related by the kinship, whose "
            "variance proportion is set to its maximum likelihood every ten epochs. They are "
            "fitted to the people who are tested.",
        ),
        *_simulated(records.of(Simulated)),
    ]
    held = records.of(HeldOut)
    return [*lines, *_mice_held_out(held), *_mice_found(records.of(Found))] if held else lines


def _simulated(results: list[Simulated]) -> list[str]:
    count = len({r.replicate for r in results})
    people = statistics.mean(r.people for r in results)
    pairs = (
        ("ranked", "raw"),
        ("flow, independent", "ranked"),
        ("flow, related", "ranked"),
        ("flow, related", "flow, independent"),
        ("flow of ranks, related", "ranked"),
        ("latents", "flow of ranks, related"),
    )
    power = {(r.replicate, r.method): r for r in results if r.test == "together"}

    def gap(more: str, less: str, i: int) -> str:
        return spread(
            [
                (power[k, more].found[i] - power[k, less].found[i]) / power[k, more].causal
                for k in sorted({r.replicate for r in results})
            ],
            4,
        )

    return [
        "## Simulated families",
        "",
        f'{count} replicates of {people:,.0f} people on average. "Together": one test of both '
        'phenotypes, two degrees of freedom; "two": one each, the smaller p-value doubled. '
        f"False: proportion of the {results[0].null:,} markers without an effect, all replicates, "
        "+- three standard errors of a binomial proportion at the level. Power: proportion of the "
        f"{results[0].causal} causal ones, +- a standard error over replicates. Genomic control "
        "over all markers; residual: the variance proportion that the tests estimate; 0.5 is true "
        "for the latents. Excess: nats by which the flow is below the true log-density of fresh "
        "unrelated people, those within the range of the tested in both phenotypes.",
        "",
        *table(
            (
                "phenotypes",
                "test",
                *(f"false at {level:g}" for level in LEVELS),
                *(f"power at {level:g}" for level in POWERS),
                "genomic control",
                "residual",
                "excess",
            ),
            (
                (method, test, *_cells(part))
                for test in ("together", "two")
                for method in (*METHODS, "latents")
                if (part := [r for r in results if (r.method, r.test) == (method, test)])
            ),
            left=2,
        ),
        "* outside three standard errors of its level.",
        "",
        "Differences in power within replicates, together:",
        "",
        *table(
            ("", *(f"at {level:g}" for level in POWERS)),
            (
                (f"{more} minus {less}", *(gap(more, less, i) for i in range(len(POWERS))))
                for more, less in pairs
            ),
        ),
    ]


def _cells(part: list[Simulated]) -> list[str]:
    total, cells = sum(r.null for r in part), []
    for i, level in enumerate(LEVELS):
        rate = sum(r.false[i] for r in part) / total
        bound = 3 * math.sqrt(level * (1 - level) / total)
        mark = "" if abs(rate - level) <= bound else " *"
        cells.append(f"{rate:.5f} +- {bound:.5f}{mark}")
    cells += [spread([r.found[i] / r.causal for r in part], 4) for i in range(len(POWERS))]
    cells.append(spread([r.genomic_control for r in part], 3))
    cells.append(f"{statistics.mean(r.residual_proportion for r in part):.3f}")
    excess = [r.excess for r in part if r.excess is not None]
    return [*cells, spread(excess, 3) if excess else ""]


def _mice_held_out(held: list[HeldOut]) -> list[str]:
    rows: list[tuple[object, ...]] = [
        (
            r.model,
            r.fold,
            r.trained,
            r.held,
            f"{r.alone:.4f}",
            f"{r.together:.4f}",
            f"{r.residual_proportion:.3f}",
        )
        for r in held
    ]
    for model in dict.fromkeys(r.model for r in held):
        part = [r for r in held if r.model == model]
        scores = (spread([r.alone for r in part], 4), spread([r.together for r in part], 4))
        proportion = statistics.mean(r.residual_proportion for r in part)
        rows.append((model, "mean", "", "", *scores, f"{proportion:.3f}"))
    by = {(r.fold, r.model): r for r in held}
    folds = sorted({r.fold for r in held})
    for less in ("flow, independent", "normal"):
        more = [(by[f, "flow, related"], by[f, less]) for f in folds]
        scores = (
            spread([a.alone - b.alone for a, b in more], 4),
            spread([a.together - b.together for a, b in more], 4),
        )
        rows.append((f"flow, related minus {less}", "", "", "", *scores, ""))
    return [
        "## Mice",
        "",
        f"{held[0].trained + held[0].held:,} mice with both CD8 and MCH, the two quantitative "
        "phenotypes with the most mice; each is close to normal in the files already. The kinship "
        "is that of all markers.",
        "",
        f"Held out: each of {len(folds)} folds of whole families (first column of the fam file), "
        "in nats per mouse. Alone: by itself. Given: the held-out mice together, given the "
        "training mice, with the kinship of all and the variance proportion of maximum likelihood "
        'for the noise of the training mice, for all models. "Normal" is a normal density of the '
        "training mice.",
        "",
        *table(("model", "fold", "trained", "held out", "alone", "given", "residual"), rows),
    ]


def _mice_found(found: list[Found]) -> list[str]:
    return [
        f"Markers with p below {GENOME:g} and below Bonferroni's 0.05 / {found[0].markers:,}; in "
        "the last column after division by the genomic control. Markers that do not vary among "
        "these mice are left out; neighbours are correlated, so that one locus counts many times. "
        "The kinship includes the tested markers, which makes statistics small. "
        "First and second: CD8 and MCH, or the first and second column of the noise.",
        "",
        *table(
            (
                "phenotypes", "test", "genome-wide", "Bonferroni", "genomic control", "residual",
                "Bonferroni, adjusted",
            ),
            (
                (
                    r.method,
                    r.test,
                    r.genome,
                    r.bonferroni,
                    f"{r.genomic_control:.3f}",
                    f"{r.residual_proportion:.3f}",
                    r.adjusted,
                )
                for r in found
            ),
            left=2,
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> list:
    """Simulate and test."""
    study = Study(
        __file__,
        __doc__,
        small={"replicates": 2, "families": 20, "markers": 300, "epochs": 2},
        packages=("flowkit-density", "torch", "scipy"),
        replicates=20,
        families=200,
        markers=5000,
        epochs=300,
        mice=Path,  # the folder of their files
    )
    options = study.parse(arguments)
    records = Records(options.record, Simulated, HeldOut, Found)
    for number in range(options.replicates):
        if records.lack(replicate=number):
            records.add(*replicate(number, options))
    mice = _mice(options)
    if mice is not None:
        study_mice(mice, records, options.epochs)
    study.write(page(study, records))
    return records.results


def _mice(options: argparse.Namespace) -> Mice | None:
    if options.small and options.mice is None:
        return None
    try:
        return heterogeneous_stock_mice(options.mice)
    except MissingDependencyError as error:
        print(f"without mice: {error}")
        return None


def study_mice(mice: Mice, records: Records, epochs: int) -> None:
    """Everything about mice that is not recorded yet."""
    x = mice.phenotypes[:, list(COLUMNS)]
    whole = x.isfinite().all(1)
    x, related = x[whole], mice.kinship()[whole][:, whole]
    codes = tuple(code for code, has in zip(mice.families, whole.tolist(), strict=True) if has)
    where = folds(codes, FOLDS)
    for fold in range(FOLDS):
        if records.lack(fold=fold):
            records.add(*held_out(fold, where, x, related, epochs))
    doses = mice.genotypes[whole]
    doses = doses[:, doses.std(0) > 1e-6]
    model = LinearMixedModel(related)
    for method in METHODS:
        if records.lack(method=method, markers=doses.shape[1]):
            records.add(*mouse_tests(method, x, related, doses, model, epochs))


if __name__ == "__main__":
    main()
