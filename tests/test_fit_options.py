"""Every option of fit changes what it should, in the stated direction, or nothing."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from flowkit import Flow, MaximumLikelihood, ReverseKL, coupling_flow, fit
from flowkit.bases import StandardNormal
from flowkit.transforms import DenseLinear, LULinear

QUIET = {"progress": False, "batch_size": 50}


def rows(n=200, features=2, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def small(features=2, **options):
    torch.manual_seed(0)
    return coupling_flow(features, layers=2, hidden=(8,), **options)


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
        flow, seen, held = small(), [], rows(100, seed=9)
        history = fit(
            flow,
            rows(),
            validation=held,
            epochs=5,
            scheduler=None,
            ema=0.9,
            optimizer=recording(flow, seen),
            **QUIET,
        )
        other = copy.deepcopy(flow)
        for epoch, (step, value) in enumerate(zip(history.steps, history.validation, strict=True)):
            nn.utils.vector_to_parameters(average_of(seen[:step], 0.9).float(), other.parameters())
            loss = -other.log_prob(held).mean().item()
            assert value == pytest.approx(loss, rel=1e-5), epoch
            if epoch + 1 == history.best_epoch:
                torch.testing.assert_close(weights(flow), weights(other), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
    def test_history_and_weights_differ_from_those_without(self, decay):
        options = {"epochs": 4, "lr": 3e-2, "scheduler": None, **QUIET}
        flow, plain = small(), small()
        with_average = fit(flow, rows(), ema=decay, **options)
        without = fit(plain, rows(), **options)
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
