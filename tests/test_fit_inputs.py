"""Inputs of fit that would be ignored or misread: each an error or one warning with a remedy."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flowkit import (
    DenoisingScoreMatching,
    Flow,
    ForceMatching,
    MaximumLikelihood,
    ReverseKL,
    SlicedScoreMatching,
    WeightedSum,
    box_flow,
    coupling_flow,
    elementwise_flow,
    fit,
    smooth_flow,
)
from flowkit.bases import StandardNormal, Uniform
from flowkit.data.files import FileArray, in_file
from flowkit.data.inspection import repeated_values
from flowkit.errors import ArgumentError, DataError, NonFiniteLossError
from flowkit.estimators import FlowDensity
from flowkit.scalar import Affine
from flowkit.stochastic import Dequantize
from flowkit.transforms import CircularShift, Compose, LULinear, MaskedAutoregressive, Standardize

QUIET = {"progress": False, "batch_size": 50, "epochs": 1}


def rows(n=200, features=2, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def small(features=2, **options):
    torch.manual_seed(0)
    return coupling_flow(features, layers=2, hidden=(8,), **options)


def weights(flow):
    return torch.cat([p.detach().flatten().clone() for p in flow.parameters()])


class Items(Dataset):
    """A Dataset of dicts."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["x"])

    def __getitem__(self, i):
        return {name: value[i] for name, value in self.columns.items()}


class TestNames:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("weights", "weight"), ("Context", "context"), ("sample_weight", "weight"),
         ("groups", "group"), ("contxt", "context")],
    )  # fmt: skip
    def test_an_unknown_name_is_an_error_that_names_the_nearest(self, name, nearest):
        message = f"'{name}', which nothing reads.*MaximumLikelihood reads.*mean '{nearest}'"
        for data in ({"x": rows(), name: torch.ones(200)}, Items(x=rows(), **{name: rows()})):
            with pytest.raises(DataError, match=message):
                fit(small(), data, **QUIET)

    def test_names_of_the_validation_data_are_checked_too(self):
        held = {"x": rows(30), "weights": torch.ones(30)}
        with pytest.raises(DataError, match="the validation data hold 'weights'"):
            fit(small(), rows(), validation=held, **QUIET)

    def test_what_another_objective_would_read_is_one_warning(self):
        data = {"x": rows(), "force": -rows()}
        fit(small(), data, ForceMatching(), **QUIET)
        fit(
            small(), data, WeightedSum((1.0, MaximumLikelihood()), (1.0, ForceMatching())), **QUIET
        )
        for objective in (
            None,
            DenoisingScoreMatching(),
            ForceMatching(lambda x: x.square().sum(-1) / 2),
        ):
            with pytest.warns(UserWarning, match="'force', which .*; remedy: ForceMatching, or"):
                fit(small(), data, objective, **QUIET)
        with pytest.raises(DataError, match="'forces', which nothing reads.*mean 'force'"):
            fit(small(), {"x": rows(), "forces": -rows()}, ForceMatching(), **QUIET)

    def test_weights_under_their_right_name_are_read(self):
        x = torch.cat([rows(100), rows(100) + 10])
        weight = torch.cat([torch.ones(100), torch.zeros(100)])
        flow = Flow(Compose(Standardize(2), LULinear(2)), StandardNormal(2))
        fit(flow, {"x": x, "weight": weight}, validation=None, **{**QUIET, "epochs": 20})
        mean = flow.sample(4000, generator=torch.Generator().manual_seed(0)).mean(0)
        assert mean.abs().max() < 0.5  # without weights it is 5

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"weight": torch.ones(200)}, "weights, which ReverseKL does not read here; remedy"),
            ({}, "x, which ReverseKL does not read: only a flow that is new"),
        ],
    )
    def test_a_known_name_that_nothing_reads_here_is_one_warning(self, data, message):
        flow = small()
        flow.initialize(rows())
        energy = ReverseKL(lambda x: x.square().sum(-1), samples=2)
        data = {"x": rows(), **data}
        with pytest.warns(UserWarning, match=message) as caught:
            fit(flow, data, energy, **QUIET)
        assert len(caught) == 1

    def test_an_objective_that_does_not_say_what_it_reads_is_watched_for_an_epoch(self):
        class Unweighted(MaximumLikelihood):
            def forward(self, flow, batch):
                return super().forward(flow, {"x": batch["x"]})

        class Own(MaximumLikelihood):
            def forward(self, flow, batch):
                assert batch["temperature"].shape == batch["x"].shape[:1]
                return super().forward(flow, batch)

        assert Unweighted.reads is None
        data = {"x": rows(), "weight": torch.ones(200)}
        with pytest.warns(UserWarning, match="nothing has read 'weight' of the data so far"):
            fit(small(), data, Unweighted(), **{**QUIET, "epochs": 2})
        with pytest.warns(UserWarning, match="nothing has read 'temperature' .* leave it out"):
            fit(small(), {"x": rows(), "temperature": torch.ones(200)}, Unweighted(), **QUIET)
        fit(small(), {"x": rows(), "temperature": torch.ones(200)}, Own(), **QUIET)
        data = {"x": rows(), "temperature": torch.ones(200), "weights": torch.ones(200)}
        with pytest.warns(UserWarning, match="nothing has read 'weights'.*mean 'weight'"):
            fit(small(), data, Own(), **QUIET)

    def test_validation_data_without_training_data_are_an_error(self):
        energy = ReverseKL(lambda x: x.square().sum(-1), samples=2)
        with pytest.raises(DataError, match="validation data beside training data"):
            fit(small(), None, energy, validation=rows(), steps=1, progress=False)


