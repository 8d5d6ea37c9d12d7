"""Figures show the numbers that they were given, and refuse what they cannot show."""

import math
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

matplotlib.use("Agg")

from flowkit import coupling_flow, fit  # noqa: E402
from flowkit.datasets import wine  # noqa: E402
from flowkit.errors import ArgumentError, DataError  # noqa: E402
from flowkit.plotting import (  # noqa: E402
    corner,
    density_2d,
    mean_excess_plot,
    pareto_plot,
    plot_history,
    pointillist,
    qq_plot,
)
from flowkit.plotting.corners import _levels  # noqa: E402
from flowkit.toys import GaussianMixture, TwoMoons  # noqa: E402


def normals(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(**changes):
    values = {"steps": [25, 50, 75], "train": [3.0, 2.0, 1.0], "validation": [3.5, 2.5, 2.7]}
    return SimpleNamespace(**{**values, "best_step": 50, **changes})


@pytest.fixture
def photo():
    return np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


@pytest.fixture
def pixels():
    # One point in the middle of each corner pixel.
    return torch.tensor(
        [
            [255.5, -0.5, -0.5, 0, 0],
            [-0.5, 255.5, -0.5, 7, 0],
            [-0.5, -0.5, 255.5, 0, 5],
            [9, 9, 9, 7, 5],
        ]
    )


def saved(figure, path):
    assert isinstance(figure, Figure)
    figure.savefig(path / "figure.png", dpi=50)
    return (path / "figure.png").stat().st_size


def test_every_figure_can_be_saved(tmp_path, photo, pixels):
    toy = TwoMoons()
    figures = [
        density_2d(toy.log_prob, toy.limits, samples=toy.sample(200), resolution=30),
        corner(normals(600, 3), normals(100, 3)),
        plot_history(run()),
        pointillist(photo, pixels),
        pareto_plot({"a": normals(50, 1)[:, 0]}, tail="left"),
        mean_excess_plot({"a": normals(50, 1)[:, 0]}),
        qq_plot(normals(50, 1)[:, 0], {"a": normals(40, 1)[:, 0]}),
    ]
    assert all(saved(figure, tmp_path) > 1000 for figure in figures)


def test_no_figure_is_left_in_pyplot(photo, pixels):
    import matplotlib.pyplot as plt

    settings = dict(matplotlib.rcParams)
    corner(normals(50, 2))
    plot_history(run())
    pointillist(photo, pixels)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def test_density_picture_holds_the_density_with_y_upwards():
    def log_prob(x):  # a ridge along x at y = 1, higher to the right
        return x[:, 0] - 10 * (x[:, 1] - 1) ** 2

    figure = density_2d(log_prob, ((0, 1), (-1, 2)), resolution=31)
    picture = figure.axes[0].images[0]
    values = np.asarray(picture.get_array())
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert picture.origin == "lower"
    assert (column, -1 + row * 3 / 30) == (30, 1.0)
    assert values.max() == pytest.approx(math.e, rel=1e-6)


def test_density_picture_integrates_to_one():
    toy = GaussianMixture.ring()
    figure = density_2d(toy.log_prob, ((-7, 7), (-7, 7)), resolution=141, dtype=torch.float64)
    values = np.asarray(figure.axes[0].images[0].get_array())
    assert values.sum() * 0.1**2 == pytest.approx(1.0, abs=1e-4)


def test_density_counts_samples_outside_and_keeps_no_graph():
    seen = []

    def log_prob(x):
        seen.append((x.dtype, torch.is_grad_enabled()))
        return -x.square().sum(-1)

    samples = [[0.0, 0.0], [5.0, 0.0], [0.0, -5.0]]
    figure = density_2d(log_prob, ((-1, 1), (-1, 1)), samples=samples, dtype=torch.float64)
    assert figure.axes[1].get_title() == "3 samples, 2 outside"
    assert set(seen) == {(torch.float64, False)}


def test_density_refuses_what_it_cannot_draw():
    square = ((-1.0, 1.0), (-1.0, 1.0))
    with pytest.raises(ArgumentError, match="smaller limit first"):
        density_2d(lambda x: x[:, 0], ((1.0, -1.0), (-1.0, 1.0)))
    with pytest.raises(DataError, match=r"a torch\.Tensor, got ndarray; remedy: lambda x: torch"):
        density_2d(lambda x: x.sum(-1).numpy(), ((-1, 1), (-1, 1)))
    with pytest.raises(DataError, match="sum over the event dimension"):
        density_2d(lambda x: x, square)
    with pytest.raises(DataError, match="got NaN at 400 of 400 grid points"):
        density_2d(lambda x: x[:, 0] * math.nan, square, resolution=20)
    with pytest.raises(DataError, match=r"samples expected points \(n, 2\)"):
        density_2d(lambda x: x[:, 0], square, samples=torch.zeros(4, 3))
    with pytest.raises(DataError, match="NaN or infinity in 1 of 2 points"):
        density_2d(lambda x: x[:, 0], square, samples=[[0.0, math.inf], [0.0, 0.0]])


def test_corner_contours_hold_the_shares_of_a_gaussian():
    # Of a round normal, share q lies within the height exp(log(1 - q)) of the top, so the heights
    # of the 90 % and 50 % contours are a tenth and a half of it. Smoothing with one fixed kernel
    # keeps it normal, and with it the ratio of the two.
    edges = np.linspace(-5, 5, 51)
    density, levels = _levels(normals(400_000, 2).numpy(), edges, edges)
    assert levels[0] / density.max() == pytest.approx(0.1, abs=0.02)
    assert levels[1] / density.max() == pytest.approx(0.5, abs=0.03)


def test_corner_rows_are_y_and_columns_are_x():
    table = normals(2000, 2) * torch.tensor([1.0, 100.0])
    figure = corner(table, names=("small", "large"))
    lower_left = figure.axes[2]
    assert (lower_left.get_xlabel(), lower_left.get_ylabel()) == ("small", "large")
    assert lower_left.get_ylim()[1] > 100 > lower_left.get_xlim()[1]


def test_corner_draws_few_rows_as_points_and_many_as_contours():
    few = corner(normals(30, 2)).axes[2].collections[0]
    assert len(few.get_offsets()) == 30
    many = corner(normals(3000, 2), normals(3000, 2, seed=1)).axes[2].collections
    # Two levels of each table; before matplotlib 3.8 every level is a collection of its own.
    assert sum(len(c.get_paths()) for c in many) == 4
    assert all(len(c.get_offsets()) <= 1 for c in many)


def test_corner_accepts_tensors_arrays_and_lists():
    splits = wine()
    for table in (splits.train[:, :2], splits.train[:, :2].numpy(), splits.train[:, :2].tolist()):
        assert len(corner(table).axes) == 4
    frame = pd.DataFrame(normals(30, 2).numpy(), columns=["age", "income"])
    assert corner(frame).axes[-1].get_xlabel() == "income"


def test_corner_refuses_what_it_cannot_draw():
    with pytest.raises(DataError, match="got 1 columns"):
        corner(normals(20, 1))
    with pytest.raises(DataError, match="1 names"):
        corner(normals(20, 2), names=("a",))
    with pytest.raises(DataError, match=r"corner samples expected points \(n, 2\)"):
        corner(normals(20, 2), normals(20, 3))
    with pytest.raises(DataError, match="nearly constant b"):
        corner(normals(20, 2) * torch.tensor([1.0, 0.0]), names=("a", "b"))


def test_history_draws_both_curves_and_marks_the_restored_step():
    axis = plot_history(run(), label="nats").axes[0]
    train, validation = axis.lines[0], axis.lines[1]
    assert list(train.get_ydata()) == [3.0, 2.0, 1.0]
    assert list(validation.get_ydata()) == [3.5, 2.5, 2.7]
    assert axis.get_ylabel() == "nats"
    assert "restored: step 50, 2.5" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_history_without_validation_marks_the_training_loss():
    axis = plot_history(run(validation=[], best_step=75)).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["training", "restored: step 75, 1"]
    # The start was validated before the first step that is drawn.
    axis = plot_history(run(best_step=0)).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["training", "validation"]


def test_a_history_may_be_a_dict_or_what_fit_returned():
    values = vars(run())
    lines = [plot_history(h).axes[0].lines[1].get_ydata().tolist() for h in (run(), values)]
    assert lines == [[3.5, 2.5, 2.7]] * 2
    fitted = fit(coupling_flow(2, layers=1, hidden=(4,)), normals(40, 2).float(), epochs=2)
    assert plot_history(fitted).axes[0].lines[0].get_ydata().tolist() == list(fitted.train)
    for other in (None, 3, "history", {}):
        with pytest.raises(DataError, match="expected what fit returned"):
            plot_history(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [1.0]}, "3 steps, 1 training"),
        ({"validation": [1.0]}, "1 validation"),
        ({"steps": [], "train": [], "validation": []}, "0 steps"),
        ({"best_step": 9}, r"steps 25\.\.75, got 9"),
    ],
)
def test_history_refuses_lists_that_do_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        plot_history(run(**changes))


