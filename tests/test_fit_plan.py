"""What fit chooses: batches, length, records, the rate, annealing from the best weights."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from flowkit import Flow, MaximumLikelihood, coupling_flow, fit
from flowkit.bases import StandardNormal
from flowkit.errors import NonFiniteLossError
from flowkit.objectives import Loss
from flowkit.training.arguments import Options
from flowkit.training.length import length, samples_per_step
from flowkit.training.optimizers import WarmupStableDecay
from flowkit.transforms import LULinear

QUIET = {"progress": False, "batch_size": 50}
# Too fast to be good, so that annealing begins early; seven steps are an epoch.
EARLY = {"lr": 0.05, "patience": 2, "steps": 2000, **QUIET}


def rows(n=400, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)).exp()


def small():
    torch.manual_seed(0)
    return coupling_flow(2, layers=2, hidden=(8,), scalar="affine", start="standardize")


def weights(flow):
    return torch.cat([p.detach().flatten().clone() for p in flow.parameters()])


def options(**changes):
    given = dict.fromkeys(("epochs", "steps", "batch_size", "optimizer", "clip", "checkpoint"))
    given |= {"lr": 2e-3, "scheduler": "plateau", "patience": 16, "ema": "auto"}
    given |= {"compile": False, "seed": 0, "callbacks": ()}
    return Options(**{**given, **changes})


class TestRate:
    """WarmupStableDecay, which rises, stays and falls along lines."""

    def schedule(self, steps, lr=1.0):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, WarmupStableDecay(optimizer, steps)

    @pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 70, 499, 500, 3000])
    def test_it_goes_through_four_points(self, steps):
        optimizer, schedule = self.schedule(steps, lr=0.3)
        rates = []
        for _ in range(steps + 1):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        warm, falls = min(50, steps // 10), max(1, round(steps * 2 / 7))
        corners = [0, warm, max(warm, steps - falls), steps]
        heights = [1 / (warm + 1), 1, 1, 0]
        expected = 0.3 * np.interp(np.arange(steps + 1), corners, heights)
        if steps == falls:
            expected[0] = 0.3  # nothing but the fall
        assert rates == pytest.approx(expected, abs=1e-12)
        assert rates[-1] == 0.0

    def test_from_any_step_it_can_fall_to_zero(self):
        optimizer, schedule = self.schedule(1000)
        for _ in range(300):
            optimizer.step()
            schedule.step()
        schedule.anneal(40)
        rates = []
        for _ in range(45):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx([*(1 - np.arange(40) / 40), *[0] * 5])

    def test_every_group_keeps_its_own_rate(self):
        one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        groups = [{"params": [one], "lr": 1.0}, {"params": [two], "lr": 0.1}]
        optimizer = torch.optim.SGD(groups)
        schedule = WarmupStableDecay(optimizer, 70)
        for _ in range(60):
            optimizer.step()
            schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])


class TestChoices:
    def test_batches_are_the_power_of_two_nearest_to_a_twelfth_of_the_samples(self):
        powers = np.array([64, 128, 256, 512, 1024])
        for n in [1, 5, 100, 767, 1_100, 2_000, 3_000, 5_000, 9_000, 50_000, 10**8]:
            nearest = powers[np.abs(np.log2(powers) - math.log2(n / 12)).argmin()]
            assert samples_per_step(n) == nearest, n

    @pytest.mark.parametrize(("n", "size"), [(40, 40), (300, 64), (1500, 128), (3000, 256)])
    def test_a_fit_takes_them(self, n, size):
        seen = []

        class Watch(MaximumLikelihood):
            def forward(self, flow, batch):
                seen.append(len(batch["x"]))
                return super().forward(flow, batch)

        history = fit(small(), rows(n), Watch(), validation=None, steps=3, progress=False)
        assert seen == [size] * 3
        assert f"batches of {size}," in history.plan
        assert history.epochs[-1] == pytest.approx(3 / (n // size))

    @pytest.mark.parametrize("batch", [50, 64, 1024])
    @pytest.mark.parametrize("held", [10, 1000, 30_000, 10**6])
    def test_validation_takes_at_most_a_tenth_of_the_time(self, held, batch):
        """A sample costs a third as much to validate on as to train on."""
        interval = length(options(), 100, batch, held).interval

        def cheap(steps):
            return held / 3 <= 0.1 * steps * batch

        assert interval >= 25
        assert cheap(interval)
        assert interval == 25 or not cheap(interval - 1)

    def test_records_are_that_far_apart(self):
        history = fit(small(), rows(), validation=rows(3000, 1), steps=420, **QUIET)
        assert history.steps == [200, 400, 420]
        assert len(history.validation) == 3
        history = fit(small(), rows(), steps=60, **QUIET)
        assert history.steps == [25, 50, 60]
        assert history.epochs == pytest.approx([25 / 7, 50 / 7, 60 / 7])
        history = fit(small(), rows(), epochs=3, **QUIET)
        assert history.steps == [7, 14, 21]

    def test_the_longest_fit(self):
        assert length(options(), 4, 64, 100).total == 20_000
        for other in ({"patience": None}, {"scheduler": "cosine"}, {"scheduler": None}):
            totals = [length(options(**other), each, 64, 100).total for each in (4, 50, 300)]
            assert totals == [2_000, 5_000, 20_000]
        assert length(options(), 50, 64, None).total == 5_000
        assert length(options(epochs=3), 50, 64, 100)[:2] == (50, 150)
        assert length(options(steps=30), 50, 64, 100)[:2] == (25, 30)


class TestAnnealing:
    def test_it_begins_after_so_many_validations_and_takes_as_long_as_stated(self):
        for patience in (2, 5):
            history = fit(small(), rows(), **{**EARLY, "patience": patience, "lr": 0.02})
            losses = np.array([history.start, *history.validation])
            steps = np.array([0, *history.steps])
            before = losses[steps <= history.annealed]
            best = int(steps[before.argmin()])
            assert history.annealed == best + 25 * patience
            # No earlier wait was as long.
            gains = steps[:-1][np.flatnonzero(before[1:] < np.minimum.accumulate(before)[:-1]) + 1]
            assert max(np.diff([0, *gains]), default=0) <= 25 * patience
            assert history.steps[-1] == history.annealed + max(100, round(0.4 * best))
            assert history.stopped == "patience"
            falling = np.array(history.learning_rate)[np.array(history.steps) >= history.annealed]
            at = steps[steps >= history.annealed] - history.annealed
            assert falling[1:] == pytest.approx(0.02 * (1 - at[1:] / at[-1]), abs=1e-12)
            assert history.learning_rate[-1] == 0.0

    @pytest.mark.parametrize("ema", [0.99, None])
    def test_it_goes_back_to_the_best_weights_and_ends_with_them(self, ema):
        """From step 100 on the steps climb the loss."""
        flow, before, best = small(), {}, {}

        class Turns(MaximumLikelihood):
            def forward(self, flow, batch):
                loss = super().forward(flow, batch)
                if not self.training:
                    return loss
                before[len(before)] = weights(flow)
                return loss if len(before) <= 100 else Loss(-loss.value.clamp_max(50), {})

        def remember(flow, history):
            # The weights that would be left are not the present ones, where they are averaged.
            best[history.steps[-1]] = history.best_step

        options = {**EARLY, "lr": 0.01, "ema": ema, "callbacks": [remember]}
        held = rows(100, 1)
        history = fit(flow, rows(), Turns(), validation=held, **options)
        annealed, first = history.annealed, best[history.annealed]
        assert 50 <= first <= 125
        assert annealed == first + 50
        # Just before, the weights were far away, and the loss much worse.
        assert history.validation[history.steps.index(annealed)] > history.best + 0.1
        start, away = before[annealed], before[annealed - 1]
        if ema is None:
            assert torch.equal(start, before[first])
        assert (start - before[first]).norm() < 0.2 * (away - before[first]).norm()
        # Annealing climbs on, so nothing after it is better: the best are left.
        assert history.best_step == first
        assert -flow.log_prob(held).mean().item() == pytest.approx(history.best, abs=1e-5)
        assert torch.equal(weights(flow), start)

    def test_the_average_goes_back_too(self):
        """Steps climb the loss from step 100 on, and stand still from annealing on."""
        histories, steps = [], []

        class Turns(MaximumLikelihood):
            def forward(self, flow, batch):
                loss = super().forward(flow, batch)
                if not self.training:
                    return loss
                steps.append(0)
                if histories and histories[0].annealed is not None:
                    return Loss(0 * loss.value, {})
                return loss if len(steps) <= 100 else Loss(-loss.value.clamp_max(50), {})

        def remember(flow, history):
            histories[:] = [history]

        options = {**EARLY, "optimizer": lambda p: torch.optim.SGD(p, lr=0.05), "lr": 2e-3}
        held = rows(100, 1)
        history = fit(small(), rows(), Turns(), validation=held, callbacks=[remember], **options)
        place = history.steps.index(history.annealed)
        assert history.validation[place] > history.best + 0.05
        assert history.validation[place + 1 :] == pytest.approx([history.best] * 4, abs=1e-5)

    def test_a_start_at_the_truth_stays(self):
        x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
        flow = Flow(LULinear(2), StandardNormal(2))
        before = copy.deepcopy(flow.state_dict())
        history = fit(flow, x, validation=0.5, lr=3.0, patience=2, progress=False, batch_size=512)
        assert history.best_step == 0
        assert history.start == history.best < min(history.validation)
        assert (history.annealed, history.steps[-1]) == (50, 150)
        same = [torch.equal(v, before[k]) for k, v in flow.state_dict().items()]
        assert same.count(False) == 1  # the flag that it has seen data

    def test_without_a_plateau_the_rate_falls_over_the_last_two_sevenths(self):
        history = fit(small(), rows(), **{**EARLY, "patience": None, "steps": 175})
        assert history.annealed is None
        assert history.stopped == "steps"
        expected = np.interp(history.steps, [0, 17, 125, 175], [0, 0.05, 0.05, 0])
        assert history.learning_rate == pytest.approx(expected)

    def test_a_plateau_while_the_rate_falls_changes_nothing(self):
        """Weights that do not move have no better validation, but it is too late to anneal."""
        options = {**EARLY, "lr": 1e-12, "validation": rows(40, 9), "patience": 3}
        history = fit(small(), rows(), **{**options, "steps": 104})
        assert (history.annealed, history.stopped) == (None, "steps")
        history = fit(small(), rows(), **{**options, "steps": 106})
        assert (history.annealed, history.stopped) == (75, "patience")
        assert history.steps[-1] == 106  # not beyond what was asked for

    def test_it_comes_closer_to_the_optimum_than_the_constant_rate(self):
        x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        x = 1 + x @ torch.tensor([[2.0, 1.0], [0.0, 0.5]])
        # Validated on the same samples, where the best normal is known.
        exact = math.log(2 * math.pi) + 1 + 0.5 * torch.logdet(x.T.cov(correction=0)).item()
        gaps = []
        for scheduler in ("plateau", None):
            flow = Flow(LULinear(2), StandardNormal(2)).double()
            options = {"scheduler": scheduler, "ema": None, "lr": 0.05, "validation": x, **QUIET}
            gaps.append(fit(flow, x.double(), steps=4000, **options).best - exact)
        assert 0 <= gaps[0] < 0.2 * gaps[1]


class Noisy(Dataset):
    """Rows with noise that is drawn when they are read."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 1e-3 * torch.rand(2)