class TestLostDigits:
    seconds = np.column_stack([1.7e9 + np.arange(200.0), rows().numpy()[:, 0]])

    @pytest.mark.parametrize(
        "kind", ["array", "tensor", "frame", "file", "map", "dataset", "integers", "validation"]
    )
    def test_every_container_gets_the_warning(self, tmp_path, kind):
        x = self.seconds
        np.save(tmp_path / "x.npy", x)
        data = {
            "array": x,
            "tensor": torch.tensor(x),
            "frame": pandas.DataFrame(x, columns=["time", "value"]),
            "file": tmp_path / "x.npy",
            "map": {"x": np.load(tmp_path / "x.npy", mmap_mode="r")},
            "dataset": TensorDataset(torch.tensor(x)),
            "integers": torch.tensor(x).round().long() * torch.tensor([1, 0]) + torch.arange(2)
            + (torch.arange(200)[:, None] * torch.tensor([0, 7])),
            "validation": rows(),
        }[kind]  # fmt: skip
        column = "'time'" if kind == "frame" else "0"
        options = {**QUIET, **({"validation": x} if kind == "validation" else {})}
        message = rf"x: column\(s\) \[{column}\] vary by less than .*remedy: subtract an offset"
        with pytest.warns(UserWarning, match=message) as caught:
            fit(small(), data, **options)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        fit(small().double(), data, **options)  # which keeps them

    def test_contexts_are_looked_at_and_weights_are_not(self):
        data = {"x": rows(), "weight": 1e9 + np.arange(200.0)}
        fit(small(), data, **QUIET)
        context = 1e9 + np.arange(200.0)[:, None]
        with pytest.warns(UserWarning, match=r"context: column\(s\) \[0\]"):
            fit(small(context=1), {**data, "context": context}, **QUIET)


