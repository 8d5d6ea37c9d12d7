"""Checkpoints: damage and other data are noticed, finished fits go on, failures are in words."""

import copy
import errno
import io
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from flowkit import (
    DenoisingScoreMatching,
    MaximumLikelihood,
    ReverseKL,
    WeightedSum,
    coupling_flow,
    fit,
)
from flowkit.errors import CheckpointError
from flowkit.toys import DoubleWell
from flowkit.training import checkpoint as checkpoints
from flowkit.training.checkpoint import read_checkpoint, write_checkpoint

QUIET = {"progress": False, "batch_size": 50}
RNG = np.random.default_rng(0)


def rows(n=200, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return coupling_flow(2, layers=1, hidden=(8,), start="standardize")


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    fit(small(), rows(), epochs=1, checkpoint=path, **QUIET)
    return path


class TestDamage:
    def test_every_flipped_bit_is_noticed(self, written, tmp_path):
        whole, path = written.read_bytes(), tmp_path / "c"
        rng = np.random.default_rng(1)
        places = rng.choice(8 * len(whole), size=360, replace=False).tolist()
        # The head and the digest too.
        for place in [*range(0, 8 * 60, 12), *places]:
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(path, {})

    def test_every_cut_is_noticed(self, written, tmp_path):
        whole, path = written.read_bytes(), tmp_path / "c"
        for size in (0, 1, 20, 21, 40, 53, 54, 1000, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match="not a flowkit checkpoint, or is damaged"):
                read_checkpoint(path, {})
        path.write_bytes(whole + b"\0")
        with pytest.raises(CheckpointError, match="digest"):
            read_checkpoint(path, {})

    @pytest.mark.parametrize(
        "change",
        [
            {"done": -1},
            {"done": True},
            {"total": -1},
            {"total": "3"},
            {"waited": "3"},
            {"weights": [1]},
            {"weights": {"weight": 1.0}},
            {"weights": {}},
            {"step": None},
            {"step": {}},
            {"settings": 3},
            {"settings": {}},
            {"optimizer": {"state": {}, "param_groups": []}},
            {"optimizer": []},
            {"history": {"x": 1}},
            {"scheduler": {}},
            {"scheduler": 3},
        ],
        ids=str,
    )
    def test_edited_content_is_one_error_and_leaves_the_flow_alone(
        self, written, tmp_path, change
    ):
        path, flow = tmp_path / "c", small()
        before = copy.deepcopy(flow.state_dict())
        content = torch.load(io.BytesIO(written.read_bytes()[53:]), weights_only=True)
        write_checkpoint(path, {**content, **change})
        with pytest.raises(CheckpointError):
            fit(flow, rows(), epochs=1, checkpoint=path, **QUIET)
        assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("epochs", "abc"),
            ("epochs", [1, 2]),
            ("train", ["a"]),
            ("validation", [[1.0]]),
            ("terms", {"nll": [1.0, 2.0]}),
            ("terms", []),
            ("steps", [7]),
            ("best_step", 9),
            ("annealed", 9),
            ("start", "2"),
            ("plan", None),
            ("stopped", None),
        ],
    )
    def test_a_record_that_is_none_is_refused(self, written, tmp_path, name, value):
        content = read_checkpoint(written, {})
        content["history"][name] = value
        write_checkpoint(tmp_path / "c", content)
        with pytest.raises(CheckpointError, match="no valid history"):
            read_checkpoint(tmp_path / "c", {})

    def test_nothing_in_a_file_is_executed(self, tmp_path):
        class Bad:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        write_checkpoint(tmp_path / "c", {"settings": Bad()})
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(tmp_path / "c", {})
        assert not (tmp_path / "ran").exists()


