"""When to compile: whether a compiler is there, whether it would pay, and who else traces."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

_SECONDS_TO_START = 10.0
_SECONDS_PER_LAYER = 8.0
_SAVED_PER_LAYER = 1e-3
_SAVED_PER_OPERATION = 0.8 / 5e10


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` finds what it needs; warns if not, and callers go on without."""
    if device.type != "cpu":
        return True
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is not None:
        return True
    warnings.warn(
        f"torch.compile needs a C++ compiler and finds no {compiler!r}, so the flow runs "
        "uncompiled, with the same results; remedy: install one, or name it in the environment "
        "variable CXX",
        stacklevel=3,
    )
    return False


def eager(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method run uncompiled where a compiled program calls it.

    For what such programs cannot do: differentiate within, draw from a generator, look at values.
    """

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        return (torch.compiler.disable(method) if compiling else method)(*args, **kwargs)

    return run


def is_traced() -> bool:
    """Whether a tracer sees every operation: a compiler, torch.jit.trace, torch.func, jvp."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def worth_compiling(layers: int, parameters: int, batch_size: int, steps: int) -> bool:
    """Whether compiled training steps save at least twice the time that compiling takes.

    A rule of measured constants and of sizes alone, not of a clock, so that the same fit takes
    the same way on every machine: compiling takes 10 s and 8 s per layer on a core of 2024; a
    compiled step saves 1 ms per layer, and 0.8 of the networks' own time at 5e10 operations per
    second, of which there are 6 per parameter and sample.

    Example:
        >>> worth_compiling(layers=8, parameters=260_000, batch_size=256, steps=3_000)
        False
        >>> worth_compiling(layers=8, parameters=260_000, batch_size=256, steps=30_000)
        True
    """
    saved = layers * _SAVED_PER_LAYER + 6 * parameters * batch_size * _SAVED_PER_OPERATION
    return steps * saved > 2 * seconds_to_compile(layers)


def seconds_to_compile(layers: int) -> float:
    """About how long compiling a training step takes, on a core of 2024."""
    return _SECONDS_TO_START + layers * _SECONDS_PER_LAYER
