"""The contract as programs: :func:`check_transform` for layers, :func:`check_scalar` for maps."""

from flowkit.testing.contract import check_transform
from flowkit.testing.report import ContractReport, RuleResult
from flowkit.testing.scalars import check_scalar

__all__ = ["ContractReport", "RuleResult", "check_scalar", "check_transform"]
