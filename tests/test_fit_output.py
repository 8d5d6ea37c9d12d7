"""What a fit shows: few lines in logs, a bar in terminals, nothing if asked; a short History."""

import io
import subprocess
import sys
import types
from xml.etree import ElementTree

import pytest
import torch

from flowkit import History, coupling_flow, fit
from flowkit.errors import MissingDependencyError
from flowkit.training import output as outputs
from flowkit.training import setup


def rows(n=200):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def small():
    return coupling_flow(2, layers=1, hidden=(8,))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(monkeypatch, stream):
    system = types.SimpleNamespace(stderr=stream, modules=sys.modules)
    monkeypatch.setattr(outputs, "sys", system)


@pytest.fixture
def log(monkeypatch):
    stream = io.StringIO()
    show(monkeypatch, stream)
    return stream


def lines(stream):
    return stream.getvalue().splitlines()


def test_a_log_gets_ten_lines_and_an_end_and_no_carriage_returns(log):
    # Of one start: no trials before it.
    flow = coupling_flow(2, layers=1, hidden=(8,), start="gaussian")
    history = fit(flow, rows(), epochs=60, patience=None, batch_size=50)
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()
    assert len(lines(log)) == 12
    # The first says what was chosen, and is kept.
    assert lines(log)[0] == (
        "fit: 180 training samples, 20 to validate on every 3 steps, 229 parameters, batches of "
        "50, Adam at 0.002, weights averaged with decay 0.99, at most 180 steps"
    )
    assert lines(log)[0] == f"fit: {history.plan}"
    assert lines(log)[1].startswith("fit: step 18 of 180, loss ")
    best = f"weights of step {history.best_step}, with validation {history.best:.4g}"
    assert lines(log)[-1] == (
        f"fit: stopped after step 180: all 60 epochs are done; {best} "
        f"({history.start:.4g} at the start)"
    )


def test_a_long_epoch_writes_every_half_minute(log, monkeypatch):
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(outputs, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    fit(small(), rows(4000), epochs=1, batch_size=50, validation=None)
    inside = [line for line in lines(log) if line.startswith("fit: step ")]
    # 80 steps with a look at the clock in each, 4 s apart.
    assert 80 * 4 / 50 < len(inside) < 80 * 4 / 30


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 5}, "stopped after step 5: all 5 steps are done; weights of step "),
        (
            {"epochs": 2, "validation": None, "ema": None},
            "stopped after step 8: all 2 epochs are done; weights of the last step, with loss ",
        ),
        ({"epochs": 1, "validation": None}, "weights of the last step, averaged, with loss "),
        (
            {"epochs": 9, "callbacks": [lambda f, h: True]},
            "stopped after step 3: a callback returned true; weights of step ",
        ),
        (
            {"epochs": 50, "patience": 2, "lr": 10.0, "clip": 1e-3, "scheduler": None},
            ": no better validation loss for 2 validations; weights of step ",
        ),
        (
            {"epochs": 99, "patience": 2, "lr": 10.0, "clip": 1e-3},
            "step 106: validation stopped improving, and the rate fell to zero from step 6 on; ",
        ),
    ],
)
def test_the_last_line_says_why_it_stopped_and_what_is_kept(log, options, expected):
    fit(small(), rows(), batch_size=50, **options)
    assert expected in lines(log)[-1]


def test_a_fit_that_goes_on_says_so(log, tmp_path):
    options = {"checkpoint": tmp_path / "c", "batch_size": 50}
    fit(small(), rows(), epochs=1, **options)
    fit(small(), rows(), epochs=2, **options)
    assert any("goes on from" in line and "after step 3" in line for line in lines(log))


def test_compiling_is_announced_before_it_begins(log, monkeypatch):

    monkeypatch.setattr(setup, "can_compile", lambda device: True)

    def compiling(step):
        assert "compiles the training step" in lines(log)[-1]
        return step

    monkeypatch.setattr(torch, "compile", compiling)
    fit(small(), rows(), epochs=1, compile=True)
    assert "compiles the training step, which takes about " in log.getvalue()


