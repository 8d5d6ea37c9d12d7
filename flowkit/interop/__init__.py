"""Conversions from and to other libraries, one package for each."""

from flowkit.interop import nflows as nflows
