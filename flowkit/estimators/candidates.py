"""Densities that ``FlowDensity(recipe="auto")`` compares: closed forms, mixtures, flows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from flowkit.bases import Base, NormalMixture, StandardNormal, StudentT
from flowkit.data.batches import repeats
from flowkit.density import Density
from flowkit.flow import Flow
from flowkit.recipes import parts
from flowkit.training import History, fit
from flowkit.transforms import Compose, Gaussianize, Standardize, Transform, Whiten

#: Numbers of components of the normal mixture that are compared, and samples per component.
_COMPONENTS, _SAMPLES_PER_COMPONENT = (2, 4, 8, 16, 32, 64), 5
_REGULARIZATION = 1e-6
#: Degrees of freedom of the density for outliers: heavy tails of finite variance.
_DF = 4.0
_AT_ONCE = 8192
_BOTH_KINDS = 1000


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
        return self.x.repeat_interleave(repeats(self.weight), 0)

    def log_density(self, flow: Density) -> np.ndarray:
        """Log-densities of the samples, in float64."""
        with torch.no_grad():
            parts = [flow.log_prob(x) for x in self.x.split(_AT_ONCE)]
        return torch.cat(parts).double().cpu().numpy()

    def mean_log_density(self, flow: Density) -> float:
        """Their weighted mean."""
        weight = None if self.weight is None else self.weight.numpy()
        return float(np.average(self.log_density(flow), weights=weight))


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


class Fitted(NamedTuple):
    """A fitted candidate.

    Attributes:
        flow: The density.
        history: Of its training, if it was trained.
    """

    flow: Flow
    history: History | None = None


class Candidate(NamedTuple):
    """A kind of density.

    Attributes:
        name: Its name.
        fit: From training samples, held-out samples, a setting and its fit to another split, whose
            choices it makes again, to the density.
        refits: Whether one that was chosen is fitted again to all samples, which is cheap; what is
            not is averaged over the splits.
    """

    name: str
    fit: Callable[[Samples, Samples, Setting, Fitted | None], Fitted]
    refits: bool = True


def candidates(samples: int, columns: int) -> list[Candidate]:
    """The candidates for a table of so many samples and columns."""
    normal = StandardNormal(columns)
    closed = [
        Candidate("normal", partial(_closed, normal, copula=False)),
        Candidate("copula", partial(_closed, normal, copula=True)),
        Candidate("normal mixture", _mixture),
    ]
    if columns == 1:
        # A copula of one column is a flow of its margin.
        return closed
    # Of few samples the two kinds learn the same.
    flows = ("autoregressive_flow", "coupling_flow")[: 2 if samples >= _BOTH_KINDS else 1]
    return [*closed, *(Candidate(name, partial(_recipe, name), refits=False) for name in flows)]


def for_outliers(columns: int) -> Candidate:
    """Student-t distributions behind a whitening: a density for what no other one expects."""
    student = StudentT(columns, df=_DF, learn=False)
    return Candidate("Student-t", partial(_closed, student, copula=False))


def check_inside(samples: Samples, setting: Setting) -> None:
    """Refuse samples outside the ends, by their numbers among all.

    Raises:
        OutsideError: If there are any.
    """
    for layer in _ends(samples, setting):
        layer.initialize(samples.x)


def _ends(samples: Samples, setting: Setting) -> list[Transform]:
    columns = samples.x.shape[1]
    return parts.unconstrained("FlowDensity", columns, setting.lower, setting.upper)


def _start(samples: Samples, setting: Setting, *more: Transform) -> Compose:
    """Unconstrain, standardise, and other layers that start from data."""
    return Compose(*_ends(samples, setting), Standardize(samples.x.shape[1]), *more)


def _closed(
    base: Base,
    train: Samples,
    held: Samples,
    setting: Setting,
    like: Fitted | None,
    *,
    copula: bool,
) -> Fitted:
    """A base of independent columns behind a whitening, for a copula also behind margins."""
    columns = train.x.shape[1]
    margins = [Gaussianize(columns)] if copula else []
    transform = _start(train, setting, *margins, Whiten(columns))
    flow = Flow(transform, copy.deepcopy(base)).to(train.x.dtype)
    flow.initialize(train.repeated())
    return Fitted(flow)


def _mixture(train: Samples, held: Samples, setting: Setting, like: Fitted | None) -> Fitted:
    """A mixture of normals, with as many components as held-out samples prefer."""
    if like is not None:
        return _of_components(train, setting, len(like.flow.base.logits))  # type: ignore[arg-type]
    most = max(len(train.x) // _SAMPLES_PER_COMPONENT, _COMPONENTS[0])
    made = [_of_components(train, setting, k) for k in _COMPONENTS if k <= most]
    return max(made, key=lambda fitted: held.mean_log_density(fitted.flow))


def _of_components(samples: Samples, setting: Setting, count: int) -> Fitted:
    columns, rows = samples.x.shape[1], samples.repeated()
    base = NormalMixture(columns, components=count, covariance="full", seed=setting.seed)
    flow = Flow(_start(samples, setting), base).to(samples.x.dtype)
    flow.initialize(rows)
    with torch.no_grad():
        z = flow.transform(rows)[0].double().numpy()
    model = GaussianMixture(count, random_state=setting.seed, reg_covar=_REGULARIZATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z)
    base.assign(*map(torch.from_numpy, (model.weights_, model.means_, model.covariances_)))
    return Fitted(flow)


def _recipe(
    name: str, train: Samples, held: Samples, setting: Setting, like: Fitted | None
) -> Fitted:
    """A flow of a recipe, trained until held-out samples gain no more."""
    flow = parts.build_for_columns(
        name, train.x.shape[1], lower=setting.lower, upper=setting.upper, seed=setting.seed
    ).to(train.x.dtype)
    if like is not None and like.history is not None and like.history.started:
        flow.initialize(train.repeated(), start=like.history.started)
    data, validation = (
        {k: v for k, v in part._asdict().items() if v is not None} for part in (train, held)
    )
    history = fit(
        flow, data, validation=validation, seed=setting.seed, progress=False, **setting.options
    )
    return Fitted(flow, history)
