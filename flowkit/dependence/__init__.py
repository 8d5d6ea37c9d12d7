"""Covariances across observations, joint densities, and association tests of relatives."""

from flowkit.dependence.association import LinearMixedModel, rank_normalised
from flowkit.dependence.base import RowCovariance
from flowkit.dependence.blocks import EquicorrelatedBlocks
from flowkit.dependence.dense import (
    GivenCovariance,
    KroneckerCovariance,
    Spatial,
    SumOfCovariances,
)
from flowkit.dependence.joint import UpdateCovariance, joint_log_prob, sample_jointly
from flowkit.dependence.kinship import Kinship
from flowkit.dependence.structured import StructuredKinship
from flowkit.dependence.time import AutoregressiveTime

__all__ = [
    "AutoregressiveTime",
    "EquicorrelatedBlocks",
    "GivenCovariance",
    "Kinship",
    "KroneckerCovariance",
    "LinearMixedModel",
    "RowCovariance",
    "Spatial",
    "StructuredKinship",
    "SumOfCovariances",
    "UpdateCovariance",
    "joint_log_prob",
    "rank_normalised",
    "sample_jointly",
]
