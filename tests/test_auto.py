"""Starts that fit tries, and the densities that FlowDensity compares by default."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

import flowkit
from flowkit import FlowMixture, MaximumLikelihood, fit
from flowkit.bases import StandardNormal
from flowkit.errors import ArgumentError, DataError, NonFiniteLossError
from flowkit.estimators import FlowDensity
from flowkit.estimators.candidates import (
    Candidate,
    Samples,
    Setting,
    _closed,
    candidates,
    for_outliers,
)
from flowkit.estimators.splits import splits
from flowkit.estimators.stacking import stack
from flowkit.objectives import Loss
from flowkit.transforms import Compose, LULinear, Standardize, Whiten

QUICK = {"steps": 60, "random_state": 0}


def correlated(n, features, seed=0):
    """Normal rows, and their exact log-density as a function."""
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(0.7 * np.ones((features, features)) + 0.3 * np.eye(features))
    x = rng.normal(size=(n, features)) @ factor.T
    return x, stats.multivariate_normal(np.zeros(features), factor @ factor.T).logpdf


class TestStarts:
    def test_a_compose_starts_the_layers_of_one_name(self):
        both = Compose(Standardize(2), Whiten(2), LULinear(2), starts={"one": [0], "two": [1]})
        x = 5 + 3 * torch.randn(100, 2)
        both.initialize(x)
        torch.testing.assert_close(both[0].mean, x.mean(0))
        assert torch.equal(both[1].whitener, torch.eye(2))
        other = Compose(Standardize(2), Whiten(2), starts={"one": [0], "two": [1]})
        other.initialize(x, start="two")
        assert torch.equal(other[0].mean, torch.zeros(2))
        torch.testing.assert_close(other[1].mean, x.mean(0))

    def test_a_name_or_a_layer_that_is_not_there_is_refused(self):
        with pytest.raises(ArgumentError, match="layers that start from data, got 'LULinear"):
            Compose(Standardize(2), LULinear(2), starts={"one": [1]})
        with pytest.raises(ArgumentError, match="start as one of 'one'"):
            Compose(Standardize(2), starts={"one": [0]}).initialize(torch.randn(9, 2), start="on")
        with pytest.raises(ArgumentError, match="one start alone"):
            Compose(Standardize(2)).initialize(torch.randn(9, 2), start="one")

    def test_fit_goes_on_from_the_start_that_validates_best(self):
        # Correlated skewed columns whose normal scores are normal: the copula is the truth.
        x, _ = correlated(800, 3)
        chosen = {}
        for name, data in {"skewed": np.exp(x), "normal": x}.items():
            flow = flowkit.autoregressive_flow(3, layers=1, hidden=(8,), seed=0)
            history = fit(flow, data, progress=False, steps=400)
            chosen[name] = history.started
        assert chosen["skewed"] == "copula"
        assert chosen["normal"] in ("gaussian", "latent")

    def test_a_trial_leaves_no_trace_and_repeats(self):
        x, _ = correlated(300, 2)
        histories = []
        for _ in range(2):
            flow = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0)
            histories.append(fit(flow, x, progress=False, steps=100))
        assert histories[0].train == histories[1].train
        assert histories[0].started == histories[1].started != ""
        # It is the fit from that start, which callbacks see from the beginning.
        flow, seen = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0), []
        see = [lambda _, history: seen.append(history.steps[-1])]
        history = fit(flow, x, progress=False, steps=100, callbacks=see)
        assert history.train == histories[0].train
        assert seen == history.steps == histories[0].steps
        from_it = flowkit.coupling_flow(2, layers=2, hidden=(8,), start=history.started, seed=0)
        assert fit(from_it, x, progress=False, steps=100).train == history.train
        # A second fit goes on, without another choice.
        assert fit(flow, x, progress=False, steps=5).started == ""

    def test_the_start_is_the_best_of_the_trials(self):
        # As fits from each start show, whose first steps the trials are: 100 for 200 samples.
        x, _ = correlated(250, 2, seed=3)
        data, held = np.exp(x[:200]), np.exp(x[200:])
        call = {"validation": held, "progress": False, "seed": 1}
        after = {}
        for start in flowkit.coupling_flow(2).starts:
            flow = flowkit.coupling_flow(2, layers=2, hidden=(8,), start=start, seed=0)
            history = fit(
                flow, data, steps=20_000, callbacks=[lambda _, h: len(h.steps) > 3], **call
            )
            assert history.steps[-1] == 100
            after[start] = history.best
        flow = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0)
        history = fit(flow, data, **call)
        assert history.started == min(after, key=after.get)
        assert min(history.start, *history.validation[:4]) == after[history.started]

    def test_an_optimizer_of_the_flows_own_parameters_trains_from_the_first_step(self):
        """As for groups of some modules; trials are on copies, which it would not move."""
        x = torch.randn(800, 2, generator=torch.Generator().manual_seed(0)).exp()
        flow, made = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0), []

        def own(_):
            made[:] = made or [torch.optim.Adam(flow.parameters(), lr=2e-3, fused=True)]
            return made[0]

        history = fit(flow, x, optimizer=own, progress=False, steps=200)
        start = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0, start=history.started)
        expected = fit(start, x, progress=False, steps=200)
        assert history.train == expected.train
        assert history.learning_rate == expected.learning_rate

    def test_trials_keep_what_flow_and_objective_share(self):
        class Ridge(MaximumLikelihood):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, flow, batch):
                loss = super().forward(flow, batch)
                size = sum(p.square().sum() for p in self.layer.parameters())
                return Loss(loss.value + 0.1 * size, loss.terms)

        x, losses = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).exp(), []
        # With a callback the steps of the trials are done again, without copies.
        for callbacks in ([], [lambda *_: False]):
            flow = flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0)
            penalty = Ridge(flow.transform[5])
            losses.append(fit(flow, x, penalty, progress=False, steps=400, callbacks=callbacks))
        assert losses[0].train == losses[1].train

    def test_a_start_with_a_loss_that_is_not_finite_is_given_up(self):
        """The square of a held-out outlier overflows, but not behind the tails of the splines."""
        rng = np.random.default_rng(0)
        x, held = (torch.tensor(rng.standard_cauchy((n, 2))).float() for n in (400, 60))
        held[0, 0] = 1e22
        options = {"validation": held, "progress": False, "steps": 400}
        flows = {
            start: flowkit.coupling_flow(2, layers=1, hidden=(8,), start=start, seed=0)
            for start in ("gaussian", "auto")
        }
        with pytest.raises(NonFiniteLossError):
            fit(flows["gaussian"], x, **options)
        assert fit(flows["auto"], x, **options).started == "copula"
        held[0, 0] = 1e38
        flow = flowkit.coupling_flow(2, layers=1, hidden=(8,), base="normal", seed=0)
        with pytest.raises(NonFiniteLossError, match="of the validation data"):
            fit(flow, x.clamp(-2, 2), **options)

    def test_a_fit_that_ends_in_its_trial_is_in_its_checkpoint(self, tmp_path):
        x, path = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)), tmp_path / "c"
        options = {"checkpoint": path, "patience": 1, "scheduler": None, "lr": 0.05}
        flows = [flowkit.coupling_flow(2, layers=2, hidden=(8,), seed=0) for _ in range(2)]
        one, two = (fit(flow, x, progress=False, **options) for flow in flows)
        # Records of trials are 25 steps apart, and there are four.
        assert one.steps[-1] <= 100
        assert path.exists()
        assert one.to_dict() == two.to_dict()
        assert torch.equal(flows[0].log_prob(x), flows[1].log_prob(x))


class TestStack:
    def test_weights_are_those_of_the_mixture_that_was_drawn(self):
        rng = np.random.default_rng(0)
        n, parts = 20_000, [stats.norm(0, 1), stats.norm(1, 2)]
        x = np.where(rng.random(n) < 0.3, parts[0].rvs(n, rng), parts[1].rvs(n, rng))
        weights = stack(np.stack([p.logpdf(x) for p in parts], 1))
        # By the Fisher information of the weight.
        p, q = (part.pdf(x) for part in parts)
        error = 1 / math.sqrt((((p - q) / (0.3 * p + 0.7 * q)) ** 2).sum())
        assert abs(weights[0] - 0.3) < 5 * error < 0.05

    def test_weights_count_samples_and_densities_of_little_weight_are_left_out(self):
        terms = np.log(np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]]))
        repeated = np.repeat(terms, [3, 1], axis=0)
        np.testing.assert_allclose(stack(terms, np.array([3.0, 1.0])), stack(repeated))
        many = np.repeat(terms, [2000, 10], axis=0)
        assert stack(many, least=0.05)[1] == 0
        assert (stack(many, least=0.0, most=1) > 0).sum() == 1

    def test_a_density_that_is_zero_somewhere_is_no_harm(self):
        terms = np.log(np.array([[1.0, 0.5]] * 50))
        terms[0, 0] = -np.inf
        weights = stack(terms)
        assert weights.sum() == pytest.approx(1)
        assert 0 < weights[1] < 0.2


class TestSplits:
    def test_equal_samples_and_groups_stay_together(self):
        x = np.arange(60.0).reshape(-1, 1).repeat(5, 0)
        for groups in (None, np.arange(300) // 10):
            unit = x[:, 0] if groups is None else groups
            parts = splits("FlowDensity", x, groups, 0, 0.2, 3)
            assert len(parts) == 3
            for train, held in parts:
                assert not {*unit[train]} & {*unit[held]}
                assert len(train) + len(held) == 300
                assert 40 <= len(held) <= 80
            assert not {*parts[0][1]} & {*parts[1][1]}

    def test_repeats_are_split_as_samples_of_more_weight_are(self):
        rng = np.random.default_rng(0)
        x, weight = rng.normal(size=(50, 2)), rng.integers(1, 4, 50)
        once = splits("FlowDensity", x, None, 0, 0.2, 2)
        repeated = splits("FlowDensity", x.repeat(weight, 0), None, 0, 0.2, 2)
        for (train, held), (more, more_held) in zip(once, repeated, strict=True):
            for some, many in ((train, more), (held, more_held)):
                assert np.array_equal(
                    some.repeat(weight[some]), np.arange(50).repeat(weight)[many]
                )

    def test_a_few_different_samples_are_no_groups(self):
        x = np.repeat([[0.0], [1.0]], 10, 0)
        ((train, held),) = splits("FlowDensity", x, None, 0, 0.2)
        assert len({*x[train, 0]}) == 2
        assert len(held) == 4
        with pytest.raises(DataError, match="holds out whole groups and expected at least 2"):
            splits("FlowDensity", x, np.zeros(20), 0, 0.2)


class TestFlowDensity:
    def test_normal_data_are_never_much_worse_than_their_normal(self):
        for n in (100, 300):
            x, log_density = correlated(n, 6)
            test, _ = correlated(5000, 6, seed=1)
            mean, covariance = x.mean(0), np.cov(x.T, bias=True)
            normal = stats.multivariate_normal(mean, covariance).logpdf(test).mean()
            model = FlowDensity(random_state=0, steps=200).fit(x)
            assert model.score(test) > normal - 0.1
            assert model.score(test) < log_density(test).mean()

    def test_it_is_the_mixture_of_what_it_names_and_is_saved(self, tmp_path):
        x, _ = correlated(200, 2)
        model = FlowDensity(**QUICK).fit(x**3)
        comparison = model.comparison_
        assert comparison.names[:3] == ["normal", "copula", "normal mixture"]
        assert sum(comparison.weights) == pytest.approx(1)
        assert comparison.scores[1] > comparison.scores[0]
        assert comparison.weights[0] < 0.1
        assert "copula" in repr(comparison)
        kept = [w for w in comparison.weights if w > 0]
        assert isinstance(model.flow_, FlowMixture)
        assert len(model.flow_.flows) >= len(kept) > 1
        model.save(tmp_path / "model.safetensors")
        again = FlowDensity.load(tmp_path / "model.safetensors")
        assert np.array_equal(again.score_samples(x), model.score_samples(x))
        assert again.comparison_ == comparison

    def test_copies_of_rows_with_rounded_columns_are_held_out_together(self, monkeypatch):
        rng = np.random.default_rng(0)
        x = np.column_stack([rng.normal(size=40), rng.integers(0, 9, 40)]).repeat(3, 0)
        seen = []

        def spy(owner, rows, groups, seed, held, count):
            parts = splits(owner, rows, groups, seed, held, count)
            seen.extend(parts)
            return parts

        monkeypatch.setattr("flowkit.estimators.auto.splits", spy)
        FlowDensity(dequantize=[0, 1], steps=5, random_state=0).fit(x)
        for train, held in seen:
            assert not {*x[train, 0]} & {*x[held, 0]}

    def test_closed_densities_count_weights_as_copies(self):
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.normal(size=(60, 2)))
        weight = np.where(x[:, 0] > 0, 3, 1)
        weighted = Samples(x, torch.from_numpy(weight).double())
        copies = Samples(x.repeat_interleave(torch.from_numpy(weight), 0), None)
        setting = Setting(None, None, 0, {})
        for kind in (*candidates(60, 2)[:3], for_outliers(2)):
            first = kind.fit(weighted, weighted, setting, None)
            # With as many components: copies may have more.
            other = kind.fit(copies, copies, setting, first)
            states = (fitted.flow.state_dict().values() for fitted in (first, other))
            for one, same in zip(*states, strict=True):
                torch.testing.assert_close(one, same)
            plain = kind.fit(Samples(x, None), weighted, setting, first).flow
            gain = weighted.mean_log_density(first.flow) - weighted.mean_log_density(plain)
            assert gain > 1e-3

    def test_a_sample_far_from_all_others_costs_little(self):
        x, _ = correlated(200, 3)
        model = FlowDensity(**QUICK).fit(x)
        share = dict(zip(model.comparison_.names, model.comparison_.weights, strict=True))
        assert share["Student-t"] == pytest.approx(1 / 201)
        far = np.array([[80.0, -80.0, 0.0]])
        # Behind the whitening, independent Student-t of 4 degrees of freedom.
        mean, covariance = x.mean(0), np.cov(x.T, bias=True)
        z = np.linalg.solve(np.linalg.cholesky(covariance), (far - mean).T)
        floor = stats.t(4).logpdf(z).sum() - 0.5 * np.linalg.slogdet(covariance)[1] - math.log(201)
        assert model.score_samples(far)[0] > floor - 10
        normal = stats.multivariate_normal(mean, covariance).logpdf(far)
        assert normal < floor - 1000

    def test_ends_hold_and_weights_are_repeats(self):
        rng = np.random.default_rng(0)
        x = rng.exponential(size=(150, 2))
        model = FlowDensity(options={"lower": 0}, **QUICK).fit(x)
        assert model.sample(500, random_state=0).min() > 0
        weight = rng.integers(1, 3, 150)
        counted = FlowDensity(options={"lower": 0}, **QUICK).fit(x, sample_weight=weight)
        assert counted.score(x) != model.score(x)

    def test_groups_are_held_out_whole(self, monkeypatch):
        x, _ = correlated(120, 2)
        names = np.array([f"patient {i}" for i in np.arange(120) // 6])
        name_of = {tuple(row): name for row, name in zip(x.astype("f4"), names, strict=True)}
        seen = []

        def recorded(train, held, setting, like):
            seen.append([{name_of[tuple(row)] for row in s.x.numpy()} for s in (train, held)])
            return _closed(StandardNormal(2), train, held, setting, like, copula=False)

        kinds = [Candidate("normal", recorded)]
        monkeypatch.setattr("flowkit.estimators.auto.candidates", lambda *sizes: kinds)
        weight = np.ones(120)
        weight[names == "patient 3"] = 0
        FlowDensity(random_state=0).fit(x, groups=names, sample_weight=weight)
        *parts, refitted = seen
        assert len(parts) == 3
        for train, held in parts:
            assert len(held) == 3
            assert not train & held
            assert train | held == {*names} - {"patient 3"}
        assert refitted[0] == {*names} - {"patient 3"}

    def test_weights_count_in_the_comparison_and_for_the_share_of_outliers(self, monkeypatch):
        x, _ = correlated(120, 2)
        weight = np.random.default_rng(0).uniform(0.5, 3, 120)
        given = []

        def recorded(table, weight):
            given.append(weight)
            return stack(table, weight)

        kinds = [Candidate("normal", partial(_closed, StandardNormal(2), copula=False))]
        monkeypatch.setattr("flowkit.estimators.auto.candidates", lambda *sizes: kinds)
        monkeypatch.setattr("flowkit.estimators.auto.stack", recorded)
        model = FlowDensity(random_state=0).fit(x, sample_weight=weight)
        # Each of them that of a sample, scaled to a mean of one.
        away = np.abs(np.subtract.outer(given[0], weight / weight.mean())).min(1)
        assert len(away) == model.comparison_.samples
        assert away.max() < 1e-5
        assert model.comparison_.weights[-1] == pytest.approx(
            1 / (1 + weight.sum() ** 2 / (weight**2).sum())
        )

    def test_one_column(self):
        x = stats.gamma(2).rvs(3000, random_state=0)[:, None]
        test = stats.gamma(2).rvs(20_000, random_state=1)[:, None]
        model = FlowDensity(random_state=0).fit(x)
        gap = stats.gamma(2).logpdf(test).mean() - model.score(test)
        assert -0.005 < gap < 0.03

    def test_what_it_cannot_do_is_said(self):
        counts = np.ones((50, 1)) + np.arange(50)[:, None] % 7
        counts[[3, 40]] = 0
        with pytest.raises(DataError, match=r"2 of 50 rows: row\(s\) \[3, 40\]"):
            FlowDensity(options={"lower": 0}).fit(counts)
        with pytest.raises(DataError, match="the noise that fills the cells of rounded columns"):
            FlowDensity(options={"lower": 0}, dequantize=1, random_state=0).fit(counts % 2)
        x, _ = correlated(50, 2)
        with pytest.raises(ArgumentError, match="expected options with lower and upper alone"):
            FlowDensity(options={"layers": 2}).fit(x)
        with pytest.raises(ArgumentError, match="compares densities on held-out samples"):
            FlowDensity(validation=None).fit(x)