class TestTies:
    def test_integers_and_rounded_columns_are_one_warning(self):
        counts = torch.poisson(torch.full((200, 2), 3.0))
        for data in (counts, counts.long(), counts.numpy(), TensorDataset(counts)):
            with pytest.warns(UserWarning, match=r"x: column\(s\) \[0, 1\].*Dequantize") as caught:
                fit(small(), data, **QUIET)
            assert len(caught) == 1
        frame = pandas.DataFrame({"a": rows()[:, 0], "count": counts[:, 0]})
        with pytest.warns(UserWarning, match=r"x: column\(s\) \['count'\] repeat"):
            fit(small(), frame, **QUIET)

    def test_the_remedies_silence_it(self):
        counts = torch.poisson(torch.full((200, 2), 3.0))
        flow = Flow(Compose(Dequantize(2), LULinear(2)), StandardNormal(2))
        fit(flow, counts, **QUIET)
        options = {"options": {"layers": 2, "hidden": (8,)}, "epochs": 1, "random_state": 0}
        options["recipe"] = "coupling_flow"
        FlowDensity(dequantize=1, **options).fit(counts.numpy())
        with pytest.warns(UserWarning, match=r"FlowDensity\(dequantize=width\)"):
            FlowDensity(**options).fit(counts.numpy())
        with pytest.warns(UserWarning, match=r"column\(s\) \[1\] repeat"):
            FlowDensity(dequantize=[1, 0], **options).fit(counts.numpy())

    def test_objectives_that_do_not_diverge_there_are_not_warned_of(self):
        counts = torch.poisson(torch.full((200, 2), 3.0))
        fit(small(), counts, DenoisingScoreMatching(noise=0.5), **QUIET)
        with pytest.warns(UserWarning, match="repeat values"):
            fit(small(), counts, SlicedScoreMatching(slices=None), **QUIET)
        fit(small(context=1), {"x": rows(), "context": counts[:, :1]}, **QUIET)

    def test_a_column_is_judged_by_how_much_repeats(self):
        x, index = rows(1000, 1).double(), torch.randint(0, 1000, (1000,))
        for fine in (x, x.float(), (1000 * x).round() / 1000, x[index], x.expand(1000, 2)[index]):
            assert repeated_values(fine) == []
        assert repeated_values(torch.arange(1000.0)[:, None]) == []
        seconds = torch.stack([1.7e9 + torch.arange(1000.0).double(), x[:, 0]], 1)
        assert repeated_values(seconds[index]) == []
        for tied in (x.round(), (10 * x).round() / 10, x.relu(), (x > 0).double()):
            assert repeated_values(tied) == [0]
        assert repeated_values(torch.cat([x, x.clamp(max=0.5)], 1)) == [1]
        assert repeated_values(torch.randint(0, 2, (1000, 2))) == [0, 1]


class TestCircles:
    degrees = 180 + 20 * rows(400, 1)

    def test_degrees_on_a_circle_of_two_pi_are_one_warning(self):
        turns = float(self.degrees.max() - self.degrees.min()) / (2 * math.pi)
        message = rf"circular column\(s\) \[0\] span many periods \(the first {turns:.0f} periods"
        flows = (
            smooth_flow(1, circular=True, layers=1),
            Flow(CircularShift(1), Uniform(1, lower=-math.pi, upper=math.pi)),
        )
        for flow in flows:
            with pytest.warns(UserWarning, match=message + r".*lower=0, upper=360") as caught:
                fit(flow, self.degrees, **QUIET)
            assert len(caught) == 1

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_few_degrees_far_from_the_circle_are_one_warning(self, sign):
        # 10 degrees are 1.6 turns, but 175 degrees are 27 turns away.
        few = sign * torch.linspace(175, 185, 100)[:, None]
        with pytest.warns(UserWarning, match="many periods away .the first 29 periods") as caught:
            fit(smooth_flow(1, circular=True, hidden=(8,)), few, **QUIET)
        assert len(caught) == 1

    def test_bounds_in_degrees_or_some_turns_are_none(self):
        torch.manual_seed(0)
        fit(smooth_flow(1, circular=True, lower=0, upper=360, layers=1), self.degrees, **QUIET)
        fit(smooth_flow(1, circular=True, layers=1), self.degrees / 10, **QUIET)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def embedded(make):
    torch.manual_seed(0)
    net = make()
    layers = Compose(Standardize(2), MaskedAutoregressive(2, Affine(), context=3))
    return Flow(layers, StandardNormal(2), embedding=net)


