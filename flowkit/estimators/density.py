"""FlowDensity: a normalizing flow as a scikit-learn density estimator.

scikit-learn's conventions are kept here, at the edge: validation in its wording, ``random_state``,
NumPy in and out. What is trained, and how, is a recipe and :func:`flowkit.fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from flowkit.data.precision import cell_widths, choose_dtype
from flowkit.datasets.lattice import Lattice
from flowkit.errors import ArgumentError, DataError
from flowkit.estimators.rounded import DequantizedLikelihood, cell_log_prob
from flowkit.flow import Flow
from flowkit.numerics.noise import drawing_from
from flowkit.recipes.registry import build_for_columns
from flowkit.training import fit

_ROWS_AT_ONCE = 8192


class FlowDensity(DensityMixin, BaseEstimator):
    r"""Density estimation with a normalizing flow, in the manner of scikit-learn.

    .. math:: \max \sum_i w_i \log p(x_i), \quad \log p(x) = \log p_Z(T(x)) + \log|\det T'(x)|

    over the parameters of a flow that a recipe builds. The flow is trained in float32, or in
    float64 if the spread of a column is below a thousandth of its size (dates, say), and scores in
    float64.

    Args:
        recipe: Name of a flow in :mod:`flowkit.recipes`, such as ``"coupling_flow"``,
            ``"autoregressive_flow"`` or ``"elementwise_flow"``.
        options: Arguments of the recipe other than ``features``, such as
            ``{"layers": 4, "hidden": (64, 64)}``; ``None`` for its defaults. A grid search runs
            over a list of such dicts.
        epochs: Maximum number of epochs.
        batch_size: Rows per step.
        lr: Learning rate of Adam, lowered to zero along a cosine over ``epochs``.
        validation: Fraction of the rows held out to choose the best epoch, in [0, 1); ``0`` or
            ``None`` trains on all rows for all epochs.
        patience: Epochs without a better validation likelihood before stopping; ``None`` for no
            limit.
        dequantize: Width w of the cells to which the data were rounded, in the units of the data:
            one number, or one per column with 0 for columns that were not rounded. ``1`` suits
            integers. A value stands for the cell :math:`[x - w/2, x + w/2)` around it (see
            :func:`flowkit.data.dequantize`): every training step sees :math:`x + u`,
            :math:`u \sim U[-w/2, w/2)`, drawn anew; scores are averages of the density over the
            cell, and samples are rounded back. Without it, a column with many ties is fitted by
            ever narrower spikes.
        random_state: Seed of the weights, the split, the shuffling and the noise: an int, a
            ``numpy.random.RandomState``, which is advanced, or ``None`` for a different fit each
            time. The global random states of NumPy and torch are neither read nor changed.
        verbose: Whether to show a progress bar.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on. The fitted flow
            comes back to the CPU, so that a pickle opens on any machine.
        compile: Whether to compile the training steps; see :func:`flowkit.fit`.

    Attributes:
        flow_: The fitted :class:`flowkit.Flow`, in float64 and evaluation mode. After
            ``flow_.to("cuda")`` the estimator scores and samples there.
        history_: The :class:`flowkit.History` of the fit.
        lattice_: Widths and offsets of the values that rounded columns can take.
        n_features_in_: Number of columns seen by ``fit``.
        feature_names_in_: Names of the columns, if ``fit`` was given a frame with text names.

    Raises:
        DataError: From ``fit``, if a column is constant or beyond the range of float64, or if an
            argument, the device or the weights cannot be used; also from ``score_samples``, if
            values of a column are not rounded as ``dequantize`` says.
        ArgumentError: From ``fit``, if the recipe or one of its options is unknown or does not fit.
        ValueError: From ``fit``, ``score_samples`` and ``score``, in scikit-learn's wording, for
            NaN, infinity, text, a single row, or another number of columns than in ``fit``.
        NonFiniteLossError: From ``fit``, if the loss becomes NaN or infinite.

    References:
        Papamakarios et al. 2021, Normalizing Flows for Probabilistic Modeling and Inference,
        arXiv 1912.02762.

    Example:
        >>> import numpy as np
        >>> from flowkit.estimators import FlowDensity
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = FlowDensity(options={"layers": 2, "hidden": (16,)}, epochs=3, random_state=0)
        >>> log_density = model.fit(X).score_samples(X)
        >>> log_density.shape, log_density.dtype, bool(model.score(X) == log_density.mean())
        ((200,), dtype('float64'), True)
        >>> model.sample(5, random_state=1).shape
        (5, 2)
    """

    flow_: Flow
    lattice_: Lattice
    n_features_in_: int
    feature_names_in_: np.ndarray

    def __init__(
        self,
        recipe: str = "coupling_flow",
        options: Mapping[str, Any] | None = None,
        *,
        epochs: int = 100,
        batch_size: int = 256,
        lr: float = 1e-3,
        validation: float | None = 0.1,
        patience: int | None = 20,
        dequantize: float | Sequence[float] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        device: str = "cpu",
        compile: bool | str = "auto",
    ) -> None:
        self.recipe = recipe
        self.options = options
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation = validation
        self.patience = patience
        self.dequantize = dequantize
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.compile = compile

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowDensity:
        """Fit the flow.

        Args:
            X: ``(rows, columns)``, numbers, in any units: the flow standardises for itself.
            y: Ignored; pipelines pass it.
            sample_weight: ``(rows,)``, non-negative; a weight of 2 counts as two rows, and a
                weight of 0 takes the row out. Only the ratios matter.

        Returns:
            The estimator itself.

        Raises:
            DataError, ArgumentError, ValueError, NonFiniteLossError: See the class.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]])
            >>> FlowDensity().fit(X)
            Traceback (most recent call last):
            ...
            flowkit.errors.DataError: column(s) 1 of X are constant, so they have no density;
            remedy: drop them, or set dequantize to the width to which they were rounded
        """
        X = validate_data(self, _unmasked(X), dtype=np.float64, ensure_min_samples=2)
        self._check_validation()
        width = cell_widths("FlowDensity", self.dequantize, X.shape[1])
        weight = _check_weight(sample_weight, len(X))
        if weight is not None:
            X, weight = X[weight > 0], weight[weight > 0]
        self.lattice_ = Lattice.of(X, width)
        names = self._names(X.shape[1])
        self.lattice_.check(X, "FlowDensity with dequantize", names)
        dtype = choose_dtype(X, width, names)
        fabric = _fabric_on(self.device)
        seed = _seed_from(self.random_state)
        with drawing_from(torch.Generator().manual_seed(seed)):
            flow = self._build_flow(X.shape[1]).to(dtype)
        data = {"x": X} if weight is None else {"x": X, "weight": weight}
        self.history_ = fit(
            flow,
            data,
            DequantizedLikelihood(torch.from_numpy(width).to(dtype)) if width.any() else None,
            validation=self.validation,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            patience=self.patience,
            compile=self.compile,
            fabric=fabric,
            seed=seed,
            progress=bool(self.verbose),
        )
        self.flow_ = flow.double()
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of every row, in nats, in the units of the data.

        With ``dequantize`` it is the logarithm of the average density over the cell of the row:
        plus the logarithms of the widths, the log-probability of the rounded row.

        Args:
            X: ``(rows, columns)``.

        Returns:
            ``(rows,)``, float64.

        Raises:
            NotFittedError: Before ``fit``.
            ValueError: If X cannot be used; see the class.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.linspace(0, 1, 50)[:, None]
            >>> FlowDensity("elementwise_flow", epochs=1).fit(X).score_samples(X[:4]).shape
            (4,)
        """
        check_is_fitted(self, "flow_")
        X = validate_data(self, _unmasked(X), dtype=np.float64, reset=False)
        device = self.flow_.initialized.device
        self.lattice_.check(X, "score_samples", self._names(X.shape[1]))
        parts = [
            cell_log_prob(self.flow_, torch.tensor(part, device=device), self.lattice_.width).cpu()
            for part in np.split(X, range(_ROWS_AT_ONCE, len(X), _ROWS_AT_ONCE))
        ]
        return torch.cat(parts).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-density of the rows, in nats; higher is better.

        A mean, as in :class:`sklearn.mixture.GaussianMixture`, so that folds of unequal size can
        be compared; :class:`sklearn.neighbors.KernelDensity` returns the total instead.

        Args:
            X: ``(rows, columns)``.
            y: Ignored; grid searches pass it.

        Example:
            >>> import numpy as np
            >>> from sklearn.model_selection import cross_val_score
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.random.default_rng(0).normal(size=(60, 1))
            >>> cross_val_score(FlowDensity("elementwise_flow", epochs=1), X, cv=3).shape
            (3,)
        """
        return float(self.score_samples(X).mean())

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draw rows from the fitted density.

        Args:
            n_samples: How many, 1 or more.
            random_state: As in the class: the same int gives the same rows; ``None`` gives others
                each time.

        Returns:
            ``(n_samples, columns)``, float64, in the units of the data; with ``dequantize``
            rounded to the values that the data can take.

        Raises:
            NotFittedError: Before ``fit``.
            DataError: If ``n_samples`` is not a whole number of 1 or more.
            NotInvertibleError: If the flow of the recipe cannot be sampled.

        Example:
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.linspace(0, 1, 50)[:, None]
            >>> model = FlowDensity("elementwise_flow", epochs=1).fit(X)
            >>> bool((model.sample(3, random_state=0) == model.sample(3, random_state=0)).all())
            True
        """
        check_is_fitted(self, "flow_")
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise DataError(
                f"sample expected n_samples to be a whole number >= 1, got {n_samples!r}; remedy: "
                "for example sample(1000)"
            )
        generator = torch.Generator(self.flow_.initialized.device)
        generator.manual_seed(_seed_from(random_state))
        full, rest = divmod(int(n_samples), _ROWS_AT_ONCE)
        sizes = [_ROWS_AT_ONCE] * full + [rest] * (rest > 0)
        drawn = torch.cat([self.flow_.sample(n, generator=generator).cpu() for n in sizes])
        return self.lattice_.round(drawn.numpy())

    def _check_validation(self) -> None:
        # fit would also take an array here, which cross-validation could not split.
        if self.validation is not None and not isinstance(self.validation, Real):
            raise DataError(
                "FlowDensity expected validation to be a fraction of the rows in [0, 1) or None, "
                f"got {type(self.validation).__name__}; remedy: validation=0.1, or flowkit.fit, "
                "which takes validation data"
            )

    def _names(self, columns: int) -> list[Any]:
        return getattr(self, "feature_names_in_", np.arange(columns)).tolist()

    def _build_flow(self, columns: int) -> Flow:
        options = {} if self.options is None else self.options
        if not isinstance(options, Mapping):
            raise ArgumentError(
                f"FlowDensity expected options to be a dict of arguments of {self.recipe}, or "
                f"None; got {options!r}"
            )
        for size in {"features", "event_shape"} & set(options):
            raise ArgumentError(
                f"FlowDensity reads {size} from the columns of X; remedy: leave it out of options"
            )
        flow = build_for_columns(self.recipe, columns, **options)
        if flow.needs_context or flow.stochastic:
            kind = "conditional" if flow.needs_context else "stochastic"
            raise ArgumentError(
                f"FlowDensity needs a flow with an exact density of X alone; {self.recipe} with "
                f"options {dict(options)} is {kind}; remedy: train it with flowkit.fit"
            )
        return flow