def test_without_progress_nothing_is_written(log, capfd):
    fit(small(), rows(), epochs=2, progress=False)
    assert log.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_the_end(monkeypatch):
    stream = Terminal()
    show(monkeypatch, stream)
    fit(small(), rows(), epochs=2, batch_size=50)
    assert "6/6" in stream.getvalue()
    assert lines(stream)[-1].startswith("fit: stopped after step 6: all 2 epochs are done")


def test_a_process_without_standard_error_trains(monkeypatch):
    show(monkeypatch, None)
    assert fit(small(), rows(), epochs=1).stopped == "epochs"


def test_a_notebook_without_widgets_gets_lines_and_no_warning(log, monkeypatch):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    find = outputs.importlib.util.find_spec
    monkeypatch.setattr(
        outputs.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "ipywidgets" else find(name, *rest),
    )
    fit(small(), rows(), epochs=2, batch_size=50)
    assert "\r" not in log.getvalue()
    assert lines(log)[-1].startswith("fit: stopped")


def test_a_piped_process_writes_no_bars():
    code = (
        "import torch; from flowkit import coupling_flow, fit; "
        "fit(coupling_flow(2, layers=1, hidden=(8,)), torch.randn(300, 2), epochs=12)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "\r" not in done.stderr
    assert 2 <= len(done.stderr.splitlines()) <= 12


class TestHistory:
    def history(self, epochs, best=None):
        values = [1 / (i + 1) for i in range(epochs)]
        return History(
            epochs=[float(i) for i in range(1, epochs + 1)],
            steps=[4 * i for i in range(1, epochs + 1)],
            train=values,
            validation=[abs(i - best + 1) + 0.013 for i in range(epochs)] if best else [],
            learning_rate=values,
            seconds=values,
            best_step=best and 4 * best,
            stopped="patience" if best else "epochs",
        )

    def test_it_prints_as_a_short_table(self):
        text = repr(self.history(500, best=77))
        assert len(text.splitlines()) <= 13
        assert "[" not in text
        assert "2000 steps (500 epochs)" in text
        assert "best validation 0.013 at step 308; stopped by patience" in text
        numbers = [line.split()[0] for line in text.splitlines()[2:]]
        last = ["1988", "1992", "1996", "2000"]
        assert numbers == ["4", "8", "12", "16", "...", "308", "...", *last]

    def test_it_says_where_it_annealed_and_when_the_start_was_best(self):
        history = self.history(9, best=3)
        history.annealed, history.start, history.best_step = 24, 0.001, 0
        headline, *_ = repr(history).splitlines()
        assert "best validation 0.001 at step 0; annealed from step 24; stopped" in headline
        assert history.best == 0.001

    def test_columns_that_are_empty_are_left_out(self):
        text = str(self.history(3))
        assert "validation" not in text
        assert [line.split()[0] for line in text.splitlines()[2:]] == ["4", "8", "12"]
        assert repr(History()) == "History: 0 steps"

    def test_it_prints_for_every_fit(self):
        history = fit(small(), rows(), epochs=2, progress=False)
        assert repr(history).startswith("History: 4 steps (2 epochs), ")
        assert len(repr(history).splitlines()) == 4

    def test_as_a_frame_it_has_one_row_per_record(self):
        history = self.history(20, best=7)
        history.terms = {"nll": [2.0 * v for v in history.train]}
        frame = history.to_frame()
        assert frame.index.tolist() == history.steps
        assert frame["nll"].tolist() == history.terms["nll"]
        assert frame["validation"].idxmin() == 28
        assert set(frame) == {"epoch", "train", "validation", "learning rate", "nll", "seconds"}
        assert self.history(3).to_frame().shape == (3, 4)
        assert len(History().to_frame()) == 0

    def test_without_pandas_the_frame_says_what_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingDependencyError, match="remedy: pip install pandas"):
            self.history(2).to_frame()

    def test_in_a_notebook_it_is_the_same_table(self):
        history = self.history(500, best=77)
        page = ElementTree.fromstring(f"<div>{history._repr_html_()}</div>")
        cells = [row[0].text for row in page.iter("tr")]
        assert cells == [line.split()[0] for line in repr(history).splitlines()[1:]]