class TestOtherData:
    @pytest.mark.parametrize("kind", ["tensor", "file"])
    def test_one_changed_number_anywhere_is_noticed(self, kind, tmp_path, monkeypatch):
        # Blocks of 300 rows, so that there are several.
        monkeypatch.setattr("flowkit.data.batches._NUMBERS_HASHED", 600)
        x, path = rows(3000).numpy().astype(np.float64), tmp_path / "c"

        def data(values):
            if kind == "tensor":
                return torch.from_numpy(values).float()
            np.save(tmp_path / "x.npy", values)
            return tmp_path / "x.npy"

        options = {"epochs": 1, "checkpoint": path, "batch_size": 1000, "progress": False}
        fit(small(), data(x), **options)
        fit(small(), data(x), **options)
        for row in RNG.choice(3000, 8, replace=False):
            changed = x.copy()
            changed[row, 1] = np.nextafter(np.float32(changed[row, 1]), np.float32(9))
            with pytest.raises(CheckpointError, match="other data"):
                fit(small(), data(changed), **options)

    def test_a_file_and_an_array_of_the_same_numbers_are_the_same_data(self, tmp_path):
        x, path = rows(), tmp_path / "c"
        np.save(tmp_path / "x.npy", x.numpy())
        history = fit(small(), x, epochs=1, checkpoint=path, **QUIET)
        assert fit(small(), tmp_path / "x.npy", epochs=1, checkpoint=path, **QUIET) == history

    def test_swapped_rows_and_other_weights_and_columns_are_other_data(self, tmp_path):
        x, path = rows(), tmp_path / "c"
        weight = torch.ones(200)
        fit(small(), {"x": x, "weight": weight}, epochs=1, checkpoint=path, **QUIET)
        swapped, heavier = x.clone(), weight.clone()
        swapped[[3, 77]] = x[[77, 3]]
        heavier[11] = 1.5
        for data in (
            {"x": swapped, "weight": weight},
            {"x": x, "weight": heavier},
            {"x": x},
            {"x": x.flip(1), "weight": weight},
        ):
            with pytest.raises(CheckpointError, match="other data"):
                fit(small(), data, epochs=1, checkpoint=path, **QUIET)

    def test_other_validation_rows_are_noticed(self, tmp_path):
        path, held = tmp_path / "c", rows(50, seed=1)
        fit(small(), rows(), validation=held, epochs=1, checkpoint=path, **QUIET)
        held[17, 0] += 1e-3
        with pytest.raises(CheckpointError, match="other validation data"):
            fit(small(), rows(), validation=held, epochs=1, checkpoint=path, **QUIET)

    def test_other_settings_of_an_objective_or_an_optimizer_are_noticed(self, tmp_path):
        for i, (first, second) in enumerate(
            [
                (DenoisingScoreMatching(noise=0.1), DenoisingScoreMatching(noise=0.2)),
                (ReverseKL(DoubleWell(), samples=8), ReverseKL(DoubleWell(), samples=16)),
                (
                    WeightedSum((1.0, MaximumLikelihood())),
                    WeightedSum((2.0, MaximumLikelihood())),
                ),
            ]
        ):
            options = {"steps": 2, "checkpoint": tmp_path / str(i), **QUIET}
            fit(small(), rows(), first, **options)
            with pytest.raises(CheckpointError, match="objective="):
                fit(small(), rows(), second, **options)
        options = {"epochs": 1, "checkpoint": tmp_path / "c", **QUIET}
        fit(small(), rows(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-2), **options)
        with pytest.raises(CheckpointError, match="optimizer_groups="):
            fit(small(), rows(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), **options)


