"""Every option of fit changes what it should, in the stated direction, or nothing."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from flowkit import Flow, MaximumLikelihood, ReverseKL, coupling_flow, fit
from flowkit.bases import StandardNormal
from flowkit.errors import ArgumentError
from flowkit.transforms import Compose, DenseLinear, LULinear, Standardize

QUIET = {"progress": False, "batch_size": 50}


def rows(n=200, features=2, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def small(features=2, **options):
    torch.manual_seed(0)
    return coupling_flow(features, layers=2, hidden=(8,), start="standardize", **options)


def weights(flow):
    return torch.cat([p.detach().flatten().clone() for p in flow.parameters()])


def recording(flow, seen, lr=3e-2):
    """An optimiser that writes down the weights of the flow after each of its steps."""

    def build(parameters):
        optimizer = torch.optim.Adam(parameters, lr=lr)
        optimizer.register_step_post_hook(lambda *_: seen.append(weights(flow)))
        return optimizer

    return build


def average_of(seen, decay):
    """The definition, step by step, in float64."""
    average = seen[0].double()
    for n, value in enumerate(seen[1:], start=1):
        keep = min(decay, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * value.double()
    return average


class TestMovingAverage:
    @pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
    @pytest.mark.parametrize("kind", ["likelihood", "reverse KL"])
    def test_the_weights_are_the_average_to_rounding(self, decay, kind):
        flow, seen = small(), []
        energy = ReverseKL(lambda x: 2 * (x - 1).square().sum(-1), samples=32)
        data, objective = (rows(), None) if kind == "likelihood" else (None, energy)
        options = {"steps": 40, "validation": None, "scheduler": None, **QUIET}
        fit(flow, data, objective, ema=decay, optimizer=recording(flow, seen), **options)
        assert len(seen) == 40
        torch.testing.assert_close(
            weights(flow).double(), average_of(seen, decay), rtol=1e-6, atol=1e-7
        )
        # The bound is far below what an average of another decay would move.
        for other in {0.5, 0.9, 0.999, 0.0} - {decay}:
            if min(decay, other) < 41 / 50:  # the warm-up has not come to these yet
                assert (average_of(seen, other) - average_of(seen, decay)).abs().max() > 1e-3

    def test_it_is_the_average_that_is_validated_and_restored(self):
        flow, seen, held = small(), [], rows(100, seed=9).exp()
        history = fit(
            flow,
            rows().exp(),
            validation=held,
            epochs=5,
            scheduler=None,
            ema=0.9,
            optimizer=recording(flow, seen),
            **QUIET,
        )
        other = copy.deepcopy(flow)
        assert history.best_step > 0
        for step, value in zip(history.steps, history.validation, strict=True):
            nn.utils.vector_to_parameters(average_of(seen[:step], 0.9).float(), other.parameters())
            loss = -other.log_prob(held).mean().item()
            assert value == pytest.approx(loss, rel=1e-5), step
            if step == history.best_step:
                torch.testing.assert_close(weights(flow), weights(other), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
    def test_history_and_weights_differ_from_those_without(self, decay):
        options = {"epochs": 4, "lr": 3e-2, "scheduler": None, **QUIET}
        flow, plain, x = small(), small(), rows().exp()
        with_average = fit(flow, x, ema=decay, **options)
        without = fit(plain, x, ema=None, **options)
        assert with_average.train == without.train  # the steps are those without an average
        difference = np.subtract(with_average.validation, without.validation)
        assert np.abs(difference).max() > 1e-3
        assert (weights(flow) - weights(plain)).abs().max() > 1e-3

    def test_a_longer_memory_lags_more_behind_the_last_weights(self):
        distance = []
        for decay in (0.5, 0.9, 0.999):
            flow, seen = Flow(DenseLinear(2), StandardNormal(2)), []
            options = {"steps": 60, "validation": None, "scheduler": None, **QUIET}
            fit(flow, 3 * rows(), ema=decay, optimizer=recording(flow, seen), **options)
            distance.append((weights(flow) - seen[-1]).norm().item())
        assert distance == sorted(distance)

    def test_buffers_and_untrained_parameters_are_those_of_the_last_step(self):
        class Counting(MaximumLikelihood):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.fixed = nn.Parameter(torch.zeros(()), requires_grad=False)

            def forward(self, flow, batch):
                if self.training:
                    self.calls += 1
                    self.fixed.fill_(float(self.calls))
                return super().forward(flow, batch)

        objective = Counting()
        fit(small(), rows(), objective, steps=7, validation=None, ema=0.99, **QUIET)
        assert objective.calls == objective.fixed == 7

    def test_parameters_of_the_objective_are_averaged_too(self):
        class Shifted(MaximumLikelihood):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.zeros(2))

            def forward(self, flow, batch):
                return super().forward(flow, {**batch, "x": batch["x"] - self.shift})

        flow, objective, seen = Flow(LULinear(2), StandardNormal(2)), Shifted(), []
        options = {"steps": 20, "validation": None, "scheduler": None, **QUIET}
        optimizer = recording(objective, seen)
        fit(flow, 2 + rows(), objective, ema=0.9, optimizer=optimizer, **options)
        torch.testing.assert_close(
            objective.shift.double(), average_of(seen, 0.9), rtol=1e-6, atol=1e-7
        )

    def test_it_is_on_by_default(self):
        found = {}
        for ema in ({}, {"ema": "auto"}, {"ema": 0.99}, {"ema": None}):
            flow = found[str(ema)] = small()
            fit(flow, rows().exp(), steps=20, validation=None, **ema, **QUIET)
        default, auto, stated, none = map(weights, found.values())
        assert torch.equal(default, auto)
        assert torch.equal(default, stated)
        assert not torch.equal(default, none)


class TestDirections:
    """What each option does, against what it says."""

    def fitted(self, **options):
        flow, length = small(), {} if "steps" in options else {"epochs": 2}
        history = fit(flow, 3 * rows().exp(), **{**length, **QUIET, **options})
        return flow, history

    def moved(self, **options):
        return (weights(self.fitted(**options)[0]) - weights(small())).norm().item()

    def test_lr_scales_how_far_weights_move(self):
        options = {"steps": 3, "scheduler": None, "validation": None}
        sizes = [self.moved(lr=lr, **options) for lr in (1e-4, 1e-3, 1e-2)]
        # Adam's first steps are about lr long.
        assert sizes[1] == pytest.approx(10 * sizes[0], rel=0.1)
        assert sizes[2] > 5 * sizes[1]

    def test_an_own_optimizer_has_its_own_lr_and_a_given_one_is_warned_of(self):
        def sgd(lr):
            return lambda p: torch.optim.SGD(p, lr=lr)

        options = {"steps": 1, "validation": None, "scheduler": None}
        assert self.moved(optimizer=sgd(2e-2), **options) == pytest.approx(
            2 * self.moved(optimizer=sgd(1e-2), **options), rel=1e-3
        )
        with pytest.warns(UserWarning, match="lr=0.1 is that of the default optimizer: the SGD"):
            self.fitted(optimizer=sgd(1e-2), lr=0.1, **options)

    def test_epochs_steps_and_batch_size_count(self):
        assert self.fitted(epochs=3)[1].steps == [3, 6, 9]
        assert self.fitted(epochs=3, batch_size=30)[1].steps == [6, 12, 18]
        # Without epochs it is recorded every 25 steps, and after the last.
        assert self.fitted(steps=7)[1].steps == [7]
        assert self.fitted(steps=60)[1].steps == [25, 50, 60]
        assert self.fitted(steps=60)[1].epochs == pytest.approx([25 / 3, 50 / 3, 20])
        with pytest.raises(ArgumentError, match="epochs=3 and steps=7; remedy: leave one"):
            self.fitted(epochs=3, steps=7)
        seen = []

        class Watch(MaximumLikelihood):
            def forward(self, flow, batch):
                seen.append(len(batch["x"]))
                return super().forward(flow, batch)

        fit(small(), rows(), Watch(), epochs=1, progress=False, batch_size=30)
        assert seen == [20] + [30] * 6 + [20]  # 20 are held out, and are the start validated on

    def test_validation_holds_out_its_fraction_or_is_what_is_given(self):
        for fraction, steps in ((0.5, 2), (0.1, 3), (None, 4), (0, 4)):
            history = self.fitted(validation=fraction, epochs=1)[1]
            assert history.steps == [steps]
            assert len(history.validation) == (1 if fraction else 0)
        held = 3 * rows(40, seed=3).exp()
        flow, history = self.fitted(validation=held, epochs=1)
        assert history.steps == [4]
        assert history.best == pytest.approx(-flow.log_prob(held).mean().item(), rel=1e-6)

    def test_the_gradient_of_a_step_is_clipped_to_its_norm(self):
        def sgd(p):
            return torch.optim.SGD(p, lr=1.0)

        options = {"steps": 1, "validation": None, "scheduler": None, "optimizer": sgd}
        free = self.moved(clip=None, **options)
        assert self.moved(clip=2 * free, **options) == pytest.approx(free, rel=1e-6)
        for clip in (free / 2, free / 20):
            assert self.moved(clip=clip, **options) == pytest.approx(clip, rel=1e-3)

    def test_patience_waits_so_many_validations(self):
        options = {"lr": 0.1, "scheduler": None}
        for patience in (1, 4):
            history = self.fitted(epochs=300, patience=patience, **options)[1]
            assert history.stopped == "patience"
            assert history.steps[-1] == history.best_step + 3 * patience  # of 3 steps an epoch
            history = self.fitted(steps=3000, patience=patience, **options)[1]
            assert history.stopped == "patience"
            assert history.steps[-1] == history.best_step + 25 * patience
        assert self.fitted(epochs=12, patience=None, **options)[1].epochs[-1] == 12

    def test_the_seed_is_of_the_split_and_the_order(self):
        options = {"epochs": 8, "lr": 1e-2}
        first, same, other = (weights(self.fitted(seed=k, **options)[0]) for k in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize(
        "change", [{"progress": True}, {"callbacks": [lambda f, h: None]}, {"patience": 50}]
    )
    def test_what_only_watches_changes_no_number(self, change, capfd):
        flow, history = self.fitted()
        other, again = self.fitted(**change)
        assert torch.equal(weights(flow), weights(other))
        assert history.validation == again.validation
        shown = capfd.readouterr().err
        assert ("validation" in shown) == ("progress" in change)

    def test_a_checkpoint_changes_no_number(self, tmp_path):
        flow, _ = self.fitted(checkpoint=tmp_path / "c")
        assert torch.equal(weights(flow), weights(self.fitted()[0]))
        assert (tmp_path / "c").exists()


class TestSchedulers:
    def rates(self, scheduler, epochs=4, **options):
        history = fit(small(), rows(), epochs=epochs, scheduler=scheduler, **QUIET, **options)
        return history.learning_rate

    def test_the_named_schedules_are_what_they_say(self):
        steps = 3 * np.arange(1, 5)
        assert self.rates("cosine") == pytest.approx(2e-3 * (1 + np.cos(np.pi * steps / 12)) / 2)
        assert self.rates(None) == [2e-3] * 4
        # Twelve steps: one of them rises, and the last three fall.
        assert self.rates("plateau") == pytest.approx([2e-3] * 3 + [0.0])

    def test_a_schedule_by_metric_follows_the_validation_loss(self):
        seen = []

        class Watched(torch.optim.lr_scheduler.ReduceLROnPlateau):
            def step(self, metrics, epoch=None):
                seen.append(metrics)
                super().step(metrics)

        flow = small()
        never = {"patience": 0, "threshold": 9.0}
        history = fit(flow, rows(), epochs=4, scheduler=lambda o, n: Watched(o, **never), **QUIET)
        assert seen == history.validation
        assert history.learning_rate == pytest.approx([2e-3, 2e-4, 2e-5, 2e-6])
        seen.clear()
        options = {"epochs": 2, "validation": None, "scheduler": lambda o, n: Watched(o)}
        history = fit(small(), rows(), **options, **QUIET)
        assert seen == history.train

    def test_a_schedule_by_metric_resumes_to_the_same_bits(self, tmp_path):
        def plateau(optimizer, steps):
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=9.0)

        options = {"scheduler": plateau, "epochs": 6, **QUIET}
        whole, resumed = small(), small()
        expected = fit(whole, rows(), **options)
        stop = [lambda f, h: len(h.epochs) == 3]
        fit(resumed, rows(), checkpoint=tmp_path / "c", callbacks=stop, **options)
        history = fit(small(), rows(), checkpoint=tmp_path / "c", **options)
        assert history.learning_rate == expected.learning_rate
        assert history.validation == expected.validation

    @pytest.mark.parametrize(
        ("scheduler", "message"),
        [
            (lambda o, n: 3, "LRScheduler, got 3; remedy: lambda optimizer, steps"),
            (lambda o, n: None, "LRScheduler, got None; remedy"),
            (torch.optim.lr_scheduler.ReduceLROnPlateau, r"could not be made.*Plateau\(optimizer"),
            (lambda o: None, "could not be made of an optimizer and the number of steps"),
            (
                lambda o, n: torch.optim.lr_scheduler.ConstantLR(
                    torch.optim.SGD([torch.zeros(1)], lr=1)
                ),
                "got one of another",
            ),
        ],
    )
    def test_what_is_no_schedule_is_an_error(self, scheduler, message):
        with pytest.raises(ArgumentError, match=message):
            self.rates(scheduler)


class TestClosures:
    """Optimisers that evaluate the loss themselves, such as L-BFGS."""

    def lbfgs(self, **options):
        return lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", **options)

    def test_full_batches_reach_the_normal_of_the_data(self):
        x = (rows(400) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + 3).double()
        flow = Flow(Compose(Standardize(2), LULinear(2)), StandardNormal(2)).double()
        options = {"validation": None, "scheduler": None, "batch_size": 400, "progress": False}
        history = fit(flow, x, steps=30, optimizer=self.lbfgs(), **options)
        centred = x - x.mean(0)
        exact = math.log(2 * math.pi) + 1 + 0.5 * torch.logdet(centred.T @ centred / 400).item()
        assert -flow.log_prob(x).mean().item() == pytest.approx(exact, abs=1e-6)
        assert history.steps == [25, 30]

    def test_steps_of_a_closure_are_not_averaged_unless_asked_for(self):
        found = {}
        for ema in ("auto", None, 0.99):
            flow = found[ema] = small()
            options = {"validation": None, "steps": 3, "ema": ema, **QUIET}
            fit(flow, rows().exp(), optimizer=self.lbfgs(max_iter=3), **options)
        assert torch.equal(weights(found["auto"]), weights(found[None]))
        assert not torch.equal(weights(found["auto"]), weights(found[0.99]))

    def test_every_evaluation_of_a_step_sees_the_same_rows_and_noise(self):
        seen = []

        class Noisy(MaximumLikelihood):
            def forward(self, flow, batch, *, generator=None, progress=1.0):
                noise = torch.randn(batch["x"].shape, generator=generator)
                if self.training:
                    seen.append(batch["x"] + noise)
                return super().forward(flow, {**batch, "x": batch["x"] + noise})

        options = {"scheduler": None, "validation": None, **QUIET}
        fit(small(), rows(), Noisy(), steps=2, optimizer=self.lbfgs(max_iter=3), **options)
        same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
        assert same.count(False) == 1  # between the two steps
        assert len(seen) > 4

    def test_clipping_averaging_and_schedules_count_steps_and_not_evaluations(self):
        flow, seen, calls = small(), [], []

        def build(parameters):
            made = torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)
            made.register_step_post_hook(lambda *_: seen.append(weights(flow)))
            return made

        class Counting(MaximumLikelihood):
            def forward(self, flow, batch):
                calls.append(1)
                return super().forward(flow, batch)

        options = {"steps": 6, "validation": None, "ema": 0.9, "clip": 1e-3, **QUIET}
        history = fit(flow, rows(), Counting(), optimizer=build, **options)
        assert history.steps[-1] == len(seen) == 6
        assert len(calls) > 6
        torch.testing.assert_close(
            weights(flow).double(), average_of(seen, 0.9), rtol=1e-6, atol=1e-7
        )
        assert history.learning_rate[-1] == pytest.approx(0.0, abs=1e-12)
        # Each of at most three iterations moves by no more than lr times the clipped gradient.
        first = (seen[0] - weights(small())).norm()
        assert 0 < first < 1e-3

    def test_it_resumes_to_the_same_bits(self, tmp_path):
        options = {"optimizer": self.lbfgs(max_iter=3), "epochs": 4, "scheduler": None, **QUIET}
        whole, resumed = small(), small()
        expected = fit(whole, rows(), **options)
        stop = [lambda f, h: len(h.epochs) == 2]
        fit(resumed, rows(), checkpoint=tmp_path / "c", callbacks=stop, **options)
        again = small()
        history = fit(again, rows(), checkpoint=tmp_path / "c", **options)
        assert history.validation == expected.validation
        assert torch.equal(weights(again), weights(whole))

    def test_mixed_precision_is_bfloat16_or_an_error(self):
        options = {"epochs": 1, "optimizer": self.lbfgs(), **QUIET}
        fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
        assert np.isfinite(fit(small(), rows(), fabric=fabric, **options).train).all()
        fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])
        with pytest.raises(ArgumentError, match="LBFGS needs a closure.*remedy: precision="):
            fit(small(), rows(), fabric=fabric, **options)

    def test_a_step_of_other_arguments_is_an_error(self):
        class Odd(torch.optim.SGD):
            def step(self, loss, closure=None):
                super().step()

        with pytest.raises(ArgumentError, match="Odd.step needs loss; remedy"):
            fit(small(), rows(), epochs=1, optimizer=lambda p: Odd(p, lr=1e-3), **QUIET)
