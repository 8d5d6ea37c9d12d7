"""fit: it learns, records, stops, restores, resumes, and says what is wrong with data."""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from flowkit import (
    Flow,
    MaximumLikelihood,
    ReverseKL,
    WeightedSum,
    coupling_flow,
    elementwise_flow,
    fit,
)
from flowkit.bases import Logistic, StandardNormal, Uniform
from flowkit.data.batches import DataSplit, split
from flowkit.data.sources import MappedSource, TensorSource
from flowkit.errors import ArgumentError, CheckpointError, DataError, NonFiniteLossError
from flowkit.objectives import Loss, Objective
from flowkit.training import repeated_splits
from flowkit.training.step import Step
from flowkit.training.updates import Updates
from flowkit.transforms import Compose, Log, LULinear, Standardize

QUIET = {"progress": False, "batch_size": 50}


def rows(n=200, features=2, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def small(features=2, **options):
    torch.manual_seed(0)
    # Not at the copula of the data, which a few steps seldom better.
    return coupling_flow(features, layers=2, hidden=(8,), start="standardize", **options)


def weights(flow):
    return torch.cat([p.detach().flatten().clone() for p in flow.parameters()])


def test_it_finds_the_normal_that_the_data_have():
    n, mean, scale = 4000, 3.0, 2.0
    x = mean + scale * rows(n, 1)
    flow = Flow(Compose(Standardize(1), LULinear(1)), StandardNormal(1))
    fit(flow, x, epochs=20, validation=None, **QUIET)
    samples = flow.sample(200_000, generator=torch.Generator().manual_seed(0))
    # The maximum-likelihood normal has the moments of the data; Monte Carlo error of 2e5 draws.
    assert samples.mean().item() == pytest.approx(
        x.mean().item(), abs=4 * 2 / math.sqrt(2e5) + 0.02
    )
    assert samples.std().item() == pytest.approx(x.std().item(), abs=4 * 2 / math.sqrt(4e5) + 0.03)


def test_reverse_kl_learns_without_data():
    def energy(x):
        return 0.5 * ((x - 2.0) / 0.5).square().sum(-1)

    flow = elementwise_flow(1, scalar="affine", start=None)
    history = fit(flow, None, ReverseKL(energy, samples=64), steps=400, lr=2e-2, progress=False)
    samples = flow.sample(10_000, generator=torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(2.0, abs=0.05)
    assert samples.std().item() == pytest.approx(0.5, abs=0.05)
    assert history.stopped == "steps"
    assert history.steps == list(range(25, 401, 25))
    assert history.epochs[-1] == 4  # of 100 steps


def test_the_history_has_one_entry_an_epoch():
    history = fit(small(), rows(), epochs=3, **QUIET)
    assert history.epochs == [1, 2, 3]
    assert history.steps == [3, 6, 9]  # 180 training rows, batches of 50, the rest left out
    assert len(history.train) == len(history.validation) == len(history.seconds) == 3
    assert history.terms["nll"] == pytest.approx(history.train)
    assert history.learning_rate[-1] == pytest.approx(0.0, abs=1e-12)
    assert history.best == min(history.start, *history.validation)
    values = dict(zip([0, *history.steps], [history.start, *history.validation], strict=True))
    assert values[history.best_step] == history.best
    assert history.stopped == "epochs"
    assert json.loads(json.dumps(history.to_dict()))["best_step"] == history.best_step


def test_the_best_weights_come_back():
    flow, x, seen = small(), rows().exp(), {}
    held = rows(100, seed=9).exp()

    def remember(flow, history):
        seen[history.steps[-1]] = weights(flow)

    options = {"lr": 0.05, "scheduler": None, "ema": None, "callbacks": [remember], **QUIET}
    history = fit(flow, x, validation=held, epochs=30, **options)
    # This learning rate overfits 200 rows.
    assert 0 < history.best_step < history.steps[-1]
    assert torch.equal(weights(flow), seen[history.best_step])
    loss = -flow.log_prob(held).mean().item()
    assert loss == pytest.approx(history.best, abs=1e-5)
    assert not flow.training


def test_patience_stops():
    options = {"scheduler": "cosine", "ema": None, "patience": 3, **QUIET}
    history = fit(small(), rows().exp(), epochs=200, lr=0.05, **options)
    assert history.stopped == "patience"
    assert history.best_step > 0
    assert history.steps[-1] == history.best_step + 3 * 3  # of three steps an epoch


def test_a_callback_can_stop():
    history = fit(small(), rows(), epochs=9, callbacks=[lambda f, h: len(h.epochs) == 2], **QUIET)
    assert history.stopped == "callback"
    assert history.epochs == [1, 2]


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone():
    first, second = small(), small()
    before, x, options = torch.get_rng_state(), rows().exp(), {"epochs": 8, "lr": 1e-2, **QUIET}
    assert fit(first, x, seed=5, **options).best_step > 0
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    fit(second, x, seed=5, **options)
    assert torch.equal(weights(first), weights(second))
    third = small()
    fit(third, x, seed=6, **options)
    assert not torch.equal(weights(first), weights(third))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9},
        {"scheduler": "cosine", "ema": None},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)},
    ],
    ids=["plain", "ema", "cosine", "sgd"],
)
def test_a_resumed_fit_ends_with_the_same_bits(tmp_path, options):
    whole, x = small(), rows().exp()
    options = {"epochs": 6, **QUIET, **options}
    if "optimizer" not in options:
        options["lr"] = 1e-2
    expected = fit(whole, x, **options)
    assert expected.best_step > 0

    class Interrupt(Exception):
        pass

    def interrupt(flow, history):
        if len(history.epochs) == 4:
            raise Interrupt

    broken, path = small(), tmp_path / "run.ckpt"
    with pytest.raises(Interrupt):
        fit(broken, x, checkpoint=path, callbacks=[interrupt], **options)
    resumed = small()
    history = fit(resumed, x, checkpoint=path, **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert history.validation == expected.validation
    assert history.train == expected.train
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_finished_checkpoint_gives_the_result_again(tmp_path):
    first, second = small(), small()
    history = fit(first, rows(), epochs=2, checkpoint=tmp_path / "c", **QUIET)
    again = fit(second, rows(), epochs=2, checkpoint=tmp_path / "c", **QUIET)
    assert torch.equal(weights(first), weights(second))
    assert again == history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": 3}, "another flow"),
        ({"seed": 7}, "seed=0, this fit has seed=7"),
        ({"batch_size": 20}, "batch_size=50"),
        ({"data": 100}, "rows=180"),
        ({"content": b"junk"}, "damaged"),
        ({"lr": 1e-2}, "lr=0.002, this fit has lr=0.01"),
        ({"clip": None}, "clip=10.0, this fit has clip=None"),
        ({"optimizer": torch.optim.SGD}, "optimizer='Adam', this fit has optimizer='SGD'"),
        ({"fabric": Fabric(accelerator="cpu", precision="bf16-mixed")}, "precision='32-true'"),
        (
            {"objective": WeightedSum((1.0, MaximumLikelihood()))},
            "objective='MaximumLikelihood', this fit",
        ),
        ({"data_seed": 1}, "other data"),
        ({"scalar": "affine"}, "another flow"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, change, message):
    path = tmp_path / "c"
    fit(small(), rows(), epochs=2, checkpoint=path, **QUIET)
    if "content" in change:
        path.write_bytes(change["content"])
    features = change.get("flow", 2)
    others = ("flow", "data", "data_seed", "content", "scalar")
    options = {**QUIET, **{k: v for k, v in change.items() if k not in others}}
    flow = small(features)
    if "scalar" in change:
        flow = small(features, scalar=change["scalar"])
    with pytest.raises(CheckpointError, match=message):
        fit(
            flow,
            rows(change.get("data", 200), features, change.get("data_seed", 0)),
            epochs=2,
            checkpoint=path,
            **options,
        )


def test_layers_of_the_same_shapes_are_another_flow(tmp_path):
    def flow(base):
        return Flow(Compose(Standardize(2), LULinear(2)), base(2))

    fit(flow(StandardNormal), rows(), epochs=1, checkpoint=tmp_path / "c", **QUIET)
    with pytest.raises(CheckpointError, match="another flow"):
        fit(flow(Logistic), rows(), epochs=1, checkpoint=tmp_path / "c", **QUIET)


def test_settings_may_be_numpy_numbers(tmp_path):
    path, options = tmp_path / "c", {"validation": np.float32(0.25), "progress": False}
    numbers = {"epochs": np.int64(2), "batch_size": np.int32(50), "seed": np.uint8(3)}
    numbers |= {"lr": np.float32(1e-3), "clip": np.float64(5), "ema": np.float32(0.5)}
    first, second = small(), small()
    history = fit(first, rows(), checkpoint=path, **numbers, **options)
    assert fit(second, rows(), checkpoint=path, **numbers, **options) == history
    assert torch.equal(weights(first), weights(second))


def test_a_fit_that_a_callback_stopped_goes_on(tmp_path):
    whole, flow, path = small(), small(), tmp_path / "c"
    expected = fit(whole, rows(), epochs=4, **QUIET)
    stop = [lambda f, h: len(h.epochs) == 2]
    assert fit(flow, rows(), epochs=4, checkpoint=path, callbacks=stop, **QUIET).epochs == [1, 2]
    history = fit(flow, rows(), epochs=4, checkpoint=path, **QUIET)
    assert history.validation == expected.validation
    assert history.stopped == "epochs"
    assert torch.equal(weights(flow), weights(whole))


def test_a_callback_that_stops_the_last_epoch_leaves_nothing_to_do(tmp_path):
    options = {"epochs": 2, "checkpoint": tmp_path / "c", **QUIET}
    fit(small(), rows(), callbacks=[lambda f, h: len(h.epochs) == 2], **options)
    history = fit(small(), rows(), **options)
    assert (history.stopped, history.epochs) == ("epochs", [1, 2])


class TestPrecision:
    def train(self, fabric, **options):
        flow = small()
        history = fit(flow, rows(), epochs=2, lr=1e-2, fabric=fabric, **options, **QUIET)
        assert np.isfinite([*history.train, *history.validation]).all()
        assert torch.isfinite(weights(flow)).all()
        return flow, history

    def full(self, **options):
        return self.train(Fabric(accelerator="cpu"), **options)

    @pytest.mark.parametrize("ema", [None, 0.9])
    def test_bfloat16_layers_stay_close_to_float32(self, ema):
        flow, history = self.train(Fabric(accelerator="cpu", precision="bf16-mixed"), ema=ema)
        assert flow.dtype == torch.float32
        assert history.validation == pytest.approx(self.full(ema=ema)[1].validation, abs=0.05)

    def test_float16_on_a_cpu_is_bfloat16_in_fabric(self):
        with pytest.warns(UserWarning, match="not supported on CPU"):
            fabric = Fabric(accelerator="cpu", precision="16-mixed")
        assert self.train(fabric)[0].dtype == torch.float32

    def test_float16_with_loss_scaling_resumes_to_the_same_bits(self, tmp_path):
        def fabric():
            return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])

        whole, history = self.train(fabric())
        assert history.validation == pytest.approx(self.full()[1].validation, abs=0.05)
        path, stop = tmp_path / "c", [lambda f, h: True]
        self.train(fabric(), checkpoint=path, callbacks=stop)
        again, resumed = self.train(fabric(), checkpoint=path)
        assert resumed.validation == history.validation
        assert torch.equal(weights(again), weights(whole))

    def test_a_fused_optimizer_cannot_clip_scaled_gradients(self):
        fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])
        with pytest.raises(ArgumentError, match="remedy: fused=False"):
            self.train(fabric, optimizer=lambda p: torch.optim.Adam(p, fused=True))

    def test_float64_trains_and_leaves_the_flow_in_float64(self):
        flow, history = self.train(Fabric(accelerator="cpu", precision="64-true"))
        expected = small().double()
        double = fit(expected, rows(), epochs=2, lr=1e-2, **QUIET)
        assert flow.dtype == torch.float64
        torch.testing.assert_close(weights(flow), weights(expected))
        assert history.validation == pytest.approx(double.validation, rel=1e-9)

    @pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
    def test_half_precision_is_refused_with_a_remedy(self, precision):
        with pytest.raises(ArgumentError, match="remedy: .*'bf16-mixed'"):
            self.train(Fabric(accelerator="cpu", precision=precision))
        with pytest.raises(ArgumentError, match=r"remedy: flow.float\(\)"):
            fit(small().half(), rows(), **QUIET)

    def test_the_data_are_never_rounded(self):
        seen = []

        class Watch(Objective):
            def forward(self, flow, batch):
                seen.append(batch["x"])
                return MaximumLikelihood()(flow, batch)

        fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
        fit(small(), rows(), Watch(), epochs=1, validation=None, fabric=fabric, **QUIET)
        assert {tuple(row) for row in torch.cat(seen).tolist()} == {
            tuple(row) for row in rows().tolist()
        }


