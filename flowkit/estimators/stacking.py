"""Weights of a mixture of fitted densities, by their log-densities of held-out samples."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

_ITERATIONS = 1000
_TOLERANCE = 1e-9


def stack(
    log_density: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    least: float = 0.05,
    most: int = 3,
) -> np.ndarray:
    r"""The weights w that maximise the held-out likelihood of a mixture of given densities.

    .. math:: \max_w \sum_i v_i \log \sum_k w_k\, p_k(x_i) + \sum_k \log w_k, \quad \sum_k w_k = 1

    by expectation maximisation, which finds the only maximum. The second term is that of one more
    sample per density, so that few samples leave the weights near each other. Densities of a
    weight below ``least`` are left out, the lightest first, until at most ``most`` are left.

    Args:
        log_density: ``(samples, densities)``, of samples that no density was fitted to; ``-inf``
            where a density is zero.
        weight: Weights v of the samples.
        least: Weight below which a density is left out.
        most: Number of densities kept at most.

    Returns:
        ``(densities,)``, with a sum of one.

    References:
        Smyth and Wolpert 1999, Linearly combining density estimators via stacking,
        doi:10.1023/A:1007511322260.

    Example:
        >>> import numpy as np
        >>> from scipy.stats import norm
        >>> from flowkit.estimators.stacking import stack
        >>> x = np.random.default_rng(0).normal(size=4000)
        >>> x[:1000] += 6
        >>> densities = np.stack([norm(m).logpdf(x) for m in (0, 6, 20)], 1)
        >>> stack(densities).round(2).tolist()
        [0.75, 0.25, 0.0]
    """
    count = log_density.shape[1]
    v = np.ones(len(log_density)) if weight is None else np.asarray(weight, dtype=np.float64)
    kept = np.ones(count, dtype=bool)
    while True:
        weights = np.zeros(count)
        weights[kept] = _expectation_maximisation(log_density[:, kept], v)
        lightest = np.flatnonzero(kept)[weights[kept].argmin()]
        if kept.sum() <= most and weights[lightest] >= least or kept.sum() == 1:
            return weights
        kept[lightest] = False


def _expectation_maximisation(log_density: np.ndarray, v: np.ndarray) -> np.ndarray:
    count = log_density.shape[1]
    # A sample that every density gives zero says nothing about the weights.
    known = np.isfinite(log_density).any(1)
    terms, v = log_density[known], v[known]
    weights = np.full(count, 1 / count)
    for _ in range(_ITERATIONS):
        with np.errstate(divide="ignore"):
            joint = np.log(weights) + terms
        share = np.exp(joint - logsumexp(joint, 1, keepdims=True))
        new = (v @ share + 1) / (v.sum() + count)
        done = np.abs(new - weights).max() < _TOLERANCE
        weights = new
        if done:
            break
    return weights
