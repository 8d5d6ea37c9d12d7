"""Default fits to data that are hard for their scale, offset, collinearity or gaps.

The bar is 0.1 nats from the normal that was fitted to the same samples, and from the truth where
there are 1,000 samples or more. Data are float32 where that holds them, and float64 else.
"""

import numpy as np
import pytest
import torch
from scipy import stats

import flowkit
from flowkit import fit
from flowkit.estimators import FlowDensity

ALLOWED = 0.1


def normal(mean, factor, n):
    """Samples of a normal, others to score, and its log-density."""
    factor = np.asarray(factor, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, test = (mean + rng.normal(size=(k, len(factor))) @ factor.T for k in (n, 4000))
    _, log_det = np.linalg.slogdet(factor)

    def log_density(rows):
        u = np.linalg.solve(factor, (rows - mean).T).T
        return stats.norm.logpdf(u).sum(1) - log_det

    return x, test, log_density


def fitted_normal(x, test):
    """The mean log-density of the test samples under the maximum-likelihood normal."""
    scale = x.std(0)
    z, t = (x - x.mean(0)) / scale, (test - x.mean(0)) / scale
    covariance = z.T @ z / len(z)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1] / 2 + np.log(scale).sum()
    return float(-0.5 * (t * np.linalg.solve(covariance, t.T).T).sum(1).mean() - log_det)


def clusters(n):
    rng = np.random.default_rng(0)
    x, test = (
        rng.normal(size=(k, 2)) + 1000 * rng.integers(0, 2, (k, 1)) - 500 for k in (n, 4000)
    )

    def log_density(rows):
        terms = [stats.norm.logpdf(rows, m).sum(1) for m in (-500, 500)]
        return np.logaddexp(*terms) - np.log(2)

    return x, test, log_density


CORRELATED = np.linalg.cholesky(0.7 * np.ones((6, 6)) + 0.3 * np.eye(6))
SAME = np.column_stack([np.ones(4), *(1e-4 * np.eye(4)[:, 1:].T)])
PLANE = np.array([[1.0, 0.0], [0.8, 0.6]])

#: Samples, and whether float32 holds them.
CASES = {
    "four columns equal to 1e-4": (lambda: normal(0, SAME, 1000), False),
    "clusters at +-500": (lambda: clusters(1000), True),
    "correlated, 100 samples": (lambda: normal(0, CORRELATED, 100), True),
    "correlated, 300 samples": (lambda: normal(0, CORRELATED, 300), True),
    "offset 1e6": (lambda: normal(1e6, PLANE, 1000), False),
    "offset 1e8": (lambda: normal(1e8, PLANE, 1000), False),
    "scale 1e-9": (lambda: normal(0, 1e-9 * PLANE, 1000), True),
    "relative spread 1e-6": (lambda: normal([1.0, 0.0], [[1e-6, 0], [0, 1]], 1000), False),
}


def by_flow(recipe):
    def score(x, test, single):
        dtype = torch.float32 if single else torch.float64
        flow = getattr(flowkit, recipe)(x.shape[1], seed=0).to(dtype)
        fit(flow, torch.tensor(x, dtype=dtype), progress=False)
        with torch.no_grad():
            return float(flow.log_prob(torch.tensor(test, dtype=dtype)).double().mean())

    return score


def by_estimator(x, test, single):
    return FlowDensity(random_state=0).fit(x).score(test)


METHODS = {
    "autoregressive_flow": by_flow("autoregressive_flow"),
    "coupling_flow": by_flow("coupling_flow"),
    "FlowDensity": by_estimator,
}


FAST = "autoregressive_flow"


def cases():
    """Every case for every method; one method is fast enough for every run of the tests."""
    for method, score in METHODS.items():
        for case in CASES:
            marks = [] if method == FAST else [pytest.mark.slow]
            yield pytest.param(case, score, marks=marks, id=f"{method}-{case}")


@pytest.mark.parametrize(("case", "method"), list(cases()))
def test_default_fits_reach_the_normal_and_the_truth(case, method):
    make, single = CASES[case]
    x, test, log_density = make()
    found = method(x, test, single)
    assert found > fitted_normal(x, test) - ALLOWED
    if len(x) >= 1000:
        truth = log_density(test)
        error = truth.std() / len(truth) ** 0.5
        assert found > truth.mean() - ALLOWED
        # No density is better than the truth.
        assert found < truth.mean() + 4 * error
