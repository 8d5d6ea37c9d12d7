"""The contract of transforms as a program: check your own layers with :func:`check_transform`."""

from flowkit.testing.contract import ContractReport, RuleResult, check_transform

__all__ = ["ContractReport", "RuleResult", "check_transform"]
