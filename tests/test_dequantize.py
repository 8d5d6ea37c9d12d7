"""Rounded values: one convention in every entry, the cell [v - w/2, v + w/2) around a value."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import flowkit
from flowkit.cli import main
from flowkit.data import dequantize
from flowkit.datasets import digits, photograph_colors
from flowkit.datasets.lattice import Lattice
from flowkit.errors import ArgumentError, DataError
from flowkit.estimators import FlowDensity
from flowkit.estimators.rounded import DequantizedLikelihood, cell_log_prob
from flowkit.stochastic import Dequantize

N = 40_000
# Standard error of the mean of N uniform numbers of unit width.
ERROR = math.sqrt(1 / 12 / N)
THREES = torch.full((N, 1), 3)


def by_the_estimator(values):
    torch.manual_seed(1)
    return DequantizedLikelihood(torch.ones(1)).start({"x": values.float()})["x"]


ENTRIES = {
    "datasets.dequantize": lambda v: dequantize(v, seed=1),
    "Dequantize layer": lambda v: Dequantize(1)(v, generator=torch.Generator().manual_seed(1))[0],
    "FlowDensity": by_the_estimator,
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
def test_the_mean_of_a_rounded_value_is_the_value(entry):
    noisy = entry(THREES)
    assert abs(noisy.double().mean() - 3) < 4 * ERROR
    assert abs(noisy.double().var() - 1 / 12) < 4 * math.sqrt(1 / 180 / N)
    assert bool(((noisy - 3).abs() <= 0.5).all())
    # A cell is filled: its ends are approached within 20 in N.
    assert noisy.min() < 2.5 + 20 / N
    assert noisy.max() > 3.5 - 20 / N


def test_tables_and_photographs_keep_their_means():
    counts = digits().train
    noisy = digits().dequantized().train
    assert torch.equal(noisy.round() + 0.0, counts)
    error = math.sqrt(1 / 12 / len(counts))
    assert bool(((noisy - counts).mean(0).abs() < 5 * error).all())
    photo = photograph_colors()
    shift = photo.dequantized(dtype=torch.float64).mean(0) - photo.points.double().mean(0)
    assert bool((shift.abs() < 5 * math.sqrt(1 / 12 / len(photo.points))).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-2049, -1, 0, 1, 255, 4095, 2**23 - 1, 2**24])
def test_noise_never_leaves_the_cell_in_any_precision(value, dtype):
    here = torch.full((5000, 1), float(value)).to(dtype)
    if not torch.isfinite(here).all():
        pytest.skip(f"{value} is beyond {dtype}")
    made = [Dequantize(1)(here)[0]]
    if abs(value) * torch.finfo(dtype).eps < 1:
        made.append(dequantize(here, dtype=dtype))
    else:
        with pytest.raises(DataError, match="digits for noise.*remedy: dtype=torch.float64"):
            dequantize(here, dtype=dtype)
    for noisy in made:
        assert noisy.dtype == dtype
        assert torch.equal(noisy.round() + 0.0, here)
        assert torch.equal(Dequantize(1).inverse(noisy)[0], here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [0.1, 0.25, 3.0])
def test_values_of_any_width_fill_their_cells(width, dtype):
    counts = torch.arange(-40, 40).repeat(500)
    values = (counts.double() * width).to(dtype)
    noisy = dequantize(values, width=width, seed=2, dtype=dtype).double()
    assert torch.equal((noisy / width).round().long(), counts)
    offset = noisy / width - counts
    error = math.sqrt(1 / 12 / len(counts))
    assert abs(offset.mean()) < 4 * error
    assert abs(offset.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / len(counts))


def test_values_that_were_rounded_down_stand_for_what_is_above_them():
    exact = 50 * torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = dequantize(exact.floor(), rounding="down", seed=1, dtype=torch.float64)
    assert torch.equal(noisy.floor(), exact.floor())
    # Both are uniform on [0, 50): the mean is not half a unit too low.
    assert abs(noisy.mean() - 25) < 4 * 50 * ERROR
    assert stats.kstest(noisy.numpy() - exact.floor().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_widths_are_positive_numbers(width):
    with pytest.raises(ArgumentError, match="dequantize expected width as a finite number > 0"):
        dequantize(torch.tensor([1]), width=width)
    with pytest.raises(DataError, match="multiples of the width 0.3, got entries between"):
        dequantize(torch.tensor([0.3, 0.4]), width=0.3)


# ---- the lattice ----


@pytest.mark.parametrize("width", ["0.1", "0.2", "0.25", "0.05", "0.01", "0.001", "1", "2", "100"])
def test_values_come_back_to_the_last_decimal(width):
    k = np.arange(-2000, 2000)
    digits_ = len(width.partition(".")[2])
    exact = np.array([float(f"{int(i) * float(width):.{digits_}f}") for i in k])[:, None]
    noise = (np.random.default_rng(0).random(exact.shape) - 0.5) * float(width) * 0.999
    lattice = Lattice.of(exact[7:], [float(width)])
    assert (lattice.round(exact + noise) == exact).all()
    lattice.check(exact, "x", ["a"])
    assert not np.signbit(lattice.round(np.array([[-0.01 * float(width)]]))).any()


@pytest.mark.parametrize(
    ("values", "width"),
    [([0.05, 0.15, 17.25], 0.1), ([5.0, 7.0, -3.0], 2.0), ([1 / 3, 2 / 3, 5.0], 1 / 3)],
)
def test_a_lattice_may_be_shifted_and_need_not_be_decimal(values, width):
    x = np.array(values)[:, None]
    lattice = Lattice.of(x, [width])
    lattice.check(x, "x", ["a"])
    assert (lattice.round(x + 0.4 * width) == x).all()


def test_columns_without_a_width_are_left_alone():
    x = np.random.default_rng(0).normal(size=(10, 2))
    x[:, 1] = x[:, 1].round()
    lattice = Lattice.of(x, [0.0, 1.0])
    assert (lattice.round(x + 0.3)[:, 0] == x[:, 0] + 0.3).all()
    assert (lattice.round(x + 0.3)[:, 1] == x[:, 1]).all()


def test_values_between_those_of_the_lattice_are_refused():
    lattice = Lattice.of(np.array([[0.1, 1.0]]), [0.1, 0.0])
    lattice.check(np.array([[np.float32(123.4), 0.123]]), "x", ["a", "b"])
    with pytest.raises(DataError, match="x expected values rounded to multiples of 0.1 in column"):
        lattice.check(np.array([[0.2, 0.0], [0.25, 0.0]]), "x", ["a", "b"])


# ---- scores ----


def test_the_score_of_a_row_is_the_probability_of_its_cell():
    flow = flowkit.elementwise_flow(2, scalar="affine").double()
    x = torch.tensor([[-1.0, 0.3], [0.0, 0.0], [2.0, -1.7]], dtype=torch.float64)
    with torch.no_grad():
        standard = flow.log_prob(x)
    normal = stats.norm.logpdf(x.numpy()).sum(1)
    assert np.allclose(standard, normal, atol=1e-12)
    one = cell_log_prob(flow, x, np.array([1.0, 0.0])).numpy()
    both = cell_log_prob(flow, x, np.array([1.0, 0.1])).numpy()
    x = x.numpy()
    mass = np.log(stats.norm.cdf(x[:, 0] + 0.5) - stats.norm.cdf(x[:, 0] - 0.5))
    # The composite midpoint rule with 32 points: error below 1 / (24 32^2) of a unit curvature.
    assert np.abs(one - mass - stats.norm.logpdf(x[:, 1])).max() < 2e-4
    other = stats.norm.cdf(x[:, 1] + 0.05) - stats.norm.cdf(x[:, 1] - 0.05)
    assert np.abs(both - mass - np.log(other / 0.1)).max() < 5e-3


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).binomial(6, 0.5, size=(2000, 1)).astype(float)


@pytest.fixture(scope="module")
def fitted(counts):
    options = {"epochs": 20, "lr": 1e-2, "random_state": 0}
    return FlowDensity("elementwise_flow", dequantize=1, **options).fit(counts)


def test_probabilities_of_counts_sum_to_one_and_match_the_frequencies(fitted):
    probability = np.exp(fitted.score_samples(np.arange(-3.0, 10)[:, None]))
    assert abs(probability.sum() - 1) < 1e-3
    exact = stats.binom.pmf(np.arange(-3, 10), 6, 0.5)
    # Four standard errors of the largest frequency, and 0.01 for 20 epochs.
    assert np.abs(probability - exact).max() < 4 * math.sqrt(0.31 * 0.69 / 2000) + 0.01


def test_samples_of_an_estimator_are_values_of_the_data_with_their_mean(fitted, counts):
    drawn = fitted.sample(20_000, random_state=1)
    assert set(np.unique(drawn)) <= set(range(-3, 10))
    # Half a unit between the conventions would be 14 times this.
    error = math.sqrt(1.5 / 20_000 + 1.5 / 2000)
    assert abs(drawn.mean() - counts.mean()) < 4 * error / 2 + 0.02


def test_samples_of_decimals_are_decimals():
    x = np.round(np.random.default_rng(0).normal(20, 1, size=(500, 1)), 1)
    model = FlowDensity("elementwise_flow", dequantize=0.1, epochs=2, random_state=0).fit(x)
    drawn = model.sample(500, random_state=0)[:, 0]
    assert all(value == float(f"{value:.1f}") for value in drawn.tolist())
    assert np.isin(drawn, x).mean() > 0.9


def test_values_that_are_not_rounded_as_stated_are_refused(fitted, counts):
    with pytest.raises(DataError, match="score_samples expected values rounded to multiples of 1"):
        fitted.score_samples([[0.5]])
    with pytest.raises(DataError, match="with dequantize expected values rounded to .* of 2"):
        FlowDensity(dequantize=2.0).fit(counts)


def test_the_command_line_scores_and_samples_as_the_estimator(counts, tmp_path, capsys):
    np.save(tmp_path / "t.npy", counts)
    table, model = str(tmp_path / "t.npy"), str(tmp_path / "m.st")
    words = ["--recipe", "elementwise_flow", "--epochs", "10", "--lr", "0.01", "--quiet"]
    assert main(["fit", table, "-o", model, "--dequantize", *words]) == 0
    scores, new = tmp_path / "s.npy", tmp_path / "new.npy"
    every = tmp_path / "all.npy"
    np.save(every, np.arange(-3.0, 10)[:, None])
    assert main(["score", model, str(every), "-o", str(scores)]) == 0
    assert abs(np.exp(np.load(scores)).sum() - 1) < 1e-3
    flow = flowkit.load(model).double()
    x = torch.arange(-3.0, 10, dtype=torch.float64).unsqueeze(-1)
    own = cell_log_prob(flow, x, np.ones(1)).numpy()
    assert np.abs(np.load(scores)[:, 0] - own).max() < 1e-6
    assert main(["sample", model, "-n", "20000", "-o", str(new)]) == 0
    drawn = np.load(new)
    assert (drawn == drawn.round()).all()
    assert abs(drawn.mean() - counts.mean()) < 4 * math.sqrt(1.5 / 20_000) + 0.06
    capsys.readouterr()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.tensor([1 + 1j]), {}, "real numbers, got torch.complex64"),
        ([1, 2], {}, "a tensor of real numbers, got list"),
        (torch.tensor([1]), {"dtype": torch.int64}, "a floating dtype, got torch.int64"),
    ],
)
def test_dequantize_refuses_what_holds_no_real_numbers(values, options, message):
    with pytest.raises((ArgumentError, DataError), match=message):
        dequantize(values, **options)
