"""Flows to and from nflows, trained weights kept: :func:`from_nflows` and :func:`to_nflows`.

``reading`` and ``writing`` are the two directions, ``scalars`` holds nflows' parameterisations of
affine maps as scalar maps, and ``nets`` the networks that stand between the two libraries.
"""

from flowkit.interop.nflows.reading import from_nflows
from flowkit.interop.nflows.scalars import (
    Shift,
    SigmoidAffine,
    SoftplusAffine,
    SoftplusIntervalSpline,
    SoftplusSpline,
)
from flowkit.interop.nflows.writing import to_nflows

__all__ = [
    "Shift",
    "SigmoidAffine",
    "SoftplusAffine",
    "SoftplusIntervalSpline",
    "SoftplusSpline",
    "from_nflows",
    "to_nflows",
]