@pytest.mark.parametrize("data", [rows(), "missing.npy", np.ones((9, 2))])
def test_the_flow_goes_back_to_its_device_whatever_happens(monkeypatch, data):
    places = []
    move = Step.to
    monkeypatch.setattr(Step, "to", lambda step, place: places.append(place) or move(step, place))
    with contextlib.suppress(DataError):
        fit(small(), data, epochs=1, **QUIET)
    assert places[0] == Fabric(accelerator="auto", devices=1).device
    assert places[-1] == torch.device("cpu")
    assert len(places) > 1


@pytest.mark.gpu
def test_a_flow_trained_on_a_gpu_scores_data_of_the_cpu():
    flow = small()
    fit(flow, rows(), epochs=2, **QUIET)
    assert torch.isfinite(flow.log_prob(rows())).all()


def test_losses_of_an_accelerator_are_read_rarely_and_named_exactly(monkeypatch):
    class Fails(Objective):
        def forward(self, flow, batch):
            self.calls = getattr(self, "calls", 0) + 1
            loss = MaximumLikelihood()(flow, batch)
            return Loss(loss.value * (math.nan if self.calls == 7 else 1), {})

    monkeypatch.setattr(Updates, "due", lambda run: run.progress.done + 1 == 10)
    with pytest.raises(NonFiniteLossError, match="nan at step 7"):
        fit(small(), rows(), Fails(), steps=12, validation=None, **QUIET)


