"""Monte Carlo estimates with their standard errors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A number with its standard error; of weights (:mod:`flowkit.statistics`) in float64."""

    value: Tensor
    error: Tensor


def mean_of(terms: Tensor) -> Estimate:
    """Compute the mean over the first dimension; its standard error carries no gradient.

    Example:
        >>> import torch
        >>> value, error = mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        >>> value.item(), round(error.item(), 4)
        (2.5, 0.6455)
    """
    value = terms.mean(0)
    # Not torch.var, which warns of an empty batch.
    variance = (terms - value).detach().square().sum(0) / (len(terms) - 1)
    return Estimate(value, (variance / len(terms)).sqrt())
