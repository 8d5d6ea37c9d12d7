"""Fits that go wrong: the flow is as it was, or has the best weights, and the message says why."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from lightning_fabric import Fabric

from flowkit import Flow, MaximumLikelihood, coupling_flow, fit
from flowkit.bases import StandardNormal
from flowkit.errors import NonFiniteLossError
from flowkit.objectives import Loss, Objective
from flowkit.training.updates import Updates
from flowkit.transforms import ActNorm, Compose, LULinear, Standardize

QUIET = {"progress": False, "batch_size": 50}


def rows(n=200):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return coupling_flow(2, layers=2, hidden=(8,), start="standardize")


def same(state, flow):
    own = flow.state_dict()
    return state.keys() == own.keys() and all(torch.equal(own[k], v) for k, v in state.items())


class Fails(Objective):
    """Maximum likelihood, until a training step at which something is wrong."""

    def __init__(self, step, how):
        super().__init__()
        self.left, self.how = step, how

    def forward(self, flow, batch):
        loss = MaximumLikelihood()(flow, batch)
        if self.training:
            self.left -= 1
            if self.left < 0:
                return self.how(flow, loss)
        return loss


def nan_loss(flow, loss):
    return Loss(loss.value * torch.nan, {})


def interrupt(flow, loss):
    raise KeyboardInterrupt


def error(flow, loss):
    raise KeyError("mine")


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.at = at
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.at), None


class Breaks(torch.nn.Module):
    """Hands its input on, and a gradient that is not finite back."""

    def __init__(self, value=torch.nan):
        super().__init__()
        self.value, self.broken = value, True

    def forward(self, x):
        return _BadGradient.apply(x, self.value) if self.broken else x


def bad_gradient(flow, loss):
    return Loss(_BadGradient.apply(loss.value, torch.inf), {})


FAILURES = {
    "loss": (nan_loss, NonFiniteLossError),
    "gradient": (bad_gradient, NonFiniteLossError),
    "error": (error, KeyError),
    "interrupt": (interrupt, KeyboardInterrupt),
}


@pytest.mark.parametrize("validation", [0.1, None])
@pytest.mark.parametrize("how", FAILURES)
class TestWhatIsLeft:
    def fail(self, flow, how, validation, after, **options):
        do, kind = FAILURES[how]
        options = {"lr": 1e-2, "epochs": 9, **QUIET, **options}
        with pytest.raises(kind):
            fit(flow, rows().exp(), Fails(after, do), validation=validation, **options)

    @pytest.mark.parametrize("after", [0, 2])
    def test_before_an_epoch_is_finished_the_flow_is_as_it_was(self, how, validation, after):
        flow = small()
        before, modes = copy.deepcopy(flow.state_dict()), [m.training for m in flow.modules()]
        self.fail(flow, how, validation, after)
        assert same(before, flow)
        assert not bool(flow.initialized)
        assert [m.training for m in flow.modules()] == modes
        assert all(p.grad is None for p in flow.parameters())

    def test_a_trained_flow_keeps_its_weights_and_start(self, how, validation):
        flow = small()
        fit(flow, rows() + 5, epochs=1, **QUIET)
        before = copy.deepcopy(flow.state_dict())
        self.fail(flow, how, validation, 1)
        assert same(before, flow)
        assert bool(flow.initialized)

    def test_later_it_has_the_best_record_or_without_validation_the_last(self, how, validation):
        """Ten steps: the third epoch of four (of three with validation) steps is unfinished."""
        flow, expected, kept = small(), small(), []
        each = 4 if validation is None else 3
        plain = {"scheduler": None, "ema": None}
        options = {"validation": validation, "lr": 1e-2, **plain, **QUIET}
        history = fit(
            expected,
            rows().exp(),
            epochs=2,
            callbacks=[lambda f, h: kept.append(copy.deepcopy(f.state_dict())) and None],
            **options,
        )
        self.fail(flow, how, validation, 2 * each + 1, **plain)
        best = history.best_step // each if validation else 2
        assert best > 0
        assert same(kept[best - 1], flow)
        assert not flow.training

    def test_the_moving_average_is_what_is_left(self, how, validation):
        flow, expected = small(), small()
        each = 4 if validation is None else 3
        options = {"validation": validation, "lr": 1e-2, "scheduler": None, "ema": 0.9, **QUIET}
        history = fit(expected, rows().exp(), epochs=1, **options)
        assert history.best_step != 0
        self.fail(flow, how, validation, each, scheduler=None, ema=0.9)
        assert same(expected.state_dict(), flow)


def test_the_case_of_the_list_trains_after_its_failure():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 1, generator=generator) * torch.ones(3)
    x = x + 1e-5 * torch.randn(600, 3, generator=generator)
    flow = coupling_flow(3, layers=2, scalar="mixture", hidden=(16, 16))
    before = copy.deepcopy(flow.state_dict())
    options = {"batch_size": 128, "scheduler": None, "progress": False}
    with pytest.raises(NonFiniteLossError, match="at fault|layer number"):
        fit(flow, x, lr=30.0, epochs=3, **options)
    assert same(before, flow)
    history = fit(flow, x, lr=1e-4, epochs=2, **options)
    assert all(torch.isfinite(p).all() for p in flow.parameters())
    assert history.train[1] < history.train[0]


def test_a_start_from_data_that_fails_is_undone():
    class Half(ActNorm):
        def initialize(self, x, context=None):
            super().initialize(x, context)
            raise KeyError("after the first layer")

    flow = Flow(Compose(Standardize(2), Half(2)), StandardNormal(2))
    before = copy.deepcopy(flow.state_dict())
    with pytest.raises(KeyError):
        fit(flow, rows() + 3, **QUIET)
    assert same(before, flow)


def test_a_failed_fit_in_float64_leaves_a_float32_flow():
    flow = small()
    before = copy.deepcopy(flow.state_dict())
    fabric = Fabric(accelerator="cpu", precision="64-true")
    with pytest.raises(KeyError):
        fit(flow, rows(), Fails(1, error), fabric=fabric, **QUIET)
    assert flow.dtype == torch.float32
    assert same(before, flow)


def test_an_objective_goes_back_too():
    class Learns(Fails):
        def __init__(self):
            super().__init__(2, error)
            self.shift = torch.nn.Parameter(torch.zeros(2))

        def forward(self, flow, batch):
            return super().forward(flow, {**batch, "x": batch["x"] + self.shift})

    objective = Learns()
    with pytest.raises(KeyError):
        fit(small(), rows(), objective, lr=0.1, **QUIET)
    assert torch.equal(objective.shift.detach(), torch.zeros(2))


class TestGradients:
    def flow(self, place):
        """Three linear layers, of which one hands a broken gradient on to those before."""
        layers = [LULinear(2) for _ in range(3)]
        breaks = Breaks()

        class Broken(LULinear):
            def forward(self, x, context=None):
                z, log_det = super().forward(x, context)
                return breaks(z), log_det

        layers[place] = Broken(2)
        return Flow(Compose(Standardize(2), *layers), StandardNormal(2)), breaks

    @pytest.mark.parametrize("clip", [None, 10.0])
    @pytest.mark.parametrize("place", [0, 2])
    def test_what_is_not_finite_reaches_no_weight_and_the_layer_is_named(self, place, clip):
        flow, _ = self.flow(place)
        before = copy.deepcopy(flow.state_dict())
        seen = []
        with pytest.raises(NonFiniteLossError) as caught:
            fit(flow, rows(), clip=clip, callbacks=[seen.append], **QUIET)
        text = str(caught.value)
        assert "the loss is finite at step 1, but its gradient is not" in text
        assert f"layer number {place + 1}, Broken(features=2)" in text
        assert "row(s) [" in text
        assert "remedy: " in text
        assert same(before, flow)
        assert not seen

    def test_rows_at_fault_are_named(self):
        class Sqrt(LULinear):
            def forward(self, x, context=None):
                z, log_det = super().forward(x, context)
                # The slope of the root is infinite at zero.
                zero = torch.where(x == 7, z - z.detach(), 1.0)
                return z + 1e-9 * zero.sqrt(), log_det

        x = rows()
        x[33] = 7.0
        flow = Flow(Compose(Sqrt(2), LULinear(2)), StandardNormal(2))
        with pytest.raises(NonFiniteLossError, match=r"row\(s\) \[33\] of the data"):
            fit(flow, x, validation=None, epochs=1, **QUIET)

    def test_a_norm_beyond_the_range_of_the_dtype_is_an_error(self):
        class Steep(Objective):
            def forward(self, flow, batch):
                return Loss(flow.log_prob(batch["x"]).mean() * 1e30, {})

        with pytest.raises(NonFiniteLossError, match="too large for a norm"):
            fit(small(), rows() * 10, Steep(), **QUIET)

    def test_weights_that_overflow_in_the_last_step_are_an_error(self):
        flow = small()
        before = copy.deepcopy(flow.state_dict())
        options = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e38, momentum=0.0)}
        with pytest.raises(NonFiniteLossError, match="the parameter .* is not finite"):
            fit(
                flow,
                rows(),
                Fails(0, lambda f, loss: Loss(loss.value * 1e6, {})),
                steps=1,
                clip=None,
                validation=None,
                scheduler=None,
                **options,
                **QUIET,
            )
        assert same(before, flow)


class TestAccelerators:
    """There nothing waits for the device: what is not finite is kept out, and found later."""

    def test_gradients_that_are_not_finite_are_kept_out_and_found_later(self, monkeypatch):
        weights = []

        def due(run):
            weights.append(all(torch.isfinite(p).all() for p in run.plan.step.parameters()))
            return run.progress.done + 1 == 10

        monkeypatch.setattr(Updates, "due", due)
        flow = small()
        before = copy.deepcopy(flow.state_dict())
        objective = Fails(
            6, lambda f, loss: bad_gradient(f, loss) if objective.left == -1 else loss
        )
        with pytest.raises(NonFiniteLossError, match="gradient became NaN or infinite at step 7"):
            fit(flow, rows(), objective, epochs=1, batch_size=10, validation=None, progress=False)
        assert all(weights)
        assert len(weights) >= 10
        assert same(before, flow)


def test_a_layer_without_a_bounded_domain_is_not_said_to_have_one():
    class Cut(LULinear):
        def forward(self, x, context=None):
            z, log_det = super().forward(x, context)
            return z, torch.where(x[..., 0] > 1, -torch.inf, log_det)

    flow = Flow(Compose(Cut(2)), StandardNormal(2))
    with pytest.raises(NonFiniteLossError, match=r"number 0, Cut\(features=2\); remedy"):
        fit(flow, rows(), validation=None, **QUIET)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir("/proc"), reason="looks for processes where Linux shows them"
)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_fit_of_two_processes_leaves_none_behind(how, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            import torch
            from lightning_fabric import Fabric
            from flowkit import coupling_flow, fit

            torch.set_num_threads(1)

            def note(flow, history):
                open(os.path.join(sys.argv[1], f"pid{os.getpid()}"), "w").close()

            fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
            flow = coupling_flow(2, layers=1, hidden=(8,))
            fit(flow, torch.randn(400, 2), epochs=10**6, patience=None, fabric=fabric,
                progress=False, callbacks=[note])
            """
        )
    )

    def running(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait(until, seconds):
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            time.sleep(0.1)
        return until()

    main = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.DEVNULL)
    pids = []
    try:
        assert wait(lambda: len(list(tmp_path.glob("pid*"))) == 2, 120)
        pids = [int(path.name[3:]) for path in tmp_path.glob("pid*")]
        main.send_signal(how)
        main.wait(60)
        assert wait(lambda: not any(map(running, pids)), 30)
    finally:
        for pid in {main.pid, *pids}:
            if running(pid):
                os.kill(pid, signal.SIGKILL)