def test_a_second_fit_goes_on_instead_of_starting_over():
    flow = small()
    fit(flow, rows(), epochs=1, **QUIET)
    mean = flow.transform[0].mean.clone()
    fit(flow, 10 + rows(), epochs=1, **QUIET)
    assert torch.equal(flow.transform[0].mean, mean)


def test_a_flow_trained_without_data_is_not_restarted_from_data():
    flow = small()
    energy = ReverseKL(lambda x: 0.5 * x.square().sum(-1), samples=16)
    fit(flow, None, energy, steps=2, progress=False)
    mean = flow.transform[0].mean.clone()
    fit(flow, 10 + rows(), epochs=1, **QUIET)
    assert torch.equal(flow.transform[0].mean, mean)


def test_contexts_without_events_start_the_embedding_alone():
    flow = coupling_flow(2, context=1, layers=1, hidden=(8,))
    context = 2000 + 10 * torch.randn(64, 1)
    energy = ReverseKL(lambda x, c: 0.5 * x.square().sum(-1), samples=4)
    fit(flow, {"context": context}, energy, steps=2, validation=None, progress=False)
    torch.testing.assert_close(flow.embedding.mean, context.mean(0))
    torch.testing.assert_close(flow.embedding.scale, context.std(0, unbiased=False))
    assert torch.equal(flow.transform[0].mean, torch.zeros(2))
    assert bool(flow.initialized)


def test_compiled_steps_learn_the_same():
    plain, compiled = small(), small()
    fit(plain, rows(), epochs=2, validation=None, **QUIET)
    fit(compiled, rows(), epochs=2, validation=None, compile=True, **QUIET)
    torch.testing.assert_close(weights(plain), weights(compiled), atol=1e-4, rtol=1e-3)


def test_a_compiled_fit_makes_one_program_for_all_its_steps():
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    data = {"x": rows(), "weight": torch.rand(len(rows())) + 0.5}
    fit(small(), data, epochs=3, compile=True, **QUIET)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_without_a_compiler_there_is_one_warning_and_the_same_fit(monkeypatch):
    plain, other = small(), small()
    fit(plain, rows(), epochs=1, compile=False, **QUIET)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="finds no 'no-such-compiler'") as caught:
        fit(other, rows(), epochs=1, compile=True, **QUIET)
    assert len(caught) == 1
    torch.testing.assert_close(weights(plain), weights(other), rtol=0, atol=0)


