"""FlowDensity keeps scikit-learn's contract, finds known densities, and says what is wrong."""

import inspect
import io
import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from packaging.version import Version
from registry import ESTIMATORS
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import flowkit
from flowkit.errors import ArgumentError, DataError, FlowFileError
from flowkit.estimators import FlowDensity
from flowkit.io import read_extra
from flowkit.recipes import RECIPES

torch.set_num_threads(1)

SMALL = {"layers": 2, "hidden": (16,)}


def quick(**settings):
    return FlowDensity(
        **{"recipe": "coupling_flow", "options": SMALL, "epochs": 2, "random_state": 0, **settings}
    )


def normal_rows(rows=200, columns=2, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(normal_rows())


# scikit-learn's contract


def every_recipe():
    """One small estimator for every recipe of rows with a density, and for each of its options.

    ``stochastic_flow`` has no exact density, two are of images; all three are refused.
    """
    own = {
        "box_flow": [{"lower": -1e6, "upper": 1e6}],
        "coupling_flow": [
            {},
            {"scalar": "affine"},
            {"conditioner": "residual"},
            {"linear": None, "base": "student_t"},
        ],
        "kernelised_flow": [{}, {"points": None, "n_frequencies": 4}],
        "smooth_flow": [{}, {"structure": "autoregressive"}],
        "tail_adaptive_flow": [{"tails": 3.0}, {"tails": 3.0, "structure": "coupling"}],
    }
    small = {"layers": 1, "hidden": (8,), "points": 4}
    for name, function in RECIPES.items():
        # Without context elementwise flows have no networks.
        small["hidden"] = None if name == "elementwise_flow" else (8,)
        known = inspect.signature(function).parameters
        given = {key: value for key, value in small.items() if key in known}
        for options in own.get(name, [{}]):
            if name not in ("conv_flow", "glow_flow", "stochastic_flow"):
                yield FlowDensity(name, {**given, **options}, epochs=1)


@parametrize_with_checks([*ESTIMATORS, *every_recipe()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_every_public_estimator_is_registered():
    public = {getattr(flowkit.estimators, name) for name in flowkit.estimators.__all__}
    assert public == {type(estimator) for estimator in ESTIMATORS}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("kernelised_flow", {}), ("tail_adaptive_flow", {"tails": 3.0, "structure": "coupling"})],
)
def test_one_column_for_a_flow_that_needs_two_is_an_error_in_scikit_learn_s_words(recipe, options):
    with pytest.raises(ValueError, match=r"more than 1 feature\(s\), .* remedy"):
        FlowDensity(recipe, options).fit(normal_rows()[:, :1])


def test_scikit_learn_contract_under_array_api_dispatch():
    # SciPy must be imported with the variable set.
    version = Version(sklearn.__version__)
    if version < Version("1.7"):
        pytest.importorskip("array_api_compat", reason="scikit-learn 1.6 dispatches by it")
    code = (
        "import numpy as np\n"
        "from sklearn import config_context\n"
        "from sklearn.utils.estimator_checks import estimator_checks_generator\n"
        "from flowkit.estimators import FlowDensity\n"
        "options = {'layers': 2, 'hidden': (16,)}\n"
        "settings = dict(recipe='coupling_flow', options=options, epochs=2, random_state=0)\n"
        "X = np.random.default_rng(0).normal(size=(50, 2))\n"
        "plain = FlowDensity(**settings).fit(X)\n"
        "with config_context(array_api_dispatch=True):\n"
        "    model = FlowDensity(**settings).fit(X)\n"
        "    assert np.array_equal(model.score_samples(X), plain.score_samples(X))\n"
        "    assert np.array_equal(model.sample(3, 0), plain.sample(3, 0))\n"
        "for estimator, check in estimator_checks_generator(FlowDensity(**settings)):\n"
        "    if 'array_api' in getattr(check, 'func', check).__name__:\n"
        "        check(estimator)\n"
        "        print('checked')\n"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if version >= Version("1.9"):  # it has a check for estimators of NumPy arrays alone
        assert "checked" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("coupling_flow", None),
        ("autoregressive_flow", {"layers": 2}),
        ("elementwise_flow", {"base": "student_t"}),
        ("dense_flow", {}),
        ("tail_adaptive_flow", {"tails": [2.0, None, None], "layers": 1}),
    ],
)
def test_default_training_copes_with_ten_rows(recipe, options):
    X = normal_rows(rows=10, columns=3)
    model = FlowDensity(recipe, options, random_state=0).fit(X)
    assert np.isfinite(model.score_samples(10 * X)).all()
    assert np.isfinite(model.sample(100, random_state=0)).all()