class TestContexts:
    @pytest.mark.parametrize("kind", ["tensor", "file", "dataset"])
    def test_images_are_contexts_where_an_embedding_reads_them(self, tmp_path, kind):
        x, image = rows(), torch.randn(200, 1, 8, 8)
        x[:, 0] += 3 * image.mean((1, 2, 3)) / image.mean((1, 2, 3)).std()
        np.save(tmp_path / "c.npy", image.numpy())
        data = {"x": x, "context": tmp_path / "c.npy" if kind == "file" else image}
        flow = embedded(convolutional)
        data = Items(**data) if kind == "dataset" else data
        before = weights(flow.embedding)
        fit(flow, data, validation=data if kind == "tensor" else 0.1, **{**QUIET, "epochs": 2})
        assert (weights(flow.embedding) - before).abs().max() > 0
        assert flow.log_prob(x, image).shape == (200,)

    def test_labels_reach_an_embedding_as_integers(self, tmp_path):
        label = torch.arange(200) % 5
        x = rows() + label[:, None].float()
        np.save(tmp_path / "label.npy", label.numpy().astype(np.uint8))
        for given in (label, label.int(), label.numpy(), tmp_path / "label.npy"):
            flow = embedded(lambda: nn.Embedding(5, 3))
            fit(flow, {"x": x, "context": given}, **QUIET)
            if given is label:
                expected = weights(flow)
            assert torch.equal(weights(flow), expected)

    @pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.bool])
    def test_integers_and_booleans_are_numbers_elsewhere(self, dtype):
        label = (torch.arange(200) % 2)[:, None]
        pairs = (lambda: small(context=1), lambda: embedded(lambda: nn.Linear(1, 3)))
        for make in pairs:
            flow, expected = make(), make()
            fit(flow, {"x": rows(), "context": label.to(dtype)}, **QUIET)
            fit(expected, {"x": rows(), "context": label.float()}, **QUIET)
            assert torch.equal(weights(flow), weights(expected))

    @pytest.mark.parametrize(
        ("size", "context", "message"),
        [
            (1, rows()[:, 0], r"\(samples, 1\), got \(200,\); remedy: context.reshape\(-1, 1\)"),
            (3, rows(), r"\(samples, 3\), got \(200, 2\); remedy: a flow with context=2"),
            (4, rows(200, 4).reshape(200, 2, 2), r"remedy: context.flatten\(1\)"),
            (3, rows(200, 4).reshape(200, 2, 2), r"embedding=net\) with a network"),
        ],
    )
    def test_the_remedy_for_a_context_of_another_shape_is_true(self, size, context, message):
        with pytest.raises(DataError, match=message):
            fit(small(context=size), {"x": rows(), "context": context}, **QUIET)


