"""The benchmark program: every kind, workload and size, beside the limit; see ``make bench``."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import flowkit

from .kinds import BAR_FEATURES, BARS, KINDS, WORKLOADS
from .libraries import LIBRARIES, Absent, Model, why_absent
from .limit import Limit
from .measure import Effort, measure
from .report import describe, write

# The allocator of glibc gives freed memory back to the system and fetches it anew, page by page:
# for tensors of some megabytes that costs as much as the arithmetic. These keep it.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**26),
}
COMPILED_KINDS = tuple(k for k in KINDS if not k.startswith("mixture"))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"D = {BAR_FEATURES} and few rounds")
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--features", nargs="+", type=int, help="default: 2 6 21 63 128")
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 4096])
    parser.add_argument("--rounds", type=int, help="rounds at most; default 15, quick 7")
    parser.add_argument(
        "--budget", type=float, default=0.6, help="CPU seconds a library in a cell"
    )
    parser.add_argument("--patience", type=float, default=20.0, help="CPU seconds a call at most")
    parser.add_argument(
        "--compiled-features",
        nargs="*",
        type=int,
        default=[BAR_FEATURES],
        help="numbers of features for which flowkit is also compiled (10 s and more a cell)",
    )
    parser.add_argument(
        "--allocator",
        default="keep",
        choices=("keep", "system"),
        help="keep: on Linux, glibc keeps freed memory, for all libraries alike; "
        "system: its own settings",
    )
    parser.add_argument("--output", type=Path, help="folder for benchmarks.md and .json")
    args = parser.parse_args(argv)
    args.features = args.features or ([BAR_FEATURES] if args.quick else [2, 6, 21, 63, 128])
    args.rounds = args.rounds or (7 if args.quick else 15)
    return args


def with_allocator(args: argparse.Namespace) -> None:
    """Start the program again under the allocator's settings, which are read at its start."""
    if args.allocator == "keep" and sys.platform == "linux" and not kept_memory():
        os.environ.update(ALLOCATOR)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def kept_memory() -> bool:
    """Whether this process runs under the allocator's settings."""
    return all(os.environ.get(k) == v for k, v in ALLOCATOR.items())


def cells(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every cell; one entry each."""
    libraries = []
    for name in args.libraries:
        reason = why_absent(name)
        if reason:
            print(f"without {name}: {reason}", flush=True)
        else:
            libraries.append(name)
    entries: list[dict[str, Any]] = []
    for kind in args.only:
        for features in sorted(args.features):
            # More time where the bars are.
            budget = args.budget * (2 if features == BAR_FEATURES and not args.quick else 1)
            effort = Effort(args.rounds, budget, patience=args.patience)
            models = _models(kind, features, libraries, args)
            limit = Limit(KINDS[kind], features)
            for workload in args.workloads:
                for batch in sorted(args.batches):
                    cell = {
                        "kind": kind,
                        "workload": workload,
                        "features": features,
                        "batch": batch,
                    }
                    able = {n: m for n, m in models.items() if not _hopeless(n, cell, entries)}
                    entries.append(cell | _measured(cell, limit, able, effort))
                    _tell(entries[-1])
                    yield entries[-1]


def _hopeless(name: str, cell: dict[str, Any], entries: Sequence[dict[str, Any]]) -> bool:
    """Whether a library was broken off in a cell no larger in any direction."""
    return any(
        (e["kind"], e["workload"]) == (cell["kind"], cell["workload"])
        and e["features"] <= cell["features"]
        and e["batch"] <= cell["batch"]
        and "ratio_at_least" in e["libraries"].get(name, {})
        for e in entries
    )


def _measured(
    cell: dict[str, Any], limit: Limit, models: dict[str, Model], effort: Effort
) -> dict[str, Any]:
    """The results of one cell."""
    x = torch.randn(cell["batch"], cell["features"])
    calls = {"limit": limit.call(cell["workload"], x)}
    models = models | _compared(cell, models)
    for name, model in models.items():
        with contextlib.suppress(Absent):
            calls[name] = model.call(cell["workload"], x)
    unseen = [name for name, model in models.items() if not model.torch_memory]
    timings = measure(calls, effort, ("compiled", "flowjax"), unseen)
    base = timings.pop("limit")
    return {
        "limit_milliseconds": base.summary()["milliseconds"],
        "limit_peak_bytes": base.peak_bytes,
        "libraries": {
            name: timing.summary() | {"parameters": models[name].size()}
            for name, timing in timings.items()
        },
    }


def _compared(cell: dict[str, Any], models: dict[str, Model]) -> dict[str, Model]:
    """The flow of another kind that a bar sets this cell against, under the name ``against``."""
    for bar in BARS:
        wanted = {
            "kind": bar.kind,
            "workload": bar.workload,
            "features": BAR_FEATURES,
            "batch": bar.batch,
        }
        if bar.against and wanted == cell and bar.library in models:
            torch.manual_seed(0)
            return {"against": LIBRARIES["flowkit"](KINDS[bar.against], cell["features"])}
    return {}


def _models(
    kind_name: str, features: int, libraries: Sequence[str], args: argparse.Namespace
) -> dict[str, Model]:
    """One flow for each library that has it, all from one seed."""
    models = {}
    for name in libraries:
        if name == "compiled" and (
            features not in args.compiled_features or kind_name not in COMPILED_KINDS
        ):
            continue
        torch.manual_seed(0)
        with contextlib.suppress(Absent):
            models[name] = LIBRARIES[name](KINDS[kind_name], features)
    return models


def _tell(entry: dict[str, Any]) -> None:
    numbers = []
    for name, result in entry["libraries"].items():
        value = result.get("ratio", result.get("ratio_at_least"))
        if value is not None:
            mark = "" if "ratio" in result else ">"
            numbers.append(f"{name} {mark}{value:.3g}")
    print(
        f"{entry['kind']} {entry['workload']} D={entry['features']} B={entry['batch']}: "
        f"limit {entry['limit_milliseconds']:.3g} ms; " + ", ".join(numbers),
        flush=True,
    )


def surroundings() -> dict[str, Any]:
    """Versions and processor; no date and no name of a machine."""
    versions = {"flowkit": flowkit.__version__}
    for name in ("torch", "nflows", "zuko", "normflows", "jax", "flowjax"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].split(":", 1)[1].strip() if lines else processor
    return {"versions": versions, "python": platform.python_version(), "processor": processor}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables, and write them where ``--output`` says."""
    args = parse(argv)
    torch.set_num_threads(1)
    given = sys.argv[1:] if argv is None else argv
    result = surroundings() | {
        "command": " ".join(["PYTHONPATH=tests python -m benchmarks", *given]),
        "allocator": "keep" if kept_memory() else "system",
        "cells": [],
    }
    for entry in cells(args):
        result["cells"].append(entry)
        if args.output:  # after every cell, so that a call that is cut short leaves its part
            write(result, args.output)
    print(describe(result))
    return result