def test_constructor_stores_its_arguments_untouched():
    options = {"layers": 3}
    model = FlowDensity("coupling_flow", options, random_state=np.random.RandomState(0))
    assert model.options is options
    assert clone(model).get_params()["options"] == options


def test_pipeline_with_a_scaler_scores_and_samples():
    X = normal_rows() * [1.0, 50.0] + [0.0, 1000.0]
    pipeline = make_pipeline(StandardScaler(), quick()).fit(X)
    scaled = pipeline[0].transform(X)
    assert pipeline.score(X) == pipeline[1].score(scaled)
    np.testing.assert_array_equal(pipeline.score_samples(X), pipeline[1].score_samples(scaled))


def test_grid_search_over_options_prefers_a_flow_that_sees_the_dependence():
    # Correlation 0.95: independent margins lose -log(1 - 0.95^2) / 2 = 1.16 nats a row.
    X = normal_rows(rows=400) @ np.array([[1.0, 0.95], [0.0, np.sqrt(1 - 0.95**2)]])
    grid = [
        {"recipe": ["elementwise_flow"], "options": [None]},
        {"recipe": ["coupling_flow"], "options": [SMALL, {**SMALL, "scalar": "affine"}]},
    ]
    search = GridSearchCV(quick(epochs=30, lr=1e-2), grid, cv=2).fit(X)
    assert search.best_params_["recipe"] == "coupling_flow"
    scores = search.cv_results_["mean_test_score"]
    assert scores[1:].min() - scores[0] > 0.5
    assert search.best_estimator_.score(X) == search.score(X)


def test_cross_validation_returns_the_mean_log_density_of_each_fold():
    X = normal_rows(rows=61)
    scores = cross_val_score(quick(), X, cv=[(np.arange(40), np.arange(40, 61))])
    model = quick().fit(X[:40])
    assert scores[0] == pytest.approx(model.score_samples(X[40:]).mean(), abs=1e-12)


