"""Densities that ``FlowDensity(recipe="auto")`` compares: closed forms, mixtures, flows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from flowkit.bases import NormalMixture, StandardNormal
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.training import History, fit
from flowkit.transforms import Compose, Gaussianize, Standardize, Transform, Whiten

#: Numbers of components of the normal mixture that are compared, and samples per component.
_COMPONENTS, _SAMPLES_PER_COMPONENT = (2, 4, 8, 16, 32, 64), 5
_REGULARIZATION = 1e-6


class Samples(NamedTuple):
    """Samples, with their weights.

    Attributes:
        x: ``(samples, columns)``, rounded columns with noise.
        weight: ``(samples,)``, or ``None``.
    """

    x: Tensor
    weight: Tensor | None

    def at(self, index: np.ndarray) -> Samples:
        """Some of them."""
        places = torch.from_numpy(index)
        return Samples(self.x[places], None if self.weight is None else self.weight[places])

    def repeated(self) -> Tensor:
        """The samples, each repeated in proportion to its weight."""
        if self.weight is None:
            return self.x
        kept = self.weight > 0
        weight = self.weight[kept]
        unit = torch.maximum(weight.min(), weight.mean() / 16)
        return self.x[kept].repeat_interleave((weight / unit).round().long().clamp_min(1), 0)


class Setting(NamedTuple):
    """What the fit of a candidate needs beside the samples.

    Attributes:
        lower: Lower ends of the columns, as recipes take them.
        upper: Upper ends.
        seed: Seed.
        options: Arguments of :func:`flowkit.fit`.
    """

    lower: Any
    upper: Any
    seed: int
    options: dict[str, Any]


#: From training samples, held-out samples and a setting to a density and the history of its fit.
Fit = Callable[[Samples, Samples, Setting], tuple[Flow, History | None]]


class Candidate(NamedTuple):
    """A kind of density.

    Attributes:
        name: Its name.
        fit: Fits it.
        refit: Fits it to all samples, like one that was chosen; ``None`` where that is not cheap.
    """

    name: str
    fit: Fit
    refit: Callable[[Flow, Samples, Setting], Flow] | None


def candidates(columns: int) -> list[Candidate]:
    """The candidates for a table of so many columns."""
    chosen = [
        Candidate("normal", _closed(copula=False), _again(_closed(copula=False))),
        Candidate("copula", _closed(copula=True), _again(_closed(copula=True))),
        Candidate("normal mixture", _mixture, _mixture_again),
    ]
    flows = ("coupling_flow", "autoregressive_flow") if columns > 1 else ("elementwise_flow",)
    return [*chosen, *(Candidate(name, _recipe(name), None) for name in flows)]


def _start(samples: Samples, setting: Setting, *more: Transform) -> Compose:
    """Unconstrain, standardise, and other layers that start from data."""
    columns = samples.x.shape[1]
    ends = parts.unconstrained("FlowDensity", columns, setting.lower, setting.upper)
    return Compose(*ends, Standardize(columns), *more)


def _closed(*, copula: bool) -> Fit:
    """A normal, or a Gaussian copula with spline margins."""

    def fitted(train: Samples, held: Samples, setting: Setting) -> tuple[Flow, None]:
        columns = train.x.shape[1]
        margins = [Gaussianize(columns)] if copula else []
        transform = _start(train, setting, *margins, Whiten(columns))
        flow = Flow(transform, StandardNormal(columns)).to(train.x.dtype)
        flow.initialize(train.repeated())
        return flow, None

    return fitted


def _again(fitted: Fit) -> Callable[[Flow, Samples, Setting], Flow]:
    return lambda flow, samples, setting: fitted(samples, samples, setting)[0]


def _mixture(train: Samples, held: Samples, setting: Setting) -> tuple[Flow, None]:
    """A mixture of normals, with as many components as held-out samples prefer."""
    best, score = None, -np.inf
    most = len(train.x) / _SAMPLES_PER_COMPONENT
    for count in (k for k in _COMPONENTS if k <= max(most, 2)):
        flow = _of_components(train, setting, count)
        with torch.no_grad():
            found = flow.log_prob(held.x).double()
        weight = torch.ones_like(found) if held.weight is None else held.weight.double()
        value = float((weight * found).sum())
        if value > score:
            best, score = flow, value
        elif count > 4 * len(best.base.logits):  # type: ignore[union-attr]
            break
    return best, None  # type: ignore[return-value]


def _mixture_again(flow: Flow, samples: Samples, setting: Setting) -> Flow:
    return _of_components(samples, setting, len(flow.base.logits))  # type: ignore[arg-type]


def _of_components(samples: Samples, setting: Setting, count: int) -> Flow:
    transform = _start(samples, setting)
    columns = samples.x.shape[1]
    base = NormalMixture(columns, components=count, covariance="full")
    flow = Flow(transform, base).to(samples.x.dtype)
    rows = samples.repeated()
    flow.initialize(rows)
    with torch.no_grad():
        z = flow.transform(rows)[0].double().numpy()
    model = GaussianMixture(count, random_state=setting.seed, reg_covar=_REGULARIZATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z)
    base.assign(*map(torch.from_numpy, (model.weights_, model.means_, model.covariances_)))
    return flow


def _recipe(name: str) -> Fit:
    """A flow of a recipe, trained with early stopping."""

    def fitted(train: Samples, held: Samples, setting: Setting) -> tuple[Flow, History]:
        flow = parts.build_for_columns(
            name, train.x.shape[1], lower=setting.lower, upper=setting.upper, seed=setting.seed
        ).to(train.x.dtype)
        data, validation = (
            {k: v for k, v in part._asdict().items() if v is not None} for part in (train, held)
        )
        history = fit(
            flow, data, validation=validation, seed=setting.seed, progress=False, **setting.options
        )
        return flow, history

    return fitted