class TestLonger:
    def test_the_case_of_the_list(self, tmp_path):
        flow, x, path = small(), rows(), tmp_path / "more.ckpt"
        first = fit(flow, x, epochs=4, checkpoint=path, **QUIET)
        more = fit(flow, x, epochs=8, checkpoint=path, **QUIET)
        assert more.epochs == list(range(1, 9))
        assert more.train[:4] == first.train
        assert more.stopped == "epochs"

    def test_the_rate_is_that_of_the_new_length_from_the_first_new_step(self, tmp_path):
        path, steps = tmp_path / "c", 3
        options = {"lr": 0.01, "scheduler": "cosine", "checkpoint": path, **QUIET}
        fit(small(), rows(), epochs=4, **options)
        rates = fit(small(), rows(), epochs=10, **options).learning_rate
        for epoch, rate in enumerate(rates, 1):
            length = 4 if epoch <= 4 else 10
            part = epoch * steps / (length * steps)
            assert rate == pytest.approx(0.005 * (1 + math.cos(math.pi * part)), abs=1e-12)

    def test_the_default_rate_is_constant_again_until_the_end_of_the_new_length(self, tmp_path):
        options = {"lr": 0.01, "checkpoint": tmp_path / "c", **QUIET}
        fit(small(), rows(), epochs=7, patience=None, **options)
        rates = fit(small(), rows(), epochs=14, patience=None, **options).learning_rate
        falling = [0.01, 0.005, 0.0]
        # Of 21 steps the last six fall, of 42 the last twelve.
        expected = [0.01] * 4 + falling + [0.01] * 3 + [0.0075, 0.005, 0.0025, 0.0]
        assert rates == pytest.approx(expected, abs=1e-12)

    def test_a_fit_that_a_plateau_ended_goes_on_at_the_full_rate(self, tmp_path):
        options = {"lr": 0.05, "patience": 2, "checkpoint": tmp_path / "c", **QUIET}
        first = fit(small(), rows(), epochs=100, **options)
        assert (first.stopped, first.learning_rate[-1]) == ("patience", 0.0)
        more = fit(small(), rows(), epochs=200, **options)
        assert more.steps[: len(first.steps)] == first.steps
        assert more.learning_rate[len(first.steps)] == 0.05
        assert more.annealed is None or more.annealed > first.steps[-1]
        assert more.best <= first.best

    def test_without_a_schedule_the_longer_fit_is_the_one_asked_for_at_once(self, tmp_path):
        path, whole, flow, x = tmp_path / "c", small(), small(), rows().exp()
        options = {"scheduler": None, "lr": 0.05, "patience": 8, **QUIET}
        expected = fit(whole, x, epochs=7, **options)
        fit(flow, x, epochs=3, checkpoint=path, **options)
        history = fit(flow, x, epochs=7, checkpoint=path, **options)
        assert history.train == expected.train
        assert history.learning_rate == expected.learning_rate
        assert expected.best_step > 0
        assert torch.equal(weights(flow), weights(whole))

    def test_schedules_of_ones_own_are_planned_over_the_new_length(self, tmp_path):
        def one_cycle(optimizer, total):
            return OneCycleLR(optimizer, 0.01, total_steps=total)

        path, options = tmp_path / "c", {"scheduler": one_cycle, **QUIET}
        fit(small(), rows(), epochs=2, checkpoint=path, **options)
        history = fit(small(), rows(), epochs=5, checkpoint=path, **options)
        expected = fit(small(), rows(), epochs=5, **options)
        assert history.learning_rate[2:] == pytest.approx(expected.learning_rate[2:], rel=1e-12)

    def test_the_length_may_be_given_in_steps(self, tmp_path):
        path = tmp_path / "c"
        fit(small(), rows(), steps=4, checkpoint=path, **QUIET)
        history = fit(small(), rows(), steps=9, checkpoint=path, **QUIET)
        assert (history.steps[-1], history.stopped) == (9, "steps")

    def test_an_interrupted_longer_fit_goes_on_to_the_same_bits(self, tmp_path):
        whole, flow, path, other = small(), small(), tmp_path / "a", tmp_path / "b"
        for one, place in ((whole, path), (flow, other)):
            fit(one, rows(), epochs=2, checkpoint=place, **QUIET)
        expected = fit(whole, rows(), epochs=6, checkpoint=path, **QUIET)
        stop = [lambda f, h: h.epochs[-1] == 4]
        fit(flow, rows(), epochs=6, checkpoint=other, callbacks=stop, **QUIET)
        history = fit(flow, rows(), epochs=6, checkpoint=other, **QUIET)
        assert history.train == expected.train
        assert torch.equal(weights(flow), weights(whole))

    def test_a_shorter_one_returns_at_once_and_says_so(self, tmp_path):
        flow, again, path = small(), small(), tmp_path / "c"
        first = fit(flow, rows(), epochs=4, checkpoint=path, **QUIET)
        content = path.read_bytes()
        with pytest.warns(UserWarning, match="has done 12 steps already, more than the 6"):
            history = fit(again, rows(), epochs=2, checkpoint=path, **QUIET)
        assert replace(history, plan=first.plan) == first
        assert torch.equal(weights(again), weights(flow))
        assert path.read_bytes() == content

    def test_out_of_patience_stays_so_unless_there_is_more_of_it(self, tmp_path):
        path = tmp_path / "c"
        options = {"lr": 1e-9, "scheduler": None, "checkpoint": path, **QUIET}
        same = {"validation": torch.zeros(9, 2), **options}
        # Weights that do not move never validate better than at the start.
        fit(small(), rows(), epochs=9, patience=2, **{**same, "clip": 1e-30})
        stopped = fit(small(), rows(), epochs=12, patience=2, **{**same, "clip": 1e-30})
        assert (stopped.stopped, stopped.epochs[-1]) == ("patience", 2)
        more = fit(small(), rows(), epochs=12, patience=4, **{**same, "clip": 1e-30})
        assert (more.stopped, more.epochs[-1]) == ("patience", 4)


