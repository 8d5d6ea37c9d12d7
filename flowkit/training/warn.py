"""Warnings that point at the line of the user's code that called into the package."""

from __future__ import annotations

import sys
import warnings


def warn(text: str) -> None:
    """Warn at the first caller outside of the package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "flowkit" or module == "contextlib"