def test_compiling_is_chosen_where_it_pays_and_an_unknown_choice_is_named(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    fit(small(), rows(), epochs=1, **QUIET)
    assert not compiled
    monkeypatch.setattr("flowkit.training.setup.worth_compiling", lambda *_: True)
    fit(small(), rows(), epochs=1, **QUIET)
    fit(small(), objective=ReverseKL(lambda x: x.square().sum(-1)), steps=1, **QUIET)
    assert len(compiled) == 1
    with pytest.raises(ArgumentError, match="compile as True, False or 'auto', got 'yes'"):
        fit(small(), rows(), compile="yes", **QUIET)


class TestEveryKindOfData:
    """The same rows in any container give the same bits."""

    def check(self, data):
        expected, flow = small(), small()
        fit(expected, rows(), epochs=2, **QUIET)
        fit(flow, data, epochs=2, **QUIET)
        assert torch.equal(weights(flow), weights(expected))

    def test_arrays_of_any_float(self):
        self.check(rows().numpy())
        self.check(rows().numpy().astype(np.float64))
        self.check(rows().numpy().astype(">f4"))

    def test_lists_and_frames(self):
        self.check(rows().tolist())
        self.check(pandas.DataFrame(rows().numpy(), columns=["a", "b"]))
        nullable = pandas.DataFrame(rows().double().numpy(), columns=["a", "b"]).convert_dtypes()
        self.check(nullable)

    def test_dicts(self):
        self.check({"x": rows()})

    def test_lists_of_tensors_and_frames_of_objects(self):
        self.check([row.clone().requires_grad_() for row in rows()])
        self.check(pandas.DataFrame(rows().numpy()).astype(object))
        self.check(np.ma.masked_array(rows().numpy()))

    def test_datasets(self):
        class Items(Dataset):
            def __len__(self):
                return 200

            def __getitem__(self, i):
                return {"x": rows()[i]}

        self.check(TensorDataset(rows()))
        self.check(Items())

    def test_memory_mapped_files(self, tmp_path):
        np.save(tmp_path / "x.npy", rows().numpy().astype(np.float64))
        self.check(tmp_path / "x.npy")
        self.check({"x": np.load(tmp_path / "x.npy", mmap_mode="r")})
        np.save(tmp_path / "x.npy", rows().numpy().astype(">f4"))
        self.check(tmp_path / "x.npy")

    def test_separate_validation_data(self):
        history = fit(small(), rows(), validation=rows(30).numpy(), epochs=1, **QUIET)
        assert len(history.validation) == 1

    def test_context_and_weight(self):
        flow = elementwise_flow(1, context=1, hidden=(8,))
        c = 2000 + 10 * rows(300, 1)
        x = 0.1 * (c - 2000) + 0.1 * rows(300, 1, seed=1)
        data = {"x": x, "context": c, "weight": torch.ones(300)}
        fit(flow, data, epochs=60, lr=1e-2, **QUIET)
        assert bool(flow.initialized)
        assert flow.embedding.mean.item() == pytest.approx(2000, abs=3)
        means = flow.sample(2000, torch.tensor([[1990.0], [2010.0]])).mean(0).flatten()
        torch.testing.assert_close(means, torch.tensor([-1.0, 1.0]), atol=0.2, rtol=0)


def test_a_memory_mapped_file_is_never_read_whole(tmp_path):
    """A sparse file of 4 GB: only the rows of the batches can be touched."""
    path = tmp_path / "huge.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(5 * 10**8, 2))
    array[:1] = 1.0
    del array
    code = f"""
        import resource, numpy as np
        from flowkit.data.convert import Expected, as_source
        from flowkit.data.sources import MappedSource
        import torch
        rows, _ = as_source({str(path)!r}, Expected(torch.float32, torch.device("cpu"), (2,)))
        assert isinstance(rows, MappedSource) and len(rows) == 5 * 10**8
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        g = torch.Generator().manual_seed(0)
        for _ in range(20):
            batch = rows.batch(torch.randint(0, len(rows), (256,), generator=g))
        assert batch["x"].shape == (256, 2) and batch["x"].dtype == torch.float32
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert used < 300, used
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux")
def test_a_fit_from_a_file_holds_little_of_it(tmp_path):
    """300 MB: the pages of the rows that were read do not stay."""
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (3_750_000, 20)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(75):
            np.random.default_rng(0).standard_normal((50_000, 20), dtype=np.float32).tofile(file)
    code = f"""
        import threading, torch
        from flowkit import Flow, fit
        from flowkit.bases import StandardNormal
        from flowkit.transforms import LULinear

        torch.set_num_threads(1)

        def resident():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if "VmRSS" in line) / 1000

        def watch():
            while not done.wait(0.002):
                peak[0] = max(peak[0], resident())

        def train(data):
            flow = Flow(LULinear(20), StandardNormal(20))
            flow.initialize(torch.randn(99, 20))
            fit(flow, data, steps=100, batch_size=1000, validation=1e-3, progress=False)

        train(torch.randn(20_000, 20))
        done, before = threading.Event(), resident()
        peak = [before]
        threading.Thread(target=watch, daemon=True).start()
        train({str(path)!r})
        done.set()
        print(peak[0] - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    assert float(run.stdout) < 100, run.stdout


class TestReadingAhead:
    def mapped(self, tmp_path, x):
        np.save(tmp_path / "x.npy", x.numpy())
        return tmp_path / "x.npy"

    def test_blocks_of_batches_hold_the_rows_of_single_ones(self, tmp_path, monkeypatch):
        monkeypatch.setattr("flowkit.data.batches._SAMPLES_AHEAD", 150)
        expected, flow = small(), small()
        fit(expected, rows(1000), epochs=2, **QUIET)
        fit(flow, self.mapped(tmp_path, rows(1000)), epochs=2, **QUIET)
        assert torch.equal(weights(flow), weights(expected))

    def test_an_error_of_the_reader_reaches_the_caller(self, tmp_path, monkeypatch):
        def fail(rows, index):
            if threading.current_thread() is not threading.main_thread():
                raise OSError("the disk is gone")
            return read(rows, index)

        read = MappedSource.batch
        monkeypatch.setattr(MappedSource, "batch", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            fit(small(), self.mapped(tmp_path, rows()), epochs=1, **QUIET)

    def test_no_thread_outlives_an_epoch_that_is_broken_off(self, tmp_path):
        class Interrupted(Objective):
            def forward(self, flow, batch):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(small(), self.mapped(tmp_path, rows()), Interrupted(), epochs=1, **QUIET)
        assert not [t for t in threading.enumerate() if t.name.startswith("flowkit-rows")]

    def test_changes_to_a_copy_on_write_map_stay(self, tmp_path):
        x = np.load(self.mapped(tmp_path, rows()), mmap_mode="c")
        x += 1
        fit(small(), x, epochs=1, **QUIET)
        assert np.array_equal(x, rows().numpy() + 1)


class TestOrder:
    @pytest.mark.parametrize("size", [1000, 2**20 + 1])
    def test_every_sample_comes_once_and_the_seed_decides_where(self, size):
        source = TensorSource({"x": torch.arange(size)[:, None]}, torch.device("cpu"))
        train = DataSplit(source, torch.arange(size), "training")
        batch = size if size == 1000 else (size - 1) // 8

        def order(seed):
            drawn = list(train.batches(seed, batch))
            assert all(torch.equal(index, rows["x"][:, 0]) for index, rows in drawn)
            return torch.cat([index for index, _ in drawn])

        first, same, other = order(1), order(1), order(2)
        assert len(first) == size // batch * batch
        assert len(first.unique()) == len(first)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_training_and_validation_share_the_samples(self):
        source = TensorSource({"x": torch.arange(2**20 + 7)[:, None]}, torch.device("cpu"))
        parts = split(source, 0.25, seed=3)
        every = torch.cat([torch.cat(list(part.runs())) for part in parts])
        assert torch.equal(every.sort().values, torch.arange(2**20 + 7))
        assert len(parts[1]) == round(0.25 * (2**20 + 7))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 2)), "x is empty"),
        (np.zeros((1, 2)), "at least 2 samples, got 1"),
        (np.zeros((5, 3)), r"x expected shape \(samples, 2\), as the flow has it; got \(5, 3\)"),
        (np.zeros(5), r"x expected shape \(samples, 2\)"),
        (np.array([["a", "b"]]), "expected numbers, got an array of dtype <U1"),
        (np.array([[1, None]], dtype=object), "got an array of dtype object"),
        ([[1.0, 2.0], [3.0]], "different lengths"),
        (torch.zeros(5, 2, dtype=torch.complex64), "real numbers"),
        (
            pandas.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}),
            r"column\(s\) 'b' do not hold numbers",
        ),
        (
            pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, None, 2.0]}),
            r"missing \(NaN\) .* 1 of 3 rows \(first rows: \[1\]; columns: \['b'\]\)",
        ),
        (np.array([[1, 2], [np.inf, 1.0], [0, np.nan]]), r"in 2 of 3 rows"),
        (np.column_stack([np.arange(50.0), np.full(50, 7.0)]), r"column\(s\) \[1\] are constant"),
        ({"x": np.zeros((5, 2)), "context": np.zeros((4, 1))}, "expected arrays of one length"),
        (
            {"x": np.zeros((5, 2)), "context": np.zeros(5)},
            r"context expected shape \(samples, C\)",
        ),
        ({"y": np.zeros((5, 2))}, "the key x"),
        ("rows.csv", "path of an .npy file"),
        ("missing.npy", "no file at"),
        (None, "MaximumLikelihood needs data"),
        (TensorDataset(torch.zeros(0, 2)), "the dataset is empty"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else type(v).__name__,
)
def test_data_that_cannot_be_used_are_named(data, message):
    with pytest.raises(DataError, match=message):
        fit(small(), data, epochs=1, **QUIET)


