"""A plotting call as the last line of a notebook's cell shows its picture, exactly once."""

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient

from flowkit import plotting
from flowkit.toys import TwoMoons
from flowkit.training.history import History

SETUP = """
import numpy as np
from flowkit.plotting import pareto_plot
x = np.random.default_rng(0).normal(size=100)
def draw():
    return pareto_plot({"x": x})
"""
CELLS = {
    "last line": "draw()",
    "not last": "draw()\n1",
    "kept": "figure = draw()",
    "shown by hand": "figure = draw()\ndisplay(figure)\n1",
    "many": "figures = [draw() for _ in range(25)]\nfigures[-1]",
    "last line, pyplot imported": "import matplotlib.pyplot as plt\ndraw()",
    "beside a figure of pyplot": "_ = plt.figure(figsize=(1, 1))\nplt.plot([1, 2])\ndraw()",
    "open figures": "plt.get_fignums()",
    "last line, inline": "%matplotlib inline\ndraw()",
    "vector graphics": "%config InlineBackend.figure_formats = ['svg']\ndraw()",
}


@pytest.fixture(scope="module")
def outputs():
    """Outputs of all cells, run one after the other in one fresh kernel."""
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    # Jupyter chooses the backend of pyplot itself, unless the environment names one.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(notebook, kernel_name="python3", timeout=300)
    client.execute(env=environment)
    return dict(zip(CELLS, (cell.outputs for cell in notebook.cells[1:]), strict=True))


def pictures(outputs):
    return [out for out in outputs if {"image/png", "image/svg+xml"} & set(out.get("data", {}))]


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("last line", 1),
        ("not last", 0),
        ("kept", 0),
        ("shown by hand", 1),
        ("many", 1),
        ("last line, pyplot imported", 1),
        ("beside a figure of pyplot", 2),
        ("last line, inline", 1),
        ("vector graphics", 1),
    ],
)
def test_a_cell_shows_its_figure_once(outputs, cell, count):
    shown = outputs[cell]
    assert len(pictures(shown)) == count
    # No warning of many open figures, nor anything else in red.
    assert not [out for out in shown if out.output_type in ("stream", "error")]


def test_pyplot_keeps_no_figure_of_ours(outputs):
    assert outputs["open figures"][0]["data"]["text/plain"] == "[]"


def test_every_function_returns_a_figure_that_shows_itself():
    x, toy = torch.randn(60, 2), TwoMoons()
    history = History()
    history.steps, history.train, history.validation = [1, 2], [2.0, 1.0], [2.0, 1.5]
    calls = {
        "corner": lambda f: f(x),
        "density_2d": lambda f: f(toy.log_prob, toy.limits, resolution=10),
        "plot_history": lambda f: f(history),
        "pointillist": lambda f: f(np.zeros((4, 4, 3)), torch.ones(3, 5)),
        "pareto_plot": lambda f: f({"x": x[:, 0]}),
        "mean_excess_plot": lambda f: f({"x": x[:, 0]}),
        "qq_plot": lambda f: f(x[:, 0], {"x": x[:, 1]}),
    }
    assert set(calls) == set(plotting.__all__)
    for name, call in calls.items():
        figure = call(getattr(plotting, name))
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG"), name


def test_tutorials_that_draw_show_their_own_figures_too():
    # jupytext keeps magics as comments, and matplotlib's own figures need this one.
    for source in sorted((Path(__file__).parent.parent / "examples").glob("*.py")):
        text = source.read_text()
        if "matplotlib.figure import Figure" in text:
            assert "# %matplotlib inline" in text, source.name
