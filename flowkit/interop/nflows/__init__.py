"""Conversion from nflows with trained weights, and flowkit's transforms in flows of nflows.

``reading`` converts what ``checking`` compares, ``scalars`` holds nflows' parameterisations of
scalar maps, ``nets`` its networks as conditioners; ``wrapper`` is the other direction.
"""

from flowkit.interop.nflows.reading import from_nflows
from flowkit.interop.nflows.wrapper import to_nflows

__all__ = ["from_nflows", "to_nflows"]