class TestFilesThatChange:
    def save(self, path, n=300):
        np.save(path, rows(n).numpy())
        return path

    @pytest.mark.parametrize("kind", ["path", "map"])
    @pytest.mark.parametrize("n", [10, 300], ids=["shorter", "rewritten"])
    def test_a_file_that_a_callback_writes_over_is_an_error(self, tmp_path, kind, n):
        path = self.save(tmp_path / "x.npy")
        data = path if kind == "path" else np.load(path, mmap_mode="r")
        write = [lambda flow, history: self.save(path, n) and None]
        with pytest.raises(DataError, match=r"x.npy changed while it was read.*remedy: write to"):
            fit(small(), data, callbacks=write, **{**QUIET, "epochs": 3})

    def test_a_new_file_moved_to_its_place_is_none(self, tmp_path):
        path = self.save(tmp_path / "x.npy")
        other, flow, expected = tmp_path / "y.npy", small(), small()

        def move(flow, history):
            self.save(other, 20).replace(path)

        data = np.load(path, mmap_mode="r")
        options = {**QUIET, "epochs": 3}
        fit(expected, np.array(data), **options)
        fit(flow, path, callbacks=[move], **options)
        assert torch.equal(weights(flow), weights(expected))
        # The map still is of the older file, which has no name any more.
        assert isinstance(in_file(data), np.memmap)
        again = small()
        fit(again, data, **options)
        assert torch.equal(weights(again), weights(expected))

    def test_a_copy_on_write_map_of_a_file_that_became_shorter_is_an_error(self, tmp_path):
        path = self.save(tmp_path / "x.npy")
        data = np.load(path, mmap_mode="c")
        with pytest.raises(DataError, match="file of a memory map became shorter"):
            fit(small(), data, callbacks=[lambda *_: self.save(path, 10) and None],
                **{**QUIET, "epochs": 3})  # fmt: skip

    @pytest.mark.parametrize(
        "view",
        [
            lambda a: a,
            lambda a: a[3:],
            lambda a: a[::-2],
            lambda a: a[:, 1:],
            lambda a: a[:, ::-2],
            lambda a: a[:, 0],
            lambda a: a[:, None, :1],
            lambda a: a.reshape(-1, 2, 2),
            lambda a: a.T,
            lambda a: np.broadcast_to(a[:1], (5, 4), subok=True),
        ],
        ids=range(10),
    )
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["<f8", ">f4", "u1"])
    def test_every_view_of_a_map_is_read_from_its_file(self, tmp_path, view, order, dtype):
        values = np.asarray(np.random.default_rng(0).integers(0, 200, (600, 4)), dtype, order)
        np.save(tmp_path / "x.npy", values)
        mapped = view(np.load(tmp_path / "x.npy", mmap_mode="r"))
        array = in_file(mapped)
        assert isinstance(array, FileArray)
        assert len(array) == len(mapped)
        for index in (np.arange(len(mapped)), np.arange(0, len(mapped), 3), np.arange(2)):
            got = array.read(index)
            assert got.dtype.isnative
            assert np.array_equal(got, np.asarray(mapped)[index])


class TestValidationThatIsNotFinite:
    def test_a_row_outside_a_box_is_named_with_the_layer(self):
        x = torch.rand(300, 1)
        held = torch.cat([x[:50], torch.tensor([[1.0001]])])
        message = r"validation loss became inf after step \d+; row\(s\) \[50\] of the validation "
        message += (
            r"data.*Uniform.*domain of number 0, Rescale\(features=1\); remedy: leave these rows"
        )
        flow = box_flow(1, lower=0.0, upper=1.0, hidden=(8,))
        with pytest.raises(NonFiniteLossError, match=message):
            fit(flow, x, validation=held, **QUIET)
        assert torch.isfinite(flow.log_prob(x)).all()

    def test_rows_of_an_automatic_split_have_their_numbers_in_the_data(self):
        x = torch.rand(200, 1)
        places = []

        class Watch(MaximumLikelihood):
            def forward(self, flow, batch):
                places.append(batch["x"])
                return super().forward(flow, batch)

        flow = box_flow(1, lower=0.0, upper=1.0, hidden=(8,))
        fit(flow, x, Watch(), **QUIET)
        held = places[-1]
        row = int((x == held[3]).nonzero()[0, 0])
        x[row] = 1.5
        flow = box_flow(1, lower=0.0, upper=1.0, hidden=(8,))
        flow.initialize(torch.rand(9, 1))
        with pytest.raises(
            NonFiniteLossError, match=rf"validation.*row\(s\) \[{row}\] of the data"
        ):
            fit(flow, x, **QUIET)

    def test_the_average_is_what_is_looked_at(self):
        held = rows(10)
        held[7] = 1e30
        with pytest.raises(NonFiniteLossError, match=r"row\(s\) \[7\] of the validation data"):
            fit(small(), rows(), validation=held, ema=0.9, **QUIET)

    def test_validation_rows_that_are_far_are_named_in_later_blocks(self, monkeypatch):
        monkeypatch.setattr("flowkit.data.batches.SAMPLES_AT_ONCE", 16)
        held = rows(100)
        held[77] = 1e30
        with pytest.raises(NonFiniteLossError, match=r"row\(s\) \[77\] of the validation data"):
            fit(small(), rows(), validation=held, **QUIET)