def test_pointillist_puts_colours_where_they_belong(photo, pixels):
    left, right = pointillist(photo, pixels).axes
    assert np.array_equal(np.asarray(left.images[0].get_array()), photo)
    dots = right.collections[-1]
    assert dots.get_offsets().tolist() == pixels[:, 3:].tolist()
    assert dots.get_facecolors()[0, :3] == pytest.approx([1, 0, 0])
    assert right.get_ylim() == (5.5, -0.5)  # y grows downwards, as in the photograph
    assert right.get_xlim() == (-0.5, 7.5)


def test_pointillist_counts_points_outside_the_frame(photo, pixels):
    pixels[0, 3] = -2.0
    _, right = pointillist(photo, pixels).axes
    assert right.get_title() == "samples: 4 points, 25.0% outside"
    assert len(right.collections[-1].get_offsets()) == 3


def test_pointillist_refuses_what_it_cannot_draw(photo, pixels):
    with pytest.raises(DataError, match=r"\(height, width, 3\), got \(6, 8\)"):
        pointillist(photo[..., 0], pixels)
    with pytest.raises(DataError, match=r"points expected points \(n, 5\)"):
        pointillist(photo, pixels[:, :4])


def test_tails_are_drawn_as_they_are():
    x = np.array([-4.0, -1.0, 1.0, 2.0, 3.0, 8.0])
    axis = pareto_plot({"x": x}, tail="right", unit="m").axes[0]
    t, share = axis.lines[0].get_data()
    assert t.tolist() == [3, 8]
    assert share.tolist() == [2 / 6, 1 / 6]
    assert axis.get_xlabel() == "t [m]"
    t, share = pareto_plot({"x": x}).axes[0].lines[0].get_data()
    assert dict(zip(t, share, strict=True))[4] == pytest.approx(2 / 6)

    # The mean excess of integers 1 to n over i is (n - i) / 2.
    n = 101
    t, excess = mean_excess_plot({"x": np.arange(1.0, n + 1)}).axes[0].lines[0].get_data()
    assert excess == pytest.approx((n - t) / 2)
    assert t.max() == n - 10

    lines = qq_plot(x, {"same": x, "twice": 2 * x}, unit="m").axes[0].lines
    for line, factor in zip(lines, (1, 2), strict=False):
        a, b = line.get_data()
        assert b == pytest.approx(factor * a)
        assert a.min() == pytest.approx(np.quantile(x, 1 / 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto_plot([1.0, 2.0]), "names and samples, one to 6 of them, got \\[1.0"),
        (lambda: pareto_plot({}), "one to 6"),
        (lambda: pareto_plot({"x": np.ones((3, 2))}), "numbers, got 2 dimensions"),
        (lambda: pareto_plot({"x": [1.0, math.nan]}), "finite numbers"),
        (lambda: pareto_plot({"x": [1.0]}, tail="up"), "one of 'both', 'left', 'right', got 'up'"),
        (lambda: pareto_plot({"x": [1.0]}, tail="left"), "at least 1 number.* left side"),
        (lambda: mean_excess_plot({"x": range(9)}), "at least 21 number"),
        (lambda: qq_plot([], {"x": [1.0]}), "points"),
        (lambda: qq_plot([1.0], {str(i): [1.0] for i in range(6)}), "one to 5 of them"),
    ],
)
def test_tails_that_cannot_be_drawn_are_named(call, message):
    with pytest.raises((ArgumentError, DataError), match=message):
        call()