def test_frames_give_feature_names_and_the_numbers_of_arrays():
    X = normal_rows()
    frame = pd.DataFrame(X, columns=["height", "weight"])
    model = quick().fit(frame)
    assert model.feature_names_in_.tolist() == ["height", "weight"]
    np.testing.assert_array_equal(model.score_samples(frame), quick().fit(X).score_samples(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.score_samples(frame[["weight", "height"]])


# Numbers


def test_known_density_is_recovered():
    # x ~ N(0, 1), y | x ~ N(x^2 / 2, 1/4): not normal, entropy log(2 pi e) + log(1/2).
    def banana(rows, seed):
        z = normal_rows(rows, seed=seed)
        return np.column_stack([z[:, 0], z[:, 0] ** 2 / 2 + z[:, 1] / 2])

    def residual(X):
        return (X[:, 1] - X[:, 0] ** 2 / 2) / 0.5

    model = quick(options={"layers": 4, "hidden": (32,)}, epochs=30, batch_size=128, lr=5e-3)
    model.fit(banana(2000, seed=1))
    X = banana(4000, seed=2)
    truth = -np.log(2 * np.pi) - X[:, 0] ** 2 / 2 - residual(X) ** 2 / 2 - np.log(0.5)
    gap = truth - model.score_samples(X)
    error = gap.std() / np.sqrt(len(gap))
    # The mean gap estimates KL(p || q) >= 0; 0.1 nats is what 2000 rows are asked to reach.
    assert -4 * error < gap.mean() < 0.1 + 4 * error
    entropy = np.log(2 * np.pi * np.e) + np.log(0.5)
    assert abs(model.score(X) + entropy) < 0.1 + 4 * model.score_samples(X).std() / np.sqrt(len(X))
    # Four standard errors of 4000 draws are 0.063 for the mean and 0.045 for the deviation.
    noise = residual(model.sample(4000, random_state=3))
    assert abs(noise.mean()) < 0.063 + 0.1
    assert abs(noise.std() - 1) < 0.045 + 0.15


def test_densities_are_in_the_units_of_the_data():
    X = normal_rows()
    scale = np.array([1e-6, 1e6]) * 2
    # Batches smaller than the data: over the rows that the flow starts from, the gradient of a
    # shift vanishes up to rounding, which Adam would amplify.
    metres, other = (quick(batch_size=50).fit(X * units) for units in (1, scale))
    shift = np.log(scale).sum()
    np.testing.assert_allclose(
        metres.score_samples(X) - shift, other.score_samples(X * scale), atol=2e-3
    )


def test_large_offsets_do_not_cost_precision():
    # In float32 the numbers near 1e9 are 64 apart; these have a standard deviation of 1.
    X = normal_rows(rows=500, columns=1)
    near, far = quick().fit(X), quick().fit(X + 1e9)
    np.testing.assert_allclose(near.score_samples(X), far.score_samples(X + 1e9), atol=1e-3)


def test_single_and_double_precision_input_agree():
    X = normal_rows().astype(np.float32)
    model = quick().fit(X)
    scores = model.score_samples(X)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, quick().fit(X.astype(np.float64)).score_samples(X))


def test_many_rows_are_scored_and_sampled_in_parts(fitted):
    X = fitted.sample(20_001, random_state=0)
    assert X.shape == (20_001, 2)
    np.testing.assert_allclose(
        fitted.score_samples(X)[-5:], fitted.score_samples(X[-5:]), rtol=1e-12
    )


def test_dequantized_density_at_a_count_is_its_probability():
    counts = np.random.default_rng(0).binomial(6, 0.5, size=(2000, 1))
    model = FlowDensity("elementwise_flow", epochs=40, dequantize=1, lr=1e-2, random_state=0)
    density = np.exp(model.fit(counts).score_samples(np.arange(7.0)[:, None]))
    probability = np.array([1, 6, 15, 20, 15, 6, 1]) / 64
    # Four standard errors of the largest frequency, and 0.02 for the corners of the cells.
    assert np.abs(density - probability).max() < 4 * np.sqrt(0.31 * 0.69 / 2000) + 0.02


def test_dequantize_takes_one_width_a_column_and_gives_constant_columns_a_density():
    X = np.column_stack([normal_rows(columns=1)[:, 0], np.full(200, 5.0)])
    model = quick(dequantize=[0, 2.0], epochs=20, lr=1e-2).fit(X)
    assert np.isfinite(model.score(X))
    column = model.sample(2000, random_state=0)[:, 1]
    # Uniform on [4, 6]: deviation 1 / sqrt(3), standard error 0.013.
    assert abs(column.mean() - 5) < 4 * 0.013 + 0.1


# Weights


def full_batch(**settings):
    return quick(**{"validation": None, "epochs": 5, "batch_size": 10_000, **settings})


def test_weight_two_is_two_rows():
    # The offset makes it train in float64, where Adam does not amplify the rounding of gradients.
    X = 5000 + normal_rows(rows=60)
    weight = np.where(np.arange(60) < 20, 2, 1)
    weighted = full_batch().fit(X, sample_weight=weight)
    repeated = full_batch().fit(X.repeat(weight, axis=0))
    plain = full_batch().fit(X)
    difference = np.abs(weighted.score_samples(X) - repeated.score_samples(X)).max()
    assert difference < 1e-6
    assert np.abs(weighted.score_samples(X) - plain.score_samples(X)).max() > 1e-2


def test_weight_zero_takes_a_row_out():
    X = normal_rows()
    weight = np.ones(200)
    weight[::3] = 0
    kept = quick().fit(X[weight > 0]).score_samples(X)
    np.testing.assert_allclose(quick().fit(X, sample_weight=weight).score_samples(X), kept, 1e-5)


def test_only_the_ratios_of_weights_matter():
    X, weight = normal_rows(), np.random.default_rng(1).uniform(0.1, 3, size=200)
    once = quick().fit(X, sample_weight=weight).score_samples(X)
    np.testing.assert_array_equal(
        once, quick().fit(X, sample_weight=2.0**-80 * weight).score_samples(X)
    )


def test_importance_weights_move_the_density():
    # Rows of N(0, 2^2), weighted by N(1, 1) / N(0, 2^2), stand for N(1, 1).
    X = 2 * normal_rows(rows=4000, columns=1)
    weight = np.exp(-((X[:, 0] - 1) ** 2) / 2 + X[:, 0] ** 2 / 8)
    model = FlowDensity("elementwise_flow", epochs=20, lr=1e-2, random_state=0)
    draws = model.fit(X, sample_weight=weight).sample(4000, random_state=0)
    error = 1 / np.sqrt(4000) + 1 / np.sqrt(weight.sum() ** 2 / (weight**2).sum())
    assert abs(draws.mean() - 1) < 4 * error
    assert abs(draws.std() - 1) < 4 * error


# Groups


def test_no_group_is_both_held_out_and_trained_on(monkeypatch):
    seen = []

    def recorded(flow, data, *arguments, validation, **options):
        # The whole part of the first column is the group.
        seen.extend(np.floor(part["x"][:, 0]) for part in (data, validation))
        seen.extend(part["weight"] for part in (data, validation))
        return flowkit.fit(flow, data, *arguments, validation=validation, **options)

    monkeypatch.setattr("flowkit.estimators.base.fit", recorded)
    number = np.arange(200) // 8
    X = np.column_stack([number + np.linspace(0, 0.9, 200), normal_rows()[:, 0]])
    groups = pd.Series(number).map("group {}".format)
    weight = np.where(np.arange(200) % 8, 1.0, 0.0)
    quick(validation=0.2).fit(X, groups=groups, sample_weight=weight)
    train, held, train_weight, held_weight = seen
    assert len({*held}) == 5
    assert {*train} | {*held} == {*range(25)}
    assert not {*train} & {*held}
    assert len(train_weight) == len(train) == 140
    assert len(held_weight) == len(held) == 35


def test_repeats_in_groups_of_their_own_are_weights_with_validation_too():
    X = 5000 + normal_rows(rows=60)
    weight = np.where(np.arange(60) < 20, 2, 1)
    names = np.arange(60)
    weighted = full_batch(validation=0.25).fit(X, groups=names, sample_weight=weight)
    repeated = full_batch(validation=0.25).fit(X.repeat(weight, 0), groups=names.repeat(weight))
    np.testing.assert_allclose(weighted.score_samples(X), repeated.score_samples(X), atol=1e-6)
    assert weighted.history_.validation == pytest.approx(repeated.history_.validation, abs=1e-6)


def test_groups_reach_a_fit_through_grid_searches():
    X, groups = normal_rows(), np.arange(200) // 10
    plain = cross_val_score(quick(), X, cv=3)
    given = cross_val_score(quick(), X, cv=3, params={"groups": groups})
    assert not np.array_equal(plain, given)
    with sklearn.config_context(enable_metadata_routing=True):
        asked = quick().set_fit_request(groups=True, sample_weight=False)
        search = GridSearchCV(asked, {"lr": [2e-3]}, cv=GroupKFold(3)).fit(X, groups=groups)
    best = quick().fit(X, groups=groups)
    np.testing.assert_array_equal(search.best_estimator_.score_samples(X), best.score_samples(X))
    assert not np.array_equal(best.score_samples(X), quick().fit(X).score_samples(X))


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (np.arange(3), r"one group per row of X, shape \(200,\), got \(3,\)"),
        ("abc", r"one group per row of X, shape \(200,\), got \(\)"),
        (np.zeros(200), "holds out whole groups and expected at least 2, got 1; remedy"),
        (["a", None] * 100, "a name for every row, got missing ones"),
        (np.array(["a", 1] * 100, dtype=object), "names that can be sorted.*; remedy"),
    ],
)
def test_unusable_groups_are_refused(groups, text):
    for recipe in ("coupling_flow", "auto"):
        with pytest.raises(DataError, match=text):
            quick(recipe=recipe, options=None if recipe == "auto" else SMALL).fit(
                normal_rows(), groups=groups
            )