def _unmasked(values: Any) -> Any:
    """Masked values as NaN, which is refused; scikit-learn would read what is behind the mask."""
    return np.ma.filled(values.astype(float), np.nan) if np.ma.isMaskedArray(values) else values


def _check_weight(sample_weight: Any, rows: int) -> np.ndarray | None:
    """Weights with mean 1 over the rows that count."""
    if sample_weight is None:
        return None
    weight = check_array(
        _unmasked(sample_weight), ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.shape != (rows,):
        raise DataError(
            f"sample_weight expected one weight a row of X, shape ({rows},), got {weight.shape}"
        )
    if (weight < 0).any():
        raise DataError(
            f"sample_weight expected weights >= 0, got {weight.min()} in row {weight.argmin()}; "
            "remedy: set the weight of rows to leave out to 0"
        )
    positive = np.count_nonzero(weight)
    if positive < 2:
        raise DataError(
            f"FlowDensity needs at least 2 rows with a non-zero sample_weight, got {positive}"
        )
    weight = weight / weight.max()
    return weight * (positive / weight.sum())


def _seed_from(random_state: Any) -> int:
    """A seed for torch; ``None`` asks the operating system, not NumPy's global state."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _fabric_on(device: str) -> Any:
    from lightning_fabric import Fabric

    try:
        place = torch.device(device)
        devices = 1 if place.index is None or place.type == "cpu" else [place.index]
        return Fabric(accelerator=place.type, devices=devices)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"FlowDensity cannot train on device {device!r} ({error}); remedy: device='cpu', or "
            "'cuda' on a machine with a CUDA device"
        ) from None
