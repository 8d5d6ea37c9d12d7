"""flowkit's speed beside its limit and its peers: ``make bench``, or ``pytest tests/benchmarks``.

``kinds`` says what is measured, ``limit`` is what no flow can beat, ``libraries`` builds the same
flow in every library, ``measure`` takes the times, ``report`` writes the tables.
"""