def test_one_column_given_as_a_vector_gets_a_hint():
    with pytest.raises(DataError, match=r"x.reshape\(-1, 1\)"):
        fit(elementwise_flow(1), np.zeros(10), epochs=1, **QUIET)


def test_a_conditional_flow_asks_for_its_context():
    with pytest.raises(DataError, match="conditional: data expected a dict with x and context"):
        fit(coupling_flow(2, context=3, layers=1), rows(), epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs as an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size as an integer >= 1, got 2.5"),
        ({"steps": -1}, "steps"),
        ({"validation": 1.5}, "validation as a finite number >= 0 and < 1, got 1.5"),
        ({"scheduler": "linear"}, "'cosine', 'plateau'"),
        ({"lr": -1.0}, "lr as a finite number > 0, got -1.0"),
        ({"lr": "fast"}, "lr as a finite number > 0, got 'fast'"),
        ({"ema": 1.0}, "ema as a finite number > 0 and < 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        fit(small(), rows(), **{**QUIET, **options})


class Items(Dataset):
    def __init__(self, item, length=200):
        self.item, self.length = item, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.item(i)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows())


def masked():
    values = np.ma.masked_array(rows().numpy(), mask=False)
    values[17, 1] = np.ma.masked
    return values


NESTED = [[torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)]] * 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (masked(), r"in 1 of 200 rows \(first rows: \[17\]; columns: \[1\]\)"),
        (rows().numpy().astype(np.longdouble), "dtype float128.*remedy: .*astype"),
        (rows().to_sparse(), r"layout torch.sparse_coo; remedy: x.to_dense\(\)"),
        (scipy.sparse.csr_matrix(rows().numpy()), r"csr_matrix; remedy: x.toarray\(\)"),
        (NESTED, "no array can be made of this list"),
        ([torch.zeros(2), torch.zeros(3)], "different lengths"),
        (Stream(), "map-style dataset.*got Stream; remedy"),
        (Items(lambda i: {"x": rows()[i], "name": "a"}), "'name': 'list'.*remedy: encode text"),
        (Items(lambda i: "a"), "'x': 'str'"),
        (Items(lambda i: torch.zeros(2 + i % 2)), "all of one shape"),
        (TensorDataset(rows(), rows(), rows()), "its items hold 3 parts; remedy"),
        (Items(lambda i: rows()[i] if i else rows()[i] * math.nan), r"first rows: \[0\]"),
        (pandas.DataFrame({"a": ["1", "2"], "b": [1, 2]}), "'a' do not hold numbers"),
        ({"x": rows(), "weight": rows(200, 1)}, r"weight expected shape \(samples,\).*remedy"),
        ({}, "empty dict; remedy"),
    ],
    ids=lambda v: v[:30] if isinstance(v, str) else type(v).__name__,
)
def test_more_data_that_cannot_be_used_are_named(data, message):
    with pytest.raises(DataError, match=message):
        fit(small(), data, epochs=1, validation=None, **QUIET)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "cannot be memory-mapped as an array of numbers .*remedy: write it"),
        (b"", "cannot be memory-mapped as an array of numbers .*remedy: write it"),
        (np.array([[1, None]], dtype=object), "cannot be memory-mapped as an array of numbers"),
        (np.zeros((0, 2)), r"shape \(0, 2\); remedy"),
        (np.zeros((5, 2), np.longdouble), "dtype float128"),
        (np.array([["a", "b"]]), "expected numbers, got an array of dtype <U1"),
        (np.where(np.arange(200)[:, None] == 33, np.nan, rows().numpy()), r"rows: \[33\]"),
    ],
    ids=["junk", "nothing", "objects", "empty", "long", "text", "gap"],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, message):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=message):
        fit(small(), path, epochs=1, **QUIET)


def test_the_remedy_for_a_file_with_one_column_works(tmp_path):
    np.save(tmp_path / "x.npy", rows().numpy()[:, 0])
    with pytest.raises(DataError, match=r"mmap_mode='r'\).reshape\(-1, 1\)"):
        fit(elementwise_flow(1), tmp_path / "x.npy", epochs=1, **QUIET)
    column = np.load(tmp_path / "x.npy", mmap_mode="r").reshape(-1, 1)
    fit(elementwise_flow(1), column, epochs=1, **QUIET)


