"""The tables: ratios to the network-only baseline, bars reached or not, memory, parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .kinds import BAR_FEATURES, BARS, KINDS, Bar

COLUMNS = {
    "flowkit": "flowkit",
    "compiled": "flowkit compiled",
    "nflows": "nflows",
    "zuko": "zuko",
    "normflows": "normflows",
    "flowjax": "flowjax",
}
WORKS = {"log_prob": "log_prob", "training": "training step", "sampling": "sampling"}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = "|" + "---|" * left + "--:|" * (len(head) - left)
    first, *others = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([first, rule, *others])


def _number(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _ratio(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if "ratio" in result:
        return _number(result["ratio"])
    return f"> {result['ratio_at_least']:.0f}" if "ratio_at_least" in result else "-"


def _used(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in COLUMNS if any(name in e["libraries"] for e in entries)]


def ratios(entries: Sequence[dict[str, Any]]) -> str:
    """One table a kind: rows are cells, columns are libraries."""
    blocks = []
    for kind in KINDS:
        chosen = [e for e in entries if e["kind"] == kind]
        if not chosen:
            continue
        names = _used(chosen)
        head = ["workload", "D", "B", "baseline, ms", *(COLUMNS[n] for n in names)]
        rows = [
            [
                WORKS[e["workload"]],
                str(e["features"]),
                str(e["batch"]),
                f"{e['limit_milliseconds']:.3g}",
                *(_ratio(e["libraries"].get(n)) for n in names),
            ]
            for e in chosen
        ]
        layers = f"{KINDS[kind].layers} layers"
        blocks.append(f"### {KINDS[kind].title}, {layers}\n\n{_table(head, rows)}")
    return "\n\n".join(blocks)


def memory(entries: Sequence[dict[str, Any]]) -> str:
    """Peak memory of a training step, and the numbers of parameters."""
    chosen = [e for e in entries if e["workload"] == "training"]
    if not chosen:
        return ""
    features = BAR_FEATURES
    if not any(e["features"] == features for e in chosen):
        features = max(e["features"] for e in chosen)
    chosen = [e for e in chosen if e["features"] == features]
    names = _used(chosen)
    head = ["flow", "B", "baseline", *(COLUMNS[n] for n in names)]
    peaks, sizes = [], []
    for e in chosen:
        found = [e["libraries"].get(n) or {} for n in names]
        values = [e["limit_peak_bytes"], *(f.get("peak_bytes") for f in found)]
        shown = ["-" if v is None else f"{v / 2**20:.1f}" for v in values]
        peaks.append([KINDS[e["kind"]].title, str(e["batch"]), *shown])
        sizes.append(
            [
                KINDS[e["kind"]].title,
                *(f"{f['parameters']:,}" if "parameters" in f else "-" for f in found),
            ]
        )
    sizes = [row for i, row in enumerate(sizes) if row not in sizes[:i]]
    return (
        f"## Peak memory of a training step, MiB, D = {features}\n\n"
        "The most bytes of tensors that live at once, gradients included, parameters and the "
        f"state of Adam not; memory outside torch is not seen.\n\n{_table(head, peaks)}\n\n"
        f"## Number of parameters, D = {features}\n\n"
        f"{_table(['flow', *(COLUMNS[n] for n in names)], sizes)}"
    )


def judge(bar: Bar, entries: Sequence[dict[str, Any]]) -> tuple[float, bool, bool] | None:
    """What was measured for a bar, whether it is a lower bound only, and whether it is reached."""

    def ratio(entry: dict[str, Any] | None, library: str) -> float | None:
        return None if entry is None else entry["libraries"].get(library, {}).get("ratio")

    wanted = (bar.kind, bar.workload, bar.batch, BAR_FEATURES)
    cells = [(e["kind"], e["workload"], e["batch"], e["features"]) for e in entries]
    entry = entries[cells.index(wanted)] if wanted in cells else None
    own = ratio(entry, bar.library)
    if entry is None or own is None:
        return None
    if bar.against:
        base = ratio(entry, "against")
        return None if base is None else (own / base, False, own / base <= bar.bound)
    if bar.peer:
        peer = entry["libraries"].get(bar.peer, {})
        value = peer.get("ratio", peer.get("ratio_at_least"))
        if value is None:
            return None
        value /= own
        below = "ratio" not in peer
        return None if below and value < bar.bound else (value, below, value >= bar.bound)
    return own, False, own <= bar.bound


def bars(entries: Sequence[dict[str, Any]]) -> str:
    """The bars, with what was measured."""
    rows, reached = [], 0
    for bar in BARS:
        judged = judge(bar, entries)
        if judged is None:
            continue
        value, below, good = judged
        reached += good
        what = COLUMNS[bar.library]
        if bar.peer:
            need = f"{bar.peer} takes >= {_number(bar.bound)} times as long"
        elif bar.against:
            need = f"<= {_number(bar.bound)} times {KINDS[bar.against].title.lower()}"
        else:
            need = f"<= {_number(bar.bound)} times the baseline"
        rows.append(
            [
                KINDS[bar.kind].title,
                WORKS[bar.workload],
                str(bar.batch),
                what,
                need,
                ("> " if below else "") + _number(value),
                "reached" if good else "**not reached**",
            ]
        )
    if not rows:
        return ""
    head = ["flow", "workload", "B", "who", "bar", "measured", ""]
    return f"## The bars, D = {BAR_FEATURES}\n\n{reached} of {len(rows)} reached.\n\n" + _table(
        head, rows, left=5
    )


def describe(result: dict[str, Any]) -> str:
    """The whole page."""
    entries = result["cells"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    kept = (
        "For all of them alike, the allocator of glibc was told to keep freed memory "
        "(`--allocator keep`): with its own settings, page faults would dominate tensors of some "
        "megabytes."
        if result["allocator"] == "keep"
        else "The allocator ran with its own settings (`--allocator system`)."
    )
    parts = [
        "# Speed relative to the network-only baseline, and of other libraries",
        "The *baseline* of a flow is its conditioner networks alone: forward for `log_prob`; "
        "forward, backward and a fused Adam step for a training step; one forward pass for "
        "sampling. Numbers are times divided by the baseline's, so 1.0 would mean that everything "
        "but the networks is free; a compiled flow can go below. Each is the median over "
        "interleaved rounds (baseline, then every library) of CPU time on one thread, in one "
        "process; the time of the baseline is in milliseconds. `> 100`: one call was broken off "
        "at that time; `-`: the library has no such flow, failed, or was left out because it was "
        "too slow on a smaller cell. D is the number of features, B of rows.",
        "All libraries build the same flows: perceptrons of 2 x 128 with ReLU, splines of 8 bins "
        "on [-5, 5], mixtures of 8 components, alternating halves, reversed or permuted orders, "
        "and no linear layers; the step is the same fused Adam, flowjax's that of optax. zuko's "
        "mixture is of normals with equal weights, 16 parameters per feature instead of 24. The "
        "compiled column is `torch.compile(fullgraph=True, dynamic=False)` of the whole log_prob "
        "or loss, and for sampling `Flow.compile` with the same arguments, without the time of "
        f"compilation. {kept}",
        bars(entries),
        "## Times, in units of the baseline",
        ratios(entries),
        memory(entries),
        "## How it was measured",
        f"Command: `{result['command']}`",
        f"{versions}, Python {result['python']}, {result['processor']}. Every number, with its "
        "spread over the rounds, is in the `.json` beside this file.",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def write(result: dict[str, Any], folder: Path) -> None:
    """Write ``benchmarks.md`` and ``benchmarks.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.md").write_text(describe(result))
    (folder / "benchmarks.json").write_text(json.dumps(result, indent=1) + "\n")