# Randomness and pickles


def test_same_random_state_is_the_same_fit():
    X = normal_rows()
    once, again, other = (quick(random_state=seed).fit(X) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once.score_samples(X), again.score_samples(X))
    assert once.history_.validation == again.history_.validation
    assert once.history_.train != other.history_.train


def test_random_state_none_differs_and_an_instance_is_advanced():
    X = normal_rows()

    def losses(random_state):
        return quick(random_state=random_state).fit(X).history_.train

    assert losses(None) != losses(None)
    shared = np.random.RandomState(0)
    first, second = losses(shared), losses(shared)
    assert first != second
    assert first == losses(np.random.RandomState(0))


def test_samples_repeat_with_their_random_state(fitted):
    first = fitted.sample(50, random_state=1)
    assert first.dtype == np.float64
    np.testing.assert_array_equal(first, fitted.sample(50, random_state=1))
    assert not np.array_equal(first, fitted.sample(50, random_state=2))
    assert not np.array_equal(fitted.sample(50), fitted.sample(50))


@pytest.mark.parametrize("random_state", [0, None])
def test_global_random_states_are_untouched(random_state):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    model = quick(random_state=random_state, dequantize=0.1).fit(normal_rows().round(1))
    model.score_samples(model.sample(5, random_state=random_state))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(
        np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True)
    )