def test_a_context_that_the_flow_would_ignore_is_refused():
    with pytest.raises(DataError, match="unconditional flow would ignore; remedy: leave it out"):
        fit(small(), {"x": rows(), "context": rows()}, epochs=1, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed as an integer >= 0, got -1"),
        ({"seed": None}, "seed as an integer >= 0, got None"),
        ({"seed": 1.5}, "seed as an integer >= 0, got 1.5"),
        ({"epochs": True}, "epochs as an integer >= 1, got True"),
        ({"clip": 0.0}, "clip as a finite number > 0, got 0.0"),
        ({"clip": -1.0}, "clip as a finite number > 0, got -1.0"),
        ({"clip": "no"}, "clip as a finite number > 0, got 'no'"),
        ({"ema": "x"}, "ema as a finite number > 0 and < 1, got 'x'"),
        ({"optimizer": "adam"}, "a function from parameters to an optimizer, got 'adam'; remedy"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)])},
            "(?s)a function from parameters to an optimizer, got SGD.*; remedy",
        ),
        (
            {"optimizer": lambda p: "adam"},
            "the result of optimizer as an Optimizer, got",
        ),
        (
            {"callbacks": print},
            r"callbacks as a sequence of functions.*remedy: callbacks=\[function",
        ),
        ({"callbacks": [1]}, "callbacks as a sequence of functions"),
        (
            {"objective": MaximumLikelihood},
            "MaximumLikelihood'>; remedy: an instance",
        ),
        ({"objective": lambda f, b: 0}, "objective as an Objective, got <function .*; remedy"),
        ({"objective": "nll"}, "objective as an Objective, got 'nll'; remedy"),
        ({"flow": torch.nn.Linear(2, 2)}, "flow as a Flow, got Linear.*; remedy"),
        ({"flow": coupling_flow}, "flow as a Flow, got <function coupling_flow.*; remedy"),
        ({"fabric": "cpu"}, "fabric as a Fabric, got 'cpu'; remedy"),
        ({"checkpoint": os.curdir}, "not of a folder, got '.'; remedy"),
        ({"checkpoint": 3}, "path of a file, not of a folder, got 3"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        fit(**{"flow": small(), "data": rows(), **QUIET, **options})


@pytest.mark.parametrize("result", [lambda v: v, lambda v: (v, {}), lambda v: Loss(v[None], {})])
def test_an_objective_that_returns_no_loss_is_named(result):
    class Bare(Objective):
        def forward(self, flow, batch):
            return result(flow.log_prob(batch["x"]).mean())

    with pytest.raises(DataError, match=r"Bare to return a Loss\(value, terms\).*remedy"):
        fit(small(), rows(), Bare(), epochs=1, **QUIET)


class TestWeights:
    def test_the_validation_loss_is_a_weighted_mean_over_the_held_out_rows(self):
        # Of 30 rows 6 are held out, and their weights have another mean than one.
        x, weight, seen = rows(30), torch.arange(1.0, 31.0), []

        class Watch(Objective):
            reads = frozenset({"x", "weight", "number"})

            def forward(self, flow, batch):
                seen.append(batch)
                return MaximumLikelihood()(flow, batch)

        flow, data = small(), {"x": x, "weight": weight, "number": torch.arange(30.0)}
        history = fit(flow, data, Watch(), validation=0.2, epochs=1, **QUIET)
        held = seen[-1]["number"].long()
        assert len(held) == 6
        score = flow.log_prob(x[held]).detach()
        expected = -(weight[held] * score).sum() / weight[held].sum()
        assert history.validation[0] == pytest.approx(expected.item(), rel=1e-6)
        assert seen[0]["weight"].mean().item() == pytest.approx(1.0)

    def test_held_out_weights_must_not_all_be_zero(self):
        data = {"x": rows(), "weight": np.ones(200)}
        held = {"x": rows(5), "weight": np.zeros(5)}
        with pytest.raises(DataError, match="positive sum over the validation samples, got a sum"):
            fit(small(), data, validation=held, epochs=1, **QUIET)

    def test_a_flow_starts_from_weighted_rows(self):
        x, weight = rows(60), torch.where(torch.arange(60) < 20, 2.0, 1.0)
        weight[-1] = 0.0
        weighted, repeated = (
            Flow(Compose(Standardize(2), LULinear(2)), StandardNormal(2)) for _ in "ab"
        )
        fit(weighted, {"x": x, "weight": weight}, epochs=1, validation=None, **QUIET)
        copies = x.repeat_interleave(weight.long(), 0)
        fit(repeated, copies, epochs=1, validation=None, **QUIET)
        for name in ("mean", "scale"):
            ours, theirs = (getattr(f.transform[0], name) for f in (weighted, repeated))
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("kind", ["dataset", "map", "map with an array"])
    def test_weights_of_every_container_are_scaled(self, tmp_path, kind):
        weight = np.arange(1, 201)
        expected, flow = small(), small()
        fit(expected, {"x": rows(), "weight": weight}, epochs=1, **QUIET)
        np.save(tmp_path / "x.npy", rows().numpy())
        np.save(tmp_path / "w.npy", weight)
        data = {"x": tmp_path / "x.npy", "weight": tmp_path / "w.npy"}
        if kind == "dataset":
            data = Items(lambda i: {"x": rows()[i], "weight": weight[i]})
        if kind == "map with an array":
            data["weight"] = weight
        fit(flow, data, epochs=1, **QUIET)
        assert torch.equal(weights(flow), weights(expected))


@pytest.mark.parametrize("weight", [[-1.0] + [1.0] * 199, [0.0] * 200])
def test_weights_must_be_weights(weight):
    with pytest.raises(DataError, match="numbers >= 0 with a positive sum"):
        fit(small(), {"x": rows(), "weight": weight}, epochs=1, **QUIET)


def test_the_scale_of_weights_does_not_matter():
    one, thousand = small(), small()
    weight = rows(200, 1).abs().flatten()
    a = fit(one, {"x": rows(), "weight": weight}, epochs=2, **QUIET)
    b = fit(thousand, {"x": rows(), "weight": 1024 * weight}, epochs=2, **QUIET)
    torch.testing.assert_close(weights(one), weights(thousand))
    assert a.validation == pytest.approx(b.validation)


def test_digits_that_float32_would_lose_are_announced():
    x = 1e9 + rows().double()
    with (
        pytest.warns(UserWarning, match=r"column\(s\) \[0, 1\] vary by less"),
        pytest.raises(DataError, match="constant"),
    ):
        fit(small(), x, epochs=1, **QUIET)
    fit(small().double(), x, epochs=1, **QUIET)


def test_a_flow_without_parameters_has_nothing_to_train():
    with pytest.raises(ArgumentError, match="nothing to train"):
        fit(Flow(Standardize(2), StandardNormal(2)), rows(), **QUIET)


class TestNonFiniteLoss:
    def test_rows_outside_the_domain_are_named_with_the_layer(self):
        x = rows(100).exp()
        x[17, 0] = -1.0
        flow = Flow(Compose(Log(2), LULinear(2)), StandardNormal(2))
        flow.initialize(x[:17])
        message = r"inf at step \d+; row\(s\) \[17\].*number 0, Log\(features=2\), whose domain"
        with pytest.raises(NonFiniteLossError, match=message):
            fit(flow, x, epochs=1, validation=None, **QUIET)

    def test_a_weight_that_is_not_finite_is_named(self):
        flow = small()
        with torch.no_grad():
            flow.transform[2].bias[0] = math.nan
        with pytest.raises(NonFiniteLossError, match=r"parameter transform.transforms.2.bias"):
            fit(flow, rows(), epochs=1, **QUIET)

    def test_bad_rows_of_a_mapped_file_are_named(self, tmp_path):
        x = rows(100).numpy()
        x[33] = np.nan
        np.save(tmp_path / "x.npy", x)
        flow = small()
        flow.initialize(rows())
        with pytest.raises(NonFiniteLossError, match=r"x holds NaN .* row\(s\) \[33\]"):
            fit(flow, tmp_path / "x.npy", epochs=1, validation=None, **QUIET)

    def test_the_objective_is_named_where_the_flow_is_finite(self):
        class Fails(Objective):
            def forward(self, flow, batch):
                return Loss(MaximumLikelihood()(flow, batch).value * math.inf, {})

        with pytest.raises(NonFiniteLossError, match="finite, so the objective is at fault"):
            fit(small(), rows(), Fails(), epochs=1, **QUIET)

    def test_the_base_is_named_where_its_density_is_not_finite(self):
        flow = Flow(LULinear(2), Uniform(2))
        with pytest.raises(NonFiniteLossError, match="the base Uniform is at fault"):
            fit(flow, rows(), epochs=1, **QUIET)

    def test_the_best_weights_survive_it(self):
        flow, kept = small(), []

        class Fails(Objective):
            def forward(self, flow, batch):
                loss = MaximumLikelihood()(flow, batch)
                return Loss(loss.value * (math.nan if len(kept) > 1 and flow.training else 1), {})

        with pytest.raises(NonFiniteLossError, match="at step 7"):
            fit(
                flow,
                rows().exp(),
                Fails(),
                epochs=9,
                ema=None,
                lr=1e-2,
                callbacks=[lambda f, h: kept.append(weights(f)) and None],
                **QUIET,
            )
        assert torch.isfinite(weights(flow)).all()
        assert any(torch.equal(weights(flow), w) for w in kept)


@pytest.mark.slow
def test_two_processes_reach_the_optimum_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import gc, sys, warnings
            import torch
            from lightning_fabric import Fabric
            from flowkit import Flow, MaximumLikelihood, coupling_flow, fit
            from flowkit.bases import StandardNormal
            from flowkit.errors import NonFiniteLossError, ProcessError
            from flowkit.transforms import Compose, LULinear
            from flowkit.stochastic import Dequantize

            # What one fit leaves must not wait for a collection that comes when it likes.
            gc.disable()
            torch.set_num_threads(1)
            torch.manual_seed(0)
            world = int(sys.argv[1])
            kwargs = {"strategy": "ddp"} if world > 1 else {}
            fabric = Fabric(accelerator="cpu", devices=world, **kwargs)
            x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
            x[:, 1] += x[:, 0] ** 2
            flow = coupling_flow(2, layers=2, hidden=(16,)).double()
            h = fit(flow, x, epochs=4, batch_size=100, fabric=fabric, progress=False,
                    checkpoint=sys.argv[2] + ".ckpt")
            # Both go back to the same weights, and lower the rate from the same step on.
            falling = coupling_flow(2, layers=1, hidden=(8,), scalar="affine").double()
            f = fit(falling, x, steps=1000, batch_size=100, lr=0.05, patience=1, fabric=fabric,
                    progress=False)
            # The loss of noisy rows decides alike in both.
            noisy = Flow(Compose(Dequantize(2), LULinear(2)), StandardNormal(2))
            stop = [lambda f, h: fabric.global_rank == world - 1 and len(h.epochs) == 3]
            n = fit(noisy, x.round(), epochs=9, batch_size=100, fabric=fabric, progress=False,
                    callbacks=stop)
            x = x.double()
            x[1234] = -1e300
            try:
                fit(flow, x, validation=None, epochs=1, fabric=fabric, progress=False)
                error = ""
            except NonFiniteLossError as caught:
                error = str(caught)

            def fail(*_):
                if fabric.global_rank == world - 1:
                    raise KeyError("here only")

            class Failing(MaximumLikelihood):
                def forward(self, flow, batch):
                    return fail() or super().forward(flow, batch)

            kinds = []
            for kwargs in ({"callbacks": [fail]}, {"objective": Failing()}):
                try:
                    fit(flow, x[:1000], epochs=1, fabric=fabric, progress=False, **kwargs)
                except (KeyError, ProcessError) as caught:
                    kinds.append(type(caught).__name__)
            torch.save(
                {"w": flow.state_dict(), "v": h.validation, "t": h.train, "terms": h.terms,
                 "noisy": [n.train, n.validation, n.stopped], "error": error,
                 "fallen": [f.annealed, f.steps[-1], f.best_step], "loss": f.validation,
                 "kinds": kinds},
                sys.argv[2] + str(fabric.global_rank),
            )
            """
        )
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone, shared = tmp_path / "one.pt", tmp_path / "two.pt"
    subprocess.run([sys.executable, script, "1", alone], check=True, env=env, timeout=300)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    launcher += ["--master_addr=127.0.0.1", "--master_port=29511"]
    subprocess.run([*launcher, script, "2", shared], check=True, env=env, timeout=300)
    one, two, other = (torch.load(f"{p}{k}") for p, k in ((alone, 0), (shared, 0), (shared, 1)))
    # Each step sees the same rows, so only the order of sums differs.
    for name, value in one["w"].items():
        torch.testing.assert_close(two["w"][name], value, atol=1e-7, rtol=1e-6)
    assert two["v"] == pytest.approx(one["v"], abs=1e-8)
    assert two["t"] == pytest.approx(one["t"], abs=1e-8)
    # Both processes record the same, stop together, and raise together.
    names = ("v", "t", "terms", "noisy", "fallen", "loss")
    assert all(two[name] == other[name] for name in names)
    assert two["fallen"] == one["fallen"]
    assert two["fallen"][0] is not None
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert two["noisy"][-1] == "callback"
    assert len(two["noisy"][0]) == 3
    errors = sorted([two["error"], other["error"]], key=len)
    assert any("in another process" in text for text in errors)
    assert any("[1234]" in text for text in errors)
    assert one["kinds"] == other["kinds"] == ["KeyError"] * 2
    assert two["kinds"] == ["ProcessError"] * 2


def test_flows_can_be_copied_after_a_fit():
    flow = small()
    fit(flow, rows(), epochs=1, **QUIET)
    assert torch.equal(copy.deepcopy(flow).log_prob(rows()), flow.log_prob(rows()))


def test_repeated_splits_are_fits_of_new_flows_to_random_parts():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(7))
    seen = []

    def build():
        seen.append(coupling_flow(2, layers=1, hidden=(4,)))
        return seen[-1]

    options = {"epochs": 4, "progress": False, "compile": False}
    found = repeated_splits(build, x, splits=3, validation=0.3, seed=5, **options)
    assert len(set(map(id, seen))) == 3
    for i, score in enumerate(found.scores):
        torch.manual_seed(5 + i)
        flow = coupling_flow(2, layers=1, hidden=(4,))
        history = fit(flow, x, validation=0.3, seed=5 + i, **options)
        assert history.best == score
    assert found.mean == pytest.approx(sum(found.scores) / 3)
    assert found.error > 0
    assert found.steps == max(1, sorted(h.best_step for h in found.histories)[1])
    for wrong, message in (
        ({"splits": 1}, "splits as an integer >= 2, got 1"),
        ({"validation": 1.0}, "validation as a finite number > 0 and < 1, got 1.0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            repeated_splits(build, x, **wrong)


@pytest.mark.parametrize("kind", ["tensors", "mapped", "dataset"])
def test_groups_stay_together(kind, tmp_path):
    group = np.repeat(np.arange(12), 5)[np.random.default_rng(0).permutation(60)].astype("float32")
    x = np.random.default_rng(1).normal(size=(60, 1)).astype("float32")
    x[:, 0] += 100 * group
    if kind == "tensors":
        data = {"x": x, "group": group}
    elif kind == "mapped":
        np.save(tmp_path / "x.npy", x)
        data = {"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "group": group}
    else:

        class GroupedConditioner(Dataset):
            def __len__(self):
                return 60

            def __getitem__(self, i):
                return {"x": torch.from_numpy(x[i]), "group": torch.tensor(group[i])}

        data = GroupedConditioner()
    seen = []

    class Watched(MaximumLikelihood):
        compiles = False

        def forward(self, flow, batch):
            seen.append((self.training, (batch["x"][:, 0] / 100).round().long().bincount()))
            return super().forward(flow, batch)

    fit(elementwise_flow(1), data, Watched(), validation=0.25, batch_size=15, epochs=2)
    assert all(set(counts.tolist()) <= {0, 5} for _, counts in seen)
    trained = sum(counts.sum() for training, counts in seen if training)
    assert trained == 2 * 45
    held = {
        i for training, counts in seen if not training for i in counts.nonzero()[:, 0].tolist()
    }
    assert len(held) == 3


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (np.zeros(20), "at least 2 groups, got 1"),
        (np.full(20, np.nan), "group expected a name for every row"),
        (np.zeros((20, 2)), "group expected one name per row, got an array of \\(20, 2\\)"),
    ],
)
def test_what_makes_no_groups_is_named(group, message):
    x = np.random.default_rng(0).normal(size=(20, 1))
    with pytest.raises(DataError, match=message):
        fit(elementwise_flow(1), {"x": x, "group": group}, epochs=1)


def test_means_over_groups_of_any_size_are_unbiased():
    group = np.repeat(np.arange(21), [30] + [1] * 20)
    x = np.where(group == 0, 5.0, 0.0)[:, None] + np.linspace(0, 1e-3, 50)[:, None]
    weight = np.linspace(1, 2, 50)
    seen = []

    class Mean(Objective):
        def forward(self, flow, batch):
            value = (batch["weight"] * batch["x"][:, 0]).mean()
            if self.training:
                seen.append(value.item())
            return Loss(value + 0 * next(flow.parameters()).sum(), {})

    data = {"x": x, "group": group, "weight": weight}
    fit(elementwise_flow(1).double(), data, Mean(), validation=None, batch_size=10, epochs=400)
    exact = (x[:, 0] * weight).sum() / weight.sum()
    # Four of 21 groups a step, five steps an epoch: one group is left out of each.
    assert abs(np.mean(seen) - exact) < 4 * np.std(seen) / math.sqrt(len(seen))


def test_groups_may_be_named_by_large_numbers_or_texts():
    x = np.random.default_rng(0).normal(size=(40, 1))
    sizes = []

    class Watched(MaximumLikelihood):
        def forward(self, flow, batch):
            sizes.append(len(batch["group"].unique()))
            return super().forward(flow, batch)

    for names in (10**8 + np.repeat(np.arange(20), 2), np.repeat(list("abcdefghijklmnopqrst"), 2)):
        data = {"x": x, "group": names}
        fit(elementwise_flow(1), data, Watched(), validation=None, batch_size=40, epochs=1)
    assert sizes == [20, 20]


@pytest.mark.parametrize("epochs", [1, 5])
def test_averages_follow_what_callbacks_set_at_once(epochs):
    flow = elementwise_flow(1, start=None)
    objective = MaximumLikelihood()
    objective.strength = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def set_it(flow, history):
        objective.strength.fill_(1.0)

    x = np.random.default_rng(0).normal(size=(40, 1))
    options = {"epochs": epochs, "batch_size": 40, "ema": 0.99, "callbacks": [set_it]}
    fit(flow, x, objective, validation=None, **options)
    assert objective.strength.item() == 1.0
