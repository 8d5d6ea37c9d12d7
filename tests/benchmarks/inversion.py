"""The inverse of smooth mixtures beside plain bisection: calls and time on one batch.

``PYTHONPATH=tests python -m benchmarks.inversion`` writes ``docs/results/inversion.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import flowkit
from flowkit.scalar import CircularSmoothMixture, RealSmoothMixture, SmoothMixture, smooth

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "inversion.md"
SHAPE = (4096, 32)


def bisect(
    f: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, tolerance: float
) -> Tensor:
    """Halve brackets of equal width until they are below ``tolerance`` of the first."""
    width = 1.0
    while width > tolerance:
        middle = torch.lerp(lower, upper, 0.5)
        low = f(middle) < 0
        lower, upper = torch.where(low, middle, lower), torch.where(low, upper, middle)
        width /= 2
    return torch.lerp(lower, upper, 0.5)


def calls_of(solve: Callable[[], object]) -> int:
    """Calls of the search's function, less the last one, which gives the log-slope."""
    plain, calls = smooth._Residual.__call__, -1

    def count(self: smooth._Residual, x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return plain(self, x)

    smooth._Residual.__call__ = count  # type: ignore[method-assign]
    try:
        solve()
    finally:
        smooth._Residual.__call__ = plain  # type: ignore[method-assign]
    return calls


def measure(f: SmoothMixture, dtype: torch.dtype, scale: float, rounds: int) -> list[str]:
    """One row of the table: interleaved rounds, medians of CPU time."""
    generator = torch.Generator().manual_seed(0)
    params = scale * torch.randn(f.param_size, *SHAPE, generator=generator, dtype=dtype)
    params = params.movedim(0, -1)
    y = f.lower + (f.upper - f.lower) * torch.rand(*SHAPE, generator=generator, dtype=dtype)
    kept: dict[str, smooth._Residual] = {}
    search = smooth.find_root_in_bins

    def keep(residual: smooth._Residual, *args: Tensor, **kwargs: float) -> tuple[Tensor, Tensor]:
        kept["residual"] = residual
        return search(residual, *args, **kwargs)  # type: ignore[arg-type]

    smooth.find_root_in_bins = keep  # type: ignore[assignment]
    f.inverse(y, params)
    smooth.find_root_in_bins = search
    ends = [torch.full_like(y, end) for end in (f.lower, f.upper)]
    units = [torch.full((y.numel(),), end, dtype=dtype) for end in (0.0, 1.0)]
    ways = {
        "inverse": lambda: f.inverse(y, params),
        "plain": lambda: bisect(lambda x: f.forward(x, params)[0] - y, *ends, f.tolerance),
        "shared": lambda: bisect(lambda x: kept["residual"](x)[0], *units, f.tolerance),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - begun))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        f"`{type(f).__name__}`",
        str(dtype).removeprefix("torch."),
        f"{f.tolerance:g}",
        f"{scale:g}",
        str(calls_of(lambda: f.inverse(y, params))),
        f"{medians['inverse']:.0f}",
        f"{medians['plain']:.0f}",
        f"{medians['plain'] / medians['inverse']:.1f}",
        f"{medians['shared']:.0f}",
        f"{medians['shared'] / medians['inverse']:.1f}",
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = [
        "map", "dtype", "tolerance", "s", "calls", "inverse, ms",
        "bisection, ms", "ratio", "with shared setup, ms", "ratio",
    ]  # fmt: skip
    rows = []
    with torch.no_grad():
        for kind in (SmoothMixture, RealSmoothMixture, CircularSmoothMixture):
            for dtype, tolerance in (
                (torch.float32, 1e-6), (torch.float64, 1e-6), (torch.float64, 1e-12),
            ):  # fmt: skip
                for scale in (1.0, 3.0) if tolerance == 1e-6 else (1.0,):
                    rows.append(measure(kind(tolerance=tolerance), dtype, scale, options.rounds))
                    print(" | ".join(rows[-1]), flush=True)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * 4 + ["--:"] * 6, *rows)]
    command = " ".join(["python -m benchmarks.inversion", *sys.argv[1:]])
    options.output.write_text(
        "# The inverse of smooth mixtures\n\n"
        f"`PYTHONPATH=tests {command}`: flowkit {flowkit.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, CPU time, medians "
        f"of {options.rounds} interleaved rounds.\n\n"
        f"{SHAPE[0]} x {SHAPE[1]} numbers uniform over the interval, 8 components, parameters "
        "N(0, s^2) with the s given, default `points`. Calls: batched evaluations until every "
        "number is within the tolerance, in units of the interval; one more gives the log-slope. "
        "Inverse: all of `inverse`, with setup and log-slope. Bisection: as many halvings as the "
        "tolerance takes, each a call of `forward`; with shared setup: of a function that has "
        "unpacked the parameters once and gives no log-slope.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