class TestWriting:
    @pytest.mark.parametrize(
        "name", ["file/c", "folder", "x" * 300, "nul\0"], ids=["file", "folder", "long", "nul"]
    )
    def test_a_path_that_cannot_be_written_is_found_before_any_step(self, tmp_path, name):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        flow, called = small(), []
        with pytest.raises(ValueError, match="remedy"):
            fit(
                flow,
                rows(),
                checkpoint=str(tmp_path / name),
                callbacks=[called.append],
                **QUIET,
            )
        assert not called
        assert not bool(flow.initialized)

    def test_folders_are_made(self, tmp_path):
        fit(small(), rows(), epochs=1, checkpoint=tmp_path / "a" / "b" / "c", **QUIET)
        assert (tmp_path / "a" / "b" / "c").is_file()

    def test_a_full_disk_is_said_in_words_and_leaves_the_older_file(self, tmp_path, monkeypatch):
        path, flow = tmp_path / "c", small()
        fit(small(), rows(), epochs=1, checkpoint=path, **QUIET)
        content = path.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fill(flow, history):
            monkeypatch.setattr(os, "fsync", full)

        with pytest.raises(CheckpointError, match="no space left on its disk.*remedy: free some"):
            fit(flow, rows(), epochs=3, checkpoint=path, callbacks=[fill], **QUIET)
        monkeypatch.undo()
        assert path.read_bytes() == content
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
        # What was validated is kept all the same, and the fit can go on.
        assert bool(flow.initialized)
        assert fit(flow, rows(), epochs=3, checkpoint=path, **QUIET).epochs == [1, 2, 3]

    def test_a_full_disk_is_found_before_the_first_step(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="no space left"):
            checkpoints.prepare_path(tmp_path / "c")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process by a signal")
    def test_leftovers_of_a_killed_process_are_removed_by_the_next_run(self, tmp_path):
        path = tmp_path / "c"
        script = tmp_path / "killed.py"
        script.write_text(
            textwrap.dedent(
                """
                import os, signal, sys
                from pathlib import Path
                from flowkit.training import checkpoint
                # Killed when the bytes are there and the move is not done.
                os.fsync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                checkpoint.write_checkpoint(Path(sys.argv[1]), {"settings": {}})
                """
            )
        )
        done = subprocess.run([sys.executable, script, path], check=False, timeout=120)
        assert done.returncode == -9
        script.unlink()
        assert len(list(tmp_path.iterdir())) == 1
        fit(small(), rows(), epochs=1, checkpoint=path, **QUIET)
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