class TestGoingOn:
    """A fit that was broken off ends with the bits of the one that was not."""

    def data(self, kind, folder):
        if kind == "dataset":
            return Noisy(rows())
        if kind == "file":
            np.save(folder / "x.npy", rows().numpy())
            return folder / "x.npy"
        if kind == "groups":
            return {"x": rows(), "group": torch.arange(400) // 3}
        return rows()

    @pytest.mark.parametrize("kind", ["tensor", "file", "dataset", "groups"])
    def test_at_every_record_of_the_fit(self, kind, tmp_path):
        x, options = self.data(kind, tmp_path), {**EARLY, "batch_size": 40}
        whole = small()
        expected = fit(whole, x, **options)
        records = expected.steps.index(expected.annealed) + 1
        # In the middle of an epoch, before, at and after the record from which the rate falls.
        assert expected.steps[0] % 9
        assert expected.best_step > 0
        for stop in (1, records, records + 1):
            path = tmp_path / f"{stop}.ckpt"

            def until(flow, history, stop=stop):
                return len(history.steps) == stop

            broken = fit(small(), x, checkpoint=path, callbacks=[until], **options)
            assert broken.stopped == "callback"
            flow = small()
            history = fit(flow, x, checkpoint=path, **options)
            for name in ("steps", "train", "validation", "learning_rate", "annealed", "best_step"):
                assert getattr(history, name) == getattr(expected, name), (stop, name)
            assert torch.equal(weights(flow), weights(whole))

    def test_after_every_record_again(self, tmp_path):
        """Broken off by an error at each record, in turn."""
        whole, flow = small(), small()
        expected = fit(whole, rows(), **EARLY)

        class Interrupt(Exception):
            pass

        def interrupt(flow, history):
            if len(history.steps) not in seen:
                seen.add(len(history.steps))
                raise Interrupt

        seen = set()
        for _ in itertools.repeat(None, 99):
            try:
                flow = small()
                history = fit(
                    flow, rows(), checkpoint=tmp_path / "c", callbacks=[interrupt],
                    **EARLY,
                )  # fmt: skip
                break
            except Interrupt:
                pass
        assert len(seen) == len(expected.steps)
        assert history.validation == expected.validation
        assert torch.equal(weights(flow), weights(whole))


class Watched(MaximumLikelihood):
    """The likelihood, with another value at some of the validations."""

    def __init__(self, **values):
        super().__init__()
        self.values, self.seen = values, 0

    def forward(self, flow, batch):
        loss = super().forward(flow, batch)
        if self.training:
            return loss
        self.seen += 1
        return Loss(loss.value * self.values.get(f"at_{self.seen}", 1.0), {})


class TestStart:
    def test_one_that_is_not_finite_is_worse_than_anything(self):
        history = fit(small(), rows(), Watched(at_1=math.inf), epochs=2, lr=1e-2, **QUIET)
        assert history.start is None
        assert history.best == min(history.validation)
        assert history.best_step in history.steps

    def test_a_fit_that_fails_at_its_first_record_leaves_the_flow_as_it_was(self):
        def fail(flow, history):
            raise KeyError("here")

        for changes, error in (
            ({"objective": Watched(at_2=math.nan)}, NonFiniteLossError),
            ({"callbacks": [fail], "validation": None}, KeyError),
        ):
            flow = small()
            before = copy.deepcopy(flow.state_dict())
            with pytest.raises(error):
                fit(flow, rows(), steps=60, **changes, **QUIET)
            assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())

    def test_one_that_fails_later_leaves_the_best(self):
        flow, expected = small(), small()
        options = {"lr": 1e-2, "steps": 200, **QUIET}
        kept = fit(expected, rows(), callbacks=[lambda f, h: True], **options)
        assert kept.best_step == 25
        with pytest.raises(NonFiniteLossError, match="after step 50"):
            fit(flow, rows(), Watched(at_3=math.nan), **options)
        assert torch.equal(weights(flow), weights(expected))
