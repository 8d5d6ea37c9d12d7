"""flowkit: fit, sample and score probability densities with normalizing flows."""

__version__ = "0.1.0"