@pytest.mark.parametrize("how", ["pickle", "joblib", "flow file"])
def test_stored_estimators_give_the_same_bits(fitted, how, tmp_path):
    X = normal_rows(seed=1)
    expected = fitted.score_samples(X)
    if how == "flow file":
        flowkit.save(fitted.flow_, tmp_path / "flow.safetensors")
        flow = flowkit.load(tmp_path / "flow.safetensors")
        np.testing.assert_array_equal(flow.log_prob(torch.tensor(X)).detach().numpy(), expected)
        return
    if how == "pickle":
        again = pickle.loads(pickle.dumps(fitted))
    else:
        file = io.BytesIO()
        joblib.dump(fitted, file)
        file.seek(0)
        again = joblib.load(file)
    np.testing.assert_array_equal(again.score_samples(X), expected)
    np.testing.assert_array_equal(
        again.sample(9, random_state=0), fitted.sample(9, random_state=0)
    )


def test_a_saved_estimator_is_the_same_model_with_its_names_and_cells(tmp_path):
    frame = pd.DataFrame(normal_rows().round(), columns=["height", "weight"])
    frame["height"] += normal_rows(seed=1)[:, 0]
    model = quick(dequantize=[0, 1], options={"layers": 2, "hidden": [16]}).fit(frame)
    model.save(tmp_path / "model.safetensors")
    again = FlowDensity.load(tmp_path / "model.safetensors")
    assert repr(again) == repr(model)
    assert again.history_ == model.history_
    np.testing.assert_array_equal(again.score_samples(frame), model.score_samples(frame))
    np.testing.assert_array_equal(again.sample(9, random_state=0), model.sample(9, random_state=0))
    with pytest.raises(ValueError, match="feature names should match"):
        again.score_samples(frame[["weight", "height"]])
    with pytest.raises(DataError, match="multiples of 1 in column 'weight'"):
        again.score_samples(frame + 0.3)
    assert read_extra(tmp_path / "model.safetensors")["columns"] == ["height", "weight"]
    flowkit.save(flowkit.coupling_flow(2, layers=1), tmp_path / "flow.safetensors")
    with pytest.raises(FlowFileError, match="holds no FlowDensity; remedy: flowkit.load"):
        FlowDensity.load(tmp_path / "flow.safetensors")
    damaged = {"estimator": {"class": "FlowDensity", "parameters": {"colour": 1}}}
    flowkit.save(flowkit.coupling_flow(2, layers=1), tmp_path / "flow.safetensors", extra=damaged)
    with pytest.raises(FlowFileError, match="describes no FlowDensity: .*colour"):
        FlowDensity.load(tmp_path / "flow.safetensors")
    with pytest.raises(NotFittedError):
        quick().save(tmp_path / "none.safetensors")


