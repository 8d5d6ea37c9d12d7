"""The ``flowkit`` command."""

from flowkit.cli.app import main as main
