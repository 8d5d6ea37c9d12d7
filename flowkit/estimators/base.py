"""What the estimators share: reading input, seeds, devices, precision, building and training.

scikit-learn's conventions are followed here: validation in its wording, ``random_state``, NumPy in
and out. What is trained, and how, is a recipe and :func:`flowkit.fit`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from flowkit import checks
from flowkit.data.precision import choose_dtype
from flowkit.datasets.lattice import Lattice
from flowkit.density import Density, check_density
from flowkit.errors import ArgumentError, DataError, FlowFileError, OutsideError
from flowkit.estimators.auto import Comparison, choose
from flowkit.estimators.candidates import Samples, Setting
from flowkit.estimators.rounded import DequantizedLikelihood
from flowkit.estimators.splits import check_groups, splits
from flowkit.flow import Flow
from flowkit.io import load, read_extra, save
from flowkit.numerics.noise import drawing_from
from flowkit.recipes.parts import build_for_columns
from flowkit.training import History, fit

if TYPE_CHECKING:
    from typing_extensions import Self

_OF_FIT = ("epochs", "steps", "batch_size", "lr", "validation", "patience", "compile")


@dataclass(eq=False, repr=False)
class FlowEstimator(BaseEstimator):
    """Shared parts of estimators that fit the flow of a recipe to columns of numbers.

    The arguments are described in :class:`flowkit.estimators.FlowDensity`; ``fit`` of a subclass
    calls :meth:`_fit_flow`.

    Attributes:
        flow_: The fitted :class:`flowkit.Flow`, in float64 and evaluation mode.
        dtype_: The dtype in which the flow was trained, and is written to files.
        history_: The :class:`flowkit.History` of the fit; with ``recipe="auto"`` that of the
            flow of most weight, empty if no flow has weight.
        comparison_: With ``recipe="auto"``, how the candidates compare.
        lattice_: Widths and offsets of the values that rounded columns can take.
        n_features_in_: Number of columns seen by ``fit``.
        feature_names_in_: Names of the columns, if ``fit`` was given a frame with text names.
    """

    recipe: str = "auto"
    options: Mapping[str, Any] | None = None
    _: KW_ONLY
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float = 2e-3
    validation: float | None = 0.15
    patience: int | None = 16
    dequantize: float | Sequence[float] | None = None
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False
    device: str = "cpu"
    compile: bool | str = "auto"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a flow file, which :func:`flowkit.load` reads too.

        Nothing is pickled. A ``random_state`` that is no integer is not stored.

        Args:
            path: Where to write, usually ``*.safetensors``.

        Raises:
            NotFittedError: Before ``fit``.
            FlowFileError: If the flow cannot be described, see :func:`flowkit.save`, or an
                argument of the estimator is no JSON value.

        Example:
            >>> import tempfile
            >>> import numpy as np
            >>> from flowkit.estimators import FlowDensity
            >>> X = np.linspace(0, 1, 50)[:, None]
            >>> model = FlowDensity("elementwise_flow", epochs=1).fit(X)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/model.safetensors")
            ...     again = FlowDensity.load(f"{folder}/model.safetensors")
            >>> bool((again.score_samples(X) == model.score_samples(X)).all())
            True
        """
        check_is_fitted(self, "flow_")
        state: Any = self.random_state
        seed = int(state) if checks.is_integer(state) else None
        parameters = {**self.get_params(), "random_state": seed}
        width, offset = (values.tolist() for values in self.lattice_)
        names = getattr(self, "feature_names_in_", np.empty(0)).tolist()
        columns = names or [f"x{i + 1}" for i in range(self.n_features_in_)]
        stored = {
            "class": type(self).__name__,
            "parameters": parameters,
            "lattice": [width, offset],
            "names": names,
            "history": asdict(self.history_),
            "comparison": asdict(self.comparison_) if hasattr(self, "comparison_") else None,
        }
        integers = [c for c, w, o in zip(columns, width, offset, strict=True) if (w, o) == (1, 0)]
        extra = {"columns": columns, "dequantized": integers, "estimator": stored}
        save(copy.deepcopy(self.flow_).to(self.dtype_), path, extra=extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a fitted estimator from a file written by :meth:`save`.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If there is no such file.
            FlowFileError: If the file is damaged, or holds no estimator of this class.
        """
        stored = read_extra(path).get("estimator", {})
        if not isinstance(stored, dict) or stored.get("class") != cls.__name__:
            raise FlowFileError(
                f"{path} holds no {cls.__name__}; remedy: flowkit.load, which reads any flow"
            )
        try:
            model = cls(**stored["parameters"])
            model.history_ = History(**stored["history"])
            if stored["comparison"] is not None:
                model.comparison_ = Comparison(**stored["comparison"])
            lattice = Lattice(*map(np.array, stored["lattice"]))
            if stored["names"]:
                model.feature_names_in_ = np.array(stored["names"], dtype=object)
        except (KeyError, TypeError, ValueError) as error:
            raise FlowFileError(f"{path} describes no {cls.__name__}: {error}") from None
        return model._set_flow(load(path), lattice)

    @classmethod
    def from_flow(cls, flow: Density, width: float | Sequence[float] = 0.0) -> Self:
        """Make a fitted estimator of a flow that was trained elsewhere.

        Args:
            flow: A flow of columns, or a mixture of such flows, without context; taken over,
                and cast to float64.
            width: Widths of the cells of columns that hold multiples of them; 0 for others.

        Raises:
            ArgumentError: If the flow has no exact density of columns alone, or a width is not a
                finite number >= 0.

        Example:
            >>> import flowkit
            >>> from flowkit.estimators import FlowDensity
            >>> FlowDensity.from_flow(flowkit.elementwise_flow(3)).sample(5).shape
            (5, 3)
        """
        check_exact(cls.__name__, check_density(cls.__name__, flow))
        widths = checks.numbers(cls.__name__, "width", width, flow.event_shape[0], least=0)
        return cls()._set_flow(flow, Lattice(np.array(widths), np.zeros(len(widths))))

    def _set_flow(self, flow: Density, lattice: Lattice) -> Self:
        self.dtype_ = flow.dtype or torch.float32
        self.flow_, self.lattice_ = flow.eval().double(), lattice
        self.n_features_in_ = flow.event_shape[0]
        return self

    def _read(self, X: Any, owner: str) -> np.ndarray:
        """Check input of a fitted estimator: its columns, and the values of rounded ones."""
        check_is_fitted(self, "flow_")
        X = validate_data(self, unmasked(X), dtype=np.float64, reset=False)
        self.lattice_.check(X, owner, self._names(X.shape[1]))
        return X

    def _names(self, columns: int) -> list[Any]:
        return getattr(self, "feature_names_in_", np.arange(columns)).tolist()

    def _fit_flow(self, X: Any, sample_weight: Any, groups: Any) -> Self:
        """Check the data, build the flow of the recipe for their columns, and train it.

        With ``recipe="auto"`` several densities are fitted, and those that held-out samples prefer
        are averaged.
        """
        owner = type(self).__name__
        X = validate_data(self, unmasked(X), dtype=np.float64, ensure_min_samples=2)
        if self.validation is not None:
            # fit would also take an array here, which cross-validation could not split.
            checks.number(owner, "validation", self.validation, least=0, below=1)
        given = 0 if self.dequantize is None else self.dequantize
        width = np.array(checks.numbers(owner, "dequantize", given, X.shape[1], least=0))
        weight = check_weight(owner, sample_weight, len(X))
        group = check_groups(groups, len(X))
        if weight is not None:
            group = None if group is None else group[weight > 0]
            X, weight = X[weight > 0], weight[weight > 0]
        names = self._names(X.shape[1])
        lattice = Lattice.of(X, width)
        lattice.check(X, f"{owner} with dequantize", names)
        dtype = choose_dtype(X, width, names)
        fabric = fabric_on(owner, self.device)
        seed = seed_from(owner, self.random_state)
        if self.recipe == "auto":
            return self._choose(X, weight, group, lattice, dtype, fabric, seed)
        with drawing_from(torch.Generator().manual_seed(seed)):
            flow = self._build_flow(X.shape[1]).to(dtype)
        options = {name: getattr(self, name) for name in _OF_FIT}
        data = {"x": X} if weight is None else {"x": X, "weight": weight}
        if group is not None and self.validation:
            ((train, held),) = splits(owner, X, group, seed, self.validation)
            # Batches of whole groups would only be noisier.
            options["validation"] = {name: values[held] for name, values in data.items()}
            data = {name: values[train] for name, values in data.items()}
        self.history_ = fit(
            flow,
            data,
            DequantizedLikelihood(torch.from_numpy(width).to(dtype)) if width.any() else None,
            fabric=fabric,
            seed=seed,
            progress=bool(self.verbose),
            **options,
        )
        return self._set_flow(flow, lattice)

    def _choose(
        self,
        X: np.ndarray,
        weight: np.ndarray | None,
        group: np.ndarray | None,
        lattice: Lattice,
        dtype: torch.dtype,
        fabric: Any,
        seed: int,
    ) -> Self:
        """Compare candidates, and keep the mixture that held-out samples prefer."""
        owner, ends = type(self).__name__, {} if self.options is None else self.options
        if not isinstance(ends, Mapping) or {*ends} - {"lower", "upper"}:
            raise ArgumentError(
                f"{owner} with recipe='auto' expected options with lower and upper alone, got "
                f"{ends!r}; remedy: recipe='coupling_flow', or another by name"
            )
        if not self.validation:
            raise ArgumentError(
                f"{owner} with recipe='auto' compares densities on held-out samples, got "
                f"validation={self.validation!r}; remedy: validation=0.15, or a recipe by name"
            )
        # Noise that fills the cells of rounded columns, the same for all candidates.
        noise = np.random.default_rng(seed).random(X.shape) - 0.5
        x = torch.from_numpy(X + lattice.width * noise).to(dtype)
        samples = Samples(x, None if weight is None else torch.from_numpy(weight).to(dtype))
        options = {name: getattr(self, name) for name in _OF_FIT if name != "validation"}
        setting = Setting(
            ends.get("lower"), ends.get("upper"), seed, {**options, "fabric": fabric}
        )
        try:
            # Copies of a row are told from others before the noise, by columns without it.
            rows = X if (lattice.width == 0).any() else x.numpy()
            choice = choose(
                samples, rows, group, setting, self.validation, verbose=bool(self.verbose)
            )
        except OutsideError as error:
            if not lattice.width.any():
                raise
            raise OutsideError(
                f"{error.text}; these values include the noise that fills the cells of rounded "
                "columns: half a cell on each side",
                error.rows,
            ) from None
        self.comparison_, self.history_ = choice.comparison, choice.history
        return self._set_flow(choice.flow, lattice)

    def _build_flow(self, columns: int) -> Flow:
        owner, options = type(self).__name__, {} if self.options is None else self.options
        if not isinstance(options, Mapping):
            expected = f"a dict of arguments of {self.recipe}, or None"
            raise checks.fail(owner, "options", expected, options)
        for size in {"features", "event_shape"} & set(options):
            raise ArgumentError(
                f"{owner} reads {size} from the columns of X; remedy: leave it out of options"
            )
        flow = build_for_columns(self.recipe, columns, **options)
        check_exact(owner, flow)
        return flow


def check_exact(owner: str, flow: Density) -> None:
    """Refuse a flow that has no exact density of columns alone.

    Raises:
        ArgumentError: If it is stochastic, conditional or of images.
    """
    kinds = {
        "stochastic": flow.stochastic,
        "conditional": flow.needs_context,
        f"of events {flow.event_shape}": len(flow.event_shape) != 1,
    }
    kind = next((name for name, true in kinds.items() if true), None)
    if kind is not None:
        raise ArgumentError(
            f"{owner} expected a flow with an exact density of columns alone, got one that is "
            f"{kind}; remedy: flowkit.fit and the methods of the flow"
        )


def unmasked(values: Any) -> Any:
    """Masked values as NaN, which is refused; scikit-learn would read what is behind the mask."""
    return np.ma.filled(values.astype(float), np.nan) if np.ma.isMaskedArray(values) else values


def check_weight(owner: str, sample_weight: Any, samples: int) -> np.ndarray | None:
    """Scale weights to a mean of 1 over the samples that count.

    Raises:
        DataError: If there is not one weight >= 0 per sample, two of them positive.
        ValueError: In scikit-learn's wording, for NaN and infinity.
    """
    if sample_weight is None:
        return None
    weight = check_array(
        unmasked(sample_weight), ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.shape != (samples,):
        raise DataError(
            f"sample_weight expected one weight per row of X, shape ({samples},), got "
            f"{weight.shape}"
        )
    if (weight < 0).any():
        raise DataError(
            f"sample_weight expected weights >= 0, got {weight.min()} in row {weight.argmin()}; "
            "remedy: set the weight of rows to leave out to 0"
        )
    positive = np.count_nonzero(weight)
    if positive < 2:
        raise DataError(
            f"{owner} expected at least 2 rows with a non-zero sample_weight, got {positive}"
        )
    weight = weight / weight.max()
    return weight * (positive / weight.sum())


def seed_from(owner: str, random_state: Any) -> int:
    """Draw a seed for torch; ``None`` asks the operating system, not NumPy's global state.

    Raises:
        ArgumentError: If nothing random follows from it.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    try:
        state = check_random_state(random_state)
    except ValueError:
        expected = f"an integer from 0 to {2**32 - 1}, a numpy.random.RandomState or None"
        raise checks.fail(owner, "random_state", expected, random_state) from None
    return int(state.randint(np.iinfo(np.int32).max))


def fabric_on(owner: str, device: str) -> Any:
    """Make the Fabric of one device.

    Raises:
        DataError: If there is no such device.
    """
    from lightning_fabric import Fabric

    try:
        place = torch.device(device)
        devices = 1 if place.index is None or place.type == "cpu" else [place.index]
        return Fabric(accelerator=place.type, devices=devices)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{owner} cannot train on device {device!r} ({error}); remedy: device='cpu', or "
            "'cuda' on a machine with a CUDA device"
        ) from None