def test_fitting_again_starts_anew(fitted):
    X = normal_rows()
    model = quick().fit(normal_rows(columns=3))
    np.testing.assert_array_equal(model.fit(X).score_samples(X), fitted.score_samples(X))
    assert model.n_features_in_ == 2


def test_verbose_shows_a_progress_bar(capsys):
    quick().fit(normal_rows())
    assert capsys.readouterr().err == ""
    quick(verbose=True).fit(normal_rows())
    assert "step" in capsys.readouterr().err


# Mistakes


def with_cell(value):
    X = normal_rows()
    X[3, 1] = value
    return X


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        (with_cell(np.nan), ValueError, "Input X contains NaN"),
        (with_cell(np.inf), ValueError, "Input X contains infinity"),
        ([["a", "b"], ["c", "d"]], ValueError, "could not convert string to float"),
        (normal_rows(1), ValueError, "1 sample.* while a minimum of 2 is required"),
        (np.empty((0, 2)), ValueError, "0 sample"),
        (np.arange(5.0), ValueError, "Reshape your data"),
        (np.ones((5, 2)), DataError, r"column\(s\) 0, 1 of X are constant.*remedy: drop them"),
        (normal_rows() * [1, 1e200], DataError, r"column\(s\) 1 of X .*change their units"),
        (
            pd.DataFrame({"a": [1.0, 2.0, 3.0], "flat": [1e9, 1e9, 1e9]}),
            DataError,
            r"column\(s\) 'flat' of X are constant",
        ),
    ],
)
def test_unusable_data_are_refused(X, error, text):
    with pytest.raises(error, match=text):
        quick().fit(X)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"recipe": "coupling_fow"}, ArgumentError, "did you mean 'coupling_flow'"),
        (
            {"recipe": "tail_adaptive_flow", "options": {"tails": [2.0]}},
            ArgumentError,
            "expected tails as a tail index > 0 for each of 2 feature",
        ),
        (
            {"recipe": "dense_flow", "options": {"event_shape": 2}},
            ArgumentError,
            "reads event_shape from the columns",
        ),
        ({"options": {"layer": 2}}, ArgumentError, "did you mean 'layers'"),
        ({"options": {"features": 2}}, ArgumentError, "leave it out of options"),
        (
            {"options": ["layers"]},
            ArgumentError,
            "options as a dict of arguments of coupling_flow",
        ),
        (
            {"options": {**SMALL, "context": 1}},
            ArgumentError,
            "is conditional; remedy: flowkit.fit",
        ),
        ({"validation": 1.5}, ArgumentError, r"number >= 0 and < 1, got 1.5"),
        ({"validation": normal_rows()}, ArgumentError, "got an array of shape"),
        ({"epochs": 0}, ArgumentError, "epochs as an integer >= 1, got 0"),
        ({"batch_size": 0.5}, ArgumentError, "batch_size as an integer >= 1, got 0.5"),
        ({"dequantize": -1}, ArgumentError, "dequantize as .* >= 0, or one for each of 2"),
        ({"dequantize": [1, 1, 1]}, ArgumentError, r"each of 2 .* got \[1, 1, 1\]"),
        ({"dequantize": "auto"}, ArgumentError, "got 'auto'"),
        ({"device": "gpu"}, DataError, "cannot train on device 'gpu'.*remedy: device='cpu'"),
        ({"random_state": "zero"}, ArgumentError, "random_state as an integer .*, got 'zero'"),
    ],
)
def test_unusable_arguments_are_refused(settings, error, text):
    with pytest.raises(error, match=text):
        quick(**settings).fit(normal_rows())


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (np.ones(3), r"one weight per row of X, shape \(200,\), got \(3,\)"),
        (np.r_[-1.0, np.ones(199)], "weights >= 0, got -1.0 in row 0"),
        (np.r_[1.0, np.zeros(199)], "at least 2 rows with a non-zero sample_weight, got 1"),
        (np.r_[np.nan, np.ones(199)], "sample_weight contains NaN"),
    ],
)
def test_unusable_weights_are_refused(weight, text):
    with pytest.raises(ValueError, match=text):
        quick().fit(normal_rows(), sample_weight=weight)