class TestModes:
    def trained(self, **options):
        flow = small()
        fit(flow, rows(), **QUIET, **options)
        return weights(flow)

    def test_a_fit_without_gradients_around_it_trains_the_same(self):
        expected = self.trained()
        with torch.no_grad():
            assert torch.equal(self.trained(), expected)
        flow = small()
        with torch.inference_mode():
            fit(flow, rows() * 1, **QUIET)
        assert torch.equal(weights(flow), expected)
        assert not torch.is_inference(next(flow.parameters()))

    def test_a_flow_made_in_inference_mode_is_an_error(self):
        with torch.inference_mode():
            flow = small()
            with pytest.raises(ArgumentError, match="inference_mode.*remedy: make it outside"):
                fit(flow, rows(), **QUIET)

    def test_a_loader_is_an_error_that_names_its_dataset(self):
        loader = DataLoader(TensorDataset(rows()), batch_size=64)
        message = (
            "got a DataLoader; remedy: loader.dataset, here a TensorDataset, and batch_size=64"
        )
        with pytest.raises(DataError, match=message):
            fit(small(), loader, **QUIET)
        with pytest.raises(DataError, match=message):
            fit(small(), rows(), validation=loader, **QUIET)
        fit(small(), loader.dataset, **QUIET)


class Made(Dataset):
    """A Dataset of what a function makes of a number."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return self.make(i)


class Weighted(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor


class TestItemsOfDatasets:
    def test_named_tuples_are_read_by_their_names_as_dicts_are(self):
        x, weight = rows(60), torch.linspace(0, 1, 60)
        flows = [small(), small()]
        fit(flows[0], Made(lambda i: Weighted(x[i], weight[i])), **QUIET)
        fit(flows[1], Made(lambda i: {"x": x[i], "weight": weight[i]}), **QUIET)
        assert torch.equal(weights(flows[0]), weights(flows[1]))
        with pytest.raises(DataError, match="data expected a dict with x and context"):
            fit(small(context=1), Made(lambda i: Weighted(x[i], weight[i])), **QUIET)

    @pytest.mark.parametrize("odd", [0, 41])
    def test_items_of_different_names_are_refused(self, odd):
        x = rows(60)
        items = Made(lambda i: {"x": x[i]} if i == odd else {"x": x[i], "weight": 1.0})
        with pytest.raises(DataError, match="different names.*remedy: the same names"):
            fit(small(), items, **QUIET)

    @pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"x": x}])
    def test_masked_items_are_refused_and_not_read_behind_the_mask(self, wrap):
        x = np.ma.masked_array(rows(60).numpy(), mask=rows(60).numpy() > 1.5)
        with pytest.raises(DataError, match="masked arrays.*remedy"):
            fit(small(), Made(lambda i: wrap(x[i])), **QUIET)

    def test_complex_items_are_refused_and_not_cut_to_their_real_part(self):
        x = rows(60).to(torch.complex64)
        with pytest.raises(DataError, match="x expected real numbers, got torch.complex64"):
            fit(small(), TensorDataset(x), **QUIET)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.to("meta"), "on the device meta.*remedy"),
        (lambda x: x.to_sparse(), r"remedy: x.to_dense\(\)"),
        (
            lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
            r"dense tensor, got one of layout nested|layout torch.jagged",
        ),
    ],
)
def test_tensors_without_plain_numbers_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        fit(small(), make(rows()), **QUIET)


def test_ordinary_data_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(small(), rows().double(), **QUIET)
        fit(elementwise_flow(1), torch.rand(200, 1), **QUIET)
