"""Dependence across rows: covariances of relatives, repeats and neighbours."""

from flowkit.dependence.base import RowCovariance
from flowkit.dependence.blocks import EquicorrelatedBlocks
from flowkit.dependence.dense import (
    GivenCovariance,
    KroneckerCovariance,
    Spatial,
    SumOfCovariances,
)
from flowkit.dependence.joint import joint_log_prob, sample_jointly, sample_relatives
from flowkit.dependence.kinship import Kinship
from flowkit.dependence.time import AutoregressiveTime

__all__ = [
    "AutoregressiveTime",
    "EquicorrelatedBlocks",
    "GivenCovariance",
    "Kinship",
    "KroneckerCovariance",
    "RowCovariance",
    "Spatial",
    "SumOfCovariances",
    "joint_log_prob",
    "sample_jointly",
    "sample_relatives",
]