def test_wrong_columns_are_refused_when_scoring(fitted):
    with pytest.raises(ValueError, match="X has 3 features, but FlowDensity is expecting 2"):
        fitted.score_samples(normal_rows(columns=3))


@pytest.mark.parametrize("n_samples", [0, 2.5, "many"])
def test_sample_needs_an_integer(fitted, n_samples):
    with pytest.raises(ArgumentError, match=f"an integer >= 1, got {n_samples!r}"):
        fitted.sample(n_samples)


@pytest.mark.parametrize("method", ["score_samples", "score"])
def test_nothing_is_scored_or_drawn_before_fit(method):
    with pytest.raises(NotFittedError, match="FlowDensity instance is not fitted yet"):
        getattr(quick(), method)(normal_rows())
    with pytest.raises(NotFittedError, match="not fitted yet"):
        quick().sample()


def test_an_estimator_reads_as_its_call_and_as_a_table_in_notebooks(fitted):
    assert repr(FlowDensity()) == "FlowDensity()"
    text = repr(quick(lr=0.01))
    assert eval(text, {"FlowDensity": FlowDensity}).get_params() == quick(lr=0.01).get_params()
    page = fitted._repr_html_()
    assert "FlowDensity" in page
    assert "epochs" in page


def test_a_failed_fit_leaves_the_estimator_unfitted():
    model = quick()
    with pytest.raises(DataError, match="constant"):
        model.fit(np.ones((5, 2)))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        model.score_samples(np.ones((5, 2)))


def test_masked_values_are_missing_and_not_what_is_behind_the_mask():
    X = np.random.default_rng(0).normal(size=(40, 2))
    model = FlowDensity("elementwise_flow", epochs=1).fit(np.ma.masked_array(X, mask=False))
    masked = np.ma.masked_array(X, mask=X > 1.5)
    with pytest.raises(ValueError, match="NaN"):
        FlowDensity("elementwise_flow", epochs=1).fit(masked)
    with pytest.raises(ValueError, match="NaN"):
        model.score_samples(masked)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X, sample_weight=np.ma.masked_array(np.ones(40), mask=X[:, 0] > 1))
